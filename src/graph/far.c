/* A backend whose memory is far: parameters and batches are sent there, gradients and outputs brought here. The slabs in host
 * memory are what everybody else works on. A gradient is brought while the layers before it still compute.
 *
 * Passes find a batch always in the same place, so that they can be recorded. The next one can be sent while a pass runs: it
 * waits in a place of its own, and is moved, or made of pixels, when its pass begins. */
#include "graph/graph_private.h"

#include <string.h>

struct slice { int64_t a, b; uint64_t ticket; };

enum { DATA, LABEL, INDEX, PIXELS, PLACES, FACTORS, PARTS }; /* of a batch */
struct part { const void *here; size_t bytes; };

struct pl_graph_far {
    float *params, *grads;    /* slabs; params: of the graph that the parameters belong to */
    void *batch[INDEX + 1];   /* as passes read it */
    void *sent[PARTS];        /* as it is sent ahead, or as pixels; NULL before the first that is */
    const void *next;         /* whose data or pixels are, or NULL */
    size_t data_bytes, label_bytes, index_bytes;
    float *output;            /* in host memory; NULL before it was asked for */
    struct slice *slice;      /* [layers] on their way, in order */
    int first, slices;
    float *pinned;            /* the gradient's slab that is */
    bool stays, gradient_stays, as_one; /* pl_graph_stay */
};

/* ---- create, destroy ------------------------------------------------------------------------- */

static size_t label_bytes(const struct pl_graph *g)
{
    struct pl_op op = {0};
    if (!g->has_loss)
        return 0;
    const struct pl_layer *l = &g->layer[g->output];
    l->kind->op(l, &op);
    int64_t of_sample = op.label_floats > 0 ? op.label_floats : pl_op_positions(&op);
    return (size_t)(g->batch * of_sample) * sizeof(int32_t); /* floats are as long */
}

static pl_status take(struct pl_graph *g, size_t bytes, const char *what, void **out)
{
    *out = g->table->alloc(g->backend, bytes > 0 ? bytes : 1, what);
    return *out ? PL_OK : PL_ERR_MEMORY;
}

pl_status pl_graph_far_create(struct pl_graph *g)
{
    if (!g->table->far)
        return PL_OK;
    struct pl_graph_far *f = g->far = pl_alloc(sizeof *f, "what is far of a graph");
    if (!f)
        return PL_ERR_MEMORY;
    size_t slab = (size_t)g->elems * sizeof(float);
    void *at[5] = {NULL};
    f->data_bytes = (size_t)pl_shape_elems(&g->data) * sizeof(float);
    f->label_bytes = label_bytes(g);
    f->index_bytes = (size_t)g->batch * sizeof(int64_t);
    const size_t bytes[] = {g->share ? 0 : slab, g->train ? slab : 0, f->data_bytes, f->label_bytes, f->index_bytes};
    static const char *const what[] = {"parameters", "gradients", "a batch", "labels", "indices of samples"};
    pl_status s = PL_OK;
    for (int i = 0; i < 5 && s == PL_OK; i++)
        if (bytes[i] > 0)
            s = take(g, bytes[i], what[i], &at[i]);
    f->params = at[0];
    f->grads = at[1];
    memcpy(f->batch, at + 2, sizeof f->batch);
    f->slice = pl_alloc((size_t)(g->layers + 1) * sizeof *f->slice, "parts of a gradient");
    return s == PL_OK && !f->slice ? PL_ERR_MEMORY : s;
}

void pl_graph_pin(struct pl_graph *g)
{
    struct pl_graph_far *f = g->far;
    float *grads = pl_graph_grads(g);
    if (!f || f->gradient_stays || f->pinned == grads || !g->table->pin)
        return;
    pl_graph_unpin(g);
    g->table->pin(g->backend, grads, (size_t)g->elems * sizeof(float));
    f->pinned = grads;
}

void pl_graph_unpin(struct pl_graph *g)
{
    if (g->far && g->far->pinned)
        g->table->unpin(g->backend, g->far->pinned);
    if (g->far)
        g->far->pinned = NULL;
}

void pl_graph_far_destroy(struct pl_graph *g)
{
    struct pl_graph_far *f = g->far;
    if (!f)
        return;
    pl_graph_unpin(g);
    g->table->free(g->backend, f->params);
    g->table->free(g->backend, f->grads);
    for (int i = 0; i <= INDEX; i++)
        g->table->free(g->backend, f->batch[i]);
    for (int i = 0; i < PARTS; i++)
        g->table->free(g->backend, f->sent[i]);
    pl_free(f->output);
    pl_free(f->slice);
    pl_free(f);
    g->far = NULL;
}

/* ---- there ----------------------------------------------------------------------------------- */

const float *pl_graph_params_there(struct pl_graph *g) { return g->far ? pl_graph_owner(g)->far->params : pl_graph_params(g); }
float *pl_graph_grads_there(struct pl_graph *g) { return g->far ? g->far->grads : pl_graph_grads(g); }

static pl_status send_params(struct pl_graph *g)
{
    return g->table->upload(g->backend, pl_graph_owner(g)->far->params, pl_graph_params(g), (size_t)g->elems * sizeof(float));
}

bool pl_graph_gradient_stays(const struct pl_graph *g) { return g->far && g->far->gradient_stays; }
bool pl_graph_passes_as_one(const struct pl_graph *g) { return g->far && g->far->as_one; }

struct pl_graph_slabs pl_graph_there(struct pl_graph *g)
{
    return (struct pl_graph_slabs){pl_graph_owner(g)->far->params, g->far->grads};
}

pl_status pl_graph_stay(struct pl_graph *g, enum pl_stay what)
{
    if (!g->far) {
        pl_graph_round_all(g);
        g->bf16_kept = true;
        return PL_OK;
    }
    g->far->stays = true;
    g->far->gradient_stays = what >= PL_STAY_GRADIENT;
    g->far->as_one = what == PL_STAY_AS_ONE;
    return send_params(g);
}

pl_status pl_graph_refresh_params(struct pl_graph *g) { return g->far && !pl_graph_owner(g)->far->stays ? send_params(g) : PL_OK; }

pl_status pl_graph_bring_params(struct pl_graph *g)
{
    return g->table->download(g->backend, pl_graph_params(g), pl_graph_owner(g)->far->params, (size_t)g->elems * sizeof(float));
}

void pl_graph_batch_there(const struct pl_graph *g, const struct pl_graph_batch *b, struct pl_graph_batch *there)
{
    const struct pl_graph_far *f = g->far;
    *there = *b;
    if (!f)
        return;
    there->data = f->batch[DATA];
    there->label = b->label ? f->batch[LABEL] : NULL;
    there->index = b->index ? f->batch[INDEX] : NULL;
}

static const void *name_of(const struct pl_graph_batch *b) { return b->pixels ? (const void *)b->pixels : b->data; }

static pl_status find_parts(const struct pl_graph_far *f, const struct pl_graph_batch *b, struct part *part)
{
    const struct pl_pixels *p = b->pixels;
    memset(part, 0, PARTS * sizeof *part);
    part[LABEL] = (struct part){b->label, f->label_bytes};
    part[INDEX] = (struct part){b->index, f->index_bytes};
    if (!p) {
        part[DATA] = (struct part){b->data, f->data_bytes};
        return PL_OK;
    }
    part[PIXELS] = (struct part){p->value, (size_t)(p->capacity * p->channels * p->height * p->width)};
    part[PLACES] = (struct part){p->place, (size_t)p->capacity * sizeof *p->place};
    part[FACTORS] = (struct part){p->factor, 2 * (size_t)p->channels * sizeof *p->factor};
    if (part[PIXELS].bytes * sizeof(float) == f->data_bytes)
        return PL_OK;
    return pl_error(PL_ERR_USAGE, "graph", "a batch of %zu pixels for a network that takes %zu numbers", part[PIXELS].bytes, f->data_bytes / sizeof(float));
}

/* Memory for what is sent there is taken with the first of it, and is not zeroed before the work that was started is done. */
static pl_status send_part(struct pl_graph *g, const struct part *p, void **to, bool ahead)
{
    if (!p->here)
        return PL_OK;
    if (!*to) {
        PL_TRY(take(g, p->bytes, "a batch", to));
        PL_TRY(g->table->ahead ? g->table->ahead_taken(g->backend) : PL_OK);
    }
    return (ahead ? g->table->ahead : g->table->upload)(g->backend, *to, p->here, p->bytes);
}

static pl_status widen(struct pl_graph *g, const struct pl_pixels *p)
{
    struct pl_graph_far *f = g->far;
    struct pl_pixels there = *p;
    there.value = f->sent[PIXELS];
    there.place = f->sent[PLACES];
    there.factor = f->sent[FACTORS];
    return g->table->pixels(g->backend, &there, f->batch[DATA]);
}

pl_status pl_graph_drop_next(struct pl_graph *g)
{
    if (!g->far || !g->far->next)
        return PL_OK;
    g->far->next = NULL;
    return g->table->ahead_wait(g->backend);
}

pl_status pl_graph_send_batch(struct pl_graph *g, const struct pl_graph_batch *b)
{
    struct pl_graph_far *f = g->far;
    struct part part[PARTS];
    if (!f)
        return PL_OK;
    bool sent = f->next == name_of(b);
    PL_TRY(pl_graph_drop_next(g));
    PL_TRY(find_parts(f, b, part));
    for (int i = 0; i < PARTS; i++)
        if (!sent)
            PL_TRY(send_part(g, &part[i], i <= INDEX ? &f->batch[i] : &f->sent[i], false));
        else if (i <= INDEX && part[i].here)
            PL_TRY(g->table->copy(g->backend, f->batch[i], f->sent[i], part[i].bytes));
    if (b->pixels)
        PL_TRY(widen(g, b->pixels));
    return g->table->ahead ? g->table->ahead_taken(g->backend) : PL_OK;
}

pl_status pl_graph_send_next(struct pl_graph *g, const struct pl_graph_batch *b)
{
    struct part part[PARTS];
    if (!b || !g->far || !g->table->ahead)
        return PL_OK;
    PL_TRY(find_parts(g->far, b, part));
    g->far->next = name_of(b);
    for (int i = 0; i < PARTS; i++)
        PL_TRY(send_part(g, &part[i], &g->far->sent[i], true));
    return PL_OK;
}

/* ---- here ------------------------------------------------------------------------------------ */

/* Says of those that are here. */
static pl_status say(struct pl_graph *g, bool wait, pl_slice_fn *slice, void *arg)
{
    struct pl_graph_far *f = g->far;
    for (bool done = true; f->first < f->slices; f->first++) {
        const struct slice *s = &f->slice[f->first];
        PL_TRY(g->table->fetched(g->backend, s->ticket, wait, &done));
        if (!done)
            return PL_OK;
        pl_status said = slice ? slice(arg, s->a, s->b) : PL_OK;
        if (said != PL_OK)
            return said;
    }
    return PL_OK;
}

pl_status pl_graph_bring_slice(struct pl_graph *g, int64_t a, int64_t b, pl_slice_fn *slice, void *arg)
{
    struct pl_graph_far *f = g->far;
    if (!f || f->gradient_stays)
        return slice ? slice(arg, a, b) : PL_OK;
    struct slice *s = &f->slice[f->slices];
    *s = (struct slice){.a = a, .b = b};
    PL_TRY(g->table->fetch(g->backend, pl_graph_grads(g) + a, f->grads + a, (size_t)(b - a) * sizeof(float), &s->ticket));
    f->slices++;
    return say(g, false, slice, arg);
}

/* Nothing comes in behind the back of who gave up. */
pl_status pl_graph_bring_rest(struct pl_graph *g, pl_status s, pl_slice_fn *slice, void *arg)
{
    struct pl_graph_far *f = g->far;
    pl_status waited = PL_OK;
    bool done;
    if (!f)
        return s;
    if (s == PL_OK)
        s = say(g, true, slice, arg);
    if (s != PL_OK && f->slices > 0)
        waited = g->table->fetched(g->backend, f->slice[f->slices - 1].ticket, true, &done);
    f->first = f->slices = 0;
    return s < 0 || waited == PL_OK ? s : waited;
}

bool pl_graph_makes_output(const struct pl_graph *g) { return g->output != PL_ELSEWHERE; }

const float *pl_graph_output(struct pl_graph *g)
{
    if (g->output == PL_ELSEWHERE)
        return NULL;
    int root = g->node[g->output].root;
    struct pl_graph_far *f = g->far;
    const float *there = root != PL_DATA ? pl_span_memory(g, g->node[root].y) : f ? f->batch[DATA] : g->last_data;
    size_t bytes = (size_t)pl_shape_elems(pl_graph_output_shape(g)) * sizeof(float);
    if (!f)
        return there;
    if (!f->output && !(f->output = pl_alloc(bytes, "an output")))
        return NULL;
    return g->table->download(g->backend, f->output, there, bytes) == PL_OK ? f->output : NULL;
}
