/* The exchange in shared memory, without MPI: the ranks are threads of this process, where ThreadSanitizer sees
 * them all, and forked processes. Sums in rank order to the bit, whatever the sizes, the number of ranks and who is
 * late; and the ranks that are missing by name. */
#include "exchange/exchange_internal.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#define MOST_RANKS 5
#define STEPS 6
#define MOST_VALUES 4097

struct trial {
    int ranks;
    int64_t elems, most_slice;
    double bucket_bytes, timeout_ms;
    int values;           /* of a sum, 0: not many */
    int common;           /* slabs */
    bool hang_late;       /* not before the sum, but after it */
    int64_t hang_step;    /* where those of `hang` stop, -1: nowhere */
    const bool *hang;     /* [ranks] */
    void *memory;
};
struct rank { const struct trial *trial; int rank, failures; };

static float value(int rank, int64_t i, int step) /* sums of these depend on their order */
{
    uint32_t h = (uint32_t)(i * 2654435761u) ^ (uint32_t)(rank * 40503 + step * 97);
    return (float)(h % 100003) * 1.37e-3f - 61.0f;
}

#define CHECK(cond, ...)                              \
    do {                                              \
        if (!(cond)) {                                \
            me->failures++;                           \
            fprintf(stderr, "rank %d of %d, %lld elements: ", me->rank, me->trial->ranks, (long long)me->trial->elems); \
            fprintf(stderr, __VA_ARGS__);             \
            fputc('\n', stderr);                      \
        }                                             \
    } while (0)

static void check_sums(struct rank *me, struct pl_exchange *x, int step)
{
    const float *mine = pl_exchange_gradient(x), *sum = pl_exchange_agreed(x);
    for (int64_t i = 0; i < me->trial->elems; i++) {
        float wanted = value(0, i, step);
        for (int r = 1; r < me->trial->ranks; r++)
            wanted += value(r, i, step);
        if (sum[i] != wanted || mine[i] != value(me->rank, i, step)) {
            CHECK(0, "step %d element %lld: sum %.9g, wanted %.9g; own %.9g", step, (long long)i, (double)sum[i], (double)wanted, (double)mine[i]);
            return;
        }
    }
}

/* Sums of more values than there is room for by default, one after the other: their places are used in turn. */
static pl_status check_many(struct rank *me, struct pl_exchange *x, int step)
{
    const struct trial *t = me->trial;
    static _Thread_local double v[MOST_VALUES];
    for (int round = 0, n = t->values; n > 0 && round < 3; round++, n = n / 2 + 1) {
        for (int i = 0; i < n; i++)
            v[i] = (double)value(me->rank, i, step + round) / 3;
        PL_TRY(pl_exchange_sum(x, v, n));
        for (int i = 0; i < n; i++) {
            double wanted = 0;
            for (int r = 0; r < t->ranks; r++)
                wanted = r == 0 ? (double)value(0, i, step + round) / 3 : wanted + (double)value(r, i, step + round) / 3;
            CHECK(v[i] == wanted, "value %d of %d: %.17g, wanted %.17g", i, n, v[i], wanted);
        }
    }
    return PL_OK;
}

/* What a share of each was set to by its rank, all of them see. */
static pl_status check_common(struct rank *me, struct pl_exchange *x, int step)
{
    struct pl_span near = pl_exchange_near(x);
    for (int c = 0; c < me->trial->common; c++)
        for (int64_t i = near.a; i < near.b; i++)
            pl_exchange_common(x, c)[i] += value(c, i, step);
    if ((step + me->rank) % 3 == 1)
        pl_sleep_ms(2);
    PL_TRY(pl_exchange_meet(x));
    for (int c = 0; c < me->trial->common; c++)
        for (int64_t i = 0; i < me->trial->elems; i++) {
            float wanted = 0;
            for (int s = 0; s <= step; s++)
                wanted += value(c, i, s);
            if (pl_exchange_common(x, c)[i] != wanted) {
                CHECK(0, "step %d, common slab %d, element %lld: %.9g, wanted %.9g", step, c, (long long)i, (double)pl_exchange_common(x, c)[i], (double)wanted);
                return PL_OK;
            }
        }
    CHECK(!pl_exchange_common(x, me->trial->common), "there is a slab more");
    return PL_OK;
}

static pl_status run_step(struct rank *me, struct pl_exchange *x, int step)
{
    const struct trial *t = me->trial;
    struct pl_exchange_times times;
    double small[2] = {1, me->rank}, most = me->rank;
    unsigned seed = (unsigned)step; /* the same slices on every rank */
    PL_TRY(pl_exchange_begin(x, step));
    if (step == t->hang_step && t->hang[me->rank] && !t->hang_late)
        return PL_STOPPED;
    for (int64_t i = 0; i < t->elems; i++)
        pl_exchange_gradient(x)[i] = value(me->rank, i, step);
    PL_TRY(pl_exchange_post_sum(x, small, 2));
    for (int64_t end = t->elems; end > 0;) {
        int64_t n = 1 + (int64_t)rand_r(&seed) % t->most_slice, begin = n > end ? 0 : end - n;
        PL_TRY(pl_exchange_ready(x, begin, end));
        end = begin;
    }
    if ((step + me->rank) % 3 == 0)
        pl_sleep_ms(2); /* late: the others sleep */
    PL_TRY(pl_exchange_finish(x, &times));
    check_sums(me, x, step);
    CHECK(small[0] == t->ranks && small[1] == t->ranks * (t->ranks - 1) / 2.0, "small sums %g, %g", small[0], small[1]);
    if (step == t->hang_step && t->hang[me->rank])
        return PL_STOPPED;
    PL_TRY(check_common(me, x, step));
    PL_TRY(pl_exchange_max(x, &most, 1));
    CHECK(most == t->ranks - 1, "largest rank %g", most);
    return check_many(me, x, step);
}

static pl_status run_rank(struct rank *me)
{
    struct pl_exchange *x;
    struct pl_exchange_options o = {.bucket_bytes = me->trial->bucket_bytes, .timeout_ms = me->trial->timeout_ms, .values = me->trial->values, .common = me->trial->common};
    int node[MOST_RANKS] = {0, 1, 2, 3, 4};
    struct pl_levels levels = {.node = node, .node_ranks = me->trial->ranks, .place = me->rank};
    PL_TRY(pl_exchange_create_in(me->trial->memory, &levels, NULL, &o, me->trial->elems, &x));
    pl_status s = PL_OK;
    for (int step = 0; s == PL_OK && step < STEPS; step++)
        s = run_step(me, x, step);
    pl_exchange_destroy(x);
    return s;
}

static void *as_thread(void *arg)
{
    struct rank *me = arg;
    pl_status s = run_rank(me);
    CHECK(s == PL_OK, "status %d: %s", s, pl_error_text());
    return NULL;
}

static void make_memory(struct trial *t)
{
    size_t bytes = pl_exchange_shared_bytes(t->ranks, t->elems, t->values, t->common);
    t->memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(t->memory != MAP_FAILED);
}

static void free_memory(struct trial *t) { munmap(t->memory, pl_exchange_shared_bytes(t->ranks, t->elems, t->values, t->common)); }

static void run_threads(struct trial t)
{
    pthread_t thread[MOST_RANKS];
    struct rank rank[MOST_RANKS];
    int failures = 0;
    make_memory(&t);
    for (int r = 0; r < t.ranks; r++) {
        rank[r] = (struct rank){&t, r, 0};
        assert_int_equal(pl_thread_start(&thread[r], "rank", as_thread, &rank[r]), PL_OK);
    }
    for (int r = 0; r < t.ranks; r++) {
        pthread_join(thread[r], NULL);
        failures += rank[r].failures;
    }
    free_memory(&t);
    assert_int_equal(failures, 0);
}

/* Forks the ranks; in each judge says whether what run_rank returned is right. */
static void run_processes(struct trial t, bool (*judge)(const struct rank *me, pl_status s))
{
    pid_t pid[MOST_RANKS];
    int failures = 0;
    make_memory(&t);
    for (int r = 0; r < t.ranks; r++) {
        pid[r] = fork();
        assert_true(pid[r] >= 0);
        if (pid[r] == 0) {
            struct rank me = {&t, r, 0};
            bool right = judge(&me, run_rank(&me));
            _exit(right && me.failures == 0 ? 0 : 1);
        }
    }
    for (int r = 0; r < t.ranks; r++) {
        int code;
        assert_int_equal(waitpid(pid[r], &code, 0), pid[r]);
        failures += code != 0;
    }
    free_memory(&t);
    assert_int_equal(failures, 0);
}

static void each_trial(void (*run)(struct trial t))
{
    static const struct { int64_t elems, most_slice; double bucket_bytes; int values; } sizes[] = {
        {1, 1, 4, 0}, {7, 3, 4, 17}, {16, 16, 64, 0}, {17, 17, 1e9, MOST_VALUES}, {1000, 100, 256, 33}, {3001, 3, 4, 0}, {20011, 6000, 16384, 513}, {20011, 6000, 1e9, 0},
        {0, 1, 4, 1025}};
    for (int ranks = 2; ranks <= MOST_RANKS; ranks++)
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
            run((struct trial){.ranks = ranks, .elems = sizes[i].elems, .most_slice = sizes[i].most_slice,
                               .bucket_bytes = sizes[i].bucket_bytes, .timeout_ms = 60000, .values = sizes[i].values, .common = (int)i % (PL_EXCHANGE_COMMON + 1), .hang_step = -1});
}

static void test_threads(void **state) { (void)state, each_trial(run_threads); }

static bool went_well(const struct rank *me, pl_status s)
{
    if (s != PL_OK)
        fprintf(stderr, "rank %d: status %d: %s\n", me->rank, s, pl_error_text());
    return s == PL_OK;
}
static void run_well(struct trial t) { run_processes(t, went_well); }
static void test_processes(void **state) { (void)state, each_trial(run_well); }

static bool named_missing(const struct rank *me, pl_status s)
{
    const char *wanted = me->trial->hang_late ? "exchange: waited 0.15 s for the ranks in step 2; missing: rank 1, 3\n" :
                         "exchange: waited 0.3 s for the ranks in step 2; missing: rank 1, 3\n";
    if (me->trial->hang[me->rank])
        return s == PL_STOPPED;
    bool right = s == PL_ERR_PEER && strncmp(pl_error_text(), wanted, strlen(wanted)) == 0;
    if (!right)
        fprintf(stderr, "rank %d: status %d: %s\n", me->rank, s, pl_error_text() ? pl_error_text() : "");
    return right;
}

static void test_missing(void **state)
{
    (void)state;
    static const bool hang[MOST_RANKS] = {[1] = true, [3] = true};
    struct trial t = {.ranks = 5, .elems = 1000, .most_slice = 100, .bucket_bytes = 256, .timeout_ms = 300, .common = 1, .hang_step = 2, .hang = hang};
    run_processes(t, named_missing);
    t.hang_late = true;
    run_processes(t, named_missing);
}

/* What a rank touches first covers the memory once. */
static void test_extents(void **state)
{
    (void)state;
    for (int ranks = 2; ranks <= MOST_RANKS; ranks++)
        for (int64_t elems = 0; elems < 30000; elems += 4099) {
            int values = (int)elems % 7 * 300, common = (int)(elems / 4099) % (PL_EXCHANGE_COMMON + 1);
            size_t bytes = pl_exchange_shared_bytes(ranks, elems, values, common), pages = bytes / 4096;
            unsigned char *owners = calloc(pages, 1);
            assert_int_equal(bytes % 4096, 0);
            for (int r = 0; r < ranks; r++) {
                struct pl_extent own[PL_OWN_EXTENTS];
                pl_exchange_shared_extents(r, ranks, elems, values, common, own);
                for (int i = 0; i < PL_OWN_EXTENTS; i++)
                    for (size_t at = own[i].offset; at < own[i].offset + own[i].bytes; at += 4096)
                        owners[at / 4096]++;
            }
            for (size_t p = 0; p < pages; p++)
                if (owners[p] != 1)
                    fail_msg("%d ranks, %lld elements: page %zu of %zu has %d owners", ranks, (long long)elems, p, pages, owners[p]);
            free(owners);
        }
}

static void test_usage(void **state)
{
    (void)state;
    struct trial t = {.ranks = 2, .elems = 100};
    struct pl_exchange_options o = {.bucket_bytes = 4, .timeout_ms = 100};
    struct pl_exchange *x;
    double many[PL_EXCHANGE_VALUES + 1] = {0};
    make_memory(&t);
    int node[2] = {0, 1};
    struct pl_levels levels = {.node = node, .node_ranks = 2};
    assert_int_equal(pl_exchange_create_in(t.memory, &levels, NULL, &o, t.elems, &x), PL_OK);
    assert_string_equal(pl_exchange_algorithm(x), "shared memory");
    assert_string_equal(pl_exchange_transport(x), "none");
    assert_int_equal(pl_exchange_post_sum(x, many, PL_EXCHANGE_VALUES + 1), PL_ERR_USAGE);
    pl_error_clear();
    assert_int_equal(pl_exchange_begin(x, 0), PL_OK);
    assert_int_equal(pl_exchange_ready(x, 0, 99), PL_ERR_USAGE);
    pl_error_clear();
    pl_exchange_destroy(x);
    free_memory(&t);

    t.values = o.values = 20;
    make_memory(&t);
    assert_int_equal(pl_exchange_create_in(t.memory, &levels, NULL, &o, t.elems, &x), PL_OK);
    double more[21] = {0};
    assert_int_equal(pl_exchange_post_sum(x, more, 21), PL_ERR_USAGE);
    pl_error_clear();
    assert_int_equal(pl_exchange_post_sum(x, more, 20), PL_OK);
    pl_exchange_destroy(x);
    free_memory(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_extents), cmocka_unit_test(test_usage), cmocka_unit_test(test_threads),
                                       cmocka_unit_test(test_processes), cmocka_unit_test(test_missing)};
    return cmocka_run_group_tests_name("exchange", tests, NULL, NULL);
}
