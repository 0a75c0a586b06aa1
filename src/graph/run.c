/* One pass through the network: layers forward in order, backward in the reverse. This is the
 * step's path: it only hands pointers to plans, and after the first passes allocates, looks up and logs nothing. */
#include "graph/graph_private.h"

static const float *value(const struct pl_graph *g, const struct pl_graph_batch *b, int root)
{
    return root == PL_DATA ? b->data : pl_span_memory(g, g->node[root].y);
}

/* What forward and backward of layer i have in common. */
static struct pl_io make_io(struct pl_graph *g, const struct pl_graph_batch *b, int i, bool train)
{
    const struct pl_layer *l = &g->layer[i];
    struct pl_io io = {.rows = b->rows * g->node[i].positions,
                       .train = train,
                       .y = pl_span_memory(g, g->node[i].y),
                       .p_bf16 = g->node[i].weight_bf16,
                       .p_bf16_made = pl_graph_rounded_made(g),
                       .seed = b->seed,
                       .step_key = b->step_key,
                       .layer_key = g->node[i].key,
                       .sum = g->sync,
                       .sum_arg = g->sync_arg,
                       .row_key = b->index};
    const float *params = pl_graph_params_there(g);
    for (int k = 0; k < l->inputs; k++)
        io.x[k] = value(g, b, pl_input_root(g, i, k));
    for (int k = 0; k < l->params; k++)
        io.p[k] = params + l->param[k].offset;
    pl_graph_fold_io(g, i, &io);
    if (l->kind->loss)
        io.label = b->label;
    return io;
}

static pl_status check_batch(const struct pl_graph *g, const struct pl_graph_batch *b, bool train)
{
    if (b->rows < 0 || b->rows > g->batch)
        return pl_error(PL_ERR_USAGE, "graph", "%lld samples for a graph of %lld",
                        (long long)b->rows, (long long)g->batch);
    if (train && !g->train)
        return pl_error(PL_ERR_USAGE, "graph", "training on a graph that was made without");
    if ((g->folded || g->far) && !g->train && !g->prepared)
        return pl_error(PL_ERR_USAGE, "graph", "evaluation before pl_graph_prepare");
    return PL_OK;
}

/* For benchmarks: what a layer started is waited for. */
static pl_status note_time(struct pl_graph *g, int k, double begin)
{
    if (!g->layer_ms)
        return PL_OK;
    PL_TRY(g->table->finish(g->backend));
    g->layer_ms[k] += pl_now_ms() - begin;
    return PL_OK;
}

/* A device's layers are only started here. */
static double begin_trace(const struct pl_graph *g) { return g->far ? 0 : pl_trace_begin(); }

/* What the loss of layer i adds up to. Of a loss at every position the mean over those counts for the sample; its weight has that already. */
static void add_sums(const struct pl_graph *g, int i, const struct pl_loss_sums *found, struct pl_loss_sums *sums)
{
    double share = 1 / (double)g->node[i].positions;
    sums->total += found->total;
    if (i != g->output)
        return;
    sums->loss += found->loss * share;
    sums->correct += found->correct * share;
    sums->correct5 += found->correct5 * share;
    sums->rows += found->rows / g->node[i].positions;
}

/* Of losses that can leave their sums where they are. */
static pl_status collect(struct pl_graph *g, const struct pl_graph_batch *b, struct pl_loss_sums *sums)
{
    for (int i = 0; i < g->layers && b->label && g->table->loss_sums; i++) {
        struct pl_loss_sums found = {0};
        if (!g->layer[i].kind->loss || !g->node[i].plan)
            continue;
        const struct pl_io io = {.rows = b->rows * g->node[i].positions, .label = b->label, .sums = &found};
        PL_TRY(g->table->loss_sums(g->node[i].plan, &io));
        add_sums(g, i, &found, sums);
    }
    return PL_OK;
}

/* b: with memory of the backend. */
static pl_status forward_layers(struct pl_graph *g, const struct pl_graph_batch *b, bool train, struct pl_loss_sums *sums)
{
    for (int i = 0; i < g->layers; i++) {
        if (pl_is_junction(&g->layer[i]))
            PL_TRY(pl_graph_join_forward(g, b, i));
        if (!g->node[i].plan)
            continue;
        if (b->abandoned && b->abandoned(b->arg))
            return PL_END;
        struct pl_io io = make_io(g, b, i, train);
        struct pl_loss_sums found = {0};
        if (io.label && !g->table->loss_sums)
            io.sums = &found;
        double begin = g->layer_ms ? pl_now_ms() : 0, traced = begin_trace(g);
        PL_TRY(g->table->forward(g->node[i].plan, &io));
        pl_trace_end(traced, "forward", g->layer[i].name, -1);
        PL_TRY(note_time(g, 2 * i, begin));
        if (io.sums)
            add_sums(g, i, &found, sums);
    }
    return PL_OK;
}

/* Adds the gradient that layer i's k-th input has in temporary memory to that of its root. */
static pl_status add_gradient(struct pl_graph *g, const struct pl_graph_batch *b, int i, int k)
{
    struct pl_node *root = &g->node[pl_input_root(g, i, k)];
    float *sum = pl_span_memory(g, root->dy);
    struct pl_io io = {.rows = b->rows, .train = true, .x = {sum, pl_span_memory(g, g->node[i].dx[k])}, .y = sum,
                       .seed = b->seed, .step_key = b->step_key};
    return g->table->forward(root->add, &io);
}

static pl_status compute_backward(struct pl_graph *g, const struct pl_graph_batch *b, bool accumulate, int i)
{
    const struct pl_layer *l = &g->layer[i];
    const struct pl_node *n = &g->node[i];
    struct pl_io io = make_io(g, b, i, true);
    io.accumulate = accumulate;
    io.dy = pl_span_memory(g, n->dy);
    for (int k = 0; k < l->inputs; k++)
        io.dx[k] = pl_span_memory(g, n->dx[k]);
    for (int k = 0; k < l->params; k++)
        io.dp[k] = pl_graph_grads_there(g) + l->param[k].offset;
    return g->table->backward(n->plan, &io);
}

static pl_status backward_layer(struct pl_graph *g, const struct pl_graph_batch *b, bool accumulate, int i)
{
    PL_TRY(g->node[i].plan ? compute_backward(g, b, accumulate, i) : pl_graph_join_backward(g, b, i));
    for (int k = 0; k < g->layer[i].inputs; k++)
        if (g->node[i].adds[k])
            PL_TRY(add_gradient(g, b, i, k));
    return PL_OK;
}

static bool runs_backward(const struct pl_graph *g, int i)
{
    return g->node[i].need_grad && (g->node[i].plan || pl_is_junction(&g->layer[i]));
}

/* ---- a pass in stretches ----------------------------------------------------------------------------- */

/* What is started between two looks at who waits for the gradient: all layers forward, those from one to another backward
 * whose gradients make up a slice, or all of both. A far backend records it once, and from then on starts it as one. The first
 * pass goes layer by layer, so that what a library makes at its first use is there when one is recorded. */
enum direction { FORWARD, BACKWARD, BOTH_WAYS };
struct stretch {
    struct pl_graph *graph;
    const struct pl_graph_batch *batch;
    enum direction direction;
    bool accumulate;
    int from, to; /* backward */
    struct pl_loss_sums *sums;
};

static pl_status layers_backward(struct pl_graph *g, const struct pl_graph_batch *b, bool accumulate, int from, int to)
{
    for (int i = from; i >= to; i--) {
        if (!runs_backward(g, i))
            continue;
        if (b->abandoned && b->abandoned(b->arg))
            return PL_END;
        double begin = g->layer_ms ? pl_now_ms() : 0, traced = begin_trace(g);
        PL_TRY(backward_layer(g, b, accumulate, i));
        pl_trace_end(traced, "backward", g->layer[i].name, -1);
        PL_TRY(note_time(g, 2 * i + 1, begin));
    }
    return PL_OK;
}

static pl_status run_stretch(void *arg)
{
    const struct stretch *t = arg;
    pl_status s = t->direction != BACKWARD ? forward_layers(t->graph, t->batch, true, t->sums) : PL_OK;
    if (s != PL_OK || t->direction == FORWARD)
        return s;
    return layers_backward(t->graph, t->batch, t->accumulate, t->from, t->to);
}

void pl_graph_drop_recordings(struct pl_graph *g)
{
    for (int i = 0; g->recording && i < pl_graph_recordings(g); i++) {
        if (g->recording[i])
            g->table->recording_destroy(g->backend, g->recording[i]);
        g->recording[i] = NULL;
    }
}

void pl_graph_slice_at_least(struct pl_graph *g, int64_t elems)
{
    pl_graph_drop_recordings(g); /* they end elsewhere then */
    g->least_slice = elems;
}

static bool can_record(const struct pl_graph *g) { return g->recording && g->passed && !g->unrecordable && !g->layer_ms; }

/* Its recordings by where they begin; those that add to the gradient are others. */
static struct pl_recording **recording_of(const struct stretch *t)
{
    int layers = t->graph->layers;
    return &t->graph->recording[t->direction == FORWARD ? 0 : t->direction == BOTH_WAYS ? 1 : 2 + t->from + (t->accumulate ? layers : 0)];
}

/* What cannot be recorded is started layer by layer, which tells whether there is more to it. What is recorded is not given up
 * half-way. */
static pl_status start_stretch(struct stretch *t)
{
    struct pl_graph *g = t->graph;
    const struct pl_graph_batch *b = t->batch;
    struct pl_graph_batch quiet = *b;
    struct stretch all = *t;
    const struct pl_io io = {.rows = b->rows, .train = true, .seed = b->seed, .step_key = b->step_key};
    if (!can_record(g))
        return run_stretch(t);
    if (b->abandoned && b->abandoned(b->arg))
        return PL_END;
    struct pl_recording **r = recording_of(t);
    quiet.abandoned = NULL;
    all.batch = &quiet;
    if (!*r && g->table->record(g->backend, &io, run_stretch, &all, r) != PL_OK) {
        pl_log("note: layers are started one by one: %s", pl_error_text());
        pl_error_clear();
        g->unrecordable = true;
        return run_stretch(t);
    }
    return g->table->replay(g->backend, *r, &io);
}

/* The last of the layers from `from` down that make up a slice; *a: where it begins, `end` where they have no parameters. */
static int slice_of(const struct pl_graph *g, int from, int64_t end, int64_t *a)
{
    *a = end;
    for (int i = from; i >= 0; i--) {
        const struct pl_layer *l = &g->layer[i];
        if (!g->node[i].plan || !g->node[i].need_grad || l->params == 0)
            continue;
        *a = l->param[0].offset;
        if (!g->far || end - *a >= g->least_slice)
            return i;
    }
    return 0;
}

static pl_status slices_backward(struct pl_graph *g, const struct pl_graph_batch *b, bool accumulate, pl_slice_fn *slice, void *arg)
{
    struct stretch t = {.graph = g, .batch = b, .direction = BACKWARD, .accumulate = accumulate};
    int64_t a, end = g->elems;
    for (t.from = g->layers - 1; t.from >= 0; t.from = t.to - 1) {
        t.to = slice_of(g, t.from, end, &a);
        pl_status s = start_stretch(&t);
        if (s == PL_OK && a < end && !b->more)
            s = pl_graph_bring_slice(g, a, end, slice, arg);
        if (s != PL_OK)
            return s;
        end = a;
    }
    return PL_OK;
}

/* ---- parts of a batch -------------------------------------------------------------------------------- */

size_t pl_graph_data_bytes(const struct pl_job_input *input)
{
    size_t bytes = sizeof(float);
    for (int i = 0; i < input->dims; i++)
        bytes *= (size_t)input->dim[i];
    return bytes;
}

size_t pl_graph_label_bytes(const struct pl_job_input *input)
{
    return (size_t)pl_input_labels(input) * sizeof(int32_t); /* floats are as long */
}

static const void *advanced(const void *p, int64_t first, size_t bytes) { return p ? (const char *)p + (size_t)first * bytes : NULL; }

struct pl_graph_batch pl_graph_batch_part(const struct pl_job_input *input, const struct pl_graph_batch *b, int64_t first, int64_t rows)
{
    struct pl_graph_batch part = *b;
    part.rows = rows;
    part.data = advanced(b->data, first, pl_graph_data_bytes(input));
    part.label = advanced(b->label, first, pl_graph_label_bytes(input));
    part.index = advanced(b->index, first, sizeof *b->index);
    return part;
}

/* ---- passes ------------------------------------------------------------------------------------ */

pl_status pl_graph_forward(struct pl_graph *g, const struct pl_graph_batch *b, bool train, struct pl_loss_sums *sums)
{
    struct pl_graph_batch there;
    PL_TRY(check_batch(g, b, train));
    PL_TRY(pl_graph_send_batch(g, b));
    pl_graph_batch_there(g, b, &there);
    if (g->train)
        PL_TRY(pl_graph_refresh_params(g));
    g->last_data = b->data;
    bool as_one = train && pl_graph_passes_as_one(g) && can_record(g);
    struct stretch t = {.graph = g, .batch = &there, .direction = as_one ? BOTH_WAYS : FORWARD, .from = g->layers - 1, .sums = sums};
    PL_TRY(pl_graph_take_x(g, b));
    pl_status s = train ? start_stretch(&t) : forward_layers(g, &there, false, sums);
    if (s == PL_OK)
        s = pl_graph_hand_y(g, b);
    g->started = s == PL_OK && as_one;
    if (s == PL_OK)
        s = pl_graph_send_next(g, b->next);
    return s == PL_OK ? collect(g, &there, sums) : s;
}

pl_status pl_graph_backward(struct pl_graph *g, const struct pl_graph_batch *b, bool accumulate,
                            pl_slice_fn *slice, void *arg)
{
    struct pl_graph_batch there;
    PL_TRY(check_batch(g, b, true));
    if (g->started) {
        g->started = false;
        if (accumulate)
            return pl_error(PL_ERR_USAGE, "graph", "a pass that was started as one does not add to the gradient");
        return slice ? slice(arg, 0, g->elems) : PL_OK;
    }
    PL_TRY(pl_graph_make_grads(g));
    pl_graph_batch_there(g, b, &there);
    PL_TRY(pl_graph_take_dy(g, b));
    pl_status s = pl_graph_bring_rest(g, slices_backward(g, &there, accumulate, slice, arg), slice, arg);
    g->passed = g->passed || s == PL_OK;
    return s == PL_OK ? pl_graph_hand_dx(g, b) : s;
}
