/* kernel: what the files of kernels share. A kernel is right for any number of blocks and threads (up to PL_THREADS): it
 * strides by what there is, and sums over a block in an order that the number of threads alone fixes. So the same file,
 * compiled as C++ with PL_CUDA_EMULATED, is tested on the host with one thread a block or a few (tests/cuda/emulated.h). */
#ifndef PL_BACKEND_CUDA_KERNEL_CUH
#define PL_BACKEND_CUDA_KERNEL_CUH

#include "backend/cuda/kernels.h"

#ifdef PL_CUDA_EMULATED
#include "emulated.h"
#else
#include <cuda_bf16.h>
#define PL_LAUNCH(kernel, blocks, threads, stream, ...) \
    kernel<<<blocks, threads, 0, reinterpret_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#endif

#define PL_THREADS 256 /* of a block, at most */
#define PL_DEVICE static __device__ inline

/* i over [0, n) by all threads of the grid's x; over samples by its y; by the threads of a block. */
#define PL_EACH(i, n)                                                                            \
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < (n);                    \
         i += (int64_t)gridDim.x * blockDim.x)
#define PL_EACH_ROW(i, n) for (int64_t i = blockIdx.y; i < (n); i += gridDim.y)
#define PL_EACH_IN_BLOCK(i, n) for (int64_t i = threadIdx.x; i < (n); i += blockDim.x)

/* ---- division by a number known at the launch (Granlund and Montgomery, PLDI 1994), of numbers below 2^31 --------------- */

struct pl_divisor { uint32_t by, factor, shift; };

static inline pl_divisor pl_divisor_of(int64_t by)
{
    uint32_t bits = 0;
    while (((int64_t)1 << bits) < by)
        bits++;
    uint64_t power = (uint64_t)1 << (31 + bits);
    return pl_divisor{(uint32_t)by, by > 1 ? (uint32_t)((power + (uint64_t)by - 1) / (uint64_t)by) : 0, by > 1 ? bits - 1 : 0};
}

PL_DEVICE uint32_t pl_quotient(uint32_t n, pl_divisor d) { return d.by == 1 ? n : __umulhi(n, d.factor) >> d.shift; }

/* ---- the elements of a sample in the order of its memory, so that neighbours are read by neighbouring threads ----------- */

struct pl_order { pl_divisor inner; bool last; }; /* last: channels last, otherwise canonical */
struct pl_place { uint32_t k, at; };

static inline bool pl_channels_last(const struct pl_cuda_view &v) { return v.sc < v.sp; }
static inline int64_t pl_row_of(const struct pl_cuda_view &v) { return v.c * v.h * v.w; }
static inline pl_order pl_order_of(const struct pl_cuda_view &v)
{
    bool last = pl_channels_last(v);
    return pl_order{pl_divisor_of(last ? v.c : v.h * v.w), last};
}

PL_DEVICE pl_place pl_place_of(pl_order o, uint32_t e)
{
    uint32_t q = pl_quotient(e, o.inner), rest = e - q * o.inner.by;
    return o.last ? pl_place{rest, q} : pl_place{q, rest};
}

PL_DEVICE int64_t pl_index(const struct pl_cuda_view &v, int64_t i, int64_t k, int64_t at)
{
    return i * v.sn + k * v.sc + at * v.sp;
}

/* An element, which is of float or of bf16; the same for all threads. */
PL_DEVICE float pl_get(const void *t, bool bf16, int64_t at)
{
    return bf16 ? __bfloat162float(static_cast<const __nv_bfloat16 *>(t)[at]) : static_cast<const float *>(t)[at];
}

PL_DEVICE void pl_put(void *t, bool bf16, int64_t at, float v)
{
    if (bf16)
        static_cast<__nv_bfloat16 *>(t)[at] = __float2bfloat16_rn(v);
    else
        static_cast<float *>(t)[at] = v;
}

/* The elements of both are at the same index. */
static inline bool pl_alike(const struct pl_cuda_view &a, const struct pl_cuda_view &b)
{
    bool same = a.sn == b.sn && (a.sc == b.sc || a.c == 1) && (a.sp == b.sp || a.h * a.w == 1);
    return same && a.sn == pl_row_of(a);
}

/* ---- sizes of launches -------------------------------------------------------------------------------------------------- */

static inline dim3 pl_blocks(int64_t n) /* for PL_EACH */
{
    int64_t blocks = (n + PL_THREADS - 1) / PL_THREADS;
    return dim3((unsigned)(blocks < 1 ? 1 : blocks > 16384 ? 16384 : blocks));
}

static inline dim3 pl_blocks_of_rows(int64_t rows, int64_t row) /* for PL_EACH within PL_EACH_ROW */
{
    return dim3(pl_blocks(row).x, (unsigned)(rows < 1 ? 1 : rows > 65535 ? 65535 : rows));
}

/* A block a row of so many columns, of one warp where they are few; for loops over blockIdx.x */
static inline dim3 pl_block_each(int64_t rows) { return dim3((unsigned)(rows < 1 ? 1 : rows > 1 << 20 ? 1 << 20 : rows)); }
static inline unsigned pl_threads_of_row(int64_t columns) { return columns <= 1024 ? 32 : PL_THREADS; }

/* ---- reductions over a block: all of its threads call, and get the result ----------------------------------------------- */

struct pl_plus { template <class T> __device__ T operator()(T a, T b) const { return a + b; } };
struct pl_most { template <class T> __device__ T operator()(T a, T b) const { return a < b || b != b ? b : a; } }; /* or NaN */
struct pl_least { template <class T> __device__ T operator()(T a, T b) const { return b < a ? b : a; } };

template <class T, class Op> PL_DEVICE T pl_block_reduce(T v, Op op)
{
    __shared__ T part[PL_THREADS];
    unsigned t = threadIdx.x;
    part[t] = v;
    __syncthreads();
    for (unsigned n = blockDim.x; n > 1;) {
        unsigned half = (n + 1) / 2;
        if (t + half < n)
            part[t] = op(part[t], part[t + half]);
        __syncthreads();
        n = half;
    }
    v = part[0];
    __syncthreads(); /* before the next one writes */
    return v;
}

template <class T> PL_DEVICE T pl_block_sum(T v) { return pl_block_reduce(v, pl_plus()); }

#endif
