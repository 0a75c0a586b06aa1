/* elementwise: activations, sums of tensors, bias and rectifier. Where all tensors lie alike a kernel runs along memory and
 * asks for no index; otherwise in the order of the one it writes. Not a number stays not a number, so that the loss shows it. */
#include "backend/cuda/kernel.cuh"

#include <math.h>

PL_DEVICE float rectified(float v) { return v < 0.0f ? 0.0f : v; }

struct relu {
    static __device__ float of(float x) { return rectified(x); }
    static __device__ float back(float y, float dy) { return y > 0.0f ? dy : 0.0f; }
};
struct sigmoid {
    static __device__ float of(float x) { return 1.0f / (1.0f + expf(-x)); }
    static __device__ float back(float y, float dy) { return dy * y * (1.0f - y); }
};
struct hyperbolic {
    static __device__ float of(float x) { return tanhf(x); }
    static __device__ float back(float y, float dy) { return dy * (1.0f - y * y); }
};
/* Of the standard normal distribution: the probability of less than x, and the density there. */
PL_DEVICE float below(float x) { return 0.5f * erfcf(-x * 0.70710678f); }
PL_DEVICE float density(float x) { return 0.39894228f * expf(-0.5f * x * x); }
struct gaussian {
    static __device__ float of(float x) { return x * below(x); }
    static __device__ float back(float x, float dy) { return dy * (below(x) + x * density(x)); }
};

template <class F> static __global__ void forward_alike(const void *x, bool x16, void *y, bool y16, int64_t n)
{
    PL_EACH(i, n) pl_put(y, y16, i, F::of(pl_get(x, x16, i)));
}

template <class F> static __global__ void forward(const void *x, pl_cuda_view vx, void *y, pl_cuda_view vy, pl_order o, int64_t row)
{
    PL_EACH_ROW(i, vy.n)
        PL_EACH(e, row) {
            pl_place p = pl_place_of(o, (uint32_t)e);
            pl_put(y, vy.bf16, pl_index(vy, i, p.k, p.at), F::of(pl_get(x, vx.bf16, pl_index(vx, i, p.k, p.at))));
        }
}

/* of: what the slope is made of, y or x */
template <class F> static __global__ void backward_alike(const void *of, bool of16, const void *dy, bool y16, void *dx, bool x16, int64_t n)
{
    PL_EACH(i, n) pl_put(dx, x16, i, F::back(pl_get(of, of16, i), pl_get(dy, y16, i)));
}

template <class F>
static __global__ void backward(const void *of, pl_cuda_view v, const void *dy, pl_cuda_view vy, void *dx, pl_cuda_view vx, pl_order o, int64_t row)
{
    PL_EACH_ROW(i, vx.n)
        PL_EACH(e, row) {
            pl_place p = pl_place_of(o, (uint32_t)e);
            float slope_of = pl_get(of, v.bf16, pl_index(v, i, p.k, p.at));
            pl_put(dx, vx.bf16, pl_index(vx, i, p.k, p.at), F::back(slope_of, pl_get(dy, vy.bf16, pl_index(vy, i, p.k, p.at))));
        }
}

template <class F> static void run(pl_cuda_stream s, const void *x, pl_cuda_view vx, void *y, pl_cuda_view vy)
{
    int64_t row = pl_row_of(vy), n = vy.n * row;
    if (pl_alike(vx, vy))
        PL_LAUNCH(forward_alike<F>, pl_blocks(n), PL_THREADS, s, x, vx.bf16, y, vy.bf16, n);
    else
        PL_LAUNCH(forward<F>, pl_blocks_of_rows(vy.n, row), PL_THREADS, s, x, vx, y, vy, pl_order_of(vy), row);
}

template <class F>
static void run_back(pl_cuda_stream s, const void *of, pl_cuda_view v, const void *dy, pl_cuda_view vy, void *dx, pl_cuda_view vx)
{
    int64_t row = pl_row_of(vx), n = vx.n * row;
    if (pl_alike(vx, vy))
        PL_LAUNCH(backward_alike<F>, pl_blocks(n), PL_THREADS, s, of, v.bf16, dy, vy.bf16, dx, vx.bf16, n);
    else
        PL_LAUNCH(backward<F>, pl_blocks_of_rows(vx.n, row), PL_THREADS, s, of, v, dy, vy, dx, vx, pl_order_of(vx), row);
}

void pl_cuda_function(pl_cuda_stream s, enum pl_cuda_function f, const void *x, struct pl_cuda_view vx, void *y, struct pl_cuda_view vy)
{
    switch (f) {
    case PL_CUDA_RELU: return run<relu>(s, x, vx, y, vy);
    case PL_CUDA_SIGMOID: return run<sigmoid>(s, x, vx, y, vy);
    case PL_CUDA_TANH: return run<hyperbolic>(s, x, vx, y, vy);
    case PL_CUDA_GELU: return run<gaussian>(s, x, vx, y, vy);
    }
}

void pl_cuda_function_back(pl_cuda_stream s, enum pl_cuda_function f, const void *of, struct pl_cuda_view v, const void *dy,
                           struct pl_cuda_view vy, void *dx, struct pl_cuda_view vx)
{
    switch (f) {
    case PL_CUDA_RELU: return run_back<relu>(s, of, v, dy, vy, dx, vx);
    case PL_CUDA_SIGMOID: return run_back<sigmoid>(s, of, v, dy, vy, dx, vx);
    case PL_CUDA_TANH: return run_back<hyperbolic>(s, of, v, dy, vy, dx, vx);
    case PL_CUDA_GELU: return run_back<gaussian>(s, of, v, dy, vy, dx, vx);
    }
}

void pl_cuda_relu_mask(pl_cuda_stream s, const void *y, void *dy, struct pl_cuda_view vy)
{
    int64_t n = vy.n * pl_row_of(vy);
    PL_LAUNCH(backward_alike<relu>, pl_blocks(n), PL_THREADS, s, y, vy.bf16, dy, vy.bf16, dy, vy.bf16, n);
}

static __global__ void sum_of(pl_cuda_terms t, bool relu, void *y, bool y16, int64_t n)
{
    PL_EACH(i, n) {
        float sum = pl_get(t.x[0], t.bf16[0], i);
        for (int k = 1; k < t.count; k++)
            sum += pl_get(t.x[k], t.bf16[k], i);
        pl_put(y, y16, i, relu ? rectified(sum) : sum);
    }
}

void pl_cuda_sum(pl_cuda_stream s, struct pl_cuda_terms x, bool relu, void *y, struct pl_cuda_view vy)
{
    int64_t n = vy.n * pl_row_of(vy);
    PL_LAUNCH(sum_of, pl_blocks(n), PL_THREADS, s, x, relu, y, vy.bf16, n);
}

static __global__ void add_bias(void *y, pl_cuda_view v, const float *bias, bool relu, pl_order o, int64_t row)
{
    PL_EACH_ROW(i, v.n)
        PL_EACH(e, row) {
            pl_place p = pl_place_of(o, (uint32_t)e);
            int64_t at = pl_index(v, i, p.k, p.at);
            float sum = pl_get(y, v.bf16, at) + (bias ? bias[p.k] : 0.0f);
            pl_put(y, v.bf16, at, relu ? rectified(sum) : sum);
        }
}

void pl_cuda_bias(pl_cuda_stream s, void *y, struct pl_cuda_view v, const float *bias, bool relu)
{
    int64_t row = pl_row_of(v);
    PL_LAUNCH(add_bias, pl_blocks_of_rows(v.n, row), PL_THREADS, s, y, v, bias, relu, pl_order_of(v), row);
}
