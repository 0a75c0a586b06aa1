/* A network cut into stages against the same network in one piece, on the reference backend and on the cpu's: outputs, sums of
 * losses, statistics and the gradient of every parameter, in training, with several micro-batches in flight and in evaluation;
 * which cuts are chosen, against all that there are; and every refusal of split.at. */
#include "graph/graph_private.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* ---- small networks -------------------------------------------------------------------------- */

/* Branches, a sum over a shortcut, dropout, an auxiliary head. */
#define BRANCHES_OF(n, three_n)                                                                    \
    "    - {name: stem, kind: conv, filters: " n ", kernel: 3, pad: 1, activation: relu}\n"        \
    "    - {name: stem_bn, kind: batchnorm}\n"                                                     \
    "    - {name: a, kind: conv, filters: " n ", kernel: 1, activation: relu}\n"                   \
    "    - {name: b, kind: conv, filters: " n ", kernel: 3, pad: 1, from: stem_bn, activation: relu}\n"\
    "    - {name: p, kind: maxpool, kernel: 3, stride: 1, pad: 1, from: stem_bn}\n"                \
    "    - {name: cat, kind: concat, from: [a, b, p]}\n"                                           \
    "    - {name: aux, kind: dense, units: 3}\n"                                                   \
    "    - {name: aux_loss, kind: softmax_loss, weight: 0.3}\n"                                    \
    "    - {name: drop, kind: dropout, rate: 0.4, from: cat}\n"                                    \
    "    - {name: c, kind: conv, filters: " three_n ", kernel: 3, pad: 1}\n"                       \
    "    - {name: c_bn, kind: batchnorm, activation: relu}\n"                                      \
    "    - {name: d, kind: conv, filters: " three_n ", kernel: 3, pad: 1}\n"                       \
    "    - {name: sum, kind: add, from: [d, drop], activation: relu}\n"                            \
    "    - {name: g, kind: avgpool, global: true}\n"                                               \
    "    - {name: classes, kind: dense, units: 3}\n"                                               \
    "    - {name: loss, kind: softmax_loss}\n"
#define BRANCHES BRANCHES_OF("8", "24")
#define WIDE BRANCHES_OF("32", "96") /* wide enough for activations that lie in blocks */
/* Layers that a backend makes one of: convolutions, normalisations and rectifiers, each by itself; and a view. */
#define CHAIN                                                                                      \
    "    - {name: c1, kind: conv, filters: 16, kernel: 3, pad: 1, bias: false}\n"                  \
    "    - {name: bn1, kind: batchnorm}\n"                                                         \
    "    - {name: r1, kind: relu}\n"                                                               \
    "    - {name: c2, kind: conv, filters: 16, kernel: 3, pad: 1}\n"                               \
    "    - {name: r2, kind: relu}\n"                                                               \
    "    - {name: f, kind: flatten}\n"                                                             \
    "    - {name: e, kind: dense, units: 3}\n"                                                     \
    "    - {name: loss, kind: softmax_loss}\n"
/* The main loss runs before the layers of the last auxiliary one. */
#define HEADS                                                                                      \
    "    - {name: trunk, kind: conv, filters: 4, kernel: 3, pad: 1, activation: tanh}\n"           \
    "    - {name: aux1, kind: dense, units: 5, activation: sigmoid}\n"                             \
    "    - {name: aux1_classes, kind: dense, units: 3}\n"                                          \
    "    - {name: aux1_loss, kind: softmax_loss, weight: 0.3}\n"                                   \
    "    - {name: top, kind: conv, filters: 3, kernel: 3, from: trunk}\n"                          \
    "    - {name: aux2_loss, kind: softmax_loss, weight: 0.4, from: aux2_classes}\n"               \
    "    - {name: classes, kind: dense, units: 3, from: top}\n"                                    \
    "    - {name: loss, kind: softmax_loss, weight: 2}\n"                                          \
    "    - {name: aux2_classes, kind: dense, units: 3, from: top}\n"

enum { MOST = 4, CAPACITY = 7, FLIGHTS = 2 };
struct net { const char *name, *layers; };
/* apart: a normalisation that the whole network folds into the layer before it is behind a cut. */
struct cut { struct net net; int stages; const char *at[MOST - 1]; bool apart; };

static const struct cut cuts[] = {
    {{"fan-out at the cut", BRANCHES}, 2, {"a"}, false},
    {{"auxiliary head before it, and the shortcut over what follows", BRANCHES}, 3, {"a", "drop"}, false},
    {{"an output taken at once and later", BRANCHES}, 2, {"c"}, false},
    {{"before the head", BRANCHES}, 2, {"aux"}, false},
    {{"everywhere", BRANCHES}, 4, {"stem_bn", "c", "g"}, false},
    {{"wide, fan-out", WIDE}, 2, {"a"}, false},
    {{"wide, shortcut", WIDE}, 3, {"aux", "c"}, false},
    {{"wide, behind it", WIDE}, 2, {"g"}, false},
    {{"convolution | normalisation", CHAIN}, 2, {"bn1"}, true},
    {{"normalisation | rectifier", CHAIN}, 2, {"r1"}, false},
    {{"convolution | rectifier", CHAIN}, 3, {"c2", "r2"}, false},
    {{"behind a view", CHAIN}, 2, {"e"}, false},
    {{"a stage of a head alone", HEADS}, 3, {"aux1", "top"}, false},
    {{"a head in the last stage", HEADS}, 2, {"classes"}, false},
    {{"chosen", BRANCHES}, 2, {NULL}, false},
};
enum { CUTS = sizeof cuts / sizeof cuts[0] };

static const char *const backends[] = {"reference", "cpu"};

/* Loops over wide layers take the reference too long, and it has one layout anyway. */
static bool too_slow(const struct cut *c, const char *backend) { return strcmp(backend, "reference") == 0 && strncmp(c->net.name, "wide", 4) == 0; }

static struct pl_job *parse(const struct net *m)
{
    struct pl_job *job;
    char *text = pl_strdupf("model:\n"
                            "  name: m\n"
                            "  input: {data: [2, 6, 6], label: int}\n"
                            "  layers:\n"
                            "%s"
                            "data: {train: {file: none.h5}}\n"
                            "train: {steps: 1, batch: 4}\n"
                            "optimizer: {kind: sgd, lr: 0.1}\n",
                            m->layers);
    pl_error_clear();
    if (pl_job_parse(text, "t.yaml", &job) != PL_OK)
        fail_msg("%s: %s", m->name, pl_error_text());
    pl_free(text);
    return job;
}

/* ---- a network in stages --------------------------------------------------------------------- */

/* What crosses a border, of a micro-batch in flight. */
struct tensors { float *y, *dy; };

struct line {
    const struct cut *cut;
    struct pl_texts at;
    struct pl_job *job;
    const struct pl_backend_table *table;
    struct pl_backend *backend;
    int stages;
    struct pl_graph *g[MOST][FLIGHTS], *eval[MOST];
    struct tensors border[MOST][FLIGHTS];
    float *grads[MOST];
};

static struct pl_graph *make(struct line *n, int stage, bool train, struct pl_graph *share)
{
    struct pl_graph *g;
    const struct pl_graph_cut cut = {.stage = stage, .stages = n->stages, .at = &n->at};
    if (pl_graph_create_stage(n->job, n->table, n->backend, CAPACITY, train, n->stages > 1 ? &cut : NULL, share, &g) != PL_OK)
        fail_msg("%s: stage %d: %s", n->cut->net.name, stage, pl_error_text());
    return g;
}

/* Not a number: whoever reads what nobody wrote shows. */
static float *poisoned(int64_t n)
{
    float *p = pl_alloc((size_t)n * sizeof *p, "test");
    for (int64_t i = 0; i < n; i++)
        p[i] = NAN;
    return p;
}

static void open_stage(struct line *n, int s)
{
    n->g[s][0] = make(n, s, true, NULL);
    n->g[s][1] = make(n, s, true, n->g[s][0]);
    n->eval[s] = make(n, s, false, n->g[s][0]);
    n->grads[s] = pl_alloc((size_t)pl_graph_elems(n->g[s][0]) * sizeof(float), "test");
    pl_graph_init(n->g[s][0], 3);
    const struct pl_shape *out = pl_graph_border_out(n->g[s][0]);
    for (int k = 0; k < FLIGHTS; k++) {
        pl_graph_set_grads(n->g[s][k], n->grads[s]);
        for (int i = 0; i < n->g[s][0]->layers; i++)
            assert_ptr_equal(n->g[s][k]->node[i].weight_bf16, n->g[s][0]->node[i].weight_bf16);
        if (out)
            n->border[s][k] = (struct tensors){poisoned(pl_shape_elems(out)), poisoned(pl_shape_elems(out))};
    }
}

static void open_line(struct line *n, const struct cut *c, int stages, const char *backend, bool bf16)
{
    *n = (struct line){.cut = c, .job = parse(&c->net), .table = pl_backend_find(backend), .stages = stages};
    for (int s = 0; s < stages - 1 && c->at[s]; s++)
        n->at.v[n->at.n++] = (char *)(uintptr_t)c->at[s];
    assert_int_equal(n->table->open(&(struct pl_device_options){.threads = 1, .bf16 = bf16}, &n->backend), PL_OK);
    for (int s = 0; s < stages; s++)
        open_stage(n, s);
}

static void close_line(struct line *n)
{
    for (int s = 0; s < n->stages; s++) {
        pl_graph_destroy(n->eval[s]);
        for (int k = FLIGHTS - 1; k >= 0; k--) {
            pl_graph_destroy(n->g[s][k]);
            pl_free(n->border[s][k].y);
            pl_free(n->border[s][k].dy);
        }
        pl_free(n->grads[s]);
    }
    n->table->close(n->backend);
    pl_job_destroy(n->job);
}

/* A micro-batch; padding rows 0. */
struct micro {
    float *data;
    int32_t label[CAPACITY];
    int64_t index[CAPACITY];
    struct pl_graph_batch batch;
};

enum { ROW = 2 * 6 * 6 };

static void fill(struct micro *m, int64_t rows, uint64_t seed)
{
    m->data = pl_alloc((size_t)CAPACITY * ROW * sizeof(float), "test");
    for (int64_t r = 0; r < rows; r++) {
        struct pl_rng rng = pl_rng_make(seed, (uint64_t)r, 0, 0);
        m->index[r] = 100 * (int64_t)seed + r;
        m->label[r] = (int32_t)pl_rng_below(&rng, 3);
        pl_rng_normals(&rng, m->data + r * ROW, ROW);
    }
    m->batch = (struct pl_graph_batch){.rows = rows, .data = m->data, .label = m->label, .index = m->index, .seed = 5, .step_key = seed};
}

/* What stage s sees of it: the data at the first only, and its borders. */
static struct pl_graph_batch seen_by(const struct line *n, int s, int flight, const struct micro *m, struct pl_graph_border *b)
{
    struct pl_graph_batch batch = m->batch;
    *b = (struct pl_graph_border){.y = n->border[s][flight].y, .dy = n->border[s][flight].dy};
    if (s > 0) {
        batch.data = NULL;
        b->x = n->border[s - 1][flight].y;
        b->dx = n->border[s - 1][flight].dy;
    }
    batch.border = n->stages > 1 ? b : NULL;
    return batch;
}

static void forward_through(struct line *n, struct pl_graph *(*of)(struct line *, int s, int flight), int flight, const struct micro *m,
                            bool train, struct pl_loss_sums *sums)
{
    for (int s = 0; s < n->stages; s++) {
        struct pl_graph_border border;
        struct pl_graph_batch b = seen_by(n, s, flight, m, &border);
        if (pl_graph_forward(of(n, s, flight), &b, train, sums) != PL_OK)
            fail_msg("%s: forward of stage %d: %s", n->cut->net.name, s, pl_error_text());
    }
}

static struct pl_graph *trained(struct line *n, int s, int flight) { return n->g[s][flight]; }
static struct pl_graph *evaluated(struct line *n, int s, int flight) { (void)flight; return n->eval[s]; }

static struct pl_loss_sums forward(struct line *n, int flight, const struct micro *m)
{
    struct pl_loss_sums sums = {0};
    forward_through(n, trained, flight, m, true, &sums);
    return sums;
}

static struct pl_loss_sums evaluate(struct line *n, const struct micro *m)
{
    struct pl_loss_sums sums = {0};
    for (int s = 0; s < n->stages; s++)
        assert_int_equal(pl_graph_prepare(n->eval[s]), PL_OK);
    forward_through(n, evaluated, 0, m, false, &sums);
    return sums;
}

static pl_status see(void *arg, int64_t a, int64_t b)
{
    int64_t *end = arg;
    assert_int_equal(b, *end);
    *end = a;
    return PL_OK;
}

static void backward(struct line *n, int flight, const struct micro *m, bool accumulate)
{
    for (int s = n->stages - 1; s >= 0; s--) {
        struct pl_graph_border border;
        struct pl_graph_batch b = seen_by(n, s, flight, m, &border);
        int64_t end = pl_graph_elems(n->g[s][flight]);
        if (pl_graph_backward(n->g[s][flight], &b, accumulate, see, &end) != PL_OK)
            fail_msg("%s: backward of stage %d: %s", n->cut->net.name, s, pl_error_text());
        assert_int_equal(end, 0);
    }
}

/* ---- in pieces and in one -------------------------------------------------------------------- */

/* The worst of all differences, in parts of the tensor's size; 0 is equal to the bit. */
static double difference(const float *a, const float *b, int64_t n)
{
    double error = 0, size = 1e-6;
    for (int64_t i = 0; i < n; i++) {
        double d = (double)a[i] - (double)b[i];
        error += d * d;
        size += (double)a[i] * (double)a[i];
        if (!isfinite(d))
            return INFINITY;
    }
    return sqrt(error / size);
}

static void assert_close(const char *cut, const char *layer, const char *what, double found, double slack)
{
    if (!(found <= slack))
        fail_msg("%s: %s %s is off by %g of its size", cut, layer, what, found);
}

static const struct pl_tensor *tensor_of(const struct pl_graph *g, const struct pl_tensor *like)
{
    const struct pl_tensor *t;
    int n = pl_graph_tensors(g, &t);
    for (int i = 0; i < n; i++)
        if (strcmp(t[i].layer, like->layer) == 0 && strcmp(t[i].name, like->name) == 0)
            return &t[i];
    fail_msg("no %s/%s", like->layer, like->name);
    return NULL;
}

/* Every parameter is in one stage, begins as in the whole network, and has the same gradient. */
static void assert_same_tensors(struct line *whole, struct line *n, double slack)
{
    const struct pl_tensor *t;
    int found = 0, all = pl_graph_tensors(whole->g[0][0], &t);
    int64_t weights = 0;
    for (int s = 0; s < n->stages; s++) {
        int here = pl_graph_tensors(n->g[s][0], &t);
        found += here;
        weights += pl_graph_weights(n->g[s][0]);
        for (int i = 0; i < here; i++) {
            const struct pl_tensor *w = tensor_of(whole->g[0][0], &t[i]);
            int64_t elems = pl_shape_elems(&t[i].param->shape), from = w->param->offset, to = t[i].param->offset;
            assert_memory_equal(pl_graph_params(whole->g[0][0]) + from, pl_graph_params(n->g[s][0]) + to, (size_t)elems * sizeof(float));
            assert_close(n->cut->net.name, t[i].layer, t[i].name, difference(whole->grads[0] + from, n->grads[s] + to, elems), slack);
        }
    }
    assert_int_equal(found, all);
    assert_int_equal(weights, pl_graph_weights(whole->g[0][0]));
}

static void assert_same_sums(const struct cut *c, const struct pl_loss_sums *a, const struct pl_loss_sums *b, double slack)
{
    assert_close(c->net.name, "all", "losses", fabs(a->total - b->total) / a->total, slack);
    assert_close(c->net.name, "the main", "loss", fabs(a->loss - b->loss) / a->loss, slack);
    assert_true(a->rows == b->rows && a->correct == b->correct && a->correct5 == b->correct5);
}

static void assert_same_output(const struct cut *c, struct pl_graph *whole, struct pl_graph *const *stage, int stages, int64_t rows, double slack)
{
    int64_t row = pl_shape_row_elems(pl_graph_output_shape(whole));
    for (int s = 0; s < stages - 1; s++)
        assert_null(pl_graph_output(stage[s]));
    assert_close(c->net.name, "the", "output", difference(pl_graph_output(whole), pl_graph_output(stage[stages - 1]), rows * row), slack);
}

/* The cpu's plans may sum in another order where a border keeps an activation from lying in blocks. */
static double slack_of(const struct line *n) { return strcmp(n->table->name, "reference") == 0 ? 0 : 2e-6; }

static void check_training(const struct cut *c, const char *backend)
{
    struct line whole, n;
    struct micro m;
    open_line(&whole, c, 1, backend, false);
    open_line(&n, c, c->stages, backend, false);
    fill(&m, 5, 1);
    double slack = slack_of(&n);
    for (int pass = 0; pass < 2; pass++) { /* the second on what the first left behind */
        m.batch.rows = 5 - pass;
        struct pl_loss_sums a = forward(&whole, 0, &m), b = forward(&n, 0, &m);
        struct pl_graph *const last[] = {n.g[0][0], n.stages > 1 ? n.g[1][0] : NULL, n.stages > 2 ? n.g[2][0] : NULL, n.stages > 3 ? n.g[3][0] : NULL};
        assert_same_sums(c, &a, &b, slack);
        assert_same_output(c, whole.g[0][0], last, n.stages, m.batch.rows, slack);
        backward(&whole, 0, &m, false);
        backward(&n, 0, &m, false);
        assert_same_tensors(&whole, &n, slack);
    }
    pl_free(m.data);
    close_line(&n);
    close_line(&whole);
}

static void training(void **state)
{
    (void)state;
    for (int b = 0; b < 2; b++)
        for (int i = 0; i < CUTS; i++)
            if (!too_slow(&cuts[i], backends[b]))
                check_training(&cuts[i], backends[b]);
}

/* How far the gradients of n are from the exact ones, in parts of their size, the worst of all tensors. */
static double gradient_error(struct line *exact, struct line *n)
{
    const struct pl_tensor *t;
    double most = 0;
    for (int s = 0; s < n->stages; s++) {
        int here = pl_graph_tensors(n->g[s][0], &t);
        for (int i = 0; i < here; i++) {
            const float *wanted = exact->grads[0] + tensor_of(exact->g[0][0], &t[i])->param->offset;
            double d = difference(wanted, n->grads[s] + t[i].param->offset, pl_shape_elems(&t[i].param->shape));
            most = d > most ? d : most;
        }
    }
    return most;
}

/* What crosses is float and was bf16 in one piece, so the two round at different places, but not more often. */
static void check_bf16(const struct cut *c)
{
    struct line exact, whole, n, *all[] = {&exact, &whole, &n};
    struct micro m;
    fill(&m, 5, 1);
    for (int i = 0; i < 3; i++) {
        open_line(all[i], c, i < 2 ? 1 : c->stages, "cpu", i > 0);
        forward(all[i], 0, &m);
        backward(all[i], 0, &m, false);
    }
    double in_one = gradient_error(&exact, &whole), in_stages = gradient_error(&exact, &n);
    if (!(in_one > 0 && in_stages > 0 && in_stages < 2 * in_one))
        fail_msg("%s: gradients in bf16 are off by %g in stages, %g in one piece", c->net.name, in_stages, in_one);
    for (int i = 0; i < 3; i++)
        close_line(all[i]);
    pl_free(m.data);
}

static void training_in_bf16(void **state)
{
    (void)state;
    for (int i = 0; i < CUTS; i++)
        check_bf16(&cuts[i]);
}

/* Two micro-batches in flight, in graphs that share parameters and add to one gradient, against one after the other. */
static void check_flight(const struct cut *c, const char *backend, int stages, bool bf16)
{
    struct line whole, n;
    struct micro m[2];
    open_line(&whole, c, 1, backend, bf16);
    open_line(&n, c, stages, backend, bf16);
    fill(&m[0], 5, 1);
    fill(&m[1], 3, 2);
    double slack = bf16 ? 0.1 : slack_of(&n);
    for (int s = 0; bf16 && s < stages; s++) /* on copies of weights that are kept, one for all graphs that share them */
        assert_int_equal(pl_graph_stay(n.g[s][0], PL_STAY_PARAMS), PL_OK);
    for (int step = 0; step < 2; step++) {
        for (int k = 0; k < 2; k++) {
            forward(&whole, 0, &m[k]);
            backward(&whole, 0, &m[k], k > 0);
        }
        for (int k = 0; k < 2; k++)
            forward(&n, k, &m[k]);
        for (int k = 0; k < 2; k++)
            backward(&n, k, &m[k], k > 0);
        assert_same_tensors(&whole, &n, stages > 1 ? slack : 0);
    }
    pl_free(m[0].data), pl_free(m[1].data);
    close_line(&n);
    close_line(&whole);
}

static void several_in_flight(void **state)
{
    (void)state;
    for (int b = 0; b < 2; b++)
        for (int i = 0; i < CUTS; i++) {
            if (too_slow(&cuts[i], backends[b]))
                continue;
            check_flight(&cuts[i], backends[b], cuts[i].stages, false);
            check_flight(&cuts[i], backends[b], 1, false);
        }
    check_flight(&cuts[0], "cpu", 1, true);
    check_flight(&cuts[0], "cpu", cuts[0].stages, true);
}

/* Parameters as after some training, the same in both: no scale is 1, no mean 0. */
static void unsettle(struct line *whole, struct line *n)
{
    const struct pl_tensor *t;
    struct pl_rng rng = pl_rng_make(4, 8, 0, 0);
    for (int s = 0; s < n->stages; s++) {
        int here = pl_graph_tensors(n->g[s][0], &t);
        for (int i = 0; i < here; i++) {
            float *from = pl_graph_params(whole->g[0][0]) + tensor_of(whole->g[0][0], &t[i])->param->offset;
            int64_t elems = pl_shape_elems(&t[i].param->shape);
            for (int64_t k = 0; t[i].param->shape.dims == 1 && k < elems; k++)
                from[k] = (float)(0.3 + pl_rng_uniform(&rng));
            memcpy(pl_graph_params(n->g[s][0]) + t[i].param->offset, from, (size_t)elems * sizeof(float));
        }
    }
}

static void check_evaluation(const struct cut *c, const char *backend)
{
    struct line whole, n;
    struct micro m;
    open_line(&whole, c, 1, backend, false);
    open_line(&n, c, c->stages, backend, false);
    fill(&m, 5, 1);
    unsettle(&whole, &n);
    double slack = c->apart ? 2e-6 : slack_of(&n);
    struct pl_loss_sums a = evaluate(&whole, &m), b = evaluate(&n, &m);
    assert_same_sums(c, &a, &b, slack);
    assert_same_output(c, whole.eval[0], n.eval, n.stages, m.batch.rows, slack);
    pl_free(m.data);
    close_line(&n);
    close_line(&whole);
}

static void evaluation(void **state)
{
    (void)state;
    for (int b = 0; b < 2; b++)
        for (int i = 0; i < CUTS; i++)
            if (!too_slow(&cuts[i], backends[b]))
                check_evaluation(&cuts[i], backends[b]);
}

/* A network without a loss is cut as it is. */
static void predicted(void **state)
{
    (void)state;
    static const struct cut c = {{"no loss", "    - {name: c, kind: conv, filters: 8, kernel: 3, activation: relu}\n"
                                             "    - {name: d, kind: dense, units: 5}\n"
                                             "    - {name: f, kind: flatten}\n"}, 2, {"d"}, false};
    struct line whole = {.cut = &c, .stages = 1}, n = {.cut = &c, .stages = 2, .at = {.n = 1, .v = {(char *)(uintptr_t)c.at[0]}}};
    struct line *both[] = {&whole, &n};
    struct micro m;
    fill(&m, 5, 1);
    m.batch.label = NULL;
    for (int i = 0; i < 2; i++) {
        both[i]->job = parse(&c.net);
        both[i]->table = pl_backend_find("cpu");
        assert_int_equal(both[i]->table->open(&(struct pl_device_options){.threads = 1}, &both[i]->backend), PL_OK);
        for (int s = 0; s < both[i]->stages; s++) {
            both[i]->eval[s] = make(both[i], s, false, NULL);
            pl_graph_init(both[i]->eval[s], 3);
            if (s < both[i]->stages - 1)
                both[i]->border[s][0].y = poisoned(pl_shape_elems(pl_graph_border_out(both[i]->eval[s])));
        }
        evaluate(both[i], &m);
    }
    assert_same_output(&c, whole.eval[0], n.eval, 2, m.batch.rows, slack_of(&n));
    pl_free(m.data);
    close_line(&n);
    close_line(&whole);
}

/* A pass through stages allocates nothing. */
static void nothing_is_allocated(void **state)
{
    (void)state;
    struct line n;
    struct micro m;
    open_line(&n, &cuts[1], cuts[1].stages, "reference", false);
    fill(&m, 5, 1);
    forward(&n, 0, &m);
    backward(&n, 0, &m, false);
    uint64_t before = pl_alloc_count();
    forward(&n, 0, &m);
    backward(&n, 0, &m, true);
    assert_int_equal(pl_alloc_count() - before, 0);
    pl_free(m.data);
    close_line(&n);
}

/* ---- what every stage knows ------------------------------------------------------------------ */

static void assert_same_whole(const struct pl_graph *a, const struct pl_graph *b)
{
    assert_true(pl_graph_signature(a) == pl_graph_signature(b));
    assert_int_equal(pl_graph_classes(a), pl_graph_classes(b));
    assert_int_equal(pl_graph_losses(a), pl_graph_losses(b));
    assert_true(pl_graph_flops(a, 3) == pl_graph_flops(b, 3));
    assert_memory_equal(pl_graph_output_shape(a), pl_graph_output_shape(b), sizeof(struct pl_shape));
}

static void assert_same_stages(const struct pl_graph *a, const struct pl_graph *b)
{
    const struct pl_graph_stage *x, *y;
    int n = pl_graph_stages(a, &x);
    assert_int_equal(pl_graph_stages(b, &y), n);
    for (int s = 0; s < n; s++) {
        assert_string_equal(x[s].first, y[s].first);
        assert_string_equal(x[s].last, y[s].last);
        assert_true(x[s].flops == y[s].flops && x[s].weights == y[s].weights && x[s].border_elems == y[s].border_elems);
    }
}

static void check_known(const struct cut *c)
{
    struct line whole, n;
    const struct pl_graph_stage *stage;
    double flops = 0;
    open_line(&whole, c, 1, "reference", false);
    open_line(&n, c, c->stages, "reference", false);
    assert_int_equal(pl_graph_stages(n.g[0][0], &stage), c->stages);
    for (int s = 0; s < n.stages; s++) {
        const struct pl_shape *in = pl_graph_border_in(n.g[s][0]), *out = pl_graph_border_out(n.eval[s]);
        assert_same_whole(whole.g[0][0], n.g[s][0]);
        assert_same_whole(whole.eval[0], n.eval[s]);
        assert_same_stages(n.g[0][0], n.g[s][0]);
        assert_same_stages(n.g[0][0], n.eval[s]);
        if (s > 0 && c->at[0])
            assert_string_equal(stage[s].first, c->at[s - 1]);
        assert_int_equal(stage[s].weights, pl_graph_weights(n.g[s][0]));
        assert_true((in != NULL) == (s > 0) && (out != NULL) == (s < n.stages - 1));
        assert_true(!out || (pl_shape_row_elems(out) == stage[s].border_elems && out->dim[0] == CAPACITY));
        assert_true(!in || pl_shape_row_elems(in) == stage[s - 1].border_elems);
        flops += stage[s].flops;
    }
    assert_int_equal(stage[n.stages - 1].border_elems, 0);
    assert_true(flops == pl_graph_flops(whole.g[0][0], 1));
    assert_int_equal(pl_graph_stages(whole.g[0][0], &stage), 1);
    assert_true(stage[0].flops == flops && stage[0].border_elems == 0);
    assert_string_equal(stage[0].first, c->net.layers == cuts[0].net.layers ? "stem" : stage[0].first);
    close_line(&n);
    close_line(&whole);
}

static void known_to_all(void **state)
{
    (void)state;
    for (int i = 0; i < CUTS; i++)
        check_known(&cuts[i]);
}

/* A border is asked for; a stage shares the parameters of the same one only. */
static void misused(void **state)
{
    (void)state;
    struct line n;
    struct micro m;
    struct pl_graph *g;
    open_line(&n, &cuts[0], 2, "reference", false);
    fill(&m, 5, 1);
    forward(&n, 0, &m);
    for (int s = 0; s < 2; s++) {
        struct pl_graph_border none = {0};
        struct pl_graph_batch b = m.batch;
        for (int k = 0; k < 2; k++, b.border = &none) {
            struct pl_loss_sums sums = {0};
            assert_int_equal(pl_graph_forward(n.g[s][0], &b, true, &sums), PL_ERR_USAGE);
            assert_int_equal(pl_graph_backward(n.g[s][0], &b, false, NULL, NULL), PL_ERR_USAGE);
        }
    }
    const struct pl_graph_cut other = {.stage = 1, .stages = 2, .at = &n.at}, beyond = {.stage = 2, .stages = 2, .at = &n.at};
    assert_int_equal(pl_graph_create_stage(n.job, n.table, n.backend, CAPACITY, true, &other, n.g[0][0], &g), PL_ERR_USAGE);
    assert_int_equal(pl_graph_create_stage(n.job, n.table, n.backend, CAPACITY, true, &beyond, NULL, &g), PL_ERR_USAGE);
    pl_free(m.data);
    close_line(&n);
}

static void not_far(void **state)
{
    (void)state;
    struct line n;
    struct pl_graph *g;
    open_line(&n, &cuts[0], 2, "reference", false);
    struct pl_backend_table far = *n.table;
    far.far = true;
    far.name = "cuda";
    const struct pl_graph_cut cut = {.stage = 0, .stages = 2};
    assert_int_equal(pl_graph_create_stage(n.job, &far, n.backend, CAPACITY, true, &cut, NULL, &g), PL_ERR_USAGE);
    assert_non_null(strstr(pl_error_text(), "split.pipeline is not built for device.kind cuda in this version"));
    pl_error_clear();
    assert_int_equal(pl_graph_create(n.job, &far, n.backend, CAPACITY, true, n.g[0][0], &g), PL_ERR_USAGE);
    assert_non_null(strstr(pl_error_text(), "shared parameters"));
    close_line(&n);
}

/* ---- cuts that are chosen -------------------------------------------------------------------- */

#define D(name, units) "    - {name: " name ", kind: dense, units: " units "}\n"
#define END "    - {name: loss, kind: softmax_loss}\n"

/* Of flops 72 * 8 = 576, 64, 64, 512, 512, 24 (times two); and of borders that cost the same the narrowest. */
static const struct cut wanted[] = {
    {{"two", D("a", "8") D("b", "8") D("c", "8") D("d", "64") D("e", "8") D("f", "3") END}, 2, {"d"}, false},
    {{"three", D("a", "8") D("b", "8") D("c", "8") D("d", "64") D("e", "8") D("f", "3") END}, 3, {"b", "e"}, false},
    {{"narrow",
      "    - {name: a, kind: conv, filters: 4, kernel: 3, pad: 1}\n"
      "    - {name: p, kind: maxpool, kernel: 2, stride: 2}\n"
      "    - {name: q, kind: maxpool, kernel: 2, stride: 2}\n" D("b", "6") END},
     2,
     {"b"},
     false},
};

static double slowest(const struct pl_graph_stage *stage, int n, double *crosses)
{
    double most = 0;
    *crosses = 0;
    for (int s = 0; s < n; s++) {
        most = stage[s].flops > most ? stage[s].flops : most;
        *crosses += (double)stage[s].border_elems;
    }
    return most;
}

static void chosen(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        const struct pl_graph_stage *stage;
        struct line n = {.cut = &wanted[i], .job = parse(&wanted[i].net), .table = pl_backend_find("reference"), .stages = wanted[i].stages};
        assert_int_equal(n.table->open(&(struct pl_device_options){.threads = 1}, &n.backend), PL_OK);
        struct pl_graph *g = make(&n, 0, true, NULL);
        pl_graph_stages(g, &stage);
        for (int s = 1; s < n.stages; s++)
            assert_string_equal(stage[s].first, wanted[i].at[s - 1]);
        pl_graph_destroy(g);
        n.table->close(n.backend);
        pl_job_destroy(n.job);
    }
}

/* Tries split.at with each layer in each place from `depth` on; the best of what is not refused. */
struct search { struct line *n; const struct pl_layer *layer; int layers; double most, crosses; int tried; };

static void search(struct search *t, int depth, int from)
{
    struct pl_graph *g;
    const struct pl_graph_stage *stage;
    const struct pl_graph_cut cut = {.stage = 0, .stages = t->n->stages, .at = &t->n->at};
    double crosses;
    for (int i = from; depth < t->n->stages - 1 && i < t->layers; i++) {
        t->n->at.v[depth] = t->layer[i].name;
        t->n->at.n = depth + 1;
        search(t, depth + 1, i + 1);
    }
    if (depth < t->n->stages - 1 || pl_graph_create_stage(t->n->job, t->n->table, t->n->backend, 1, true, &cut, NULL, &g) != PL_OK)
        return;
    double most = slowest(stage, pl_graph_stages(g, &stage), &crosses);
    if (most < t->most || (most == t->most && crosses < t->crosses)) {
        t->most = most;
        t->crosses = crosses;
    }
    t->tried++;
    pl_graph_destroy(g);
}

static void check_best(const struct net *m, int stages)
{
    double crosses;
    const struct cut c = {*m, stages, {NULL}, false};
    const struct pl_graph_stage *stage;
    struct line n = {.cut = &c, .job = parse(m), .table = pl_backend_find("reference"), .stages = stages};
    assert_int_equal(n.table->open(&(struct pl_device_options){.threads = 1}, &n.backend), PL_OK);
    struct pl_graph *best = make(&n, stages - 1, true, NULL), *whole;
    double most = slowest(stage, pl_graph_stages(best, &stage), &crosses);
    assert_int_equal(pl_graph_create(n.job, n.table, n.backend, 1, true, NULL, &whole), PL_OK);
    struct search t = {.n = &n, .most = INFINITY, .crosses = INFINITY};
    t.layers = pl_graph_layers(whole, &t.layer);
    search(&t, 0, 0);
    print_message("%s, %d stages: %d ways, slowest %g, numbers that cross %g\n", m->name, stages, t.tried, t.most, t.crosses);
    assert_true(t.tried > 1 && most == t.most && crosses == t.crosses);
    pl_error_clear();
    pl_graph_destroy(whole);
    pl_graph_destroy(best);
    n.table->close(n.backend);
    pl_job_destroy(n.job);
}

static void best_of_all(void **state)
{
    (void)state;
    static const struct net nets[] = {{"branches", BRANCHES}, {"chain", CHAIN}, {"heads", HEADS}};
    for (int i = 0; i < 3; i++)
        for (int stages = 2; stages < 4; stages++)
            check_best(&nets[i], stages);
}

/* ---- refusals -------------------------------------------------------------------------------- */

struct refusal { const char *layers; int stages; const char *at[3], *message; };

#define TWO_PATHS                                                                                  \
    D("a", "4")                                                                                    \
    D("b", "4")                                                                                    \
    D("c", "4")                                                                                    \
    "    - {name: sum, kind: add, from: [a, c]}\n" D("d", "3") END
#define DATA_AGAIN                                                                                 \
    D("a", "72")                                                                                   \
    "    - {name: f, kind: flatten, from: data}\n"                                                 \
    "    - {name: sum, kind: add, from: [a, f]}\n" D("d", "3") END

static const struct refusal refusals[] = {
    {BRANCHES, 2, {"steam_bn"}, "split.at: `steam_bn`: no layer has this name; did you mean `stem_bn`?"},
    {BRANCHES, 2, {"nowhere_at_all"}, "split.at: `nowhere_at_all`: no layer has this name"},
    {BRANCHES, 3, {"a"}, "split.at names 1 layer, but split.pipeline: 3 wants 2"},
    {BRANCHES, 2, {"a", "c"}, "split.at names 2 layers, but split.pipeline: 2 wants 1"},
    {BRANCHES, 3, {"c", "a"}, "split.at: no stage can begin with `a`: it does not run after `c`"},
    {BRANCHES, 3, {"c", "c"}, "split.at: no stage can begin with `c`: it does not run after `c`"},
    {BRANCHES, 2, {"stem"}, "split.at: no stage can begin with `stem`: it is the first layer of all\nnear it the network can be cut before `stem_bn`"},
    {BRANCHES, 2, {"stem.relu"}, "`stem.relu`: it is the activation of `stem`\nnear it the network can be cut before `stem_bn`"},
    {BRANCHES, 2, {"b"}, "`b`: the outputs of both `stem_bn` and `a.relu` are taken later, and one alone can be handed on\n"
                         "near it the network can be cut before `a` or `aux`"},
    {BRANCHES, 2, {"loss"}, "`loss`: neither it nor a layer after it has weights to train\nnear it the network can be cut before `classes`"},
    {BRANCHES, 3, {"g", "classes"}, "`classes`: no layer from `g` up to it has weights to train"},
    {BRANCHES, 3, {"aux", "aux_loss"}, "`aux_loss`: the outputs of both `cat` and `aux` are taken later, and one alone can be handed on\n"
                                       "near it the network can be cut before `drop`"},
    {HEADS, 2, {"aux2_classes"}, "`aux2_classes`: `loss` runs before it, and belongs to the last stage\nnear it the network can be cut before `classes`"},
    {"    - {name: r, kind: relu}\n" D("a", "4") D("b", "3") END, 2, {"a"}, "`a`: no layer before it has weights to train\nnear it the network can be cut before `b`"},
    {TWO_PATHS, 2, {"c"}, "`c`: the outputs of both `a` and `b` are taken later"},
    {DATA_AGAIN, 2, {"sum"}, "split.at: no stage can begin with `sum`: `sum` takes the input's data"},
    {"    - {name: a, kind: dense, units: 72, lr_mult: 0, bias_lr_mult: 0}\n" D("b", "4") D("c", "3") END, 2, {"b"}, "`b`: no layer before it has weights to train"},
    {BRANCHES, 99, {NULL}, "split.pipeline: 99 stages, but this network can be cut into 6 at most"},
    {BRANCHES, 7, {NULL}, "split.pipeline: 7 stages, but this network can be cut into 6 at most"},
    {DATA_AGAIN, 3, {NULL}, "split.pipeline: 3 stages, but this network can be cut into 2 at most"},
    {BRANCHES, 257, {NULL}, "split.pipeline: 257 stages; there may be 1 to 256"},
};

static void refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        const struct refusal *r = &refusals[i];
        const struct net m = {"refused", r->layers};
        struct pl_job *job = parse(&m);
        const struct pl_backend_table *table = pl_backend_find("reference");
        struct pl_backend *backend;
        struct pl_texts at = {0};
        for (; at.n < 3 && r->at[at.n]; at.n++)
            at.v[at.n] = (char *)(uintptr_t)r->at[at.n];
        assert_int_equal(table->open(&(struct pl_device_options){.threads = 1}, &backend), PL_OK);
        for (int train = 0; train < 2; train++) {
            struct pl_graph *g;
            const struct pl_graph_cut cut = {.stage = 0, .stages = r->stages, .at = &at};
            pl_error_clear();
            pl_status s = pl_graph_create_stage(job, table, backend, 4, train, &cut, NULL, &g);
            const char *text = pl_error_text() ? pl_error_text() : "no message";
            if (s != PL_ERR_USAGE || !strstr(text, r->message))
                fail_msg("wanted \"%s\", got %d: %s", r->message, s, text);
            assert_null(g);
        }
        table->close(backend);
        pl_job_destroy(job);
    }
}

/* What stands for other stages is no kind of layer. */
static void not_in_a_job(void **state)
{
    (void)state;
    assert_null(pl_layer_find("source"));
    assert_null(pl_layer_find("sink"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(training),
        cmocka_unit_test(training_in_bf16),
        cmocka_unit_test(several_in_flight),
        cmocka_unit_test(evaluation),
        cmocka_unit_test(predicted),
        cmocka_unit_test(nothing_is_allocated),
        cmocka_unit_test(known_to_all),
        cmocka_unit_test(misused),
        cmocka_unit_test(not_far),
        cmocka_unit_test(chosen),
        cmocka_unit_test(best_of_all),
        cmocka_unit_test(refused),
        cmocka_unit_test(not_in_a_job),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
