/* Losses: sums over the real rows, gradients times the weight; padding rows get dx = 0. */
#include "backend/reference/reference.h"

#include <math.h>

static void rank_of_label(const float *x, int64_t C, int64_t label, double share, struct pl_loss_sums *sums)
{
    int64_t above = 0; /* of equal values the first counts as the larger */
    for (int64_t c = 0; c < C; c++)
        above += x[c] > x[label] || (x[c] == x[label] && c < label);
    sums->correct += above < 1 ? share : 0;
    sums->correct5 += above < 5 ? share : 0;
}

static void add_loss(const struct pl_plan *p, const struct pl_io *io, double loss)
{
    io->sums->loss += loss;
    io->sums->total += p->op.weight * loss;
}

/* What row n counts; 0 where it has no label. */
static double share_of(const struct pl_plan *p, const struct pl_io *io, int64_t n)
{
    const int32_t *label = io->label;
    int64_t T = p->op.positions;
    if (T == 0)
        return 1;
    return label[n] == PL_NO_LABEL ? 0 : pl_label_share(label + n / T * T, T);
}

static void softmax_forward(struct pl_plan *p, const struct pl_io *io)
{
    int64_t N = p->op.y.dim[0], C = pl_shape_row_elems(&p->op.x[0]);
    for (int64_t n = 0; n < N; n++) {
        const float *x = io->x[0] + n * C;
        double top = x[0], sum = 0, all = 0, share = p->op.smoothing;
        for (int64_t c = 1; c < C; c++)
            top = x[c] > top ? x[c] : top;
        for (int64_t c = 0; c < C; c++)
            sum += exp(x[c] - top);
        for (int64_t c = 0; c < C; c++)
            io->y[n * C + c] = (float)(exp(x[c] - top) / sum);
        if (!io->label || n >= io->rows)
            continue;
        int32_t label = ((const int32_t *)io->label)[n];
        double counts = share_of(p, io, n);
        if (counts == 0)
            continue;
        for (int64_t c = 0; c < C; c++)
            all += x[c];
        add_loss(p, io, counts * (log(sum) + top - (1 - share) * x[label] - share / (double)C * all));
        rank_of_label(x, C, label, counts, io->sums);
    }
    if (io->label)
        io->sums->rows += io->rows;
}

static double target_of(const struct pl_plan *p, const struct pl_io *io, int64_t n, int64_t c)
{
    double share = p->op.smoothing, C = (double)pl_shape_row_elems(&p->op.x[0]);
    return share / C + (((const int32_t *)io->label)[n] == c ? 1 - share : 0);
}

static void softmax_backward(struct pl_plan *p, const struct pl_io *io)
{
    int64_t N = p->op.y.dim[0], C = pl_shape_row_elems(&p->op.x[0]);
    for (int64_t n = 0; io->dx[0] && n < N; n++) {
        double weight = n < io->rows ? p->op.weight * share_of(p, io, n) : 0;
        for (int64_t c = 0; c < C; c++)
            io->dx[0][n * C + c] = weight != 0 ? (float)(weight * (io->y[n * C + c] - target_of(p, io, n, c))) : 0;
    }
}

static double target(const struct pl_plan *p, const struct pl_io *io, int64_t i)
{
    return p->op.label_floats > 0 ? ((const float *)io->label)[i] : ((const int32_t *)io->label)[i];
}

static void sigmoid_forward(struct pl_plan *p, const struct pl_io *io)
{
    int64_t N = p->op.y.dim[0], K = pl_shape_row_elems(&p->op.x[0]);
    for (int64_t n = 0; n < N; n++) {
        bool all = true;
        for (int64_t i = n * K; i < (n + 1) * K; i++) {
            double x = io->x[0][i];
            io->y[i] = (float)(1 / (1 + exp(-x)));
            if (!io->label || n >= io->rows)
                continue;
            double t = target(p, io, i);
            add_loss(p, io, (x > 0 ? x : 0) - x * t + log1p(exp(-fabs(x))));
            all = all && (x > 0) == (t > 0.5);
        }
        if (io->label && n < io->rows) {
            io->sums->correct += all;
            io->sums->correct5 += all;
        }
    }
    if (io->label)
        io->sums->rows += io->rows;
}

static void sigmoid_backward(struct pl_plan *p, const struct pl_io *io)
{
    int64_t n = pl_shape_elems(&p->op.x[0]), K = pl_shape_row_elems(&p->op.x[0]);
    for (int64_t i = 0; io->dx[0] && i < n; i++)
        io->dx[0][i] = i / K < io->rows ? (float)(p->op.weight * (io->y[i] - target(p, io, i))) : 0;
}

static void euclidean_forward(struct pl_plan *p, const struct pl_io *io)
{
    int64_t n = pl_shape_elems(&p->op.x[0]), K = pl_shape_row_elems(&p->op.x[0]);
    for (int64_t i = 0; i < n; i++) {
        io->y[i] = io->x[0][i];
        double e = io->label && i / K < io->rows ? io->x[0][i] - target(p, io, i) : 0;
        if (io->label)
            add_loss(p, io, e * e / 2);
    }
    if (io->label)
        io->sums->rows += io->rows;
}

static void euclidean_backward(struct pl_plan *p, const struct pl_io *io)
{
    int64_t n = pl_shape_elems(&p->op.x[0]), K = pl_shape_row_elems(&p->op.x[0]);
    for (int64_t i = 0; io->dx[0] && i < n; i++)
        io->dx[0][i] = i / K < io->rows ? (float)(p->op.weight * (io->x[0][i] - target(p, io, i))) : 0;
}

const struct ref_op ref_softmax_loss = {.forward = softmax_forward, .backward = softmax_backward};
const struct ref_op ref_sigmoid_loss = {.forward = sigmoid_forward, .backward = sigmoid_backward};
const struct ref_op ref_euclidean_loss = {.forward = euclidean_forward, .backward = euclidean_backward};
