/* bf16: the upper half of an fp32, rounded to nearest even; half the bytes. Finite values stay finite: what would
 * round to infinity becomes the largest bf16. What is lost fits an fp32, so value + residual is kept to the bit.
 * Code: uint16 [n]. Every code is well formed. */
#include "exchange/compress/compress.h"

#include <string.h>

#define INFINITE 0x7f800000u /* the bits of an fp32; above them NaN */

static size_t bytes(int64_t n, double ratio)
{
    (void)ratio;
    return 2 * (size_t)n;
}

/* All ones where finite. Masks here, since two conditions on the same would keep the loop from becoming vectors. */
PL_WITHIN uint32_t finite_mask(uint32_t bits) { return 0u - ((bits & 0x7fffffff) < INFINITE); }

PL_WITHIN uint32_t round_half(uint32_t bits)
{
    uint32_t magnitude = bits & 0x7fffffff, sign = (bits & 0x80000000) >> 16, mask = finite_mask(bits);
    uint32_t rounded = (magnitude + 0x7fff + ((magnitude >> 16) & 1)) >> 16;
    uint32_t finite = rounded < 0x7f7f ? rounded : 0x7f7f;
    /* a NaN may have its payload in the lower half only: the quiet bit keeps it one */
    uint32_t special = (magnitude >> 16) | (uint32_t)(magnitude > INFINITE) << 6;
    return sign | (finite & mask) | (special & ~mask);
}

PL_WITHIN float widen(uint32_t half)
{
    uint32_t bits = half << 16;
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

PL_WITHIN void encode_range(const float *restrict value, float *restrict residual, int64_t n, char *restrict code)
{
    for (int64_t i = 0; i < n; i++) {
        float x = residual == NULL ? value[i] : value[i] + residual[i];
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        uint32_t half = round_half(bits);
        uint16_t stored = (uint16_t)half;
        memcpy(code + 2 * i, &stored, sizeof stored);
        if (residual == NULL)
            continue;
        float lost = x - widen(half);
        uint32_t lost_bits;
        memcpy(&lost_bits, &lost, sizeof lost);
        lost_bits &= finite_mask(bits);
        memcpy(&lost, &lost_bits, sizeof lost);
        residual[i] = lost;
    }
}

PL_CLONES
static void encode(const float *value, float *residual, int64_t n, double ratio, void *code, void *scratch)
{
    (void)ratio, (void)scratch;
    if (residual == NULL)
        encode_range(value, NULL, n, code);
    else
        encode_range(value, residual, n, code);
}

PL_WITHIN bool decode_range(const char *restrict code, int64_t n, float *restrict out, bool add)
{
    for (int64_t i = 0; i < n; i++) {
        uint16_t half;
        memcpy(&half, code + 2 * i, sizeof half);
        out[i] = add ? out[i] + widen(half) : widen(half);
    }
    return true;
}

PL_CLONES
static bool decode(const void *code, int64_t n, double ratio, bool add, float *out)
{
    (void)ratio;
    return add ? decode_range(code, n, out, true) : decode_range(code, n, out, false);
}

const struct pl_codec pl_codec_bf16 = {
    .name = "bf16",
    .bytes = bytes,
    .encode = encode,
    .decode = decode,
    .scratch_bytes = pl_codec_no_scratch,
};
