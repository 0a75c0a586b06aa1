/* channel: sums over samples and planes, one a channel, and what stands on them: batch normalisation (Ioffe and Szegedy,
 * ICML 2015) and the parameters' gradients of layer normalisation. Everything is added in double over float's exact products, so that
 * mean and variance come from one pass.
 * A channel's numbers are cut into slices, by its shape alone; a block adds up a slice, and another the slices, in a fixed
 * order. Canonical: neighbouring threads run along a plane. Channels last: they have neighbouring channels, 32 a block, as
 * the well-known channels-last kernels do, and several places of them at a time. */
#include "backend/cuda/kernel.cuh"

#include <math.h>

struct pair { double a, b; };
PL_DEVICE pair operator+(pair l, pair r) { return pair{l.a + r.a, l.b + r.b}; }

static const unsigned LANES = 32;
static const int64_t MOST_BLOCKS = 1024;

static int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t slices_of(const pl_cuda_view &v)
{
    bool last = pl_channels_last(v) || v.h * v.w == 1;
    int64_t columns = last ? (v.c + LANES - 1) / LANES : v.c, most = last ? (v.n * v.h * v.w + 127) / 128 : v.n;
    int64_t slices = least_of(most, MOST_BLOCKS / columns);
    return slices < 1 ? 1 : slices;
}

size_t pl_cuda_channel_scratch(struct pl_cuda_view v)
{
    pl_cuda_view turned = v; /* the other order may be asked for as well */
    turned.sc = 1, turned.sp = v.c > 1 ? v.c : 2;
    int64_t a = slices_of(v), b = slices_of(turned);
    return (size_t)(v.c * (a > b ? a : b)) * sizeof(pair);
}

/* What is added up: T::at(i, k, place) of [rows, c, plane]. */
struct plain {
    const void *u;
    pl_cuda_view vu;
    __device__ pair at(int64_t i, int64_t k, int64_t at) const { return pair{(double)pl_get(u, vu.bf16, pl_index(vu, i, k, at)), 0}; }
};
struct squares {
    const void *u;
    pl_cuda_view vu;
    __device__ pair at(int64_t i, int64_t k, int64_t at) const
    {
        double v = pl_get(u, vu.bf16, pl_index(vu, i, k, at));
        return pair{v, v * v};
    }
};
/* dy before the rectifier behind y, if there is one, and its product with x */
struct products {
    const void *x, *y, *dy; /* y NULL: no rectifier */
    pl_cuda_view vx, vy;
    __device__ double gradient(int64_t at) const { return y && !(pl_get(y, vy.bf16, at) > 0.0f) ? 0.0f : pl_get(dy, vy.bf16, at); }
    __device__ pair at(int64_t i, int64_t k, int64_t at) const
    {
        double g = gradient(pl_index(vy, i, k, at));
        return pair{g, g * (double)pl_get(x, vx.bf16, pl_index(vx, i, k, at))};
    }
};

PL_DEVICE int64_t rows_of(const pl_cuda_pass *pass, int64_t n) { return pass ? pass->rows : n; }

/* part[k, slice], blocks: channels in x, slices in y; for short planes several samples at a time */
template <class T>
static __global__ void planes(T t, pl_cuda_view v, const pl_cuda_pass *pass, int64_t slices, unsigned lanes, pair *part)
{
    int64_t rows = rows_of(pass, v.n), plane = v.h * v.w;
    unsigned width = lanes < blockDim.x ? lanes : blockDim.x, groups = blockDim.x / width;
    unsigned lane = threadIdx.x % width, group = threadIdx.x / width;
    for (int64_t k = blockIdx.x; k < v.c; k += gridDim.x)
        for (int64_t s = blockIdx.y; s < slices; s += gridDim.y) {
            pair sum = {0, 0};
            for (int64_t i = rows * s / slices + group; group < groups && i < rows * (s + 1) / slices; i += groups)
                for (int64_t at = lane; at < plane; at += width)
                    sum = sum + t.at(i, k, at);
            sum = pl_block_sum(sum);
            if (threadIdx.x == 0)
                part[k * slices + s] = sum;
        }
}

/* The same, blocks: LANES channels in x, slices in y */
template <class T>
static __global__ void columns(T t, pl_cuda_view v, const pl_cuda_pass *pass, int64_t slices, pl_divisor plane, pair *part)
{
    __shared__ pair sums[PL_THREADS / LANES][LANES];
    int64_t places = rows_of(pass, v.n) * (int64_t)plane.by;
    unsigned width = LANES < blockDim.x ? LANES : blockDim.x, groups = blockDim.x / width;
    unsigned lane = threadIdx.x % width, group = threadIdx.x / width;
    for (int64_t first = (int64_t)blockIdx.x * LANES; first < v.c; first += (int64_t)gridDim.x * LANES)
        for (int64_t s = blockIdx.y; s < slices; s += gridDim.y) {
            for (unsigned l = lane; group < groups && l < LANES; l += width) {
                pair sum = {0, 0};
                for (int64_t p = places * s / slices + group; first + l < v.c && p < places * (s + 1) / slices; p += groups) {
                    uint32_t i = pl_quotient((uint32_t)p, plane);
                    sum = sum + t.at(i, first + l, p - (int64_t)i * plane.by);
                }
                sums[group][l] = sum;
            }
            __syncthreads();
            PL_EACH_IN_BLOCK(l, LANES) {
                pair sum = sums[0][l];
                for (unsigned g = 1; g < groups; g++)
                    sum = sum + sums[g][l];
                if (first + l < v.c)
                    part[(first + l) * slices + s] = sum;
            }
            __syncthreads();
        }
}

static unsigned lanes_of(int64_t plane)
{
    unsigned lanes = 1;
    while (lanes < PL_THREADS && lanes < plane)
        lanes *= 2;
    return lanes;
}

/* Sums of t over v, whose order is the one to run in; returns the slices of part. */
template <class T> static int64_t add_up(pl_cuda_stream s, T t, const pl_cuda_view &v, const pl_cuda_pass *pass, pair *part)
{
    int64_t slices = slices_of(v), plane = v.h * v.w;
    if (pl_channels_last(v) || plane == 1)
        PL_LAUNCH(columns<T>, dim3((unsigned)((v.c + LANES - 1) / LANES), (unsigned)slices), PL_THREADS, s, t, v, pass, slices,
                  pl_divisor_of(plane), part);
    else
        PL_LAUNCH(planes<T>, dim3((unsigned)v.c, (unsigned)slices), PL_THREADS, s, t, v, pass, slices, lanes_of(plane), part);
    return slices;
}

/* All threads of the block: the sum of channel k. */
PL_DEVICE pair total_of(const pair *part, int64_t k, int64_t slices)
{
    pair sum = {0, 0};
    PL_EACH_IN_BLOCK(s, slices) sum = sum + part[k * slices + s];
    return pl_block_sum(sum);
}

PL_DEVICE void put(float *dp, int64_t k, double v, bool add)
{
    if (dp)
        dp[k] = add ? dp[k] + (float)v : (float)v;
}

static __global__ void finish_bias(const pair *part, int64_t channels, int64_t slices, bool add, float *db)
{
    for (int64_t k = blockIdx.x; k < channels; k += gridDim.x) {
        pair sum = total_of(part, k, slices);
        if (threadIdx.x == 0)
            put(db, k, sum.a, add);
    }
}

void pl_cuda_bias_back(pl_cuda_stream s, const void *dy, struct pl_cuda_view v, bool accumulate, float *db, void *scratch)
{
    pair *part = static_cast<pair *>(scratch);
    int64_t slices = add_up(s, plain{dy, v}, v, nullptr, part);
    PL_LAUNCH(finish_bias, dim3((unsigned)v.c), 64, s, part, v.c, slices, accumulate, db);
}

/* ---- batch normalisation ------------------------------------------------------------------------------------------------ */

/* Arrays in kept, [c] each: of the last forward pass, then factors of the loop over the elements. Variances are biased. */
struct kept { double *mean, *variance, *inverse, *a, *b, *c; };
static __host__ __device__ inline kept kept_in(double *at, int64_t n)
{
    return kept{at, at + n, at + 2 * n, at + 3 * n, at + 4 * n, at + 5 * n};
}

/* y = a (x - mean) + c */
static __global__ void statistics(pl_cuda_batchnorm b, const pair *part, int64_t slices)
{
    kept s = kept_in(b.kept, b.vy.c);
    double count = (double)(b.pass->rows * b.vy.h * b.vy.w);
    for (int64_t k = blockIdx.x; k < b.vy.c; k += gridDim.x) {
        bool own = b.train && count > 0;
        pair sum = own ? total_of(part, k, slices) : pair{0, 0};
        if (threadIdx.x != 0)
            continue;
        double mean = own ? sum.a / count : (double)b.mean[k];
        double variance = own ? sum.b / count - mean * mean : (double)b.variance[k];
        s.mean[k] = mean;
        s.variance[k] = variance < 0 ? 0 : variance;
        s.inverse[k] = 1 / sqrt(s.variance[k] + b.epsilon);
        s.a[k] = b.scale[k] * s.inverse[k];
        s.c[k] = b.shift[k];
    }
}

static __global__ void normalise(pl_cuda_batchnorm b, const void *x, void *y, pl_order o, int64_t row)
{
    kept s = kept_in(b.kept, b.vy.c);
    int64_t rows = b.pass->rows;
    PL_EACH_ROW(i, b.vy.n)
        PL_EACH(e, row) {
            pl_place p = pl_place_of(o, (uint32_t)e);
            float v = 0;
            if (i < rows)
                v = (float)(((double)pl_get(x, b.vx.bf16, pl_index(b.vx, i, p.k, p.at)) - s.mean[p.k]) * s.a[p.k] + s.c[p.k]);
            pl_put(y, b.vy.bf16, pl_index(b.vy, i, p.k, p.at), b.relu && v < 0.0f ? 0.0f : v);
        }
}

void pl_cuda_batchnorm_forward(pl_cuda_stream s, struct pl_cuda_batchnorm b, const void *x, void *y)
{
    pair *part = static_cast<pair *>(b.scratch);
    int64_t row = pl_row_of(b.vy), slices = b.train ? add_up(s, squares{x, b.vx}, b.vx, b.pass, part) : 0;
    PL_LAUNCH(statistics, dim3((unsigned)b.vy.c), 64, s, b, part, slices);
    PL_LAUNCH(normalise, pl_blocks_of_rows(b.vy.n, row), PL_THREADS, s, b, x, y, pl_order_of(b.vy), row);
}

struct gradients { float *dp[4]; bool add; };

/* The parameters' gradients, and dx = a (dy - c - b x). The running statistics get the sums of the batch's own. */
static __global__ void gradients_of(pl_cuda_batchnorm b, const pair *part, int64_t slices, gradients g)
{
    kept s = kept_in(b.kept, b.vy.c);
    double rows = (double)b.pass->rows, count = rows * (double)(b.vy.h * b.vy.w);
    for (int64_t k = blockIdx.x; k < b.vy.c; k += gridDim.x) {
        pair sum = total_of(part, k, slices);
        if (threadIdx.x != 0)
            continue;
        double centred = sum.b - s.mean[k] * sum.a; /* the sum of dy (x - mean) */
        bool own = b.train && count > 0;
        put(g.dp[0], k, centred * s.inverse[k], g.add);
        put(g.dp[1], k, sum.a, g.add);
        put(g.dp[2], k, rows * s.mean[k], g.add);
        put(g.dp[3], k, rows * s.variance[k] * (own && count > 1 ? count / (count - 1) : 1), g.add);
        s.a[k] = b.scale[k] * s.inverse[k];
        s.b[k] = own ? centred / count * s.inverse[k] * s.inverse[k] : 0;
        s.c[k] = own ? sum.a / count - s.b[k] * s.mean[k] : 0;
    }
}

/* In double: with few elements a channel dx is a small difference of large terms. */
static __global__ void differentiate(pl_cuda_batchnorm b, products t, void *dx, pl_order o, int64_t row)
{
    kept s = kept_in(b.kept, b.vy.c);
    int64_t rows = b.pass->rows;
    PL_EACH_ROW(i, b.vx.n)
        PL_EACH(e, row) {
            pl_place p = pl_place_of(o, (uint32_t)e);
            int64_t to = pl_index(b.vx, i, p.k, p.at);
            float v = 0;
            if (i < rows) {
                double g = t.gradient(pl_index(b.vy, i, p.k, p.at));
                v = (float)(s.a[p.k] * (g - s.c[p.k] - s.b[p.k] * (double)pl_get(t.x, b.vx.bf16, to)));
            }
            pl_put(dx, b.vx.bf16, to, v);
        }
}

void pl_cuda_batchnorm_backward(pl_cuda_stream s, struct pl_cuda_batchnorm b, const void *x, const void *y, const void *dy,
                                void *dx, float *const dp[4], bool accumulate)
{
    pair *part = static_cast<pair *>(b.scratch);
    products t = {x, b.relu ? y : nullptr, dy, b.vx, b.vy};
    int64_t row = pl_row_of(b.vx), slices = add_up(s, t, b.vy, b.pass, part);
    gradients g = {{dp[0], dp[1], dp[2], dp[3]}, accumulate};
    PL_LAUNCH(gradients_of, dim3((unsigned)b.vy.c), 64, s, b, part, slices, g);
    if (dx)
        PL_LAUNCH(differentiate, pl_blocks_of_rows(b.vx.n, row), PL_THREADS, s, b, t, dx, pl_order_of(b.vx), row);
}

/* ---- layer normalisation: columns are the channels ---------------------------------------------------------------------- */

/* dy, and its product with what x was normalised to */
struct normalised {
    pl_cuda_layernorm l;
    const void *x, *dy;
    __device__ pair at(int64_t i, int64_t k, int64_t) const
    {
        int64_t at = i * l.columns + k;
        double g = pl_get(dy, l.y16, at);
        return pair{g, g * (double)((pl_get(x, l.x16, at) - l.kept[2 * i]) * l.kept[2 * i + 1])};
    }
};

static pl_cuda_view table(int64_t rows, int64_t columns) { return pl_cuda_view{rows, columns, 1, 1, columns, 1, 1, false}; }

size_t pl_cuda_layernorm_scratch(int64_t rows, int64_t columns) { return pl_cuda_channel_scratch(table(rows, columns)); }

static __global__ void finish_scale(const pair *part, int64_t channels, int64_t slices, bool add, float *dscale, float *dshift)
{
    for (int64_t k = blockIdx.x; k < channels; k += gridDim.x) {
        pair sum = total_of(part, k, slices);
        if (threadIdx.x != 0)
            continue;
        put(dscale, k, sum.b, add);
        put(dshift, k, sum.a, add);
    }
}

void pl_cuda_layernorm_sums(pl_cuda_stream s, struct pl_cuda_layernorm l, const void *x, const void *dy, bool accumulate, float *dscale,
                            float *dshift, void *scratch)
{
    pair *part = static_cast<pair *>(scratch);
    int64_t slices = add_up(s, normalised{l, x, dy}, table(l.rows, l.columns), nullptr, part);
    PL_LAUNCH(finish_scale, dim3((unsigned)l.columns), 64, s, part, l.columns, slices, accumulate, dscale, dshift);
}
