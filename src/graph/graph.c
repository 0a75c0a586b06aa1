/* The network as an object: put together from its parts, its slabs and arena on the backend, a plan
 * for each layer that computes, and what others ask of it. */
#include "graph/graph_private.h"

#include <string.h>

/* ---- plans ----------------------------------------------------------------------------------- */

/* Layouts as far as they are chosen. */
static struct pl_op operation(struct pl_graph *g, int i)
{
    const struct pl_layer *l = &g->layer[i];
    const struct pl_node *n = &g->node[i];
    struct pl_op op = {.name = l->name,
                       .inputs = l->inputs,
                       .first = l->first,
                       .y = l->y,
                       .ly = n->layout,
                       .params = l->params,
                       .train = n->need_grad,
                       .p_bf16 = n->weight_bf16 != NULL,
                       .relu = n->relu};
    for (int k = 0; k < l->inputs; k++) {
        op.x[k] = l->x[k];
        op.need_dx[k] = n->dx[k] != PL_NO_SPAN;
        int root = pl_input_root(g, i, k);
        if (root != PL_DATA)
            op.lx[k] = g->node[root].layout;
    }
    for (int k = 0; k < l->params; k++)
        op.p[k] = l->param[k].shape;
    l->kind->op(l, &op);
    op.sync = op.kind == PL_OP_BATCHNORM && g->sync_bn;
    pl_graph_fold_op(n, &op);
    g->node[i].positions = pl_op_positions(&op);
    return op;
}

/* What others read, here or in another stage or part, and what a loss begins with, is canonical. */
static bool stays_canonical(const struct pl_graph *g, int i)
{
    for (int k = 0; k < g->layers; k++)
        if ((g->layer[k].kind->loss || pl_is_sink(g, k) || pl_is_junction(&g->layer[k])) && pl_input_root(g, k, 0) == i)
            return true;
    return g->output != PL_ELSEWHERE && i == g->node[g->output].root;
}

static void choose_layouts(struct pl_graph *g)
{
    for (int i = 0; i < g->layers && g->table->layout; i++)
        if (!pl_is_view(g, i) && g->layer[i].kind->op && !stays_canonical(g, i)) {
            struct pl_op op = operation(g, i);
            g->node[i].layout = g->table->layout(g->backend, &op);
        }
}

static pl_status plan_layer(struct pl_graph *g, int i)
{
    const char *name = g->layer[i].name;
    g->node[i].key = (uint32_t)pl_hash(PL_HASH_START, name, strlen(name));
    if (pl_is_view(g, i) || !g->layer[i].kind->op)
        return PL_OK;
    struct pl_op op = operation(g, i);
    int64_t values = pl_op_sync_values(&op);
    g->sync_values = values > g->sync_values ? values : g->sync_values;
    return g->table->plan(g->backend, &op, &g->node[i].plan);
}

/* The sum of gradients of an output with several users. */
static pl_status plan_add(struct pl_graph *g, int root)
{
    const struct pl_layer *l = &g->layer[root];
    if (g->node[root].add)
        return PL_OK;
    struct pl_op op = {
        .kind = PL_OP_ADD, .name = l->name, .inputs = 2, .x = {l->y, l->y}, .y = l->y};
    op.lx[0] = op.lx[1] = op.ly = g->node[root].layout;
    return g->table->plan(g->backend, &op, &g->node[root].add);
}

static pl_status make_plans(struct pl_graph *g)
{
    for (int i = 0; i < g->layers; i++) {
        PL_TRY(plan_layer(g, i));
        for (int k = 0; k < g->layer[i].inputs; k++)
            if (g->node[i].adds[k])
                PL_TRY(plan_add(g, pl_input_root(g, i, k)));
    }
    return PL_OK;
}

/* ---- memory ---------------------------------------------------------------------------------- */

static pl_status allocate(struct pl_graph *g, size_t bytes, const char *what, void *out)
{
    void *p = g->table->alloc(g->backend, bytes ? bytes : 64, what);
    memcpy(out, &p, sizeof p);
    return p ? PL_OK : PL_ERR_MEMORY;
}

/* Slabs are in host memory. */
static pl_status make_slab(struct pl_graph *g, const char *what, float **out)
{
    *out = pl_alloc((size_t)(g->elems > 0 ? g->elems : PL_ALIGN_ELEMS) * sizeof(float), what);
    return *out ? PL_OK : PL_ERR_MEMORY;
}

static pl_status allocate_all(struct pl_graph *g)
{
    PL_TRY(allocate(g, g->arena_bytes, "activations", &g->arena));
    if (!g->share && !g->params_later)
        PL_TRY(pl_graph_keep_params(g, NULL));
    PL_TRY(pl_graph_far_create(g));
    if (g->train && g->table->record) {
        g->recording = pl_alloc((size_t)pl_graph_recordings(g) * sizeof *g->recording, "recorded passes");
        if (!g->recording)
            return PL_ERR_MEMORY;
    }
    PL_TRY(pl_graph_rounded_create(g));
    if (g->folded_elems == 0)
        return PL_OK;
    g->fold_host = pl_alloc((size_t)g->fold_host_elems * sizeof(float), "folded weights");
    if (!g->fold_host)
        return PL_ERR_MEMORY;
    return allocate(g, (size_t)g->folded_elems * sizeof(float), "folded weights", &g->folded);
}

pl_status pl_graph_make_grads(struct pl_graph *g)
{
    if (!pl_graph_grads(g) && !pl_graph_gradient_stays(g))
        PL_TRY(make_slab(g, "gradients", &g->own_grads));
    pl_graph_pin(g);
    return PL_OK;
}

/* ---- labels ---------------------------------------------------------------------------------- */

static int64_t classes_of(const struct pl_layer *loss)
{
    struct pl_op op = {0};
    loss->kind->op(loss, &op);
    if (op.label_floats > 0)
        return 0;
    int64_t outputs = pl_shape_row_elems(&op.x[0]);
    return outputs == 1 ? 2 : outputs; /* one output tells two classes apart */
}

/* All losses take the same label. */
static pl_status check_labels(const struct pl_graph *g)
{
    const struct pl_layer *last = &g->layer[g->output];
    for (int i = 0; i < g->layers; i++) {
        const struct pl_layer *l = &g->layer[i];
        if (l->kind->loss && classes_of(l) != classes_of(last))
            return pl_job_layer_error(l->source, "%s: it takes %lld classes as labels, `%s` takes %lld; there is one label for both",
                                      l->name, (long long)classes_of(l), last->name, (long long)classes_of(last));
    }
    return PL_OK;
}

/* The least number of entries among the embeddings. */
static int64_t entries_of(const struct pl_graph *g)
{
    int64_t entries = 0;
    for (int i = 0; i < g->layers; i++)
        if (pl_is_op(&g->layer[i], PL_OP_EMBEDDING) && (entries == 0 || g->layer[i].param[0].shape.dim[0] < entries))
            entries = g->layer[i].param[0].shape.dim[0];
    return entries;
}

/* ---- the whole network ----------------------------------------------------------------------- */

static uint64_t hash_text(uint64_t h, const char *s) { return pl_hash(h, s, strlen(s) + 1); }

static uint64_t hash_shape(uint64_t h, const struct pl_shape *s, int first)
{
    h = pl_hash(h, &s->dims, sizeof s->dims);
    return pl_hash(h, s->dim + first, (size_t)(s->dims - first) * sizeof s->dim[0]);
}

static uint64_t signature(const struct pl_graph *g)
{
    uint64_t h = hash_shape(PL_HASH_START, &g->data, 1);
    for (int i = 0; i < g->layers; i++) {
        const struct pl_layer *l = &g->layer[i];
        h = hash_text(hash_text(h, l->name), l->kind->name);
        for (int k = 0; k < l->inputs; k++)
            h = hash_text(h, l->input[k] == PL_DATA ? "data" : g->layer[l->input[k]].name);
        h = hash_shape(h, &l->y, 1);
        for (int k = 0; k < l->params; k++)
            h = hash_shape(hash_text(h, l->param[k].name), &l->param[k].shape, 0);
    }
    return h;
}

static void note_whole(struct pl_graph *g)
{
    struct pl_whole *w = &g->whole;
    w->signature = signature(g);
    w->output = g->layer[g->output].y;
    w->classes = g->has_loss ? classes_of(&g->layer[g->output]) : 0;
    w->entries = entries_of(g);
    for (int i = 0; i < g->layers; i++) {
        w->losses += g->layer[i].kind->loss;
        w->flops += pl_layer_flops(&g->layer[i], 1);
    }
}

/* ---- create, destroy ------------------------------------------------------------------------- */

/* Gradients of a far backend lie with each graph, and would not add up. */
static pl_status check_use(const struct pl_graph *g, const struct pl_graph_cut *cut)
{
    if (g->batch < 1)
        return pl_error(PL_ERR_USAGE, "graph", "a batch of %lld samples", (long long)g->batch);
    if (g->table->far && cut && cut->stages > 1)
        return pl_error(PL_ERR_USAGE, "graph", "split.pipeline is not built for device.kind %s in this version", g->table->name);
    if (g->table->far && cut && cut->parts > 1)
        return pl_error(PL_ERR_USAGE, "graph", "split.tensor is not built for device.kind %s in this version", g->table->name);
    if (cut && cut->parts > 1 && cut->stages > 1)
        return pl_error(PL_ERR_USAGE, "graph", "split.pipeline and split.tensor together are not in this version yet");
    if (g->table->far && g->train && g->share)
        return pl_error(PL_ERR_USAGE, "graph", "training on shared parameters is not built for device.kind %s in this version", g->table->name);
    return PL_OK;
}

static pl_status create(struct pl_graph *g, const struct pl_job *job, const struct pl_graph_cut *cut)
{
    PL_TRY(check_use(g, cut));
    PL_TRY(pl_graph_build(g, job));
    PL_TRY(pl_graph_shapes(g, &job->input));
    PL_TRY(check_labels(g));
    note_whole(g);
    PL_TRY(pl_graph_take_stage(g, job, cut));
    PL_TRY(pl_graph_take_part(g, cut));
    PL_TRY(pl_graph_slabs(g));
    PL_TRY(pl_graph_plan_spans(g));
    choose_layouts(g);
    PL_TRY(pl_graph_place_spans(g));
    PL_TRY(allocate_all(g));
    return make_plans(g);
}

pl_status pl_graph_create(const struct pl_job *job, const struct pl_backend_table *table,
                          struct pl_backend *backend, int64_t batch, bool train,
                          struct pl_graph *share, struct pl_graph **out)
{
    return pl_graph_create_stage(job, table, backend, batch, train, NULL, share, out);
}

pl_status pl_graph_create_stage(const struct pl_job *job, const struct pl_backend_table *table,
                                struct pl_backend *backend, int64_t batch, bool train, const struct pl_graph_cut *cut,
                                struct pl_graph *share, struct pl_graph **out)
{
    *out = NULL;
    struct pl_graph *g = pl_alloc(sizeof *g, "graph");
    if (!g)
        return PL_ERR_MEMORY;
    g->table = table;
    g->backend = backend;
    g->batch = batch;
    g->train = train;
    g->sync_bn = train && job->train.sync_bn;
    g->params_later = train && job->split.optimizer != PL_OPTIMIZER_WHOLE;
    g->share = share;
    pl_status s = create(g, job, cut);
    if (s < 0) {
        pl_graph_destroy(g);
        return s;
    }
    *out = g;
    return PL_OK;
}

void pl_graph_destroy(struct pl_graph *g)
{
    if (!g)
        return;
    pl_graph_drop_recordings(g);
    pl_free(g->recording);
    for (int i = g->layers - 1; i >= 0; i--) {
        if (g->node[i].add)
            g->table->plan_destroy(g->node[i].add);
        if (g->node[i].plan)
            g->table->plan_destroy(g->node[i].plan);
    }
    pl_graph_layers_free(g);
    pl_graph_stages_free(g);
    if (g->arena)
        g->table->free(g->backend, g->arena);
    pl_graph_far_destroy(g);
    pl_graph_rounded_destroy(g);
    pl_free(g->own_params);
    pl_free(g->own_grads);
    if (g->folded)
        g->table->free(g->backend, g->folded);
    pl_free(g->fold_host);
    pl_free(g->span);
    pl_free(g->tensor);
    pl_free(g);
}

/* ---- initial values -------------------------------------------------------------------------- */

void pl_graph_init(struct pl_graph *g, uint64_t seed)
{
    for (int i = 0; i < g->tensors; i++)
        pl_init_fill(g->tensor[i].param, g->tensor[i].layer, seed, pl_graph_params(g) + g->tensor[i].param->offset);
}

/* ---- questions ------------------------------------------------------------------------------- */

int pl_graph_tensors(const struct pl_graph *g, const struct pl_tensor **out)
{
    *out = g->tensor;
    return g->tensors;
}

int pl_graph_layers(const struct pl_graph *g, const struct pl_layer **out)
{
    *out = g->layer;
    return g->layers;
}

float *pl_graph_params(struct pl_graph *g)
{
    if (g->set_params)
        return g->set_params;
    return g->share ? pl_graph_params(g->share) : g->own_params;
}

float *pl_graph_grads(struct pl_graph *g) { return g->set_grads ? g->set_grads : g->own_grads; }
void pl_graph_time_layers(struct pl_graph *g, double *ms) { g->layer_ms = ms; }
void pl_graph_set_params(struct pl_graph *g, float *params) { g->set_params = params; }

pl_status pl_graph_keep_params(struct pl_graph *g, float *params)
{
    pl_graph_set_params(g, params);
    return params ? PL_OK : make_slab(g, "parameters", &g->own_params);
}

int64_t pl_graph_sync_values(const struct pl_graph *g) { return g->sync_values; }

void pl_graph_set_sync(struct pl_graph *g, pl_sync_fn *sum, void *arg)
{
    g->sync = sum;
    g->sync_arg = arg;
}

void pl_graph_set_grads(struct pl_graph *g, float *grads)
{
    if (grads != g->set_grads)
        pl_graph_unpin(g);
    g->set_grads = grads;
}

int64_t pl_graph_elems(const struct pl_graph *g) { return g->elems; }
int64_t pl_graph_weights(const struct pl_graph *g) { return g->weights; }
int pl_graph_losses(const struct pl_graph *g) { return g->whole.losses; }
int64_t pl_graph_classes(const struct pl_graph *g) { return g->whole.classes; }
int64_t pl_graph_entries(const struct pl_graph *g) { return g->whole.entries; }
uint64_t pl_graph_signature(const struct pl_graph *g) { return g->whole.signature; }
double pl_graph_flops(const struct pl_graph *g, int64_t rows) { return g->whole.flops * (double)rows; }
size_t pl_graph_arena_bytes(const struct pl_graph *g) { return g->arena_bytes; }

const struct pl_shape *pl_graph_output_shape(const struct pl_graph *g) { return &g->whole.output; }
