/* The whole exchange over tcp on loopback, with its thread, on one level and on two, compressed or not: the ranks are
 * forked processes without MPI or OpenMP, so that ThreadSanitizer sees all there is. Sums, equal bits, the own
 * gradient as it was, small sums beside, a late rank, and the ranks that are missing by name. */
#include "exchange/exchange_internal.h"
#include "forks.h"

#include <math.h>
#include <setjmp.h>
#include <cmocka.h>

enum { STEPS = 5 };

#ifdef PL_HAVE_CRYPTO
extern const struct pl_transport_table pl_transport_tcp;

struct trial {
    int ranks, node_ranks; /* node_ranks 0: one level */
    int64_t elems, most_slice;
    double bucket_bytes, timeout_ms;
    const char *algorithm, *compress;
    bool direct;
    int values;       /* of a sum, 0: not many */
    int common;       /* slabs of a node's ranks together */
    int hang;         /* this rank stops in step 2; -1: none */
    void *memory[8];  /* of each node */
    uint64_t *bits;   /* [ranks] of the last sum, shared */
};

static float value(int rank, int64_t i, int step) /* whole numbers: exact in any order */
{
    return (float)((i * 7 + rank * 13 + step) % 1001) - 500;
}

#define CHECK(cond, ...)                              \
    do {                                              \
        if (!(cond)) {                                \
            fprintf(stderr, "rank %d of %d, %s, %lld elements: ", me, t->ranks, t->algorithm, (long long)t->elems); \
            fprintf(stderr, __VA_ARGS__);             \
            fputc('\n', stderr);                      \
            return false;                             \
        }                                             \
    } while (0)

static bool check_sums(const struct trial *t, int me, const struct pl_exchange *x, int step)
{
    const float *sum = pl_exchange_agreed(x), *mine = pl_exchange_gradient((struct pl_exchange *)x);
    for (int64_t i = 0; i < t->elems; i++) {
        float wanted = 0;
        for (int r = 0; r < t->ranks; r++)
            wanted += value(r, i, step);
        CHECK(mine[i] == value(me, i, step), "step %d: the own gradient changed", step);
        CHECK(t->compress || sum[i] == wanted, "step %d element %lld: %g, wanted %g", step, (long long)i, (double)sum[i], (double)wanted);
        CHECK(!t->compress || fabsf(sum[i] - wanted) < 0.05f * 500 * (float)t->ranks, "step %d element %lld: %g, wanted about %g", step, (long long)i, (double)sum[i], (double)wanted);
    }
    return true;
}

static pl_status run_step(const struct trial *t, int me, struct pl_exchange *x, int step, double *small)
{
    struct pl_exchange_times times;
    unsigned seed = (unsigned)step;
    PL_TRY(pl_exchange_begin(x, step));
    for (int64_t i = 0; i < t->elems; i++)
        pl_exchange_gradient(x)[i] = value(me, i, step);
    if ((step + me) % 3 == 0)
        pl_sleep_ms(5); /* late */
    PL_TRY(pl_exchange_post_sum(x, small, 2));
    for (int64_t end = t->elems; end > 0;) {
        int64_t n = 1 + (int64_t)rand_r(&seed) % t->most_slice, begin = n > end ? 0 : end - n;
        PL_TRY(pl_exchange_ready(x, begin, end));
        end = begin;
    }
    return pl_exchange_finish(x, &times);
}

/* Sums of more values than there is room for by default, some while others are under way. */
static bool check_many(const struct trial *t, int me, struct pl_exchange *x, int step)
{
    static double v[2][4097];
    for (int i = 0; i < t->values; i++)
        v[0][i] = value(me, i, step), v[1][i] = value(me, i, step + 1);
    CHECK(pl_exchange_post_sum(x, v[0], t->values) == PL_OK && pl_exchange_sum(x, v[1], t->values) == PL_OK, "values: %s", pl_error_text());
    for (int i = 0; i < 2 * t->values; i++) {
        double wanted = 0, found = v[i / t->values][i % t->values];
        for (int r = 0; r < t->ranks; r++)
            wanted += value(r, i % t->values, step + i / t->values);
        CHECK(found == wanted, "step %d value %d of %d: %g, wanted %g", step, i, t->values, found, wanted);
    }
    return true;
}

/* A share of each is set by its rank, and seen by all of the node. */
static bool check_common(const struct trial *t, int me, struct pl_exchange *x, int step)
{
    struct pl_span near = pl_exchange_near(x);
    for (int c = 0; c < t->common; c++)
        for (int64_t i = near.a; i < near.b; i++)
            pl_exchange_common(x, c)[i] = pl_exchange_agreed(x)[i] + (float)c;
    CHECK(pl_exchange_meet(x) == PL_OK, "meet: %s", pl_error_text());
    for (int c = 0; c < t->common; c++)
        for (int64_t i = 0; i < t->elems; i++)
            CHECK(pl_exchange_common(x, c)[i] == pl_exchange_agreed(x)[i] + (float)c, "step %d, common slab %d, element %lld", step, c, (long long)i);
    return true;
}

static bool run_steps(const struct trial *t, int me, struct pl_exchange *x)
{
    for (int step = 0; step < STEPS; step++) {
        double small[2] = {1, me}, most = me;
        if (step == 2 && t->hang == me)
            return true;
        pl_status s = run_step(t, me, x, step, small);
        if (s < 0 && t->hang >= 0) {
            char wanted[64];
            snprintf(wanted, sizeof wanted, "missing: rank %d\n", t->hang);
            CHECK(step == 2 && s == PL_ERR_PEER && (strstr(pl_error_text(), wanted) || strstr(pl_error_text(), "lost rank")), "step %d, status %d: %s", step, s, pl_error_text());
            return true;
        }
        CHECK(s == PL_OK, "step %d: status %d: %s", step, s, pl_error_text());
        if (!check_sums(t, me, x, step))
            return false;
        CHECK(small[0] == t->ranks && small[1] == t->ranks * (t->ranks - 1) / 2.0, "small sums %g, %g", small[0], small[1]);
        CHECK(pl_exchange_max(x, &most, 1) == PL_OK && most == t->ranks - 1, "max %g", most);
        if (t->values > 0 && !check_many(t, me, x, step))
            return false;
        if (!check_common(t, me, x, step))
            return false;
    }
    t->bits[me] = pl_hash(PL_HASH_START, pl_exchange_agreed(x), (size_t)t->elems * sizeof(float));
    return t->hang < 0;
}

/* Node n is ranks [n k, (n + 1) k); a column has the ranks of one place. Its set-up goes round among all ranks, each of
 * which picks its column's out of them. */
struct column { const struct pl_group *all; struct pl_levels *levels; };

static pl_status allgather_column(void *arg, const void *mine, size_t bytes, void *out)
{
    const struct column *c = arg;
    char *every = malloc(bytes * (size_t)c->all->members);
    pl_status s = c->all->allgather(c->all->arg, mine, bytes, every);
    for (int i = 0; i < c->levels->members; i++)
        memcpy((char *)out + (size_t)i * bytes, every + (size_t)c->levels->column_ranks[i] * bytes, bytes);
    free(every);
    return s;
}

static bool body(const struct pl_group *g, struct forks *f, void *arg)
{
    const struct trial *t = arg;
    int me = g->me, k = t->node_ranks ? t->node_ranks : 1, node[8], column_ranks[8];
    struct pl_levels l = {.node = node, .column_ranks = column_ranks, .node_ranks = k, .place = me % k, .column = me % k, .columns = k, .members = t->ranks / k};
    for (int i = 0; i < k; i++)
        node[i] = me / k * k + i;
    for (int i = 0; i < l.members; i++)
        column_ranks[i] = i * k + me % k;
    struct column column = {g, &l};
    struct pl_network n = {.table = &pl_transport_tcp};
    n.rank = pl_alloc(sizeof column_ranks, "ranks");
    memcpy(n.rank, column_ranks, sizeof column_ranks);
    n.group = (struct pl_group){.me = me / k, .members = l.members, .rank = n.rank, .one_node = true, .allgather = allgather_column, .arg = &column};
    const struct pl_transport_options o = {.channels = 2, .interface = "lo", .timeout_ms = 20000};
    CHECK(n.table->open(&n.group, &o, &n.transport, n.how, sizeof n.how) == PL_OK, "open: %s", pl_error_text());
    struct pl_exchange_options xo = {.algorithm = t->algorithm, .compress = t->compress, .bucket_bytes = t->bucket_bytes, .timeout_ms = t->timeout_ms, .direct = t->direct, .values = t->values, .common = t->common};
    struct pl_exchange *x;
    CHECK(pl_exchange_create_in(t->node_ranks ? t->memory[me / k] : NULL, &l, &n, &xo, t->elems, &x) == PL_OK, "create: %s", pl_error_text());
    bool right = run_steps(t, me, x);
    if (t->hang == me)
        pl_sleep_ms(t->timeout_ms + 4000);
    forks_barrier(f);
    pl_exchange_destroy(x);
    return right;
}

static void run(struct trial t)
{
    size_t bytes = t.node_ranks ? pl_exchange_shared_bytes(t.node_ranks, t.elems, t.values, t.common) : 0;
    for (int i = 0; t.node_ranks && i < t.ranks / t.node_ranks; i++)
        t.memory[i] = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    t.bits = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_int_equal(forks_run(t.ranks, body, &t), 0);
    for (int r = 1; r < t.ranks; r++)
        if (t.bits[r] != t.bits[0])
            fail_msg("%s, %d ranks: rank %d has other bits", t.algorithm, t.ranks, r);
    munmap(t.bits, 4096);
    for (int i = 0; t.node_ranks && i < t.ranks / t.node_ranks; i++)
        munmap(t.memory[i], bytes);
}

static void test_one_level(void **state)
{
    (void)state;
    static const char *const algorithms[] = {"ring", "halving_doubling", "tree", "auto"};
    for (int ranks = 2; ranks <= 5; ranks++)
        for (int a = 0; a < 4; a++)
            for (int direct = 0; direct < 2; direct++) {
                run((struct trial){.ranks = ranks, .elems = 60011, .most_slice = 9000, .bucket_bytes = 16384, .timeout_ms = 30000, .algorithm = algorithms[a], .direct = direct, .hang = -1});
                run((struct trial){.ranks = ranks, .elems = 3, .most_slice = 3, .bucket_bytes = 4, .timeout_ms = 30000, .algorithm = algorithms[a], .direct = direct, .hang = -1});
            }
    run((struct trial){.ranks = 2, .elems = 1200007, .most_slice = 400000, .bucket_bytes = 1e6, .timeout_ms = 30000, .algorithm = "ring", .hang = -1});
    /* More buckets than can be posted at a time. */
    run((struct trial){.ranks = 3, .elems = 4001, .most_slice = 6, .bucket_bytes = 4, .timeout_ms = 30000, .algorithm = "ring", .hang = -1});
    run((struct trial){.ranks = 3, .elems = 2001, .most_slice = 6, .bucket_bytes = 4, .timeout_ms = 30000, .algorithm = "tree", .hang = -1});
}

static void test_two_levels(void **state)
{
    (void)state;
    for (int direct = 0; direct < 2; direct++) {
        run((struct trial){.ranks = 4, .node_ranks = 2, .elems = 60011, .most_slice = 9000, .bucket_bytes = 16384, .timeout_ms = 30000, .algorithm = "ring", .direct = direct, .common = 3, .hang = -1});
        run((struct trial){.ranks = 6, .node_ranks = 3, .elems = 20011, .most_slice = 900, .bucket_bytes = 4096, .timeout_ms = 30000, .algorithm = "tree", .direct = direct, .hang = -1});
        run((struct trial){.ranks = 4, .node_ranks = 2, .elems = 17, .most_slice = 17, .bucket_bytes = 4, .timeout_ms = 30000, .algorithm = "auto", .direct = direct, .hang = -1});
    }
}

static void test_many_values(void **state)
{
    (void)state;
    static const struct { int ranks, node_ranks, values; int64_t elems; } trials[] = {{2, 0, 17, 1000}, {3, 0, 4097, 0}, {5, 0, 1025, 60011}, {4, 2, 1025, 60011}, {6, 3, 4097, 0}};
    for (size_t i = 0; i < sizeof trials / sizeof *trials; i++)
        for (int direct = 0; direct < 2; direct++)
            run((struct trial){.ranks = trials[i].ranks, .node_ranks = trials[i].node_ranks, .values = trials[i].values, .elems = trials[i].elems, .most_slice = 9000,
                               .bucket_bytes = 16384, .timeout_ms = 30000, .algorithm = "auto", .direct = direct, .hang = -1});
}

static void test_compressed(void **state)
{
    (void)state;
    for (int node = 0; node <= 2; node += 2)
        run((struct trial){.ranks = 4, .node_ranks = node, .elems = 60011, .most_slice = 9000, .bucket_bytes = 16384, .timeout_ms = 30000, .algorithm = "auto", .compress = "bf16", .hang = -1});
}

static void test_missing(void **state)
{
    (void)state;
    run((struct trial){.ranks = 3, .elems = 60011, .most_slice = 9000, .bucket_bytes = 16384, .timeout_ms = 1500, .algorithm = "ring", .hang = 1});
    run((struct trial){.ranks = 4, .node_ranks = 2, .elems = 60011, .most_slice = 9000, .bucket_bytes = 16384, .timeout_ms = 1500, .algorithm = "ring", .hang = 3});
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_one_level), cmocka_unit_test(test_two_levels), cmocka_unit_test(test_many_values), cmocka_unit_test(test_compressed), cmocka_unit_test(test_missing)};
    return cmocka_run_group_tests_name("exchange over tcp", tests, NULL, NULL);
}
#else
int main(void)
{
    printf("skipped: tcp is not in this build\n");
    return 77;
}
#endif
