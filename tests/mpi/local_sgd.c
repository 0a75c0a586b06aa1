/* Local SGD on the ranks it is started with: after an averaging all have the same bits, parameters and, where it is
 * averaged, the optimizer's state; in between they differ. In shared memory, by MPI's all-reduce and over tcp; in each
 * step another rank has no samples. */
#include "check.h"
#include "train/train.h"

#include <stdlib.h>
#include <string.h>

#define TAU 3
#define STEPS 11

struct made_up { struct pl_batch batch; const struct pl_trainer *t; };

/* Other samples on every rank and in every step, r + 1 of them on rank r. */
static pl_status next(void *arg, struct pl_batch **out)
{
    struct made_up *m = arg;
    int rank = m->t->world->rank, ranks = m->t->world->ranks;
    int64_t step = m->t->state.step, row = m->t->job->input.dim[0] * m->t->job->input.dim[1] * m->t->job->input.dim[2];
    struct pl_rng r = pl_rng_make(7, (uint64_t)rank, (uint64_t)step, 0);
    m->batch.rows = ranks > 1 && step % ranks == rank ? 0 : rank + 1;
    memset(m->batch.data, 0, (size_t)(m->batch.capacity * row) * sizeof(float));
    pl_rng_normals(&r, m->batch.data, m->batch.rows * row);
    for (int64_t i = 0; i < m->batch.capacity; i++)
        ((int32_t *)m->batch.label)[i] = (int32_t)pl_rng_below(&r, 10);
    *out = &m->batch;
    return PL_OK;
}

static void release(void *arg, struct pl_batch *b) { (void)arg, (void)b; }

static void make_batch(struct made_up *m, const struct pl_trainer *t)
{
    const int64_t *d = t->job->input.dim;
    *m = (struct made_up){{.capacity = t->batch}, t};
    m->batch.data = pl_alloc((size_t)(t->batch * d[0] * d[1] * d[2]) * sizeof(float), "test");
    m->batch.label = pl_alloc((size_t)t->batch * sizeof(int32_t), "test");
    m->batch.index = pl_alloc((size_t)t->batch * sizeof(int64_t), "test");
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
    struct pl_trainer t;
    struct pl_job *job;
    struct made_up m;
    struct pl_step_result r;
    char how[96], *path = pl_strdupf("%s/models/lenet/mnist.yaml", getenv("PL_SOURCE_DIR"));
    char *over[] = {"sync.kind=local_sgd", "sync.tau=3", "train.batch=5", "exchange.bucket_mb=0.3", "train.threads=1", "optimizer.lr=0.001", (char *)way, (char *)momentum};
    snprintf(how, sizeof how, "%s, %s", way, momentum);
    pl_status s = pl_job_read(path, sizeof over / sizeof *over, over, &job);
    if (s < 0 || (s = pl_trainer_open(&t, w, job, true)) < 0) {
        fprintf(stderr, "%s: %s\n", how, pl_error_text());
        exit(1);
    }
    make_batch(&m, &t);
    s = pl_graph_init(t.graph, 1);
    t.source = (struct pl_source){.next = next, .release = release, .arg = &m, .epoch_samples = INT64_MAX};
    t.steps_per_epoch = 100;
    t.total_steps = STEPS;
    while (s == PL_OK && t.state.step < STEPS)
        if ((s = pl_trainer_step(&t, &r)) == PL_OK)
            check_step(&t, &r, strcmp(momentum, "sync.average_momentum=true") == 0, how);
    if (s < 0)
        pl_world_abort(w, s);
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
    static const char *const ways[] = {"exchange.transport=auto", "exchange.two_level=never", "exchange.transport=tcp"};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        run(&w, ways[i], "sync.average_momentum=false");
        run(&w, ways[i], "sync.average_momentum=true");
    }
    int code = pl_world_finish(&w, PL_OK);
    return failures ? 1 : code;
}
