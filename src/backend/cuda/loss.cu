/* loss: softmax and sigmoid with cross-entropy, squared distance. A block a row, of one warp where the columns are few;
 * each row's loss in double. One block then adds up the rows, in an order that depends on their number alone.
 * Backward: dx = weight * (y - target) for all three, 0 in padding rows and those without a label. */
#include "backend/cuda/kernel.cuh"

#include <math.h>

PL_DEVICE int64_t real_rows(const pl_cuda_labels &l) { return l.pass->rows * l.positions; }

/* What a row with a label counts. */
PL_DEVICE double share_of(const pl_cuda_labels &l, int64_t i) { return l.share ? l.share[i / l.positions] : 1; }

PL_DEVICE bool no_label(const pl_cuda_labels &l, int64_t i) { return l.share && ((const int32_t *)l.label)[i] == PL_CUDA_NO_LABEL; }

static __global__ void count_labels(pl_cuda_labels l)
{
    for (int64_t s = blockIdx.x; s < l.pass->rows; s += gridDim.x) {
        const int32_t *label = (const int32_t *)l.label + s * l.positions;
        int labelled = 0;
        PL_EACH_IN_BLOCK(k, l.positions) labelled += label[k] != PL_CUDA_NO_LABEL;
        labelled = pl_block_sum(labelled);
        if (threadIdx.x == 0)
            l.share[s] = labelled > 0 ? (double)l.positions / labelled : 0;
    }
}

static void count(pl_cuda_stream s, const pl_cuda_labels &l, int64_t n)
{
    if (l.share && l.label)
        PL_LAUNCH(count_labels, pl_block_each(n / l.positions), pl_threads_of_row(l.positions), s, l);
}

PL_DEVICE double target_of(const pl_cuda_labels &l, int64_t i, int64_t columns, int64_t k)
{
    return l.floats ? (double)((const float *)l.label)[i * columns + k] : (double)((const int32_t *)l.label)[i];
}

PL_DEVICE pl_cuda_loss softmax(const pl_cuda_labels &l, bool counts, int64_t i, int64_t columns, const float *x, float *y)
{
    float most = x[0];
    PL_EACH_IN_BLOCK(k, columns) most = pl_most()(most, x[k]);
    most = pl_block_reduce(most, pl_most());
    double sum = 0, all = 0;
    PL_EACH_IN_BLOCK(k, columns) {
        float e = expf(x[k] - most);
        y[k] = e;
        sum += e;
        all += x[k];
    }
    sum = pl_block_sum(sum);
    double inverse = 1 / sum;
    PL_EACH_IN_BLOCK(k, columns) y[k] = (float)(y[k] * inverse); /* what the same thread wrote */
    if (!counts || no_label(l, i))
        return pl_cuda_loss{0, 0, 0, INT64_MAX};
    int32_t label = ((const int32_t *)l.label)[i];
    if (label < 0 || label >= columns)
        return pl_cuda_loss{0, 0, 0, i};
    all = pl_block_sum(all);
    int above = 0; /* of equal values the first counts as the larger */
    PL_EACH_IN_BLOCK(k, columns) above += x[k] > x[label] || (x[k] == x[label] && k < label);
    above = pl_block_sum(above);
    bool number = x[label] == x[label];
    double loss = log(sum) + most - (1 - l.smoothing) * x[label];
    if (l.smoothing > 0)
        loss -= l.smoothing / (double)columns * all;
    double share = share_of(l, i);
    return pl_cuda_loss{share * loss, number && above < 1 ? share : 0, number && above < 5 ? share : 0, INT64_MAX};
}

PL_DEVICE pl_cuda_loss sigmoid(const pl_cuda_labels &l, bool counts, int64_t i, int64_t columns, const float *x, float *y)
{
    double loss = 0;
    int misses = 0;
    PL_EACH_IN_BLOCK(k, columns) {
        double v = x[k], e = exp(-fabs(v));
        y[k] = (float)(v >= 0 ? 1 / (1 + e) : e / (1 + e));
        if (!counts)
            continue;
        double t = target_of(l, i, columns, k);
        loss += (v > 0 ? v : 0) - v * t + log1p(e) + (v - v);
        misses += (v > 0) != (t > 0.5);
    }
    loss = pl_block_sum(loss);
    misses = pl_block_sum(misses);
    double right = counts && misses == 0 ? 1 : 0;
    return pl_cuda_loss{loss, right, right, INT64_MAX};
}

PL_DEVICE pl_cuda_loss euclidean(const pl_cuda_labels &l, bool counts, int64_t i, int64_t columns, const float *x, float *y)
{
    double sum = 0;
    PL_EACH_IN_BLOCK(k, columns) {
        y[k] = x[k];
        double d = counts ? x[k] - target_of(l, i, columns, k) : 0;
        sum += d * d;
    }
    return pl_cuda_loss{pl_block_sum(sum) / 2, 0, 0, INT64_MAX};
}

static __global__ void forward(pl_cuda_loss_kind kind, pl_cuda_labels l, int64_t n, int64_t columns, const float *x, float *y,
                               pl_cuda_loss *rows)
{
    for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
        const float *from = x + i * columns;
        float *to = y + i * columns;
        bool counts = l.label && i < real_rows(l);
        pl_cuda_loss loss = kind == PL_CUDA_SOFTMAX_LOSS   ? softmax(l, counts, i, columns, from, to)
                            : kind == PL_CUDA_SIGMOID_LOSS ? sigmoid(l, counts, i, columns, from, to)
                                                           : euclidean(l, counts, i, columns, from, to);
        if (threadIdx.x == 0)
            rows[i] = loss;
    }
}

static __global__ void add_rows(pl_cuda_labels l, const pl_cuda_loss *rows, pl_cuda_loss *sum)
{
    double loss = 0, correct = 0, correct5 = 0;
    int64_t wrong = INT64_MAX;
    PL_EACH_IN_BLOCK(i, real_rows(l)) {
        loss += rows[i].loss;
        correct += rows[i].correct;
        correct5 += rows[i].correct5;
        wrong = pl_least()(wrong, rows[i].wrong);
    }
    loss = pl_block_sum(loss);
    correct = pl_block_sum(correct);
    correct5 = pl_block_sum(correct5);
    wrong = pl_block_reduce(wrong, pl_least());
    if (threadIdx.x == 0)
        *sum = pl_cuda_loss{loss, correct, correct5, wrong};
}

void pl_cuda_loss_forward(pl_cuda_stream s, enum pl_cuda_loss_kind kind, struct pl_cuda_labels l, int64_t n, int64_t k,
                          const float *x, float *y, struct pl_cuda_loss *rows, struct pl_cuda_loss *sum)
{
    count(s, l, n);
    PL_LAUNCH(forward, pl_block_each(n), pl_threads_of_row(k), s, kind, l, n, k, x, y, rows);
    if (l.label)
        PL_LAUNCH(add_rows, dim3(1), PL_THREADS, s, l, rows, sum);
}

static __global__ void backward(pl_cuda_loss_kind kind, pl_cuda_labels l, int64_t n, int64_t columns, const float *y, float *dx)
{
    int64_t rows = real_rows(l);
    double spread = l.smoothing / (double)columns;
    PL_EACH_ROW(i, n)
        PL_EACH(k, columns) {
            float v = 0;
            if (i < rows && !no_label(l, i)) {
                double t = kind != PL_CUDA_SOFTMAX_LOSS ? target_of(l, i, columns, k)
                                                        : spread + (((const int32_t *)l.label)[i] == k ? 1 - l.smoothing : 0);
                v = (float)(l.weight * share_of(l, i) * (y[i * columns + k] - t));
            }
            dx[i * columns + k] = v;
        }
}

void pl_cuda_loss_backward(pl_cuda_stream s, enum pl_cuda_loss_kind kind, struct pl_cuda_labels l, int64_t n, int64_t k,
                           const float *y, float *dx)
{
    count(s, l, n);
    PL_LAUNCH(backward, pl_blocks_of_rows(n, k), PL_THREADS, s, kind, l, n, k, y, dx);
}
