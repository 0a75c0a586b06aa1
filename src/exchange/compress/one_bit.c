/* one_bit: Seide et al., 1-Bit Stochastic Gradient Descent, Interspeech 2014. A block of 64 elements becomes a bit
 * each and two values: the mean of its negative elements and that of the others. (Longer blocks save little more and
 * mix layers of unlike size: with 512 a small network diverged that learns with 64.) The last block may be short.
 * Code, a block after the other: fp32 low, fp32 high, uint32 word[ceil(elements / 32)], the first element in the
 * lowest bit, set where the element is not negative; bits past the end are 0. */
#include "exchange/compress/compress.h"

#include <float.h>
#include <string.h>

enum { BLOCK = 64, HEAD = 2 * sizeof(float), WHOLE = HEAD + BLOCK / 8 };

#define BITS4(i) 1u << (i), 2u << (i), 4u << (i), 8u << (i)
static const uint32_t place[32] = {BITS4(0), BITS4(4), BITS4(8), BITS4(12), BITS4(16), BITS4(20), BITS4(24), BITS4(28)};

struct block { /* decoded but for its bits */
    float low, high;
    uint32_t word[BLOCK / 32];
};

static size_t words_of(int64_t n) { return ((size_t)n + 31) / 32; }

static size_t bytes(int64_t n, double ratio)
{
    (void)ratio;
    int64_t rest = n % BLOCK;
    return (size_t)(n / BLOCK) * WHOLE + (rest > 0 ? HEAD + words_of(rest) * sizeof(uint32_t) : 0);
}

static bool is_finite(float v) { return v >= -FLT_MAX && v <= FLT_MAX; }

/* Where a sum in fp32 is not finite: either an element is not, or only the sum has left the range of fp32. */
static __attribute__((noinline)) void wide_means(const float *x, int n, struct block *b)
{
    double low = 0, high = 0;
    int highs = 0;
    for (int i = 0; i < n; i++) {
        bool up = x[i] >= 0.0f;
        highs += up;
        high += up ? (double)x[i] : 0.0;
        low += up ? 0.0 : (double)x[i];
    }
    b->high = highs > 0 ? (float)(high / highs) : 0.0f;
    b->low = highs < n ? (float)(low / (n - highs)) : 0.0f;
}

typedef float vec __attribute__((vector_size(32)));
typedef int32_t mask __attribute__((vector_size(32)));
enum { LANES = 8, VECS = 32 / LANES }; /* VECS vectors make a word of bits */

/* Bits and sums of x [BLOCK], zeros from n on. Lane by lane, whatever the vectors of the CPU, so that all add in the
 * same order. */
PL_WITHIN void scan(const float *x, uint32_t *word, float *low, float *high)
{
    vec up[2] = {{0}}, down[2] = {{0}}; /* two each: an addition does not wait for the one before */
    mask at[VECS];
    memcpy(at, place, sizeof at);
    for (int w = 0; w < BLOCK / 32; w++) {
        mask bits = {0};
        for (int j = 0; j < VECS; j++) {
            vec v;
            memcpy(&v, x + w * 32 + j * LANES, sizeof v);
            mask set = v >= 0.0f;
            bits |= set & at[j];
            up[j % 2] += (vec)((mask)v & set);
            down[j % 2] += (vec)((mask)v & ~set); /* NaN too */
        }
        word[w] = 0;
        for (int l = 0; l < LANES; l++)
            word[w] |= (uint32_t)bits[l];
    }
    up[0] += up[1];
    down[0] += down[1];
    *low = *high = 0;
    for (int l = 0; l < LANES; l++) {
        *low += down[0][l];
        *high += up[0][l];
    }
}

PL_WITHIN void make_block(const float *x, int n, struct block *b)
{
    float low, high;
    scan(x, b->word, &low, &high);
    if (n % 32 != 0)
        b->word[n / 32] &= place[n % 32] - 1;
    int highs = 0;
    for (size_t w = 0; w < words_of(n); w++)
        highs += __builtin_popcount(b->word[w]);
    b->low = highs < n ? low / (float)(n - highs) : 0.0f;
    b->high = highs > 0 ? high / (float)highs : 0.0f;
    if (!is_finite(low) || !is_finite(high))
        wide_means(x, n, b);
}

PL_WITHIN void encode_block(const float *restrict value, float *restrict residual, int n, char *restrict code)
{
    float x[BLOCK];
    struct block b;
    if (n < BLOCK)
        memset(x, 0, sizeof x);
    for (int i = 0; i < n; i++)
        x[i] = residual == NULL ? value[i] : value[i] + residual[i];
    make_block(x, n, &b);
    memcpy(code, &b.low, sizeof b.low);
    memcpy(code + sizeof b.low, &b.high, sizeof b.high);
    memcpy(code + HEAD, b.word, words_of(n) * sizeof(uint32_t));
    if (residual == NULL)
        return;
    float low = b.low, high = b.high;
    for (int i = 0; i < n; i++)
        residual[i] = x[i] - (x[i] >= 0.0f ? high : low);
    if (!is_finite(low) || !is_finite(high))
        for (int i = 0; i < n; i++)
            residual[i] = is_finite(residual[i]) ? residual[i] : 0.0f;
}

PL_CLONES
static void encode(const float *value, float *residual, int64_t n, double ratio, void *code, void *scratch)
{
    (void)ratio, (void)scratch;
    char *to = code;
    int64_t i = 0;
    for (; i + BLOCK <= n; i += BLOCK, to += WHOLE)
        encode_block(value + i, residual == NULL ? NULL : residual + i, BLOCK, to);
    if (i < n)
        encode_block(value + i, residual == NULL ? NULL : residual + i, (int)(n - i), to);
}

/* false: no encoder writes this. The means may be NaN. */
PL_WITHIN bool read_block(const char *code, int n, struct block *b)
{
    memcpy(&b->low, code, sizeof b->low);
    memcpy(&b->high, code + sizeof b->low, sizeof b->high);
    memcpy(b->word, code + HEAD, words_of(n) * sizeof(uint32_t));
    bool clean = n % 32 == 0 || (b->word[n / 32] & ~(place[n % 32] - 1)) == 0;
    return clean && !(b->low > 0.0f) && !(b->high < 0.0f);
}

PL_WITHIN void spread_block(const struct block *b, int n, float *restrict out, bool add)
{
    float low = b->low, high = b->high;
    for (int w = 0; w < n / 32; w++) {
        uint32_t bits = b->word[w];
        for (int i = 0; i < 32; i++) {
            float v = bits & place[i] ? high : low;
            out[w * 32 + i] = add ? out[w * 32 + i] + v : v;
        }
    }
    for (int i = n & ~31; i < n; i++) {
        float v = b->word[i / 32] & place[i % 32] ? high : low;
        out[i] = add ? out[i] + v : v;
    }
}

PL_WITHIN bool decode_range(const char *code, int64_t n, float *out, bool add)
{
    struct block b;
    int64_t i = 0;
    for (; i + BLOCK <= n; i += BLOCK, code += WHOLE) {
        if (!read_block(code, BLOCK, &b))
            return false;
        spread_block(&b, BLOCK, out + i, add);
    }
    if (i == n)
        return true;
    if (!read_block(code, (int)(n - i), &b))
        return false;
    spread_block(&b, (int)(n - i), out + i, add);
    return true;
}

PL_CLONES
static bool decode(const void *code, int64_t n, double ratio, bool add, float *out)
{
    (void)ratio;
    return add ? decode_range(code, n, out, true) : decode_range(code, n, out, false);
}

const struct pl_codec pl_codec_one_bit = {
    .name = "one_bit",
    .bytes = bytes,
    .encode = encode,
    .decode = decode,
    .scratch_bytes = pl_codec_no_scratch,
};
