/* embedding: rows of a table. Backward every thread adds up columns of its own, position after position, so that the sums
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
