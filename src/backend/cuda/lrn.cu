/* lrn: local response normalisation across channels, Krizhevsky et al. 2012 in Caffe's form: y = x / base^beta, base =
 * k + alpha / size * (sum of x^2 over `size` channels around this one). A thread an element; what neighbours read again of
 * its window lies in the caches. */
#include "backend/cuda/kernel.cuh"

#include <math.h>

static __global__ void forward(pl_cuda_lrn l, const void *x, pl_cuda_view vx, void *y, pl_cuda_view vy, float *base, pl_order o,
                               int64_t row)
{
    PL_EACH_ROW(i, vy.n)
        PL_EACH(e, row) {
            pl_place p = pl_place_of(o, (uint32_t)e);
            int64_t k = p.k, to = pl_index(vy, i, k, p.at);
            float sum = 0;
            for (int64_t j = k < l.before ? 0 : k - l.before; j <= k + l.after && j < vx.c; j++) {
                float v = pl_get(x, vx.bf16, pl_index(vx, i, j, p.at));
                sum += v * v;
            }
            sum = l.k + l.weight * sum;
            if (base)
                base[to] = sum;
            pl_put(y, vy.bf16, to, pl_get(x, vx.bf16, pl_index(vx, i, k, p.at)) * powf(sum, -l.beta));
        }
}

/* x[k] stands in the sums of the channels whose windows hold it; there x base^(-beta - 1) = y / base. */
static __global__ void backward(pl_cuda_lrn l, const void *x, pl_cuda_view vx, const void *y, const void *dy, pl_cuda_view vy,
                                const float *base, void *dx, pl_order o, int64_t row)
{
    PL_EACH_ROW(i, vx.n)
        PL_EACH(e, row) {
            pl_place p = pl_place_of(o, (uint32_t)e);
            int64_t k = p.k, own = pl_index(vy, i, k, p.at), to = pl_index(vx, i, k, p.at);
            float sum = 0;
            for (int64_t j = k < l.after ? 0 : k - l.after; j <= k + l.before && j < vx.c; j++) {
                int64_t at = pl_index(vy, i, j, p.at);
                sum += pl_get(dy, vy.bf16, at) * pl_get(y, vy.bf16, at) / base[at];
            }
            float factor = 2 * l.weight * l.beta * pl_get(x, vx.bf16, to);
            pl_put(dx, vx.bf16, to, pl_get(dy, vy.bf16, own) * powf(base[own], -l.beta) - factor * sum);
        }
}

void pl_cuda_lrn_forward(pl_cuda_stream s, struct pl_cuda_lrn l, const void *x, struct pl_cuda_view vx, void *y,
                         struct pl_cuda_view vy, float *base)
{
    int64_t row = pl_row_of(vy);
    PL_LAUNCH(forward, pl_blocks_of_rows(vy.n, row), PL_THREADS, s, l, x, vx, y, vy, base, pl_order_of(vy), row);
}

void pl_cuda_lrn_backward(pl_cuda_stream s, struct pl_cuda_lrn l, const void *x, struct pl_cuda_view vx, const void *y,
                          const void *dy, struct pl_cuda_view vy, const float *base, void *dx)
{
    int64_t row = pl_row_of(vx);
    PL_LAUNCH(backward, pl_blocks_of_rows(vx.n, row), PL_THREADS, s, l, x, vx, y, dy, vy, base, dx, pl_order_of(vx), row);
}
