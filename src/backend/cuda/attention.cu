/* attention: what of it is no product. Heads are taken apart, so that each is a matrix in one piece, and put together again; scores
 * become weights and back, a block a row, of one warp where the positions are few. What a position may not see is not read. */
#include "backend/cuda/kernel.cuh"

#include <math.h>

/* f(element of the joined tensor, that of its part) */
template <class F> PL_DEVICE void each_element(const pl_cuda_heads &h, pl_divisor features, pl_divisor d, F f)
{
    int64_t row = h.parts * h.heads * h.d;
    PL_EACH_ROW(i, h.n * h.t) {
        int64_t n = i / h.t, t = i % h.t;
        PL_EACH(e, row) {
            uint32_t part = pl_quotient((uint32_t)e, features), in = (uint32_t)e - part * features.by, head = pl_quotient(in, d);
            f(i * row + e, h.part[part] + ((n * h.heads + head) * h.t + t) * h.d + (in - head * d.by));
        }
    }
}

struct splits {
    const float *x;
    __device__ void operator()(int64_t at, float *part) const { *part = x[at]; }
};
struct joins {
    float *x;
    __device__ void operator()(int64_t at, const float *part) const { x[at] = *part; }
};

template <class F> static __global__ void move(pl_cuda_heads h, pl_divisor features, pl_divisor d, F f) { each_element(h, features, d, f); }

template <class F> static void run_move(pl_cuda_stream s, const pl_cuda_heads &h, F f)
{
    dim3 blocks = pl_blocks_of_rows(h.n * h.t, h.parts * h.heads * h.d);
    PL_LAUNCH(move<F>, blocks, PL_THREADS, s, h, pl_divisor_of(h.heads * h.d), pl_divisor_of(h.d), f);
}

void pl_cuda_split_heads(pl_cuda_stream s, struct pl_cuda_heads h, const float *x) { run_move(s, h, splits{x}); }

void pl_cuda_join_heads(pl_cuda_stream s, struct pl_cuda_heads h, float *x) { run_move(s, h, joins{x}); }

PL_DEVICE int64_t seen(const pl_cuda_scores &c, int64_t row) { return c.causal ? row % c.t + 1 : c.t; }

static __global__ void weigh(pl_cuda_scores c, float *scores)
{
    for (int64_t i = blockIdx.x; i < c.sequences * c.t; i += gridDim.x) {
        float *w = scores + i * c.t, most = w[0], sum = 0;
        int64_t n = seen(c, i);
        PL_EACH_IN_BLOCK(k, n) most = pl_most()(most, w[k]);
        most = pl_block_reduce(most, pl_most()); /* behind it w[0] may change */
        PL_EACH_IN_BLOCK(k, n) {
            w[k] = expf((w[k] - most) * c.scale);
            sum += w[k];
        }
        float inverse = 1.0f / pl_block_sum(sum);
        PL_EACH_IN_BLOCK(k, c.t) w[k] = k < n ? w[k] * inverse : 0.0f; /* what the same thread wrote */
    }
}

void pl_cuda_weigh(pl_cuda_stream s, struct pl_cuda_scores c, float *scores)
{
    PL_LAUNCH(weigh, pl_block_each(c.sequences * c.t), pl_threads_of_row(c.t), s, c, scores);
}

static __global__ void weigh_back(pl_cuda_scores c, const float *weights, float *slopes)
{
    for (int64_t i = blockIdx.x; i < c.sequences * c.t; i += gridDim.x) {
        const float *w = weights + i * c.t;
        float *slope = slopes + i * c.t, dot = 0;
        int64_t n = seen(c, i);
        PL_EACH_IN_BLOCK(k, n) dot += w[k] * slope[k];
        dot = pl_block_sum(dot);
        PL_EACH_IN_BLOCK(k, c.t) slope[k] = k < n ? w[k] * (slope[k] - dot) * c.scale : 0.0f;
    }
}

void pl_cuda_weigh_back(pl_cuda_stream s, struct pl_cuda_scores c, const float *weights, float *slopes)
{
    PL_LAUNCH(weigh_back, pl_block_each(c.sequences * c.t), pl_threads_of_row(c.t), s, c, weights, slopes);
}
