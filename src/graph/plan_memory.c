/* Where activations and their gradients lie. Each needs memory from the step that writes it to the
 * last that reads it; in one arena those whose times do not meet share theirs. Largest first, each
 * into the tightest gap between those already placed that it meets in time (greedy by size with
 * best fit: Pisarchyk & Lee, "Efficient memory management for deep neural net inference", 2020). A
 * view has no span: its users read the span of the layer it looks at. A rectifier that the backend
 * computes at the end of the layer before it is such a view. */
#include "graph/graph_private.h"

#include <stdlib.h>
#include <string.h>

bool pl_graph_unplanned;

/* ---- placing --------------------------------------------------------------------------------- */

static int larger_first(const void *a, const void *b)
{
    const struct pl_span *x = *(struct pl_span *const *)a, *y = *(struct pl_span *const *)b;
    if (x->bytes != y->bytes)
        return x->bytes > y->bytes ? -1 : 1;
    return x < y ? -1 : x > y; /* qsort is not stable; ranks must agree */
}

static bool meet(const struct pl_span *a, const struct pl_span *b)
{
    return a->begin <= b->end && b->begin <= a->end;
}

/* placed[] is in order of offsets. */
static size_t best_gap(const struct pl_span *s, struct pl_span *const *placed, int n)
{
    size_t best = SIZE_MAX, least = SIZE_MAX, end = 0;
    for (int i = 0; i < n; i++) {
        const struct pl_span *p = placed[i];
        if (!meet(s, p))
            continue;
        if (p->offset > end && p->offset - end >= s->bytes && p->offset - end < least) {
            least = p->offset - end;
            best = end;
        }
        if (p->offset + p->bytes > end)
            end = p->offset + p->bytes;
    }
    return best != SIZE_MAX ? best : end;
}

static void insert(struct pl_span *s, struct pl_span **placed, int n)
{
    int at = n;
    for (; at > 0 && placed[at - 1]->offset > s->offset; at--)
        placed[at] = placed[at - 1];
    placed[at] = s;
}

/* SIZE_MAX where the two lists do not fit into memory. */
size_t pl_spans_place(struct pl_span *span, int n)
{
    size_t total = 0, list = (size_t)(n + 1) * sizeof(struct pl_span *);
    struct pl_span **todo = pl_alloc(list, "memory plan"), **placed = pl_alloc(list, "memory plan");
    for (int i = 0; todo && i < n; i++)
        todo[i] = &span[i];
    if (todo)
        qsort(todo, (size_t)n, sizeof *todo, larger_first);
    for (int i = 0; todo && placed && i < n; i++) {
        todo[i]->offset = best_gap(todo[i], placed, i);
        insert(todo[i], placed, i);
        if (todo[i]->offset + todo[i]->bytes > total)
            total = todo[i]->offset + todo[i]->bytes;
    }
    bool failed = !todo || !placed;
    pl_free(todo);
    pl_free(placed);
    return failed ? SIZE_MAX : total;
}

/* ---- times ----------------------------------------------------------------------------------- */

static int new_span(struct pl_graph *g, int root, int begin, int end)
{
    g->span[g->spans] = (struct pl_span){.begin = begin, .end = end, .root = root};
    return g->spans++;
}

static int forward_time(int i) { return i; }
static int backward_time(const struct pl_graph *g, int i) { return 2 * g->layers - 1 - i; }

/* The layer whose plan computes what layer i takes. */
static int computed_by(const struct pl_graph *g, int i)
{
    int from = g->layer[i].input[0];
    while (from != PL_DATA && g->node[from].fused)
        from = g->layer[from].input[0];
    return from;
}

/* Layer i is a rectifier, the only user of a layer that the backend can end with one. */
static bool can_fuse(const struct pl_graph *g, int i, const int *users)
{
    int from = g->layer[i].input[0], by = computed_by(g, i);
    struct pl_op op = {0};
    if (!g->table->fuses_relu || !pl_is_op(&g->layer[i], PL_OP_RELU) || from == PL_DATA || users[from] != 1)
        return false;
    if (!g->layer[by].kind->op)
        return false;
    g->layer[by].kind->op(&g->layer[by], &op);
    return g->table->fuses_relu(op.kind);
}

static pl_status fuse(struct pl_graph *g)
{
    int *users = pl_alloc((size_t)g->layers * sizeof *users, "memory plan");
    if (!users)
        return PL_ERR_MEMORY;
    for (int i = 0; i < g->layers; i++)
        for (int k = 0; k < g->layer[i].inputs; k++)
            if (g->layer[i].input[k] != PL_DATA)
                users[g->layer[i].input[k]]++;
    if (!g->train)
        pl_graph_find_folds(g, users);
    for (int i = 0; i < g->layers; i++)
        if (can_fuse(g, i, users)) {
            g->node[computed_by(g, i)].relu = true;
            g->node[i].fused = true;
        }
    pl_free(users);
    return PL_OK;
}

static void find_roots(struct pl_graph *g)
{
    for (int i = 0; i < g->layers; i++) {
        const struct pl_layer *l = &g->layer[i];
        struct pl_node *n = &g->node[i];
        n->root = pl_is_view(g, i) ? pl_input_root(g, i, 0) : i;
        n->y = n->dy = PL_NO_SPAN;
        n->need_grad = g->train && (l->params > 0 || pl_is_source(g, i));
        for (int k = 0; k < l->inputs; k++) {
            n->dx[k] = PL_NO_SPAN;
            if (g->train && l->input[k] != PL_DATA && g->node[l->input[k]].need_grad)
                n->need_grad = true;
        }
    }
}

/* An output lives from its layer to its last user, or to the layer's own backward, which may read
 * it. */
static void span_outputs(struct pl_graph *g)
{
    for (int i = 0; i < g->layers; i++)
        if (g->node[i].root == i)
            g->node[i].y =
                new_span(g, i, forward_time(i), g->train ? backward_time(g, i) : forward_time(i));
    for (int i = 0; i < g->layers; i++)
        for (int k = 0; k < g->layer[i].inputs; k++) {
            int root = pl_input_root(g, i, k);
            struct pl_span *s = root == PL_DATA ? NULL : &g->span[g->node[root].y];
            if (s && s->end < forward_time(i))
                s->end = forward_time(i);
        }
    int out = g->output == PL_ELSEWHERE ? PL_DATA : g->node[g->output].root; /* is read after the pass */
    if (out != PL_DATA)
        g->span[g->node[out].y].end = 2 * g->layers;
}

/* A gradient lives from the user that is last in forward, hence first in backward and writes it, to
 * the layer's own backward. Further users write to memory of their own, which is then added. */
static void span_gradients(struct pl_graph *g)
{
    for (int i = g->layers - 1; i >= 0; i--) {
        struct pl_node *n = &g->node[i];
        if (!n->need_grad || pl_is_view(g, i))
            continue;
        for (int k = 0; k < g->layer[i].inputs; k++) {
            int root = pl_input_root(g, i, k), now = backward_time(g, i);
            if (root == PL_DATA || !g->node[root].need_grad)
                continue;
            n->adds[k] = g->node[root].dy != PL_NO_SPAN;
            if (n->adds[k])
                n->dx[k] = new_span(g, root, now, now);
            else
                n->dx[k] = g->node[root].dy = new_span(g, root, now, backward_time(g, root));
        }
    }
}

static size_t place_apart(struct pl_graph *g)
{
    size_t total = 0;
    for (int i = 0; i < g->spans; i++) {
        g->span[i].offset = total;
        total += g->span[i].bytes;
    }
    return total;
}

pl_status pl_graph_plan_spans(struct pl_graph *g)
{
    size_t most = 0; /* an output and a gradient each, and one for each further user */
    for (int i = 0; i < g->layers; i++)
        most += 1 + (size_t)g->layer[i].inputs;
    g->span = pl_alloc(most * sizeof *g->span, "memory plan");
    if (!g->span)
        return PL_ERR_MEMORY;
    PL_TRY(fuse(g));
    find_roots(g);
    span_outputs(g);
    if (g->train)
        span_gradients(g);
    return PL_OK;
}

pl_status pl_graph_place_spans(struct pl_graph *g)
{
    for (int i = 0; i < g->spans; i++) {
        int root = g->span[i].root;
        g->span[i].bytes = (pl_layout_bytes(&g->node[root].layout, &g->layer[root].y) + 63) / 64 * 64;
    }
    g->arena_bytes = pl_graph_unplanned ? place_apart(g) : pl_spans_place(g->span, g->spans);
    return g->arena_bytes == SIZE_MAX ? PL_ERR_MEMORY : PL_OK;
}
