/* update: the optimizer's rules over slabs in device memory, all tensors in one launch ("multi-tensor apply", as in NVIDIA's
 * Apex): the slab is cut into chunks, a block finds the tensors that its chunk crosses and does each with its own multipliers.
 * Formulas and their order are those of optim/ (where the papers are named); compiled without contraction of products
 * and sums (nvcc -fmad=false) the bits are those of the cpu, but for the norms of lars, which are added in another order. */
#include "backend/cuda/kernel.cuh"

#include <math.h>

static const int64_t CHUNK = 2048;
static const int SLICES = 64; /* of a tensor, for its norm */

/* What the elements of one tensor have in common */
struct numbers {
    float lr, decay, scale, momentum, beta1, beta2, epsilon, rho;
    float rate, root; /* adam: both corrections of the bias */
};

/* Bias corrections by step, and the numbers as floats */
struct pass { pl_cuda_update u; double correction; float root; const float *trusts; };

PL_DEVICE numbers numbers_of(const pass &p, int t)
{
    const pl_cuda_update &u = p.u;
    const pl_cuda_tensor &tensor = u.tensors.at[t];
    numbers n = {};
    n.lr = (float)(u.lr * tensor.lr_mult);
    n.decay = (float)(u.weight_decay * tensor.decay_mult);
    n.scale = (float)(u.clip / u.samples);
    n.momentum = (float)u.momentum, n.beta1 = (float)u.beta1, n.beta2 = (float)u.beta2;
    n.epsilon = (float)u.epsilon, n.rho = (float)u.rho;
    n.rate = (float)(n.lr / p.correction);
    n.root = p.root;
    if (u.rule == PL_CUDA_LARS)
        n.rate = n.lr * p.trusts[t];
    return n;
}

/* w: the parameter before; returns the one after. a, b: state */
struct sgd {
    static __device__ float of(const numbers &n, float sum, float w, float *, float *)
    {
        float g = n.scale * sum + n.decay * w;
        return w - n.lr * g;
    }
};
struct momentum {
    static __device__ float of(const numbers &n, float sum, float w, float *v, float *)
    {
        float g = n.scale * sum + n.decay * w;
        *v = n.momentum * *v + g;
        return w - n.lr * *v;
    }
};
struct nesterov {
    static __device__ float of(const numbers &n, float sum, float w, float *v, float *)
    {
        float g = n.scale * sum + n.decay * w;
        *v = n.momentum * *v + g;
        return w - n.lr * (g + n.momentum * *v);
    }
};
struct adagrad {
    static __device__ float of(const numbers &n, float sum, float w, float *s, float *)
    {
        float g = n.scale * sum + n.decay * w;
        *s += g * g;
        return w - n.lr * g / (sqrtf(*s) + n.epsilon);
    }
};
struct adadelta {
    static __device__ float of(const numbers &n, float sum, float w, float *s, float *d)
    {
        float g = n.scale * sum + n.decay * w;
        *s = n.rho * *s + (1 - n.rho) * g * g;
        float delta = sqrtf(*d + n.epsilon) / sqrtf(*s + n.epsilon) * g;
        *d = n.rho * *d + (1 - n.rho) * delta * delta;
        return w - n.lr * delta;
    }
};
struct rmsprop {
    static __device__ float of(const numbers &n, float sum, float w, float *s, float *)
    {
        float g = n.scale * sum + n.decay * w;
        *s = n.rho * *s + (1 - n.rho) * g * g;
        return w - n.lr * g / (sqrtf(*s) + n.epsilon);
    }
};
PL_DEVICE float moments(const numbers &n, float sum, float w, float *m, float *v, float l2, float shrink)
{
    float g = n.scale * sum + l2 * w;
    *m = n.beta1 * *m + (1 - n.beta1) * g;
    *v = n.beta2 * *v + (1 - n.beta2) * g * g;
    return shrink * w - n.rate * *m / (sqrtf(*v) / n.root + n.epsilon);
}
struct adam {
    static __device__ float of(const numbers &n, float sum, float w, float *m, float *v) { return moments(n, sum, w, m, v, n.decay, 1); }
};
struct adamw {
    static __device__ float of(const numbers &n, float sum, float w, float *m, float *v)
    {
        return moments(n, sum, w, m, v, 0, 1 - n.lr * n.decay);
    }
};
struct lars {
    static __device__ float of(const numbers &n, float sum, float w, float *v, float *)
    {
        float g = n.scale * sum + n.decay * w;
        *v = n.momentum * *v + n.rate * g;
        return w - *v;
    }
};

/* The first tensor that ends behind element `at`, or their number */
PL_DEVICE int tensor_at(const pl_cuda_tensors &t, int64_t at)
{
    int low = 0, high = t.count;
    while (low < high) {
        int middle = (low + high) / 2;
        if (t.at[middle].offset + t.at[middle].elems > at)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

template <class Rule> PL_DEVICE void update_part(const pass &p, int t, int64_t begin, int64_t end)
{
    const pl_cuda_update &u = p.u;
    double keep = u.tensors.at[t].statistic;
    if (keep >= 0) {
        float m = (float)keep, rest = (float)((1 - keep) / u.samples);
        PL_EACH_IN_BLOCK(i, end - begin) u.to[begin + i] = m * u.from[begin + i] + rest * u.sum[begin + i];
        return;
    }
    numbers n = numbers_of(p, t);
    PL_EACH_IN_BLOCK(k, end - begin) {
        int64_t i = begin + k;
        float a = u.slot[0] ? u.slot[0][i] : 0, b = u.slot[1] ? u.slot[1][i] : 0;
        u.to[i] = Rule::of(n, u.sum[i], u.from[i], &a, &b);
        if (u.slot[0])
            u.slot[0][i] = a;
        if (u.slot[1])
            u.slot[1][i] = b;
    }
}

template <class Rule> static __global__ void update(pass p, int64_t begin, int64_t end)
{
    const pl_cuda_tensors &t = p.u.tensors;
    for (int64_t a = begin + blockIdx.x * CHUNK; a < end; a += gridDim.x * CHUNK) {
        int64_t b = a + CHUNK < end ? a + CHUNK : end;
        for (int k = tensor_at(t, a); k < t.count && t.at[k].offset < b; k++) {
            int64_t first = t.at[k].offset, last = first + t.at[k].elems;
            update_part<Rule>(p, k, first > a ? first : a, last < b ? last : b);
        }
    }
}

/* ---- norms ------------------------------------------------------------------------------------------------------------------- */

struct squares { double from, sum; };
PL_DEVICE squares operator+(squares l, squares r) { return squares{l.from + r.from, l.sum + r.sum}; }

size_t pl_cuda_norm_scratch(int tensors) { return (size_t)tensors * ((size_t)SLICES * sizeof(squares) + sizeof(float)); }

/* part[t, slice], blocks: slices in x, tensors in y; from NULL: of sum alone */
static __global__ void square_slices(pl_cuda_tensors t, const float *from, const float *sum, squares *part)
{
    PL_EACH_ROW(k, t.count)
        for (int s = (int)blockIdx.x; s < SLICES; s += (int)gridDim.x) {
            int64_t n = t.at[k].elems, begin = n * s / SLICES, end = n * (s + 1) / SLICES;
            squares total = {0, 0};
            PL_EACH_IN_BLOCK(i, end - begin) {
                int64_t at = t.at[k].offset + begin + i;
                double w = from ? from[at] : 0, g = sum[at];
                total = total + squares{w * w, g * g};
            }
            total = pl_block_sum(total);
            if (threadIdx.x == 0)
                part[k * SLICES + s] = total;
        }
}

static void square(pl_cuda_stream s, pl_cuda_tensors t, const float *from, const float *sum, squares *part)
{
    PL_LAUNCH(square_slices, dim3((unsigned)SLICES, (unsigned)(t.count < 65535 ? t.count : 65535)), PL_THREADS, s, t, from, sum, part);
}

PL_DEVICE squares total_of(const squares *part, int64_t t)
{
    squares total = {0, 0};
    for (int s = 0; s < SLICES; s++)
        total = total + part[t * SLICES + s];
    return total;
}

static __global__ void trust_ratios(pl_cuda_update u, const squares *part, float *trusts)
{
    PL_EACH(k, u.tensors.count) {
        float decay = (float)(u.weight_decay * u.tensors.at[k].decay_mult), scale = (float)(u.clip / u.samples);
        squares total = total_of(part, k);
        double w = sqrt(total.from), g = scale * sqrt(total.sum);
        trusts[k] = decay == 0 || w == 0 || g == 0 ? 1 : (float)(u.trust * w / (g + decay * w));
    }
}

static __global__ void add_squares(pl_cuda_tensors t, const squares *part, int64_t begin, int64_t end, double *out)
{
    double sum = 0;
    PL_EACH_IN_BLOCK(k, t.count) {
        const pl_cuda_tensor &tensor = t.at[k];
        if (tensor.statistic < 0 && tensor.offset >= begin && tensor.offset + tensor.elems <= end)
            sum += total_of(part, k).sum;
    }
    sum = pl_block_sum(sum);
    if (threadIdx.x == 0)
        *out = sum;
}

void pl_cuda_square_sum(pl_cuda_stream s, struct pl_cuda_tensors t, const float *sum, int64_t begin, int64_t end, void *scratch, double *out)
{
    squares *part = static_cast<squares *>(scratch);
    if (t.count > 0)
        square(s, t, nullptr, sum, part);
    PL_LAUNCH(add_squares, dim3(1), PL_THREADS, s, t, part, begin, end, out);
}

/* ---- the pass ------------------------------------------------------------------------------------------------------------------ */

template <class Rule> static void run(pl_cuda_stream s, const pass &p, int64_t begin, int64_t end)
{
    int64_t chunks = (end - begin + CHUNK - 1) / CHUNK;
    PL_LAUNCH(update<Rule>, pl_blocks(chunks * PL_THREADS), PL_THREADS, s, p, begin, end);
}

void pl_cuda_update_slabs(pl_cuda_stream s, const struct pl_cuda_update *u, int64_t begin, int64_t end)
{
    double step = (double)(u->step + 1);
    pass p = {*u, 1 - pow(u->beta1, step), (float)sqrt(1 - pow(u->beta2, step)), nullptr};
    if (begin >= end || u->tensors.count == 0)
        return;
    if (u->rule == PL_CUDA_LARS) {
        squares *part = static_cast<squares *>(u->scratch);
        float *trusts = reinterpret_cast<float *>(part + (int64_t)u->tensors.count * SLICES);
        square(s, u->tensors, u->from, u->sum, part);
        PL_LAUNCH(trust_ratios, pl_blocks(u->tensors.count), PL_THREADS, s, *u, part, trusts);
        p.trusts = trusts;
    }
    switch (u->rule) {
    case PL_CUDA_SGD: return run<sgd>(s, p, begin, end);
    case PL_CUDA_MOMENTUM: return run<momentum>(s, p, begin, end);
    case PL_CUDA_NESTEROV: return run<nesterov>(s, p, begin, end);
    case PL_CUDA_ADAGRAD: return run<adagrad>(s, p, begin, end);
    case PL_CUDA_ADADELTA: return run<adadelta>(s, p, begin, end);
    case PL_CUDA_RMSPROP: return run<rmsprop>(s, p, begin, end);
    case PL_CUDA_ADAM: return run<adam>(s, p, begin, end);
    case PL_CUDA_ADAMW: return run<adamw>(s, p, begin, end);
    case PL_CUDA_LARS: return run<lars>(s, p, begin, end);
    }
}
