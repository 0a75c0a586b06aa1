/* Every operation: on `reference` against finite differences, on every other backend against
 * `reference`, over random shapes (in the spirit of ggml's test-backend-ops). PL_TEST_SEED names them. */
#include "backend/backend.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define ROUNDS 40
#define CONV_ROUNDS 240

static uint64_t seed;
static struct pl_rng rng;
static int64_t between(int64_t a, int64_t b) { return a + (int64_t)pl_rng_below(&rng, (uint64_t)(b - a + 1)); }

/* One operation with all it works on. */
struct trial {
    struct pl_op op;
    struct pl_io io;
    float *x[PL_MAX_INPUTS], *p[PL_MAX_PARAMS], *y, *dy, *dx[PL_MAX_INPUTS], *dp[PL_MAX_PARAMS];
    int32_t *label;
    float *target;
    int64_t *row_key;
};

static float *noise(const struct pl_shape *s)
{
    float *v = calloc((size_t)pl_shape_elems(s) + 1, sizeof *v);
    pl_rng_normals(&rng, v, pl_shape_elems(s));
    return v;
}

static struct pl_shape shape(int dims, int64_t a, int64_t b, int64_t c, int64_t d) { return (struct pl_shape){dims, {a, b, c, d}}; }

static void make_window(struct pl_op *op, bool dilate)
{
    for (int k = 0; k < 2; k++) {
        op->kernel[k] = between(1, 4);
        op->stride[k] = between(1, 3);
        op->dilation[k] = dilate ? between(1, 2) : 1;
        op->pad_begin[k] = between(0, op->kernel[k] - 1);
        op->pad_end[k] = between(0, op->kernel[k] - 1);
    }
}

static int64_t out_size(const struct pl_op *op, int k, int64_t n)
{
    return (n + op->pad_begin[k] + op->pad_end[k] - op->dilation[k] * (op->kernel[k] - 1) - 1) / op->stride[k] + 1;
}

/* unit: channels come in multiples of it. */
static void make_op(struct pl_op *op, enum pl_op_kind kind, int64_t unit)
{
    int64_t n = between(1, 5), c = unit * between(1, unit > 1 ? 3 : 6), h = between(7, 11), w = between(7, 11); /* a dilated kernel spans 7 */
    memset(op, 0, sizeof *op);
    op->kind = kind;
    op->name = "trial";
    op->inputs = 1;
    op->train = true;
    op->groups = 1;
    op->x[0] = op->y = shape(4, n, c, h, w);
    op->rate = 0.4;
    op->epsilon = 1e-5;
    op->momentum = 0.9;
    op->size = between(0, 2) * 2 + 1;
    op->weight = between(0, 1) ? 1 : 0.3;
    op->alpha = 0.3, op->beta = 0.75, op->k = 1.5;
    switch (kind) {
    case PL_OP_DENSE: {
        int64_t o = between(1, 9);
        op->bias = between(0, 1);
        op->y = shape(2, n, o, 0, 0);
        op->params = 1 + op->bias;
        op->p[0] = shape(2, o, c * h * w, 0, 0);
        op->p[1] = shape(1, o, 0, 0, 0);
        break;
    }
    case PL_OP_CONV: {
        op->groups = between(1, 3);
        int64_t cg = unit * between(1, unit > 1 ? 2 : 4), og = unit * between(1, unit > 1 ? 2 : 5);
        make_window(op, true);
        if (unit > 1 && between(0, 3) > 0) { /* what networks have, and JIT kernels take */
            op->groups = op->dilation[0] = op->dilation[1] = 1;
            op->stride[0] = op->stride[1] = between(1, 2);
            for (int k = 0; k < 2; k++)
                op->pad_begin[k] = op->pad_end[k] = op->kernel[k] / 2;
        }
        op->x[0] = shape(4, n, cg * op->groups, h, w);
        op->y = shape(4, n, og * op->groups, out_size(op, 0, h), out_size(op, 1, w));
        op->bias = between(0, 1);
        op->params = 1 + op->bias;
        op->p[0] = shape(4, og * op->groups, cg, op->kernel[0], op->kernel[1]);
        op->p[1] = shape(1, og * op->groups, 0, 0, 0);
        break;
    }
    case PL_OP_MAXPOOL:
    case PL_OP_AVGPOOL:
        make_window(op, false);
        op->count_pad = kind == PL_OP_AVGPOOL && between(0, 1);
        op->y = shape(4, n, c, out_size(op, 0, h), out_size(op, 1, w));
        break;
    case PL_OP_BATCHNORM:
        op->params = 4;
        for (int k = 0; k < 4; k++)
            op->p[k] = shape(1, c, 0, 0, 0);
        break;
    case PL_OP_CONCAT: {
        int64_t c2 = unit * between(1, unit > 1 ? 2 : 4);
        op->inputs = 2;
        op->x[1] = shape(4, n, c2, h, w);
        op->y = shape(4, n, c + c2, h, w);
        break;
    }
    case PL_OP_ADD:
        op->inputs = (int)between(2, 3);
        op->x[1] = op->x[2] = op->x[0];
        break;
    case PL_OP_SOFTMAX_LOSS:
        op->x[0] = op->y = shape(2, n, between(2, 9), 0, 0);
        op->smoothing = between(0, 1) ? 0.1 : 0;
        break;
    case PL_OP_SIGMOID_LOSS:
    case PL_OP_EUCLIDEAN_LOSS:
        op->x[0] = op->y = shape(2, n, between(1, 5), 0, 0);
        op->label_floats = op->x[0].dim[1];
        break;
    default: break;
    }
    for (int k = 0; k < op->inputs; k++)
        op->need_dx[k] = true;
}

static bool is_loss(enum pl_op_kind k) { return k >= PL_OP_SOFTMAX_LOSS; }

/* Numbers for t->op */
static void fill_trial(struct trial *t, bool full)
{
    enum pl_op_kind kind = t->op.kind;
    int64_t n = t->op.x[0].dim[0];
    for (int k = 0; k < t->op.inputs; k++) {
        t->x[k] = noise(&t->op.x[k]);
        t->dx[k] = noise(&t->op.x[k]);
    }
    for (int k = 0; k < t->op.params; k++) {
        t->p[k] = noise(&t->op.p[k]);
        t->dp[k] = noise(&t->op.p[k]);
    }
    /* Kinks stay further away than the steps of the finite differences. */
    int64_t elems = pl_shape_elems(&t->op.x[0]);
    for (int64_t i = 0; kind == PL_OP_MAXPOOL && i < elems; i++)
        t->x[0][i] = 0.05f * (float)(i * 7919 % elems);
    for (int64_t i = 0; kind == PL_OP_RELU && i < elems; i++)
        t->x[0][i] += t->x[0][i] > 0 ? 0.05f : -0.05f;
    for (int64_t i = 0; kind == PL_OP_BATCHNORM && i < t->op.p[3].dim[0]; i++)
        t->p[3][i] = fabsf(t->p[3][i]) + 0.1f;
    t->y = noise(&t->op.y);
    t->dy = noise(&t->op.y);
    t->label = calloc((size_t)n, sizeof *t->label);
    t->target = calloc((size_t)pl_shape_elems(&t->op.x[0]), sizeof *t->target);
    t->row_key = calloc((size_t)n, sizeof *t->row_key);
    for (int64_t i = 0; i < n; i++) {
        t->label[i] = (int32_t)between(0, kind == PL_OP_SOFTMAX_LOSS ? t->op.x[0].dim[1] - 1 : 0);
        t->row_key[i] = between(0, 1000);
    }
    for (int64_t i = 0; i < pl_shape_elems(&t->op.x[0]); i++)
        t->target[i] = (float)pl_rng_uniform(&rng);
    t->io = (struct pl_io){.rows = full ? n : between(0, n), .train = true, .y = t->y, .seed = 3, .step_key = 4, .layer_key = 5, .row_key = t->row_key};
    t->io.label = kind == PL_OP_SOFTMAX_LOSS ? (void *)t->label : is_loss(kind) ? (void *)t->target : NULL;
    t->io.dy = is_loss(kind) ? NULL : t->dy;
    int64_t row = pl_shape_row_elems(&t->op.y);
    for (int64_t i = t->io.rows * row; i < n * row; i++)
        t->dy[i] = 0; /* as the loss leaves padding rows */
    for (int k = 0; k < t->op.inputs; k++) {
        t->io.x[k] = t->x[k];
        t->io.dx[k] = t->dx[k];
    }
    for (int k = 0; k < t->op.params; k++) {
        t->io.p[k] = t->p[k];
        t->io.dp[k] = t->dp[k];
    }
}

static void make_trial(struct trial *t, enum pl_op_kind kind, bool full, int64_t unit)
{
    memset(t, 0, sizeof *t);
    make_op(&t->op, kind, unit);
    fill_trial(t, full);
}

static void free_trial(struct trial *t)
{
    for (int k = 0; k < PL_MAX_INPUTS; k++)
        free(t->x[k]), free(t->dx[k]);
    for (int k = 0; k < PL_MAX_PARAMS; k++)
        free(t->p[k]), free(t->dp[k]);
    free(t->y), free(t->dy), free(t->label), free(t->target), free(t->row_key);
}

static struct pl_plan *plan_on(const struct pl_backend_table *table, struct pl_backend *b, const struct pl_op *op)
{
    struct pl_plan *p = NULL;
    if (table->plan(b, op, &p) < 0)
        fail_msg("%s: %s", table->name, pl_error_text());
    return p;
}

/* sum(dy * y) over the real rows, or the loss. */
static double objective(const struct pl_backend_table *table, struct pl_plan *p, struct trial *t)
{
    struct pl_loss_sums sums = {0};
    t->io.sums = &sums;
    assert_int_equal(table->forward(p, &t->io), PL_OK);
    if (is_loss(t->op.kind))
        return sums.total;
    double sum = 0;
    int64_t n = t->io.rows * pl_shape_row_elems(&t->op.y);
    for (int64_t i = 0; i < n; i++)
        sum += (double)t->dy[i] * t->y[i];
    return sum;
}

/* dp or dx of a random element against the slope of the objective. */
static void check_slopes(const struct pl_backend_table *table, struct pl_plan *p, struct trial *t, float *at, const float *gradient, int64_t n, const char *what)
{
    for (int k = 0; k < 6; k++) {
        int64_t i = between(0, n - 1);
        float old = at[i], step = 1e-2f;
        double best = INFINITY, slope = 0, wanted = gradient[i];
        for (int halving = 0; halving < 3; halving++, step /= 4) { /* kinks of relu and maxpool: a smaller step passes them */
            at[i] = old + step;
            double above = objective(table, p, t), h = at[i];
            at[i] = old - step;
            double below = objective(table, p, t), s = (above - below) / (h - at[i]);
            if (fabs(s - wanted) < best) {
                best = fabs(s - wanted);
                slope = s;
            }
        }
        at[i] = old;
        if (best > 2e-2 * (1 + fabs(wanted)))
            fail_msg("op %d, %s[%lld]: gradient %g, finite differences %g, seed %llu", (int)t->op.kind, what, (long long)i, wanted, slope, (unsigned long long)seed);
    }
}

static void test_finite_differences(void **state)
{
    const struct pl_backend_table *table = pl_backend_find("reference");
    struct pl_backend *b;
    (void)state;
    assert_int_equal(table->open(&(struct pl_device_options){.threads = 1}, &b), PL_OK);
    for (int kind = 0; kind <= PL_OP_EUCLIDEAN_LOSS; kind++)
        for (int round = 0; round < ROUNDS; round++) {
            struct trial t;
            make_trial(&t, (enum pl_op_kind)kind, round % 2 == 0, 1);
            struct pl_plan *p = plan_on(table, b, &t.op);
            objective(table, p, &t);
            assert_int_equal(table->backward(p, &t.io), PL_OK);
            for (int k = 0; k < t.op.inputs; k++)
                check_slopes(table, p, &t, t.x[k], t.dx[k], pl_shape_elems(&t.op.x[k]), "x");
            for (int k = 0; k < t.op.params && !(kind == PL_OP_BATCHNORM && k >= 2); k++)
                check_slopes(table, p, &t, t.p[k], t.dp[k], pl_shape_elems(&t.op.p[k]), "p");
            table->plan_destroy(p);
            free_trial(&t);
        }
    table->close(b);
}

static void compare(const struct trial *t, const char *backend, const char *what, const float *a, const float *b, int64_t n)
{
    double e = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        e += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        norm += (double)a[i] * a[i];
    }
    if (!(e <= 1e-10 * (norm + 10.0 * (double)n))) /* sums of terms near 1: the floor is for those that cancel */
        fail_msg("op %d, %s of %s: normalised error %g, seed %llu (rows %lld, x %lldx%lldx%lldx%lld, kernel %lldx%lld, stride %lldx%lld, groups %lld)",
                 (int)t->op.kind, what, backend, e / (norm + 1e-30), (unsigned long long)seed, (long long)t->io.rows, (long long)t->op.x[0].dim[0],
                 (long long)t->op.x[0].dim[1], (long long)t->op.x[0].dim[2], (long long)t->op.x[0].dim[3], (long long)t->op.kernel[0],
                 (long long)t->op.kernel[1], (long long)t->op.stride[0], (long long)t->op.stride[1], (long long)t->op.groups);
}

struct results { float *y, *dx[PL_MAX_INPUTS], *dp[PL_MAX_PARAMS]; struct pl_loss_sums sums; };
static float *copy_of(const float *v, int64_t n)
{
    float *c = malloc(((size_t)n + 1) * sizeof *c);
    memcpy(c, v, (size_t)n * sizeof *c);
    return c;
}

/* Between canonical order and blocks, in place. */
static void relay(float *v, const struct pl_shape *s, const struct pl_layout *l, bool into_blocks)
{
    int64_t n = pl_shape_elems(s);
    if (l->block <= 1)
        return;
    float *old = copy_of(v, n);
    for (int64_t i = 0; i < n; i++) {
        int64_t unit = i / (l->block * l->plane), k = i / l->plane % l->block, at = i % l->plane;
        int64_t there = (unit * l->plane + at) * l->block + k;
        if (into_blocks)
            v[there] = old[i];
        else
            v[i] = old[there];
    }
    free(old);
}

/* The same with blocked inputs or not, and what the backend makes of them or canonical, seen in canonical order. */
static int run_blocked(const struct pl_backend_table *table, struct pl_backend *b, const struct trial *t, bool train, bool blocks, bool canonical_y, struct results *r)
{
    struct pl_io io = t->io;
    struct pl_op op = t->op;
    float *x[PL_MAX_INPUTS], *dy = copy_of(t->dy, pl_shape_elems(&op.y));
    memset(r, 0, sizeof *r);
    for (int k = 0; k < op.inputs; k++)
        op.lx[k] = (struct pl_layout){8, op.x[k].dim[2] * op.x[k].dim[3]};
    for (int k = 0; k < op.inputs && !blocks; k++)
        op.lx[k] = (struct pl_layout){0};
    op.ly = canonical_y ? (struct pl_layout){0} : table->layout(b, &op);
    io.train = train;
    io.sums = &r->sums;
    io.y = r->y = copy_of(t->y, pl_shape_elems(&op.y));
    io.dy = dy;
    relay(dy, &op.y, &op.ly, true);
    for (int k = 0; k < op.inputs; k++) {
        io.x[k] = x[k] = copy_of(t->x[k], pl_shape_elems(&op.x[k]));
        relay(x[k], &op.x[k], &op.lx[k], true);
        io.dx[k] = r->dx[k] = copy_of(t->dx[k], pl_shape_elems(&op.x[k]));
    }
    for (int k = 0; k < op.params; k++)
        io.dp[k] = r->dp[k] = copy_of(t->dp[k], pl_shape_elems(&op.p[k]));
    struct pl_plan *p = plan_on(table, b, &op);
    assert_int_equal(table->forward(p, &io), PL_OK);
    if (train)
        assert_int_equal(table->backward(p, &io), PL_OK);
    table->plan_destroy(p);
    relay(r->y, &op.y, &op.ly, false);
    for (int k = 0; k < op.inputs; k++) {
        relay(r->dx[k], &op.x[k], &op.lx[k], false);
        free(x[k]);
    }
    free(dy);
    return op.ly.block > 1;
}

/* What reference computes of an operation and a rectifier behind it. */
static void run_with_relu(const struct pl_backend_table *table, struct pl_backend *b, const struct trial *t, bool train, struct results *r)
{
    struct trial two = *t;
    struct pl_op relu = {.kind = PL_OP_RELU, .name = "relu", .inputs = 1, .x = {t->op.y}, .y = t->op.y, .need_dx = {true}, .train = true};
    int64_t n = pl_shape_elems(&t->op.y);
    float *y = copy_of(t->y, n), *dy = copy_of(t->dy, n);
    struct pl_plan *first = plan_on(table, b, &t->op), *second = plan_on(table, b, &relu);
    memset(r, 0, sizeof *r);
    two.io.train = train;
    two.io.y = y;
    for (int k = 0; k < t->op.inputs; k++)
        two.io.dx[k] = r->dx[k] = copy_of(t->dx[k], pl_shape_elems(&t->op.x[k]));
    for (int k = 0; k < t->op.params; k++)
        two.io.dp[k] = r->dp[k] = copy_of(t->dp[k], pl_shape_elems(&t->op.p[k]));
    r->y = copy_of(t->y, n);
    struct pl_io after = {.rows = t->io.rows, .train = train, .x = {y}, .y = r->y, .dy = t->dy, .dx = {dy}};
    assert_int_equal(table->forward(first, &two.io), PL_OK);
    assert_int_equal(table->forward(second, &after), PL_OK);
    two.io.dy = dy;
    if (train) {
        assert_int_equal(table->backward(second, &after), PL_OK);
        assert_int_equal(table->backward(first, &two.io), PL_OK);
    }
    table->plan_destroy(first);
    table->plan_destroy(second);
    free(y), free(dy);
}

/* Runs the trial with buffers of its own. */
static void run_on(const struct pl_backend_table *table, struct pl_backend *b, const struct trial *t, bool train, struct results *r)
{
    struct pl_io io = t->io;
    memset(r, 0, sizeof *r);
    io.train = train;
    io.sums = &r->sums;
    io.y = r->y = copy_of(t->y, pl_shape_elems(&t->op.y));
    for (int k = 0; k < t->op.inputs; k++)
        io.dx[k] = r->dx[k] = copy_of(t->dx[k], pl_shape_elems(&t->op.x[k]));
    for (int k = 0; k < t->op.params; k++)
        io.dp[k] = r->dp[k] = copy_of(t->dp[k], pl_shape_elems(&t->op.p[k]));
    struct pl_plan *p = plan_on(table, b, &t->op);
    assert_int_equal(table->forward(p, &io), PL_OK);
    if (train)
        assert_int_equal(table->backward(p, &io), PL_OK);
    table->plan_destroy(p);
}

static void free_results(struct results *r)
{
    free(r->y);
    for (int k = 0; k < PL_MAX_INPUTS; k++)
        free(r->dx[k]);
    for (int k = 0; k < PL_MAX_PARAMS; k++)
        free(r->dp[k]);
}

static void compare_all(const struct trial *t, const char *backend, const struct results *a, const struct results *b, bool train)
{
    int64_t rows = t->io.rows;
    compare(t, backend, "y", a->y, b->y, rows * pl_shape_row_elems(&t->op.y));
    for (int k = 0; train && k < t->op.inputs; k++)
        compare(t, backend, "dx", a->dx[k], b->dx[k], rows * pl_shape_row_elems(&t->op.x[k]));
    for (int k = 0; train && k < t->op.params; k++)
        compare(t, backend, "dp", a->dp[k], b->dp[k], pl_shape_elems(&t->op.p[k]));
    if (is_loss(t->op.kind)) {
        assert_true(fabs(a->sums.loss - b->sums.loss) <= 1e-5 * (1 + fabs(a->sums.loss)));
        assert_true(fabs(a->sums.total - t->op.weight * a->sums.loss) <= 1e-12 * (1 + fabs(a->sums.total)));
        assert_true(fabs(b->sums.total - t->op.weight * b->sums.loss) <= 1e-12 * (1 + fabs(b->sums.total)));
        assert_true(a->sums.correct == b->sums.correct && a->sums.correct5 == b->sums.correct5 && a->sums.rows == b->sums.rows);
        for (int64_t i = rows * pl_shape_row_elems(&t->op.x[0]); train && i < pl_shape_elems(&t->op.x[0]); i++)
            assert_true(b->dx[0][i] == 0); /* padding rows */
    }
}

static void test_against_reference(void **state)
{
    const struct pl_backend_table *reference = pl_backend_find("reference");
    struct pl_backend *rb, *b;
    (void)state;
    assert_int_equal(reference->open(&(struct pl_device_options){.threads = 1}, &rb), PL_OK);
    for (const struct pl_backend_table *const *list = pl_backend_list(); *list; list++) {
        if (*list == reference)
            continue;
        assert_int_equal(pl_pool_start(2), PL_OK);
        assert_int_equal((*list)->open(&(struct pl_device_options){.threads = 2}, &b), PL_OK);
        for (int kind = 0; kind <= PL_OP_EUCLIDEAN_LOSS; kind++)
            for (int round = 0; round < (kind == PL_OP_CONV ? CONV_ROUNDS : ROUNDS); round++) {
                struct trial t;
                struct results wanted, found;
                bool train = round % 4 != 3;
                make_trial(&t, (enum pl_op_kind)kind, round % 2 == 0, 1);
                t.io.accumulate = round % 3 == 2;
                run_on(reference, rb, &t, train, &wanted);
                run_on(*list, b, &t, train, &found);
                compare_all(&t, (*list)->name, &wanted, &found, train);
                free_results(&wanted);
                free_results(&found);
                free_trial(&t);
            }
        (*list)->close(b);
        pl_pool_stop();
    }
    reference->close(rb);
}

/* What a backend lets pass in blocks between its plans, and rectifiers at the end of a plan. */
static void test_blocked(void **state)
{
    const struct pl_backend_table *reference = pl_backend_find("reference"), *cpu = pl_backend_find("cpu");
    struct pl_backend *rb, *b;
    int stayed[PL_OP_EUCLIDEAN_LOSS + 1] = {0};
    (void)state;
    assert_int_equal(reference->open(&(struct pl_device_options){.threads = 1}, &rb), PL_OK);
    assert_int_equal(pl_pool_start(2), PL_OK);
    assert_int_equal(cpu->open(&(struct pl_device_options){.threads = 2}, &b), PL_OK);
    for (int kind = 0; kind < PL_OP_SOFTMAX_LOSS; kind++)
        for (int round = 0; round < (kind == PL_OP_CONV ? CONV_ROUNDS : ROUNDS); round++) {
            struct trial t;
            struct results wanted, found;
            bool train = round % 4 != 3;
            make_trial(&t, (enum pl_op_kind)kind, round % 2 == 0, 8);
            t.io.accumulate = round % 3 == 2;
            bool relu = cpu->fuses_relu((enum pl_op_kind)kind) && round % 3 != 1, blocks = !relu || round % 2 == 0;
            if (relu)
                run_with_relu(reference, rb, &t, train, &wanted);
            else
                run_on(reference, rb, &t, train, &wanted);
            t.op.relu = relu;
            stayed[kind] += run_blocked(cpu, b, &t, train, blocks, round % 5 == 4, &found);
            compare_all(&t, "cpu in blocks", &wanted, &found, train);
            free_results(&wanted);
            free_results(&found);
            free_trial(&t);
        }
    cpu->close(b);
    pl_pool_stop();
    reference->close(rb);
    static const enum pl_op_kind through[] = {PL_OP_MAXPOOL, PL_OP_AVGPOOL, PL_OP_RELU, PL_OP_BATCHNORM, PL_OP_LRN, PL_OP_CONCAT, PL_OP_ADD};
    for (size_t i = 0; i < sizeof through / sizeof *through; i++)
        if (stayed[through[i]] < ROUNDS / 4)
            fail_msg("op %d: only %d of %d outputs were blocked", (int)through[i], stayed[through[i]], ROUNDS);
    print_message("convolutions with blocked outputs: %d of %d\n", stayed[PL_OP_CONV], CONV_ROUNDS); /* none without oneDNN */
}

/* The largest error of a sum of many terms, in units of the sums' root mean square. */
static void check_largest(size_t i, const struct trial *t, const struct results *wanted, const struct results *found)
{
    const float *pair[3][2] = {{wanted->y, found->y}, {wanted->dx[0], found->dx[0]}, {wanted->dp[0], found->dp[0]}};
    int64_t elems[] = {t->io.rows * pl_shape_row_elems(&t->op.y), t->io.rows * pl_shape_row_elems(&t->op.x[0]), pl_shape_elems(&t->op.p[0])};
    for (int k = 0; k < 3; k++) {
        double square = 0, most = 0;
        for (int64_t q = 0; q < elems[k]; q++) {
            square += (double)pair[k][0][q] * pair[k][0][q] / (double)elems[k];
            most = fmax(most, fabs((double)pair[k][0][q] - pair[k][1][q]));
        }
        if (elems[k] > 0 && !(most <= 1e-4 * sqrt(square)))
            fail_msg("shape %zu, tensor %d: largest error %g of the root mean square", i, k, most / sqrt(square));
    }
}

/* cpu against reference on operations of given shapes; shape_of fills the one numbered i, false: there are no more. */
static void check_shapes(bool (*shape_of)(size_t i, struct pl_op *op))
{
    const struct pl_backend_table *reference = pl_backend_find("reference"), *cpu = pl_backend_find("cpu");
    struct pl_backend *rb, *b;
    assert_int_equal(reference->open(&(struct pl_device_options){.threads = 1}, &rb), PL_OK);
    assert_int_equal(pl_pool_start(2), PL_OK);
    assert_int_equal(cpu->open(&(struct pl_device_options){.threads = 2}, &b), PL_OK);
    struct trial t = {0};
    for (size_t i = 0; shape_of(i, &t.op); i++) {
        struct results wanted, found;
        t.op.inputs = 1, t.op.train = t.op.need_dx[0] = true, t.op.groups = 1;
        t.op.bias = i % 2 == 0, t.op.params = 1 + t.op.bias;
        t.op.p[1] = shape(1, t.op.p[0].dim[0], 0, 0, 0);
        fill_trial(&t, i % 3 != 2);
        t.io.accumulate = i % 3 == 1;
        bool blocks = t.op.kind == PL_OP_CONV && i % 4 != 3 && t.op.x[0].dim[1] % 8 == 0;
        run_on(reference, rb, &t, true, &wanted);
        run_blocked(cpu, b, &t, true, blocks, false, &found);
        compare_all(&t, blocks ? "cpu in blocks" : "cpu", &wanted, &found, true);
        check_largest(i, &t, &wanted, &found);
        free_results(&wanted);
        free_results(&found);
        free_trial(&t);
        t = (struct trial){0};
    }
    cpu->close(b);
    pl_pool_stop();
    reference->close(rb);
}

/* Convolutions of stride 1, as the networks have them: many channels, many tiles, tiles cut off at every
 * edge, uneven padding, channels that fill no blocks. */
static bool convolution(size_t i, struct pl_op *op)
{
    static const struct { int64_t n, c, k, h, w, kernel, top, left, bottom, right; } shapes[] = {
        {2, 64, 64, 12, 12, 3, 1, 1, 1, 1}, {3, 8, 24, 7, 9, 3, 0, 2, 1, 0}, {2, 40, 8, 5, 4, 3, 2, 2, 2, 2}, {16, 16, 16, 3, 3, 3, 0, 0, 0, 0},
        {2, 16, 16, 3, 3, 3, 1, 1, 1, 1}, {2, 256, 32, 8, 8, 3, 1, 1, 1, 1}, {4, 32, 64, 8, 8, 5, 2, 2, 2, 2}, {2, 24, 8, 9, 6, 5, 4, 0, 1, 3},
        {24, 8, 16, 36, 33, 3, 1, 1, 1, 1}, {9, 20, 50, 12, 12, 5, 0, 0, 0, 0}, {5, 9, 17, 7, 11, 3, 1, 0, 1, 2}};
    if (i == sizeof shapes / sizeof *shapes)
        return false;
    *op = (struct pl_op){.kind = PL_OP_CONV, .name = "conv", .kernel = {shapes[i].kernel, shapes[i].kernel}, .stride = {1, 1}, .dilation = {1, 1},
                         .pad_begin = {shapes[i].top, shapes[i].left}, .pad_end = {shapes[i].bottom, shapes[i].right}};
    op->x[0] = shape(4, shapes[i].n, shapes[i].c, shapes[i].h, shapes[i].w);
    op->y = shape(4, shapes[i].n, shapes[i].k, out_size(op, 0, shapes[i].h), out_size(op, 1, shapes[i].w));
    op->p[0] = shape(4, shapes[i].k, shapes[i].c, shapes[i].kernel, shapes[i].kernel);
    return true;
}
static void test_convolutions(void **state) { (void)state, check_shapes(convolution); }

/* Dense layers whose weights are large against the batch. */
static bool narrow_dense(size_t i, struct pl_op *op)
{
    static const struct { int64_t n, in, out; } shapes[] = {{64, 400, 512}, {1, 391, 397}, {17, 1200, 385}, {33, 384, 390}};
    if (i == sizeof shapes / sizeof *shapes)
        return false;
    *op = (struct pl_op){.kind = PL_OP_DENSE, .name = "dense"};
    op->x[0] = shape(2, shapes[i].n, shapes[i].in, 0, 0);
    op->y = shape(2, shapes[i].n, shapes[i].out, 0, 0);
    op->p[0] = shape(2, shapes[i].out, shapes[i].in, 0, 0);
    return true;
}
static void test_narrow_dense(void **state) { (void)state, check_shapes(narrow_dense); }

int main(void)
{
    const char *given = getenv("PL_TEST_SEED");
    seed = given ? strtoull(given, NULL, 10) : 1;
    rng = pl_rng_make(seed, 0, 0, 0);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_finite_differences), cmocka_unit_test(test_against_reference), cmocka_unit_test(test_blocked), cmocka_unit_test(test_convolutions), cmocka_unit_test(test_narrow_dense)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
