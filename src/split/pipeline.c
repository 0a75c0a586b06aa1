/* A batch on its way through the stages. What a stage receives it asks for at the start, so that nothing waits in the network
 * for its place; what it sends goes while it computes the next. A graph for each micro-batch that is under way keeps its
 * activations until its backward pass: as many as there are stages from here on, at most. */
#include "split/carrier.h"
#include "split/split.h"

#include <string.h>

struct part { /* a micro-batch; memory [rows, ...] of the border before, and of the one behind */
    struct pl_crossing x, dx, y, dy;
    int64_t first, rows;
};

struct tail { float *data; void *label; int64_t *index; }; /* of a micro-batch that begins too late in the batch to be whole */

struct pl_pipeline {
    const struct pl_grid *grid;
    struct pl_carrier *carrier;
    struct pl_graph **lane; /* [lanes] */
    int lanes, parts;       /* parts: most of a batch */
    struct part *part;      /* [parts] */
    float *memory;          /* of all borders */
    const struct pl_job_input *input;
    int64_t batch, rows;
    size_t before_bytes, behind_bytes;       /* of a sample, on the borders */
    struct tail tail;
};

static const struct pl_carrier_words words = {"stage", "stages", "to stage", "from stage", "wait for stage"};

/* ---- create, destroy ------------------------------------------------------------------------------- */

static bool first_stage(const struct pl_pipeline *p) { return p->grid->stage == 0; }
static bool last_stage(const struct pl_pipeline *p) { return p->grid->stage == p->grid->stages - 1; }

static size_t border_bytes(const struct pl_shape *s) { return s ? (size_t)pl_shape_row_elems(s) * sizeof(float) : 0; }

static void set_crossing(const struct pl_pipeline *p, struct pl_crossing *c, bool sends, int step, float **memory, size_t sample_bytes)
{
    c->sends = sends;
    c->stage = p->grid->stage + step;
    c->memory = *memory;
    *memory += sample_bytes / sizeof(float) * (size_t)p->rows;
}

static pl_status make_borders(struct pl_pipeline *p)
{
    p->before_bytes = border_bytes(pl_graph_border_in(p->lane[0]));
    p->behind_bytes = border_bytes(pl_graph_border_out(p->lane[0]));
    size_t each = 2 * (p->before_bytes + p->behind_bytes) * (size_t)p->rows;
    float *at = p->memory = pl_alloc(each * (size_t)p->parts, "what crosses between stages");
    p->part = pl_alloc((size_t)p->parts * sizeof *p->part, "micro-batches");
    if (!at || !p->part)
        return PL_ERR_MEMORY;
    for (int i = 0; i < p->parts; i++) {
        struct part *m = &p->part[i];
        set_crossing(p, &m->x, false, -1, &at, p->before_bytes);
        set_crossing(p, &m->dx, true, -1, &at, p->before_bytes);
        set_crossing(p, &m->y, true, 1, &at, p->behind_bytes);
        set_crossing(p, &m->dy, false, 1, &at, p->behind_bytes);
    }
    return PL_OK;
}

static pl_status make_tail(struct pl_pipeline *p, const struct pl_job *job)
{
    p->input = &job->input;
    p->tail.data = pl_alloc(first_stage(p) ? pl_graph_data_bytes(p->input) * (size_t)p->rows : 1, "the end of a batch");
    p->tail.label = pl_alloc(pl_graph_label_bytes(p->input) * (size_t)p->rows, "the end of a batch");
    p->tail.index = pl_alloc(sizeof *p->tail.index * (size_t)p->rows, "the end of a batch");
    return p->tail.data && p->tail.label && p->tail.index ? PL_OK : PL_ERR_MEMORY;
}

static pl_status make(struct pl_pipeline *p, const struct pl_pipeline_options *o)
{
    const struct pl_graph_cut cut = {.stage = p->grid->stage, .stages = p->grid->stages, .at = &o->job->split.at};
    int behind = p->grid->stages - p->grid->stage;
    p->batch = o->batch;
    p->rows = o->rows;
    p->parts = (int)((o->batch + o->rows - 1) / o->rows);
    p->lanes = !o->train ? 1 : behind < p->parts ? behind : p->parts;
    p->lane = pl_alloc((size_t)p->lanes * sizeof(struct pl_graph *), "micro-batches");
    if (!p->lane)
        return PL_ERR_MEMORY;
    p->lane[0] = o->graph;
    for (int i = 1; i < p->lanes; i++)
        PL_TRY(pl_graph_create_stage(o->job, o->table, o->backend, o->rows, true, &cut, o->graph, &p->lane[i]));
    PL_TRY(make_borders(p));
    return make_tail(p, o->job);
}

pl_status pl_pipeline_create(struct pl_world *w, const struct pl_pipeline_options *o, struct pl_pipeline **out)
{
    struct pl_pipeline *p = pl_alloc(sizeof *p, "a pipeline");
    pl_status s = p ? PL_OK : PL_ERR_MEMORY;
    if (p) {
        p->grid = o->grid;
        s = make(p, o);
    }
    s = pl_world_agree(w, s);
    if (s == PL_OK)
        s = pl_world_agree(w, pl_carrier_open(&o->grid->row, &words, o->exchange, &p->carrier));
    if (s < 0)
        pl_pipeline_destroy(p, true);
    else
        *out = p;
    return s;
}

void pl_pipeline_destroy(struct pl_pipeline *p, bool lost)
{
    if (!p)
        return;
    pl_carrier_close(p->carrier, lost);
    for (int i = 1; p->lane && i < p->lanes; i++)
        pl_graph_destroy(p->lane[i]);
    pl_free(p->lane);
    pl_free(p->part);
    pl_free(p->memory);
    pl_free(p->tail.data);
    pl_free(p->tail.label);
    pl_free(p->tail.index);
    pl_free(p);
}

const char *pl_pipeline_why(const struct pl_pipeline *p) { return pl_carrier_why(p->carrier); }
double pl_pipeline_waited_ms(struct pl_pipeline *p) { return pl_carrier_waited_ms(p->carrier); }

void pl_pipeline_set_grads(struct pl_pipeline *p, float *grads)
{
    for (int i = 0; i < p->lanes; i++)
        pl_graph_set_grads(p->lane[i], grads);
}

/* ---- a batch in parts ------------------------------------------------------------------------------ */

/* Plans read as many rows as they are made for: what would lie beyond the batch's memory is 0. */
static const void *copied(void *to, const void *from, size_t bytes) { return from ? memcpy(to, from, bytes) : NULL; }

static void take_tail(struct pl_pipeline *p, int64_t first, struct pl_graph_batch *in)
{
    size_t n = (size_t)(p->batch - first);
    in->data = copied(p->tail.data, in->data, n * pl_graph_data_bytes(p->input));
    in->label = copied(p->tail.label, in->label, n * pl_graph_label_bytes(p->input));
    in->index = copied(p->tail.index, in->index, n * sizeof *in->index);
}

static struct pl_graph_batch part_of(struct pl_pipeline *p, const struct pl_graph_batch *b, const struct part *m)
{
    struct pl_graph_batch all = *b, in;
    if (!first_stage(p))
        all.data = NULL; /* its loader gives none */
    in = pl_graph_batch_part(p->input, &all, m->first, m->rows);
    if (m->first + p->rows > p->batch)
        take_tail(p, m->first, &in);
    return in;
}

/* How many parts so many rows are; one at least. */
static int cut(struct pl_pipeline *p, int64_t rows)
{
    int n = 0;
    do {
        struct part *m = &p->part[n];
        m->first = n * p->rows;
        m->rows = rows - m->first < p->rows ? rows - m->first : p->rows;
    } while (++n * p->rows < rows);
    return n;
}

static void post(struct pl_pipeline *p, struct pl_crossing *c, size_t sample_bytes, int64_t rows)
{
    c->bytes = sample_bytes * (size_t)rows;
    if (c->bytes > 0)
        pl_carrier_post(p->carrier, c);
}

static struct pl_graph_border border_of(const struct part *m)
{
    return (struct pl_graph_border){.x = m->x.memory, .y = m->y.memory, .dy = m->dy.memory, .dx = m->dx.memory};
}

/* ---- passes ---------------------------------------------------------------------------------------- */

struct pass { const struct pl_graph_batch *batch; struct pl_loss_sums *sums; bool train; int parts; };

static pl_status forward(struct pl_pipeline *p, struct pl_graph *g, const struct pass *a, int i)
{
    struct part *m = &p->part[i];
    struct pl_graph_batch in = part_of(p, a->batch, m);
    const struct pl_graph_border border = border_of(m);
    in.border = &border;
    if (!first_stage(p))
        PL_TRY(pl_carrier_wait(p->carrier, &m->x));
    double traced = pl_trace_begin();
    PL_TRY(pl_graph_forward(g, &in, a->train, a->sums));
    pl_trace_end(traced, "part", "forward", i);
    if (!last_stage(p))
        post(p, &m->y, p->behind_bytes, m->rows);
    return PL_OK;
}

static pl_status backward(struct pl_pipeline *p, const struct pass *a, int i, pl_slice_fn *slice, void *arg)
{
    struct part *m = &p->part[i];
    struct pl_graph_batch in = part_of(p, a->batch, m);
    const struct pl_graph_border border = border_of(m);
    in.border = &border;
    in.more = i + 1 < a->parts;
    if (!last_stage(p))
        PL_TRY(pl_carrier_wait(p->carrier, &m->dy));
    double traced = pl_trace_begin();
    PL_TRY(pl_graph_backward(p->lane[i % p->lanes], &in, i > 0, in.more ? NULL : slice, arg));
    pl_trace_end(traced, "part", "backward", i);
    if (!first_stage(p))
        post(p, &m->dx, p->before_bytes, m->rows);
    return PL_OK;
}

/* Their memory is written again in the next pass. */
static pl_status wait_for_sent(struct pl_pipeline *p, int parts)
{
    for (int i = 0; i < parts; i++) {
        PL_TRY(pl_carrier_wait(p->carrier, &p->part[i].y));
        PL_TRY(pl_carrier_wait(p->carrier, &p->part[i].dx));
    }
    return PL_OK;
}

pl_status pl_pipeline_pass(struct pl_pipeline *p, const struct pl_graph_batch *b, struct pl_loss_sums *sums, pl_slice_fn *slice, void *arg)
{
    struct pass a = {b, sums, true, cut(p, b->rows)};
    int ahead = p->grid->stages - 1 - p->grid->stage;
    ahead = ahead < a.parts ? ahead : a.parts;
    for (int i = 0; i < a.parts; i++) {
        post(p, &p->part[i].x, p->before_bytes, p->part[i].rows);
        post(p, &p->part[i].dy, p->behind_bytes, p->part[i].rows);
    }
    for (int i = 0; i < ahead; i++)
        PL_TRY(forward(p, p->lane[i % p->lanes], &a, i));
    for (int i = 0; i < a.parts; i++) {
        if (i + ahead < a.parts)
            PL_TRY(forward(p, p->lane[(i + ahead) % p->lanes], &a, i + ahead));
        PL_TRY(backward(p, &a, i, slice, arg));
    }
    return wait_for_sent(p, a.parts);
}

static pl_status take_output(const struct part *m, struct pl_graph *g, float *out)
{
    size_t row = (size_t)pl_shape_row_elems(pl_graph_output_shape(g));
    const float *y = pl_graph_output(g);
    if (!y)
        return PL_ERR_MEMORY;
    memcpy(out + (size_t)m->first * row, y, (size_t)m->rows * row * sizeof *y);
    return PL_OK;
}

pl_status pl_pipeline_evaluate(struct pl_pipeline *p, struct pl_graph *g, const struct pl_graph_batch *b, struct pl_loss_sums *sums, float *out)
{
    struct pass a = {b, sums, false, cut(p, b->rows)};
    for (int i = 0; i < a.parts; i++)
        post(p, &p->part[i].x, p->before_bytes, p->part[i].rows);
    for (int i = 0; i < a.parts; i++) {
        PL_TRY(forward(p, g, &a, i));
        if (out && pl_graph_makes_output(g))
            PL_TRY(take_output(&p->part[i], g, out));
    }
    return wait_for_sent(p, a.parts);
}

/* ---- values ---------------------------------------------------------------------------------------- */

pl_status pl_pipeline_sum(struct pl_pipeline *p, double *v, int n) { return pl_carrier_sum(p->carrier, v, n); }
pl_status pl_pipeline_max(struct pl_pipeline *p, double *v, int n) { return pl_carrier_max(p->carrier, v, n); }
