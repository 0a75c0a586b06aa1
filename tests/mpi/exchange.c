/* The exchange on the ranks it is started with, in shared memory, by MPI's all-reduce, by our own algorithms over
 * MPI and tcp, and on two levels, with nodes that are only made up: sums of buckets of all sizes, the own gradient left as
 * it was, equal bits on all ranks, small sums beside, requests in any number, and MPI's all-reduce where memory
 * cannot be shared. */
#include "check.h"
#include "exchange/exchange.h"

#include <ifaddrs.h>
#include <math.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>

#define ELEMS 100003

static float value(int rank, int64_t i, int step) { return (float)((i * 7 + rank * 13 + step) % 1001) - 500; }

/* Hands the slab over in pieces of a random size, from the far end. */
static void run_step(struct pl_exchange *x, const struct pl_world *w, int step, unsigned *seed)
{
    struct pl_exchange_times times;
    float *mine = pl_exchange_gradient(x);
    double small[3] = {1, (double)w->rank, (double)step};
    CHECK(pl_exchange_begin(x, step) == PL_OK, "begin");
    for (int64_t i = 0; i < ELEMS; i++)
        mine[i] = value(w->rank, i, step);
    CHECK(pl_exchange_post_sum(x, small, 3) == PL_OK, "post");
    for (int64_t end = ELEMS; end > 0;) {
        int64_t n = 1 + (int64_t)(rand_r(seed) % 20000);
        int64_t begin = n > end ? 0 : end - n;
        CHECK(pl_exchange_ready(x, begin, end) == PL_OK, "ready: %s", pl_error_text());
        end = begin;
    }
    CHECK(pl_exchange_finish(x, &times) == PL_OK, "finish: %s", pl_error_text());
    CHECK(times.within_ms >= 0 && times.exposed_ms >= times.within_ms, "exposed %g ms, %g within", times.exposed_ms, times.within_ms);
    const float *sum = pl_exchange_agreed(x);
    for (int64_t i = 0; i < ELEMS; i++) {
        float wanted = 0;
        for (int r = 0; r < w->ranks; r++)
            wanted += value(r, i, step);
        if (sum[i] != wanted || mine[i] != value(w->rank, i, step)) {
            CHECK(0, "step %d element %lld: %g, wanted %g", step, (long long)i, sum[i], wanted);
            break;
        }
    }
    CHECK(w->ranks == 1 || small[0] == w->ranks, "small sum %g, wanted %d", small[0], w->ranks);
    CHECK(w->ranks == 1 || small[1] == w->ranks * (w->ranks - 1) / 2.0, "small sum of ranks %g", small[1]);
}

/* What the ranks of a node share, if they do: each writes a part, and all see the whole. */
static void check_common(struct pl_exchange *x, const struct pl_world *w, int step)
{
    float *common = pl_exchange_common(x, 0);
    struct pl_span near = pl_exchange_near(x);
    bool shares = strstr(pl_exchange_algorithm(x), "shared memory") != NULL;
    CHECK((common != NULL) == shares && !pl_exchange_common(x, 1), "rank %d: it has %s slab in common", w->rank, common ? "a" : "no");
    if (!common)
        return;
    for (int64_t i = near.a; i < near.b; i++)
        common[i] = value(w->leader, i, step);
    CHECK(pl_exchange_meet(x) == PL_OK, "meet: %s", pl_error_text());
    for (int64_t i = 0; i < ELEMS; i++)
        if (common[i] != value(w->leader, i, step)) {
            CHECK(0, "step %d, common element %lld: %g, wanted %g", step, (long long)i, common[i], value(w->leader, i, step));
            break;
        }
}

static void check_equal_bits(struct pl_world *w, const float *sum)
{
    uint64_t mine = pl_hash(PL_HASH_START, sum, ELEMS * sizeof *sum), *all = calloc((size_t)w->ranks, sizeof *all);
    pl_world_allgather(w, &mine, sizeof mine, all);
    for (int r = 0; r < w->ranks; r++)
        CHECK(all[r] == mine, "rank %d has other bits", r);
    free(all);
}

struct way { const char *transport, *algorithm, *name, *why; bool two_level, direct; int node_ranks; const char *compress; double ratio; bool apart; };

/* As if every so many ranks were a node. */
static struct pl_world on_nodes(const struct pl_world *w, int node_ranks)
{
    struct pl_world made_up = *w;
    if (node_ranks == 0)
        return made_up;
    int last = w->ranks % node_ranks ? w->ranks % node_ranks : node_ranks;
    made_up.nodes = (w->ranks + node_ranks - 1) / node_ranks;
    made_up.leader = w->rank / node_ranks * node_ranks;
    made_up.local_rank = w->rank % node_ranks;
    made_up.local_ranks = made_up.leader + node_ranks <= w->ranks ? node_ranks : w->ranks - made_up.leader;
    made_up.least_local = made_up.nodes > 1 ? last : made_up.local_ranks;
    made_up.most_local = made_up.nodes > 1 ? node_ranks : made_up.local_ranks;
    return made_up;
}

static struct pl_exchange *opened(struct pl_world *w, const struct way *way, int64_t elems)
{
    struct pl_exchange *x;
    struct pl_exchange_options o = {.transport = way->transport, .algorithm = way->algorithm, .two_level = way->two_level, .direct = way->direct,
                                    .compress = way->compress, .compress_ratio = way->ratio, .network = {.channels = 2, .interface = way->node_ranks > 0 ? NULL : "lo"}, .common = !way->apart, .bucket_bytes = 65536, .timeout_ms = 30000};
    if (pl_exchange_create(w, &o, elems, &x) < 0)
        pl_world_abort(w, PL_ERR_PEER);
    return x;
}

static void check_algorithm(const struct pl_exchange *x, const struct pl_world *w, const char *wanted, const char *why)
{
    const char *found = pl_exchange_algorithm(x);
    if (w->ranks == 1)
        wanted = "none", why = "one rank";
    CHECK(strcmp(found, wanted) == 0, "algorithm %s, wanted %s", found, wanted);
    CHECK(strstr(pl_exchange_why(x), why) != NULL, "why: \"%s\", wanted \"%s\"", pl_exchange_why(x), why);
    if (w->rank == 0)
        printf("%s: %s\n", found, pl_exchange_why(x));
}

static void run_steps(struct pl_world *w, struct pl_exchange *x)
{
    unsigned seed = 1; /* the same pieces on every rank */
    for (int step = 0; step < 20; step++) {
        run_step(x, w, step, &seed);
        check_common(x, w, step);
    }
    double most = w->rank;
    CHECK(pl_exchange_max(x, &most, 1) == PL_OK && most == w->ranks - 1, "max %g", most);
    CHECK(pl_exchange_begin(x, 99) == PL_OK, "begin");
    CHECK(pl_exchange_ready(x, 0, ELEMS - 1) < 0, "a gap was taken");
    pl_error_clear();
}

static void test_steps(struct pl_world *w, const struct way *way)
{
    struct pl_exchange *x = opened(w, way, ELEMS);
    check_algorithm(x, w, way->name, way->why);
    run_steps(w, x);
    float *sum = malloc(ELEMS * sizeof *sum);
    memcpy(sum, pl_exchange_agreed(x), ELEMS * sizeof *sum);
    pl_exchange_destroy(x);
    check_equal_bits(w, sum);
    free(sum);
}

/* An evaluation has no gradient. */
static void test_values_alone(struct pl_world *w, const struct way *way)
{
    struct pl_exchange *x = opened(w, way, 0);
    double v[2] = {w->rank, 1};
    for (int i = 0; i < 3; i++) {
        double s[2] = {v[0], v[1]};
        CHECK(pl_exchange_sum(x, s, 2) == PL_OK && s[0] == w->ranks * (w->ranks - 1) / 2.0 && s[1] == w->ranks, "sums %g, %g", s[0], s[1]);
    }
    pl_exchange_destroy(x);
}

static const struct way shared = {"auto", "auto", "shared memory", "that they share", .two_level = true};

/* One rank cannot have the memory: all take MPI's all-reduce, and know why. */
static void test_fall_back(struct pl_world *w)
{
    CHECK(pl_fault_configure("exchange.shared@rank=1:fail", w->rank) == PL_OK, "fault");
    struct way apart = shared;
    apart.apart = true;
    struct pl_exchange *x = opened(w, &apart, ELEMS);
    check_algorithm(x, w, "native", "no shared memory: rank 1 cannot have");
    const struct pl_exchange_options together = {.transport = "auto", .two_level = true, .common = 1, .bucket_bytes = 65536, .timeout_ms = 30000};
    struct pl_exchange *none;
    CHECK(w->ranks == 1 || pl_exchange_create(w, &together, ELEMS, &none) == PL_ERR_MEMORY, "what is common takes memory that is shared");
    pl_error_clear();
    pl_fault_configure(NULL, w->rank);
    run_steps(w, x);
    pl_exchange_destroy(x);
}

/* The same gradient in every step: what a step loses comes later, so that the mean of the steps gets near. */
static void test_compressed(struct pl_world *w, const struct way *way, double tolerance)
{
    enum { REPEAT = 60 };
    struct pl_world made_up = on_nodes(w, way->node_ranks);
    if (w->ranks == 1 || (way->node_ranks > 0 && made_up.nodes < 2))
        return;
    struct pl_exchange *x = opened(&made_up, way, ELEMS);
    struct pl_exchange_times times;
    double *total = calloc(ELEMS, sizeof *total), worst = 0, first = 0;
    check_algorithm(x, w, way->name, way->why);
    for (int step = 0; step < REPEAT; step++) {
        float *mine = pl_exchange_gradient(x);
        CHECK(pl_exchange_begin(x, step) == PL_OK, "begin");
        for (int64_t i = 0; i < ELEMS; i++)
            mine[i] = value(w->rank, i * 31, 0) / 7;
        for (int64_t end = ELEMS; end > 0; end = end > 30000 ? end - 30000 : 0)
            CHECK(pl_exchange_ready(x, end > 30000 ? end - 30000 : 0, end) == PL_OK, "ready: %s", pl_error_text());
        CHECK(pl_exchange_finish(x, &times) == PL_OK, "finish: %s", pl_error_text());
        check_equal_bits(w, pl_exchange_agreed(x));
        for (int64_t i = 0; i < ELEMS; i++)
            total[i] += (double)pl_exchange_agreed(x)[i];
        for (int64_t i = 0; i < ELEMS; i++) {
            double wanted = 0;
            for (int r = 0; r < w->ranks; r++)
                wanted += (double)(value(r, i * 31, 0) / 7);
            double error = fabs(total[i] / (step + 1) - wanted);
            if (step == 0 && error > first)
                first = error;
            if (step == REPEAT - 1 && error > worst)
                worst = error;
        }
    }
    CHECK(first > 0, "%s lost nothing in the first step", way->compress);
    CHECK(worst < tolerance * w->ranks, "%s: after %d steps still %g off, %g in the first", way->compress, REPEAT, worst, first);
    if (w->rank == 0)
        printf("%s: error %g in the first step, of the mean of %d steps %g\n", way->name, first, REPEAT, worst);
    free(total);
    pl_exchange_destroy(x);
}

/* Made-up nodes must not meet by loopback: the machine's own address does as well. */
static bool has_address(void)
{
    struct ifaddrs *list;
    bool found = false;
    if (getifaddrs(&list) != 0)
        return false;
    for (struct ifaddrs *i = list; i; i = i->ifa_next)
        found |= i->ifa_addr && i->ifa_addr->sa_family == AF_INET && (i->ifa_flags & IFF_UP) && !(i->ifa_flags & IFF_LOOPBACK);
    freeifaddrs(list);
    return found;
}

static void test_way(struct pl_world *w, const struct way *way)
{
    struct pl_world made_up = on_nodes(w, way->node_ranks);
    if (way->node_ranks > 0 && made_up.nodes < 2)
        return;
    test_steps(&made_up, way);
    test_values_alone(&made_up, way);
}

int main(int argc, char **argv)
{
    static const struct way ways[] = {
        {"auto", "auto", "native", "by the job's choice", .two_level = false},
        {"mpi", "auto", "native", "by the job's choice", .two_level = true},
        {"mpi", "native", "native", "by the job's choice", .direct = true},
        {"mpi", "ring", "ring", "by the job's choice", .two_level = true},
        {"mpi", "ring", "ring", "by the job's choice", .direct = true},
        {"mpi", "halving_doubling", "halving_doubling", "by the job's choice", .two_level = false},
        {"mpi", "tree", "tree", "by the job's choice", .two_level = false},
        {"mpi", "auto", "native", "one rank a node", .two_level = true, .node_ranks = 1},
        {"tcp", "ring", "ring", "by lo", .two_level = true},
        {"tcp", "halving_doubling", "halving_doubling", "by lo", .two_level = true, .direct = true},
        {"tcp", "ring", "shared memory, ring", "that they share", .two_level = true, .node_ranks = 2},
        {"tcp", "tree", "shared memory, tree", "that they share", .two_level = true, .direct = true, .node_ranks = 2},
        {"mpi", "auto", "shared memory, native", "that they share", .two_level = true, .node_ranks = 2},
        {"mpi", "ring", "shared memory, ring", "that they share", .two_level = true, .node_ranks = 2},
        {"mpi", "ring", "shared memory, ring", "that they share", .two_level = true, .direct = true, .node_ranks = 2},
        {"mpi", "tree", "shared memory, tree", "that they share", .two_level = true, .node_ranks = 3},
    };
    const struct pl_transport_options none = {.channels = 2};
    char why[256];
    struct pl_world w;
    if (pl_world_start(&argc, &argv, &w) < 0)
        return 1;
    bool tcp = pl_transport_list()[1]->probe(&w, &none, true, why, sizeof why);
    test_way(&w, &shared);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        if (strcmp(ways[i].transport, "tcp") != 0 || (tcp && (ways[i].node_ranks == 0 || has_address())))
            test_way(&w, &ways[i]);
    test_compressed(&w, &(struct way){"mpi", "auto", "compressed bf16", "choice", .two_level = false, .compress = "bf16"}, 0.01);
    test_compressed(&w, &(struct way){"mpi", "auto", "compressed one_bit", "choice", .two_level = true, .compress = "one_bit"}, 15);
    test_compressed(&w, &(struct way){"mpi", "auto", "compressed top_k", "choice", .two_level = true, .compress = "top_k", .ratio = 0.2}, 15);
    test_compressed(&w, &(struct way){"mpi", "auto", "shared memory, compressed one_bit", "share", .two_level = true, .node_ranks = 2, .compress = "one_bit"}, 15);
    test_fall_back(&w);
    pl_world_finish(&w, PL_OK);
    return failures ? 1 : 0;
}
