/* What is drawn at random, by its properties. The order: every epoch is a permutation whatever the
 * sizes, the ranks only cut it, nothing but (set, seed, epoch) decides it, any position can be
 * asked for at any time. Augmentation: crops at every offset alike, half of them mirrored. */
#include "data/dataset.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static struct pl_sampler *make(int64_t n, int64_t chunk, int64_t window, bool shuffle,
                               uint64_t seed)
{
    int64_t chunks = (n + chunk - 1) / chunk, *first = calloc((size_t)chunks + 1, sizeof *first);
    for (int64_t i = 0; i <= chunks; i++)
        first[i] = i * chunk < n ? i * chunk : n;
    struct pl_sampler *s = pl_sampler_create(chunks, first, (window + chunk - 1) / chunk, shuffle, seed);
    free(first);
    assert_non_null(s);
    return s;
}

/* An epoch's whole order. The caller frees it. */
static int64_t *whole(int64_t n, int64_t chunk, int64_t window, uint64_t seed, int64_t epoch)
{
    struct pl_sampler *s = make(n, chunk, window, true, seed);
    int64_t *order = calloc((size_t)n, sizeof *order);
    assert_int_equal(pl_sampler_order(s, epoch, 0, n, order), PL_OK);
    pl_sampler_destroy(s);
    return order;
}

static void check_permutation(const int64_t *order, int64_t n)
{
    bool *seen = calloc((size_t)n, sizeof *seen);
    for (int64_t i = 0; i < n; i++) {
        assert_in_range(order[i], 0, n - 1);
        if (seen[order[i]])
            fail_msg("sample %lld comes twice", (long long)order[i]);
        seen[order[i]] = true;
    }
    free(seen);
}

static void every_epoch_is_a_permutation(void **state)
{
    (void)state;
    static const int64_t sizes[] = {1, 2, 7, 64, 1000, 1023, 4096};
    static const int64_t chunks[] = {1, 3, 64, 512, 5000}, windows[] = {1, 100, 640, 100000};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (size_t c = 0; c < sizeof chunks / sizeof *chunks; c++)
            for (size_t w = 0; w < sizeof windows / sizeof *windows; w++)
                for (int64_t epoch = 0; epoch < 3; epoch++) {
                    int64_t *order = whole(sizes[i], chunks[c], windows[w], 1, epoch);
                    check_permutation(order, sizes[i]);
                    free(order);
                }
}

static void unshuffled_is_file_order(void **state)
{
    (void)state;
    struct pl_sampler *s = make(10, 4, 8, false, 1);
    int64_t order[7];
    assert_int_equal(pl_sampler_order(s, 5, 3, 7, order), PL_OK);
    for (int i = 0; i < 7; i++)
        assert_int_equal(order[i], 3 + i);
    pl_sampler_destroy(s);
}

/* The union of the ranks' shares of one epoch, in order of step and rank. */
static void gather(int64_t n, int64_t global, int ranks, int64_t *all)
{
    int64_t at = 0, steps = pl_sampler_steps(n, global), first, rows;
    struct pl_sampler *s[8];
    for (int r = 0; r < ranks; r++)
        s[r] = make(n, 50, 200, true, 7);
    for (int64_t step = 0; step < steps; step++)
        for (int r = 0; r < ranks; r++) {
            pl_sampler_share(n, global, step * global, r, ranks, &first, &rows);
            assert_in_range(rows, 0, (global + ranks - 1) / ranks);
            assert_true(at + rows <= n);
            assert_int_equal(pl_sampler_order(s[r], 2, first, rows, all + at), PL_OK);
            at += rows;
        }
    assert_int_equal(at, n);
    for (int r = 0; r < ranks; r++)
        pl_sampler_destroy(s[r]);
}

static void ranks_only_cut_the_order(void **state)
{
    (void)state;
    static const int64_t sizes[] = {1, 5, 8, 333, 1000}, globals[] = {1, 7, 64, 192, 2000};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int64_t n = sizes[i], *want = whole(n, 50, 200, 7, 2), all[1000];
        for (size_t g = 0; g < sizeof globals / sizeof *globals; g++)
            for (int ranks = 1; ranks <= 8; ranks++) {
                memset(all, -1, sizeof all);
                gather(n, globals[g], ranks, all);
                assert_memory_equal(all, want, (size_t)n * sizeof *want);
            }
        free(want);
    }
}

static void last_batch_is_short(void **state)
{
    (void)state;
    int64_t first, rows;
    assert_int_equal(pl_sampler_steps(1000, 192), 6);
    static const int64_t last[] = {40, 0, 0};
    for (int64_t step = 0; step < 6; step++)
        for (int r = 0; r < 3; r++) {
            pl_sampler_share(1000, 192, step * 192, r, 3, &first, &rows);
            assert_int_equal(rows, step < 5 ? 64 : last[r]);
            if (rows > 0)
                assert_int_equal(first, step * 192 + r * 64);
            assert_in_range(first, 0, 1000);
        }
    assert_int_equal(pl_sampler_steps(192, 192), 1);
    assert_int_equal(pl_sampler_steps(193, 192), 2);
    assert_int_equal(pl_sampler_steps(0, 192), 0);
    assert_true(pl_sampler_steps(INT64_MAX, 2) == INT64_MAX / 2 + 1);
}

static void seed_and_epoch_decide(void **state)
{
    (void)state;
    int64_t n = 1000, *a = whole(n, 32, 256, 1, 0), *again = whole(n, 32, 256, 1, 0);
    int64_t *seed = whole(n, 32, 256, 2, 0), *epoch = whole(n, 32, 256, 1, 1);
    int same_seed = 0, same_epoch = 0;
    assert_memory_equal(a, again, (size_t)n * sizeof *a);
    for (int64_t i = 0; i < n; i++) {
        same_seed += a[i] == seed[i];
        same_epoch += a[i] == epoch[i];
    }
    assert_in_range(same_seed, 0, 20);
    assert_in_range(same_epoch, 0, 20);
    free(a), free(again), free(seed), free(epoch);
}

/* A restart asks for the middle first; so does one that goes back. */
static void any_position_at_any_time(void **state)
{
    (void)state;
    int64_t n = 3000, *order[3], got[257];
    for (int64_t e = 0; e < 3; e++)
        order[e] = whole(n, 64, 300, 11, e);
    struct pl_sampler *s = make(n, 64, 300, true, 11);
    struct pl_rng r = pl_rng_make(3, 0, 0, 0);
    for (int i = 0; i < 500; i++) {
        int64_t e = (int64_t)pl_rng_below(&r, 3), rows = (int64_t)pl_rng_below(&r, 257);
        int64_t first = (int64_t)pl_rng_below(&r, (uint64_t)(n - rows + 1));
        assert_int_equal(pl_sampler_order(s, e, first, rows, got), PL_OK);
        assert_memory_equal(got, order[e] + first, (size_t)rows * sizeof *got);
    }
    pl_sampler_destroy(s);
    for (int e = 0; e < 3; e++)
        free(order[e]);
}

/* Where the first sample and the last (of the short chunk) land, over many seeds: every tenth of
 * the epoch as often as any other. 1000 draws: 100 a tenth, deviation 9.5. */
static void every_place_is_as_likely(void **state)
{
    (void)state;
    int tenth[2][10] = {{0}};
    for (uint64_t seed = 0; seed < 1000; seed++) {
        int64_t *order = whole(205, 10, 40, seed, 0);
        for (int64_t i = 0; i < 205; i++)
            if (order[i] == 0 || order[i] == 204)
                tenth[order[i] == 204][i * 10 / 205]++;
        free(order);
    }
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < 10; i++)
            assert_in_range(tenth[k][i], 55, 150);
}

/* With a window of one chunk only the chunks move, on their own: their order too is of (seed,
 * epoch), and a shuffle leaves one sample in its place on average. */
static void chunks_move(void **state)
{
    (void)state;
    int same_seed = 0, same_epoch = 0, in_place = 0;
    for (uint64_t seed = 1; seed <= 1000; seed++) {
        int64_t *a = whole(200, 10, 10, seed, 0), *b = whole(200, 10, 10, seed, 1);
        int64_t *c = whole(200, 10, 10, seed + 1000, 0), *d = whole(200, 1, 1, seed, 0);
        same_epoch += a[0] / 10 == b[0] / 10;
        same_seed += a[0] / 10 == c[0] / 10;
        for (int64_t i = 0; i < 200; i++) {
            assert_int_equal(a[i] / 10, a[i / 10 * 10] / 10);
            in_place += d[i] == i;
        }
        free(a), free(b), free(c), free(d);
    }
    assert_in_range(same_epoch, 20, 90); /* 50 of 1000, 1 in 20 chunks */
    assert_in_range(same_seed, 20, 90);
    assert_in_range(in_place, 850, 1150);
}

/* A window's samples come from few chunks: that is what keeps reading near. */
static void windows_keep_reading_near(void **state)
{
    (void)state;
    int64_t n = 6400, *order = whole(n, 64, 640, 1, 0);
    for (int64_t w = 0; w < 10; w++) {
        int chunks = 0;
        bool seen[100] = {false};
        for (int64_t i = w * 640; i < (w + 1) * 640; i++)
            if (!seen[order[i] / 64]) {
                seen[order[i] / 64] = true;
                chunks++;
            }
        assert_int_equal(chunks, 10);
    }
    free(order);
}

static void positions_outside_are_refused(void **state)
{
    (void)state;
    int64_t index[4];
    struct pl_sampler *s = make(10, 4, 8, true, 1);
    pl_error_clear();
    assert_int_equal(pl_sampler_order(s, 0, 8, 3, index), PL_ERR_DATA);
    assert_non_null(strstr(pl_error_text(), "positions 8 to 11 of 10"));
    assert_int_equal(pl_sampler_order(s, 0, -1, 1, index), PL_ERR_DATA);
    assert_int_equal(pl_sampler_order(s, 0, 10, 0, index), PL_OK);
    pl_error_clear();
    pl_sampler_destroy(s);
    pl_sampler_destroy(NULL);
}

/* ---- augmentation: one 1x8x8 image whose pixel (y, x) is 1 + 8 y + x ---- */

#define DRAWS 2000

struct place {
    int top, left, flip;
};

struct drawer {
    struct pl_job_set set;
    struct pl_dataset d;
    struct pl_decoder *decoder;
    uint8_t image[64];
};

static void make_drawer(struct drawer *w, int64_t crop, int64_t pad, bool flip)
{
    *w = (struct drawer){.set = {.scale = 1, .crop = crop, .pad = pad, .flip = flip}};
    w->d = (struct pl_dataset){.set = &w->set,
                               .want = {.dims = 3, .dim = {1, crop, crop}},
                               .type = PL_U8,
                               .raw = {1, 8, 8},
                               .row_elems = 64,
                               .row_bytes = 64};
    for (int i = 0; i < 64; i++)
        w->image[i] = (uint8_t)(1 + i);
    assert_int_equal(pl_decoder_create(&w->d, &w->decoder), PL_OK);
}

/* Whether x is the crop of `side` at p, zeros outside the image. */
static bool is_crop(const float *x, int side, struct place p)
{
    for (int i = 0; i < side * side; i++) {
        int r = p.top + i / side, c = p.left + (p.flip ? side - 1 - i % side : i % side);
        float want = r < 0 || r > 7 || c < 0 || c > 7 ? 0 : (float)(1 + 8 * r + c);
        if (x[i] != want)
            return false;
    }
    return true;
}

/* The one place from which the sample is taken. */
static struct place draw(const struct drawer *w, bool random, int64_t epoch, int64_t sample)
{
    float x[64];
    int side = (int)w->set.crop, pad = (int)w->set.pad, room = 9 + 2 * pad - side, found = 0;
    struct place p = {0}, q;
    struct pl_augment a = pl_augment_make(&w->d, random, 5);
    pl_augment(&a, w->decoder, w->image, epoch, sample, x);
    for (int k = 0; k < room * room * 2; k++) {
        q = (struct place){k / 2 / room - pad, k / 2 % room - pad, k % 2};
        if (is_crop(x, side, q)) {
            p = q;
            found++;
        }
    }
    assert_int_equal(found, 1);
    return p;
}

static void check_draws(int crop, int pad, bool flip)
{
    struct drawer w;
    int room = 9 + 2 * pad - crop, top[16] = {0}, left[16] = {0}, flips = 0, changed = 0;
    make_drawer(&w, crop, pad, flip);
    for (int i = 0; i < DRAWS; i++) {
        struct place p = draw(&w, true, 0, i), again = draw(&w, true, 0, i),
                     next = draw(&w, true, 1, i);
        top[p.top + pad]++, left[p.left + pad]++, flips += p.flip;
        assert_memory_equal(&p, &again, sizeof p);
        changed += memcmp(&p, &next, sizeof p) != 0;
    }
    for (int i = 0; i < room; i++) { /* a deviation is below 22 */
        assert_in_range(top[i], DRAWS / room - 110, DRAWS / room + 110);
        assert_in_range(left[i], DRAWS / room - 110, DRAWS / room + 110);
    }
    assert_in_range(flips, flip ? DRAWS / 2 - 110 : 0, flip ? DRAWS / 2 + 110 : 0);
    assert_in_range(changed, DRAWS * 3 / 4, DRAWS);
    pl_decoder_destroy(w.decoder);
}

static void crops_and_flips(void **state)
{
    (void)state;
    check_draws(8, 2, true);
    check_draws(4, 0, true);
    check_draws(6, 1, false);
}

static void centre_without_augment(void **state)
{
    (void)state;
    struct drawer w;
    for (int side = 4; side <= 8; side += 2) {
        make_drawer(&w, side, 3, true);
        for (int i = 0; i < 20; i++) {
            struct place p = draw(&w, false, i, i);
            assert_int_equal(p.top, (8 - side) / 2);
            assert_int_equal(p.left, (8 - side) / 2);
            assert_int_equal(p.flip, 0);
        }
        pl_decoder_destroy(w.decoder);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_epoch_is_a_permutation),
        cmocka_unit_test(unshuffled_is_file_order),
        cmocka_unit_test(ranks_only_cut_the_order),
        cmocka_unit_test(last_batch_is_short),
        cmocka_unit_test(seed_and_epoch_decide),
        cmocka_unit_test(any_position_at_any_time),
        cmocka_unit_test(every_place_is_as_likely),
        cmocka_unit_test(chunks_move),
        cmocka_unit_test(windows_keep_reading_near),
        cmocka_unit_test(positions_outside_are_refused),
        cmocka_unit_test(crops_and_flips),
        cmocka_unit_test(centre_without_augment),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
