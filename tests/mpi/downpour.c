/* Downpour on the ranks it is started with, over MPI and tcp: every sample is handed out once an epoch, whoever is slow;
 * at a meeting all ranks hold the same bits, parameters and optimizer's state, and the same place; no gradient is lost:
 * every micro-batch comes to every shard once. */
#include "check.h"
#include "made_up.h"

enum { SAMPLES = 203, EPOCHS = 3 };

static void fill(struct made_up *m, const struct made_up_asked *a)
{
    m->batch.epoch = a->epoch;
    m->batch.begin = a->first;
    m->batch.end = a->first + a->rows;
    made_up_noise(m, pl_rng_make(7, (uint64_t)a->epoch, (uint64_t)a->first, 0), a->rows);
}

/* The sync's own thread has MPI: what is to be compared is kept, and compared when it is over. */
struct kept { int meetings; double hash[64]; };

static void keep(struct kept *k, struct pl_trainer *t)
{
    uint64_t h = pl_hash_words(PL_HASH_START, pl_graph_params(t->graph), (size_t)pl_graph_elems(t->graph) * sizeof(float));
    for (int i = 0; i < pl_optimizer_slots(t->optimizer); i++)
        h = pl_hash_words(h, pl_optimizer_slot(t->optimizer, i), (size_t)pl_graph_elems(t->graph) * sizeof(float));
    int64_t place[3] = {t->state.step, t->state.epoch, t->state.position};
    k->hash[k->meetings++] = (double)(pl_hash(h, place, sizeof place) >> 12);
}

static void compare(struct pl_world *w, const struct kept *mine, const struct made_up *m, int wanted, const char *how)
{
    struct kept first = *mine;
    float all[EPOCHS * SAMPLES];
    if (pl_world_broadcast(w, &first, sizeof first, 0) < 0 || pl_world_allreduce(w, m->seen, all, EPOCHS * SAMPLES) < 0)
        pl_world_abort(w, PL_ERR_PEER);
    CHECK(mine->meetings == wanted, "%s: %d meetings, wanted %d", how, mine->meetings, wanted);
    for (int i = 0; i < mine->meetings; i++)
        CHECK(mine->hash[i] == first.hash[i], "%s: at meeting %d other bits, or another place, than rank 0", how, i);
    for (int i = 0; i < EPOCHS * SAMPLES; i++)
        CHECK(all[i] == 1, "%s: sample %d of epoch %d handed out %g times", how, i % SAMPLES, i / SAMPLES, (double)all[i]);
}

static void check_counts(struct pl_trainer *t, const char *how)
{
    const struct pl_staleness *s = t->sync_table->apart->staleness(t->sync);
    int64_t pushes = 0, batches = 0, n = t->job->sync.n_push;
    for (int i = 0; i <= PL_STALENESS_MOST; i++)
        pushes += s->count[i];
    for (int r = 0; r < t->world->ranks; r++)
        batches += s->share[r];
    if (n == 1)
        CHECK(pushes == batches * t->world->ranks, "%s: %lld gradients at %d shards, of %lld micro-batches", how, (long long)pushes, t->world->ranks, (long long)batches);
    CHECK(pushes >= batches * t->world->ranks / n, "%s: %lld gradients of %lld micro-batches", how, (long long)pushes, (long long)batches);
    CHECK(s->dropped == 0, "%s: %lld dropped", how, (long long)s->dropped);
}

static void run(struct pl_world *w, const char *way, const char *push, const char *kind)
{
    struct made_up m = {.samples = SAMPLES, .epochs = EPOCHS, .fill = fill};
    struct pl_trainer *t = &m.t;
    struct kept kept = {0};
    struct pl_step_result r;
    struct pl_parting parting;
    char how[128], *key[] = {"sync.kind=downpour", "train.epochs=3", "train.batch=5", "train.eval_every=6 steps", "train.threads=1", "optimizer.lr=0.0001",
                             "checkpoint.every=never", "debug.delay={rank: 0, ms: 3}", (char *)way, (char *)push, (char *)kind};
    snprintf(how, sizeof how, "%s, %s, %s", way, push, kind);
    made_up_open(&m, w, made_up_job("lenet/mnist", sizeof key / sizeof *key, key), how);
    for (r.apart = false; r.apart || t->state.step < t->total_steps;) {
        made_up_step(&m, &r);
        if (!r.apart)
            keep(&kept, t);
    }
    CHECK(t->state.epoch == EPOCHS && t->state.position == 0, "%s: it ended in epoch %lld at %lld", how, (long long)t->state.epoch, (long long)t->state.position);
    if (w->rank == 0)
        check_counts(t, how);
    pl_status s = t->sync_table->meshed->leave(t->sync, 0, true, &parting);
    CHECK(s == PL_OK && parting.clean, "%s: they did not part in order", how);
    compare(w, &kept, &m, (int)((t->total_steps + 5) / 6), how);
    made_up_close(&m);
}

int main(int argc, char **argv)
{
    struct pl_world w;
    pl_status s = pl_world_start(&argc, &argv, &w);
    if (s < 0)
        return pl_world_finish(&w, s);
    static const char *const ways[] = {"exchange.transport=mpi", "exchange.transport=tcp"};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        run(&w, ways[i], "sync.n_push=1", "optimizer.kind=sgd");
        run(&w, ways[i], "sync.n_push=3", "optimizer.kind=adam");
        run(&w, ways[i], "sync.n_fetch=4", "optimizer.kind=momentum");
    }
    int code = pl_world_finish(&w, PL_OK);
    return failures ? 1 : code;
}
