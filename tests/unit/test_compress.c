/* The codecs of gradients: each against a plain scalar oracle, nothing lost between code and residual, sums over
 * many steps that come near those of the inputs, malformed codes, and values that are not finite. Codes, outputs and
 * scratch lie in memory of exactly their size and without alignment, where AddressSanitizer sees a step outside.
 * PL_TEST_SEED names the numbers. */
#include "exchange/compress/compress.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static struct pl_rng rng;

static const int64_t sizes[] = {1, 2, 31, 32, 33, 63, 64, 65, 511, 512, 513, 1025, 100003};
static const double ratios[] = {1e-9, 0.001, 0.01, 0.3, 1.0};
enum { SIZES = sizeof sizes / sizeof *sizes, RATIOS = sizeof ratios / sizeof *ratios, MARK = 0x5a };

/* One encoding and what was given to it. */
struct trial {
    const struct pl_codec *codec;
    int64_t n;
    double ratio;
    size_t bytes, scratch_bytes;
    float *value, *old, *sum; /* [n], sum: value + old */
    float *residual, *out;    /* [n] */
    char *block, *code;       /* code: in the block, at an odd address */
    void *scratch;
};

#define CHECK(t, cond, ...)                                                                                          \
    do {                                                                                                             \
        if (!(cond)) {                                                                                               \
            print_error("%s, %lld elements, ratio %g: ", (t)->codec->name, (long long)(t)->n, (t)->ratio);           \
            print_error(__VA_ARGS__);                                                                                \
            fail_msg("\n%s", #cond);                                                                                 \
        }                                                                                                            \
    } while (0)

static float *floats(int64_t n)
{
    float *x = malloc((size_t)n * sizeof *x);
    assert_non_null(x);
    memset(x, 0, (size_t)n * sizeof *x);
    return x;
}

static struct trial make(const struct pl_codec *codec, int64_t n, double ratio)
{
    struct trial t = {.codec = codec, .n = n, .ratio = ratio, .bytes = codec->bytes(n, ratio)};
    t.scratch_bytes = codec->scratch_bytes(n, ratio);
    t.value = floats(n), t.old = floats(n), t.sum = floats(n), t.residual = floats(n), t.out = floats(n);
    t.block = malloc(t.bytes + 1);
    t.scratch = malloc(t.scratch_bytes + 1);
    assert_true(t.block != NULL && t.scratch != NULL);
    t.code = t.block + 1;
    return t;
}

static void drop(struct trial *t)
{
    free(t->value), free(t->old), free(t->sum), free(t->residual), free(t->out), free(t->block), free(t->scratch);
}

/* Kinds of gradients: normal, of all scales, all equal, few magnitudes (ties), mostly zero, one sign. */
enum { FILLS = 6 };
static void fill(float *x, int64_t n, int kind)
{
    pl_rng_normals(&rng, x, n);
    for (int64_t i = 0; i < n; i++) {
        uint32_t r = pl_rng_u32(&rng);
        switch (kind) {
        case 1: x[i] = ldexpf(x[i], (int)(r % 81) - 60); break;
        case 2: x[i] = -0.3f; break;
        case 3: x[i] = (float)((int)(r % 7) - 3) * 0.1f; break;
        case 4: x[i] = r % 16 ? 0.0f : x[i]; break;
        case 5: x[i] = fabsf(x[i]); break;
        default: break;
        }
    }
}

/* Sets sum and encodes it. feedback false: without a residual, sum is the value. */
static void encode(struct trial *t, bool feedback)
{
    for (int64_t i = 0; i < t->n; i++)
        t->sum[i] = feedback ? t->value[i] + t->old[i] : t->value[i];
    memcpy(t->residual, t->old, (size_t)t->n * sizeof *t->old);
    memset(t->code, MARK, t->bytes);
    memset(t->scratch, MARK, t->scratch_bytes);
    t->codec->encode(t->value, feedback ? t->residual : NULL, t->n, t->ratio, t->code, t->scratch);
}

static void decode(struct trial *t)
{
    memset(t->out, MARK, (size_t)t->n * sizeof *t->out);
    CHECK(t, t->codec->decode(t->code, t->n, t->ratio, false, t->out), "its own code is refused");
}

/* ---- oracles: t->out as it must be ---------------------------------------------------------------- */

static uint32_t bits_of(float v)
{
    uint32_t b;
    memcpy(&b, &v, sizeof b);
    return b;
}

static float float_of(uint32_t b)
{
    float v;
    memcpy(&v, &b, sizeof v);
    return v;
}

/* The nearer of the two bf16 around v, the even one of two equally near, none beyond the largest. */
static float nearest_bf16(float v)
{
    uint32_t below = bits_of(v) & 0xffff0000, above = below + 0x10000;
    double d = fabs((double)v) - fabs((double)float_of(below)), u = fabs((double)float_of(above)) - fabs((double)v);
    bool up = isfinite(float_of(above)) && (u < d || (u == d && (below & 0x10000) != 0));
    return float_of(up ? above : below);
}

static void expect_bf16(const struct trial *t)
{
    for (int64_t i = 0; i < t->n; i++)
        CHECK(t, t->out[i] == nearest_bf16(t->sum[i]), "element %lld, %a: %a, wanted %a", (long long)i, (double)t->sum[i],
              (double)t->out[i], (double)nearest_bf16(t->sum[i]));
}

static void expect_one_bit(const struct trial *t)
{
    for (int64_t begin = 0; begin < t->n; begin += 64) {
        int64_t end = begin + 64 < t->n ? begin + 64 : t->n;
        double sum[2] = {0, 0};
        int64_t count[2] = {0, 0};
        for (int64_t i = begin; i < end; i++) {
            sum[t->sum[i] >= 0] += (double)t->sum[i];
            count[t->sum[i] >= 0]++;
        }
        for (int64_t i = begin; i < end; i++) {
            int side = t->sum[i] >= 0;
            double wanted = sum[side] / (double)count[side], difference = fabs((double)t->out[i] - wanted);
            CHECK(t, difference <= 4e-6 * fabs(wanted) + 1e-44, "element %lld, %g: %.9g, wanted %.9g", (long long)i,
                  (double)t->sum[i], (double)t->out[i], wanted);
        }
    }
}

static const float *ordered;
static int by_magnitude(const void *a, const void *b)
{
    int64_t i = *(const int64_t *)a, j = *(const int64_t *)b;
    float x = fabsf(ordered[i]), y = fabsf(ordered[j]);
    return x > y ? -1 : x < y ? 1 : i < j ? -1 : 1;
}

static void expect_top_k(const struct trial *t)
{
    int64_t k = (int64_t)ceil(t->ratio * (double)t->n), *order = malloc((size_t)t->n * sizeof *order);
    assert_non_null(order);
    float *wanted = floats(t->n);
    for (int64_t i = 0; i < t->n; i++)
        order[i] = i;
    ordered = t->sum;
    qsort(order, (size_t)t->n, sizeof *order, by_magnitude);
    for (int64_t j = 0; j < k; j++)
        wanted[order[j]] = t->sum[order[j]];
    for (int64_t i = 0; i < t->n; i++)
        CHECK(t, t->out[i] == wanted[i], "element %lld, %.9g: %.9g, wanted %.9g", (long long)i, (double)t->sum[i],
              (double)t->out[i], (double)wanted[i]);
    CHECK(t, t->bytes == (size_t)k * 8, "%zu bytes for %lld elements", t->bytes, (long long)k);
    uint32_t index[2] = {0, 0};
    for (int64_t j = 0; j < k; j++) { /* ascending, also those whose value is 0 */
        memcpy(&index[1], t->code + 4 * j, sizeof index[1]);
        CHECK(t, index[1] < t->n && (j == 0 || index[1] > index[0]), "index %u after %u", index[1], index[0]);
        index[0] = index[1];
    }
    free(order);
    free(wanted);
}

static void expect(const struct trial *t)
{
    if (t->codec == &pl_codec_bf16)
        expect_bf16(t);
    else if (t->codec == &pl_codec_one_bit)
        expect_one_bit(t);
    else
        expect_top_k(t);
}

/* ---- finite values ---------------------------------------------------------------------------------- */

/* value + old residual == decoded + new residual: to the bit where what is lost fits an fp32. */
static void check_nothing_lost(const struct trial *t)
{
    for (int64_t i = 0; i < t->n; i++) {
        float whole = t->out[i] + t->residual[i];
        float slack = t->codec == &pl_codec_one_bit ? FLT_EPSILON * (fabsf(t->out[i]) + fabsf(t->residual[i])) : 0.0f;
        CHECK(t, fabsf(whole - t->sum[i]) <= slack, "element %lld: %.9g decoded + %.9g lost, of %.9g", (long long)i,
              (double)t->out[i], (double)t->residual[i], (double)t->sum[i]);
    }
}

static void check_adding(struct trial *t)
{
    float *to = floats(t->n), *before = floats(t->n);
    fill(to, t->n, 0);
    memcpy(before, to, (size_t)t->n * sizeof *to);
    CHECK(t, t->codec->decode(t->code, t->n, t->ratio, true, to), "adding, decode refuses what it takes otherwise");
    for (int64_t i = 0; i < t->n; i++)
        CHECK(t, to[i] == before[i] + t->out[i], "element %lld: %.9g, wanted %.9g", (long long)i, (double)to[i],
              (double)(before[i] + t->out[i]));
    free(to);
    free(before);
}

/* A second time, at another address: the same bits. */
static void check_again(const struct trial *t, bool feedback)
{
    struct trial u = make(t->codec, t->n, t->ratio);
    memcpy(u.value, t->value, (size_t)t->n * sizeof *t->value);
    memcpy(u.old, t->old, (size_t)t->n * sizeof *t->old);
    encode(&u, feedback);
    CHECK(t, memcmp(u.code, t->code, t->bytes) == 0, "another code the second time");
    CHECK(t, memcmp(u.residual, t->residual, (size_t)t->n * sizeof *t->residual) == 0, "another residual the second time");
    drop(&u);
}

static void round_trip(const struct pl_codec *codec, int64_t n, double ratio, int kind, bool feedback)
{
    struct trial t = make(codec, n, ratio);
    float *before = floats(n);
    fill(t.value, n, kind);
    fill(t.old, n, kind == 3 ? 4 : kind);
    memcpy(before, t.value, (size_t)n * sizeof *before);
    encode(&t, feedback);
    CHECK(&t, memcmp(before, t.value, (size_t)n * sizeof *before) == 0, "the values have changed");
    decode(&t);
    expect(&t);
    if (feedback)
        check_nothing_lost(&t);
    check_adding(&t);
    check_again(&t, feedback);
    free(before);
    drop(&t);
}

static void test_round_trip(void **state)
{
    (void)state;
    for (int c = 0; pl_codecs[c] != NULL; c++)
        for (int s = 0; s < SIZES; s++)
            for (int kind = 0; kind < FILLS; kind++)
                for (int r = 0; r < (pl_codecs[c] == &pl_codec_top_k ? RATIOS : 1); r++)
                    for (int feedback = 0; feedback < 2; feedback++)
                        round_trip(pl_codecs[c], sizes[s], ratios[r], kind, feedback);
}

/* Every upper half of an fp32 with the lower halves at which rounding turns. */
static void test_bf16_exhaustively(void **state)
{
    (void)state;
    static const uint32_t lower[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
    enum { LOWER = sizeof lower / sizeof *lower };
    struct trial t = make(&pl_codec_bf16, 0x10000 * LOWER, 1);
    for (int64_t i = 0; i < t.n; i++) {
        t.value[i] = float_of((uint32_t)(i / LOWER) << 16 | lower[i % LOWER]);
        t.old[i] = -0.0f; /* leaves -0 what it is */
    }
    for (int feedback = 0; feedback < 2; feedback++) { /* without it nothing has made a signalling NaN quiet */
        encode(&t, feedback);
        decode(&t);
        for (int64_t i = 0; i < t.n; i++) {
            float v = t.value[i], got = t.out[i], lost = feedback ? t.residual[i] : isfinite(v) ? v - got : 0;
            bool right = isfinite(v) ? got == nearest_bf16(v) && got + lost == v : lost == 0;
            right = right && (isnan(v) ? isnan(got) : isinf(v) ? got == v : isfinite(got)) && !signbit(v) == !signbit(got);
            CHECK(&t, right, "%a (%08x): %a, residual %a", (double)v, bits_of(v), (double)got, (double)lost);
        }
    }
    drop(&t);
}

/* ---- error feedback ----------------------------------------------------------------------------- */

static double rms(const double *x, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    return sqrt(sum / (double)n);
}

/* The sum of all inputs less that of all that was decoded stays below a bound, however many steps there are. */
static void feedback(const struct pl_codec *codec, double ratio, double bound)
{
    enum { STEPS = 2000, N = 1300 };
    struct trial t = make(codec, N, ratio);
    double *owed = calloc(N, sizeof *owed);
    float *mean = floats(N);
    assert_non_null(owed);
    fill(mean, N, 0);
    for (int step = 0; step < STEPS; step++) {
        fill(t.value, N, 0);
        for (int64_t i = 0; i < N; i++)
            t.value[i] = (t.value[i] + mean[i]) * 0.70710678f;
        encode(&t, true);
        decode(&t);
        for (int64_t i = 0; i < N; i++)
            owed[i] += (double)t.value[i] - (double)t.out[i];
        memcpy(t.old, t.residual, N * sizeof *t.old);
        CHECK(&t, rms(owed, N) <= bound, "after step %d %g is owed, at most %g", step, rms(owed, N), bound);
    }
    CHECK(&t, rms(owed, N) > 0, "nothing is owed");
    for (int64_t i = 0; i < N; i++)
        CHECK(&t, fabs(owed[i] - (double)t.residual[i]) < 1e-2, "element %lld: %g owed, residual %g", (long long)i, owed[i],
              (double)t.residual[i]);
    free(owed);
    free(mean);
    drop(&t);
}

/* Steps have a root mean square of 1. A code that keeps the part delta of the energy at least owes no more than
 * 2 sqrt(1 - delta) / delta (Karimireddy et al., Error Feedback Fixes SignSGD, ICML 2019, lemma 3). What one_bit
 * keeps depends on the block; over 10000 steps of such numbers what it owes was seen to end at 13. */
static void test_feedback(void **state)
{
    (void)state;
    feedback(&pl_codec_bf16, 1, 1.0 / 128);
    feedback(&pl_codec_one_bit, 1, 25);
    feedback(&pl_codec_top_k, 0.1, 2 * sqrt(0.9) / 0.1);
    feedback(&pl_codec_top_k, 0.01, 2 * sqrt(0.99) / 0.01);
}

/* Two passes over three ranks: what all received, with the residuals of both passes, is what all gave. */
static void test_two_passes(void **state)
{
    (void)state;
    enum { RANKS = 3, STEPS = 30, N = 700 };
    for (int c = 0; pl_codecs[c] != NULL; c++) {
        struct trial rank[RANKS], second = make(pl_codecs[c], N, 0.05);
        double given[N] = {0}, received[N] = {0};
        for (int r = 0; r < RANKS; r++)
            rank[r] = make(pl_codecs[c], N, 0.05);
        for (int step = 0; step < STEPS; step++) {
            memset(second.value, 0, N * sizeof(float));
            for (int r = 0; r < RANKS; r++) {
                fill(rank[r].value, N, r);
                encode(&rank[r], true);
                CHECK(&second, pl_codecs[c]->decode(rank[r].code, N, 0.05, true, second.value), "rank %d", r);
                memcpy(rank[r].old, rank[r].residual, N * sizeof(float));
                for (int i = 0; i < N; i++)
                    given[i] += (double)rank[r].value[i];
            }
            encode(&second, true);
            memcpy(second.old, second.residual, N * sizeof(float));
            decode(&second);
            for (int i = 0; i < N; i++)
                received[i] += (double)second.out[i];
        }
        double scale = rms(given, N);
        for (int i = 0; i < N; i++) {
            double whole = received[i] + (double)second.residual[i];
            for (int r = 0; r < RANKS; r++)
                whole += (double)rank[r].residual[i];
            CHECK(&second, fabs(whole - given[i]) < 1e-4 * scale, "element %d: %g, given %g", i, whole, given[i]);
        }
        for (int r = 0; r < RANKS; r++)
            drop(&rank[r]);
        drop(&second);
    }
}

/* ---- values at the edge and beyond ------------------------------------------------------------------ */

static void check_seen(struct trial *t, bool feedback, const char *what, int64_t at)
{
    encode(t, feedback);
    decode(t);
    bool seen = false;
    for (int64_t i = 0; i < t->n; i++) {
        seen = seen || !isfinite(t->out[i]);
        CHECK(t, !feedback || isfinite(t->residual[i]), "%s at %lld: residual %g at %lld", what, (long long)at,
              (double)t->residual[i], (long long)i);
    }
    CHECK(t, seen, "%s at %lld, and all that is decoded is finite", what, (long long)at);
}

static void test_not_finite(void **state)
{
    (void)state;
    const float special[] = {NAN, -NAN, INFINITY, -INFINITY, float_of(0x7f800001), float_of(0xff80ffff)};
    static const int64_t lengths[] = {1, 2, 33, 512, 513, 1300};
    for (int c = 0; pl_codecs[c] != NULL; c++)
        for (int s = 0; s < 6; s++)
            for (int l = 0; l < 6; l++)
                for (int place = 0; place < 3; place++) {
                    struct trial t = make(pl_codecs[c], lengths[l], 0.01);
                    int64_t at = place == 0 ? 0 : place == 1 ? t.n - 1 : t.n / 2;
                    fill(t.value, t.n, 0);
                    fill(t.old, t.n, 0);
                    t.value[at] = special[s];
                    check_seen(&t, true, "a special value", at);
                    check_seen(&t, false, "a special value", at);
                    t.value[at] = 3e38f, t.old[at] = 3e38f;
                    check_seen(&t, true, "an overflow", at);
                    t.value[at] = 0, t.old[at] = special[s];
                    check_seen(&t, true, "a special value in the residual", at);
                    for (int64_t i = 0; i < t.n; i++)
                        t.value[i] = special[(i + s) % 6];
                    check_seen(&t, true, "special values everywhere", at);
                    drop(&t);
                }
}

/* Not finite in one element: how far it spreads, and that the step after is clean. */
static void test_spread(void **state)
{
    (void)state;
    for (int c = 0; pl_codecs[c] != NULL; c++) {
        struct trial t = make(pl_codecs[c], 1300, 0.1);
        fill(t.value, t.n, 0);
        t.value[600] = INFINITY;
        encode(&t, true);
        decode(&t);
        CHECK(&t, t.out[600] == INFINITY, "infinity becomes %g", (double)t.out[600]);
        for (int64_t i = 0; i < t.n; i++) {
            bool may = i == 600 || (pl_codecs[c] == &pl_codec_one_bit && i / 64 == 600 / 64 && t.value[i] >= 0);
            CHECK(&t, may || isfinite(t.out[i]), "element %lld is not finite", (long long)i);
        }
        t.value[600] = 1;
        memcpy(t.old, t.residual, (size_t)t.n * sizeof *t.old);
        encode(&t, true);
        decode(&t);
        expect(&t);
        check_nothing_lost(&t);
        drop(&t);
    }
}

/* The largest finite values, whose sums overflow, and the smallest. */
static void test_extremes(void **state)
{
    (void)state;
    static const float extreme[] = {FLT_MAX, FLT_MIN, 1.5e-45f, 0.0f, 1e36f};
    for (int c = 0; pl_codecs[c] != NULL; c++)
        for (int e = 0; e < 5; e++)
            for (int sign = 0; sign < 3; sign++) {
                struct trial t = make(pl_codecs[c], 1300, 0.5);
                for (int64_t i = 0; i < t.n; i++)
                    t.value[i] = sign == 0 || (sign == 2 && i % 3 == 0) ? extreme[e] : -extreme[e];
                encode(&t, true);
                decode(&t);
                expect(&t);
                check_nothing_lost(&t);
                for (int64_t i = 0; i < t.n; i++)
                    CHECK(&t, isfinite(t.out[i]) && isfinite(t.residual[i]), "%g at %lld: %g, residual %g", (double)t.value[i],
                          (long long)i, (double)t.out[i], (double)t.residual[i]);
                drop(&t);
            }
}

/* ---- sizes and malformed codes ---------------------------------------------------------------------- */

static void test_sizes(void **state)
{
    (void)state;
    static const struct { int64_t n; size_t bf16, one_bit; } known[] = {
        {0, 0, 0}, {1, 2, 12}, {2, 4, 12}, {33, 66, 16}, {63, 126, 16}, {64, 128, 16}, {65, 130, 28}, {511, 1022, 128}, {512, 1024, 128}, {513, 1026, 140},
        {0x7fffffff, 0xfffffffe, 536870912}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        assert_int_equal(pl_codec_bf16.bytes(known[i].n, 1), known[i].bf16);
        assert_int_equal(pl_codec_one_bit.bytes(known[i].n, 1), known[i].one_bit);
    }
    static const struct { int64_t n; double ratio; size_t k; } kept[] = {
        {0, 1, 0}, {1, 1e-9, 1}, {1, 1, 1}, {3, 0.5, 2}, {100, 0.25, 25}, {101, 0.25, 26}, {1000, 1, 1000}, {0x7fffffff, 1, 0x7fffffff}};
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
        assert_int_equal(pl_codec_top_k.bytes(kept[i].n, kept[i].ratio), kept[i].k * 8);
    for (int c = 0; pl_codecs[c] != NULL; c++) {
        assert_ptr_equal(pl_codec_find(pl_codecs[c]->name), pl_codecs[c]);
        assert_int_equal(pl_codecs[c]->scratch_bytes(0, 1), 0);
        pl_codecs[c]->encode(NULL, NULL, 0, 1, NULL, NULL);
        assert_true(pl_codecs[c]->decode(NULL, 0, 1, false, NULL));
        assert_true(pl_codecs[c]->decode(NULL, 0, 1, true, NULL));
    }
    assert_null(pl_codec_find("none"));
    assert_null(pl_codec_find(""));
}

/* Writes `word` at code[at] of a good code: both ways to decode must refuse it. */
static void refuse(const struct pl_codec *codec, int64_t n, double ratio, size_t at, uint32_t word)
{
    struct trial t = make(codec, n, ratio);
    fill(t.value, n, 0);
    encode(&t, false);
    decode(&t);
    memcpy(t.code + at, &word, sizeof word);
    CHECK(&t, !codec->decode(t.code, n, ratio, false, t.out), "decode takes %08x at %zu", word, at);
    CHECK(&t, !codec->decode(t.code, n, ratio, true, t.out), "adding, decode takes %08x at %zu", word, at);
    drop(&t);
}

static void test_malformed(void **state)
{
    (void)state;
    const struct pl_codec *k = &pl_codec_top_k, *b = &pl_codec_one_bit;
    refuse(k, 1, 1, 0, 1);
    refuse(k, 1, 1, 0, UINT32_MAX);
    refuse(k, 100, 0.5, 4 * 49, 100);        /* the first index out of range */
    refuse(k, 100, 0.5, 4 * 49, 0x80000000); /* negative, if one took it for signed */
    refuse(k, 100, 0.5, 4 * 49, UINT32_MAX);
    refuse(k, 100, 0.5, 4 * 0, 99);          /* not ascending */
    refuse(k, 100, 1, 4 * 50, 49);           /* twice */
    refuse(k, 100, 1, 4 * 50, 51);
    refuse(b, 33, 1, 12, 0x2);               /* a bit past the end */
    refuse(b, 513, 1, 128 + 8, 0x80000000);
    refuse(b, 512, 1, 0, bits_of(1.0f));     /* the mean of the negative ones is positive */
    refuse(b, 512, 1, 4, bits_of(-1.0f));
    refuse(b, 513, 1, 128 + 4, bits_of(-INFINITY));
}

/* Noise as a code: any answer, but nothing outside of out is touched. */
static void test_noise(void **state)
{
    (void)state;
    for (int c = 0; pl_codecs[c] != NULL; c++)
        for (int round = 0; round < 2000; round++) {
            struct trial t = make(pl_codecs[c], 1 + (int64_t)pl_rng_below(&rng, 600), 0.02);
            float *guarded = floats(t.n + 32), *out = guarded + 16;
            uint32_t mask = round % 2 ? 0xff : 0x3; /* small numbers pass for indices more often */
            for (size_t i = 0; i < t.bytes; i++)
                t.code[i] = (char)(i % 4 < 2 ? pl_rng_u32(&rng) & mask : round % 4 < 2 ? pl_rng_u32(&rng) : 0);
            t.codec->decode(t.code, t.n, t.ratio, false, out);
            t.codec->decode(t.code, t.n, t.ratio, true, out);
            for (int i = 0; i < 16; i++)
                CHECK(&t, guarded[i] == 0 && out[t.n + i] == 0, "memory around the output has changed");
            free(guarded);
            drop(&t);
        }
}

int main(void)
{
    const char *given = getenv("PL_TEST_SEED");
    rng = pl_rng_make(given ? strtoull(given, NULL, 10) : 1, 0, 0, 0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_bf16_exhaustively), cmocka_unit_test(test_feedback),
        cmocka_unit_test(test_two_passes), cmocka_unit_test(test_not_finite), cmocka_unit_test(test_spread),
        cmocka_unit_test(test_extremes), cmocka_unit_test(test_sizes), cmocka_unit_test(test_malformed),
        cmocka_unit_test(test_noise)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
