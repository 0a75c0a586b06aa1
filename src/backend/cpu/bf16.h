/* bf16: the elements of activations that are float or bf16, the upper half of a float (`half` says which; a constant
 * where a loop is to become vectors). Stored values are rounded to nearest even; what is not a number stays none. */
#ifndef PL_CPU_BF16_H
#define PL_CPU_BF16_H

#include "backend/cpu/cpu.h"

#include <string.h>

/* A function of loops over bf16: only processors with AVX512-BF16 or AMX come here, and all of them have these. */
#if defined(__x86_64__)
#define PL_HALVES __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#else
#define PL_HALVES
#endif

/* Sixteen at once, for what the compiler does not make vectors of by itself; within PL_HALVES only. Not functions: how a
 * vector is handed over depends on the instruction set. */
typedef float pl_floats __attribute__((vector_size(16 * sizeof(float)), aligned(4), may_alias));
typedef uint32_t pl_words __attribute__((vector_size(16 * sizeof(uint32_t)), aligned(4), may_alias));
typedef uint16_t pl_halves __attribute__((vector_size(16 * sizeof(uint16_t)), aligned(2), may_alias));
#define PL_WIDEN(p) ((pl_floats)(__builtin_convertvector(*(const pl_halves *)(const void *)(p), pl_words) << 16))
#define PL_NAN_OR(v, bits) (((bits) & ~(pl_words)((v) != (v))) | (((pl_words)(v) >> 16 | 0x40) & (pl_words)((v) != (v))))
#define PL_ROUND(p, v) (*(pl_halves *)(void *)(p) = __builtin_convertvector(PL_NAN_OR(v, ((pl_words)(v) + 0x7fff + ((pl_words)(v) >> 16 & 1)) >> 16), pl_halves))

PL_WITHIN float pl_bf16_widen(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

PL_WITHIN uint16_t pl_bf16_round(float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, quiet = bits >> 16 | 0x40;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
}

PL_WITHIN float pl_element(const void *t, int64_t i, bool half) { return half ? pl_bf16_widen(((const uint16_t *)t)[i]) : ((const float *)t)[i]; }

PL_WITHIN void pl_set_element(void *t, int64_t i, bool half, float v) {
    if (half)
        ((uint16_t *)t)[i] = pl_bf16_round(v);
    else
        ((float *)t)[i] = v;
}

PL_WITHIN size_t pl_element_bytes(bool half) { return half ? sizeof(uint16_t) : sizeof(float); }
/* The tensor from its element i on. */
PL_WITHIN void *pl_from(const void *t, int64_t i, bool half) {
    return t == NULL ? NULL : (char *)(uintptr_t)t + i * (int64_t)pl_element_bytes(half);
}

#endif
