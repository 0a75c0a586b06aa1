/* Batch normalisation (Ioffe and Szegedy, ICML 2015) over the real rows only, and local response
 * normalisation across channels (Krizhevsky et al., NIPS 2012, with Caffe's alpha / size). */
#include "backend/reference/reference.h"

#include <math.h>

static size_t batchnorm_saved(const struct pl_op *op) { return 2 * (size_t)ref_dims(&op->x[0]).c; }

/* Calls for every value of channel c in the real rows: index into x. */
#define EACH(c)                                             \
    for (int64_t n = 0; n < io->rows; n++)                  \
        for (int64_t k = 0, i = (n * d.c + (c)) * d.h * d.w; k < d.h * d.w; k++, i++)

static void clear_padding(float *v, struct ref_dims d, int64_t rows)
{
    for (int64_t i = rows * d.c * d.h * d.w; v && i < d.n * d.c * d.h * d.w; i++)
        v[i] = 0;
}

static void batchnorm_forward(struct pl_plan *p, const struct pl_io *io)
{
    struct ref_dims d = ref_dims(&p->op.x[0]);
    double count = (double)(io->rows * d.h * d.w);
    for (int64_t c = 0; c < d.c; c++) {
        double mean = io->p[2][c], var = io->p[3][c];
        if (io->train && count > 0) {
            mean = var = 0;
            EACH(c) mean += io->x[0][i];
            mean /= count;
            EACH(c) var += (io->x[0][i] - mean) * (io->x[0][i] - mean);
            var /= count;
        }
        p->saved[2 * c] = mean;
        p->saved[2 * c + 1] = var;
        double inverse = 1 / sqrt(var + p->op.epsilon);
        EACH(c) io->y[i] = (float)((io->x[0][i] - mean) * inverse * io->p[0][c] + io->p[1][c]);
    }
    clear_padding(io->y, d, io->rows);
}

static void batchnorm_backward(struct pl_plan *p, const struct pl_io *io)
{
    struct ref_dims d = ref_dims(&p->op.x[0]);
    double count = (double)(io->rows * d.h * d.w);
    for (int64_t c = 0; c < d.c; c++) {
        double mean = p->saved[2 * c], var = p->saved[2 * c + 1], inverse = 1 / sqrt(var + p->op.epsilon), sum = 0, dot = 0;
        EACH(c) {
            sum += io->dy[i];
            dot += io->dy[i] * (io->x[0][i] - mean) * inverse;
        }
        ref_put(&io->dp[0][c], dot, io->accumulate);
        ref_put(&io->dp[1][c], sum, io->accumulate);
        ref_put(&io->dp[2][c], count > 0 ? (double)io->rows * mean : 0, io->accumulate);
        ref_put(&io->dp[3][c], count > 0 ? (double)io->rows * var * (count > 1 ? count / (count - 1) : 1) : 0, io->accumulate);
        if (io->dx[0])
            EACH(c) io->dx[0][i] = (float)(io->p[0][c] * inverse * (io->dy[i] - sum / count - (io->x[0][i] - mean) * inverse * dot / count));
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
