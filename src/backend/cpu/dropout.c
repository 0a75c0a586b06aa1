/* dropout: Srivastava et al. 2014, scaled in training ("inverted"). Whether an element is kept is a
 * function of seed, step, sample and layer alone, never of rank, thread or place in the batch. The
 * pattern is kept as bytes for backward. */
#include "backend/cpu/bf16.h"

#include <math.h>
#include <string.h>

struct state {
    uint8_t *keep; /* [N, ...] of y */
    uint64_t least; /* an element is kept when its 32 random bits are at least this */
    float scale;
    int64_t row, first;
    bool half;    /* x and y are bf16 */
    bool dropped; /* the last forward was in training */
};

struct job {
    const struct state *s;
    const struct pl_io *io;
};

static pl_status plan(struct pl_plan *p) {
    const struct pl_op *op = &p->op;
    struct state *s = pl_alloc(sizeof *s, "a dropout plan");
    if (s == NULL)
        return PL_ERR_MEMORY;
    p->state = s;
    if (!(op->rate >= 0.0 && op->rate < 1.0))
        return pl_cpu_refuse(op, "its rate is not in [0, 1)");
    s->least = (uint64_t)ceil(op->rate * 4294967296.0);
    s->scale = (float)(1.0 / (1.0 - op->rate));
    s->row = pl_shape_row_elems(&op->y);
    s->first = op->first;
    s->half = op->ly.bf16;
    s->keep = pl_alloc((size_t)pl_shape_elems(&op->y), "a dropout pattern");
    return s->keep == NULL ? PL_ERR_MEMORY : PL_OK;
}

static void destroy(struct pl_plan *p) {
    struct state *s = p->state;
    if (s != NULL)
        pl_free(s->keep);
    pl_free(s);
}

PL_CLONES
static void mask_floats(const uint8_t *keep, float scale, int64_t n, const float *in, float *out) {
    for (int64_t i = 0; i < n; i++)
        out[i] = keep[i] ? in[i] * scale : 0.0f;
}

PL_HALVES
static void mask_halves(const uint8_t *keep, float scale, int64_t n, const uint16_t *in, uint16_t *out) {
    for (int64_t i = 0; i < n; i++)
        out[i] = keep[i] ? pl_bf16_round(pl_bf16_widen(in[i]) * scale) : 0;
}

static void mask_row(const struct state *s, int64_t row, const void *in, void *out) {
    const uint8_t *keep = s->keep + row * s->row;
    if (s->half)
        mask_halves(keep, s->scale, s->row, pl_from(in, row * s->row, true), pl_from(out, row * s->row, true));
    else
        mask_floats(keep, s->scale, s->row, pl_from(in, row * s->row, false), pl_from(out, row * s->row, false));
}

static void forward_rows(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    const struct state *s = j->s;
    for (int64_t n = begin; n < end; n++) {
        uint8_t *keep = s->keep + n * s->row;
        struct pl_rng r = pl_rng_make(j->io->seed, j->io->step_key,
                                      n < j->io->rows ? (uint64_t)j->io->row_key[n] : 0,
                                      j->io->layer_key);
        pl_rng_skip(&r, s->first);
        for (int64_t i = 0; i < s->row; i++)
            keep[i] = pl_rng_u32(&r) >= s->least;
        mask_row(s, n, j->io->x[0], j->io->y);
    }
}

static void backward_rows(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    const struct state *s = j->s;
    for (int64_t n = begin; n < end; n++)
        mask_row(s, n, j->io->dy, j->io->dx[0]);
}

static pl_status forward(struct pl_plan *p, const struct pl_io *io) {
    struct state *s = p->state;
    struct job j = {s, io};
    s->dropped = io->train;
    if (!io->train) {
        if (io->y != io->x[0])
            memcpy(io->y, io->x[0], (size_t)pl_shape_elems(&p->op.y) * pl_element_bytes(s->half));
        return PL_OK;
    }
    pl_cpu_parts(p->backend, p->op.y.dim[0], PL_CPU_GRAIN / 8 / s->row + 1, forward_rows, &j);
    return PL_OK;
}

static pl_status backward(struct pl_plan *p, const struct pl_io *io) {
    struct state *s = p->state;
    struct job j = {s, io};
    if (!p->op.need_dx[0] || io->dx[0] == NULL)
        return PL_OK;
    if (!s->dropped)
        memcpy(io->dx[0], io->dy, (size_t)pl_shape_elems(&p->op.y) * pl_element_bytes(s->half));
    else
        pl_cpu_parts(p->backend, p->op.y.dim[0], PL_CPU_GRAIN / s->row + 1, backward_rows, &j);
    return PL_OK;
}

const struct pl_cpu_kind pl_cpu_dropout = {
    .halves = PL_CPU_HALVES, .plan = plan, .destroy = destroy, .forward = forward, .backward = backward};
