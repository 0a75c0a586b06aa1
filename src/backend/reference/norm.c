/* Batch normalisation (Ioffe and Szegedy, ICML 2015) over the real rows only, layer normalisation (Ba et al., 2016), and local response
 * normalisation across channels (Krizhevsky et al., NIPS 2012, with Caffe's alpha / size). */
#include "backend/reference/reference.h"

#include <math.h>

/* What forward leaves, [C] each, and sums; of these stand beside each other what goes over the ranks together. */
struct kept { double *mean, *var, *sum, *dot, *count; };

static size_t batchnorm_saved(const struct pl_op *op) { return 4 * (size_t)ref_dims(&op->x[0]).c + 1; }

static struct kept kept(const struct pl_plan *p)
{
    int64_t c = ref_dims(&p->op.x[0]).c;
    double *v = p->saved;
    return (struct kept){.mean = v, .var = v + c, .sum = v + 2 * c, .dot = v + 3 * c, .count = v + 4 * c};
}

/* Over all ranks, where that is wanted. false: it failed. */
static bool total(struct pl_plan *p, const struct pl_io *io, double *v, int64_t n)
{
    if (p->op.sync && p->trained && io->sum)
        p->status = io->sum(io->sum_arg, v, n);
    return p->status == PL_OK;
}

/* Calls for every value of channel c in the real rows: index into x. */
#define EACH(c)                                             \
    for (int64_t n = 0; n < io->rows; n++)                  \
        for (int64_t k = 0, i = (n * d.c + (c)) * d.h * d.w; k < d.h * d.w; k++, i++)

static void clear_padding(float *v, struct ref_dims d, int64_t rows)
{
    for (int64_t i = rows * d.c * d.h * d.w; v && i < d.n * d.c * d.h * d.w; i++)
        v[i] = 0;
}

/* In two passes; without any rows what was there stays. */
static bool batch_statistics(struct pl_plan *p, const struct pl_io *io, struct ref_dims d)
{
    struct kept s = kept(p);
    for (int64_t c = 0; c < d.c; c++) {
        s.dot[c] = 0;
        EACH(c) s.dot[c] += io->x[0][i];
    }
    if (!total(p, io, s.dot, d.c + 1))
        return false;
    for (int64_t c = 0; c < d.c && *s.count > 0; c++)
        s.mean[c] = s.dot[c] / *s.count;
    for (int64_t c = 0; c < d.c; c++) {
        s.sum[c] = 0;
        EACH(c) s.sum[c] += (io->x[0][i] - s.mean[c]) * (io->x[0][i] - s.mean[c]);
    }
    if (!total(p, io, s.sum, d.c))
        return false;
    for (int64_t c = 0; c < d.c && *s.count > 0; c++)
        s.var[c] = s.sum[c] / *s.count;
    return true;
}

static void batchnorm_forward(struct pl_plan *p, const struct pl_io *io)
{
    struct ref_dims d = ref_dims(&p->op.x[0]);
    struct kept s = kept(p);
    *s.count = (double)(io->rows * d.h * d.w);
    for (int64_t c = 0; c < d.c; c++) {
        s.mean[c] = io->p[2][c];
        s.var[c] = io->p[3][c];
    }
    if (io->train && !batch_statistics(p, io, d))
        return;
    for (int64_t c = 0; c < d.c; c++) {
        double inverse = 1 / sqrt(s.var[c] + p->op.epsilon);
        EACH(c) io->y[i] = (float)((io->x[0][i] - s.mean[c]) * inverse * io->p[0][c] + io->p[1][c]);
    }
    clear_padding(io->y, d, io->rows);
}

/* The parameters' gradients are this rank's part of them; what x gets is by the sums over all. */
static void batchnorm_backward(struct pl_plan *p, const struct pl_io *io)
{
    struct ref_dims d = ref_dims(&p->op.x[0]);
    struct kept s = kept(p);
    double count = *s.count;
    for (int64_t c = 0; c < d.c; c++) {
        double inverse = 1 / sqrt(s.var[c] + p->op.epsilon);
        s.sum[c] = s.dot[c] = 0;
        EACH(c) {
            s.sum[c] += io->dy[i];
            s.dot[c] += io->dy[i] * (io->x[0][i] - s.mean[c]) * inverse;
        }
        ref_put(&io->dp[0][c], s.dot[c], io->accumulate);
        ref_put(&io->dp[1][c], s.sum[c], io->accumulate);
        ref_put(&io->dp[2][c], count > 0 ? (double)io->rows * s.mean[c] : 0, io->accumulate);
        ref_put(&io->dp[3][c], count > 0 ? (double)io->rows * s.var[c] * (count > 1 ? count / (count - 1) : 1) : 0, io->accumulate);
    }
    if (!io->dx[0] || !total(p, io, s.sum, 2 * d.c))
        return;
    for (int64_t c = 0; c < d.c; c++) {
        double inverse = 1 / sqrt(s.var[c] + p->op.epsilon);
        EACH(c) io->dx[0][i] = (float)(io->p[0][c] * inverse * (io->dy[i] - s.sum[c] / count - (io->x[0][i] - s.mean[c]) * inverse * s.dot[c] / count));
    }
    clear_padding(io->dx[0], d, io->rows);
}

const struct ref_op ref_batchnorm = {.saved = batchnorm_saved, .forward = batchnorm_forward, .backward = batchnorm_backward};

/* k + alpha / size * sum of squares over the channels around c */
static double lrn_base(const struct pl_op *op, const float *x, struct ref_dims d, int64_t n, int64_t c, int64_t at)
{
    double sum = 0;
    for (int64_t j = c - (op->size - 1) / 2; j <= c + op->size / 2; j++)
        if (j >= 0 && j < d.c)
            sum += (double)x[(n * d.c + j) * d.h * d.w + at] * x[(n * d.c + j) * d.h * d.w + at];
    return op->k + op->alpha / (double)op->size * sum;
}

static void lrn_forward(struct pl_plan *p, const struct pl_io *io)
{
    struct ref_dims d = ref_dims(&p->op.x[0]);
    for (int64_t n = 0; n < d.n; n++)
        for (int64_t c = 0; c < d.c; c++)
            for (int64_t at = 0; at < d.h * d.w; at++) {
                int64_t i = (n * d.c + c) * d.h * d.w + at;
                io->y[i] = (float)(io->x[0][i] * pow(lrn_base(&p->op, io->x[0], d, n, c, at), -p->op.beta));
            }
}

static void lrn_backward(struct pl_plan *p, const struct pl_io *io)
{
    struct ref_dims d = ref_dims(&p->op.x[0]);
    const struct pl_op *op = &p->op;
    for (int64_t n = 0; io->dx[0] && n < d.n; n++)
        for (int64_t c = 0; c < d.c; c++)
            for (int64_t at = 0; at < d.h * d.w; at++) {
                int64_t i = (n * d.c + c) * d.h * d.w + at;
                double dx = io->dy[i] * pow(lrn_base(op, io->x[0], d, n, c, at), -op->beta);
                /* x[c] stands in the sums of the channels m whose window holds c */
                for (int64_t m = c - op->size / 2; m <= c + (op->size - 1) / 2; m++) {
                    int64_t j = (n * d.c + m) * d.h * d.w + at;
                    if (m >= 0 && m < d.c)
                        dx -= 2 * op->alpha * op->beta / (double)op->size * io->x[0][i] * io->dy[j] * io->x[0][j] *
                              pow(lrn_base(op, io->x[0], d, n, m, at), -op->beta - 1);
                }
                io->dx[0][i] = (float)dx;
            }
}

const struct ref_op ref_lrn = {.forward = lrn_forward, .backward = lrn_backward};

/* ---- layer normalisation ----------------------------------------------------------------------------- */

enum { SCALE, SHIFT };

/* Of one row. */
struct moments { double mean, root; };
static struct moments moments_of(const struct pl_op *op, const float *x, int64_t f)
{
    double mean = 0, var = 0;
    for (int64_t k = 0; k < f; k++)
        mean += x[k] / (double)f;
    for (int64_t k = 0; k < f; k++)
        var += (x[k] - mean) * (x[k] - mean) / (double)f;
    return (struct moments){mean, sqrt(var + op->epsilon)};
}

static void layernorm_forward(struct pl_plan *p, const struct pl_io *io)
{
    int64_t rows = p->op.x[0].dim[0], f = pl_shape_row_elems(&p->op.x[0]);
    for (int64_t n = 0; n < rows; n++) {
        struct moments m = moments_of(&p->op, io->x[0] + n * f, f);
        for (int64_t k = 0; k < f; k++) {
            double v = (io->x[0][n * f + k] - m.mean) / m.root;
            io->y[n * f + k] = (float)(p->op.params > 0 ? v * io->p[SCALE][k] + io->p[SHIFT][k] : v);
        }
    }
}

static size_t layernorm_saved(const struct pl_op *op) { return 2 * (size_t)pl_shape_row_elems(&op->x[0]); }

static void layernorm_backward(struct pl_plan *p, const struct pl_io *io)
{
    int64_t rows = p->op.x[0].dim[0], f = pl_shape_row_elems(&p->op.x[0]);
    double *dscale = p->saved, *dshift = p->saved + f;
    for (int64_t k = 0; k < 2 * f; k++)
        p->saved[k] = 0;
    for (int64_t n = 0; n < rows; n++) {
        const float *x = io->x[0] + n * f, *dy = io->dy + n * f;
        struct moments m = moments_of(&p->op, x, f);
        double sum = 0, dot = 0;
        for (int64_t k = 0; k < f; k++) {
            double v = (x[k] - m.mean) / m.root, g = p->op.params > 0 ? (double)dy[k] * io->p[SCALE][k] : dy[k];
            dscale[k] += dy[k] * v;
            dshift[k] += dy[k];
            sum += g / (double)f;
            dot += g * v / (double)f;
        }
        for (int64_t k = 0; io->dx[0] && k < f; k++) {
            double v = (x[k] - m.mean) / m.root, g = p->op.params > 0 ? (double)dy[k] * io->p[SCALE][k] : dy[k];
            io->dx[0][n * f + k] = (float)((g - sum - v * dot) / m.root);
        }
    }
    for (int64_t k = 0; p->op.params > 0 && k < f; k++) {
        ref_put(&io->dp[SCALE][k], dscale[k], io->accumulate);
        ref_put(&io->dp[SHIFT][k], dshift[k], io->accumulate);
    }
}

const struct ref_op ref_layernorm = {.saved = layernorm_saved, .forward = layernorm_forward, .backward = layernorm_backward};
