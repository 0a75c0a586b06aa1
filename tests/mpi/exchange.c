/* The exchange on the ranks it is started with: sums of buckets of all sizes, the own gradient left
 * as it was, equal bits on all ranks, small sums beside, requests in any number. */
#include "sync/sync.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ELEMS 100003

static int failures;
#define CHECK(cond, ...)                          \
    do {                                          \
        if (!(cond)) {                            \
            failures++;                           \
            fprintf(stderr, "%s:%d: ", __FILE__, __LINE__); \
            fprintf(stderr, __VA_ARGS__);         \
            fputc('\n', stderr);                  \
        }                                         \
    } while (0)

static float value(int rank, int64_t i, int step) { return (float)((i * 7 + rank * 13 + step) % 1001) - 500; }

/* Hands the slab over in pieces of a random size, from the far end. */
static void run_step(struct pl_exchange *x, struct pl_world *w, float *mine, float *sum, int step, unsigned *seed)
{
    struct pl_exchange_times times;
    double small[3] = {1, (double)w->rank, (double)step};
    for (int64_t i = 0; i < ELEMS; i++)
        mine[i] = value(w->rank, i, step);
    CHECK(pl_exchange_begin(x, mine, sum, ELEMS, step) == PL_OK, "begin");
    CHECK(pl_exchange_post_sum(x, small, 3) == PL_OK, "post");
    for (int64_t end = ELEMS; end > 0;) {
        int64_t n = 1 + (int64_t)(rand_r(seed) % 20000);
        int64_t begin = n > end ? 0 : end - n;
        CHECK(pl_exchange_ready(x, begin, end) == PL_OK, "ready: %s", pl_error_text());
        end = begin;
    }
    CHECK(pl_exchange_finish(x, &times) == PL_OK, "finish: %s", pl_error_text());
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

static void check_equal_bits(struct pl_world *w, const float *sum)
{
    uint64_t mine = pl_hash(PL_HASH_START, sum, ELEMS * sizeof *sum), *all = calloc((size_t)w->ranks, sizeof *all);
    pl_world_allgather(w, &mine, sizeof mine, all);
    for (int r = 0; r < w->ranks; r++)
        CHECK(all[r] == mine, "rank %d has other bits", r);
    free(all);
}

int main(int argc, char **argv)
{
    struct pl_world w;
    struct pl_exchange *x;
    struct pl_exchange_options o = {.transport = "auto", .bucket_bytes = 65536, .timeout_ms = 30000};
    float *mine = calloc(ELEMS, sizeof *mine), *sum = calloc(ELEMS, sizeof *sum);
    unsigned seed = 1; /* the same pieces on every rank */
    if (pl_world_start(&argc, &argv, &w) < 0 || pl_exchange_create(&w, &o, &x) < 0)
        return 1;
    for (int step = 0; step < 20; step++)
        run_step(x, &w, mine, sum, step, &seed);
    double most = w.rank;
    CHECK(pl_exchange_max(x, &most, 1) == PL_OK && most == w.ranks - 1, "max %g", most);
    CHECK(pl_exchange_begin(x, mine, sum, ELEMS, 99) == PL_OK, "begin");
    CHECK(pl_exchange_ready(x, 0, ELEMS - 1) < 0, "a gap was taken");
    pl_error_clear();
    pl_exchange_destroy(x);
    check_equal_bits(&w, sum);
    free(mine);
    free(sum);
    pl_world_finish(&w, PL_OK);
    return failures ? 1 : 0;
}
