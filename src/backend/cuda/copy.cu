/* copy: tensors from one order into another, with zeros around them or without. Where one side has its channels last and
 * the other its planes, tiles of 32 x 32 pass through shared memory, so that both sides are read and written in lines. */
#include "backend/cuda/kernel.cuh"

PL_DEVICE void put(void *y, bool bf16, int64_t at, float v, bool add) { pl_put(y, bf16, at, add ? pl_get(y, bf16, at) + v : v); }

static __global__ void copy(const void *x, pl_cuda_view vx, void *y, pl_cuda_view vy, bool add, pl_order o, int64_t row)
{
    PL_EACH_ROW(i, vy.n)
        PL_EACH(e, row) {
            pl_place p = pl_place_of(o, (uint32_t)e);
            put(y, vy.bf16, pl_index(vy, i, p.k, p.at), pl_get(x, vx.bf16, pl_index(vx, i, p.k, p.at)), add);
        }
}

enum { TILE = 32 };

/* Blocks: tiles of a sample in x, samples in y. last: x has its channels last, otherwise y. */
static __global__ void transpose(const void *x, pl_cuda_view vx, void *y, pl_cuda_view vy, bool last, bool add)
{
    __shared__ float tile[TILE][TILE + 1]; /* [channel][place], a column more for the banks */
    int64_t plane = vx.h * vx.w, across = (plane + TILE - 1) / TILE, tiles = across * ((vx.c + TILE - 1) / TILE);
    PL_EACH_ROW(i, vy.n)
        for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
            int64_t k0 = t / across * TILE, at0 = t % across * TILE;
            PL_EACH_IN_BLOCK(e, TILE * TILE) {
                int64_t k = last ? e % TILE : e / TILE, at = last ? e / TILE : e % TILE;
                if (k0 + k < vx.c && at0 + at < plane)
                    tile[k][at] = pl_get(x, vx.bf16, pl_index(vx, i, k0 + k, at0 + at));
            }
            __syncthreads();
            PL_EACH_IN_BLOCK(e, TILE * TILE) {
                int64_t k = last ? e / TILE : e % TILE, at = last ? e % TILE : e / TILE;
                if (k0 + k < vx.c && at0 + at < plane)
                    put(y, vy.bf16, pl_index(vy, i, k0 + k, at0 + at), tile[k][at], add);
            }
            __syncthreads();
        }
}

void pl_cuda_copy(pl_cuda_stream s, const void *x, struct pl_cuda_view vx, void *y, struct pl_cuda_view vy, bool add)
{
    int64_t row = pl_row_of(vy), plane = vy.h * vy.w;
    bool last = pl_channels_last(vx);
    if (last != pl_channels_last(vy) && vx.c > 1 && plane > 1) {
        dim3 blocks = pl_blocks_of_rows(vy.n, PL_THREADS * ((plane + TILE - 1) / TILE) * ((vx.c + TILE - 1) / TILE));
        PL_LAUNCH(transpose, blocks, PL_THREADS, s, x, vx, y, vy, last, add);
    } else {
        PL_LAUNCH(copy, pl_blocks_of_rows(vy.n, row), PL_THREADS, s, x, vx, y, vy, add, pl_order_of(vy), row);
    }
}

static struct pl_cuda_view weights(const pl_cuda_weights &w, bool last, bool bf16)
{
    return pl_cuda_view{w.o, w.c, w.taps, 1, w.c * w.taps, last ? 1 : w.taps, last ? w.c : 1, bf16};
}

void pl_cuda_weights_lay(pl_cuda_stream s, struct pl_cuda_weights how, const float *w, void *laid)
{
    pl_cuda_copy(s, w, weights(how, false, false), laid, weights(how, how.last, how.bf16), false);
}

void pl_cuda_weights_back(pl_cuda_stream s, struct pl_cuda_weights how, const void *laid, float *w, bool add)
{
    pl_cuda_copy(s, laid, weights(how, how.last, how.bf16), w, weights(how, false, false), add);
}

/* y(r, c) = x(r + down, c + right), 0 outside of x */
static __global__ void shift(const void *x, pl_cuda_view vx, int64_t down, int64_t right, void *y, pl_cuda_view vy, pl_order o,
                             pl_divisor width, int64_t row)
{
    PL_EACH_ROW(i, vy.n)
        PL_EACH(e, row) {
            pl_place p = pl_place_of(o, (uint32_t)e);
            uint32_t line = pl_quotient(p.at, width);
            int64_t r = line + down, c = p.at - line * width.by + right;
            bool inside = r >= 0 && r < vx.h && c >= 0 && c < vx.w;
            pl_put(y, vy.bf16, pl_index(vy, i, p.k, p.at), inside ? pl_get(x, vx.bf16, pl_index(vx, i, p.k, r * vx.w + c)) : 0.0f);
        }
}

static void run_shift(pl_cuda_stream s, const void *x, const pl_cuda_view &vx, int64_t down, int64_t right, void *y, const pl_cuda_view &vy)
{
    int64_t row = pl_row_of(vy);
    PL_LAUNCH(shift, pl_blocks_of_rows(vy.n, row), PL_THREADS, s, x, vx, down, right, y, vy, pl_order_of(vy), pl_divisor_of(vy.w), row);
}

void pl_cuda_pad(pl_cuda_stream s, const void *x, struct pl_cuda_view vx, int64_t top, int64_t left, void *y, struct pl_cuda_view vy)
{
    run_shift(s, x, vx, -top, -left, y, vy);
}

void pl_cuda_crop(pl_cuda_stream s, const void *x, struct pl_cuda_view vx, int64_t top, int64_t left, void *y, struct pl_cuda_view vy)
{
    run_shift(s, x, vx, top, left, y, vy);
}
