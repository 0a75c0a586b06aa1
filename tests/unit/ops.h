/* Operations for tests: random ones with all they work on, runs on any backend, and the comparison of what came of it. For
 * test_ops.c and tests of a single backend. */
#ifndef OPS_H
#define OPS_H

#include "backend/backend.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#ifdef __SANITIZE_ADDRESS__ /* several times as slow; the release build runs them all */
#define SHARE 2
#else
#define SHARE 1
#endif
#ifndef ROUNDS
#define ROUNDS (40 / SHARE)
#endif
#define CONV_ROUNDS (240 / SHARE)

static uint64_t seed;
static struct pl_rng rng;
static inline int64_t between(int64_t a, int64_t b) { return a + (int64_t)pl_rng_below(&rng, (uint64_t)(b - a + 1)); }

/* One operation with all it works on. */
struct trial {
    struct pl_op op;
    struct pl_io io;
    float *x[PL_MAX_INPUTS], *p[PL_MAX_PARAMS], *y, *dy, *dx[PL_MAX_INPUTS], *dp[PL_MAX_PARAMS];
    int32_t *label;
    float *target;
    int64_t *row_key;
    bool in_place; /* y is x[0], where they lie alike */
};

static inline float *noise(const struct pl_shape *s)
{
    float *v = calloc((size_t)pl_shape_elems(s) + 1, sizeof *v);
    pl_rng_normals(&rng, v, pl_shape_elems(s));
    return v;
}

static inline struct pl_shape shape(int dims, int64_t a, int64_t b, int64_t c, int64_t d) { return (struct pl_shape){dims, {a, b, c, d}}; }

static inline void make_window(struct pl_op *op, bool dilate)
{
    for (int k = 0; k < 2; k++) {
        op->kernel[k] = between(1, 4);
        op->stride[k] = between(1, 3);
        op->dilation[k] = dilate ? between(1, 2) : 1;
        op->pad_begin[k] = between(0, op->kernel[k] - 1);
        op->pad_end[k] = between(0, op->kernel[k] - 1);
    }
}

static inline int64_t out_size(const struct pl_op *op, int k, int64_t n)
{
    return (n + op->pad_begin[k] + op->pad_end[k] - op->dilation[k] * (op->kernel[k] - 1) - 1) / op->stride[k] + 1;
}

/* unit: channels come in multiples of it. */
static inline void make_op(struct pl_op *op, enum pl_op_kind kind, int64_t unit)
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
    case PL_OP_EMBEDDING:
        op->params = 1;
        op->p[0] = shape(2, between(1, 9), between(1, 40), 0, 0);
        op->x[0] = shape(2, n, between(1, 9), 0, 0);
        op->y = shape(3, n, op->x[0].dim[1], op->p[0].dim[1], 0);
        break;
    case PL_OP_LSTM:
    case PL_OP_GRU: {
        int64_t t = between(1, 6), i = between(1, 9), units = between(1, 20), gates = kind == PL_OP_LSTM ? 4 : 3;
        n = between(1, 12);
        op->bias = between(0, 1);
        op->last = between(0, 1);
        op->params = op->bias ? 4 : 2;
        op->p[0] = shape(2, gates * units, i, 0, 0);
        op->p[1] = shape(2, gates * units, units, 0, 0);
        op->p[2] = op->p[3] = shape(1, gates * units, 0, 0, 0);
        op->x[0] = shape(3, n, t, i, 0);
        op->y = op->last ? shape(2, n, units, 0, 0) : shape(3, n, t, units, 0);
        break;
    }
    case PL_OP_POSITION_EMBEDDING:
        op->params = 1;
        op->x[0] = op->y = shape(3, n, between(1, 9), between(1, 40), 0);
        op->p[0] = shape(2, op->y.dim[1], op->y.dim[2], 0, 0);
        break;
    case PL_OP_ATTENTION: {
        int64_t t = between(0, 7) > 0 ? between(1, 12) : between(60, 140);
        op->heads = between(1, 3);
        op->causal = between(0, 1);
        op->y = shape(3, between(1, 3), t, op->heads * between(1, 18), 0);
        op->x[0] = shape(3, op->y.dim[0], t, 3 * op->y.dim[2], 0);
        n = op->y.dim[0];
        break;
    }
    case PL_OP_LAYERNORM:
        op->positions = between(0, 3);
        op->x[0] = op->y = shape(2, n * pl_op_positions(op), between(5, 40), 0, 0); /* of few the gradient is what rounding leaves */
        op->params = between(0, 1) ? 2 : 0;
        op->p[0] = op->p[1] = shape(1, op->y.dim[1], 0, 0, 0);
        break;
    case PL_OP_SOFTMAX_LOSS:
        op->positions = between(0, 3);
        op->x[0] = op->y = shape(2, n * pl_op_positions(op), between(2, 9), 0, 0);
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
        op->need_dx[k] = kind != PL_OP_EMBEDDING;
}

static inline bool is_loss(enum pl_op_kind k) { return k >= PL_OP_SOFTMAX_LOSS; }

/* Numbers for t->op */
static inline void fill_trial(struct trial *t, bool full)
{
    enum pl_op_kind kind = t->op.kind;
    int64_t n = t->op.x[0].dim[0], positions = pl_op_positions(&t->op);
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
    for (int64_t i = 0; kind == PL_OP_EMBEDDING && i < elems; i++)
        t->x[0][i] = (float)between(0, t->op.p[0].dim[0] - 1);
    /* With larger ones a cell is chaotic: what is rounded grows from position to position. */
    for (int64_t i = 0; (kind == PL_OP_LSTM || kind == PL_OP_GRU) && i < pl_shape_elems(&t->op.p[1]); i++)
        t->p[1][i] /= sqrtf((float)t->op.p[1].dim[1]);
    t->in_place = kind == PL_OP_ADD && between(0, 1);
    t->y = noise(&t->op.y);
    t->dy = noise(&t->op.y);
    t->label = calloc((size_t)n, sizeof *t->label);
    t->target = calloc((size_t)pl_shape_elems(&t->op.x[0]), sizeof *t->target);
    t->row_key = calloc((size_t)n, sizeof *t->row_key);
    for (int64_t i = 0; i < n; i++) {
        t->label[i] = (int32_t)between(0, kind == PL_OP_SOFTMAX_LOSS ? t->op.x[0].dim[1] - 1 : 0);
        if (kind == PL_OP_SOFTMAX_LOSS && t->op.positions > 0 && between(0, 2) == 0)
            t->label[i] = PL_NO_LABEL;
        t->row_key[i] = between(0, 1000);
    }
    for (int64_t i = 0; i < pl_shape_elems(&t->op.x[0]); i++)
        t->target[i] = (float)pl_rng_uniform(&rng);
    t->io = (struct pl_io){.rows = full ? n : between(0, n / positions) * positions, .train = true, .y = t->y, .seed = 3, .step_key = 4, .layer_key = 5, .row_key = t->row_key};
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

static inline void make_trial(struct trial *t, enum pl_op_kind kind, bool full, int64_t unit)
{
    memset(t, 0, sizeof *t);
    make_op(&t->op, kind, unit);
    fill_trial(t, full);
}

static inline void free_trial(struct trial *t)
{
    for (int k = 0; k < PL_MAX_INPUTS; k++)
        free(t->x[k]), free(t->dx[k]);
    for (int k = 0; k < PL_MAX_PARAMS; k++)
        free(t->p[k]), free(t->dp[k]);
    free(t->y), free(t->dy), free(t->label), free(t->target), free(t->row_key);
}

static inline struct pl_plan *plan_on(const struct pl_backend_table *table, struct pl_backend *b, const struct pl_op *op)
{
    struct pl_plan *p = NULL;
    if (table->plan(b, op, &p) < 0)
        fail_msg("%s: %s", table->name, pl_error_text());
    return p;
}

/* Of a squared error, to the square of what it is of */
static double allowed = 1e-10;
/* No gradient comes where rounding may decide on which side of a rectifier's 0 an output falls: so near to it. */
static float kink = 1e-3f;

static inline void compare(const struct trial *t, const char *backend, const char *what, const float *a, const float *b, int64_t n)
{
    double e = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        e += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        norm += (double)a[i] * a[i];
    }
    if (!(e <= allowed * (norm + 10.0 * (double)n))) /* sums of terms near 1: the floor is for those that cancel */
        fail_msg("op %d, %s of %s: normalised error %g, seed %llu (rows %lld, x %lldx%lldx%lldx%lld, kernel %lldx%lld, stride %lldx%lld, groups %lld)",
                 (int)t->op.kind, what, backend, e / (norm + 1e-30), (unsigned long long)seed, (long long)t->io.rows, (long long)t->op.x[0].dim[0],
                 (long long)t->op.x[0].dim[1], (long long)t->op.x[0].dim[2], (long long)t->op.x[0].dim[3], (long long)t->op.kernel[0],
                 (long long)t->op.kernel[1], (long long)t->op.stride[0], (long long)t->op.stride[1], (long long)t->op.groups);
}

struct results { float *y, *dx[PL_MAX_INPUTS], *dp[PL_MAX_PARAMS]; struct pl_loss_sums sums; };
static inline float *copy_of(const float *v, int64_t n)
{
    float *c = malloc(((size_t)n + 1) * sizeof *c);
    memcpy(c, v, (size_t)n * sizeof *c);
    return c;
}

/* Between canonical order and blocks, in place. */
static inline void relay(float *v, const struct pl_shape *s, const struct pl_layout *l, bool into_blocks)
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

/* ---- runs, with buffers of the backend's own, near or far ---------------------------------------- */

static inline void *lend(const struct pl_backend_table *table, struct pl_backend *b, const void *host, size_t bytes)
{
    void *p = table->alloc(b, bytes + 4, "test");
    if (!p || table->upload(b, p, host, bytes) < 0)
        fail_msg("%s: %s", table->name, pl_error_text());
    return p;
}

/* To the nearest that bf16 can hold, of equals the even one. */
static inline void round_floats(float *v, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, v + i, 4);
        bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
        memcpy(v + i, &bits, 4);
    }
}

/* Everything in a trial that is read, as bf16 can hold it. */
static inline void round_all(struct trial *t)
{
    for (int k = 0; k < t->op.inputs; k++)
        round_floats(t->x[k], pl_shape_elems(&t->op.x[k]));
    for (int k = 0; k < t->op.params; k++)
        round_floats(t->p[k], pl_shape_elems(&t->op.p[k]));
    round_floats(t->dy, pl_shape_elems(&t->op.y));
}

#define BF16_ALLOWED 1.6e-5 /* for `allowed`: the square of half the last of eight bits, 2^-8 */

/* Between floats and their upper halves, in place. What is cut off is lost: give it what bf16 can hold. */
static inline void halve(float *v, int64_t n, const struct pl_layout *l)
{
    for (int64_t i = 0; l->bf16 && i < n; i++)
        memcpy((char *)v + 2 * i, (const char *)v + 4 * i + 2, 2);
}
static inline void widen(float *v, int64_t n, const struct pl_layout *l)
{
    for (int64_t i = n - 1; l->bf16 && i >= 0; i--) {
        uint16_t half;
        memcpy(&half, (const char *)v + 2 * i, 2);
        uint32_t bits = (uint32_t)half << 16;
        memcpy(v + i, &bits, 4);
    }
}

static inline float *lend_laid_out(const struct pl_backend_table *table, struct pl_backend *b, const float *v, const struct pl_shape *s, const struct pl_layout *l)
{
    float *laid = copy_of(v, pl_shape_elems(s)), *p;
    relay(laid, s, l, true);
    halve(laid, pl_shape_elems(s), l);
    p = lend(table, b, laid, pl_layout_bytes(l, s));
    free(laid);
    return p;
}

/* A copy of what the backend has, in canonical order */
static inline float *fetch(const struct pl_backend_table *table, struct pl_backend *b, const float *from, const struct pl_shape *s, const struct pl_layout *l)
{
    float *v = calloc((size_t)pl_shape_elems(s) + 1, sizeof *v);
    assert_int_equal(table->download(b, v, from, pl_layout_bytes(l, s)), PL_OK);
    widen(v, pl_shape_elems(s), l);
    relay(v, s, l, false);
    return v;
}

static inline struct pl_io lend_all(const struct pl_backend_table *table, struct pl_backend *b, const struct trial *t, const struct pl_op *op)
{
    struct pl_io io = t->io;
    bool in_place = t->in_place && op->lx[0].block == op->ly.block && op->lx[0].bf16 == op->ly.bf16;
    for (int k = 0; k < op->inputs; k++) {
        io.x[k] = lend_laid_out(table, b, t->x[k], &op->x[k], &op->lx[k]);
        io.dx[k] = lend(table, b, t->dx[k], pl_layout_bytes(&op->lx[k], &op->x[k]));
    }
    for (int k = 0; k < op->params; k++) {
        io.p[k] = lend(table, b, t->p[k], (size_t)pl_shape_elems(&op->p[k]) * sizeof(float));
        io.dp[k] = lend(table, b, t->dp[k], (size_t)pl_shape_elems(&op->p[k]) * sizeof(float));
    }
    io.y = in_place ? (float *)(uintptr_t)io.x[0] : lend(table, b, t->y, pl_layout_bytes(&op->ly, &op->y));
    io.dy = t->io.dy ? lend_laid_out(table, b, t->dy, &op->y, &op->ly) : NULL;
    io.row_key = lend(table, b, t->row_key, (size_t)op->x[0].dim[0] * sizeof *t->row_key);
    if (t->io.label == t->label)
        io.label = lend(table, b, t->label, (size_t)op->x[0].dim[0] * sizeof *t->label);
    else if (t->io.label)
        io.label = lend(table, b, t->target, (size_t)pl_shape_elems(&op->x[0]) * sizeof *t->target);
    return io;
}

static inline void give_all_back(const struct pl_backend_table *table, struct pl_backend *b, const struct pl_op *op, const struct pl_io *io)
{
    for (int k = 0; k < op->inputs; k++)
        table->free(b, (void *)(uintptr_t)io->x[k]), table->free(b, io->dx[k]);
    for (int k = 0; k < op->params; k++)
        table->free(b, (void *)(uintptr_t)io->p[k]), table->free(b, io->dp[k]);
    if (io->y != io->x[0])
        table->free(b, io->y);
    table->free(b, (void *)(uintptr_t)io->dy);
    table->free(b, (void *)(uintptr_t)io->row_key);
    table->free(b, (void *)(uintptr_t)io->label);
}

/* Runs the trial as op, which differs from its own in layouts and the rectifier only; results in canonical order. */
static inline void run_as(const struct pl_backend_table *table, struct pl_backend *b, const struct trial *t, const struct pl_op *op, bool train, struct results *r)
{
    struct pl_io io = lend_all(table, b, t, op);
    struct pl_plan *p = plan_on(table, b, op);
    memset(r, 0, sizeof *r);
    io.train = train;
    io.sums = &r->sums;
    if (table->forward(p, &io) < 0 || (train && table->backward(p, &io) < 0))
        fail_msg("%s, op %d: %s", table->name, (int)op->kind, pl_error_text());
    assert_int_equal(table->finish(b), PL_OK);
    table->plan_destroy(p);
    r->y = fetch(table, b, io.y, &op->y, &op->ly);
    for (int k = 0; k < op->inputs; k++)
        r->dx[k] = fetch(table, b, io.dx[k], &op->x[k], &op->lx[k]);
    for (int k = 0; k < op->params; k++)
        r->dp[k] = fetch(table, b, io.dp[k], &op->p[k], &(struct pl_layout){0});
    give_all_back(table, b, op, &io);
}

static inline void run_on(const struct pl_backend_table *table, struct pl_backend *b, const struct trial *t, bool train, struct results *r)
{
    run_as(table, b, t, &t->op, train, r);
}

/* What reference computes of an operation and a rectifier behind it. */
static inline void run_with_relu(const struct pl_backend_table *table, struct pl_backend *b, const struct trial *t, bool train, struct results *r)
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
    for (int64_t i = 0; i < n; i++)
        t->dy[i] = fabsf(y[i]) < kink ? 0 : t->dy[i];
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

static inline void free_results(struct results *r)
{
    free(r->y);
    for (int k = 0; k < PL_MAX_INPUTS; k++)
        free(r->dx[k]);
    for (int k = 0; k < PL_MAX_PARAMS; k++)
        free(r->dp[k]);
}

static inline void compare_all(const struct trial *t, const char *backend, const struct results *a, const struct results *b, bool train)
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

/* The largest error of a sum of many terms, in units of the sums' root mean square. */
static inline void check_largest(size_t i, const struct trial *t, const struct results *wanted, const struct results *found)
{
    const float *pair[3][2] = {{wanted->y, found->y}, {wanted->dx[0], found->dx[0]}, {wanted->dp[0], found->dp[0]}};
    int64_t elems[] = {t->io.rows * pl_shape_row_elems(&t->op.y), t->io.rows * pl_shape_row_elems(&t->op.x[0]), t->op.params > 0 ? pl_shape_elems(&t->op.p[0]) : 0};
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

#endif
