/* pool: the largest value of a window (the first of equals; not a number wins), or the mean. A thread an output forward, and
 * a thread an input backward, which gathers from the windows that it lies in: no two threads add to the same place, so the
 * sums are the same in every run. */
#include "backend/cuda/kernel.cuh"

/* One axis: inputs, outputs, window, and the points that count in a mean */
struct axis { int32_t in, out, kernel, stride, begin, end; pl_divisor width; };
struct range { int32_t begin, end; };
struct geometry { axis h, w; bool count_pad; };

static axis axis_of(const pl_cuda_window &w, int k, int64_t in, int64_t out, int64_t width)
{
    return axis{(int32_t)in, (int32_t)out, (int32_t)w.kernel[k], (int32_t)w.stride[k], (int32_t)w.begin[k], (int32_t)w.end[k],
                pl_divisor_of(width)};
}

/* Divisors: of places in a plane as wide as vo, over which the threads run. */
static geometry geometry_of(const pl_cuda_window &w, const pl_cuda_view &vx, const pl_cuda_view &vy, const pl_cuda_view &vo)
{
    return geometry{axis_of(w, 0, vx.h, vy.h, vo.w), axis_of(w, 1, vx.w, vy.w, vo.w), w.count_pad};
}

/* The part of output o's window that lies inside the input */
PL_DEVICE range inside(const axis &a, int32_t o)
{
    int32_t begin = o * a.stride - a.begin, end = begin + a.kernel;
    return range{begin < 0 ? 0 : begin, end > a.in ? a.in : end};
}

/* The outputs whose windows hold input i */
PL_DEVICE range windows(const axis &a, int32_t i)
{
    int32_t at = i + a.begin, end = at / a.stride + 1;
    return range{at < a.kernel ? 0 : (at - a.kernel) / a.stride + 1, end > a.out ? a.out : end};
}

/* What a mean divides by along one axis; beyond the padding (of a count that was rounded up) nothing counts. */
PL_DEVICE int32_t points(const axis &a, int32_t o, bool count_pad)
{
    if (!count_pad) {
        range r = inside(a, o);
        return r.end - r.begin;
    }
    int32_t begin = o * a.stride - a.begin, end = begin + a.kernel;
    return (end > a.in + a.end ? a.in + a.end : end) - begin;
}

PL_DEVICE float share(const geometry &g, int32_t r, int32_t c)
{
    return (float)(points(g.h, r, g.count_pad) * points(g.w, c, g.count_pad));
}

struct spot { int32_t r, c; };
PL_DEVICE spot spot_of(const axis &w, uint32_t at)
{
    uint32_t r = pl_quotient(at, w.width);
    return spot{(int32_t)r, (int32_t)(at - r * w.width.by)};
}

static __global__ void largest(geometry g, const void *x, pl_cuda_view vx, void *y, pl_cuda_view vy, int32_t *from, pl_order o,
                               int64_t row)
{
    PL_EACH_ROW(i, vy.n)
        PL_EACH(e, row) {
            pl_place p = pl_place_of(o, (uint32_t)e);
            spot s = spot_of(g.w, p.at);
            range down = inside(g.h, s.r), across = inside(g.w, s.c);
            int64_t plane = pl_index(vx, i, p.k, 0);
            int32_t best = down.begin * g.w.in + across.begin;
            float most = pl_get(x, vx.bf16, plane + best * vx.sp);
            for (int32_t r = down.begin; r < down.end; r++)
                for (int32_t c = across.begin; c < across.end; c++) {
                    float v = pl_get(x, vx.bf16, plane + (r * g.w.in + c) * vx.sp);
                    if (v > most || (v != v && most == most)) {
                        most = v;
                        best = r * g.w.in + c;
                    }
                }
            int64_t to = pl_index(vy, i, p.k, p.at);
            pl_put(y, vy.bf16, to, most);
            if (from)
                from[to] = best;
        }
}

static __global__ void largest_back(geometry g, const void *dy, pl_cuda_view vy, const int32_t *from, void *dx, pl_cuda_view vx,
                                    pl_order o, int64_t row)
{
    PL_EACH_ROW(i, vx.n)
        PL_EACH(e, row) {
            pl_place p = pl_place_of(o, (uint32_t)e);
            spot s = spot_of(g.w, p.at);
            range down = windows(g.h, s.r), across = windows(g.w, s.c);
            float sum = 0;
            for (int32_t r = down.begin; r < down.end; r++)
                for (int32_t c = across.begin; c < across.end; c++) {
                    int64_t at = pl_index(vy, i, p.k, (int64_t)r * g.w.out + c);
                    if (from[at] == (int32_t)p.at)
                        sum += pl_get(dy, vy.bf16, at);
                }
            pl_put(dx, vx.bf16, pl_index(vx, i, p.k, p.at), sum);
        }
}

static __global__ void mean(geometry g, const void *x, pl_cuda_view vx, void *y, pl_cuda_view vy, pl_order o, int64_t row)
{
    PL_EACH_ROW(i, vy.n)
        PL_EACH(e, row) {
            pl_place p = pl_place_of(o, (uint32_t)e);
            spot s = spot_of(g.w, p.at);
            range down = inside(g.h, s.r), across = inside(g.w, s.c);
            int64_t plane = pl_index(vx, i, p.k, 0);
            float sum = 0;
            for (int32_t r = down.begin; r < down.end; r++)
                for (int32_t c = across.begin; c < across.end; c++)
                    sum += pl_get(x, vx.bf16, plane + (r * g.w.in + c) * vx.sp);
            pl_put(y, vy.bf16, pl_index(vy, i, p.k, p.at), sum / share(g, s.r, s.c));
        }
}

static __global__ void mean_back(geometry g, const void *dy, pl_cuda_view vy, void *dx, pl_cuda_view vx, pl_order o, int64_t row)
{
    PL_EACH_ROW(i, vx.n)
        PL_EACH(e, row) {
            pl_place p = pl_place_of(o, (uint32_t)e);
            spot s = spot_of(g.w, p.at);
            range down = windows(g.h, s.r), across = windows(g.w, s.c);
            float sum = 0;
            for (int32_t r = down.begin; r < down.end; r++)
                for (int32_t c = across.begin; c < across.end; c++)
                    sum += pl_get(dy, vy.bf16, pl_index(vy, i, p.k, (int64_t)r * g.w.out + c)) / share(g, r, c);
            pl_put(dx, vx.bf16, pl_index(vx, i, p.k, p.at), sum);
        }
}

void pl_cuda_pool_largest(pl_cuda_stream s, struct pl_cuda_window w, const void *x, struct pl_cuda_view vx, void *y,
                     struct pl_cuda_view vy, int32_t *from)
{
    int64_t row = pl_row_of(vy);
    PL_LAUNCH(largest, pl_blocks_of_rows(vy.n, row), PL_THREADS, s, geometry_of(w, vx, vy, vy), x, vx, y, vy, from, pl_order_of(vy), row);
}

void pl_cuda_pool_largest_back(pl_cuda_stream s, struct pl_cuda_window w, const void *dy, struct pl_cuda_view vy, const int32_t *from,
                          void *dx, struct pl_cuda_view vx)
{
    int64_t row = pl_row_of(vx);
    PL_LAUNCH(largest_back, pl_blocks_of_rows(vx.n, row), PL_THREADS, s, geometry_of(w, vx, vy, vx), dy, vy, from, dx, vx,
              pl_order_of(vx), row);
}

void pl_cuda_pool_mean(pl_cuda_stream s, struct pl_cuda_window w, const void *x, struct pl_cuda_view vx, void *y, struct pl_cuda_view vy)
{
    int64_t row = pl_row_of(vy);
    PL_LAUNCH(mean, pl_blocks_of_rows(vy.n, row), PL_THREADS, s, geometry_of(w, vx, vy, vy), x, vx, y, vy, pl_order_of(vy), row);
}

void pl_cuda_pool_mean_back(pl_cuda_stream s, struct pl_cuda_window w, const void *dy, struct pl_cuda_view vy, void *dx,
                          struct pl_cuda_view vx)
{
    int64_t row = pl_row_of(vx);
    PL_LAUNCH(mean_back, pl_blocks_of_rows(vx.n, row), PL_THREADS, s, geometry_of(w, vx, vy, vx), dy, vy, dx, vx, pl_order_of(vx), row);
}
