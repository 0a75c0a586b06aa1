/* top_k: the elements of largest magnitude, the rest waits in the residual until it has grown (Strom, Interspeech
 * 2015; Aji & Heafield, EMNLP 2017; Lin et al., Deep Gradient Compression, ICLR 2018). Of n elements exactly
 * k = max(1, ceil(ratio n)) are sent; of equal magnitudes the first ones.
 * The k-th magnitude is found by radix: of non-negative floats the bits, read as integers, have the same order.
 * 11, 10 and 10 bits, each time only among those that share the bits before: O(n) in the worst case too, and no
 * pivot to choose.
 * Code: uint32 index[k], ascending, fp32 value[k]. */
#include "exchange/compress/compress.h"

#include <math.h>
#include <string.h>

enum { BINS = 2048, TABLES = 4, GROUP = 32 };

struct scratch {
    uint32_t count[TABLES][BINS];
    uint32_t candidate[]; /* [n] */
};

struct cut { /* sent: all above `least`, and the first `ties` of those equal to it */
    uint32_t least;
    int64_t ties;
};

static int64_t kept(int64_t n, double ratio)
{
    double k = ceil(ratio * (double)n);
    return k >= (double)n ? n : k < 1.0 ? 1 : (int64_t)k;
}

static size_t bytes(int64_t n, double ratio)
{
    return n == 0 ? 0 : (size_t)kept(n, ratio) * (sizeof(uint32_t) + sizeof(float));
}

static size_t scratch_bytes(int64_t n, double ratio)
{
    (void)ratio;
    return n == 0 ? 0 : sizeof(struct scratch) + (size_t)n * sizeof(uint32_t);
}

PL_WITHIN uint32_t magnitude(float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits & 0x7fffffff;
}

/* The bin, of `bins`, that holds the one with *wanted - 1 larger ones before it; *wanted becomes its place within. */
static uint32_t find_bin(const uint32_t *count, uint32_t bins, int64_t *wanted)
{
    uint32_t b = bins - 1;
    while (b > 0 && *wanted > count[b])
        *wanted -= count[b--];
    return b;
}

/* Leaves the candidates that share the first 11 bits with the k-th magnitude. */
static int64_t first_digit(const float *x, int64_t n, struct scratch *s, struct cut *c)
{
    memset(s->count, 0, sizeof s->count);
    int64_t i = 0;
    for (; i + TABLES <= n; i += TABLES) /* a table each: equal neighbours do not wait for each other */
        for (int t = 0; t < TABLES; t++)
            s->count[t][magnitude(x[i + t]) >> 20]++;
    for (; i < n; i++)
        s->count[0][magnitude(x[i]) >> 20]++;
    for (int t = 1; t < TABLES; t++)
        for (int b = 0; b < BINS; b++)
            s->count[0][b] += s->count[t][b];
    uint32_t bin = find_bin(s->count[0], BINS, &c->ties);
    int64_t m = 0;
    for (i = 0; i < n; i++) {
        uint32_t v = magnitude(x[i]);
        s->candidate[m] = v; /* no branch: m <= i */
        m += v >> 20 == bin;
    }
    c->least = bin << 20;
    return m;
}

static int64_t next_digit(struct scratch *s, int64_t n, int shift, struct cut *c)
{
    uint32_t *count = s->count[0];
    memset(count, 0, 1024 * sizeof *count);
    for (int64_t i = 0; i < n; i++)
        count[s->candidate[i] >> shift & 1023]++;
    uint32_t bin = find_bin(count, 1024, &c->ties);
    int64_t m = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t v = s->candidate[i];
        s->candidate[m] = v;
        m += (v >> shift & 1023) == bin;
    }
    c->least |= bin << shift;
    return m;
}

static struct cut find_cut(const float *x, int64_t n, int64_t k, struct scratch *s)
{
    struct cut c = {0, k};
    int64_t left = first_digit(x, n, s, &c);
    left = next_digit(s, left, 10, &c);
    next_digit(s, left, 0, &c);
    return c;
}

PL_CLONES
static void add_to(float *restrict residual, const float *restrict value, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        residual[i] += value[i];
}

/* x may be the residual: what is sent leaves it. */
PL_CLONES
static void pick(const float *x, float *residual, int64_t n, struct cut c, int64_t k, char *code)
{
    char *values = code + (size_t)k * sizeof(uint32_t);
    size_t sent = 0;
    for (int64_t begin = 0; begin < n; begin += GROUP) {
        int64_t end = begin + GROUP < n ? begin + GROUP : n;
        uint32_t any = end - begin < GROUP;
        if (!any) /* most groups have none, which a vector sees at once */
            for (int i = 0; i < GROUP; i++)
                any |= magnitude(x[begin + i]) >= c.least;
        for (int64_t i = any ? begin : end; i < end; i++) {
            uint32_t m = magnitude(x[i]), at = (uint32_t)i;
            if (m < c.least || (m == c.least && c.ties-- <= 0))
                continue;
            memcpy(code + sent * sizeof at, &at, sizeof at);
            memcpy(values + sent * sizeof *x, &x[i], sizeof *x);
            sent++;
            if (residual != NULL)
                residual[i] = 0.0f;
        }
    }
}

static void encode(const float *value, float *residual, int64_t n, double ratio, void *code, void *scratch)
{
    if (n == 0)
        return;
    int64_t k = kept(n, ratio);
    if (residual != NULL)
        add_to(residual, value, n);
    const float *x = residual == NULL ? value : residual;
    struct cut c = find_cut(x, n, k, scratch);
    pick(x, residual, n, c, k, code);
    if (residual != NULL && c.least >= 0x7f800000) /* more than k are not finite: none of them may stay */
        for (int64_t i = 0; i < n; i++)
            residual[i] = magnitude(residual[i]) < 0x7f800000 ? residual[i] : 0.0f;
}

static bool decode(const void *code, int64_t n, double ratio, bool add, float *out)
{
    if (n == 0)
        return true;
    if (!add)
        memset(out, 0, (size_t)n * sizeof *out);
    int64_t k = kept(n, ratio), least = 0;
    const char *indices = code, *values = indices + (size_t)k * sizeof(uint32_t);
    for (int64_t j = 0; j < k; j++) {
        uint32_t i;
        float v;
        memcpy(&i, indices + (size_t)j * sizeof i, sizeof i);
        memcpy(&v, values + (size_t)j * sizeof v, sizeof v);
        if ((int64_t)i < least || (int64_t)i >= n)
            return false;
        out[i] += v;
        least = (int64_t)i + 1;
    }
    return true;
}

const struct pl_codec pl_codec_top_k = {
    .name = "top_k",
    .bytes = bytes,
    .encode = encode,
    .decode = decode,
    .scratch_bytes = scratch_bytes,
};
