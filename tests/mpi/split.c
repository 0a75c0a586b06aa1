/* Ranks in rows and columns: worlds of their own, memory and values between the stages of a row while the columns add up
 * gradients, each with a thread of its own over the same transport. Rows of every length that divides the ranks. */
#include "check.h"
#include "split/carrier.h"
#include "split/split.h"

#include <stdlib.h>
#include <string.h>

#define ELEMS 300007
#define MOST 200003 /* of what crosses */
static const struct pl_carrier_words words = {"stage", "stages", "to stage", "from stage", "wait for stage"};
enum { ROUNDS = 12, AT_ONCE = 5 };

static void check_world(const struct pl_world *w, const struct pl_world *part, int rank, int ranks, int step, int first)
{
    CHECK(part->rank == rank && part->ranks == ranks, "rank %d of %d, wanted %d of %d", part->rank, part->ranks, rank, ranks);
    CHECK(part->local_rank == rank && part->local_ranks == ranks && part->nodes == 1, "local rank %d of %d", part->local_rank, part->local_ranks);
    for (int r = 0; r < part->ranks; r++)
        CHECK(pl_world_run_rank(part, r) == first + r * step, "rank %d is rank %d of the run, wanted %d", r, pl_world_run_rank(part, r), first + r * step);
    CHECK(pl_world_run_rank(w, w->rank) == w->rank, "the run's own numbers");
}

static void check_agreement(struct pl_grid *g)
{
    int rank, code, said = g->row.rank;
    CHECK(pl_world_broadcast(&g->row, &said, sizeof said, g->stages - 1) == PL_OK && said == g->stages - 1, "broadcast in a row: %d", said);
    CHECK(pl_world_first(&g->column, g->stage == 1 && g->replica == 0 ? 7 : 0, &rank, &code) == PL_OK, "first");
    CHECK(g->stage == 1 ? rank == 0 && code == 7 : rank == -1, "stage %d: rank %d, code %d", g->stage, rank, code);
    const int last = g->stages - 1, follow[] = {PL_ERR_ECHO, PL_ERR_PEER}, cause[] = {PL_ERR_PEER, PL_ERR_MEMORY};
    for (int i = 0; i < 2; i++) {
        CHECK(pl_world_first(&g->row, g->row.rank == last ? cause[i] : follow[i], &rank, &code) == PL_OK, "first");
        CHECK(rank == last && code == cause[i], "the cause is rank %d's, %d: rank %d, code %d", last, cause[i], rank, code);
    }
}

static float value(int from, int round, int k, int64_t i) { return (float)((i * 3 + from * 101 + round * 11 + k) % 4093); }
static int64_t length(int round, int k) { return 1 + (int64_t)round * 7919 * (k + 1) % MOST; }

struct side { struct pl_crossing out[AT_ONCE], in[AT_ONCE]; float *memory; int stage, out_from, in_from; };

static void post(struct pl_carrier *c, struct pl_crossing *x, bool sends, int stage, float *p, int64_t n)
{
    *x = (struct pl_crossing){.sends = sends, .stage = stage, .memory = p, .bytes = (size_t)n * sizeof *p};
    pl_carrier_post(c, x);
}

/* To the stage beside this one and back, several at once; what is received is asked for late now and then. */
static void exchange_with(struct pl_carrier *c, struct side *s, const struct pl_grid *g, int round)
{
    for (int k = 0; k < AT_ONCE; k++) {
        float *out = s->memory + (int64_t)k * MOST, *in = out + (int64_t)AT_ONCE * MOST;
        for (int64_t i = 0; i < length(round, k); i++)
            out[i] = value(g->stage, round, k, i);
        post(c, &s->out[k], true, s->stage, out, length(round, k));
        post(c, &s->in[k], false, s->stage, in, length(round, k));
    }
}

static void check_exchanged(struct pl_carrier *c, struct side *s, int round)
{
    for (int k = 0; k < AT_ONCE; k++) {
        const float *in = s->memory + (int64_t)(AT_ONCE + k) * MOST;
        int64_t i = 0;
        CHECK(pl_carrier_wait(c, &s->in[k]) == PL_OK && pl_carrier_wait(c, &s->out[k]) == PL_OK, "crossing: %s", pl_error_text());
        while (i < length(round, k) && in[i] == value(s->stage, round, k, i))
            i++;
        CHECK(i == length(round, k), "round %d, crossing %d from stage %d: element %lld is %g", round, k, s->stage, (long long)i, in[i]);
    }
}

static void start_sum(struct pl_exchange *x, const struct pl_grid *g, int round)
{
    float *mine = pl_exchange_gradient(x);
    CHECK(pl_exchange_begin(x, round) == PL_OK, "begin");
    for (int64_t i = 0; i < ELEMS; i++)
        mine[i] = value(g->replica, round, g->stage, i);
    CHECK(pl_exchange_ready(x, 0, ELEMS) == PL_OK, "ready: %s", pl_error_text());
}

static void check_sum(struct pl_exchange *x, const struct pl_grid *g, int round)
{
    struct pl_exchange_times times;
    int64_t i = 0;
    CHECK(pl_exchange_finish(x, &times) == PL_OK, "finish: %s", pl_error_text());
    for (const float *sum = pl_exchange_agreed(x); i < ELEMS; i++) {
        float wanted = 0;
        for (int r = 0; r < g->replicas; r++)
            wanted += value(r, round, g->stage, i);
        if (sum[i] != wanted)
            break;
    }
    CHECK(i == ELEMS, "round %d: element %lld of the sum", round, (long long)i);
}

static void check_values(struct pl_carrier *c, const struct pl_grid *g, int round)
{
    const double mine[] = {g->stage, round, 0.5}, *all;
    CHECK(pl_carrier_gather(c, mine, 3, &all) == PL_OK, "values: %s", pl_error_text());
    for (int s = 0; s < g->stages; s++)
        CHECK(all[s * PL_EXCHANGE_VALUES] == s && all[s * PL_EXCHANGE_VALUES + 1] == round, "values of stage %d: %g, %g", s, all[s * PL_EXCHANGE_VALUES],
              all[s * PL_EXCHANGE_VALUES + 1]);
}

static void run_rounds(struct pl_carrier *c, struct pl_exchange *x, const struct pl_grid *g)
{
    struct side side[2] = {{.stage = g->stage - 1}, {.stage = g->stage + 1}};
    for (int i = 0; i < 2; i++)
        side[i].memory = pl_alloc(sizeof(float) * 2 * AT_ONCE * MOST, "what crosses");
    for (int round = 0; round < ROUNDS; round++) {
        if (g->replicas > 1)
            start_sum(x, g, round);
        for (int i = 0; i < 2; i++)
            if (side[i].stage >= 0 && side[i].stage < g->stages)
                exchange_with(c, &side[i], g, round);
        if (round % 3 == g->stage)
            pl_sleep_ms(5);
        check_values(c, g, round);
        for (int i = 0; i < 2; i++)
            if (side[i].stage >= 0 && side[i].stage < g->stages)
                check_exchanged(c, &side[i], round);
        check_values(c, g, -round);
        if (g->replicas > 1)
            check_sum(x, g, round);
    }
    for (int i = 0; i < 2; i++)
        pl_free(side[i].memory);
}

static void test_grid(struct pl_world *w, int stages, const char *transport, const char *algorithm)
{
    struct pl_grid g;
    struct pl_carrier *c = NULL;
    struct pl_exchange *x = NULL;
    const struct pl_exchange_options o = {.transport = transport, .algorithm = algorithm, .network = {.channels = 2}, .bucket_bytes = 1 << 16, .timeout_ms = 30000};
    CHECK(pl_grid_open(w, stages, 1, &g) == PL_OK, "grid: %s", pl_error_text());
    check_world(w, &g.row, w->rank % stages, stages, 1, w->rank / stages * stages);
    check_world(w, &g.column, w->rank / stages, w->ranks / stages, stages, w->rank % stages);
    check_agreement(&g);
    CHECK(pl_carrier_open(&g.row, &words, &o, &c) == PL_OK, "carrier: %s", pl_error_text());
    CHECK(pl_exchange_create(&g.column, &o, ELEMS, &x) == PL_OK, "exchange: %s", pl_error_text());
    if (c && x)
        run_rounds(c, x, &g);
    pl_exchange_destroy(x);
    pl_carrier_close(c, false);
    pl_grid_close(&g);
}

/* A stage that stays away is named. */
static void test_absent(struct pl_world *w, const char *transport)
{
    struct pl_grid g;
    struct pl_carrier *c = NULL;
    float memory[16];
    int here = 0;
    struct pl_crossing x;
    const struct pl_exchange_options o = {.transport = transport, .network = {.channels = 1}, .bucket_bytes = 1 << 16, .timeout_ms = 300};
    CHECK(pl_grid_open(w, w->ranks, 1, &g) == PL_OK && pl_carrier_open(&g.row, &words, &o, &c) == PL_OK, "open: %s", pl_error_text());
    if (g.stage == 0) {
        post(c, &x, false, 1, memory, 16);
        CHECK(pl_carrier_wait(c, &x) == PL_ERR_PEER, "nothing came, and that was no error");
        CHECK(pl_error_text() && strstr(pl_error_text(), "waited 0.3 s for rank 1, stage 1"), "message: %s", pl_error_text());
    }
    pl_error_clear();
    pl_world_broadcast(w, &here, sizeof here, 0); /* the others wait for it */
    pl_carrier_close(c, true);
    CHECK(pl_carrier_open(&g.row, &words, &o, &c) == PL_OK, "open: %s", pl_error_text());
    if (g.stage == 0) {
        const double mine = 1, *all;
        char wanted[64];
        snprintf(wanted, sizeof wanted, "missing: rank %s", w->ranks == 2 ? "1\n" : w->ranks == 3 ? "1, 2\n" : "1, 2, 3\n");
        CHECK(pl_carrier_gather(c, &mine, 1, &all) == PL_ERR_PEER && strstr(pl_error_text(), wanted), "message: %s", pl_error_text());
    }
    pl_error_clear();
    pl_world_broadcast(w, &here, sizeof here, 0);
    pl_carrier_close(c, true);
    g.row.whole->lost = true;
    pl_grid_close(&g);
    w->lost = false;
}

int main(int argc, char **argv)
{
    static const char *const ways[][2] = {{"mpi", "native"}, {"mpi", "ring"}, {"tcp", "ring"}, {"auto", "auto"}};
    const struct pl_transport_options none = {.channels = 2};
    char why[256];
    struct pl_world w;
    if (pl_world_start(&argc, &argv, &w) < 0)
        return 1;
    bool tcp = pl_transport_list()[1]->probe(&w, &none, true, why, sizeof why);
    for (int stages = 2; stages <= w.ranks; stages++)
        for (size_t i = 0; i < sizeof ways / sizeof *ways && w.ranks % stages == 0; i++)
            if (tcp || strcmp(ways[i][0], "tcp") != 0)
                test_grid(&w, stages, ways[i][0], ways[i][1]);
    struct pl_grid g;
    CHECK(pl_grid_open(&w, w.ranks + 1, 1, &g) == PL_ERR_USAGE, "more stages than ranks");
    w.reported = false;
    pl_error_clear();
    if (tcp && w.ranks > 1)
        test_absent(&w, "tcp");
    pl_world_finish(&w, PL_OK);
    return failures ? 1 : 0;
}
