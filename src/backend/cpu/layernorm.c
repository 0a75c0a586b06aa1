/* layernorm: each row to mean 0 and variance 1. Rows are cut over the threads; the gradients of scale and shift are sums over rows, of
 * which each thread has columns of its own, so that no sum depends on the threads. Mean and 1 / deviation of each row stay for
 * backward. */
#include "backend/cpu/cpu.h"
#include "backend/cpu/vmath.h"

#include <math.h>

enum { SCALE, SHIFT };

struct row {
    float mean, inverse; /* 1 / sqrt(variance + epsilon) */
};
struct job {
    int64_t rows, columns;
    double epsilon;
    const float *x, *scale, *shift, *dy; /* scale, shift: NULL: 1 and 0 */
    float *out;                          /* y or dx */
    float *dscale, *dshift;
    bool accumulate;
    struct row *row;
};

static pl_status plan(struct pl_plan *p) {
    const struct pl_op *op = &p->op;
    int64_t columns = pl_shape_row_elems(&op->x[0]);
    if (pl_shape_elems(&op->y) != pl_shape_elems(&op->x[0]) || (op->params > 0 && op->p[SCALE].dim[0] != columns))
        return pl_cpu_refuse(op, "input, output and scale do not fit together");
    p->state = pl_alloc((size_t)op->x[0].dim[0] * sizeof(struct row), "layer normalisation's means");
    return p->state != NULL ? PL_OK : PL_ERR_MEMORY;
}

static struct job job_of(const struct pl_plan *p, const struct pl_io *io) {
    bool scales = p->op.params > 0;
    return (struct job){.rows = p->op.x[0].dim[0], .columns = pl_shape_row_elems(&p->op.x[0]), .epsilon = p->op.epsilon, .x = io->x[0], .dy = io->dy,
                        .scale = scales ? io->p[SCALE] : NULL, .shift = scales ? io->p[SHIFT] : NULL, .dscale = scales ? io->dp[SCALE] : NULL,
                        .dshift = scales ? io->dp[SHIFT] : NULL, .accumulate = io->accumulate, .row = p->state};
}

PL_WITHIN struct row moments(const float *x, int64_t n, double epsilon) {
    float sum[PL_SUMS] = {0}, square[PL_SUMS] = {0};
    int64_t whole = n / PL_SUMS * PL_SUMS;
    for (int64_t k = 0; k < whole; k += PL_SUMS)
        for (int l = 0; l < PL_SUMS; l++)
            sum[l] += x[k + l];
    for (int64_t k = whole; k < n; k++)
        sum[0] += x[k];
    float mean = pl_vtotal(sum) / (float)n;
    for (int64_t k = 0; k < whole; k += PL_SUMS)
        for (int l = 0; l < PL_SUMS; l++)
            square[l] += (x[k + l] - mean) * (x[k + l] - mean);
    for (int64_t k = whole; k < n; k++)
        square[0] += (x[k] - mean) * (x[k] - mean);
    return (struct row){mean, (float)(1.0 / sqrt((double)pl_vtotal(square) / (double)n + epsilon))};
}

PL_CLONES
static void forward_rows(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    for (int64_t r = begin; r < end; r++) {
        const float *restrict x = j->x + r * j->columns, *restrict scale = j->scale, *restrict shift = j->shift;
        float *restrict y = j->out + r * j->columns;
        struct row m = j->row[r] = moments(x, j->columns, j->epsilon);
        if (scale != NULL)
            for (int64_t k = 0; k < j->columns; k++)
                y[k] = (x[k] - m.mean) * m.inverse * scale[k] + shift[k];
        else
            for (int64_t k = 0; k < j->columns; k++)
                y[k] = (x[k] - m.mean) * m.inverse;
    }
}

static pl_status forward(struct pl_plan *p, const struct pl_io *io) {
    struct job j = job_of(p, io);
    j.out = io->y;
    pl_cpu_parts(p->backend, j.rows, PL_CPU_GRAIN / j.columns + 1, forward_rows, &j);
    return PL_OK;
}

/* Of one row: the means of g and of g times what x was normalised to, where g = dy * scale. */
PL_WITHIN void means(const struct job *j, const float *x, const float *dy, struct row m, float *mean, float *dot) {
    float sum[PL_SUMS] = {0}, product[PL_SUMS] = {0};
    int64_t whole = j->columns / PL_SUMS * PL_SUMS;
    for (int64_t k = 0; k < whole; k += PL_SUMS)
        for (int l = 0; l < PL_SUMS; l++) {
            float g = j->scale != NULL ? dy[k + l] * j->scale[k + l] : dy[k + l];
            sum[l] += g;
            product[l] += g * ((x[k + l] - m.mean) * m.inverse);
        }
    for (int64_t k = whole; k < j->columns; k++) {
        float g = j->scale != NULL ? dy[k] * j->scale[k] : dy[k];
        sum[0] += g;
        product[0] += g * ((x[k] - m.mean) * m.inverse);
    }
    *mean = pl_vtotal(sum) / (float)j->columns;
    *dot = pl_vtotal(product) / (float)j->columns;
}

PL_CLONES
static void backward_rows(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    for (int64_t r = begin; r < end; r++) {
        const float *restrict x = j->x + r * j->columns, *restrict dy = j->dy + r * j->columns, *restrict scale = j->scale;
        float *restrict dx = j->out + r * j->columns, mean, dot;
        struct row m = j->row[r];
        means(j, x, dy, m, &mean, &dot);
        if (scale != NULL)
            for (int64_t k = 0; k < j->columns; k++)
                dx[k] = (dy[k] * scale[k] - mean - (x[k] - m.mean) * m.inverse * dot) * m.inverse;
        else
            for (int64_t k = 0; k < j->columns; k++)
                dx[k] = (dy[k] - mean - (x[k] - m.mean) * m.inverse * dot) * m.inverse;
    }
}

PL_CLONES
static void add_columns(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    float *restrict dscale = j->dscale, *restrict dshift = j->dshift;
    for (int64_t k = begin; !j->accumulate && k < end; k++)
        dscale[k] = dshift[k] = 0.0f;
    for (int64_t r = 0; r < j->rows; r++) {
        const float *restrict x = j->x + r * j->columns, *restrict dy = j->dy + r * j->columns;
        struct row m = j->row[r];
        for (int64_t k = begin; k < end; k++) {
            dscale[k] += dy[k] * ((x[k] - m.mean) * m.inverse);
            dshift[k] += dy[k];
        }
    }
}

static pl_status backward(struct pl_plan *p, const struct pl_io *io) {
    struct job j = job_of(p, io);
    j.out = io->dx[0];
    if (j.dscale != NULL && j.dshift != NULL)
        pl_cpu_parts(p->backend, j.columns, PL_CPU_GRAIN / j.rows + PL_SUMS, add_columns, &j);
    if (p->op.need_dx[0] && j.out != NULL)
        pl_cpu_parts(p->backend, j.rows, PL_CPU_GRAIN / j.columns + 1, backward_rows, &j);
    return PL_OK;
}

const struct pl_cpu_kind pl_cpu_layernorm = {.plan = plan, .destroy = pl_cpu_destroy_state, .forward = forward, .backward = backward};
