/* dropout: Srivastava et al. 2014. The random bits are base/rng.c's, to the bit: Philox-4x32-10 (Salmon et al., SC'11),
 * keyed by seed and step, its counter naming the sample, the layer and four elements in canonical order. */
#include "backend/cuda/kernel.cuh"

struct words { uint32_t w[4]; };

PL_DEVICE words philox(words c, uint32_t k0, uint32_t k1)
{
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c.w[0], p1 = (uint64_t)0xCD9E8D57u * c.w[2];
        c = words{{(uint32_t)(p1 >> 32) ^ c.w[1] ^ k0, (uint32_t)p1, (uint32_t)(p0 >> 32) ^ c.w[3] ^ k1, (uint32_t)p0}};
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

PL_DEVICE uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

/* Bits of elements 4 q .. 4 q + 3 of sample i */
PL_DEVICE words bits_of(const pl_cuda_dropout &d, int64_t i, uint32_t q)
{
    uint64_t seed = d.pass->seed, step = d.pass->step_key, row = i < d.pass->rows ? (uint64_t)d.row_key[i] : 0;
    uint64_t key = step == 0 ? seed : mix(seed + 0x9e3779b97f4a7c15ull * mix(step));
    return philox(words{{q, (uint32_t)row, (uint32_t)(row >> 32), d.layer_key}}, (uint32_t)key, (uint32_t)(key >> 32));
}

struct tensors { const void *x; pl_cuda_view vx; void *y; pl_cuda_view vy; uint8_t *keep; };

PL_DEVICE void drop(const pl_cuda_dropout &d, const tensors &t, int64_t i, int64_t k, int64_t at, uint32_t bits)
{
    int64_t to = pl_index(t.vy, i, k, at);
    bool kept = bits >= d.least;
    t.keep[to] = kept;
    pl_put(t.y, t.vy.bf16, to, kept ? pl_get(t.x, t.vx.bf16, pl_index(t.vx, i, k, at)) * d.scale : 0.0f);
}

/* y canonical: four elements a thread, of the same four words. */
static __global__ void drop_fours(pl_cuda_dropout d, tensors t, pl_order o, int64_t row)
{
    PL_EACH_ROW(i, t.vy.n)
        PL_EACH(q, (row + 3) / 4) {
            words bits = bits_of(d, i, (uint32_t)q);
            for (int64_t e = 4 * q; e < 4 * q + 4 && e < row; e++) {
                pl_place p = pl_place_of(o, (uint32_t)e);
                drop(d, t, i, p.k, p.at, bits.w[e & 3]);
            }
        }
}

/* Channels last: neighbours in memory are far apart in canonical order, so each draws its own. */
static __global__ void drop_each(pl_cuda_dropout d, tensors t, pl_order o, int64_t row)
{
    int64_t plane = t.vy.h * t.vy.w;
    PL_EACH_ROW(i, t.vy.n)
        PL_EACH(e, row) {
            pl_place p = pl_place_of(o, (uint32_t)e);
            uint32_t canonical = (uint32_t)(p.k * plane + p.at);
            drop(d, t, i, p.k, p.at, bits_of(d, i, canonical / 4).w[canonical & 3]);
        }
}

void pl_cuda_dropout_forward(pl_cuda_stream s, struct pl_cuda_dropout d, const void *x, struct pl_cuda_view vx, void *y,
                             struct pl_cuda_view vy, uint8_t *keep)
{
    int64_t row = pl_row_of(vy);
    tensors t = {x, vx, y, vy, keep};
    if (pl_channels_last(vy) && vy.h * vy.w > 1)
        PL_LAUNCH(drop_each, pl_blocks_of_rows(vy.n, row), PL_THREADS, s, d, t, pl_order_of(vy), row);
    else
        PL_LAUNCH(drop_fours, pl_blocks_of_rows(vy.n, (row + 3) / 4), PL_THREADS, s, d, t,
                  pl_order{pl_divisor_of(vy.h * vy.w), false}, row);
}

static __global__ void pass_kept(float scale, const uint8_t *keep, const void *dy, pl_cuda_view vy, void *dx, pl_cuda_view vx,
                                 pl_order o, int64_t row)
{
    PL_EACH_ROW(i, vx.n)
        PL_EACH(e, row) {
            pl_place p = pl_place_of(o, (uint32_t)e);
            int64_t from = pl_index(vy, i, p.k, p.at);
            pl_put(dx, vx.bf16, pl_index(vx, i, p.k, p.at), keep[from] ? pl_get(dy, vy.bf16, from) * scale : 0.0f);
        }
}

void pl_cuda_dropout_backward(pl_cuda_stream s, float scale, const uint8_t *keep, const void *dy, struct pl_cuda_view vy,
                              void *dx, struct pl_cuda_view vx)
{
    int64_t row = pl_row_of(vx);
    PL_LAUNCH(pass_kept, pl_blocks_of_rows(vx.n, row), PL_THREADS, s, scale, keep, dy, vy, dx, vx, pl_order_of(vx), row);
}
