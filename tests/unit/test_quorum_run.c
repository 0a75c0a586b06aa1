/* Backup workers as a whole: trainers with a small model on the reference backend, among forked processes over tcp, without
 * MPI, so that ThreadSanitizer sees all there is. Ranks are late at random, stopped, woken and killed by the parent; after
 * each step that a rank holds, its parameters and momentum have the bits of every other's. Without backup workers all is as
 * with an all-reduce. */
#include "exchange/exchange_internal.h"
#include "forks.h"
#include "sync/quorum.h"
#include "train/train.h"

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <cmocka.h>

#ifdef PL_HAVE_CRYPTO
extern const struct pl_transport_table pl_transport_tcp;
extern const struct pl_sync_table pl_sync_quorum, pl_sync_allreduce;

enum { RANKS = 5, BATCH = 3, CLASSES = 10, INPUTS = 48, EPOCH = 500, MOST_STEPS = 1 << 17, MOST_ELEMS = 200000 };

struct trial {
    int ranks, backup, steps; /* steps 0: until it is told to stop */
    int units, tau;           /* tau: of local SGD; 0: gradients are agreed on */
    const char *algorithm;
    double bucket_bytes;
    bool allreduce, late;
    double ms;                /* of trouble */
    int lost_ms;              /* after so long a rank that is stopped is struck off; 0: never */
    bool stops;
    int kill[2], kills;       /* ranks, one after the other */
    int first;                /* this rank is stopped within its first step; -1: none */
};

/* What the processes share. */
static struct run {
    struct forks forks;
    _Atomic int64_t step[RANKS];
    _Atomic bool stop;
    _Atomic uint64_t bits[MOST_STEPS]; /* of parameters, momentum and position, by committed steps */
    _Atomic int differ, went_on, late;
    struct { int64_t step; uint64_t bits; int holders; bool clean; } end[RANKS];
    float params[MOST_ELEMS]; /* of rank 0 at the end */
} *shared;

static unsigned seed;

static uint64_t draw(uint64_t a, uint64_t b, uint64_t below)
{
    struct pl_rng r = pl_rng_make(seed, a, b, 55);
    return pl_rng_below(&r, below);
}

/* ---- a rank ------------------------------------------------------------------------------------------------------- */

struct rank {
    const struct trial *trial;
    struct pl_trainer t;
    struct pl_world world;
    struct pl_job *job;
    struct pl_backend *backend;
    struct pl_exchange *exchange;
    int index, members;
    int64_t global, epoch, position;
    uint64_t reads;
    struct pl_batch batch;
    float data[BATCH * INPUTS];
    int32_t label[BATCH];
    int64_t sample[BATCH];
};

static pl_status deal(void *arg, int64_t global, int index, int members, int64_t epoch, int64_t position)
{
    struct rank *r = arg;
    r->global = global, r->index = index, r->members = members, r->epoch = epoch, r->position = position;
    return PL_OK;
}

static void read_sample(struct rank *r, int64_t i, int64_t position)
{
    struct pl_rng g = pl_rng_make(3, (uint64_t)position, 0, 0);
    r->sample[i] = position;
    r->label[i] = (int32_t)(position % CLASSES);
    for (int k = 0; k < INPUTS; k++)
        r->data[i * INPUTS + k] = (float)pl_rng_uniform(&g) - (k % CLASSES == r->label[i] ? 0.0f : 0.5f);
}

/* A loader's work in short; this rank may be late. */
static pl_status next(void *arg, struct pl_batch **out)
{
    struct rank *r = arg;
    int64_t each = (r->global + r->members - 1) / r->members, end = r->position + r->global < EPOCH ? r->position + r->global : EPOCH;
    int64_t from = r->position + r->index * each, rows = end - from < 0 ? 0 : end - from < each ? end - from : each;
    memset(r->data, 0, sizeof r->data);
    for (int64_t i = 0; i < BATCH; i++)
        r->sample[i] = -1, r->label[i] = 0;
    for (int64_t i = 0; i < rows; i++)
        read_sample(r, i, from + i);
    r->batch = (struct pl_batch){.epoch = r->epoch, .begin = r->position, .end = end, .rows = rows, .capacity = BATCH, .data = r->data, .label = r->label, .index = r->sample};
    r->position = end == EPOCH ? 0 : end;
    r->epoch += end == EPOCH;
    if (r->trial->first == r->world.rank && r->reads == 0)
        raise(SIGSTOP);
    if (r->trial->late && draw((uint64_t)r->world.rank, r->reads, 6) == 0)
        pl_sleep_ms((double)draw((uint64_t)r->world.rank, r->reads + 1, 25));
    r->reads++;
    *out = &r->batch;
    return PL_OK;
}

static void release(void *arg, struct pl_batch *b) { (void)arg, (void)b; }

static bool make_trainer(struct rank *r, int me)
{
    const struct trial *w = r->trial;
    char text[1024], kind[80] = "";
    if (w->tau > 0)
        snprintf(kind, sizeof kind, "kind: local_sgd, tau: %d, average_momentum: true, ", w->tau);
    snprintf(text, sizeof text,
             "model: {name: m, input: {data: [%d], label: int}, layers: [{name: a, kind: dense, units: %d}, {name: b, kind: dense, units: %d}, {name: loss, kind: softmax_loss}]}\n"
             "data: {train: {file: made-up}}\ntrain: {steps: %d, batch: %d, seed: 7}\noptimizer: {kind: momentum, lr: 0.02, momentum: 0.9, schedule: {kind: poly}}\n"
             "sync: {%sbackup_workers: %d, suspect_after: 300 ms, lost_after: %d ms}\nexchange: {timeout: 20 s}\n",
             INPUTS, w->units, CLASSES, w->steps ? w->steps : MOST_STEPS - 1, BATCH, kind, w->backup, w->lost_ms ? w->lost_ms : 20000);
    const struct pl_backend_table *table = pl_backend_find("reference");
    r->world = (struct pl_world){.rank = me, .ranks = w->ranks};
    if (pl_job_parse(text, "test.yaml", &r->job) < 0 || table->open(&(struct pl_device_options){.threads = 1}, &r->backend) < 0)
        return false;
    r->t = (struct pl_trainer){.world = &r->world, .peers = &r->world, .job = r->job, .table = table, .backend = r->backend, .batch = BATCH, .train_file = "made-up",
                               .sync_table = w->allreduce ? &pl_sync_allreduce : &pl_sync_quorum,
                               .source = {.deal = deal, .next = next, .release = release, .arg = r, .epoch_samples = EPOCH}};
    if (pl_graph_create(r->job, table, r->backend, BATCH, true, NULL, &r->t.graph) < 0)
        return false;
    pl_graph_init(r->t.graph, 7);
    return pl_optimizer_create(r->job, r->t.graph, &r->t.optimizer) == PL_OK && pl_trainer_deal(&r->t, me, w->ranks) == PL_OK;
}

static bool open_sync(struct rank *r, const struct pl_group *g)
{
    const struct trial *w = r->trial;
    const struct pl_transport_options o = {.channels = 1, .interface = "lo", .timeout_ms = 20000};
    const struct pl_exchange_options x = {.algorithm = w->algorithm, .bucket_bytes = w->bucket_bytes, .timeout_ms = 20000};
    const struct pl_levels l = {.node = forks_rank, .column_ranks = forks_rank, .node_ranks = 1, .columns = 1, .members = w->ranks};
    const struct pl_replica replica = {.job = r->job, .graph = r->t.graph, .optimizer = r->t.optimizer, .world = &r->world, .exchange = &x,
                                       .state = &r->t.state, .state_bytes = sizeof r->t.state};
    struct pl_network n = {.table = &pl_transport_tcp, .group = *g, .rank = pl_alloc(sizeof forks_rank, "ranks")};
    struct pl_mesh *m;
    memcpy(n.rank, forks_rank, sizeof forks_rank);
    if (n.table->open(&n.group, &o, &n.transport, n.how, sizeof n.how) < 0)
        return false;
    if (w->allreduce) {
        if (pl_exchange_create_in(NULL, &l, &n, &x, pl_graph_elems(r->t.graph), &r->exchange) < 0 || pl_sync_allreduce.create(&replica, r->exchange, &r->t.sync) < 0)
            return false;
        pl_graph_set_grads(r->t.graph, pl_exchange_gradient(r->exchange));
        return true;
    }
    if (pl_mesh_open_in(&n, &x, pl_sync_quorum_note_bytes(), &m) < 0 || pl_sync_quorum_create_in(&replica, m, &r->t.sync) < 0)
        return false;
    pl_graph_set_grads(r->t.graph, pl_sync_quorum.meshed->gradient(r->t.sync));
    return true;
}

static void close_rank(struct rank *r)
{
    if (r->t.sync)
        r->t.sync_table->destroy(r->t.sync);
    pl_exchange_destroy(r->exchange);
    pl_optimizer_destroy(r->t.optimizer);
    pl_graph_destroy(r->t.graph);
    r->t.table->close(r->backend);
    pl_job_destroy(r->job);
}

static uint64_t bits_of(const struct rank *r)
{
    size_t bytes = (size_t)pl_graph_elems(r->t.graph) * sizeof(float);
    uint64_t h = pl_hash_words(PL_HASH_START, pl_graph_params(r->t.graph), bytes);
    int64_t next[] = {r->t.state.epoch, r->t.state.position};
    h = pl_hash_words(h, next, sizeof next);
    return pl_hash_words(h, pl_optimizer_slot(r->t.optimizer, 0), bytes) | 1;
}

/* The first to come to a step says what it is; false: this rank's is another. */
static bool note(struct rank *r)
{
    int64_t step = r->t.state.step;
    uint64_t mine = bits_of(r), first = 0;
    atomic_store(&shared->step[r->world.rank], step);
    if (atomic_compare_exchange_strong(&shared->bits[step], &first, mine) || first == mine)
        return true;
    fprintf(stderr, "rank %d holds something else after step %lld\n", r->world.rank, (long long)step);
    atomic_fetch_add(&shared->differ, 1);
    return false;
}

static pl_status train(struct rank *r, bool *writes, bool *ended)
{
    struct pl_step_result done = {0};
    while (r->t.state.step < r->t.total_steps) {
        r->t.stop_asked = atomic_load(&shared->stop);
        pl_status s = pl_trainer_step(&r->t, &done);
        *ended = done.ended;
        *writes = done.writes;
        if (s < 0 || done.ended)
            return s;
        if (done.agreed == 0)
            continue;
        if (!note(r))
            return pl_error(PL_ERR_PEER, "test", "the ranks differ");
        atomic_fetch_add(&shared->went_on, done.went_on);
        atomic_fetch_add(&shared->late, done.late != NULL);
        if (done.stop)
            return PL_OK;
    }
    return PL_OK;
}

static bool run_rank(const struct trial *w, const struct pl_group *g)
{
    struct rank *r = calloc(1, sizeof *r);
    struct pl_parting p = {.clean = true};
    bool writes = false, ended = false;
    int me = g->me;
    r->trial = w;
    if (!make_trainer(r, me) || !open_sync(r, g)) {
        fprintf(stderr, "rank %d: %s\n", me, pl_error_text());
        return false;
    }
    forks_barrier(&shared->forks);
    pl_status s = train(r, &writes, &ended);
    while (!w->allreduce && !ended && pl_sync_quorum.meshed->leave(r->t.sync, pl_exit_code(s), writes, &p) == PL_END)
        writes = true;
    bool right = s == PL_OK && !ended;
    shared->end[me].step = r->t.state.step;
    shared->end[me].bits = bits_of(r);
    shared->end[me].holders = writes ? p.holders : 0;
    shared->end[me].clean = p.clean;
    if (me == 0 && pl_graph_elems(r->t.graph) <= MOST_ELEMS)
        memcpy(shared->params, pl_graph_params(r->t.graph), (size_t)pl_graph_elems(r->t.graph) * sizeof(float));
    if (!right)
        fprintf(stderr, "rank %d, step %lld, status %d, %s: %s\n", me, (long long)r->t.state.step, s, ended ? "the run ended without it" : "it ended itself",
                pl_error_text() ? pl_error_text() : "no message");
    if (w->allreduce)
        forks_barrier(&shared->forks);
    close_rank(r);
    free(r);
    return right;
}

/* ---- the parent ----------------------------------------------------------------------------------------------------- */

struct children { pid_t pid[RANKS]; bool dead[RANKS], over[RANKS]; int code[RANKS]; };

static void start(const struct trial *w, struct children *c)
{
    memset(shared, 0, sizeof *shared);
    shared->forks.members = w->ranks;
    for (int r = 0; r < w->ranks; r++) {
        c->pid[r] = forks_fork();
        if (c->pid[r] != 0)
            continue;
        struct forks_arg a = {&shared->forks, r};
        const struct pl_group g = {.me = r, .members = w->ranks, .rank = forks_rank, .one_node = true, .allgather = forks_allgather, .arg = &a};
        bool right = run_rank(w, &g);
        fflush(NULL);
        _exit(right && !forks_leaks() ? 0 : 1);
    }
}

static bool lives(const struct children *c, int r) { return !c->dead[r] && !c->over[r]; }

static bool reap(const struct trial *w, struct children *c)
{
    bool all = true;
    for (int r = 0; r < w->ranks; r++) {
        if (!c->over[r] && waitpid(c->pid[r], &c->code[r], WNOHANG) == c->pid[r])
            c->over[r] = true;
        all = all && c->over[r];
    }
    return all;
}

/* Waits until every rank that lives has come to this step. */
static bool come_to(const struct trial *w, struct children *c, int64_t step)
{
    bool all = false;
    for (double end = pl_now_ms() + 20000; !all && pl_now_ms() < end; pl_sleep_ms(2)) {
        all = true;
        reap(w, c);
        for (int r = 0; r < w->ranks; r++)
            all = all && (!lives(c, r) || atomic_load(&shared->step[r]) >= step);
    }
    for (int r = 0; !all && r < w->ranks; r++)
        fprintf(stderr, "rank %d is at step %lld, wanted %lld\n", r, (long long)atomic_load(&shared->step[r]), (long long)step);
    return all;
}

static int64_t newest(const struct trial *w)
{
    int64_t step = 0;
    for (int r = 0; r < w->ranks; r++)
        step = atomic_load(&shared->step[r]) > step ? atomic_load(&shared->step[r]) : step;
    return step;
}

static void kill_one(struct children *c, int r)
{
    c->dead[r] = true;
    kill(c->pid[r], SIGKILL);
}

/* One at a time is stopped, for longer than ranks wait for it or not so long, some so long that they are struck off. */
static void trouble(const struct trial *w, struct children *c)
{
    int killed = 0;
    uint64_t k = 0;
    for (double begin = pl_now_ms(); pl_now_ms() - begin < w->ms; k++) {
        int r = (int)draw(1000 + k, 1, (uint64_t)w->ranks);
        if (killed < w->kills && pl_now_ms() - begin > w->ms * (killed + 1) / (w->kills + 1))
            kill_one(c, w->kill[killed++]);
        pl_sleep_ms((double)draw(1000 + k, 2, 60));
        if (!w->stops || c->dead[r])
            continue;
        kill(c->pid[r], SIGSTOP);
        pl_sleep_ms(draw(1000 + k, 3, 5) == 0 ? 1300 : (double)draw(1000 + k, 4, 500));
        kill(c->pid[r], SIGCONT);
    }
}

static void finish(const struct trial *w, struct children *c)
{
    bool over = false;
    for (double end = pl_now_ms() + 30000; !over && pl_now_ms() < end; pl_sleep_ms(2))
        over = reap(w, c);
    for (int r = 0; r < w->ranks; r++) {
        if (!c->over[r]) {
            fprintf(stderr, "rank %d does not end\n", r);
            kill(c->pid[r], SIGKILL);
            waitpid(c->pid[r], &c->code[r], 0);
        }
        if (!c->dead[r])
            assert_int_equal(c->code[r], 0);
    }
    assert_true(over);
}

static void check_end(const struct trial *w, const struct children *c)
{
    int alive = 0, writers = 0, one = -1;
    for (int r = 0; r < w->ranks; r++) {
        if (c->dead[r])
            continue;
        one = r;
        alive++;
        writers += shared->end[r].holders > 0;
    }
    for (int r = 0; r < w->ranks; r++) {
        if (c->dead[r])
            continue;
        assert_int_equal(shared->end[r].step, shared->end[one].step);
        assert_int_equal(shared->end[r].bits, shared->end[one].bits);
        assert_int_equal(shared->end[r].clean, w->kills == 0);
        if (shared->end[r].holders > 0)
            assert_int_equal(shared->end[r].holders, alive);
    }
    assert_int_equal(shared->differ, 0);
    assert_int_equal(writers, w->allreduce ? 0 : 1);
    print_message("%d ranks, %d backup: %lld steps, %d late, went on %d times\n", w->ranks, w->backup, (long long)shared->end[one].step, shared->late, shared->went_on);
}

static void run(const struct trial *w)
{
    struct children c = {0};
    start(w, &c);
    if (w->first >= 0) {
        pl_sleep_ms(1500);
        kill(c.pid[w->first], SIGCONT);
    }
    bool came = w->steps > 0 || come_to(w, &c, 1); /* all are connected */
    trouble(w, &c);
    came = came && (w->steps > 0 || come_to(w, &c, newest(w) + 3));
    atomic_store(&shared->stop, w->steps == 0);
    finish(w, &c);
    assert_true(came);
    check_end(w, &c);
}

/* ---- the runs --------------------------------------------------------------------------------------------------------- */

static void late_ranks(void **state)
{
    (void)state;
    run(&(struct trial){.ranks = 4, .backup = 1, .units = 30, .algorithm = "auto", .bucket_bytes = 4096, .late = true, .ms = 1500, .first = -1});
    assert_true(shared->late > 0);
    run(&(struct trial){.ranks = 5, .backup = 2, .units = 30, .algorithm = "tree", .bucket_bytes = 4096, .late = true, .ms = 1500, .first = -1});
    assert_true(shared->late > 0);
}

static void stopped_ranks(void **state)
{
    (void)state;
    run(&(struct trial){.ranks = 4, .backup = 1, .units = 1000, .algorithm = "auto", .bucket_bytes = 65536, .late = true, .ms = 4000, .lost_ms = 900, .stops = true, .first = -1});
    assert_true(shared->late > 0 && shared->went_on > 0);
}

static void stopped_in_the_first_step(void **state)
{
    (void)state;
    run(&(struct trial){.ranks = 3, .backup = 1, .units = 30, .algorithm = "auto", .bucket_bytes = 4096, .first = 1});
    assert_true(shared->went_on > 0);
}

static void killed_ranks(void **state)
{
    (void)state;
    run(&(struct trial){.ranks = 5, .backup = 2, .units = 30, .algorithm = "ring", .bucket_bytes = 4096, .late = true, .ms = 2500, .stops = true, .kill = {3, 0}, .kills = 2, .first = -1});
    run(&(struct trial){.ranks = 3, .backup = 1, .units = 30, .algorithm = "halving_doubling", .bucket_bytes = 4096, .ms = 700, .kill = {0}, .kills = 1, .first = -1});
}

/* Parameters and momentum are averaged every few steps; what is compared is as they were averaged. */
static void averaged_ranks(void **state)
{
    (void)state;
    run(&(struct trial){.ranks = 4, .backup = 1, .units = 30, .tau = 3, .algorithm = "auto", .bucket_bytes = 4096, .late = true, .ms = 1500, .first = -1});
    assert_true(shared->late > 0);
    run(&(struct trial){.ranks = 4, .backup = 1, .units = 1000, .tau = 3, .algorithm = "auto", .bucket_bytes = 65536, .late = true, .ms = 4000, .lost_ms = 900, .stops = true, .first = -1});
    assert_true(shared->late > 0 && shared->went_on > 0);
    run(&(struct trial){.ranks = 5, .backup = 2, .units = 30, .tau = 2, .algorithm = "ring", .bucket_bytes = 4096, .late = true, .ms = 2500, .stops = true, .kill = {3, 0}, .kills = 2, .first = -1});
    run(&(struct trial){.ranks = 3, .backup = 1, .units = 30, .tau = 4, .algorithm = "auto", .bucket_bytes = 4096, .first = 1});
    assert_true(shared->went_on > 0);
}

/* Without backup workers it is the sum over all, as by the exchange: the same bits where it is cut alike, about the same
 * where it is not. */
static void none_in_reserve(void **state)
{
    (void)state;
    static float wanted[MOST_ELEMS];
    struct trial w = {.ranks = 4, .steps = 60, .units = 60, .algorithm = "ring", .bucket_bytes = 1e6, .allreduce = true, .first = -1};
    run(&w);
    uint64_t bits = shared->end[0].bits;
    memcpy(wanted, shared->params, sizeof wanted);
    w.allreduce = false;
    run(&w);
    assert_int_equal(shared->end[0].step, 60);
    assert_int_equal(shared->end[0].bits, bits);
    w.bucket_bytes = 4096;
    run(&w);
    for (int i = 0; i < MOST_ELEMS; i++)
        assert_true(fabsf(shared->params[i] - wanted[i]) <= 1e-4f * (1 + fabsf(wanted[i])));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(none_in_reserve), cmocka_unit_test(late_ranks), cmocka_unit_test(stopped_ranks), cmocka_unit_test(stopped_in_the_first_step),
        cmocka_unit_test(killed_ranks), cmocka_unit_test(averaged_ranks),
    };
    const char *only = getenv("PL_TEST_ONLY"), *text = getenv("PL_TEST_SEED");
    if (only)
        cmocka_set_test_filter(only);
    seed = text ? (unsigned)atoi(text) : 1;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return shared == MAP_FAILED ? 1 : cmocka_run_group_tests_name("backup workers", tests, NULL, NULL);
}
#else
int main(void)
{
    printf("skipped: tcp is not in this build\n");
    return 77;
}
#endif
