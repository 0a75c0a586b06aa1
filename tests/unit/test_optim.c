/* Every update rule against PyTorch's numbers (tests/tools/optim_numbers.py prints them), LARS and the
 * schedules against their formulas in double, and what the slab asks for: statistics, multipliers,
 * clipping, gaps. */
#include "optim/optim.h"

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { N = 8, STEPS = 5 };
static const double start[N] = {0.5, -0.25, 0.125, 1.0, -0.75, 0.3, 0.1, -0.2};
static double gradient(int i, int step) { return sin(0.7 * i + step); }

/* PyTorch 2.15: parameters after 5 steps. */
static const struct { const char *kind; double after[N]; } known[] = {
    {"sgd", {0.384444472, -0.301515843, 0.156725507, 1.097257490, -0.622200348, 0.386023773, 0.109323018, -0.271498185}},
    {"momentum", {0.007628337, -0.764618015, -0.183041906, 1.036083651, -0.358506862, 0.830686028, 0.534830195, -0.064838491}},
    {"nesterov", {-0.057427976, -0.762697218, -0.118722618, 1.130512508, -0.270519160, 0.861922565, 0.498670005, -0.151195469}},
    {"adagrad", {0.268797960, -0.369007624, 0.095442760, 1.034449973, -0.678500181, 0.473153856, 0.169752434, -0.206846223}},
    {"adadelta", {0.495261521, -0.252418327, 0.126672566, 1.003910169, -0.744332394, 0.305295992, 0.100166514, -0.203177970}},
    {"rmsprop", {-0.208204242, -0.604361708, 0.064488855, 1.137895006, -0.520652126, 0.830853764, 0.292628363, -0.255539715}},
    {"adam", {0.138808345, -0.564736046, -0.078515769, 0.939789307, -0.623780309, 0.651163804, 0.362230602, -0.067060487}},
    {"adamw", {0.236002097, -0.563814874, -0.078470449, 0.939580521, -0.623532032, 0.650045090, 0.361748855, -0.067044492}},
};

/* A dense layer of 2 units on 3 inputs: weight [2, 3], bias [2]. */
struct fixture {
    struct pl_job *job;
    const struct pl_backend_table *table;
    struct pl_backend *backend;
    struct pl_graph *g;
    struct pl_optimizer *o;
    float *sum;
};

static void open_fixture(struct fixture *f, const char *layer, const char *optimizer)
{
    char *text = pl_strdupf("model: {name: m, input: {data: [3], label: int}, layers: [%s, {name: loss, kind: softmax_loss}]}\n"
                            "data: {train: {file: none.h5}}\ntrain: {steps: 100, batch: 4}\noptimizer: {%s}\n", layer, optimizer);
    *f = (struct fixture){.table = pl_backend_find("reference")};
    if (pl_job_parse(text, "t.yaml", &f->job) < 0)
        fail_msg("%s: %s", optimizer, pl_error_text());
    pl_free(text);
    assert_int_equal(f->table->open(&(struct pl_device_options){.threads = 1}, &f->backend), PL_OK);
    assert_int_equal(pl_graph_create(f->job, f->table, f->backend, 4, true, NULL, &f->g), PL_OK);
    assert_int_equal(pl_optimizer_create(f->job, f->g, &f->o), PL_OK);
    f->sum = pl_alloc((size_t)pl_graph_elems(f->g) * sizeof(float), "test");
}

static void close_fixture(struct fixture *f)
{
    pl_optimizer_destroy(f->o);
    pl_graph_destroy(f->g);
    f->table->close(f->backend);
    pl_job_destroy(f->job);
    pl_free(f->sum);
}

/* Element i of weight and bias, one after the other, in a slab. */
static float *element(const struct fixture *f, float *slab, int i)
{
    const struct pl_tensor *t;
    pl_graph_tensors(f->g, &t);
    return i < 6 ? slab + t[0].param->offset + i : slab + t[1].param->offset + (i - 6);
}

static void set_start(struct fixture *f)
{
    for (int i = 0; i < N; i++)
        *element(f, pl_graph_params(f->g), i) = (float)start[i];
}

static void set_gradient(struct fixture *f, int step, double samples)
{
    for (int i = 0; i < N; i++)
        *element(f, f->sum, i) = (float)(gradient(i, step) * samples);
}

static void check(struct fixture *f, const char *what, const double *wanted)
{
    for (int i = 0; i < N; i++) {
        double have = (double)*element(f, pl_graph_params(f->g), i);
        if (fabs(have - wanted[i]) > 2e-6 * (1 + fabs(wanted[i])))
            fail_msg("%s: parameter %d is %.9f, wanted %.9f", what, i, have, wanted[i]);
    }
}

static void test_rules(void **state)
{
    (void)state;
    for (size_t k = 0; k < sizeof known / sizeof *known; k++) {
        struct fixture f;
        char optimizer[200];
        snprintf(optimizer, sizeof optimizer, "kind: %s, lr: 0.1, momentum: 0.9, weight_decay: 0.01, rho: 0.9, epsilon: 1e-4, beta1: 0.8, beta2: 0.99", known[k].kind);
        open_fixture(&f, "{name: d, kind: dense, units: 2}", optimizer);
        set_start(&f);
        for (int step = 0; step < STEPS; step++) {
            struct pl_update u = {.lr = 0.1, .step = step, .samples = 10, .clip = 1};
            set_gradient(&f, step, 10);
            pl_optimizer_update(f.o, &u, f.sum, pl_graph_params(f.g), pl_graph_params(f.g));
        }
        check(&f, known[k].kind, known[k].after);
        close_fixture(&f);
    }
}

/* A rate for each tensor: trust |w| / (|g| + decay |w|). */
static void test_lars(void **state)
{
    (void)state;
    struct fixture f;
    double w[N], v[N] = {0};
    open_fixture(&f, "{name: d, kind: dense, units: 2}", "kind: lars, lr: 2, momentum: 0.9, weight_decay: 0.01, trust: 0.05");
    set_start(&f);
    memcpy(w, start, sizeof w);
    for (int step = 0; step < STEPS; step++) {
        struct pl_update u = {.lr = 2, .step = step, .samples = 10, .clip = 1};
        set_gradient(&f, step, 10);
        pl_optimizer_update(f.o, &u, f.sum, pl_graph_params(f.g), pl_graph_params(f.g));
        for (int t = 0; t < 2; t++) {
            int a = t == 0 ? 0 : 6, b = t == 0 ? 6 : N;
            double ww = 0, gg = 0;
            for (int i = a; i < b; i++) {
                ww += w[i] * w[i];
                gg += gradient(i, step) * gradient(i, step);
            }
            double rate = 2 * 0.05 * sqrt(ww) / (sqrt(gg) + 0.01 * sqrt(ww));
            for (int i = a; i < b; i++) {
                v[i] = 0.9 * v[i] + rate * (gradient(i, step) + 0.01 * w[i]);
                w[i] -= v[i];
            }
        }
    }
    check(&f, "lars", w);
    close_fixture(&f);
}

/* Multipliers of a layer, a factor from clipping, parameters read from one slab and written to another. */
static void test_multipliers(void **state)
{
    (void)state;
    struct fixture f;
    double wanted[N];
    open_fixture(&f, "{name: d, kind: dense, units: 2, lr_mult: 0.5, decay_mult: 2, bias_lr_mult: 3, bias_decay_mult: 0}",
                 "kind: sgd, lr: 0.1, weight_decay: 0.01");
    set_start(&f);
    set_gradient(&f, 0, 4);
    float *to = pl_alloc((size_t)pl_graph_elems(f.g) * sizeof(float), "test");
    struct pl_update u = {.lr = 0.1, .samples = 4, .clip = 0.25};
    pl_optimizer_update(f.o, &u, f.sum, pl_graph_params(f.g), to);
    check(&f, "the slab that is read", start);
    for (int i = 0; i < N; i++) {
        double lr = i < 6 ? 0.05 : 0.3, decay = i < 6 ? 0.02 : 0;
        wanted[i] = start[i] - lr * (0.25 * gradient(i, 0) + decay * start[i]);
    }
    memcpy(pl_graph_params(f.g), to, (size_t)pl_graph_elems(f.g) * sizeof(float));
    check(&f, "multipliers", wanted);
    pl_free(to);
    close_fixture(&f);
}

/* The norm is that of the trainable gradient alone; running statistics are averaged whatever the rule. */
static void test_statistics(void **state)
{
    (void)state;
    struct fixture f;
    const struct pl_tensor *t;
    double squares = 0;
    open_fixture(&f, "{name: d, kind: dense, units: 2}, {name: bn, kind: batchnorm, momentum: 0.75}", "kind: adam, lr: 0.1");
    int tensors = pl_graph_tensors(f.g, &t);
    float *params = pl_graph_params(f.g);
    for (int k = 0; k < tensors; k++)
        for (int64_t i = 0; i < pl_shape_elems(&t[k].param->shape); i++) {
            params[t[k].param->offset + i] = 2;
            f.sum[t[k].param->offset + i] = 30;
            squares += t[k].param->statistic ? 0 : 900;
        }
    double have = pl_optimizer_square_sum(f.o, f.sum, 0, pl_graph_elems(f.g));
    assert_true(fabs(have - squares) < 1e-9 * squares);
    struct pl_update u = {.lr = 0.1, .samples = 10, .clip = 0.5};
    pl_optimizer_update(f.o, &u, f.sum, params, params);
    int statistics = 0;
    for (int k = 0; k < tensors; k++)
        if (t[k].param->statistic) {
            statistics++;
            assert_true(fabsf(params[t[k].param->offset] - (0.75f * 2 + 0.25f * 3)) < 1e-6f); /* no clip, no Adam */
        }
    assert_int_equal(statistics, 2);
    close_fixture(&f);
}

/* ---- schedules ------------------------------------------------------------------------------------ */

static void check_schedule(const char *schedule, const double *wanted, const int64_t *at, int n)
{
    struct fixture f;
    char optimizer[200];
    snprintf(optimizer, sizeof optimizer, "kind: sgd, lr: 0.2, %s", schedule);
    open_fixture(&f, "{name: d, kind: dense, units: 2}", optimizer);
    for (int i = 0; i < n; i++) {
        double have = pl_schedule_lr(f.job, at[i], 10, 100);
        if (fabs(have - wanted[i]) > 1e-12)
            fail_msg("%s: at step %lld the rate is %.12f, wanted %.12f", schedule, (long long)at[i], have, wanted[i]);
    }
    close_fixture(&f);
}

static void test_schedules(void **state)
{
    (void)state;
#define CHECK(text, ...)                                                                              \
    do {                                                                                              \
        const double w_[] = {__VA_ARGS__};                                                            \
        check_schedule(text, w_, at, (int)(sizeof w_ / sizeof *w_));                                  \
    } while (0)
    const int64_t at[] = {0, 24, 25, 50, 99, 100, 150};
    CHECK("schedule: {kind: fixed}", 0.2, 0.2, 0.2, 0.2, 0.2, 0.2);
    CHECK("schedule: {kind: step, every: 25, gamma: 0.5}", 0.2, 0.2, 0.1, 0.05, 0.025, 0.0125);
    CHECK("schedule: {kind: multistep, at: [25, 99], gamma: 0.1}", 0.2, 0.2, 0.02, 0.02, 0.002, 0.002);
    CHECK("schedule: {kind: exp, gamma: 0.9}", 0.2, 0.2 * pow(0.9, 24), 0.2 * pow(0.9, 25), 0.2 * pow(0.9, 50));
    CHECK("schedule: {kind: inv, gamma: 0.01, power: 0.75}", 0.2, 0.2 * pow(1.24, -0.75), 0.2 * pow(1.25, -0.75));
    CHECK("schedule: {kind: poly, power: 2}", 0.2, 0.2 * 0.76 * 0.76, 0.2 * 0.75 * 0.75, 0.05, 0.2 * 0.01 * 0.01, 0, 0);
    CHECK("schedule: {kind: poly, total: 50}", 0.2, 0.2 * 0.52, 0.1, 0, 0, 0);
    CHECK("schedule: {kind: cosine, min: 0.02}", 0.2, 0.02 + 0.18 * 0.5 * (1 + cos(M_PI * 0.24)),
          0.02 + 0.18 * 0.5 * (1 + cos(M_PI * 0.25)), 0.11, 0.02 + 0.18 * 0.5 * (1 + cos(M_PI * 0.99)), 0.02, 0.02);
    CHECK("warmup: 50 steps", 0.2 / 50, 0.2 * 25 / 50, 0.2 * 26 / 50, 0.2, 0.2);
    CHECK("warmup: 5 epochs", 0.2 / 50, 0.2 * 25 / 50, 0.2 * 26 / 50, 0.2, 0.2);
#undef CHECK
}

/* What would divide by zero or never act is refused. */
static void test_refusals(void **state)
{
    (void)state;
    static const char *const bad[] = {"schedule: {kind: step}", "schedule: {kind: multistep}",
                                      "lr: -1", "momentum: 1.5", "kind: adamax"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct pl_job *job = NULL;
        char *text = pl_strdupf("model: {name: m, input: {data: [3], label: int}, layers: [{name: d, kind: dense, units: 2}, {name: loss, kind: softmax_loss}]}\n"
                                "data: {train: {file: none.h5}}\ntrain: {steps: 100, batch: 4}\noptimizer: {%s}\n", bad[i]);
        pl_error_clear();
        if (pl_job_parse(text, "t.yaml", &job) != PL_ERR_USAGE)
            fail_msg("%s was taken", bad[i]);
        pl_job_destroy(job);
        pl_free(text);
    }
    pl_error_clear();
}

/* Cut anywhere, also within a tensor, the range is updated as in the whole, bit for bit, statistics too. */
static void check_ranges(const char *kind)
{
    struct fixture whole, cut;
    const char *layer = "{name: e, kind: dense, units: 5}, {name: bn, kind: batchnorm, momentum: 0.75}, {name: d, kind: dense, units: 2, decay_mult: 0.5}";
    char *optimizer = pl_strdupf("kind: %s, lr: 0.05, weight_decay: 0.01", kind);
    open_fixture(&whole, layer, optimizer);
    open_fixture(&cut, layer, optimizer);
    pl_free(optimizer);
    const struct pl_tensor *tensor;
    int tensors = pl_graph_tensors(whole.g, &tensor);
    int64_t n = pl_graph_elems(whole.g);
    float *w = pl_graph_params(whole.g), *c = pl_graph_params(cut.g);
    struct pl_rng r = pl_rng_make(1, 2, 3, 4);
    pl_rng_normals(&r, w, n);
    memcpy(c, w, (size_t)n * sizeof *w);
    for (int step = 0; step < STEPS; step++) {
        struct pl_update u = {.lr = 0.05, .step = step, .samples = 12, .clip = 3};
        pl_rng_normals(&r, whole.sum, n);
        pl_optimizer_update(whole.o, &u, whole.sum, w, w);
        for (int64_t a = 0, b; a < n; a = b) {
            b = a + 1 + (int64_t)pl_rng_below(&r, 7);
            b = b < n ? b : n;
            pl_optimizer_update_range(cut.o, &u, a, b, whole.sum + a, c + a, c + a);
        }
    }
    for (int t = 0; t < tensors; t++) {
        size_t at = (size_t)tensor[t].param->offset, bytes = (size_t)pl_shape_elems(&tensor[t].param->shape) * sizeof *w;
        if (memcmp(w + at, c + at, bytes) != 0)
            fail_msg("%s, tensor %d: %g, in ranges %g", kind, t, (double)w[at], (double)c[at]);
    }
    close_fixture(&whole);
    close_fixture(&cut);
}

static void test_ranges(void **state)
{
    (void)state;
    for (size_t k = 0; k < sizeof known / sizeof *known; k++)
        check_ranges(known[k].kind);
}

/* ---- parameters and state of several ranks together ---------------------------------------------------- */

enum { TOGETHER = 3 };
struct together {
    struct fixture f;
    struct pl_optimizer_shared shared;
    const float *sums; /* [STEPS][elems] */
    int rank;
    pl_status status;
};

static pl_status meet(void *arg)
{
    int code = pthread_barrier_wait(arg);
    return code == 0 || code == PTHREAD_BARRIER_SERIAL_THREAD ? PL_OK : PL_ERR_PEER;
}

static void *update_together(void *arg)
{
    struct together *me = arg;
    int64_t n = pl_graph_elems(me->f.g);
    for (int step = 0; me->status == PL_OK && step < STEPS; step++) {
        struct pl_update u = {.lr = 0.05, .step = step, .samples = 12, .clip = 3};
        if (step % TOGETHER == me->rank)
            pl_sleep_ms(3); /* late: others could have written what it reads */
        me->status = pl_optimizer_take(me->f.o, me->sums + step * n);
        me->status = me->status == PL_OK ? pl_optimizer_apply(me->f.o, &u, me->f.g) : me->status;
    }
    return NULL;
}

static void check_together(const char *kind)
{
    struct fixture alone;
    struct together rank[TOGETHER];
    pthread_t thread[TOGETHER];
    pthread_barrier_t barrier;
    const char *layer = "{name: e, kind: dense, units: 50}, {name: bn, kind: batchnorm, momentum: 0.75}, {name: d, kind: dense, units: 2, decay_mult: 0.5}";
    char *whole = pl_strdupf("kind: %s, lr: 0.05, weight_decay: 0.01", kind), *shared = pl_strdupf("%s}\nsplit: {optimizer: node", whole);
    open_fixture(&alone, layer, whole);
    int64_t n = pl_graph_elems(alone.g);
    float *w = pl_graph_params(alone.g), *sums = pl_alloc((size_t)(STEPS * n) * sizeof *sums, "test"), *slab = pl_alloc((size_t)(3 * n) * sizeof *slab, "test");
    struct pl_rng r = pl_rng_make(1, 2, 3, 4);
    pl_rng_normals(&r, w, n);
    memcpy(slab, w, (size_t)n * sizeof *w);
    pl_rng_normals(&r, sums, STEPS * n);
    for (int step = 0; step < STEPS; step++) {
        struct pl_update u = {.lr = 0.05, .step = step, .samples = 12, .clip = 3};
        pl_optimizer_update(alone.o, &u, sums + step * n, w, w);
    }
    pthread_barrier_init(&barrier, NULL, TOGETHER);
    for (int i = 0; i < TOGETHER; i++) {
        rank[i] = (struct together){.sums = sums, .rank = i, .shared = {.slot = {slab + n, slab + 2 * n}, .a = n * i / TOGETHER / 16 * 16,
                                    .b = i + 1 < TOGETHER ? n * (i + 1) / TOGETHER / 16 * 16 : n, .meet = meet, .arg = &barrier}};
        open_fixture(&rank[i].f, layer, shared);
        assert_int_equal(pl_graph_keep_params(rank[i].f.g, slab), PL_OK);
        assert_int_equal(pl_optimizer_share(rank[i].f.o, &rank[i].shared), PL_OK);
        assert_int_equal(pthread_create(&thread[i], NULL, update_together, &rank[i]), 0);
    }
    for (int i = 0; i < TOGETHER; i++) {
        pthread_join(thread[i], NULL);
        assert_int_equal(rank[i].status, PL_OK);
    }
    for (int64_t i = 0; i < n; i++)
        if (memcmp(&slab[i], &w[i], sizeof *w) != 0)
            fail_msg("%s, element %lld of %lld: %.9g, alone %.9g", kind, (long long)i, (long long)n, (double)slab[i], (double)w[i]);
    for (int s = 0; s < pl_optimizer_slots(alone.o); s++)
        assert_memory_equal(slab + (s + 1) * n, pl_optimizer_slot(alone.o, s), (size_t)n * sizeof *w);
    for (int i = 0; i < TOGETHER; i++)
        close_fixture(&rank[i].f);
    pthread_barrier_destroy(&barrier);
    close_fixture(&alone);
    pl_free(sums);
    pl_free(slab);
    pl_free(whole);
    pl_free(shared);
}

static void test_together(void **state)
{
    (void)state;
    for (size_t k = 0; k < sizeof known / sizeof *known; k++)
        check_together(known[k].kind);
    check_together("lars");
}

/* Whatever the kind, w - lr * (mean gradient + decay * w), and no state is touched. */
static void test_descend(void **state)
{
    struct fixture f;
    (void)state;
    open_fixture(&f, "{name: d, kind: dense, units: 2}", "kind: adam, weight_decay: 0.1");
    set_start(&f);
    set_gradient(&f, 0, 4);
    struct pl_update u = {.lr = 0.05, .samples = 4, .clip = 1};
    pl_optimizer_descend(f.o, &u, f.sum, pl_graph_params(f.g));
    for (int i = 0; i < N; i++) {
        double wanted = start[i] - 0.05 * (gradient(i, 0) + 0.1 * start[i]), found = *element(&f, pl_graph_params(f.g), i);
        if (fabs(found - wanted) > 1e-6)
            fail_msg("element %d: %.9g, wanted %.9g", i, found, wanted);
        assert_true(*element(&f, pl_optimizer_slot(f.o, 0), i) == 0);
    }
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rules), cmocka_unit_test(test_lars), cmocka_unit_test(test_multipliers),
                                       cmocka_unit_test(test_statistics), cmocka_unit_test(test_schedules), cmocka_unit_test(test_refusals),
                                       cmocka_unit_test(test_ranges), cmocka_unit_test(test_together), cmocka_unit_test(test_descend)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
