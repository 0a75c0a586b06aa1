/* embedding: rows of a table, and one of its own for each position. Backward every thread adds up columns of its own, position after position, so that the sums
 * do not depend on the threads. */
#include "backend/cpu/cpu.h"

#include <string.h>

struct job {
    int64_t positions, units, entries;
    const float *id, *table, *dy;
    float *y, *gradient;
    bool accumulate;
};

static pl_status plan(struct pl_plan *p) {
    const struct pl_op *op = &p->op;
    if (pl_shape_elems(&op->y) != pl_shape_elems(&op->x[0]) * op->p[0].dim[1])
        return pl_cpu_refuse(op, "input, output and table do not fit together");
    return PL_OK;
}

static struct job job_of(const struct pl_plan *p, const struct pl_io *io, int64_t rows) {
    return (struct job){.positions = rows * pl_shape_row_elems(&p->op.x[0]), .units = p->op.p[0].dim[1], .entries = p->op.p[0].dim[0],
                        .id = io->x[0], .table = io->p[0], .dy = io->dy, .y = io->y, .gradient = io->dp[0], .accumulate = io->accumulate};
}

static void take_rows(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    for (int64_t i = begin; i < end; i++)
        memcpy(j->y + i * j->units, j->table + (int64_t)j->id[i] * j->units, (size_t)j->units * sizeof *j->y);
}

static pl_status forward(struct pl_plan *p, const struct pl_io *io) {
    struct job j = job_of(p, io, p->op.x[0].dim[0]);
    for (int64_t i = 0; i < j.positions; i++)
        if (!(j.id[i] >= 0.0f && j.id[i] < (float)j.entries))
            return pl_error(PL_ERR_DATA, "backend", "layer %s: %g is not one of %lld entries", p->op.name, (double)j.id[i], (long long)j.entries);
    pl_cpu_parts(p->backend, j.positions, PL_CPU_GRAIN / j.units + 1, take_rows, &j);
    return PL_OK;
}

PL_CLONES
static void add_columns(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    for (int64_t e = 0; !j->accumulate && e < j->entries; e++)
        memset(j->gradient + e * j->units + begin, 0, (size_t)(end - begin) * sizeof *j->gradient);
    for (int64_t i = 0; i < j->positions; i++) {
        float *restrict to = j->gradient + (int64_t)j->id[i] * j->units;
        const float *restrict dy = j->dy + i * j->units;
        for (int64_t d = begin; d < end; d++)
            to[d] += dy[d];
    }
}

static pl_status backward(struct pl_plan *p, const struct pl_io *io) {
    struct job j = job_of(p, io, io->rows);
    if (io->dp[0] != NULL)
        pl_cpu_parts(p->backend, j.units, PL_CPU_GRAIN / (j.positions + j.entries) + 16, add_columns, &j);
    return PL_OK;
}

const struct pl_cpu_kind pl_cpu_embedding = {.plan = plan, .destroy = pl_cpu_destroy_state, .forward = forward, .backward = backward};

/* ---- position_embedding ---------------------------------------------------------------------- */

static pl_status position_plan(struct pl_plan *p) {
    const struct pl_op *op = &p->op;
    if (pl_shape_row_elems(&op->x[0]) != pl_shape_elems(&op->p[0]) || pl_shape_elems(&op->y) != pl_shape_elems(&op->x[0]))
        return pl_cpu_refuse(op, "input, output and weight do not fit together");
    return PL_OK;
}

struct adding {
    int64_t row; /* elements of a sample */
    const float *x, *weight;
    float *y;
};

PL_CLONES
static void add_weight(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct adding *j = arg;
    for (int64_t n = begin; n < end; n++)
        for (int64_t k = 0; k < j->row; k++)
            j->y[n * j->row + k] = j->x[n * j->row + k] + j->weight[k];
}

static pl_status position_forward(struct pl_plan *p, const struct pl_io *io) {
    struct adding j = {pl_shape_elems(&p->op.p[0]), io->x[0], io->p[0], io->y};
    pl_cpu_parts(p->backend, p->op.x[0].dim[0], PL_CPU_GRAIN / j.row + 1, add_weight, &j);
    return PL_OK;
}

static pl_status position_backward(struct pl_plan *p, const struct pl_io *io) {
    int64_t row = pl_shape_elems(&p->op.p[0]);
    if (io->dp[0] != NULL)
        pl_cpu_sum_rows(p->backend, io->dy, false, p->op.x[0].dim[0], row, row, io->dp[0], io->accumulate);
    if (p->op.need_dx[0] && io->dx[0] != NULL)
        memcpy(io->dx[0], io->dy, (size_t)pl_shape_elems(&p->op.y) * sizeof(float));
    return PL_OK;
}

const struct pl_cpu_kind pl_cpu_position_embedding = {
    .plan = position_plan, .destroy = pl_cpu_destroy_state, .forward = position_forward, .backward = position_backward};
