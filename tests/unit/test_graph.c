/* The network as a whole, on the reference backend: gradients of small DAGs against finite
 * differences in every parameter, the memory plan against a run without one, slices, padding rows,
 * accumulation, sharing, and every refusal of a malformed network. */
#include "graph/graph_private.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* ---- small networks -------------------------------------------------------------------------- */

struct model {
    const char *name, *data, *label, *layers;
};

static const struct model models[] = {
    {"mlp", "[6]", "int",
     "    - {name: d1, kind: dense, units: 5, activation: tanh}\n"
     "    - {name: d2, kind: dense, units: 4, init: gaussian, init_value: 0.5}\n"
     "    - {name: loss, kind: softmax_loss}\n"},
    {"lenet", "[2, 9, 9]", "int",
     "    - {name: conv1, kind: conv, filters: 3, kernel: 4, activation: tanh}\n"
     "    - {name: pool1, kind: avgpool, kernel: 2, stride: 2}\n"
     "    - {name: conv2, kind: conv, filters: 4, kernel: 2, pad: 1, groups: 1}\n"
     "    - {name: pool2, kind: maxpool, kernel: 2, stride: 2}\n"
     "    - {name: ip1, kind: dense, units: 7, activation: sigmoid}\n"
     "    - {name: ip2, kind: dense, units: 3}\n"
     "    - {name: loss, kind: softmax_loss}\n"},
    {"branches", "[2, 5, 5]", "int", /* users of data, of an output (3), of a view (2) */
     "    - {name: a, kind: conv, filters: 4, kernel: 3, pad: 1, from: data}\n"
     "    - {name: b, kind: conv, filters: 4, kernel: 1, from: data, activation: tanh}\n"
     "    - {name: sum, kind: add, from: [a, b], activation: tanh}\n"
     "    - {name: c, kind: conv, filters: 2, kernel: 3, pad: 1, from: sum}\n"
     "    - {name: p, kind: avgpool, kernel: 3, stride: 1, pad: 1, from: sum}\n"
     "    - {name: cat, kind: concat, from: [c, p, sum]}\n"
     "    - {name: flat, kind: flatten}\n"
     "    - {name: u, kind: dense, units: 3, from: flat}\n"
     "    - {name: v, kind: dense, units: 3, from: flat, activation: sigmoid}\n"
     "    - {name: both, kind: add, from: [u, v]}\n"
     "    - {name: loss, kind: softmax_loss}\n"},
    {"norms", "[3, 4, 4]", "int",
     "    - {name: bn0, kind: batchnorm}\n"
     "    - {name: c, kind: conv, filters: 6, kernel: 3, pad: 1, bias: false}\n"
     "    - {name: bn1, kind: batchnorm, activation: tanh}\n"
     "    - {name: n, kind: lrn, size: 3, alpha: 0.5, beta: 0.75}\n"
     "    - {name: res, kind: add, from: [n, bn1]}\n"
     "    - {name: drop, kind: dropout, rate: 0.4}\n"
     "    - {name: g, kind: avgpool, global: true}\n"
     "    - {name: d, kind: dense, units: 3}\n"
     "    - {name: loss, kind: softmax_loss}\n"},
    {"twice", "[4]", "3", /* one output as two inputs of the same layer, also through views */
     "    - {name: d, kind: dense, units: 3, activation: tanh}\n"
     "    - {name: f1, kind: flatten, from: d}\n"
     "    - {name: f2, kind: flatten, from: f1}\n"
     "    - {name: sum, kind: add, from: [d, f2, f1]}\n"
     "    - {name: cat, kind: concat, from: [sum, sum, d]}\n"
     "    - {name: e, kind: dense, units: 3}\n"
     "    - {name: loss, kind: euclidean_loss}\n"},
    {"relus", "[4]", "2",
     "    - {name: view, kind: flatten}\n"
     "    - {name: d, kind: dense, units: 8, activation: relu, init: he}\n"
     "    - {name: e, kind: dense, units: 2, from: d}\n"
     "    - {name: f, kind: dense, units: 2, from: view}\n"
     "    - {name: s, kind: add, from: [e, f]}\n"
     "    - {name: loss, kind: sigmoid_loss}\n"},
    {"heads", "[2, 5, 5]", "int", /* the main loss runs before the layers of the second auxiliary one */
     "    - {name: trunk, kind: conv, filters: 4, kernel: 3, pad: 1, activation: tanh}\n"
     "    - {name: aux1, kind: dense, units: 5, activation: sigmoid}\n"
     "    - {name: aux1_classes, kind: dense, units: 3}\n"
     "    - {name: aux1_loss, kind: softmax_loss, weight: 0.3}\n"
     "    - {name: top, kind: conv, filters: 3, kernel: 3, from: trunk}\n"
     "    - {name: aux2_loss, kind: softmax_loss, weight: 0.4, smoothing: 0.1, from: aux2_classes}\n"
     "    - {name: classes, kind: dense, units: 3, from: top}\n"
     "    - {name: loss, kind: softmax_loss, weight: 2}\n"
     "    - {name: aux2_classes, kind: dense, units: 3, from: top}\n"},
};
enum { MODELS = sizeof models / sizeof models[0], ROWS = 5 };

static pl_status parse(const struct model *m, struct pl_job **job)
{
    char *text = pl_strdupf("model:\n"
                            "  name: %s\n"
                            "  input: {data: %s, label: %s}\n"
                            "  layers:\n"
                            "%s"
                            "data: {train: {file: none.h5}}\n"
                            "train: {steps: 1, batch: 4}\n"
                            "optimizer: {kind: sgd, lr: 0.1}\n",
                            m->name, m->data, m->label, m->layers);
    pl_error_clear();
    pl_status s = pl_job_parse(text, "t.yaml", job);
    pl_free(text);
    return s;
}

/* A network with its batch: `rows` samples that do not depend on the capacity. */
struct net {
    struct pl_job *job;
    const struct pl_backend_table *table;
    struct pl_backend *backend;
    struct pl_graph *g;
    float *data;
    void *label;
    int64_t *index;
    struct pl_graph_batch batch;
};

static void fill_batch(struct net *n, int64_t capacity, int64_t rows)
{
    const struct pl_job_input *in = &n->job->input;
    int64_t row = 1, floats = in->label_floats;
    for (int i = 0; i < in->dims; i++)
        row *= in->dim[i];
    n->data = pl_alloc((size_t)(capacity * row) * sizeof(float), "test");
    n->label = pl_alloc((size_t)(capacity * (floats ? floats : 1)) * 4, "test");
    n->index = pl_alloc((size_t)capacity * sizeof *n->index, "test");
    for (int64_t r = 0; r < rows; r++) {
        struct pl_rng rng = pl_rng_make(77, (uint64_t)r, 0, 0);
        n->index[r] = 100 + r;
        pl_rng_normals(&rng, n->data + r * row, row);
        for (int64_t i = 0; i < floats; i++)
            ((float *)n->label)[r * floats + i] = (float)pl_rng_uniform(&rng);
        if (!floats)
            ((int32_t *)n->label)[r] = (int32_t)pl_rng_below(&rng, 3);
    }
    n->batch = (struct pl_graph_batch){.rows = rows, .data = n->data, .label = n->label, .index = n->index, .seed = 5, .step_key = 9};
}

#ifdef PL_ON_CUDA /* over the stand-in of a device, whose memory is far */
#include "cuda/emulated.h"
extern const struct pl_backend_table pl_backend_cuda;
static const char *backend = "cuda";
static const struct pl_backend_table *find_backend(const char *name) { return strcmp(name, "cuda") == 0 ? &pl_backend_cuda : pl_backend_find(name); }
#else
static int pl_emulated_moves, pl_emulated_replays;
static const char *backend = "reference";
#define find_backend pl_backend_find
#endif

static void open_net(struct net *n, const struct model *m, int64_t capacity, int64_t rows,
                     struct pl_graph *share, bool train)
{
    *n = (struct net){0};
    pl_status s = parse(m, &n->job);
    n->table = find_backend(backend);
    assert_non_null(n->table);
    if (s == PL_OK)
        s = n->table->open(&(struct pl_device_options){.threads = 1}, &n->backend);
    if (s == PL_OK)
        s = pl_graph_create(n->job, n->table, n->backend, capacity, train, share, &n->g);
    if (s != PL_OK)
        fail_msg("%s: %d: %s", m->name, s, pl_error_text());
    fill_batch(n, capacity, rows);
    if (!share)
        pl_graph_init(n->g, 3);
}

static void close_net(struct net *n)
{
    pl_graph_destroy(n->g);
    n->table->close(n->backend);
    pl_job_destroy(n->job);
    pl_free(n->data);
    pl_free(n->label);
    pl_free(n->index);
}

static struct pl_loss_sums forward(struct net *n, bool train)
{
    struct pl_loss_sums sums = {0};
    pl_status s = n->g->train ? PL_OK : pl_graph_prepare(n->g);
    if (s == PL_OK)
        s = pl_graph_forward(n->g, &n->batch, train, &sums);
    if (s != PL_OK)
        fail_msg("forward: %d: %s", s, pl_error_text());
    return sums;
}

static void backward(struct net *n, bool accumulate)
{
    assert_int_equal(pl_graph_backward(n->g, &n->batch, accumulate, NULL, NULL), PL_OK);
}

/* Runs check on each of the models, made for training. */
static void each(void (*check)(struct net *n, const struct model *m))
{
    for (int m = 0; m < MODELS; m++) {
        struct net n;
        open_net(&n, &models[m], ROWS, ROWS, NULL, true);
        check(&n, &models[m]);
        close_net(&n);
    }
}

/* ---- gradients ------------------------------------------------------------------------------- */

static double slope(struct net *n, float *w)
{
    const float old = *w, step = 1e-3f; /* larger ones cross the kinks of maxima */
    *w = old + step;
    double above = forward(n, true).total, high = (double)*w;
    *w = old - step;
    double below = forward(n, true).total, low = (double)*w;
    *w = old;
    return (above - below) / (high - low);
}

static void check_tensor(struct net *n, const struct model *m, const struct pl_tensor *t)
{
    float *w = pl_graph_params(n->g) + t->param->offset;
    const float *grad = pl_graph_grads(n->g) + t->param->offset;
    double error = 0, size = 0;
    for (int64_t i = 0; i < pl_shape_elems(&t->param->shape); i++) {
        double wanted = slope(n, &w[i]), d = wanted - (double)grad[i];
        error += d * d;
        size += wanted * wanted;
    }
    if (sqrt(error) > 3e-4 * sqrt(size) + 1e-4)
        fail_msg("%s: %s/%s: gradient is off by %g of %g", m->name, t->layer, t->name, sqrt(error),
                 sqrt(size));
}

static void check_gradients(struct net *n, const struct model *m)
{
    const struct pl_tensor *t;
    forward(n, true);
    backward(n, false);
    int tensors = pl_graph_tensors(n->g, &t);
    for (int i = 0; i < tensors; i++)
        if (!t[i].param->statistic)
            check_tensor(n, m, &t[i]);
}
static void gradients(void **state)
{
    (void)state;
    if (strcmp(backend, "reference") != 0)
        skip(); /* float is too coarse for finite differences */
    each(check_gradients);
}

static void assert_same(const char *what, const float *a, const float *b, int64_t n, double slack)
{
    for (int64_t i = 0; i < n; i++)
        if (!(fabs((double)a[i] - (double)b[i]) <= slack * (1 + fabs((double)a[i]))))
            fail_msg("%s: element %lld: %.9g and %.9g", what, (long long)i, (double)a[i],
                     (double)b[i]);
}

/* The same gradient to the bit where every buffer has memory of its own. */
static void check_plan(struct net *n, const struct model *m)
{
    struct net apart;
    pl_graph_unplanned = true;
    open_net(&apart, m, ROWS, ROWS, NULL, true);
    pl_graph_unplanned = false;
    for (int pass = 0; pass < 2; pass++) { /* the second on what the first left behind */
        assert_true(forward(n, true).loss == forward(&apart, true).loss);
        backward(n, false);
        backward(&apart, false);
        assert_same(m->name, pl_graph_grads(n->g), pl_graph_grads(apart.g), n->g->elems, 0);
    }
    print_message("%s: arena %zu bytes, without a plan %zu\n", m->name, n->g->arena_bytes,
                  apart.g->arena_bytes);
    assert_true(n->g->arena_bytes < apart.g->arena_bytes);
    close_net(&apart);
}
static void plan_changes_nothing(void **state) { (void)state, each(check_plan); }

static void check_padding(struct net *n, const struct model *m)
{
    struct net padded;
    open_net(&padded, m, ROWS + 3, ROWS, NULL, true);
    struct pl_loss_sums a = forward(n, true), b = forward(&padded, true);
    assert_true(fabs(a.loss - b.loss) <= 1e-6 * fabs(a.loss));
    assert_int_equal(b.rows, ROWS);
    backward(n, false);
    backward(&padded, false);
    assert_same(m->name, pl_graph_grads(n->g), pl_graph_grads(padded.g), n->g->elems, 1e-5);
    close_net(&padded);
}
static void padding_rows(void **state) { (void)state, each(check_padding); }

static void check_no_rows(struct net *n, const struct model *m)
{
    forward(n, true);
    backward(n, false);
    n->batch.rows = 0;
    memset(n->data, 0, sizeof(float) * (size_t)pl_shape_elems(&n->g->data));
    struct pl_loss_sums sums = forward(n, true);
    assert_true(sums.loss == 0 && sums.total == 0 && sums.rows == 0);
    backward(n, false);
    for (int64_t i = 0; i < n->g->elems; i++)
        if (pl_graph_grads(n->g)[i] != 0)
            fail_msg("%s: gradient %lld of no sample is %g", m->name, (long long)i,
                     (double)pl_graph_grads(n->g)[i]);
}
static void no_rows(void **state) { (void)state, each(check_no_rows); }

static void check_accumulate(struct net *n, const struct model *m)
{
    float *twice = pl_alloc(sizeof(float) * (size_t)n->g->elems, "test");
    forward(n, true);
    backward(n, false);
    for (int64_t i = 0; i < n->g->elems; i++)
        twice[i] = 2 * pl_graph_grads(n->g)[i];
    forward(n, true);
    backward(n, true);
    assert_same(m->name, twice, pl_graph_grads(n->g), n->g->elems, 1e-5);
    pl_free(twice);
}
static void accumulate_adds(void **state) { (void)state, each(check_accumulate); }

/* The gradient of a pass over b, where `next` is said to come next. */
static float *gradient_of(struct net *n, const struct pl_graph_batch *b, const struct pl_graph_batch *next)
{
    n->batch = *b;
    n->batch.next = next;
    forward(n, true);
    backward(n, false);
    float *copy = pl_alloc(sizeof(float) * (size_t)n->g->elems, "test");
    memcpy(copy, pl_graph_grads(n->g), sizeof(float) * (size_t)n->g->elems);
    return copy;
}

/* A batch that is sent ahead is that batch when its pass comes, and no other one is. */
static void check_ahead(struct net *n, const struct model *m)
{
    struct net other = {.job = n->job};
    const struct pl_graph_batch one = n->batch;
    fill_batch(&other, n->g->batch, ROWS - 1);
    for (int64_t i = 0; i < pl_shape_elems(&n->g->data); i++)
        other.data[i] *= -0.5f;
    for (int64_t i = 0; i < ROWS; i++)
        other.index[i] += 1000;
    float *wanted[2] = {gradient_of(n, &one, NULL), gradient_of(n, &other.batch, NULL)};
    const struct pl_graph_batch *of[] = {&one, &other.batch};
    static const struct { int is, next; } pass[] = {{0, 1}, {1, 0}, {0, 0}, {0, 1}, {0, -1}, {1, 1}, {1, 0}, {1, 1}, {0, -1}};
    for (size_t i = 0; i < sizeof pass / sizeof *pass; i++) {
        float *found = gradient_of(n, of[pass[i].is], pass[i].next < 0 ? NULL : of[pass[i].next]);
        assert_same(m->name, wanted[pass[i].is], found, n->g->elems, 0);
        pl_free(found);
    }
    /* What was dropped may change. */
    pl_free(gradient_of(n, &one, &other.batch));
    assert_int_equal(pl_graph_drop_next(n->g), PL_OK);
    memcpy(other.data, n->data, sizeof(float) * (size_t)pl_shape_elems(&n->g->data));
    memcpy(other.index, n->index, sizeof *n->index * ROWS);
    other.batch.rows = ROWS;
    memcpy(other.label, n->label, sizeof(float) * ROWS * (size_t)(n->job->input.label_floats > 0 ? n->job->input.label_floats : 1));
    float *found = gradient_of(n, &other.batch, NULL);
    assert_same(m->name, wanted[0], found, n->g->elems, 0);
    n->batch = one;
    pl_free(found), pl_free(wanted[0]), pl_free(wanted[1]);
    pl_free(other.data), pl_free(other.label), pl_free(other.index);
}
static void a_batch_ahead(void **state)
{
    (void)state;
    const int before = pl_emulated_moves, four_came = strcmp(backend, "cuda") == 0 ? 4 * 3 : 0; /* data, label and index each */
    each(check_ahead);
    assert_int_equal(pl_emulated_moves - before, four_came * MODELS);
}

/* ---- slices ---------------------------------------------------------------------------------- */

struct seen {
    int64_t end;
    int slices, stop_after;
};

static pl_status see(void *arg, int64_t a, int64_t b)
{
    struct seen *s = arg;
    assert_int_equal(b, s->end);
    assert_in_range(a, 0, b - 1);
    assert_int_equal(a % 16, 0);
    s->end = a;
    return ++s->slices == s->stop_after ? PL_END : PL_OK;
}

static void check_slices(struct net *n, const struct model *m)
{
    (void)m;
    struct seen all = {n->g->elems, 0, 0}, first = {n->g->elems, 0, 1};
    forward(n, true);
    assert_int_equal(pl_graph_backward(n->g, &n->batch, false, see, &all), PL_OK);
    assert_int_equal(all.end, 0);
    assert_in_range(all.slices, 1, n->g->layers);
    forward(n, true);
    assert_int_equal(pl_graph_backward(n->g, &n->batch, false, see, &first), PL_END);
    assert_int_equal(first.slices, 1);
}
static void slices(void **state) { (void)state, each(check_slices); }

struct sizes { int64_t end, least; int slices; bool was_small; };

static pl_status see_size(void *arg, int64_t a, int64_t b)
{
    struct sizes *s = arg;
    assert_int_equal(b, s->end);
    assert_false(s->was_small); /* only the last one is */
    s->was_small = b - a < s->least;
    s->end = a;
    s->slices++;
    return PL_OK;
}

/* Of a far backend slices are as large as is asked for, and passes are started slice by slice, to the same bits, whether or not
 * they add to the gradient. */
static void check_larger_slices(struct net *n, const struct model *m)
{
    const bool far = n->table->far;
    size_t bytes = (size_t)n->g->elems * sizeof(float);
    float *wanted[2] = {malloc(bytes), malloc(bytes)};
    int layers_with = 0;
    for (int round = 0; round < 8; round++) {
        struct sizes seen = {.end = n->g->elems, .least = far ? round / 2 * 500 : 0};
        int adds = round % 2, before = pl_emulated_replays;
        pl_graph_slice_at_least(n->g, seen.least);
        forward(n, true);
        assert_int_equal(pl_graph_backward(n->g, &n->batch, adds, see_size, &seen), PL_OK);
        assert_int_equal(seen.end, 0);
        if (round < 2)
            memcpy(wanted[adds], pl_graph_grads(n->g), bytes), layers_with = seen.slices;
        assert_same(m->name, wanted[adds], pl_graph_grads(n->g), n->g->elems, 0);
        if (far && round > 0)
            assert_true(pl_emulated_replays - before >= 1 + seen.slices && seen.slices <= layers_with);
    }
    free(wanted[0]), free(wanted[1]);
}
static void larger_slices(void **state) { (void)state, each(check_larger_slices); }

static int asked, patience;
static bool gives_up(void *arg) { (void)arg; return asked++ >= patience; }

/* Backward passes that are given up after more and more layers leave nothing behind for the next one. */
static void check_given_up(struct net *n, const struct model *m)
{
    size_t bytes = (size_t)n->g->elems * sizeof(float);
    float *whole = malloc(bytes);
    pl_status s = PL_END;
    forward(n, true);
    backward(n, false);
    memcpy(whole, pl_graph_grads(n->g), bytes);
    for (patience = 1; s == PL_END; patience++) {
        struct seen some = {n->g->elems, 0, 0};
        forward(n, true);
        asked = 0;
        n->batch.abandoned = gives_up;
        s = pl_graph_backward(n->g, &n->batch, false, see, &some);
        n->batch.abandoned = NULL;
        assert_true(s == PL_OK || (s == PL_END && some.end > 0));
        assert_in_range(patience, 1, n->g->layers);
    }
    assert_int_equal(s, PL_OK);
    forward(n, true);
    memset(pl_graph_grads(n->g), 0, bytes);
    backward(n, false);
    assert_same(m->name, whole, pl_graph_grads(n->g), n->g->elems, 0);
    free(whole);
}
static void given_up(void **state) { (void)state, each(check_given_up); }

/* ---- evaluation, sharing, versions ----------------------------------------------------------- */

static void check_evaluation(struct net *n, const struct model *m)
{
    struct net e;
    open_net(&e, m, ROWS + 2, ROWS, n->g, false);
    assert_true(pl_graph_params(n->g) == pl_graph_params(e.g));
    assert_null(pl_graph_grads(e.g)); /* made by a first backward pass */
    assert_true(pl_graph_losses(n->g) > 1 || pl_graph_signature(n->g) == pl_graph_signature(e.g));
    struct pl_loss_sums a = forward(n, false), b = forward(&e, false);
    assert_true(fabs(a.loss - b.loss) <= 1e-6 * fabs(a.loss));
    assert_true(a.correct == b.correct && a.correct5 == b.correct5 && a.rows == b.rows);
    assert_same("output", pl_graph_output(n->g), pl_graph_output(e.g),
                ROWS * pl_shape_row_elems(pl_graph_output_shape(e.g)), 1e-6);
    close_net(&e);
}
static void evaluation_graph(void **state) { (void)state, each(check_evaluation); }

/* The loss of the network that ends in the layer `loss` of the heads above. */
static double loss_alone(const char *loss, const char *layers)
{
    struct model m = {loss, "[2, 5, 5]", "int", layers};
    struct net n;
    open_net(&n, &m, ROWS, ROWS, NULL, true);
    double alone = forward(&n, true).loss;
    close_net(&n);
    return alone;
}

#define TRUNK "    - {name: trunk, kind: conv, filters: 4, kernel: 3, pad: 1, activation: tanh}\n"
#define TOP TRUNK "    - {name: top, kind: conv, filters: 3, kernel: 3}\n"

static void heads_sums(void **state)
{
    (void)state;
    struct net n;
    open_net(&n, &models[MODELS - 1], ROWS, ROWS, NULL, true);
    struct pl_loss_sums sums = forward(&n, true);
    double aux1 = loss_alone("aux1", TRUNK "    - {name: aux1, kind: dense, units: 5, activation: sigmoid}\n"
                                           "    - {name: aux1_classes, kind: dense, units: 3}\n"
                                           "    - {name: aux1_loss, kind: softmax_loss}\n");
    double aux2 = loss_alone("aux2", TOP "    - {name: aux2_classes, kind: dense, units: 3}\n"
                                         "    - {name: aux2_loss, kind: softmax_loss, smoothing: 0.1}\n");
    double main = loss_alone("main", TOP "    - {name: classes, kind: dense, units: 3}\n"
                                         "    - {name: loss, kind: softmax_loss}\n");
    assert_int_equal(pl_graph_losses(n.g), 3);
    assert_int_equal(sums.rows, ROWS);
    assert_true(fabs(sums.loss - main) < 1e-9);
    assert_true(fabs(sums.total - (2 * main + 0.3 * aux1 + 0.4 * aux2)) < 1e-9);
    close_net(&n);
}

/* Evaluation has no auxiliary layers, and their parameters mean nothing to it. */
static void heads_left_out(void **state)
{
    (void)state;
    static const char *const wanted[] = {"trunk", "trunk.tanh", "top", "classes", "loss"};
    struct net n, e;
    const struct pl_layer *l;
    const struct pl_tensor *t, *u;
    open_net(&n, &models[MODELS - 1], ROWS, ROWS, NULL, true);
    open_net(&e, &models[MODELS - 1], ROWS, ROWS, n.g, false);
    assert_int_equal(pl_graph_losses(e.g), 1);
    assert_int_equal(pl_graph_layers(e.g, &l), 5);
    for (int i = 0; i < 5; i++)
        assert_string_equal(l[i].name, wanted[i]);
    assert_int_equal(pl_graph_elems(e.g), pl_graph_elems(n.g));
    int all = pl_graph_tensors(n.g, &t), left = pl_graph_tensors(e.g, &u), auxiliary = 0;
    assert_int_equal(all, 12);
    assert_int_equal(left, 6);
    struct pl_loss_sums before = forward(&e, false);
    assert_true(fabs(before.total - 2 * before.loss) < 1e-9);
    for (int i = 0; i < all; i++)
        if (strncmp(t[i].layer, "aux", 3) == 0) {
            pl_graph_params(n.g)[t[i].param->offset] = NAN;
            auxiliary++;
        }
    assert_int_equal(auxiliary, 6);
    assert_true(forward(&e, false).loss == before.loss);
    struct pl_loss_sums poisoned = forward(&n, true);
    assert_true(isfinite(poisoned.loss) && !isfinite(poisoned.total));
    close_net(&e);
    open_net(&e, &models[MODELS - 1], ROWS, ROWS, NULL, false); /* as eval and predict do */
    assert_int_equal(pl_graph_tensors(e.g, &u), 6);
    assert_int_equal(pl_graph_elems(e.g), 80 + 16 + 112 + 16 + 96 + 16);
    close_net(&e);
    close_net(&n);
}

/* ---- normalisations in evaluation ------------------------------------------------------------- */

static const struct model normalised[] = {
    {"conv", "[16, 6, 6]", "int", /* with a bias of its own, without, with groups; with and without relu */
     "    - {name: a, kind: conv, filters: 32, kernel: 3, pad: 1}\n"
     "    - {name: a_bn, kind: batchnorm, activation: relu}\n"
     "    - {name: b, kind: conv, filters: 32, kernel: 3, pad: 1, bias: false}\n"
     "    - {name: b_bn, kind: batchnorm, epsilon: 0.01}\n"
     "    - {name: c, kind: conv, filters: 16, kernel: 1, groups: 2}\n"
     "    - {name: c_bn, kind: batchnorm, scale: false, activation: tanh}\n"
     "    - {name: d, kind: dense, units: 3}\n"
     "    - {name: loss, kind: softmax_loss}\n"},
    {"dense", "[6]", "int",
     "    - {name: a, kind: dense, units: 7}\n"
     "    - {name: a_bn, kind: batchnorm, activation: relu}\n"
     "    - {name: b, kind: dense, units: 3, bias: false}\n"
     "    - {name: b_bn, kind: batchnorm}\n"
     "    - {name: loss, kind: softmax_loss}\n"},
    {"shortcuts", "[3, 6, 6]", "int", /* a and b have two readers each, c_bn reads a rectifier */
     "    - {name: a, kind: conv, filters: 8, kernel: 3, pad: 1, bias: false}\n"
     "    - {name: a_bn, kind: batchnorm, activation: relu}\n"
     "    - {name: b, kind: conv, filters: 8, kernel: 3, pad: 1, from: a}\n"
     "    - {name: b_bn, kind: batchnorm}\n"
     "    - {name: sum, kind: add, from: [a_bn, b_bn, b], activation: relu}\n"
     "    - {name: c, kind: conv, filters: 8, kernel: 3, activation: relu}\n"
     "    - {name: c_bn, kind: batchnorm}\n"
     "    - {name: e, kind: conv, filters: 8, kernel: 1}\n"
     "    - {name: e_bn, kind: batchnorm, activation: relu}\n"
     "    - {name: res, kind: add, from: [e_bn, c_bn], activation: relu}\n"
     "    - {name: d, kind: dense, units: 3}\n"
     "    - {name: loss, kind: softmax_loss}\n"},
};
static const int folds[] = {3, 2, 1};

/* Parameters as after some training: no scale is 1, no mean 0. */
static void unsettle(struct net *n, uint64_t seed)
{
    const struct pl_tensor *t;
    struct pl_rng rng = pl_rng_make(seed, 8, 0, 0);
    int tensors = pl_graph_tensors(n->g, &t);
    for (int i = 0; i < tensors; i++)
        for (int64_t k = 0; t[i].param->shape.dims == 1 && k < t[i].param->shape.dim[0]; k++)
            pl_graph_params(n->g)[t[i].param->offset + k] = (float)(0.3 + pl_rng_uniform(&rng));
}

static void assert_equal_evaluation(struct net *whole, struct net *folded)
{
    struct pl_loss_sums a = forward(whole, false), b = forward(folded, false);
    assert_true(fabs(a.loss - b.loss) <= 1e-5 * fabs(a.loss));
    assert_same("output", pl_graph_output(whole->g), pl_graph_output(folded->g),
                ROWS * pl_shape_row_elems(pl_graph_output_shape(whole->g)), 1e-5);
}

static void check_folds(const struct model *m, int wanted)
{
    struct net whole, folded;
    open_net(&whole, m, ROWS + 1, ROWS, NULL, true);
    open_net(&folded, m, ROWS + 1, ROWS, whole.g, false);
    int found = 0;
    for (int i = 0; i < folded.g->layers; i++)
        found += folded.g->node[i].norm != NULL;
    assert_int_equal(found, wanted);
    size_t bytes = sizeof(float) * (size_t)pl_graph_elems(whole.g);
    float *before = pl_alloc(bytes, "test");
    assert_int_equal(pl_graph_forward(folded.g, &folded.batch, false, &(struct pl_loss_sums){0}), PL_ERR_USAGE);
    for (uint64_t seed = 1; seed < 4; seed++) {
        unsettle(&whole, seed);
        memcpy(before, pl_graph_params(whole.g), bytes);
        assert_equal_evaluation(&whole, &folded);
        assert_memory_equal(before, pl_graph_params(whole.g), bytes);
    }
    pl_free(before);
    close_net(&folded);
    close_net(&whole);
}

static void normalisations_fold(void **state)
{
    (void)state;
    const char *const backends[] = {"cpu", backend};
    for (int b = 0; b < 2; b++) {
        backend = backends[b];
        for (size_t m = 0; m < sizeof normalised / sizeof normalised[0]; m++)
            check_folds(&normalised[m], folds[m]);
    }
}

static void versions(void **state)
{
    (void)state;
    struct net n, e;
    open_net(&n, &models[0], ROWS, ROWS, NULL, true);
    open_net(&e, &models[0], ROWS, ROWS, n.g, false);
    size_t bytes = sizeof(float) * (size_t)pl_graph_elems(n.g);
    float *other = pl_alloc(bytes, "test"), *grads = pl_alloc(bytes, "test"); /* all weights 0 */
    double before = forward(&n, true).loss;
    float *own = pl_graph_params(n.g);
    pl_graph_set_params(n.g, other);
    pl_graph_set_grads(n.g, grads);
    assert_ptr_equal(pl_graph_params(e.g), other);
    double loss = forward(&n, true).loss;
    assert_true(fabs(loss - ROWS * log(4)) < 1e-4);
    assert_true(fabs(forward(&e, false).loss - loss) < 1e-6);
    backward(&n, false);
    double sum = 0;
    for (int64_t i = 0; i < pl_graph_elems(n.g); i++)
        sum += fabs((double)grads[i]);
    assert_true(sum > 0);
    pl_graph_set_params(n.g, NULL);
    pl_graph_set_grads(n.g, NULL);
    assert_ptr_equal(pl_graph_params(e.g), own);
    assert_true(forward(&n, true).loss == before);
    pl_free(other);
    pl_free(grads);
    close_net(&e);
    close_net(&n);
}

static void without_loss(void **state)
{
    (void)state;
    struct model m = models[0];
    m.layers = "    - {name: d1, kind: dense, units: 5, activation: tanh}\n"
               "    - {name: d2, kind: dense, units: 4}\n"
               "    - {name: f, kind: flatten}\n";
    struct net n;
    open_net(&n, &m, ROWS, ROWS, NULL, false);
    n.batch.label = NULL;
    assert_int_equal(pl_graph_prepare(n.g), PL_OK);
    assert_int_equal(pl_graph_forward(n.g, &n.batch, false, NULL), PL_OK);
    assert_int_equal(pl_graph_output_shape(n.g)->dim[1], 4);
    const float *y = pl_graph_output(n.g);
    assert_true(y[0] != 0 && isfinite(y[ROWS * 4 - 1]));
    assert_int_equal(pl_graph_forward(n.g, &n.batch, true, NULL), PL_ERR_USAGE);
    close_net(&n);
}

static void predict_without_label(void **state)
{
    (void)state;
    struct net n;
    struct pl_loss_sums sums = {0};
    open_net(&n, &models[1], ROWS, ROWS, NULL, false);
    n.batch.label = NULL;
    assert_int_equal(pl_graph_prepare(n.g), PL_OK);
    assert_int_equal(pl_graph_forward(n.g, &n.batch, false, &sums), PL_OK);
    assert_true(sums.loss == 0);
    double total = 0;
    for (int i = 0; i < 3; i++)
        total += (double)pl_graph_output(n.g)[i];
    assert_true(fabs(total - 1) < 1e-5);
    close_net(&n);
}

/* ---- set-up ---------------------------------------------------------------------------------- */

static void check_allocations(struct net *n, const struct model *m)
{
    (void)m;
    for (int adds = 0; adds < 2; adds++) { /* the second time a pass may be recorded */
        forward(n, true), backward(n, adds == 1);
        forward(n, true), backward(n, adds == 1);
    }
    uint64_t before = pl_alloc_count();
    forward(n, true);
    backward(n, true);
    forward(n, false);
    assert_int_equal(pl_alloc_count() - before, 0);
}
static void nothing_is_allocated(void **state) { (void)state, each(check_allocations); }

static void assert_apart(const char *what, const struct pl_span *s, int n, size_t total)
{
    for (int i = 0; i < n; i++) {
        assert_in_range(s[i].offset + s[i].bytes, 0, total);
        for (int j = 0; j < i; j++) {
            bool time = s[i].begin <= s[j].end && s[j].begin <= s[i].end;
            bool memory =
                s[i].offset < s[j].offset + s[j].bytes && s[j].offset < s[i].offset + s[i].bytes;
            if (time && memory)
                fail_msg("%s: spans %d and %d are in use at once in the same memory", what, j, i);
        }
    }
}

static void check_spans(struct net *n, const struct model *m)
{
    assert_apart(m->name, n->g->span, n->g->spans, n->g->arena_bytes);
}
static void spans(void **state) { (void)state, each(check_spans); }

static void random_spans(void **state)
{
    (void)state;
    struct pl_span s[60];
    struct pl_rng rng = pl_rng_make(1, 2, 3, 4);
    for (int trial = 0; trial < 200; trial++) {
        size_t live, most = 0;
        for (int i = 0; i < 60; i++) {
            int begin = (int)pl_rng_below(&rng, 50);
            s[i] = (struct pl_span){.bytes = 64 * (1 + pl_rng_below(&rng, 20)),
                                    .begin = begin,
                                    .end = begin + (int)pl_rng_below(&rng, 20)};
        }
        size_t total = pl_spans_place(s, 60);
        assert_apart("random", s, 60, total);
        for (int t = 0; t<70; t++, most = live> most ? live : most) {
            live = 0;
            for (int i = 0; i < 60; i++)
                live += s[i].begin <= t && t <= s[i].end ? s[i].bytes : 0;
        }
        assert_in_range(total, most, most + most / 3); /* near the least possible */
    }
}

/* Layers in any order in the file: the order in which they run, and a stable one. */
static void order(void **state)
{
    (void)state;
    struct model m = models[0];
    m.layers = "    - {name: loss, kind: softmax_loss, from: d}\n"
               "    - {name: d, kind: dense, units: 4, from: [s]}\n"
               "    - {name: x, kind: dense, units: 3, activation: relu, from: data}\n"
               "    - {name: y, kind: dense, units: 3, from: data}\n"
               "    - {name: s, kind: add, from: [y, x]}\n";
    static const char *const wanted[] = {"x", "x.relu", "y", "s", "d", "loss"};
    struct net n;
    const struct pl_layer *l;
    const struct pl_tensor *t;
    open_net(&n, &m, ROWS, ROWS, NULL, true);
    assert_int_equal(pl_graph_layers(n.g, &l), 6);
    for (int i = 0; i < 6; i++)
        assert_string_equal(l[i].name, wanted[i]);
    assert_int_equal(l[3].input[0], 2); /* y */
    assert_int_equal(l[3].input[1], 1); /* x.relu */
    assert_int_equal(pl_graph_tensors(n.g, &t), 6);
    assert_string_equal(t[2].layer, "y");
    assert_string_equal(t[3].name, "bias");
    assert_int_equal(t[1].param->offset, 32); /* 18 weights, to a multiple of 16 */
    assert_int_equal(pl_graph_elems(n.g), 32 + 16 + 32 + 16 + 16 + 16);
    assert_int_equal(pl_graph_weights(n.g), 21 + 21 + 16);
    assert_true(pl_graph_flops(n.g, 10) == 10 * 2.0 * (18 + 18 + 12));
    close_net(&n);
}

static void signature(void **state)
{
    (void)state;
    struct net a, b;
    struct model m = models[0];
    open_net(&a, &m, ROWS, ROWS, NULL, true);
    m.layers = "    - {name: d1, kind: dense, units: 6, activation: tanh}\n"
               "    - {name: d2, kind: dense, units: 4}\n"
               "    - {name: loss, kind: softmax_loss}\n";
    open_net(&b, &m, ROWS + 1, ROWS, NULL, true);
    assert_true(pl_graph_signature(a.g) != pl_graph_signature(b.g));
    struct pl_graph *wrong;
    assert_int_equal(pl_graph_create(b.job, b.table, b.backend, 2, false, a.g, &wrong),
                     PL_ERR_USAGE);
    assert_null(wrong);
    close_net(&b);
    close_net(&a);
}

/* ---- refusals -------------------------------------------------------------------------------- */

struct refusal {
    const char *layers, *message;
};

#define LOSS "    - {name: loss, kind: softmax_loss}\n"
static const struct refusal refusals[] = {
    {"    - {name: a, kind: add, from: [data, c]}\n"
     "    - {name: b, kind: relu}\n"
     "    - {name: c, kind: tanh}\n" LOSS,
     "a: layers go in a circle: a -> b -> c -> a"},
    {"    - {name: a, kind: relu, from: a}\n" LOSS, "a: layers go in a circle: a -> a"},
    {"    - {name: conv1, kind: dense, units: 3}\n"
     "    - {name: x, kind: relu, from: cov1}\n" LOSS,
     "t.yaml:6:7: x: from `cov1`: no layer has this name; did you mean `conv1`?"},
    {"    - {name: x, kind: relu, from: nowhere}\n" LOSS, "from `nowhere`: no layer has this name"},
    {"    - {name: x, kind: dens, units: 3}\n" LOSS,
     "x: unknown kind `dens`; did you mean `dense`?"},
    {"    - {name: x, kind: transformer}\n" LOSS, "kinds are: dense conv "},
    {"    - {name: x, kind: dense, units: 3}\n", "x: the network has no loss to train by"},
    {"    - {name: x, kind: dense, units: 3}\n"
     "    - {name: y, kind: dense, units: 4, from: data}\n"
     "    - {name: l1, kind: softmax_loss, from: x}\n"
     "    - {name: l2, kind: softmax_loss, from: y}\n",
     "l1: it takes 3 classes as labels, `l2` takes 4; there is one label for both"},
    {"    - {name: x, kind: dense, units: 3}\n"
     "    - {name: l1, kind: euclidean_loss, from: x}\n"
     "    - {name: l2, kind: softmax_loss, from: x}\n",
     "l1: euclidean_loss of input 3 needs 3 floats as label, but the input's label is int"},
    {"    - {name: x, kind: dense, units: 3}\n"
     "    - {name: l1, kind: softmax_loss, weight: -0.1}\n"
     "    - {name: l2, kind: softmax_loss, from: x}\n",
     "t.yaml:6:46: weight: wanted a number, from 0 to 1e+06, found \"-0.1\""},
    {"    - {name: x, kind: dense, units: 3}\n"
     "    - {name: l1, kind: softmax_loss}\n"
     "    - {name: y, kind: relu}\n",
     "y: takes the output of `l1`, but a loss ends the network"},
    {"    - {name: x, kind: dense, units: 3}\n"
     "    - {name: y, kind: dense, units: 3, from: data}\n" LOSS,
     "x: no layer takes its output"},
    {"    - {name: data, kind: dense, units: 3}\n" LOSS, "cannot be named data"},
    {"    - {name: x, kind: dense, units: 3, activation: relu}\n"
     "    - {name: x.relu, kind: relu}\n" LOSS,
     "x.relu: a layer of this name stands above"},
    {"    - {name: x, kind: dense, units: 3, from: [data, data]}\n" LOSS,
     "x: dense takes 1 input, but from: names 2"},
    {"    - {name: x, kind: add}\n" LOSS, "x: add takes 2 or more inputs, not 1"},
    {"    - {name: x, kind: relu}\n" LOSS, "no parameters to train"},
    {"    - {name: x, kind: dense, units: 1000000000}\n"
     "    - {name: y, kind: dense, units: 1000000000}\n" LOSS,
     "y: too large"},
    {"    - {name: x, kind: conv, filters: 3, kernel: 1}\n" LOSS,
     "t.yaml:5:7: x: conv needs an input of channels x height x width, but gets 6"},
};

static void refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        struct model m = models[0];
        struct net n = {0};
        m.layers = refusals[i].layers;
        n.table = pl_backend_find("reference");
        assert_int_equal(n.table->open(&(struct pl_device_options){.threads = 1}, &n.backend), PL_OK);
        pl_status s = parse(&m, &n.job); /* a doubled name may be found there */
        if (s == PL_OK)
            s = pl_graph_create(n.job, n.table, n.backend, 4, true, NULL, &n.g);
        const char *text = pl_error_text() ? pl_error_text() : "no message";
        if (s != PL_ERR_USAGE || !strstr(text, refusals[i].message))
            fail_msg("wanted \"%s\", got %d: %s", refusals[i].message, s, text);
        assert_null(n.g);
        close_net(&n);
    }
}

/* ---- statistics over ranks --------------------------------------------------------------------- */

struct twin { int sums; int64_t most; pl_status status; };

/* The other rank has the same samples. */
static pl_status sum_with_twin(void *arg, double *v, int64_t n)
{
    struct twin *t = arg;
    t->sums++;
    t->most = n > t->most ? n : t->most;
    for (int64_t i = 0; i < n; i++)
        v[i] *= 2;
    return t->status;
}

static const struct model *norms(void)
{
    for (int m = 0; m < MODELS; m++)
        if (strcmp(models[m].name, "norms") == 0)
            return &models[m];
    return NULL;
}

/* With a twin a batch has the statistics that it has alone, and the same gradient but for the variance, of twice as many. */
static void over_ranks(void **state)
{
    struct net alone, n;
    struct twin twin = {0};
    (void)state;
    open_net(&alone, norms(), ROWS, ROWS, NULL, true);
    open_net(&n, norms(), ROWS, ROWS, NULL, true);
    assert_int_equal(pl_graph_sync_values(n.g), 0);
    pl_graph_destroy(n.g);
    n.job->train.sync_bn = true;
    pl_status s = pl_graph_create(n.job, n.table, n.backend, ROWS, true, NULL, &n.g);
    if (strcmp(backend, "cuda") == 0) {
        if (s != PL_ERR_USAGE || !strstr(pl_error_text(), "bn0"))
            fail_msg("%d: %s", s, pl_error_text());
        close_net(&alone), close_net(&n);
        return;
    }
    assert_int_equal(s, PL_OK);
    pl_graph_init(n.g, 3);
    assert_int_equal(pl_graph_sync_values(n.g), 13);
    pl_graph_set_sync(n.g, sum_with_twin, &twin);
    struct pl_loss_sums wanted = forward(&alone, true), found = forward(&n, true);
    backward(&alone, false);
    backward(&n, false);
    assert_int_equal(twin.sums, 5); /* two means, two variances, one gradient: that of the data is not wanted */
    assert_true(twin.most <= 13);
    if (wanted.total != found.total)
        fail_msg("loss %.9g, alone %.9g", found.total, wanted.total);
    const struct pl_tensor *tensor;
    for (int t = pl_graph_tensors(n.g, &tensor) - 1; t >= 0; t--)
        for (int64_t i = tensor[t].param->offset, end = i + pl_shape_elems(&tensor[t].param->shape); i < end; i++)
            if (strcmp(tensor[t].name, "variance") != 0 && pl_graph_grads(n.g)[i] != pl_graph_grads(alone.g)[i])
                fail_msg("%s/%s: %.9g, alone %.9g", tensor[t].layer, tensor[t].name, (double)pl_graph_grads(n.g)[i], (double)pl_graph_grads(alone.g)[i]);

    forward(&n, false); /* evaluation sums nothing */
    struct pl_graph *eval;
    assert_int_equal(pl_graph_create(n.job, n.table, n.backend, ROWS, false, n.g, &eval), PL_OK);
    assert_int_equal(pl_graph_sync_values(eval), 0);
    pl_graph_destroy(eval);
    assert_int_equal(twin.sums, 5);
    twin.status = PL_ERR_PEER;
    assert_int_equal(pl_graph_forward(n.g, &n.batch, true, &found), PL_ERR_PEER);
    assert_int_equal(twin.sums, 6);
    close_net(&alone), close_net(&n);
}

int main(void)
{
    const struct CMUnitTest passes[] = {
        cmocka_unit_test(gradients),
        cmocka_unit_test(plan_changes_nothing),
        cmocka_unit_test(padding_rows),
        cmocka_unit_test(no_rows),
        cmocka_unit_test(accumulate_adds),
        cmocka_unit_test(a_batch_ahead),
        cmocka_unit_test(slices),
        cmocka_unit_test(larger_slices),
        cmocka_unit_test(given_up),
        cmocka_unit_test(evaluation_graph),
        cmocka_unit_test(heads_sums),
        cmocka_unit_test(heads_left_out),
        cmocka_unit_test(normalisations_fold),
        cmocka_unit_test(versions),
        cmocka_unit_test(over_ranks),
        cmocka_unit_test(without_loss),
        cmocka_unit_test(predict_without_label),
        cmocka_unit_test(nothing_is_allocated),
    };
    const struct CMUnitTest others[] = {
        cmocka_unit_test(spans),
        cmocka_unit_test(random_spans),
        cmocka_unit_test(order),
        cmocka_unit_test(signature),
        cmocka_unit_test(refused),
    };
    return cmocka_run_group_tests(passes, NULL, NULL) + cmocka_run_group_tests(others, NULL, NULL);
}
