/* Local SGD on the ranks it is started with: after an averaging all have the same bits, parameters and, where it is
 * averaged, the optimizer's state; in between they differ. In shared memory, by MPI's all-reduce and over tcp; in each
 * step another rank has no samples. */
#include "check.h"
#include "made_up.h"

#define TAU 3
#define STEPS 11

/* Other samples on every rank and in every step, r + 1 of them on rank r. */
static void fill(struct made_up *m, const struct made_up_asked *asked)
{
    (void)asked;
    int rank = m->t.world->rank, ranks = m->t.world->ranks;
    int64_t step = m->t.state.step;
    made_up_noise(m, pl_rng_make(7, (uint64_t)rank, (uint64_t)step, 0), ranks > 1 && step % ranks == rank ? 0 : rank + 1);
}

static bool same_on_all(struct pl_trainer *t, const float *slab)
{
    uint64_t hash = pl_hash_words(PL_HASH_START, slab, (size_t)pl_graph_elems(t->graph) * sizeof *slab);
    double most[2] = {(double)(hash >> 12), -(double)(hash >> 12)};
    if (pl_exchange_max(t->exchange, most, 2) < 0)
        pl_world_abort(t->world, PL_ERR_PEER);
    return most[0] == -most[1];
}

static void check_step(struct pl_trainer *t, const struct pl_step_result *r, bool momentum, const char *how)
{
    int ranks = t->world->ranks;
    bool averaged = t->state.step % TAU == 0 || t->state.step == STEPS;
    bool params = same_on_all(t, pl_graph_params(t->graph)), state = same_on_all(t, pl_optimizer_slot(t->optimizer, 0));
    int64_t over = !averaged ? 0 : t->state.step % TAU ? t->state.step % TAU : TAU;
    double rows = 0;
    for (int64_t step = t->state.step - over; step < t->state.step; step++)
        for (int k = 0; k < ranks; k++)
            rows += ranks > 1 && step % ranks == k ? 0 : k + 1;
    CHECK(r->agreed == over, "%s, step %lld: agreed on %lld steps, wanted %lld", how, (long long)r->step, (long long)r->agreed, (long long)over);
    CHECK(r->rows == rows, "%s, step %lld: %g samples, wanted %g", how, (long long)r->step, r->rows, rows);
    CHECK(params == (averaged || ranks == 1), "%s, step %lld: parameters are %s on all ranks", how, (long long)r->step, params ? "the same" : "not the same");
    CHECK(state == ((averaged && momentum) || ranks == 1), "%s, step %lld: momentum is %s on all ranks", how, (long long)r->step, state ? "the same" : "not the same");
}

static void run(struct pl_world *w, const char *way, const char *momentum)
{
    struct made_up m = {.fill = fill};
    struct pl_step_result r;
    char how[96], *key[] = {"sync.kind=local_sgd", "sync.tau=3", "train.batch=5", "exchange.bucket_mb=0.3", "train.threads=1", "optimizer.lr=0.001", (char *)way, (char *)momentum};
    snprintf(how, sizeof how, "%s, %s", way, momentum);
    made_up_open(&m, w, made_up_job("lenet/mnist", sizeof key / sizeof *key, key), how);
    m.t.steps_per_epoch = 100;
    m.t.total_steps = STEPS;
    while (m.t.state.step < STEPS) {
        made_up_step(&m, &r);
        check_step(&m.t, &r, strcmp(momentum, "sync.average_momentum=true") == 0, how);
    }
    made_up_close(&m);
}

int main(int argc, char **argv)
{
    struct pl_world w;
    pl_status s = pl_world_start(&argc, &argv, &w);
    if (s < 0)
        return pl_world_finish(&w, s);
    static const char *const ways[] = {"exchange.transport=auto", "exchange.two_level=never", "exchange.transport=tcp"};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        run(&w, ways[i], "sync.average_momentum=false");
        run(&w, ways[i], "sync.average_momentum=true");
    }
    int code = pl_world_finish(&w, PL_OK);
    return failures ? 1 : code;
}
