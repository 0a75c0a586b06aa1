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

/* Vectors of them, for what the compiler does not make vectors of by itself. vec, words, halves: vectors of as many float,
 * uint32_t and uint16_t (PL_HALF_VECTOR). Not functions: how a vector is handed over depends on the instruction set. */
#define PL_HALF_VECTOR(type, lanes) __attribute__((vector_size((lanes) * sizeof(type)), aligned(sizeof(type)), may_alias))
#define PL_WIDEN(p, vec, words, halves) ((vec)(__builtin_convertvector(*(const halves *)(const void *)(p), words) << 16))
#define PL_NEAREST(v, words) (((words)(v) + 0x7fff + ((words)(v) >> 16 & 1)) >> 16)
#define PL_NEAREST_OR_NAN(v, words) ((PL_NEAREST(v, words) & ~(words)((v) != (v))) | (((words)(v) >> 16 | 0x40) & (words)((v) != (v))))
#define PL_ROUND(p, v, words, halves) (*(halves *)(void *)(p) = __builtin_convertvector(PL_NEAREST_OR_NAN(v, words), halves))

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
