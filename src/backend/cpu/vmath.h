/* vmath: exp, log and tanh in float, written so that a loop over them becomes vector code without
 * -ffast-math: no branch, no call, no errno. Polynomials of Cephes (Moshier), within 2 ulp of the
 * exact value over the normal numbers; NaN stays NaN. */
#ifndef PL_BACKEND_CPU_VMATH_H
#define PL_BACKEND_CPU_VMATH_H

#include <stdint.h>
#include <string.h>

static inline int32_t pl_bits(float x) {
    int32_t i;
    memcpy(&i, &x, sizeof i);
    return i;
}

static inline float pl_float(int32_t i) {
    float x;
    memcpy(&x, &i, sizeof x);
    return x;
}

/* exp(x) for |x| up to 1e5, held between 1e-38 and 1e38. Limits are put on integers: of those on
 * floats gcc 12 makes branches, and then no vector code. */
static inline float pl_vexp(float x) {
    float shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the low bits become the integer */
    float n = shifted - 12582912.0f;
    float r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t e = pl_bits(shifted) - 0x4b400000;
    e = e < -126 ? -126 : e;
    e = e > 126 ? 126 : e;
    return p * pl_float((e + 127) * (1 << 23));
}

/* log(x) of a normal x > 0 */
static inline float pl_vlog(float x) {
    int32_t bits = pl_bits(x) - 0x3f3504f3; /* sqrt(1/2): the mantissa ends in [0.707, 1.414) */
    int32_t e = bits >> 23;
    float m = pl_float((bits & 0x007fffff) + 0x3f3504f3) - 1.0f;
    float n = (float)e;
    float p = 7.0376836292e-2f;
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    float z = m * m;
    float y = p * m * z;
    y = y - n * 2.12194440e-4f;
    y = y - 0.5f * z;
    return m + y + n * 0.693359375f;
}

/* mask (all ones or none) ? a : b; another thing gcc 12 must not see as a branch */
static inline float pl_select(int32_t mask, float a, float b) {
    return pl_float((pl_bits(a) & mask) | (pl_bits(b) & ~mask));
}

/* |x|, at most 87 */
static inline float pl_vabs87(float x) {
    int32_t a = pl_bits(x) & 0x7fffffff;
    return pl_float(a < 0x42ae0000 ? a : 0x42ae0000);
}

static inline int32_t pl_nan_mask(float x) {
    return (0x7f800000 - (pl_bits(x) & 0x7fffffff)) >> 31;
}

static inline float pl_vtanh(float x) {
    float a = pl_vabs87(x), e = pl_vexp(-2.0f * a);
    float big = (1.0f - e) / (1.0f + e);
    float z = a * a; /* below 0.625 a polynomial, as 1 - e cancels */
    float p = -5.70498872745e-3f;
    p = p * z + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    float y = pl_select((pl_bits(a) - 0x3f200000) >> 31, p * z * a + a, big);
    return pl_select(pl_nan_mask(x), x, pl_float(pl_bits(y) | (pl_bits(x) & INT32_MIN)));
}

static inline float pl_vsigmoid(float x) {
    float e = pl_vexp(-pl_vabs87(x)), near1 = 1.0f / (1.0f + e);
    return pl_select(pl_nan_mask(x), x, pl_select(pl_bits(x) >> 31, e, 1.0f) * near1);
}

/* Sums of so many, side by side, become vector code, one would not; sum[] is used up. */
enum { PL_SUMS = 16 };
static inline float pl_vtotal(float *sum) {
    for (int half = PL_SUMS / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++)
            sum[l] += sum[l + half];
    return sum[0];
}

/* The share of a standard normal distribution below x, off by at most 1e-7, and its density there: Hastings' approximation of the
 * error function (Abramowitz and Stegun 7.1.26). */
struct pl_vnormal {
    float below, density;
};
static inline struct pl_vnormal pl_vnormal(float x) {
    float a = pl_vabs87(x), e = pl_vexp(-0.5f * a * a), t = 1.0f / (1.0f + 0.231641888f * a);
    float p = 1.061405429f;
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    float beyond = 0.5f * p * t * e;
    return (struct pl_vnormal){pl_select(pl_bits(x) >> 31, beyond, 1.0f - beyond), 0.398942280f * e};
}

#endif
