/* Downpour on the ranks it is started with, over MPI and tcp: every sample is handed out once an epoch, whoever is slow;
 * at a meeting all ranks hold the same bits, parameters and optimizer's state, and the same place; no gradient is lost:
 * every micro-batch comes to every shard once. */
#include "train/train.h"

#include "check.h"

#include <stdlib.h>
#include <string.h>

enum { SAMPLES = 203, EPOCHS = 3 };

enum { MOST = 8 };
struct asked { int64_t epoch, first, rows; };
struct made_up {
    struct pl_batch batch;
    struct pl_trainer *t;
    struct pl_queue *asked;
    struct asked ring[MOST];
    int next;
    float seen[EPOCHS * SAMPLES];
};

static pl_status feed(void *arg)
{
    struct made_up *m = arg;
    m->asked = m->asked ? m->asked : pl_queue_create(MOST);
    return PL_OK;
}

static pl_status ask(void *arg, int64_t epoch, int64_t first, int64_t rows)
{
    struct made_up *m = arg;
    struct asked *a = &m->ring[m->next++ % MOST];
    *a = (struct asked){epoch, first, rows};
    for (int64_t i = first; i < first + rows; i++)
        m->seen[epoch * SAMPLES + i]++;
    return pl_queue_put(m->asked, a);
}

static pl_status next(void *arg, struct pl_batch **out)
{
    struct made_up *m = arg;
    void *item;
    int64_t row = m->t->job->input.dim[0] * m->t->job->input.dim[1] * m->t->job->input.dim[2];
    if (pl_queue_get(m->asked, 60000, &item) != PL_OK)
        return pl_error(PL_ERR_DATA, "test", "nothing was asked for");
    const struct asked *a = item;
    struct pl_rng r = pl_rng_make(7, (uint64_t)a->epoch, (uint64_t)a->first, 0);
    m->batch.epoch = a->epoch;
    m->batch.begin = a->first;
    m->batch.end = a->first + a->rows;
    m->batch.rows = a->rows;
    memset(m->batch.data, 0, (size_t)(m->batch.capacity * row) * sizeof(float));
    pl_rng_normals(&r, m->batch.data, m->batch.rows * row);
    for (int64_t i = 0; i < m->batch.capacity; i++)
        ((int32_t *)m->batch.label)[i] = (int32_t)pl_rng_below(&r, 10);
    *out = &m->batch;
    return PL_OK;
}

static void release(void *arg, struct pl_batch *b) { (void)arg, (void)b; }
static pl_status deal(void *arg, int64_t g, int rank, int ranks, int64_t epoch, int64_t position)
{
    (void)arg, (void)g, (void)rank, (void)ranks, (void)epoch, (void)position;
    return PL_OK;
}

static void make_batch(struct made_up *m, struct pl_trainer *t)
{
    const int64_t *d = t->job->input.dim;
    *m = (struct made_up){.batch = {.capacity = t->batch}, .t = t};
    m->batch.data = pl_alloc((size_t)(t->batch * d[0] * d[1] * d[2]) * sizeof(float), "test");
    m->batch.label = pl_alloc((size_t)t->batch * sizeof(int32_t), "test");
    m->batch.index = pl_alloc((size_t)t->batch * sizeof(int64_t), "test");
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
    float *all = pl_alloc(sizeof m->seen, "test");
    if (pl_world_broadcast(w, &first, sizeof first, 0) < 0 || pl_world_allreduce(w, m->seen, all, EPOCHS * SAMPLES) < 0)
        pl_world_abort(w, PL_ERR_PEER);
    CHECK(mine->meetings == wanted, "%s: %d meetings, wanted %d", how, mine->meetings, wanted);
    for (int i = 0; i < mine->meetings; i++)
        CHECK(mine->hash[i] == first.hash[i], "%s: at meeting %d other bits, or another place, than rank 0", how, i);
    for (int i = 0; i < EPOCHS * SAMPLES; i++)
        CHECK(all[i] == 1, "%s: sample %d of epoch %d handed out %g times", how, i % SAMPLES, i / SAMPLES, (double)all[i]);
    pl_free(all);
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
    struct pl_trainer t;
    struct pl_job *job;
    struct made_up m;
    struct kept kept = {0};
    struct pl_step_result r;
    struct pl_parting parting;
    char how[128], *path = pl_strdupf("%s/models/lenet/mnist.yaml", getenv("PL_SOURCE_DIR"));
    char *over[] = {"sync.kind=downpour", "train.epochs=3", "train.batch=5", "train.eval_every=6 steps", "train.threads=1", "optimizer.lr=0.0001",
                    "checkpoint.every=never", "debug.delay={rank: 0, ms: 3}", (char *)way, (char *)push, (char *)kind};
    snprintf(how, sizeof how, "%s, %s, %s", way, push, kind);
    pl_status s = pl_job_read(path, sizeof over / sizeof *over, over, &job);
    if (s < 0 || (s = pl_trainer_open(&t, w, job, true)) < 0) {
        fprintf(stderr, "%s: %s\n", how, pl_error_text());
        exit(1);
    }
    make_batch(&m, &t);
    t.source = (struct pl_source){.deal = deal, .next = next, .release = release, .feed = feed, .ask = ask, .arg = &m, .epoch_samples = SAMPLES};
    s = pl_graph_init(t.graph, 1);
    if (s == PL_OK)
        s = pl_trainer_deal(&t, w->rank, w->ranks);
    for (r.apart = false; s == PL_OK && (r.apart || t.state.step < t.total_steps);)
        if ((s = pl_trainer_step(&t, &r)) == PL_OK && !r.apart)
            keep(&kept, &t);
    if (s < 0)
        pl_world_abort(w, s);
    CHECK(t.state.epoch == EPOCHS && t.state.position == 0, "%s: it ended in epoch %lld at %lld", how, (long long)t.state.epoch, (long long)t.state.position);
    if (w->rank == 0)
        check_counts(&t, how);
    s = t.sync_table->meshed->leave(t.sync, 0, true, &parting);
    CHECK(s == PL_OK && parting.clean, "%s: they did not part in order", how);
    compare(w, &kept, &m, (int)((t.total_steps + 5) / 6), how);
    pl_queue_destroy(m.asked);
    pl_free(m.batch.data);
    pl_free(m.batch.label);
    pl_free(m.batch.index);
    pl_trainer_close(&t);
    pl_job_destroy(job);
    pl_free(path);
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
