/* conv_winograd: 3x3 and 5x5 convolutions of stride 1 by minimal filtering (winograd.h), on activations in
 * blocks of eight channels; canonical ones are copied, their channels filled up with zeros. The output is
 * cut into tiles; a tile's patch of the input and the filters are transformed, and what was a convolution
 * becomes 36 independent matrix products, one for each point:
 *
 *     forward    M[tile, k]  = V[tile, c] U[c, k]      y  = outputs of M
 *     data       the same on dy with the filters turned round
 *     weights    dU[k, c]    = W[tile, k]^T V[tile, c]  dw = filters of dU
 *
 * That is 4 times (5x5: 2.8 times) fewer multiplications. The tiles go through in blocks, so that what
 * lies between the stages stays in the caches. Sums run in an order that knows nothing of threads.
 *
 * Rounding: the largest error of an output is five to ten times that of a direct sum in fp32, as with other
 * libraries' F(4x4, 3x3) (test_ops bounds it). */
#include "backend/cpu/cpu.h"
#include "backend/cpu/winograd.h"

#include <string.h>

#define BLOCK_BYTES (2 * 1024 * 1024) /* between the stages, a thread */
#define FEWEST_TILES 16     /* of a batch, below which the filters' transforms cost more than the products save */
#define MOST_EFFORT 0.7     /* multiplications over those of the direct sum: the transforms and copies cost the rest */
#define STAGGER 16          /* floats between matrices: powers of two fall on the same cache sets */

struct pl_cpu_winograd {
    struct pl_backend *backend;
    struct pl_cpu_dims x, y;
    bool x_blocked, y_blocked; /* as others see them */
    int64_t top, left;
    int taps, outputs;
    bool bias;
    bool data; /* takes the data gradient too */
};

/* Channels as they are, and up to whole blocks. */
struct planes {
    int64_t real, channels, h, w;
};

/* 36 matrices [rows, ld], `step` floats apart */
struct matrices {
    float *at;
    int64_t ld, step;
};

struct pass {
    const struct pl_cpu_winograd *g;
    const struct pl_io *io;
    const float *in, *gradient; /* in blocks; forward: x, data: dy, weights: x and dy */
    float *out;                 /* forward: y; data: dx */
    struct planes from, to;
    int64_t top, left;        /* zeros before the first row and column of `from` */
    int64_t across, per_sample, tiles; /* tiles of a row, of a sample, of the batch */
    int64_t block, first, count;       /* tiles at once; those of this block */
    struct matrices v, u, m;  /* patches; filters (or their gradient); products (or dy's tiles) */
    const float *bias;
    bool turned;
};

/* With a canonical output the inputs come canonical as well. */
static bool fits(const struct pl_op *op, const struct pl_cpu_dims *x, const struct pl_cpu_dims *y) {
    if (op->ly.bf16 || (op->ly.block > 1 && op->lx[0].bf16))
        return false;
    int64_t r = op->kernel[0], lx = op->ly.block > 1 ? op->lx[0].block : 0;
    return pl_cpu_eight_lanes() && (lx <= 1 || lx == LANES) && (op->ly.block <= 1 || op->ly.block == LANES) && x->c >= LANES && y->c >= LANES &&
           op->groups == 1 && (r == 3 || r == 5) && op->kernel[1] == r && op->stride[0] == 1 && op->stride[1] == 1 &&
           op->dilation[0] <= 1 && op->dilation[1] <= 1 && op->pad_begin[0] < r && op->pad_begin[1] < r;
}

static void describe(const struct pl_cpu_winograd *g, bool data, struct pass *p) {
    struct planes x = {g->x.c, up(g->x.c, LANES), g->x.h, g->x.w}, y = {g->y.c, up(g->y.c, LANES), g->y.h, g->y.w};
    *p = (struct pass){.g = g, .from = data ? y : x, .to = data ? x : y, .turned = data};
    p->top = data ? g->taps - 1 - g->top : g->top;
    p->left = data ? g->taps - 1 - g->left : g->left;
    p->across = up(p->to.w, g->outputs) / g->outputs;
    p->per_sample = p->across * (up(p->to.h, g->outputs) / g->outputs);
    p->tiles = p->per_sample * g->x.n;
    p->block = BLOCK_BYTES / (int64_t)sizeof(float) / (POINTS * (p->from.channels + p->to.channels));
    p->block = up(p->block < 48 ? 48 : p->block, ROWS) * g->backend->threads;
    if (p->block > up(p->tiles, ROWS))
        p->block = up(p->tiles, ROWS);
}

/* The floats of a tensor in whole blocks, where it has to be copied. */
static int64_t copied(bool blocked, const struct pl_cpu_dims *d) { return blocked ? 0 : up(d->n * up(d->c, LANES) * d->h * d->w, 16); }

static struct matrices place(int64_t rows, int64_t ld, float *scratch, int64_t *used) {
    struct matrices m = {scratch + *used, ld, up(rows * ld, 16) + STAGGER};
    *used += POINTS * m.step + up(ROWS * ld, 16);
    return m;
}

/* Lays the matrices out in the scratch memory; returns the floats they take. */
static int64_t lay_out(struct pass *p, float *scratch) {
    int64_t used = 0, to = up(p->to.channels, COLUMNS);
    p->u = place(to / COLUMNS * p->from.channels, COLUMNS, scratch, &used);
    p->v = place(p->block, p->from.channels, scratch, &used);
    p->m = place(p->block, to, scratch, &used);
    return used;
}

static int64_t lay_out_weights(struct pass *p, float *scratch) {
    int64_t used = 0, c = up(p->from.channels, COLUMNS), k = up(p->to.channels, ROWS);
    p->u = place(k, c, scratch, &used);
    p->v = place(p->block, c + STAGGER, scratch, &used);
    p->m = place(p->block, p->to.channels + STAGGER, scratch, &used);
    return used;
}

/* Multiplications over those of the direct sum. A data gradient has more tiles than the forward pass where that had no
 * padding; it goes elsewhere if that eats the gain, unless activations are blocked already. */
static double effort(const struct pl_cpu_winograd *g, const struct pass *p) {
    double direct = (double)(g->y.n * g->y.h * g->y.w * g->x.c) * (double)(g->y.c * g->taps * g->taps);
    return (double)(POINTS * p->tiles * p->from.channels) * (double)up(p->to.channels, COLUMNS) / direct;
}

struct pl_cpu_winograd *pl_cpu_winograd_create(const struct pl_plan *p) {
    const struct pl_op *op = &p->op;
    struct pl_cpu_dims x = pl_cpu_dims(&op->x[0]), y = pl_cpu_dims(&op->y);
    struct pass forward, data, weights;
    if (!fits(op, &x, &y))
        return NULL;
    struct pl_cpu_winograd *g = pl_alloc(sizeof *g, "a convolution's plan");
    if (g == NULL)
        return NULL;
    int taps = (int)op->kernel[0];
    bool y_blocked = op->ly.block > 1;
    *g = (struct pl_cpu_winograd){.backend = p->backend, .x = x, .y = y, .x_blocked = y_blocked && op->lx[0].block > 1, .y_blocked = y_blocked,
                                  .top = op->pad_begin[0], .left = op->pad_begin[1], .taps = taps, .outputs = SIDE + 1 - taps, .bias = op->bias};
    describe(g, false, &forward);
    describe(g, true, &data);
    weights = forward;
    g->data = op->train && op->need_dx[0] && (y_blocked || effort(g, &data) < MOST_EFFORT);
    int64_t floats[] = {lay_out(&forward, NULL), g->data ? lay_out(&data, NULL) : 0, op->train ? lay_out_weights(&weights, NULL) : 0}, most = 0;
    for (int i = 0; i < 3; i++)
        most = floats[i] > most ? floats[i] : most;
    most += copied(g->x_blocked, &x) + copied(y_blocked, &y);
    if (forward.tiles < FEWEST_TILES || (!y_blocked && effort(g, &forward) > MOST_EFFORT) || pl_cpu_scratch(p->backend, (size_t)most * sizeof(float)) < 0) {
        pl_free(g);
        return NULL;
    }
    p->backend->team = p->backend->dnnl != NULL; /* it may be at work on the layers around */
    return g;
}

void pl_cpu_winograd_destroy(struct pl_cpu_winograd *g) { pl_free(g); }

/* Tile t's sample, and its first row and column of output. */
PL_WITHIN void tile_at(const struct pass *p, int64_t t, int64_t *sample, int64_t *row, int64_t *column) {
    *sample = t / p->per_sample;
    *row = t % p->per_sample / p->across * p->g->outputs;
    *column = t % p->across * p->g->outputs;
}

/* Copies the part of a square that lies inside the planes, zeros outside. */
PL_WITHIN void cut_out(const float *plane, int64_t h, int64_t w, int64_t row, int64_t column, int64_t side, float *out) {
    for (int64_t i = 0; i < side; i++)
        for (int64_t j = 0; j < side; j++) {
            bool inside = row + i >= 0 && row + i < h && column + j >= 0 && column + j < w;
            vec v = {0};
            if (inside)
                v = LOAD(plane + ((row + i) * w + column + j) * LANES);
            STORE(out + (i * side + j) * LANES, v);
        }
}

/* Tiles [begin, end) of the block: their patches to V */
PL_FMA_CLONES
static void patches_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct pass *p = arg;
    const struct planes *x = &p->from;
    float square[POINTS * LANES];
    for (int64_t t = begin; t < end; t++) {
        int64_t sample, row, column;
        tile_at(p, p->first + t, &sample, &row, &column);
        row -= p->top;
        column -= p->left;
        bool inside = row >= 0 && column >= 0 && row + SIDE <= x->h && column + SIDE <= x->w;
        for (int64_t c = 0; c < x->channels; c += LANES) {
            const float *plane = p->in + (sample * x->channels + c) * x->h * x->w;
            float *v = p->v.at + t * p->v.ld + c;
            if (inside) {
                transform_data(plane + (row * x->w + column) * LANES, x->w * LANES, v, p->v.step);
            } else {
                cut_out(plane, x->h, x->w, row, column, SIDE, square);
                transform_data(square, SIDE * LANES, v, p->v.step);
            }
        }
    }
}

/* Blocks of eight filters [begin, end) to U, [panel, depth, 16] at each point; channels that fill up a block are zero in
 * V, so they take any filter. */
PL_FMA_CLONES
static void filters_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct pass *p = arg;
    const int taps = p->g->taps, area = taps * taps;
    int64_t depth = p->from.channels, lane = p->turned ? area : p->from.real * area, next = p->turned ? p->to.real * area : area;
    float filter[MOST_TAPS * MOST_TAPS * LANES];
    for (int64_t b = begin; b < end; b++) {
        float *u = p->u.at + (b / 2 * depth * 2 + b % 2) * LANES;
        const float *w = p->io->p[0] + b * LANES * lane;
        int64_t there = p->to.real - b * LANES, lanes = there < 0 ? 0 : there > LANES ? LANES : there;
        memset(filter, 0, sizeof filter);
        for (int64_t d = 0; d < depth; d++, w += next, u += COLUMNS) {
            for (int q = 0; d < p->from.real && q < area; q++)
                for (int64_t i = 0; i < lanes; i++)
                    filter[(p->turned ? area - 1 - q : q) * LANES + i] = w[i * lane + q];
            if (taps == 3)
                transform_filter(3, filter, u, p->u.step);
            else
                transform_filter(5, filter, u, p->u.step);
        }
    }
}

/* Items [begin, end) of points x panels: M = V U */
PL_FMA_CLONES
static void products_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct pass *p = arg;
    int64_t panels = p->m.ld / COLUMNS, depth = p->from.channels;
    for (int64_t i = begin; i < end; i++) {
        int64_t point = i / panels, panel = i % panels;
        struct product q = {.depth = depth, .a = p->v.at + point * p->v.step, .row = p->v.ld, .next = 1,
                            .b = p->u.at + point * p->u.step + panel * depth * COLUMNS, .ldb = COLUMNS,
                            .c = p->m.at + point * p->m.step + panel * COLUMNS, .ldc = p->m.ld};
        for (int64_t t = 0; t < p->count; t += ROWS, q.a += ROWS * p->v.ld, q.c += ROWS * p->m.ld)
            multiply(&q, ROWS, false);
    }
}

/* Tiles [begin, end) of the block: from M to the output, cut off at its edges */
PL_FMA_CLONES
static void outputs_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct pass *p = arg;
    const struct planes *y = &p->to;
    const int side = p->g->outputs;
    float square[MOST_OUTPUTS * MOST_OUTPUTS * LANES];
    for (int64_t t = begin; t < end; t++) {
        int64_t sample, row, column;
        tile_at(p, p->first + t, &sample, &row, &column);
        bool whole = row + side <= y->h && column + side <= y->w;
        for (int64_t k = 0; k < y->channels; k += LANES) {
            float *plane = p->out + (sample * y->channels + k) * y->h * y->w + (row * y->w + column) * LANES;
            const float *m = p->m.at + t * p->m.ld + k;
            vec bias = {0};
            for (int i = 0; p->bias != NULL && i < LANES && k + i < y->real; i++)
                bias[i] = p->bias[k + i];
            float *to = whole ? plane : square;
            int64_t pitch = (whole ? y->w : side) * LANES;
            if (side == 4)
                transform_output(4, m, p->m.step, bias, to, pitch);
            else
                transform_output(2, m, p->m.step, bias, to, pitch);
            for (int64_t i = 0; !whole && i < side && row + i < y->h; i++)
                for (int64_t j = 0; j < side && column + j < y->w; j++)
                    STORE(plane + (i * y->w + j) * LANES, LOAD(square + (i * side + j) * LANES));
        }
    }
}

static void run_blocks(struct pass *p) {
    const struct pl_backend *b = p->g->backend;
    pl_cpu_parts(b, p->m.ld / LANES, 1, filters_part, p);
    for (p->first = 0; p->first < p->tiles; p->first += p->block) {
        p->count = p->tiles - p->first < p->block ? p->tiles - p->first : p->block;
        pl_cpu_parts(b, p->count, 4, patches_part, p);
        pl_cpu_parts(b, POINTS * (p->m.ld / COLUMNS), 1, products_part, p);
        pl_cpu_parts(b, p->count, 4, outputs_part, p);
    }
}

/* The tensor in blocks: itself, or a copy in the scratch memory. */
static const float *in_blocks(const struct pl_cpu_winograd *g, const struct pl_cpu_dims *d, bool blocked, const float *t, float **scratch) {
    float *copy = *scratch;
    *scratch += copied(blocked, d);
    if (blocked)
        return t;
    pl_cpu_copy_blocks(g->backend, d, LANES, t, copy, true);
    return copy;
}

/* From `from` to `to`, two of x and y. */
static void convolve(struct pl_cpu_winograd *g, const struct pl_io *io, bool data, const float *from, float *to) {
    struct pass p;
    float *scratch = (float *)(void *)g->backend->scratch;
    const struct pl_cpu_dims *in = data ? &g->y : &g->x, *out = data ? &g->x : &g->y;
    bool out_blocked = data ? g->x_blocked : g->y_blocked;
    describe(g, data, &p);
    p.io = io;
    p.in = in_blocks(g, in, data ? g->y_blocked : g->x_blocked, from, &scratch);
    p.out = out_blocked ? to : scratch;
    scratch += copied(out_blocked, out);
    p.bias = g->bias && !data ? io->p[1] : NULL;
    lay_out(&p, scratch);
    run_blocks(&p);
    if (!out_blocked)
        pl_cpu_copy_blocks(g->backend, out, LANES, p.out, to, false);
}

void pl_cpu_winograd_forward(struct pl_cpu_winograd *g, const struct pl_io *io) { convolve(g, io, false, io->x[0], io->y); }

bool pl_cpu_winograd_data(struct pl_cpu_winograd *g, const struct pl_io *io) {
    if (g->data)
        convolve(g, io, true, io->dy, io->dx[0]);
    return g->data;
}

/* Tiles [begin, end) of the block: their gradients to W */
PL_FMA_CLONES
static void gradients_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct pass *p = arg;
    const struct planes *y = &p->to;
    const int side = p->g->outputs;
    float square[MOST_OUTPUTS * MOST_OUTPUTS * LANES];
    for (int64_t t = begin; t < end; t++) {
        int64_t sample, row, column;
        tile_at(p, p->first + t, &sample, &row, &column);
        bool whole = row + side <= y->h && column + side <= y->w;
        for (int64_t k = 0; k < y->channels; k += LANES) {
            const float *plane = p->gradient + (sample * y->channels + k) * y->h * y->w;
            const float *from = plane + (row * y->w + column) * LANES;
            if (!whole) {
                cut_out(plane, y->h, y->w, row, column, side, square);
                from = square;
            }
            int64_t pitch = (whole ? y->w : side) * LANES;
            float *w = p->m.at + t * p->m.ld + k;
            if (side == 4)
                transform_gradient(4, from, pitch, w, p->m.step);
            else
                transform_gradient(2, from, pitch, w, p->m.step);
        }
    }
}

/* Items [begin, end) of points x panels of input channels: dU (+)= W^T V */
PL_FMA_CLONES
static void weights_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct pass *p = arg;
    int64_t panels = p->u.ld / COLUMNS;
    for (int64_t i = begin; i < end; i++) {
        int64_t point = i / panels, c = i % panels * COLUMNS;
        struct product q = {.depth = p->count, .a = p->m.at + point * p->m.step, .row = 1, .next = p->m.ld,
                            .b = p->v.at + point * p->v.step + c, .ldb = p->v.ld,
                            .c = p->u.at + point * p->u.step + c, .ldc = p->u.ld};
        for (int64_t k = 0; k < p->to.channels; k += ROWS, q.a += ROWS, q.c += ROWS * p->u.ld)
            multiply(&q, ROWS, p->first > 0);
    }
}

/* Output channels [begin, end): dw from dU. A tile's value at point (1, 1) is the sum of its dy. */
PL_FMA_CLONES
static void filter_gradients_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct pass *p = arg;
    const int taps = p->g->taps, area = taps * taps;
    float filter[MOST_TAPS * MOST_TAPS * LANES];
    for (int64_t k = begin; k < end; k++)
        for (int64_t c = 0; c < p->from.channels; c += LANES) {
            const float *u = p->u.at + k * p->u.ld + c;
            float *dw = p->io->dp[0] + (k * p->from.real + c) * area;
            int64_t lanes = p->from.real - c < LANES ? p->from.real - c : LANES;
            if (taps == 3)
                gather_filter(3, u, p->u.step, filter);
            else
                gather_filter(5, u, p->u.step, filter);
            for (int64_t i = 0; i < lanes; i++)
                for (int q = 0; q < area; q++)
                    dw[i * area + q] = filter[q * LANES + i] + (p->io->accumulate ? dw[i * area + q] : 0.0f);
        }
}

static void bias_gradient(const struct pass *p) {
    float *db = p->io->dp[1];
    if (p->first == 0 && !p->io->accumulate)
        memset(db, 0, (size_t)p->to.real * sizeof *db);
    const float *sums = p->m.at + (SIDE + 1) * p->m.step;
    for (int64_t t = 0; t < p->count; t++)
        for (int64_t k = 0; k < p->to.real; k++)
            db[k] += sums[t * p->m.ld + k];
}

void pl_cpu_winograd_weights(struct pl_cpu_winograd *g, const struct pl_io *io) {
    const struct pl_backend *b = g->backend;
    struct pass p;
    float *scratch = (float *)(void *)b->scratch;
    describe(g, false, &p);
    p.io = io;
    p.in = in_blocks(g, &g->x, g->x_blocked, io->x[0], &scratch);
    p.gradient = in_blocks(g, &g->y, g->y_blocked, io->dy, &scratch);
    lay_out_weights(&p, scratch);
    for (; p.first < p.tiles; p.first += p.block) {
        p.count = p.tiles - p.first < p.block ? p.tiles - p.first : p.block;
        pl_cpu_parts(b, p.count, 4, patches_part, &p);
        pl_cpu_parts(b, p.count, 4, gradients_part, &p);
        pl_cpu_parts(b, POINTS * (p.u.ld / COLUMNS), 1, weights_part, &p);
        if (g->bias && io->dp[1] != NULL)
            bias_gradient(&p);
    }
    pl_cpu_parts(b, p.to.real, 8, filter_gradients_part, &p);
}
