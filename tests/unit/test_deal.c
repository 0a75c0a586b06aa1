/* The data order dealt out anew, by its properties: steps as train/step.c makes them, on members that change at random
 * in the midst of epochs, some steps abandoned and done again. Every sample comes once an epoch and in its place of
 * the order, epochs end where the count of steps says, and so does the run. */
#include "data/dataset.h"
#include "train/train.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#define RANKS 6
#define EPOCHS 3
#define MOST 300 /* samples */

static struct pl_rng rng;
static int64_t draw(int64_t from, int64_t to) { return from + (int64_t)pl_rng_below(&rng, (uint64_t)(to - from + 1)); }

/* One rank: its trainer, with a graph and optimizer that all share. */
struct member {
    struct pl_trainer t;
    struct pl_dataset *d;
    struct pl_loader *l;
    int index, members;
    int64_t rows;                                   /* of the step's global batches */
    struct { int64_t epoch, position, index; } read[MOST]; /* by this rank in the step */
    int reads;
};

struct group {
    struct pl_job *job;
    struct pl_graph *graph;
    struct pl_optimizer *optimizer;
    struct pl_backend *backend;
    const struct pl_backend_table *table;
    char *path;
    int64_t samples, want[EPOCHS][MOST]; /* the order */
    int seen[EPOCHS][MOST];              /* how often, by position */
    struct member member[RANKS];
    int at[RANKS], members;              /* who takes part: member[at[i]] is i of members */
};

/* ---- what a trainer is given here ----------------------------------------------------------------- */

static pl_status deal(void *arg, int64_t global_batch, int rank, int ranks, int64_t epoch, int64_t position)
{
    struct member *m = arg;
    m->index = rank, m->members = ranks;
    PL_TRY(pl_loader_deal(m->l, global_batch, rank, ranks));
    return pl_loader_start(m->l, epoch, position, false);
}

static pl_status next(void *arg, struct pl_batch **out)
{
    struct member *m = arg;
    PL_TRY(pl_loader_next(m->l, out));
    const struct pl_batch *b = *out;
    int64_t each = (m->t.micro_global + m->members - 1) / m->members;
    for (int64_t i = 0; i < b->rows; i++, m->reads++) {
        m->read[m->reads].epoch = b->epoch;
        m->read[m->reads].position = b->begin + m->index * each + i;
        m->read[m->reads].index = b->index[i];
    }
    m->rows += b->end - b->begin;
    return PL_OK;
}

static void release(void *arg, struct pl_batch *b) { pl_loader_release(((struct member *)arg)->l, b); }

/* In place of the exchange: the sums are of no interest, and a step may be abandoned at its end. */
static bool abandon;
static struct member *stepping;
static pl_status begin(struct pl_sync *s, int64_t step) { return (void)s, (void)step, PL_OK; }
static pl_status contribute(struct pl_sync *s, const struct pl_contribution *mine) { return (void)s, (void)mine, PL_OK; }
static pl_status slice_final(struct pl_sync *s, int64_t a, int64_t b) { return (void)s, (void)a, (void)b, PL_OK; }
static pl_status finish(struct pl_sync *s, struct pl_agreement *out)
{
    (void)s;
    *out = (struct pl_agreement){.sum = pl_graph_grads(stepping->t.graph), .rows = (double)stepping->rows, .steps = 1};
    return abandon ? PL_ERR_PEER : PL_OK;
}
static pl_status average(struct pl_sync *s, bool last, struct pl_agreement *out) { return (void)s, (void)last, (void)out, PL_OK; }
static const struct pl_sync_table alone = {.name = "alone", .begin = begin, .contribute = contribute, .slice_final = slice_final, .finish = finish, .average = average};

/* ---- a run ---------------------------------------------------------------------------------------- */

static void make_set(struct group *g)
{
    struct pl_h5 *f;
    struct pl_h5ds *d;
    double zero[MOST] = {0};
    const char *folder = getenv("PL_TMPDIR") ? getenv("PL_TMPDIR") : "/tmp";
    g->path = pl_strdupf("%s/deal-%d.h5", folder, (int)getpid());
    assert_int_equal(pl_h5_create(g->path, "test", PL_ERR_DATA, &f), PL_OK);
    for (int label = 0; label < 2; label++) {
        int64_t dim[] = {g->samples, 1};
        assert_int_equal(pl_h5_make_dataset(f, label ? "label" : "data", PL_U8, label ? 1 : 2, dim, 16, 0, &d), PL_OK);
        assert_int_equal(pl_h5_write_rows(d, 0, g->samples, PL_F64, zero), PL_OK);
        pl_h5_dataset_close(d);
    }
    assert_int_equal(pl_h5_close(f), PL_OK);
}

static void make_job(struct group *g, int ranks, int epochs)
{
    int64_t k = draw(1, 3);
    char batch[64];
    if (draw(0, 1))
        snprintf(batch, sizeof batch, "batch: %d", (int)draw(1, 9));
    else
        snprintf(batch, sizeof batch, "global_batch: %d", (int)(k * draw(1, 50)));
    char *text = pl_strdupf("model: {name: m, input: {data: [1], label: int}, layers: [{name: d, kind: dense, units: 2}, {name: loss, kind: softmax_loss}]}\n"
                            "data: {train: {file: %s}}\ntrain: {epochs: %d, %s, accumulate: %d, seed: %d}\noptimizer: {kind: sgd, lr: 0.001}\n",
                            g->path, epochs, batch, (int)k, (int)draw(0, 1000));
    if (pl_job_parse(text, "t.yaml", &g->job) < 0)
        fail_msg("%s", pl_error_text());
    print_message("%lld samples, %d ranks at first, accumulate %d, %s\n", (long long)g->samples, ranks, (int)k, batch);
    pl_free(text);
}

static void open_member(struct group *g, struct member *m, int ranks)
{
    const struct pl_job *job = g->job;
    int64_t global = pl_train_micro_global(job, ranks);
    struct pl_loader_options o = {.global_batch = global, .ranks = ranks, .seed = (uint64_t)job->train.seed, .shuffle = true, .classes = 2, .depth = 2};
    assert_int_equal(pl_dataset_open(&job->train_set, &job->input, true, &m->d), PL_OK);
    assert_int_equal(pl_loader_create(m->d, &o, &m->l), PL_OK);
    static struct pl_world world = {.ranks = 1};
    m->t = (struct pl_trainer){.world = &world, .peers = &world, .job = job, .graph = g->graph, .optimizer = g->optimizer, .sync_table = &alone, .batch = pl_loader_capacity(m->l),
                               .source = {.deal = deal, .next = next, .release = release, .arg = m, .epoch_samples = g->samples}};
}

static void open_group(struct group *g, int ranks, int epochs)
{
    g->samples = draw(16, MOST);
    make_set(g);
    make_job(g, ranks, epochs);
    int64_t capacity = (pl_train_micro_global(g->job, ranks) + ranks - 1) / ranks;
    g->table = pl_backend_find("reference");
    assert_int_equal(g->table->open(&(struct pl_device_options){.threads = 1}, &g->backend), PL_OK);
    assert_int_equal(pl_graph_create(g->job, g->table, g->backend, capacity, true, NULL, &g->graph), PL_OK);
    assert_int_equal(pl_optimizer_create(g->job, g->graph, &g->optimizer), PL_OK);
    for (int r = 0; r < RANKS; r++)
        open_member(g, &g->member[r], ranks);
    const struct pl_dataset *d = g->member[0].d;
    struct pl_sampler *s = pl_sampler_create(d->blocks, d->block_first, d->window_blocks, true, (uint64_t)g->job->train.seed);
    for (int e = 0; e < epochs; e++)
        assert_int_equal(pl_sampler_order(s, e, 0, g->samples, g->want[e]), PL_OK);
    pl_sampler_destroy(s);
}

static void close_group(struct group *g)
{
    for (int r = 0; r < RANKS; r++) {
        pl_loader_destroy(g->member[r].l);
        pl_dataset_close(g->member[r].d);
    }
    pl_optimizer_destroy(g->optimizer);
    pl_graph_destroy(g->graph);
    g->table->close(g->backend);
    pl_job_destroy(g->job);
    unlink(g->path);
    pl_free(g->path);
}

/* So many of the ranks, in any order; who was away has the state from one who was not. */
static void regroup(struct group *g, int members)
{
    struct pl_run_state now = g->member[g->at[0]].t.state;
    for (int r = 0; r < RANKS; r++)
        g->at[r] = r;
    for (int r = RANKS - 1; r > 0; r--) {
        int other = (int)draw(0, r), was = g->at[r];
        g->at[r] = g->at[other], g->at[other] = was;
    }
    g->members = members;
    for (int i = 0; i < members; i++) {
        struct pl_trainer *t = &g->member[g->at[i]].t;
        t->state = now;
        assert_int_equal(pl_trainer_deal(t, i, members), PL_OK);
        int64_t wanted = pl_train_micro_global(g->job, members), most = t->batch * members;
        assert_int_equal(t->micro_global, wanted < most ? wanted : most);
        assert_int_equal(t->state.ranks, members);
    }
}

static void note_read(struct group *g, const struct member *m)
{
    for (int i = 0; i < m->reads; i++) {
        int64_t e = m->read[i].epoch, p = m->read[i].position;
        assert_in_range(e, 0, EPOCHS - 1);
        assert_in_range(p, 0, g->samples - 1);
        assert_int_equal(m->read[i].index, g->want[e][p]);
        g->seen[e][p]++;
    }
}

/* One step on all members; abandoned, it leaves everything as it was. */
static void step(struct group *g)
{
    struct pl_run_state before = g->member[g->at[0]].t.state;
    for (int i = 0; i < g->members; i++) {
        struct member *m = stepping = &g->member[g->at[i]];
        struct pl_step_result r;
        m->rows = m->reads = 0;
        assert_int_equal(pl_trainer_step(&m->t, &r), abandon ? PL_ERR_PEER : PL_OK);
        if (abandon) {
            assert_memory_equal(&m->t.state, &before, sizeof before);
            continue;
        }
        note_read(g, m);
        assert_memory_equal(&m->t.state, &g->member[g->at[0]].t.state, sizeof before);
        assert_int_equal(m->t.state.samples_seen, m->t.state.epoch * g->samples + m->t.state.position);
        assert_int_equal(m->t.total_steps - m->t.ahead, g->job->train.epochs * (double)m->t.steps_per_epoch);
        int64_t of_epochs = m->t.state.step - m->t.ahead;
        assert_int_equal(of_epochs / m->t.steps_per_epoch, m->t.state.epoch);
        assert_int_equal(of_epochs % m->t.steps_per_epoch == 0, m->t.state.position == 0);
    }
}

static void run(int ranks, int epochs, int *dealt, int *abandoned)
{
    struct group *g = calloc(1, sizeof *g);
    open_group(g, ranks, epochs);
    regroup(g, ranks);
    for (const struct pl_trainer *t = &g->member[g->at[0]].t; t->state.step < t->total_steps; t = &g->member[g->at[0]].t) {
        abandon = draw(0, 5) == 0;
        step(g);
        *abandoned += abandon;
        if (!abandon && draw(0, 3) > 0)
            continue;
        *dealt += t->state.position > 0;
        regroup(g, (int)draw(1, RANKS));
    }
    const struct pl_run_state *p = &g->member[g->at[0]].t.state;
    assert_int_equal(p->epoch, epochs);
    assert_int_equal(p->position, 0);
    for (int e = 0; e < epochs; e++)
        for (int64_t i = 0; i < g->samples; i++)
            if (g->seen[e][i] != 1)
                fail_msg("position %lld of epoch %d came %d times", (long long)i, e, g->seen[e][i]);
    close_group(g);
    free(g);
}

static void test_every_sample_once(void **state)
{
    (void)state;
    int dealt = 0, abandoned = 0;
    rng = pl_rng_make(5, 0, 0, 0);
    for (int i = 0; i < 120; i++)
        run((int)draw(1, RANKS), (int)draw(1, EPOCHS), &dealt, &abandoned);
    print_message("dealt anew in mid-epoch %d times, %d steps abandoned\n", dealt, abandoned);
    assert_true(dealt > 500 && abandoned > 200);
    pl_log_step(-1);
}

/* A number of steps stays what it is; a source without end has no epochs to measure. */
static void test_lengths(void **state)
{
    (void)state;
    struct group *g = calloc(1, sizeof *g);
    rng = pl_rng_make(6, 0, 0, 0);
    open_group(g, 2, 1);
    struct pl_trainer *t = &g->member[0].t;
    g->job->train.steps = 1000, g->job->train.epochs = 0;
    t->state.step = 3, t->state.position = 5;
    assert_int_equal(pl_trainer_deal(t, 0, 1), PL_OK);
    assert_int_equal(t->total_steps, 1000);
    g->job->train.steps = 0, g->job->train.epochs = 1e16;
    assert_int_equal(pl_trainer_deal(t, 0, 1), PL_ERR_USAGE);
    assert_non_null(strstr(pl_error_text(), "too long a run"));
    pl_error_clear();
    t->source.epoch_samples = INT64_MAX;
    t->total_steps = t->steps_per_epoch = 77;
    assert_int_equal(pl_trainer_deal(t, 0, 3), PL_OK);
    assert_true(t->total_steps == 77 && t->steps_per_epoch == 77);
    close_group(g);
    free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_sample_once), cmocka_unit_test(test_lengths)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
