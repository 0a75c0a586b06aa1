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

template <class F> static __global__ void forward_alike(const float *x, float *y, int64_t n)
{
    PL_EACH(i, n) y[i] = F::of(x[i]);
}

template <class F> static __global__ void forward(const float *x, pl_cuda_view vx, float *y, pl_cuda_view vy, pl_order o, int64_t row)
{
    PL_EACH_ROW(i, vy.n)
        PL_EACH(e, row) {
            pl_place p = pl_place_of(o, (uint32_t)e);
            y[pl_index(vy, i, p.k, p.at)] = F::of(x[pl_index(vx, i, p.k, p.at)]);
        }
}

template <class F> static __global__ void backward_alike(const float *y, const float *dy, float *dx, int64_t n)
{
    PL_EACH(i, n) dx[i] = F::back(y[i], dy[i]);
}

template <class F>
static __global__ void backward(const float *y, const float *dy, pl_cuda_view vy, float *dx, pl_cuda_view vx, pl_order o, int64_t row)
{
    PL_EACH_ROW(i, vx.n)
        PL_EACH(e, row) {
            pl_place p = pl_place_of(o, (uint32_t)e);
            int64_t at = pl_index(vy, i, p.k, p.at);
            dx[pl_index(vx, i, p.k, p.at)] = F::back(y[at], dy[at]);
        }
}

template <class F> static void run(pl_cuda_stream s, const float *x, pl_cuda_view vx, float *y, pl_cuda_view vy)
{
    int64_t row = pl_row_of(vy), n = vy.n * row;
    if (pl_alike(vx, vy))
        PL_LAUNCH(forward_alike<F>, pl_blocks(n), PL_THREADS, s, x, y, n);
    else
        PL_LAUNCH(forward<F>, pl_blocks_of_rows(vy.n, row), PL_THREADS, s, x, vx, y, vy, pl_order_of(vy), row);
}

template <class F>
static void run_back(pl_cuda_stream s, const float *y, const float *dy, pl_cuda_view vy, float *dx, pl_cuda_view vx)
{
    int64_t row = pl_row_of(vx), n = vx.n * row;
    if (pl_alike(vx, vy))
        PL_LAUNCH(backward_alike<F>, pl_blocks(n), PL_THREADS, s, y, dy, dx, n);
    else
        PL_LAUNCH(backward<F>, pl_blocks_of_rows(vx.n, row), PL_THREADS, s, y, dy, vy, dx, vx, pl_order_of(vx), row);
}

void pl_cuda_function(pl_cuda_stream s, enum pl_cuda_function f, const float *x, struct pl_cuda_view vx, float *y, struct pl_cuda_view vy)
{
    switch (f) {
    case PL_CUDA_RELU: return run<relu>(s, x, vx, y, vy);
    case PL_CUDA_SIGMOID: return run<sigmoid>(s, x, vx, y, vy);
    case PL_CUDA_TANH: return run<hyperbolic>(s, x, vx, y, vy);
    }
}

void pl_cuda_function_back(pl_cuda_stream s, enum pl_cuda_function f, const float *y, const float *dy, struct pl_cuda_view vy,
                           float *dx, struct pl_cuda_view vx)
{
    switch (f) {
    case PL_CUDA_RELU: return run_back<relu>(s, y, dy, vy, dx, vx);
    case PL_CUDA_SIGMOID: return run_back<sigmoid>(s, y, dy, vy, dx, vx);
    case PL_CUDA_TANH: return run_back<hyperbolic>(s, y, dy, vy, dx, vx);
    }
}

void pl_cuda_relu_mask(pl_cuda_stream s, const float *y, float *dy, int64_t n)
{
    PL_LAUNCH(backward_alike<relu>, pl_blocks(n), PL_THREADS, s, y, dy, dy, n);
}

static __global__ void sum_of(pl_cuda_terms t, bool relu, float *y, int64_t n)
{
    PL_EACH(i, n) {
        float sum = t.x[0][i];
        for (int k = 1; k < t.count; k++)
            sum += t.x[k][i];
        y[i] = relu ? rectified(sum) : sum;
    }
}

void pl_cuda_sum(pl_cuda_stream s, struct pl_cuda_terms x, bool relu, float *y, int64_t n)
{
    PL_LAUNCH(sum_of, pl_blocks(n), PL_THREADS, s, x, relu, y, n);
}

static __global__ void add_bias(float *y, pl_cuda_view v, const float *bias, bool relu, pl_order o, int64_t row)
{
    PL_EACH_ROW(i, v.n)
        PL_EACH(e, row) {
            pl_place p = pl_place_of(o, (uint32_t)e);
            int64_t at = pl_index(v, i, p.k, p.at);
            float sum = bias ? y[at] + bias[p.k] : y[at];
            y[at] = relu ? rectified(sum) : sum;
        }
}

void pl_cuda_bias(pl_cuda_stream s, float *y, struct pl_cuda_view v, const float *bias, bool relu)
{
    int64_t row = pl_row_of(v);
    PL_LAUNCH(add_bias, pl_blocks_of_rows(v.n, row), PL_THREADS, s, y, v, bias, relu, pl_order_of(v), row);
}
