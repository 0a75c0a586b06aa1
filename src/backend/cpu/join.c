/* join: concatenation along channels, and the sum of several inputs. */
#include "backend/cpu/bf16.h"

#include <math.h>
#include <string.h>

struct job {
    const struct pl_op *op;
    const struct pl_io *io;
    int64_t row; /* elements of a sample of y */
    bool half;   /* of all tensors */
};

static void concat_forward_rows(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    for (int64_t n = begin; n < end; n++) {
        char *y = pl_from(j->io->y, n * j->row, j->half);
        for (int i = 0; i < j->op->inputs; i++) {
            int64_t elems = pl_shape_row_elems(&j->op->x[i]);
            size_t bytes = (size_t)elems * pl_element_bytes(j->half);
            memcpy(y, pl_from(j->io->x[i], n * elems, j->half), bytes);
            y += bytes;
        }
    }
}

static void concat_backward_rows(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    for (int64_t n = begin; n < end; n++) {
        const char *dy = pl_from(j->io->dy, n * j->row, j->half);
        for (int i = 0; i < j->op->inputs; i++) {
            int64_t elems = pl_shape_row_elems(&j->op->x[i]);
            size_t bytes = (size_t)elems * pl_element_bytes(j->half);
            if (j->op->need_dx[i] && j->io->dx[i] != NULL)
                memcpy(pl_from(j->io->dx[i], n * elems, j->half), dy, bytes);
            dy += bytes;
        }
    }
}

static void by_rows(struct pl_plan *p, const struct pl_io *io, pl_cpu_part_fn *body) {
    struct job j = {&p->op, io, pl_shape_row_elems(&p->op.y), p->op.ly.bf16};
    pl_cpu_parts(p->backend, p->op.y.dim[0], PL_CPU_GRAIN / (j.row + 1) + 1, body, &j);
}

static pl_status concat_plan(struct pl_plan *p) {
    int64_t sum = 0;
    for (int i = 0; i < p->op.inputs; i++)
        sum += pl_shape_row_elems(&p->op.x[i]);
    if (sum != pl_shape_row_elems(&p->op.y))
        return pl_cpu_refuse(&p->op, "inputs and output do not fit together");
    return PL_OK;
}

static pl_status concat_forward(struct pl_plan *p, const struct pl_io *io) {
    by_rows(p, io, concat_forward_rows);
    return PL_OK;
}

static pl_status concat_backward(struct pl_plan *p, const struct pl_io *io) {
    by_rows(p, io, concat_backward_rows);
    return PL_OK;
}

PL_CLONES
static void add_forward_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    float *y = j->io->y;
    const float *a = j->io->x[0], *b = j->op->inputs > 1 ? j->io->x[1] : NULL;
    if (b == NULL)
        memcpy(y + begin, a + begin, (size_t)(end - begin) * sizeof *y);
    else
        for (int64_t k = begin; k < end; k++)
            y[k] = a[k] + b[k];
    for (int i = 2; i < j->op->inputs; i++) {
        const float *x = j->io->x[i];
        for (int64_t k = begin; k < end; k++)
            y[k] += x[k];
    }
    if (j->op->relu)
        for (int64_t k = begin; k < end; k++)
            y[k] = y[k] < 0.0f ? 0.0f : y[k];
}

/* Three or more inputs go through a sum that is rounded only where it is stored. */
PL_WITHIN float sum_at(const struct job *j, int64_t k) {
    float sum = pl_element(j->io->x[0], k, true);
    for (int i = 1; i < j->op->inputs; i++)
        sum += pl_element(j->io->x[i], k, true);
    return sum;
}

PL_HALVES
static void add_forward_half(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    const uint16_t *a = (const void *)j->io->x[0], *b = (const void *)j->io->x[1];
    uint16_t *y = (void *)j->io->y;
    float low = j->op->relu ? 0.0f : -INFINITY;
    for (int64_t k = begin; j->op->inputs == 2 && k < end; k++) {
        float sum = pl_bf16_widen(a[k]) + pl_bf16_widen(b[k]);
        y[k] = pl_bf16_round(sum < low ? low : sum);
    }
    for (int64_t k = begin; j->op->inputs != 2 && k < end; k++) {
        float sum = sum_at(j, k);
        y[k] = pl_bf16_round(sum < low ? low : sum);
    }
}

PL_HALVES
static void masked_half(const uint16_t *y, const uint16_t *dy, uint16_t *dx, int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; k++)
        dx[k] = (int16_t)y[k] > 0 ? dy[k] : 0;
}

static void add_backward_half(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    const void *y = j->io->y, *dy = j->io->dy;
    for (int i = 0; i < j->op->inputs; i++) {
        void *dx = j->io->dx[i];
        if (j->op->need_dx[i] && dx != NULL && j->op->relu)
            masked_half(y, dy, dx, begin, end);
        else if (j->op->need_dx[i] && dx != NULL && dx != dy)
            memcpy(pl_from(dx, begin, true), pl_from(dy, begin, true), (size_t)(end - begin) * sizeof(uint16_t));
    }
}

static inline void masked(const float *y, const float *dy, float *dx, int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; k++) {
        float v = dy[k];
        dx[k] = y[k] > 0.0f ? v : 0.0f;
    }
}

PL_CLONES
static void add_backward_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    for (int i = 0; i < j->op->inputs; i++)
        if (j->op->need_dx[i] && j->io->dx[i] != NULL && j->op->relu)
            masked(j->io->y, j->io->dy, j->io->dx[i], begin, end);
        else if (j->op->need_dx[i] && j->io->dx[i] != NULL && j->io->dx[i] != j->io->dy)
            memcpy(j->io->dx[i] + begin, j->io->dy + begin, (size_t)(end - begin) * sizeof(float));
}

static pl_status add_plan(struct pl_plan *p) {
    for (int i = 0; i < p->op.inputs; i++)
        if (pl_shape_elems(&p->op.x[i]) != pl_shape_elems(&p->op.y))
            return pl_cpu_refuse(&p->op, "its inputs differ in shape");
    return PL_OK;
}

static pl_status add_forward(struct pl_plan *p, const struct pl_io *io) {
    struct job j = {&p->op, io, 0, p->op.ly.bf16};
    pl_cpu_parts(p->backend, pl_shape_elems(&p->op.y), PL_CPU_GRAIN, j.half ? add_forward_half : add_forward_part, &j);
    return PL_OK;
}

static pl_status add_backward(struct pl_plan *p, const struct pl_io *io) {
    struct job j = {&p->op, io, 0, p->op.ly.bf16};
    pl_cpu_parts(p->backend, pl_shape_elems(&p->op.y), PL_CPU_GRAIN, j.half ? add_backward_half : add_backward_part, &j);
    return PL_OK;
}

const struct pl_cpu_kind pl_cpu_concat = {.layouts = PL_CPU_SAME, .halves = PL_CPU_HALVES, /* a sample's blocks lie behind each other as its channels do */
                                          .plan = concat_plan,
                                          .destroy = pl_cpu_destroy_state,
                                          .forward = concat_forward,
                                          .backward = concat_backward};
const struct pl_cpu_kind pl_cpu_add = {.layouts = PL_CPU_SAME,
                                       .halves = PL_CPU_HALVES,
                                       .rectifies = true,
                                       .plan = add_plan,
                                       .destroy = pl_cpu_destroy_state,
                                       .forward = add_forward,
                                       .backward = add_backward};
