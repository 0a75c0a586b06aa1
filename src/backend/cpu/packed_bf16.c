/* packed_bf16: products by a packed factor with bf16 factors and float sums, by the instruction of
 * AVX512-BF16 that multiplies pairs. Tiles of six rows by two vectors of columns, as in kernel.h. */
#include "backend/cpu/packed.h"

#if defined(__x86_64__)
#include "backend/cpu/bf16.h"

#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))
enum { ROWS = 6, COLUMNS = 32 };

/* One pair of depths of a panel; high: NULL: 0. */
PL_HALVES
static inline __attribute__((always_inline)) void pack_pairs(const float *low, const float *high, int64_t next, int64_t there, uint32_t *to) {
    for (int64_t c = 0; c < there; c++)
        to[c] = pl_bf16_round(low[c * next]);
    for (int64_t c = 0; high != NULL && c < there; c++)
        to[c] |= (uint32_t)pl_bf16_round(high[c * next]) << 16;
    for (int64_t c = there; c < COLUMNS; c++)
        to[c] = 0;
}

/* Panels [begin, end) as [panel, pair of depths, COLUMNS, 2]; what is beyond the last depth or column is 0. */
PL_HALVES
static void pack(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct pl_cpu_packing *p = arg;
    int64_t depth = up(p->depth, 2);
    for (int64_t panel = begin; panel < end; panel++) {
        int64_t first = panel * COLUMNS, there = least(COLUMNS, p->columns - first);
        uint32_t *to = (uint32_t *)(void *)p->packed + first * depth / 2;
        for (int64_t d = 0; d < depth; d += 2, to += COLUMNS) {
            const float *low = p->from + d * p->next_depth + first * p->next_column, *high = d + 1 < p->depth ? low + p->next_depth : NULL;
            if (p->next_column == 1)
                pack_pairs(low, high, 1, there, to);
            else
                pack_pairs(low, high, p->next_column, there, to);
        }
    }
}

struct tile {
    const uint16_t *a, *b;
    float *c;
    int64_t lda, ldc, pairs;
    __mmask16 left, right; /* columns that there are */
    bool add;
};

/* rows: a constant */
TARGET
static inline __attribute__((always_inline)) void multiply_rows(const struct tile *t, int rows) {
    __m512 left[ROWS], right[ROWS];
    for (int i = 0; i < rows; i++) {
        left[i] = t->add ? _mm512_maskz_loadu_ps(t->left, t->c + i * t->ldc) : _mm512_setzero_ps();
        right[i] = t->add ? _mm512_maskz_loadu_ps(t->right, t->c + i * t->ldc + COLUMNS / 2) : _mm512_setzero_ps();
    }
    const uint16_t *b = t->b;
    for (int64_t d = 0; d < t->pairs; d++, b += 2 * COLUMNS) {
        __m512bh l = (__m512bh)_mm512_loadu_si512(b), r = (__m512bh)_mm512_loadu_si512(b + COLUMNS);
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            int32_t pair;
            __builtin_memcpy(&pair, t->a + i * t->lda + 2 * d, sizeof pair);
            __m512bh one = (__m512bh)_mm512_set1_epi32(pair);
            left[i] = _mm512_dpbf16_ps(left[i], one, l);
            right[i] = _mm512_dpbf16_ps(right[i], one, r);
        }
    }
    for (int i = 0; i < rows; i++) {
        _mm512_mask_storeu_ps(t->c + i * t->ldc, t->left, left[i]);
        _mm512_mask_storeu_ps(t->c + i * t->ldc + COLUMNS / 2, t->right, right[i]);
    }
}

TARGET
static void multiply_tile(const struct tile *t, int64_t rows) {
    switch (rows) {
    case 1: multiply_rows(t, 1); break;
    case 2: multiply_rows(t, 2); break;
    case 3: multiply_rows(t, 3); break;
    case 4: multiply_rows(t, 4); break;
    case 5: multiply_rows(t, 5); break;
    default: multiply_rows(t, ROWS); break;
    }
}

static __mmask16 columns_of(int64_t n) { return n >= 16 ? 0xffff : n > 0 ? (__mmask16)((1u << n) - 1) : 0; }

TARGET
static void multiply(const struct pl_cpu_packed_product *s) {
    for (int64_t c = 0; c < s->columns; c += COLUMNS)
        for (int64_t r = 0; r < s->rows; r += ROWS) {
            struct tile t = {.a = (const uint16_t *)s->a + r * s->lda, .b = (const uint16_t *)s->b + c / COLUMNS * s->panel, .c = s->c + r * s->ldc + c,
                             .lda = s->lda, .ldc = s->ldc, .pairs = up(s->depth, 2) / 2, .left = columns_of(s->columns - c),
                             .right = columns_of(s->columns - c - COLUMNS / 2), .add = s->add};
            multiply_tile(&t, s->rows - r);
        }
}

static const struct pl_cpu_packed products = {.pack = pack, .multiply = multiply, .columns = COLUMNS, .half = true};

const struct pl_cpu_packed *pl_cpu_packed_bf16(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") ? &products : NULL;
}
#else
const struct pl_cpu_packed *pl_cpu_packed_bf16(void) { return NULL; }
#endif
