/* conv_winograd: 3x3 and 5x5 convolutions of stride 1 on blocked activations by minimal filtering
 * (winograd.h). The output is cut into tiles; a tile's patch of the input and the filters are
 * transformed, and what was a convolution becomes 36 independent matrix products, one for each point:
 *
 *     forward    M[tile, k]  = V[tile, c] U[c, k]      y  = outputs of M
 *     data       the same on dy with the filters turned round
 *     weights    dU[k, c]    = W[tile, k]^T V[tile, c]  dw = filters of dU
 *
 * That is 4 times (5x5: 2.8 times) fewer multiplications. The tiles go through in blocks, so that what
 * lies between the stages stays in the caches. Sums run in an order that knows nothing of threads.
 *
 * Rounding: in fp32 the largest error is about ten times that of a direct sum (test_ops bounds it). */
#include "backend/cpu/cpu.h"
#include "backend/cpu/winograd.h"

#include <string.h>

#define ROWS 6              /* of the kernel of the products, by two vectors of columns */
#define COLUMNS (2 * LANES)
#define BLOCK_BYTES (2 * 1024 * 1024) /* between the stages, a thread */
#define STAGGER 16          /* floats between matrices: powers of two fall on the same cache sets */

struct pl_cpu_winograd {
    struct pl_backend *backend;
    int64_t n, c, k, h, w, oh, ow; /* c, h, w: input; k, oh, ow: output */
    int64_t top, left;
    int taps, outputs;
    bool bias;
};

/* One tensor of planes in blocks of eight channels, and the tiles over it. */
struct planes {
    int64_t channels, h, w;
};

/* 36 matrices [rows, ld], `step` floats apart */
struct matrices {
    float *at;
    int64_t ld, step;
};

struct pass {
    const struct pl_cpu_winograd *g;
    const struct pl_io *io;
    const float *in;          /* forward: x; data: dy; weights: x */
    float *out;               /* forward: y; data: dx */
    struct planes from, to;
    int64_t top, left;        /* zeros before the first row and column of `from` */
    int64_t across, per_sample, tiles; /* tiles of a row, of a sample, of the batch */
    int64_t block, first, count;       /* tiles at once; those of this block */
    struct matrices v, u, m;  /* patches; filters (or their gradient); products (or dy's tiles) */
    const float *bias;
    bool turned;
};

static int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

static bool fits(const struct pl_op *op) {
    int64_t r = op->kernel[0];
    return (op->lx[0].block == LANES || op->lx[0].block <= 1) && op->ly.block == LANES && op->x[0].dim[1] % LANES == 0 && op->groups == 1 && (r == 3 || r == 5) && op->kernel[1] == r &&
           op->stride[0] == 1 && op->stride[1] == 1 && op->dilation[0] <= 1 && op->dilation[1] <= 1 &&
           op->pad_begin[0] < r && op->pad_begin[1] < r;
}

static void describe(const struct pl_cpu_winograd *g, bool data, struct pass *p) {
    *p = (struct pass){.g = g, .top = g->top, .left = g->left, .from = {g->c, g->h, g->w}, .to = {g->k, g->oh, g->ow}, .turned = data};
    if (data) {
        struct planes from = p->from;
        p->from = p->to;
        p->to = from;
        p->top = g->taps - 1 - g->top;
        p->left = g->taps - 1 - g->left;
    }
    p->across = up(p->to.w, g->outputs) / g->outputs;
    p->per_sample = p->across * (up(p->to.h, g->outputs) / g->outputs);
    p->tiles = p->per_sample * g->n;
    p->block = BLOCK_BYTES / (int64_t)sizeof(float) / (POINTS * (p->from.channels + p->to.channels));
    p->block = up(p->block < 48 ? 48 : p->block, ROWS) * g->backend->threads;
    if (p->block > up(p->tiles, ROWS))
        p->block = up(p->tiles, ROWS);
}

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

struct pl_cpu_winograd *pl_cpu_winograd_create(const struct pl_plan *p) {
    const struct pl_op *op = &p->op;
    if (!fits(op))
        return NULL;
    struct pl_cpu_winograd *g = pl_alloc(sizeof *g, "a convolution's plan");
    if (g == NULL)
        return NULL;
    struct pl_cpu_dims x = pl_cpu_dims(&op->x[0]), y = pl_cpu_dims(&op->y);
    int taps = (int)op->kernel[0];
    *g = (struct pl_cpu_winograd){.backend = p->backend, .n = x.n, .c = x.c, .k = y.c, .h = x.h, .w = x.w, .oh = y.h, .ow = y.w,
                                  .top = op->pad_begin[0], .left = op->pad_begin[1], .taps = taps, .outputs = SIDE + 1 - taps, .bias = op->bias};
    struct pass forward, data, weights;
    describe(g, false, &forward);
    describe(g, true, &data);
    weights = forward;
    int64_t floats[] = {lay_out(&forward, NULL), op->train ? lay_out(&data, NULL) : 0, op->train ? lay_out_weights(&weights, NULL) : 0}, most = 0;
    for (int i = 0; i < 3; i++)
        most = floats[i] > most ? floats[i] : most;
    if (pl_cpu_scratch(p->backend, (size_t)most * sizeof(float)) < 0) {
        pl_free(g);
        return NULL;
    }
    p->backend->team = true; /* oneDNN is at work on the layers around */
    return g;
}

void pl_cpu_winograd_destroy(struct pl_cpu_winograd *g) { pl_free(g); }

/* Tile t's sample, and its first row and column of output. */
WITHIN void tile_at(const struct pass *p, int64_t t, int64_t *sample, int64_t *row, int64_t *column) {
    *sample = t / p->per_sample;
    *row = t % p->per_sample / p->across * p->g->outputs;
    *column = t % p->across * p->g->outputs;
}

/* Copies the part of a square that lies inside the planes, zeros outside. */
WITHIN void cut_out(const float *plane, int64_t h, int64_t w, int64_t row, int64_t column, int64_t side, float *out) {
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
PL_CPU_FMA_CLONES
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

/* Blocks of eight filters [begin, end) to U, [panel, depth, 16] at each point */
PL_CPU_FMA_CLONES
static void filters_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct pass *p = arg;
    const int taps = p->g->taps, area = taps * taps;
    int64_t depth = p->from.channels, lane = p->turned ? area : p->from.channels * area, next = p->turned ? p->to.channels * area : area;
    float filter[MOST_TAPS * MOST_TAPS * LANES];
    for (int64_t b = begin; b < end; b++) {
        float *u = p->u.at + (b / 2 * depth * 2 + b % 2) * LANES;
        const float *w = p->io->p[0] + b * LANES * lane;
        bool there = b * LANES < p->to.channels;
        if (!there)
            memset(filter, 0, sizeof filter);
        for (int64_t d = 0; d < depth; d++, w += next, u += COLUMNS) {
            for (int q = 0; there && q < area; q++)
                for (int i = 0; i < LANES; i++)
                    filter[(p->turned ? area - 1 - q : q) * LANES + i] = w[i * lane + q];
            if (taps == 3)
                transform_filter(3, filter, u, p->u.step);
            else
                transform_filter(5, filter, u, p->u.step);
        }
    }
}

/* C[6, 16] = (C +) sum over depth of a[row, depth] b[depth, 16] */
struct product {
    int64_t depth;
    const float *a;
    int64_t row, next; /* of a */
    const float *b;
    int64_t ldb;
    float *c;
    int64_t ldc;
};

#define EACH_ROW(X) X(0) X(1) X(2) X(3) X(4) X(5)
WITHIN void multiply(const struct product *p, bool add) {
    const float *a = p->a, *b = p->b;
#define DECLARE(i) vec left##i = {0}, right##i = {0};
    EACH_ROW(DECLARE)
    for (int64_t d = 0; d < p->depth; d++, a += p->next, b += p->ldb) {
        vec l = LOAD(b), r = LOAD(b + LANES);
#define STEP(i)                          \
    {                                    \
        float one = a[i * p->row];       \
        left##i += one * l;              \
        right##i += one * r;             \
    }
        EACH_ROW(STEP)
    }
    if (add) {
#define ADD(i)                                \
    left##i += LOAD(p->c + i * p->ldc);       \
    right##i += LOAD(p->c + i * p->ldc + LANES);
        EACH_ROW(ADD)
    }
#define KEEP(i)                               \
    STORE(p->c + i * p->ldc, left##i);        \
    STORE(p->c + i * p->ldc + LANES, right##i);
    EACH_ROW(KEEP)
}

/* Items [begin, end) of points x panels: M = V U */
PL_CPU_FMA_CLONES
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
            multiply(&q, false);
    }
}

/* Tiles [begin, end) of the block: from M to the output, cut off at its edges */
PL_CPU_FMA_CLONES
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
            if (p->bias != NULL)
                bias = LOAD(p->bias + k);
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

void pl_cpu_winograd_forward(struct pl_cpu_winograd *g, const struct pl_io *io) {
    struct pass p;
    describe(g, false, &p);
    lay_out(&p, (float *)(void *)g->backend->scratch);
    p.io = io;
    p.in = io->x[0];
    p.out = io->y;
    p.bias = g->bias ? io->p[1] : NULL;
    run_blocks(&p);
}

void pl_cpu_winograd_data(struct pl_cpu_winograd *g, const struct pl_io *io) {
    struct pass p;
    describe(g, true, &p);
    lay_out(&p, (float *)(void *)g->backend->scratch);
    p.io = io;
    p.in = io->dy;
    p.out = io->dx[0];
    run_blocks(&p);
}

/* Tiles [begin, end) of the block: their gradients to W */
PL_CPU_FMA_CLONES
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
            const float *plane = p->io->dy + (sample * y->channels + k) * y->h * y->w;
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
PL_CPU_FMA_CLONES
static void weights_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct pass *p = arg;
    int64_t panels = p->u.ld / COLUMNS;
    for (int64_t i = begin; i < end; i++) {
        int64_t point = i / panels, c = i % panels * COLUMNS;
        struct product q = {.depth = p->count, .a = p->m.at + point * p->m.step, .row = 1, .next = p->m.ld,
                            .b = p->v.at + point * p->v.step + c, .ldb = p->v.ld,
                            .c = p->u.at + point * p->u.step + c, .ldc = p->u.ld};
        for (int64_t k = 0; k < p->to.channels; k += ROWS, q.a += ROWS, q.c += ROWS * p->u.ld) {
            if (p->first == 0)
                multiply(&q, false);
            else
                multiply(&q, true);
        }
    }
}

/* Output channels [begin, end): dw from dU. A tile's value at point (1, 1) is the sum of its dy. */
PL_CPU_FMA_CLONES
static void filter_gradients_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct pass *p = arg;
    const int taps = p->g->taps, area = taps * taps;
    float filter[MOST_TAPS * MOST_TAPS * LANES];
    for (int64_t k = begin; k < end; k++)
        for (int64_t c = 0; c < p->from.channels; c += LANES) {
            const float *u = p->u.at + k * p->u.ld + c;
            float *dw = p->io->dp[0] + (k * p->from.channels + c) * area;
            if (taps == 3)
                gather_filter(3, u, p->u.step, filter);
            else
                gather_filter(5, u, p->u.step, filter);
            for (int i = 0; i < LANES; i++)
                for (int q = 0; q < area; q++)
                    dw[i * area + q] = filter[q * LANES + i] + (p->io->accumulate ? dw[i * area + q] : 0.0f);
        }
}

static void bias_gradient(const struct pass *p) {
    float *db = p->io->dp[1];
    if (p->first == 0 && !p->io->accumulate)
        memset(db, 0, (size_t)p->to.channels * sizeof *db);
    const float *sums = p->m.at + (SIDE + 1) * p->m.step;
    for (int64_t t = 0; t < p->count; t++)
        for (int64_t k = 0; k < p->to.channels; k++)
            db[k] += sums[t * p->m.ld + k];
}

void pl_cpu_winograd_weights(struct pl_cpu_winograd *g, const struct pl_io *io) {
    const struct pl_backend *b = g->backend;
    struct pass p;
    describe(g, false, &p);
    lay_out_weights(&p, (float *)(void *)b->scratch);
    p.io = io;
    p.in = io->x[0];
    for (; p.first < p.tiles; p.first += p.block) {
        p.count = p.tiles - p.first < p.block ? p.tiles - p.first : p.block;
        pl_cpu_parts(b, p.count, 4, patches_part, &p);
        pl_cpu_parts(b, p.count, 4, gradients_part, &p);
        pl_cpu_parts(b, POINTS * (p.u.ld / COLUMNS), 1, weights_part, &p);
        if (g->bias && io->dp[1] != NULL)
            bias_gradient(&p);
    }
    pl_cpu_parts(b, p.to.channels, 8, filter_gradients_part, &p);
}
