/* conv_winograd: 3x3 and 5x5 convolutions of stride 1 by minimal filtering (winograd.h), on activations in
 * blocks of as many channels as a vector has lanes; canonical ones are copied, their channels filled up with
 * zeros. The output is cut into tiles; a tile's patch of the input and the filters are transformed, and what was a convolution
 * becomes 36 independent matrix products, one for each point:
 *
 *     forward    M[tile, k]  = V[tile, c] U[c, k]      y  = outputs of M
 *     weights    dU[k, c]    = W[tile, k]^T V[tile, c]  dw = filters of dU
 *     data       dV[tile, c] = W[tile, k] U[c, k]^T     dx = the sum of what dV makes of the patches
 *                or forward on dy with the filters turned round
 *
 * That is 4 times (5x5: 2.8 times) fewer multiplications. The tiles go through in blocks, so that what
 * lies between the stages stays in the caches. Sums run in an order that knows nothing of threads.
 *
 * Rounding: the largest error of an output is five to ten times that of a direct sum in fp32, as with other
 * libraries' F(4x4, 3x3) (test_ops bounds it). */
#include "backend/cpu/conv_winograd.h"

#include <string.h>

#define BLOCK_BYTES (2 * 1024 * 1024) /* between the stages, a thread */
#define STAGGER 16 /* floats between matrices: powers of two fall on the same cache sets */

/* What transforms take, in multiplications of the products; measured on Zen 4 */
#define CHANNEL_EFFORT 600.0 /* of a channel of a tile */
#define FILTER_EFFORT(taps) ((taps) == 3 ? 1100.0 : 2200.0)

/* With a canonical output the inputs come canonical as well. */
static bool fits(const struct pl_op *op, int64_t lanes, const struct pl_cpu_dims *x, const struct pl_cpu_dims *y) {
    int64_t r = op->kernel[0], lx = op->ly.block > 1 ? op->lx[0].block : 0;
    if (op->ly.block > 1 && op->lx[0].bf16 && lx <= 1)
        return false; /* rows of bf16 */
    return (lx <= 1 || lx == lanes) && (op->ly.block <= 1 || op->ly.block == lanes) && x->c >= lanes && y->c >= lanes &&
           op->groups == 1 && (r == 3 || r == 5) && op->kernel[1] == r && op->stride[0] == 1 && op->stride[1] == 1 &&
           op->dilation[0] <= 1 && op->dilation[1] <= 1 && op->pad_begin[0] < r && op->pad_begin[1] < r;
}

static void describe(const struct pl_cpu_winograd *g, bool data, struct pl_cpu_pass *p) {
    const int64_t lanes = g->lanes->lanes, rows = g->lanes->rows;
    struct pl_cpu_planes x = {g->x.c, up(g->x.c, lanes), g->x.h, g->x.w}, y = {g->y.c, up(g->y.c, lanes), g->y.h, g->y.w};
    *p = (struct pl_cpu_pass){.g = g, .from = data ? y : x, .to = data ? x : y, .turned = data, .reversed = data};
    p->top = data ? g->taps - 1 - g->top : g->top;
    p->left = data ? g->taps - 1 - g->left : g->left;
    p->across = up(p->to.w, g->outputs) / g->outputs;
    p->per_sample = p->across * (up(p->to.h, g->outputs) / g->outputs);
    p->tiles = p->per_sample * g->x.n;
    p->block = BLOCK_BYTES / (int64_t)sizeof(float) / (POINTS * (p->from.channels + p->to.channels));
    p->block = up(p->block < 48 ? 48 : p->block, rows) * g->backend->threads;
    if (p->block > up(p->tiles, rows))
        p->block = up(p->tiles, rows);
}

/* The floats of a tensor in whole blocks, where it has to be copied. */
static int64_t copied(const struct pl_cpu_winograd *g, bool blocked, const struct pl_cpu_dims *d) {
    return blocked ? 0 : up(d->n * up(d->c, g->lanes->lanes) * d->h * d->w, 16);
}

static struct pl_cpu_matrices place(int64_t rows, int64_t ld, float *scratch, int64_t *used) {
    struct pl_cpu_matrices m = {scratch + *used, ld, up(rows * ld, 16) + STAGGER};
    *used += POINTS * m.step;
    return m;
}

/* Lays the matrices out in the scratch memory; returns the floats they take. */
static int64_t lay_out(struct pl_cpu_pass *p, float *scratch) {
    int64_t used = 0;
    p->panels = up(p->to.channels, p->g->lanes->columns) / p->g->lanes->columns;
    p->u = place(p->from.real, p->to.channels, scratch, &used);
    p->v = place(p->block, p->from.channels, scratch, &used);
    p->m = place(p->block, p->to.channels, scratch, &used);
    return used;
}

static int64_t lay_out_weights(struct pl_cpu_pass *p, float *scratch) {
    int64_t used = 0;
    p->panels = up(p->from.channels, p->g->lanes->columns) / p->g->lanes->columns;
    p->u = place(p->to.real, p->from.channels, scratch, &used);
    p->v = place(p->block, p->from.channels + STAGGER, scratch, &used);
    p->m = place(p->block, p->to.channels + STAGGER, scratch, &used);
    return used;
}

/* The data gradient from dy's tiles, which the weights' pass has: it brings fewer where the convolution had no padding. */
static void describe_adjoint(const struct pl_cpu_winograd *g, const struct pl_cpu_pass *weights, struct pl_cpu_pass *p) {
    struct pl_cpu_planes x = weights->from, y = weights->to;
    *p = *weights;
    p->from = y;
    p->to = x;
    p->turned = true;
    p->panels = up(x.channels, g->lanes->columns) / g->lanes->columns;
}

static int64_t lay_out_adjoint(const struct pl_cpu_pass *weights, struct pl_cpu_pass *p, float *scratch) {
    int64_t used = 0;
    p->u = place(p->from.real, p->to.channels, scratch, &used);
    p->v = weights->m;
    p->m = place(p->block, p->to.channels, scratch, &used);
    return used;
}

/* The time that a pass takes over that of the direct sum; channels: of its tiles that are transformed. */
static double effort(const struct pl_cpu_winograd *g, const struct pl_cpu_pass *p, int64_t channels) {
    double pairs = (double)(p->from.real * p->to.channels), area = g->taps * g->taps, tiles = (double)p->tiles;
    double direct = (double)(g->y.n * g->y.h * g->y.w) * area * (double)(g->x.c * g->y.c);
    return (POINTS * tiles * pairs + CHANNEL_EFFORT * tiles * (double)channels + FILTER_EFFORT(g->taps) * pairs) / direct;
}

static double effort_of_all(const struct pl_cpu_winograd *g, const struct pl_cpu_pass *p) { return effort(g, p, p->from.channels + p->to.channels); }

/* By the faster of its two ways, or elsewhere where that is faster still, unless activations are blocked already. */
static void plan_data(struct pl_cpu_winograd *g, double most_effort) {
    struct pl_cpu_pass forward, turned, adjoint;
    describe(g, false, &forward);
    describe(g, true, &turned);
    describe_adjoint(g, &forward, &adjoint);
    double one = effort_of_all(g, &turned), other = effort(g, &adjoint, adjoint.to.channels);
    bool faster = !g->x_half && other < one; /* dx is added up, which bf16 is too short for */
    g->data = g->y_blocked || (faster ? other : one) <= most_effort;
    g->adjoint = g->data && faster;
}

/* What the largest of its passes needs. */
static int64_t scratch_floats(const struct pl_cpu_winograd *g, bool train) {
    struct pl_cpu_pass p, adjoint;
    int64_t forward, data = 0, weights = 0, most;
    describe(g, false, &p);
    forward = lay_out(&p, NULL);
    if (train)
        weights = lay_out_weights(&p, NULL);
    describe_adjoint(g, &p, &adjoint);
    if (g->adjoint)
        weights += lay_out_adjoint(&p, &adjoint, NULL) + copied(g, g->x_blocked, &g->x);
    describe(g, true, &p);
    if (g->data && !g->adjoint)
        data = lay_out(&p, NULL);
    most = forward > data ? forward : data;
    most = most > weights ? most : weights;
    return most + copied(g, g->x_blocked, &g->x) + copied(g, g->y_blocked, &g->y) + up(g->y.c, 16);
}

struct pl_cpu_winograd *pl_cpu_winograd_create(const struct pl_plan *p) {
    const struct pl_op *op = &p->op;
    struct pl_cpu_dims x = pl_cpu_dims(&op->x[0]), y = pl_cpu_dims(&op->y);
    struct pl_cpu_pass forward;
    if (p->backend->lanes == NULL || !fits(op, p->backend->lanes->lanes, &x, &y))
        return NULL;
    struct pl_cpu_winograd *g = pl_alloc(sizeof *g, "a convolution's plan");
    if (g == NULL)
        return NULL;
    int taps = (int)op->kernel[0];
    bool y_blocked = op->ly.block > 1;
    double most_effort = p->backend->lanes->most_effort * (y_blocked ? 1.0 : 1.25); /* im2col is slower than oneDNN */
    if (op->ly.bf16) /* the other way multiplies bf16: on Zen 4 twice as many at once, of half the bytes; with AMX many times */
        most_effort = pl_cpu_dnnl_amx() ? 0.0 : most_effort / 3;
    *g = (struct pl_cpu_winograd){.backend = p->backend, .lanes = p->backend->lanes, .x = x, .y = y, .y_blocked = y_blocked,
                                  .top = op->pad_begin[0], .left = op->pad_begin[1], .taps = taps, .outputs = SIDE + 1 - taps, .bias = op->bias};
    g->x_blocked = y_blocked && op->lx[0].block > 1;
    g->x_half = g->x_blocked && op->lx[0].bf16;
    g->y_half = op->ly.bf16;
    describe(g, false, &forward);
    if (op->train && op->need_dx[0])
        plan_data(g, most_effort);
    if (effort_of_all(g, &forward) > most_effort || pl_cpu_scratch(p->backend, (size_t)scratch_floats(g, op->train) * sizeof(float)) < 0) {
        pl_free(g);
        return NULL;
    }
    if (p->backend->dnnl != NULL) /* it may be at work on the layers around */
        pl_cpu_take_team();
    return g;
}

void pl_cpu_winograd_destroy(struct pl_cpu_winograd *g) { pl_free(g); }

static void run_blocks(struct pl_cpu_pass *p) {
    const struct pl_backend *b = p->g->backend;
    const struct pl_cpu_lanes *l = p->g->lanes;
    pl_cpu_parts(b, p->to.channels / l->lanes, 1, l->winograd.filters, p);
    for (p->first = 0; p->first < p->tiles; p->first += p->block) {
        p->count = least(p->tiles - p->first, p->block);
        pl_cpu_parts(b, p->count, 4, l->winograd.patches, p);
        pl_cpu_parts(b, POINTS * p->panels, 1, l->winograd.products, p);
        pl_cpu_parts(b, p->count, 4, l->winograd.outputs, p);
    }
}

/* The tensor in blocks: itself, or a copy in the scratch memory. */
static const void *in_blocks(const struct pl_cpu_winograd *g, const struct pl_cpu_dims *d, bool blocked, const float *t, float **scratch) {
    float *copy = *scratch;
    *scratch += copied(g, blocked, d);
    if (blocked)
        return t;
    pl_cpu_copy_blocks(g->backend, d, g->lanes->lanes, t, copy, true);
    return copy;
}

/* From `from` to `to`, two of x and y. */
static void convolve(struct pl_cpu_winograd *g, const struct pl_io *io, bool data, const float *from, float *to) {
    struct pl_cpu_pass p;
    float *scratch = (float *)(void *)g->backend->scratch;
    const struct pl_cpu_dims *in = data ? &g->y : &g->x, *out = data ? &g->x : &g->y;
    bool out_blocked = data ? g->x_blocked : g->y_blocked;
    describe(g, data, &p);
    p.io = io;
    p.in = in_blocks(g, in, data ? g->y_blocked : g->x_blocked, from, &scratch);
    p.out = out_blocked ? to : scratch;
    p.in_half = data ? g->y_half : g->x_half;
    p.out_half = data ? g->x_half : g->y_half;
    scratch += copied(g, out_blocked, out);
    if (g->bias && !data) {
        p.bias = scratch;
        memset(scratch, 0, (size_t)p.to.channels * sizeof *scratch);
        memcpy(scratch, io->p[1], (size_t)p.to.real * sizeof *scratch);
        scratch += up(p.to.channels, 16);
    }
    lay_out(&p, scratch);
    run_blocks(&p);
    if (!out_blocked)
        pl_cpu_copy_blocks(g->backend, out, g->lanes->lanes, p.out, to, false);
}

void pl_cpu_winograd_forward(struct pl_cpu_winograd *g, const struct pl_io *io) { convolve(g, io, false, io->x[0], io->y); }

static void bias_gradient(const struct pl_cpu_pass *p) {
    float *db = p->io->dp[1];
    if (p->first == 0 && !p->io->accumulate)
        memset(db, 0, (size_t)p->to.real * sizeof *db);
    const float *sums = p->m.at + (SIDE + 1) * p->m.step;
    for (int64_t t = 0; t < p->count; t++)
        for (int64_t k = 0; k < p->to.real; k++)
            db[k] += sums[t * p->m.ld + k];
}

static void begin_adjoint(struct pl_cpu_pass *p, const struct pl_cpu_pass *weights, float *dx, float *scratch) {
    const struct pl_cpu_winograd *g = weights->g;
    describe_adjoint(g, weights, p);
    scratch += lay_out_adjoint(weights, p, scratch);
    p->out = g->x_blocked ? dx : scratch;
    memset(p->out, 0, (size_t)(g->x.n * p->to.channels * p->to.h * p->to.w) * sizeof(float));
    pl_cpu_parts(g->backend, p->to.channels / g->lanes->lanes, 1, g->lanes->winograd.filters, p);
}

/* What the tiles of the block that the other pass is at bring. */
static void adjoint_block(struct pl_cpu_pass *p, const struct pl_cpu_pass *weights) {
    const struct pl_cpu_winograd *g = weights->g;
    p->first = weights->first;
    p->count = weights->count;
    int64_t samples = (p->first + p->count - 1) / p->per_sample - p->first / p->per_sample + 1;
    pl_cpu_parts(g->backend, POINTS * p->panels, 1, g->lanes->winograd.products, p);
    pl_cpu_parts(g->backend, samples * (p->to.channels / g->lanes->lanes), 1, g->lanes->winograd.patch_gradients, p);
}

static void backward_tiles(struct pl_cpu_winograd *g, const struct pl_io *io, bool weights, bool data) {
    const struct pl_backend *b = g->backend;
    const struct pl_cpu_lanes *l = g->lanes;
    struct pl_cpu_pass p, a;
    float *scratch = (float *)(void *)b->scratch;
    describe(g, false, &p);
    p.io = io;
    if (weights)
        p.in = in_blocks(g, &g->x, g->x_blocked, io->x[0], &scratch);
    p.gradient = in_blocks(g, &g->y, g->y_blocked, io->dy, &scratch);
    p.in_half = g->x_half;
    p.gradient_half = g->y_half;
    scratch += lay_out_weights(&p, scratch);
    if (data)
        begin_adjoint(&a, &p, io->dx[0], scratch);
    for (; p.first < p.tiles; p.first += p.block) {
        p.count = least(p.tiles - p.first, p.block);
        pl_cpu_parts(b, p.count, 4, l->winograd.gradients, &p);
        if (data)
            adjoint_block(&a, &p);
        if (!weights)
            continue;
        pl_cpu_parts(b, p.count, 4, l->winograd.patches, &p);
        pl_cpu_parts(b, POINTS * p.panels, 1, l->winograd.weights, &p);
        if (g->bias && io->dp[1] != NULL)
            bias_gradient(&p);
    }
    if (weights)
        pl_cpu_parts(b, p.to.real, 8, l->winograd.filter_gradients, &p);
    if (data && !g->x_blocked)
        pl_cpu_copy_blocks(b, &g->x, l->lanes, a.out, io->dx[0], false);
}

bool pl_cpu_winograd_backward(struct pl_cpu_winograd *g, const struct pl_io *io) {
    bool weights = io->dp[0] != NULL, data = g->data && io->dx[0] != NULL;
    if (weights || (data && g->adjoint))
        backward_tiles(g, io, weights, data && g->adjoint);
    if (data && !g->adjoint)
        convolve(g, io, true, io->dy, io->dx[0]);
    return data;
}
