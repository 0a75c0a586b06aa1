/* One part of a network whose layers are shared out over ranks. Shapes are those of the whole network until here; then a layer
 * that is *shared* has a share of its channels, dimension 1 of its output, and of the rows of its parameters. What is shared is found in one
 * walk in running order. Between a layer and those that take its output in another way stands a *junction*, without an
 * operation, that runs with the whole group: so lifetimes and sums of gradients come from the plans of any network.
 *
 *   gather  shares to the whole. What takes it computes the same on every part, so each knows the whole gradient: backward takes its share.
 *   join    the same for layers that are shared: each part knows what of the gradient comes through its own outputs, and
 *           backward sums over the parts.
 *   spread  the whole to such layers, where every part computed it: nothing to do forward, backward sums.
 *
 * A layer that every part computes alike has the same parameters, gradient and values on all, to the bit. */
#include "graph/graph_private.h"

#include <string.h>

enum junction { GATHER, JOIN, SPREAD, JUNCTIONS };

/* No job can ask for these. */
static const struct pl_layer_kind kinds[JUNCTIONS] = {
    [GATHER] = {.name = "gather", .min_inputs = 1, .max_inputs = 1},
    [JOIN] = {.name = "join", .min_inputs = 1, .max_inputs = 1},
    [SPREAD] = {.name = "spread", .min_inputs = 1, .max_inputs = 1}};

bool pl_is_junction(const struct pl_layer *l) { return l->kind >= kinds && l->kind < kinds + JUNCTIONS; }

/* Of each layer of the whole network. */
struct choice {
    bool shared;
    bool shares;              /* it makes shares of what is whole: a dense layer or a convolution */
    bool grad;                /* a gradient reaches it */
    bool needs[JUNCTIONS];    /* somebody takes its output so */
    int place, at[JUNCTIONS]; /* in the part */
};

/* ---- who has what ---------------------------------------------------------------------------- */

static bool can_share(const struct pl_graph *g, int i, const struct pl_op *op)
{
    bool weights = (op->kind == PL_OP_DENSE && pl_op_positions(op) == 1) || (op->kind == PL_OP_CONV && op->groups == 1);
    return weights && i != g->output && g->layer[i].y.dim[1] % g->parts == 0;
}

static bool goes_by_channels(enum pl_op_kind kind)
{
    switch (kind) {
    case PL_OP_MAXPOOL: case PL_OP_AVGPOOL: case PL_OP_RELU: case PL_OP_SIGMOID: case PL_OP_TANH: case PL_OP_DROPOUT: case PL_OP_BATCHNORM: case PL_OP_ADD:
        return true;
    default:
        return false;
    }
}

static bool takes_shares(const struct pl_graph *g, const struct choice *c, int i)
{
    const struct pl_layer *l = &g->layer[i];
    bool all = i != g->output;
    for (int k = 0; k < l->inputs; k++)
        all = all && l->input[k] != PL_DATA && c[l->input[k]].shared;
    return all;
}

static void choose(const struct pl_graph *g, struct choice *c, int i)
{
    const struct pl_layer *l = &g->layer[i];
    struct pl_op op = {0};
    if (l->kind->op)
        l->kind->op(l, &op);
    c[i].shares = l->kind->op && can_share(g, i, &op);
    c[i].shared = c[i].shares || ((l->kind->view || (l->kind->op && goes_by_channels(op.kind))) && takes_shares(g, c, i));
    c[i].grad = l->params > 0;
    for (int k = 0; k < l->inputs; k++)
        c[i].grad = c[i].grad || (l->input[k] != PL_DATA && c[l->input[k]].grad);
}

/* How layer i takes what `from` gives; JUNCTIONS: as it is. */
static enum junction taken(const struct pl_graph *g, const struct choice *c, int i, int from)
{
    if (from == PL_DATA || (c[i].shared && !c[i].shares && c[from].shared))
        return JUNCTIONS;
    if (c[from].shared)
        return c[i].shares && g->train ? JOIN : GATHER;
    return c[i].shares && g->train && c[from].grad ? SPREAD : JUNCTIONS;
}

/* ---- the part -------------------------------------------------------------------------------- */

/* Weights, scales and the like have a row for each channel. */
static void take_share(const struct pl_graph *g, struct pl_layer *l)
{
    int64_t channels = l->y.dim[1];
    l->y.dim[1] = channels / g->parts;
    l->first = g->part * pl_shape_row_elems(&l->y);
    for (int k = 0; k < l->params; k++) {
        struct pl_param *p = &l->param[k];
        p->whole = channels;
        p->shape.dim[0] = channels / g->parts;
        p->first = g->part * p->shape.dim[0];
    }
}

static void take_layer(const struct pl_graph *g, const struct choice *c, int i, struct pl_layer *to)
{
    struct pl_layer *l = &g->layer[i];
    *to = *l;
    for (int k = 0; k < l->inputs; k++) {
        enum junction j = taken(g, c, i, l->input[k]);
        if (l->input[k] != PL_DATA)
            to->input[k] = j == JUNCTIONS ? c[l->input[k]].place : c[l->input[k]].at[j];
    }
    if (c[i].shared)
        take_share(g, to);
    for (int k = 0; k < to->params; k++)
        to->param[k].twin = !c[i].shared && g->part > 0;
}

/* After layer `of` of the whole network. */
static pl_status make_junction(const struct pl_graph *g, const struct choice *c, int of, enum junction j, struct pl_layer *to)
{
    const struct pl_layer *l = &g->layer[of];
    *to = (struct pl_layer){.kind = &kinds[j], .source = l->source, .inputs = 1, .input = {c->place}, .x = {l->y}, .y = l->y};
    if (j != SPREAD)
        to->x[0].dim[1] /= g->parts;
    to->name = pl_strdupf("%s.%s", l->name, kinds[j].name);
    return to->name ? PL_OK : PL_ERR_MEMORY;
}

/* Inputs are what the layers before them give now. */
static void take_inputs(struct pl_graph *g)
{
    for (int i = 0; i < g->layers; i++)
        for (int k = 0; k < g->layer[i].inputs; k++)
            if (g->layer[i].input[k] != PL_DATA)
                g->layer[i].x[k] = g->layer[g->layer[i].input[k]].y;
}

static pl_status build(struct pl_graph *g, struct choice *c, struct pl_layer *to, int *made)
{
    pl_status s = PL_OK;
    for (int i = 0; i < g->layers; i++) {
        c[i].place = (*made)++;
        take_layer(g, c, i, &to[c[i].place]);
        struct pl_layer whole = g->layer[i]; /* the shape of the output is still wanted */
        g->layer[i] = (struct pl_layer){.y = whole.y, .name = whole.name, .source = whole.source};
        for (int j = 0; j < JUNCTIONS && s == PL_OK; j++)
            if (c[i].needs[j]) {
                c[i].at[j] = (*made)++;
                s = make_junction(g, &c[i], i, (enum junction)j, &to[c[i].at[j]]);
            }
        g->layer[i] = (struct pl_layer){0};
    }
    return s;
}

static pl_status take_part(struct pl_graph *g, struct choice *c)
{
    int most = g->layers * (1 + JUNCTIONS), made = 0;
    bool any = false;
    for (int i = 0; i < g->layers; i++) {
        choose(g, c, i);
        any = any || c[i].shared;
        for (int k = 0; k < g->layer[i].inputs; k++) {
            enum junction j = taken(g, c, i, g->layer[i].input[k]);
            if (j != JUNCTIONS)
                c[g->layer[i].input[k]].needs[j] = true;
        }
    }
    if (!any)
        return pl_error(PL_ERR_USAGE, "graph", "split.tensor %d divides the outputs of no dense layer and of no convolution of this network\n"
                        "give a divisor of their number", g->parts);
    struct pl_layer *to = pl_alloc((size_t)most * sizeof *to, "layers");
    struct pl_node *node = pl_alloc((size_t)most * sizeof *node, "layers");
    pl_status s = to && node ? build(g, c, to, &made) : PL_ERR_MEMORY;
    if (made == 0) {
        pl_free(to);
        pl_free(node);
        return s;
    }
    pl_free(g->layer);
    pl_free(g->node);
    g->output = c[g->output].place;
    g->layer = to;
    g->node = node;
    g->layers = made;
    take_inputs(g);
    return s;
}

pl_status pl_graph_take_part(struct pl_graph *g, const struct pl_graph_cut *cut)
{
    if (!cut || cut->parts <= 1)
        return PL_OK;
    g->part = cut->part;
    g->parts = cut->parts;
    struct choice *c = pl_alloc((size_t)g->layers * sizeof *c, "parts of layers");
    pl_status s = c ? take_part(g, c) : PL_ERR_MEMORY;
    pl_free(c);
    return s;
}

/* ---- passes ---------------------------------------------------------------------------------- */

void pl_graph_set_group(struct pl_graph *g, const struct pl_graph_group *group) { g->group = group; }

int64_t pl_graph_group_elems(const struct pl_graph *g)
{
    int64_t most = 0;
    for (int i = 0; i < g->layers; i++)
        if (pl_is_junction(&g->layer[i]) && pl_shape_elems(&g->layer[i].y) > most)
            most = pl_shape_elems(&g->layer[i].y);
    return most;
}

/* Plans read padding rows too: those hold 0. */
static void clear_padding(float *v, const struct pl_shape *s, int64_t rows)
{
    int64_t row = pl_shape_row_elems(s);
    memset(v + rows * row, 0, (size_t)((s->dim[0] - rows) * row) * sizeof *v);
}

pl_status pl_graph_join_forward(struct pl_graph *g, const struct pl_graph_batch *b, int i)
{
    const struct pl_layer *l = &g->layer[i];
    const float *x = pl_span_memory(g, g->node[pl_input_root(g, i, 0)].y);
    float *y = pl_span_memory(g, g->node[i].y);
    double traced = pl_trace_begin();
    pl_status s = PL_OK;
    if (l->kind == &kinds[SPREAD])
        memcpy(y, x, (size_t)(b->rows * pl_shape_row_elems(&l->y)) * sizeof *y);
    else
        s = g->group->gather(g->group->arg, b->rows, pl_shape_row_elems(&l->x[0]), x, y);
    clear_padding(y, &l->y, b->rows);
    pl_trace_end(traced, "forward", l->name, -1);
    return s;
}

/* A row's share of what every part knows. */
static void own_share(const struct pl_graph *g, const struct pl_layer *l, int64_t rows, const float *dy, float *dx)
{
    int64_t n = pl_shape_row_elems(&l->x[0]);
    for (int64_t r = 0; r < rows; r++)
        memcpy(dx + r * n, dy + (r * g->parts + g->part) * n, (size_t)n * sizeof *dx);
}

pl_status pl_graph_join_backward(struct pl_graph *g, const struct pl_graph_batch *b, int i)
{
    const struct pl_layer *l = &g->layer[i];
    const float *dy = pl_span_memory(g, g->node[i].dy);
    float *dx = pl_span_memory(g, g->node[i].dx[0]);
    int64_t n = pl_shape_row_elems(&l->x[0]);
    pl_status s = PL_OK;
    if (l->kind == &kinds[GATHER]) {
        own_share(g, l, b->rows, dy, dx);
    } else if (l->kind == &kinds[JOIN]) {
        s = g->group->scatter(g->group->arg, b->rows, n, dy, dx);
    } else {
        memcpy(dx, dy, (size_t)(b->rows * n) * sizeof *dx);
        s = g->group->sum(g->group->arg, b->rows * n, dx);
    }
    clear_padding(dx, &l->x[0], b->rows);
    return s;
}
