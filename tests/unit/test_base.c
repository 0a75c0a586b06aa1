/* base: known answers of the random generator and the checksum, the queue under two threads, loops cut
 * over the pool, fault points, distances. */
#include "base/base.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void test_philox(void **state)
{
    (void)state;
    /* Random123's kat_vectors: philox4x32 10, counter and key zero */
    static const uint32_t wanted[] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
    struct pl_rng r = pl_rng_make(0, 0, 0, 0);
    for (int i = 0; i < 4; i++)
        assert_int_equal(pl_rng_u32(&r), wanted[i]);
    struct pl_rng a = pl_rng_make(1, 2, 3, 4), b = pl_rng_make(1, 3, 2, 4);
    assert_int_not_equal(pl_rng_u32(&a), pl_rng_u32(&b));
    enum { MANY = 99999 };
    static float v[MANY + 1];
    double sum = 0, squares = 0, fourth = 0, pairs = 0;
    v[MANY] = 17;
    pl_rng_normals(&a, v, MANY);
    assert_true(v[MANY] == 17);
    for (int i = 0; i < MANY; i++) {
        sum += v[i], squares += v[i] * v[i], fourth += pow(v[i], 4);
        pairs += i % 2 == 0 && i + 1 < MANY ? v[i] * v[i + 1] : 0;
        assert_true(pl_rng_below(&b, 7) < 7);
    }
    assert_true(fabs(sum / MANY) < 0.02 && fabs(squares / MANY - 1) < 0.02 && fabs(fourth / MANY - 3) < 0.15 && fabs(2 * pairs / MANY) < 0.03);
}

static void test_crc_and_text(void **state)
{
    (void)state;
    struct pl_text t = {0};
    assert_int_equal(pl_crc32(0, "123456789", 9), 0xcbf43926);
    assert_int_equal(pl_text_distance("epohcs", "epochs"), 2);
    assert_int_equal(pl_text_distance("", "abc"), 3);
    pl_text_add_json(&t, "a\"b\\\n");
    assert_string_equal(t.s, "\"a\\\"b\\\\\\u000a\"");
    pl_text_free(&t);
    char *p = pl_path_beside("dir/job.yaml", "x.h5");
    assert_string_equal(p, "dir/x.h5");
    pl_free(p);
}

static void test_first_error_stands(void **state)
{
    (void)state;
    assert_int_equal(pl_error(PL_ERR_DATA, "data", "first %d", 1), PL_ERR_DATA);
    pl_error(PL_ERR_PEER, "exchange", "second");
    assert_string_equal(pl_error_text(), "data: first 1");
    pl_error_clear();
    assert_null(pl_error_text());
    assert_int_equal(pl_exit_code(PL_ERR_ECHO), 5);
    assert_int_equal(pl_exit_code(PL_STOPPED), 75);
    assert_int_equal(pl_exit_code(PL_END), 0);
}

#define ITEMS 20000
static void *produce(void *q)
{
    for (intptr_t i = 1; i <= ITEMS; i++)
        if (pl_queue_put(q, (void *)i) != PL_OK)
            return NULL;
    pl_queue_close(q);
    return NULL;
}

static void test_queue(void **state)
{
    (void)state;
    pthread_t t;
    void *item;
    struct pl_queue *q = pl_queue_create(7);
    assert_int_equal(pl_queue_get(q, 1, &item), PL_END); /* nothing within a millisecond */
    assert_int_equal(pl_thread_start(&t, "test", produce, q), PL_OK);
    for (intptr_t i = 1; i <= ITEMS; i++) {
        assert_int_equal(pl_queue_get(q, -1, &item), PL_OK);
        assert_int_equal((intptr_t)item, i);
    }
    assert_int_equal(pl_queue_get(q, -1, &item), PL_END);
    pthread_join(t, NULL);
    assert_int_equal(pl_queue_put(q, q), PL_END);
    pl_queue_destroy(q);
}

static void count(void *arg, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; i++)
        ((int *)arg)[i]++;
}

static int delegated; /* loops */

static void run_backwards(int threads, int parts, void (*part)(void *arg, int i), void *arg)
{
    assert_int_equal(threads, pl_pool_threads());
    assert_in_range(parts, 2, threads);
    for (int i = parts; i-- > 0;)
        part(arg, i);
    delegated++;
}

/* On the pool's threads and, in every other round, elsewhere. */
static void test_pool(void **state)
{
    (void)state;
    static int seen[10007];
    for (int threads = 1; threads <= 5; threads++) {
        assert_int_equal(pl_pool_start(threads), PL_OK);
        assert_int_equal(pl_pool_threads(), threads);
        for (int round = 0; round < 200; round++) {
            pl_pool_delegate(round % 2 == 1 ? run_backwards : NULL);
            for (int64_t n = 0; n < 10007; n = n * 3 + 1) {
                int before = delegated;
                memset(seen, 0, sizeof seen);
                pl_parallel_for(n, 2, count, seen);
                assert_int_equal(delegated - before, round % 2 == 1 && threads > 1 && n >= 4);
                for (int64_t i = 0; i < 10007; i++)
                    if (seen[i] != (i < n))
                        fail_msg("element %lld of %lld was seen %d times", (long long)i, (long long)n, seen[i]);
            }
        }
        assert_int_equal(pl_pool_start(threads), PL_OK); /* of another, as long as it has as many */
        pl_pool_stop();
        assert_int_equal(pl_pool_threads(), threads);
        assert_int_equal(pl_pool_start(threads + 1), PL_ERR_USAGE);
        pl_error_clear();
        pl_pool_stop();
    }
}

/* Whatever bits differ, signs of two floats too, the hash does. */
static void test_hash_words(void **state)
{
    (void)state;
    uint64_t data[6] = {1, 2, 3, 4, 5, 6}, start = pl_hash_words(PL_HASH_START, data, sizeof data);
    assert_true(start == pl_hash_words(pl_hash_words(PL_HASH_START, data, 16), data + 2, 32));
    for (int a = 0; a < 384; a++)
        for (int b = 0; b <= a; b++) {
            data[a / 64] ^= 1ull << a % 64;
            data[b / 64] ^= a == b ? 0 : 1ull << b % 64;
            if (pl_hash_words(PL_HASH_START, data, sizeof data) == start)
                fail_msg("bits %d and %d do not count", a, b);
            data[b / 64] ^= a == b ? 0 : 1ull << b % 64;
            data[a / 64] ^= 1ull << a % 64;
        }
}

static void test_faults(void **state)
{
    (void)state;
    assert_int_equal(pl_fault("step", 1), 0);
    assert_int_equal(pl_fault_configure("step@step=3:fail,loader.read@rank=1:fail,h5.write@count=2:fail", 0), PL_OK);
    assert_int_equal(pl_fault("step", 2), 0);
    assert_int_equal(pl_fault("step", 3), 1);
    assert_int_equal(pl_fault("loader.read", 3), 0); /* another rank's */
    assert_int_equal(pl_fault("h5.write", 0) + pl_fault("h5.write", 0) + pl_fault("h5.write", 0), 2);
    static const char *const bad[] = {"step", "step:burn", "step@step=x:fail", "step@when=3:fail", "stp:fail"};
    for (size_t i = 0; i < 5; i++) {
        assert_int_equal(pl_fault_configure(bad[i], 0), PL_ERR_USAGE);
        pl_error_clear();
    }
    assert_int_equal(pl_fault_configure(NULL, 0), PL_OK);
}

/* 64 MB on so many that no machine has room for all; each alone may have them. */
static void test_shared_memory(void **state)
{
    (void)state;
    const size_t much = (size_t)64 << 20;
    for (size_t less = 0; less <= 256; less += 64) /* at the limit what is counted is what is taken off again */
        pl_free(pl_alloc(much - less, "numbers"));
    pl_alloc_sharers(1 << 30);
    assert_null(pl_alloc(much, "numbers"));
    assert_non_null(strstr(pl_error_text(), "no 67.1 MB for numbers, after 0.0 MB, on each of 1073741824 ranks: this node has "));
    pl_error_clear();
    void *little = pl_alloc(much / 64, "numbers");
    assert_non_null(little);
    pl_free(little);
    pl_alloc_sharers(1);
    for (int i = 0; i < 2; i++) { /* what is mapped together with others counts with it */
        assert_true(pl_memory_hold(much));
        assert_false(pl_memory_hold((size_t)1 << 50));
        assert_null(pl_alloc((size_t)1 << 50, "numbers"));
        assert_non_null(strstr(pl_error_text(), "numbers, after 67.1 MB: this node has "));
        pl_error_clear();
        pl_memory_release(much);
    }
    for (int i = 0; i < 3; i++) { /* what was given back counts no more */
        void *all = pl_alloc(much, "numbers");
        assert_non_null(all);
        assert_null(pl_alloc((size_t)1 << 50, "numbers"));
        assert_non_null(strstr(pl_error_text(), "numbers, after 67.1 MB: this node has "));
        pl_error_clear();
        pl_free(all);
    }
    assert_null(pl_alloc((size_t)1 << 50, "numbers"));
    pl_error_clear();
}

/* Of its own, small pieces too, and what is mapped together with others. */
static void test_own_limit(void **state)
{
    (void)state;
    assert_true(isinf(pl_memory_left()));
    void *before = pl_alloc(1000000, "numbers");
    pl_memory_limit(2.9e6, "the test");
    assert_true(pl_memory_left() > 1.8e6 && pl_memory_left() <= 1.9e6);
    void *one = pl_alloc(1000000, "numbers");
    assert_non_null(one);
    assert_null(pl_alloc(1000000, "more"));
    assert_non_null(strstr(pl_error_text(), "no 1.0 MB for more, after 2.0 MB: the test gives a rank 2.9 MB"));
    pl_error_clear();
    assert_null(pl_alloc((size_t)1 << 50, "more"));
    pl_error_clear();
    assert_false(pl_memory_hold(1000000));
    assert_true(pl_memory_hold(800000));
    assert_null(pl_alloc(900000, "more"));
    pl_error_clear();
    pl_memory_release(800000);
    pl_free(before);
    void *two = pl_alloc(1000000, "numbers");
    assert_non_null(two);
    pl_memory_limit(1e6, "the test"); /* less than there is already */
    assert_true(pl_memory_left() == 0);
    assert_null(pl_alloc(1, "more"));
    pl_error_clear();
    pl_memory_limit(0, NULL);
    assert_true(isinf(pl_memory_left()));
    before = pl_alloc(1000000, "numbers");
    assert_non_null(before);
    pl_free(one), pl_free(two), pl_free(before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_philox), cmocka_unit_test(test_crc_and_text),
                                       cmocka_unit_test(test_first_error_stands), cmocka_unit_test(test_queue),
                                       cmocka_unit_test(test_pool), cmocka_unit_test(test_hash_words),
                                       cmocka_unit_test(test_faults), cmocka_unit_test(test_shared_memory), cmocka_unit_test(test_own_limit)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
