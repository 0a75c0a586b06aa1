/* Layers: keys and shape inference from YAML by a table of cases, right ones and refused ones; the
 * statistics of initial values; what every entry of the table of kinds must have. */
#include "layer/layer.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static struct pl_job *parse(const char *label, const char *layer)
{
    char *text = pl_strdupf("model:\n"
                            "  name: t\n"
                            "  input: {data: [1], label: %s}\n"
                            "  layers:\n"
                            "    - {name: it, %s}\n"
                            "data: {train: {file: none.h5}}\n"
                            "train: {steps: 1, batch: 2}\n"
                            "optimizer: {kind: sgd, lr: 0.1}\n",
                            label, layer);
    struct pl_job *job = NULL;
    pl_error_clear();
    pl_status s = pl_job_parse(text, "t.yaml", &job);
    if (s != PL_OK)
        print_error("%s\n", pl_error_text());
    assert_int_equal(s, PL_OK);
    pl_free(text);
    return job;
}

/* "3x8x8" to [2, 3, 8, 8]; several are separated by blanks. Returns how many. */
static int read_shapes(const char *text, struct pl_shape *x)
{
    int n = 0;
    for (const char *at = text; *at; n++) {
        x[n] = (struct pl_shape){1, {2}};
        for (char *end;; at = end + 1) {
            x[n].dim[x[n].dims++] = strtoll(at, &end, 10);
            if (*end != 'x') {
                at = *end ? end + 1 : end;
                break;
            }
        }
    }
    return n;
}

static void write_shape(const struct pl_shape *s, char *text, size_t bytes)
{
    size_t at = 0;
    text[0] = 0;
    for (int i = 1; i < s->dims; i++)
        at +=
            (size_t)snprintf(text + at, bytes - at, i > 1 ? "x%lld" : "%lld", (long long)s->dim[i]);
}

/* A layer as graph/ would make it, up to its shapes. The config is freed with drop(). */
static pl_status make(struct pl_job *job, const char *x, struct pl_layer *l)
{
    *l = (struct pl_layer){.source = &job->layer[0], .name = job->layer[0].name};
    l->kind = pl_layer_find(job->layer[0].kind);
    assert_non_null(l->kind);
    l->inputs = read_shapes(x, l->x);
    l->config = pl_alloc(l->kind->config_bytes + 1, "config");
    PL_TRY(pl_job_layer_config(l->source, l->kind->keys, l->config));
    return l->kind->shape(l, &job->input);
}

static void drop(struct pl_layer *l)
{
    pl_job_layer_config_free(l->kind->keys, l->config);
    pl_free(l->config);
}

struct shape_case {
    const char *layer, *x, *label, *y; /* y: the shape, or '!' and a part of the message */
};

static const struct shape_case cases[] = {
    {"kind: dense, units: 10", "500", "int", "10"},
    {"kind: dense, units: 10", "50x4x4", "int", "10"},
    {"kind: dense", "500", "int", "!dense needs `units`"},
    {"kind: dense, unit: 10", "500", "int", "!units"},
    {"kind: dense, units: 0", "500", "int", "!units"},
    {"kind: dense, units: 3, init: he, init_value: 1", "5", "int", "!init_value means nothing"},
    {"kind: conv, filters: 20, kernel: 5", "1x28x28", "int", "20x24x24"},
    {"kind: conv, filters: 8, kernel: 3, pad: 1", "3x32x32", "int", "8x32x32"},
    {"kind: conv, filters: 96, kernel: 11, stride: 4", "3x227x227", "int", "96x55x55"},
    {"kind: conv, filters: 4, kernel: [3, 5], stride: [2, 1], pad: [0, 2]", "3x9x9", "int",
     "4x4x9"},
    {"kind: conv, filters: 4, kernel: 3, dilation: 2", "3x9x9", "int", "4x5x5"},
    {"kind: conv, filters: 4, kernel: 3, groups: 2", "6x9x9", "int", "4x7x7"},
    {"kind: conv, filters: 4, kernel: 3, groups: 4", "6x9x9", "int", "!groups do not divide"},
    {"kind: conv, filters: 50, kernel: 5", "50x3x3", "int",
     "!it: kernel 5x5 with pad 0 does not fit input 50x3x3"},
    {"kind: conv, filters: 5, kernel: 3, dilation: 4, pad: [1, 0]", "5x6x6", "int",
     "!it: kernel 3x3, dilation 4, with pad 1x0 does not fit input 5x6x6"},
    {"kind: conv, filters: 5, kernel: [1, 2, 3]", "5x6x6", "int", "!one number or [h, w]"},
    {"kind: conv, filters: 5", "5x6x6", "int", "!conv needs `kernel`"},
    {"kind: conv, filters: 5, kernel: 1", "500", "int", "!channels x height x width, but gets 500"},
    {"kind: maxpool, kernel: 2, stride: 2", "20x24x24", "int", "20x12x12"},
    {"kind: maxpool, kernel: 2", "20x24x24", "int", "20x12x12"},
    {"kind: maxpool, kernel: 3, stride: 2", "32x32x32", "int", "32x15x15"},
    {"kind: maxpool, kernel: 3, stride: 2, ceil: true", "32x32x32", "int", "32x16x16"},
    {"kind: maxpool, kernel: 2, stride: 2, pad: 1, ceil: true", "1x3x3", "int", "1x2x2"},
    {"kind: maxpool, kernel: 1, stride: 3, ceil: true", "1x3x3", "int", "1x1x1"},
    {"kind: avgpool, kernel: 3, stride: 2, pad: 1", "8x7x7", "int", "8x4x4"},
    {"kind: avgpool, global: true", "64x7x5", "int", "64x1x1"},
    {"kind: avgpool, global: true, kernel: 2", "64x7x5", "int", "!`global` takes the whole image"},
    {"kind: maxpool, kernel: 2, pad: 2", "64x7x5", "int", "!pad 2 must be less than kernel 2"},
    {"kind: maxpool, kernel: 8", "64x7x5", "int", "!does not fit input 64x7x5"},
    {"kind: relu", "64x7x5", "int", "64x7x5"},
    {"kind: tanh, units: 3", "64x7x5", "int", "!units"},
    {"kind: dropout, rate: 0.3", "64", "int", "64"},
    {"kind: dropout, rate: 1", "64", "int", "!rate 1 would drop everything"},
    {"kind: batchnorm", "64x7x5", "int", "64x7x5"},
    {"kind: batchnorm, epsilon: 0", "64x7x5", "int", "!epsilon > 0"},
    {"kind: lrn", "64x7x5", "int", "64x7x5"},
    {"kind: lrn, size: 4", "64x7x5", "int", "!size 4 must be odd"},
    {"kind: flatten", "64x7x5", "int", "2240"},
    {"kind: concat", "3x7x5 4x7x5 1x7x5", "int", "8x7x5"},
    {"kind: concat", "3 4", "int", "7"},
    {"kind: concat", "3x7x5 3x7x4", "int", "!input 1 is 3x7x5 and input 2 is 3x7x4"},
    {"kind: add", "3x7x5 3x7x5", "int", "3x7x5"},
    {"kind: add", "3x7x5 4x7x5", "int", "!input 1 is 3x7x5 and input 2 is 4x7x5"},
    {"kind: softmax_loss", "10", "int", "10"},
    {"kind: softmax_loss", "10x1x1", "int", "10"},
    {"kind: softmax_loss", "10x2x1", "int", "!but gets 10x2x1"},
    {"kind: softmax_loss", "1", "int", "!two or more classes, but gets 1"},
    {"kind: softmax_loss", "10", "10", "!label is 10 floats"},
    {"kind: sigmoid_loss", "5", "5", "5"},
    {"kind: sigmoid_loss", "1", "int", "1"},
    {"kind: sigmoid_loss", "5", "int", "!needs 5 floats as label, but the input's label is int"},
    {"kind: euclidean_loss", "2x3", "6", "6"},
    {"kind: euclidean_loss", "5", "3", "!needs 5 floats as label, but the input's label has 3"},
    {"kind: euclidean_loss", "1", "int", "!needs 1 floats as label, but the input's label is int"},
};

static void check_case(const struct shape_case *c)
{
    struct pl_job *job = parse(c->label, c->layer);
    struct pl_layer l;
    char got[128];
    pl_status s = make(job, c->x, &l);
    const char *text = pl_error_text() ? pl_error_text() : "no message";
    if (c->y[0] == '!') {
        if (s != PL_ERR_USAGE || !strstr(text, c->y + 1) || !strstr(text, "t.yaml:5:"))
            fail_msg("{%s} of %s: wanted refusal \"%s\", got %d: %s", c->layer, c->x, c->y + 1, s,
                     text);
    } else {
        write_shape(&l.y, got, sizeof got);
        if (s != PL_OK || strcmp(got, c->y) != 0)
            fail_msg("{%s} of %s: wanted %s, got %d: %s %s", c->layer, c->x, c->y, s, got, text);
        assert_int_equal(l.y.dim[0], 2);
    }
    drop(&l);
    pl_job_destroy(job);
}

static void shapes(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        check_case(&cases[i]);
}

static void weights(void **state)
{
    (void)state;
    struct pl_job *job = parse("int", "kind: conv, filters: 4, kernel: [3, 5], groups: 2, init: he,"
                                      " bias_init: 0.5, lr_mult: 2, bias_decay_mult: 0");
    struct pl_layer l;
    assert_int_equal(make(job, "6x9x9", &l), PL_OK);
    assert_int_equal(l.params, 2);
    const struct pl_param *w = &l.param[0], *b = &l.param[1];
    assert_string_equal(w->name, "weight");
    assert_int_equal(w->shape.dims, 4);
    assert_int_equal(w->shape.dim[1], 3);
    assert_int_equal(w->shape.dim[3], 5);
    assert_int_equal(w->init.kind, PL_INIT_HE);
    assert_int_equal(w->init.fan_in, 45);
    assert_true(w->lr_mult == 2 && w->decay_mult == 1);
    assert_true(b->lr_mult == 1 && b->decay_mult == 0 && b->init.value == 0.5);
    assert_int_equal(b->shape.dim[0], 4);
    assert_true(pl_layer_flops(&l, 2) == 2.0 * 2 * 4 * 7 * 5 * 45);
    drop(&l);
    pl_job_destroy(job);
}

static void no_bias(void **state)
{
    (void)state;
    struct pl_job *job = parse("int", "kind: dense, units: 4, bias: false, activation: tanh");
    struct pl_layer l;
    struct pl_op op = {0};
    assert_int_equal(make(job, "2x3", &l), PL_OK);
    assert_int_equal(l.params, 1);
    assert_string_equal(l.kind->activation(&l), "tanh");
    assert_true(pl_layer_flops(&l, 1) == 2.0 * 4 * 6);
    l.kind->op(&l, &op);
    assert_false(op.bias);
    assert_int_equal(op.x[0].dims, 2);
    assert_int_equal(op.x[0].dim[1], 6);
    drop(&l);
    pl_job_destroy(job);
}

static void batchnorm_tensors(void **state)
{
    (void)state;
    struct pl_job *job = parse("int", "kind: batchnorm, scale: false, momentum: 0.99");
    struct pl_layer l;
    assert_int_equal(make(job, "6x3x3", &l), PL_OK);
    assert_int_equal(l.params, 4);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(l.param[i].shape.dim[0], 6);
        assert_true(l.param[i].lr_mult == 0 && l.param[i].decay_mult == 0);
        assert_int_equal(l.param[i].statistic, i >= 2);
    }
    assert_true(l.param[3].momentum == 0.99 && l.param[3].init.value == 1);
    drop(&l);
    pl_job_destroy(job);
}

static void ceil_grows_the_end(void **state)
{
    (void)state;
    struct pl_job *job = parse("int", "kind: maxpool, kernel: 3, stride: 2, ceil: true");
    struct pl_layer l;
    struct pl_op op = {0};
    assert_int_equal(make(job, "1x32x31", &l), PL_OK);
    l.kind->op(&l, &op);
    assert_int_equal(op.kind, PL_OP_MAXPOOL);
    assert_int_equal(op.pad_begin[0], 0);
    assert_int_equal(op.pad_end[0], 1); /* 16 windows of 3 by 2 reach row 33 */
    assert_int_equal(op.pad_end[1], 0);
    drop(&l);
    pl_job_destroy(job);
}

/* ---- initial values -------------------------------------------------------------------------- */

enum { MANY = 200000 };

struct init_case {
    struct pl_init init;
    double mean, deviation, least, most;
};

static void init_statistics(void **state)
{
    (void)state;
    static const struct init_case all[] = {
        {{PL_INIT_CONSTANT, 0.5, 0}, 0.5, 0, 0.5, 0.5},
        {{PL_INIT_XAVIER, 0, 300}, 0, 0.1 / 1.7320508, -0.1, 0.1},
        {{PL_INIT_HE, 0, 200}, 0, 0.1, -1, 1},
        {{PL_INIT_GAUSSIAN, 0.3, 7}, 0, 0.3, -3, 3},
        {{PL_INIT_UNIFORM, 0.2, 7}, 0, 0.2 / 1.7320508, -0.2, 0.2},
    };
    float *w = pl_alloc(MANY * sizeof *w, "test");
    for (size_t c = 0; c < sizeof all / sizeof all[0]; c++) {
        struct pl_param p = {.name = "weight", .shape = {1, {MANY}}, .init = all[c].init};
        double sum = 0, squares = 0;
        pl_init_fill(&p, "conv1", 1, w);
        for (int i = 0; i < MANY; i++) {
            sum += (double)w[i];
            squares += (double)w[i] * (double)w[i];
            if ((double)w[i] < all[c].least - 1e-6 || (double)w[i] > all[c].most + 1e-6)
                fail_msg("init %zu: %g outside %g .. %g", c, (double)w[i], all[c].least,
                         all[c].most);
        }
        double mean = sum / MANY, deviation = sqrt(fabs(squares / MANY - mean * mean));
        double slack = 5 * all[c].deviation / sqrt(MANY) + 1e-6;
        if (fabs(mean - all[c].mean) > slack || fabs(deviation - all[c].deviation) > slack)
            fail_msg("init %zu: mean %g deviation %g, wanted %g %g", c, mean, deviation,
                     all[c].mean, all[c].deviation);
    }
    pl_free(w);
}

static int differences(const float *a, const float *b)
{
    int n = 0;
    for (int i = 0; i < MANY; i++)
        n += a[i] != b[i];
    return n;
}

static void init_names(void **state)
{
    (void)state;
    struct pl_param p = {.name = "weight", .shape = {1, {MANY}}, .init = {PL_INIT_XAVIER, 0, 9}};
    struct pl_param other = p;
    other.name = "scale";
    float *a = pl_alloc(MANY * sizeof *a, "test"), *b = pl_alloc(MANY * sizeof *b, "test");
    pl_init_fill(&p, "conv1", 1, a);
    assert_int_equal(pl_pool_start(3), PL_OK); /* the threads change nothing */
    pl_init_fill(&p, "conv1", 1, b);
    pl_pool_stop();
    assert_int_equal(differences(a, b), 0);
    pl_init_fill(&p, "conv1", 2, b);
    assert_true(differences(a, b) > MANY - 100);
    pl_init_fill(&p, "conv2", 1, b);
    assert_true(differences(a, b) > MANY - 100);
    pl_init_fill(&other, "conv1", 1, b);
    assert_true(differences(a, b) > MANY - 100);
    pl_free(a);
    pl_free(b);
}

/* ---- the table ------------------------------------------------------------------------------- */

static void every_kind(void **state)
{
    (void)state;
    int n = 0;
    for (const struct pl_layer_kind *const *k = pl_layer_list(); *k; k++, n++) {
        assert_ptr_equal(pl_layer_find((*k)->name), *k);
        assert_non_null((*k)->help);
        assert_non_null((*k)->shape);
        assert_true((*k)->view == !(*k)->op);
        assert_in_range((*k)->min_inputs, 1, (*k)->max_inputs);
        assert_in_range((*k)->max_inputs, 1, PL_MAX_INPUTS);
        for (const struct pl_key *key = (*k)->keys; key->name; key++) {
            assert_non_null(key->help);
            assert_true(key->offset < (*k)->config_bytes);
        }
    }
    assert_int_equal(n, 23);
}

static void nearest(void **state)
{
    (void)state;
    assert_string_equal(pl_layer_nearest("cnv"), "conv");
    assert_string_equal(pl_layer_nearest("max_pool"), "maxpool");
    assert_string_equal(pl_layer_nearest("softmaxloss"), "softmax_loss");
    assert_null(pl_layer_nearest("transformer"));
    assert_null(pl_layer_find("cnv"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shapes),
        cmocka_unit_test(weights),
        cmocka_unit_test(no_bias),
        cmocka_unit_test(batchnorm_tensors),
        cmocka_unit_test(ceil_grows_the_end),
        cmocka_unit_test(init_statistics),
        cmocka_unit_test(init_names),
        cmocka_unit_test(every_kind),
        cmocka_unit_test(nearest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
