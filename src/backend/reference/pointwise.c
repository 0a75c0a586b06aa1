/* Activations, dropout (Srivastava et al., JMLR 2014; scaled in training), concatenation and sum. */
#include "backend/reference/reference.h"

#include <math.h>
#include <string.h>

#define ACTIVATION(name, y_of_x, slope_of_y)                                                         \
    static void name##_forward(struct pl_plan *p, const struct pl_io *io)                            \
    {                                                                                                \
        int64_t n = pl_shape_elems(&p->op.y);                                                        \
        for (int64_t i = 0; i < n; i++) {                                                            \
            double x = io->x[0][i];                                                                  \
            io->y[i] = (float)(y_of_x);                                                              \
        }                                                                                            \
    }                                                                                                \
    static void name##_backward(struct pl_plan *p, const struct pl_io *io)                           \
    {                                                                                                \
        int64_t n = pl_shape_elems(&p->op.y);                                                        \
        for (int64_t i = 0; io->dx[0] && i < n; i++) {                                               \
            double y = io->y[i];                                                                     \
            io->dx[0][i] = (float)(io->dy[i] * (slope_of_y));                                        \
        }                                                                                            \
    }                                                                                                \
    const struct ref_op ref_##name = {.forward = name##_forward, .backward = name##_backward};

ACTIVATION(relu, x > 0 ? x : (x != x ? x : 0), y > 0 ? 1.0 : 0.0) /* NaN stays NaN */
ACTIVATION(sigmoid, 1 / (1 + exp(-x)), y *(1 - y))
ACTIVATION(tanh, tanh(x), 1 - y * y)

/* Gaussian error linear units: the slope needs x. */
static double below(double x) { return 0.5 * erfc(-x / sqrt(2)); }

static void gelu_forward(struct pl_plan *p, const struct pl_io *io)
{
    int64_t n = pl_shape_elems(&p->op.y);
    for (int64_t i = 0; i < n; i++)
        io->y[i] = (float)(io->x[0][i] * below(io->x[0][i]));
}

static void gelu_backward(struct pl_plan *p, const struct pl_io *io)
{
    int64_t n = pl_shape_elems(&p->op.y);
    for (int64_t i = 0; io->dx[0] && i < n; i++) {
        double x = io->x[0][i], density = exp(-x * x / 2) / sqrt(2 * acos(-1));
        io->dx[0][i] = (float)(io->dy[i] * (below(x) + x * density));
    }
}

const struct ref_op ref_gelu = {.forward = gelu_forward, .backward = gelu_backward};

static size_t dropout_mask(const struct pl_op *op) { return (size_t)pl_shape_elems(&op->y); }

static void dropout_forward(struct pl_plan *p, const struct pl_io *io)
{
    int64_t N = p->op.y.dim[0], width = pl_shape_row_elems(&p->op.y);
    for (int64_t n = 0; n < N; n++) {
        uint64_t row = n < io->rows && io->train ? (uint64_t)io->row_key[n] : 0;
        struct pl_rng r = pl_rng_make(io->seed, io->step_key, row, io->layer_key);
        pl_rng_skip(&r, p->op.first);
        for (int64_t i = n * width; i < (n + 1) * width; i++) {
            p->mask[i] = !io->train || pl_rng_u32(&r) / 4294967296.0 >= p->op.rate;
            io->y[i] = (float)(!io->train ? io->x[0][i] : p->mask[i] ? io->x[0][i] / (1 - p->op.rate) : 0);
        }
    }
}

static void dropout_backward(struct pl_plan *p, const struct pl_io *io)
{
    int64_t n = pl_shape_elems(&p->op.y);
    double scale = p->trained ? 1 / (1 - p->op.rate) : 1;
    for (int64_t i = 0; io->dx[0] && i < n; i++)
        io->dx[0][i] = (float)(p->mask[i] ? io->dy[i] * scale : 0);
}

const struct ref_op ref_dropout = {.mask = dropout_mask, .forward = dropout_forward, .backward = dropout_backward};

static void concat(struct pl_plan *p, const struct pl_io *io, bool backward)
{
    int64_t N = p->op.y.dim[0], width = pl_shape_row_elems(&p->op.y), at = 0;
    for (int k = 0; k < p->op.inputs; k++) {
        int64_t part = pl_shape_row_elems(&p->op.x[k]);
        for (int64_t n = 0; n < N; n++) {
            if (!backward)
                memcpy(io->y + n * width + at, io->x[k] + n * part, (size_t)part * sizeof(float));
            else if (io->dx[k])
                memcpy(io->dx[k] + n * part, io->dy + n * width + at, (size_t)part * sizeof(float));
        }
        at += part;
    }
}
static void concat_forward(struct pl_plan *p, const struct pl_io *io) { concat(p, io, false); }
static void concat_backward(struct pl_plan *p, const struct pl_io *io) { concat(p, io, true); }

static void add_forward(struct pl_plan *p, const struct pl_io *io)
{
    int64_t n = pl_shape_elems(&p->op.y);
    for (int64_t i = 0; i < n; i++) {
        double sum = 0;
        for (int k = 0; k < p->op.inputs; k++)
            sum += io->x[k][i];
        io->y[i] = (float)sum;
    }
}

static void add_backward(struct pl_plan *p, const struct pl_io *io)
{
    for (int k = 0; k < p->op.inputs; k++)
        if (io->dx[k])
            memcpy(io->dx[k], io->dy, (size_t)pl_shape_elems(&p->op.y) * sizeof(float));
}

const struct ref_op ref_concat = {.forward = concat_forward, .backward = concat_backward};
const struct ref_op ref_add = {.forward = add_forward, .backward = add_backward};
