/* layernorm: each row to mean 0 and variance 1 (Ba, Kiros and Hinton 2016), and back. A block a row, of one warp where the columns are
 * few. The variance is of differences from the mean, so that a large mean takes nothing from it. The sums over rows, gradients of scale
 * and shift, are in channel.cu. */
#include "backend/cuda/kernel.cuh"

#include <math.h>

static __global__ void forward(pl_cuda_layernorm l, const void *x, void *y)
{
    float n = (float)l.columns;
    for (int64_t i = blockIdx.x; i < l.rows; i += gridDim.x) {
        int64_t first = i * l.columns;
        float sum = 0, square = 0;
        PL_EACH_IN_BLOCK(k, l.columns) sum += pl_get(x, l.x16, first + k);
        float mean = pl_block_sum(sum) / n;
        PL_EACH_IN_BLOCK(k, l.columns) {
            float d = pl_get(x, l.x16, first + k) - mean;
            square += d * d;
        }
        float inverse = 1.0f / sqrtf(pl_block_sum(square) / n + l.epsilon);
        PL_EACH_IN_BLOCK(k, l.columns) {
            float v = (pl_get(x, l.x16, first + k) - mean) * inverse;
            pl_put(y, l.y16, first + k, l.scale ? v * l.scale[k] + l.shift[k] : v);
        }
        if (l.kept && threadIdx.x == 0) {
            l.kept[2 * i] = mean;
            l.kept[2 * i + 1] = inverse;
        }
    }
}

void pl_cuda_layernorm_forward(pl_cuda_stream s, struct pl_cuda_layernorm l, const void *x, void *y)
{
    PL_LAUNCH(forward, pl_block_each(l.rows), pl_threads_of_row(l.columns), s, l, x, y);
}

/* With g = dy * scale and v what x was normalised to: dx = (g - the mean of g - v * the mean of g v) / deviation. */
static __global__ void backward(pl_cuda_layernorm l, const void *x, const void *dy, void *dx)
{
    float n = (float)l.columns;
    for (int64_t i = blockIdx.x; i < l.rows; i += gridDim.x) {
        int64_t first = i * l.columns;
        float mean = l.kept[2 * i], inverse = l.kept[2 * i + 1], sum = 0, product = 0;
        PL_EACH_IN_BLOCK(k, l.columns) {
            float g = pl_get(dy, l.y16, first + k) * (l.scale ? l.scale[k] : 1.0f);
            sum += g;
            product += g * ((pl_get(x, l.x16, first + k) - mean) * inverse);
        }
        sum = pl_block_sum(sum) / n;
        product = pl_block_sum(product) / n;
        PL_EACH_IN_BLOCK(k, l.columns) {
            float g = pl_get(dy, l.y16, first + k) * (l.scale ? l.scale[k] : 1.0f), v = (pl_get(x, l.x16, first + k) - mean) * inverse;
            pl_put(dx, l.x16, first + k, (g - sum - v * product) * inverse);
        }
    }
}

void pl_cuda_layernorm_backward(pl_cuda_stream s, struct pl_cuda_layernorm l, const void *x, const void *dy, void *dx)
{
    PL_LAUNCH(backward, pl_block_each(l.rows), pl_threads_of_row(l.columns), s, l, x, dy, dx);
}
