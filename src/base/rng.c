/* Philox-4x32-10: Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3, SC'11.
 * Random numbers as a function of a key (the seed) and a counter (who asks): no state to carry over
 * ranks or restarts. counter[0] counts blocks of a stream; the other words name the stream. */
#include "base/base.h"

#include <math.h>

static void block(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

/* Spreads a 64-bit name over 64 bits (the finaliser of splitmix64). */
static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

struct pl_rng pl_rng_make(uint64_t seed, uint64_t a, uint64_t b, uint32_t c)
{
    /* seed and a make the key, b and c stand in the counter; all zero gives the published stream. */
    uint64_t key = a == 0 ? seed : mix(seed + 0x9e3779b97f4a7c15ull * mix(a));
    return (struct pl_rng){.key = {(uint32_t)key, (uint32_t)(key >> 32)},
                           .counter = {0, (uint32_t)b, (uint32_t)(b >> 32), c},
                           .used = 4};
}

uint32_t pl_rng_u32(struct pl_rng *r)
{
    if (r->used == 4) {
        block(r->counter, r->key, r->out);
        r->counter[0]++;
        r->used = 0;
    }
    return r->out[r->used++];
}

void pl_rng_skip(struct pl_rng *r, int64_t n)
{
    r->counter[0] = (uint32_t)(n / 4);
    for (int64_t i = n / 4 * 4; i < n; i++)
        pl_rng_u32(r);
}

double pl_rng_uniform(struct pl_rng *r)
{
    uint64_t high = pl_rng_u32(r) >> 5, low = pl_rng_u32(r) >> 6;
    return ((double)high * 67108864.0 + (double)low) / 9007199254740992.0; /* 53 bits */
}

/* Box and Muller 1958, both of a pair, in float: 130 million weights of VGG are drawn at a start. */
void pl_rng_normals(struct pl_rng *r, float *out, int64_t n)
{
    for (int64_t i = 0; i < n; i += 2) {
        float u = ((float)pl_rng_u32(r) + 1.0f) * 0x1p-32f, angle = (float)(pl_rng_u32(r) >> 8) * (6.2831853f * 0x1p-24f);
        float radius = sqrtf(-2.0f * logf(u));
        out[i] = radius * cosf(angle);
        if (i + 1 < n)
            out[i + 1] = radius * sinf(angle);
    }
}

uint64_t pl_rng_below(struct pl_rng *r, uint64_t bound)
{
    uint64_t limit = UINT64_MAX - UINT64_MAX % bound, x;
    do
        x = (uint64_t)pl_rng_u32(r) << 32 | pl_rng_u32(r);
    while (x >= limit);
    return x % bound;
}
