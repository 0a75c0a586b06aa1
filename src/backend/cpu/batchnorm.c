/* batchnorm: Ioffe & Szegedy 2015, over batch and plane of the real rows. Sums are taken in double
 * over float's exact products, so mean and variance come from one pass. In training the gradients
 * are those of the batch's own statistics; in evaluation the running ones are constants. With op.sync the batch
 * is that of all ranks: a pass stops after its sums, has them added up, and goes on.
 * Channels are cut over the threads, by whole blocks; the loops run along what lies beside each other:
 * a plane, in blocked layouts the channels of a block, without planes ([N, C]) all channels. */
#include "backend/cpu/bf16.h"

#include <math.h>
#include <string.h>

#define HALVES 16 /* channels of a block of bf16 */
typedef float vec PL_HALF_VECTOR(float, HALVES);
typedef uint32_t words PL_HALF_VECTOR(uint32_t, HALVES);
typedef uint16_t halves PL_HALF_VECTOR(uint16_t, HALVES);
#define WIDEN(p) PL_WIDEN(p, vec, words, halves)
#define ROUND(p, v) PL_ROUND(p, v, words, halves)
#define RUN 64

struct state {
    int64_t channels, plane, capacity;
    int64_t block;             /* channels beside each other; 1: canonical */
    bool half;                 /* these are bf16 */
    double *sum, *sum2, *over; /* [C], [C], [1] scratch of the sums, and the rows that they are over; in one piece */
    double *mean, *var, *inv;  /* [C] of the last forward; var biased, inv = 1 / sqrt(var + eps) */
    double *a, *b, *c;         /* [C] scratch: factors of the last loop */
    double epsilon;
    bool relu;                 /* y ends with a rectifier */
    bool batch;                /* the last forward used the batch's statistics */
    int64_t rows;
    double values;             /* of a channel, that the statistics are over: of all ranks with op.sync */
};

enum stage { WHOLE, SUMS, REST }; /* of a pass */
struct job {
    struct state *s;
    const struct pl_io *io;
    bool need_dx;
    enum stage stage;
};

static pl_status plan(struct pl_plan *p) {
    struct pl_cpu_dims d = pl_cpu_dims(&p->op.x[0]);
    for (int i = 0; i < p->op.params; i++)
        if (pl_shape_elems(&p->op.p[i]) != d.c)
            return pl_cpu_refuse(&p->op, "a parameter has not one element a channel");
    size_t doubles = (size_t)d.c * 8 + 1;
    struct state *s =
        pl_alloc(sizeof *s + doubles * sizeof(double), "a batch normalisation's plan");
    if (s == NULL)
        return PL_ERR_MEMORY;
    p->state = s;
    s->channels = d.c;
    s->plane = d.h * d.w;
    s->capacity = d.n;
    s->block = p->op.lx[0].block > 1 && p->op.ly.block > 1 ? p->op.lx[0].block : 1;
    s->half = s->block == HALVES && p->op.lx[0].bf16;
    s->epsilon = p->op.epsilon;
    s->relu = p->op.relu;
    s->mean = (double *)(void *)(s + 1);
    s->var = s->mean + d.c;
    s->inv = s->var + d.c;
    s->a = s->inv + d.c;
    s->b = s->a + d.c;
    s->c = s->b + d.c;
    s->sum = s->c + d.c;
    s->sum2 = s->sum + d.c;
    s->over = s->sum2 + d.c;
    return PL_OK;
}

/* dy of the rectifier's input, in place and just before it is read; y NULL: there is none */
PL_WITHIN void mask(const float *y, const float *dy, int64_t n) {
    float *restrict to = (float *)(uintptr_t)dy;
    if (y == NULL)
        return;
    for (int64_t i = 0; i < n; i++) {
        float v = to[i];
        to[i] = y[i] > 0.0f ? v : 0.0f;
    }
}

/* *sum = sum of u, *sum2 = sum of u v over one channel's planes */
PL_WITHIN void plane_sums(const float *y, const float *u, const float *v, int64_t rows, int64_t row,
                              int64_t plane, double *sum, double *sum2) {
    double l1[8] = {0}, l2[8] = {0};
    for (int64_t n = 0; n < rows; n++) {
        const float *a = u + n * row, *b = v + n * row;
        int64_t i = 0;
        mask(y == NULL ? NULL : y + n * row, a, plane);
        for (; i + 8 <= plane; i += 8)
            for (int k = 0; k < 8; k++) {
                l1[k] += (double)a[i + k];
                l2[k] += (double)a[i + k] * (double)b[i + k];
            }
        for (; i < plane; i++) {
            l1[i & 7] += (double)a[i];
            l2[i & 7] += (double)a[i] * (double)b[i];
        }
    }
    *sum = ((l1[0] + l1[1]) + (l1[2] + l1[3])) + ((l1[4] + l1[5]) + (l1[6] + l1[7]));
    *sum2 = ((l2[0] + l2[1]) + (l2[2] + l2[3])) + ((l2[4] + l2[5]) + (l2[6] + l2[7]));
}

/* The same of a block's channels, which lie beside each other, from element `at` of a sample on. */
PL_WITHIN void block_sums(const struct state *s, int64_t block, const float *y, const float *u, const float *v, int64_t rows, int64_t at,
                          double *sum, double *sum2) {
    double l1[16] = {0}, l2[16] = {0};
    for (int64_t n = 0; n < rows; n++, at += s->channels * s->plane) {
        mask(y == NULL ? NULL : y + at, u + at, s->plane * block);
        for (int64_t i = at; i < at + s->plane * block; i += block)
            for (int64_t k = 0; k < block; k++) {
                l1[k] += (double)u[i + k];
                l2[k] += (double)u[i + k] * (double)v[i + k];
            }
    }
    for (int64_t k = 0; k < block; k++) {
        sum[k] = l1[k];
        sum2[k] = l2[k];
    }
}

/* The same of bf16. Their products are exact in float, and RUN of them are added in float. */
PL_WITHIN void block_sums_half(const struct state *s, const uint16_t *y, const uint16_t *u, const uint16_t *v, int64_t rows, int64_t at,
                               double *sum, double *sum2) {
    double l1[HALVES] = {0}, l2[HALVES] = {0};
    for (int64_t n = 0; n < rows; n++, at += s->channels * s->plane)
        for (int64_t i = at, end = at + s->plane * HALVES; i < end;) {
            vec run1 = {0}, run2 = {0};
            for (int64_t last = end - i > RUN * HALVES ? i + RUN * HALVES : end; i < last; i += HALVES) {
                vec a = WIDEN(u + i);
                if (y != NULL) {
                    a = (vec)((words)a & (words)(WIDEN(y + i) > 0.0f));
                    ROUND((uintptr_t)(u + i), a); /* backward may overwrite dy */
                }
                run1 += a;
                run2 += a * WIDEN(v + i);
            }
            for (int k = 0; k < HALVES; k++) {
                l1[k] += (double)run1[k];
                l2[k] += (double)run2[k];
            }
        }
    memcpy(sum, l1, sizeof l1);
    memcpy(sum2, l2, sizeof l2);
}

/* s->sum, s->sum2 of channels [begin, end); y: u is to be masked by it, or NULL */
PL_WITHIN void sums(struct state *s, bool half, const float *y, const float *u, const float *v, int64_t rows,
                    int64_t begin, int64_t end) {
    int64_t row = s->channels * s->plane;
    if (s->block > 1) {
        for (int64_t c = begin; c < end; c += s->block)
            if (half)
                block_sums_half(s, (const void *)y, (const void *)u, (const void *)v, rows, c * s->plane, &s->sum[c], &s->sum2[c]);
            else if (s->block == 8)
                block_sums(s, 8, y, u, v, rows, c * s->plane, &s->sum[c], &s->sum2[c]);
            else
                block_sums(s, s->block, y, u, v, rows, c * s->plane, &s->sum[c], &s->sum2[c]);
        return;
    }
    if (s->plane > 1) {
        for (int64_t c = begin; c < end; c++)
            plane_sums(y == NULL ? NULL : y + c * s->plane, u + c * s->plane, v + c * s->plane, rows, row, s->plane, &s->sum[c],
                       &s->sum2[c]);
        return;
    }
    for (int64_t c = begin; c < end; c++)
        s->sum[c] = s->sum2[c] = 0.0;
    for (int64_t n = 0; n < rows; n++) {
        mask(y == NULL ? NULL : y + n * row + begin, u + n * row + begin, end - begin);
        for (int64_t c = begin; c < end; c++) {
            s->sum[c] += (double)u[n * row + c];
            s->sum2[c] += (double)u[n * row + c] * (double)v[n * row + c];
        }
    }
}

/* What is below `low` becomes it: 0 with a rectifier, otherwise nothing. Not a number stays. */
PL_WITHIN float end_of(float v, float low) { return v < low ? low : v; }

/* y = a (x - b) + c of one sample's block */
PL_WITHIN void forward_block(const struct state *s, int64_t c, int64_t block, const float *x, float *y) {
    float a[16], b[16], add[16], low = s->relu ? 0.0f : -INFINITY;
    for (int64_t k = 0; k < block; k++) {
        a[k] = (float)s->a[c + k];
        b[k] = (float)s->b[c + k];
        add[k] = (float)s->c[c + k];
    }
    for (int64_t i = 0; i < s->plane; i++)
        for (int64_t k = 0; k < block; k++)
            y[i * block + k] = end_of((x[i * block + k] - b[k]) * a[k] + add[k], low);
}

PL_WITHIN void forward_block_half(const struct state *s, int64_t c, const uint16_t *x, uint16_t *y) {
    vec a, b, add, low = (vec){0} + (s->relu ? 0.0f : -INFINITY);
    for (int k = 0; k < HALVES; k++) {
        a[k] = (float)s->a[c + k];
        b[k] = (float)s->b[c + k];
        add[k] = (float)s->c[c + k];
    }
    for (int64_t i = 0; i < s->plane * HALVES; i += HALVES) {
        vec v = (WIDEN(x + i) - b) * a + add;
        words below = (words)(v < low);
        v = (vec)((below & (words)low) | (~below & (words)v));
        ROUND(y + i, v);
    }
}

/* y = a (x - b) + c for rows [0, rows), 0 behind them. The mean b is taken off before anything is
 * scaled, as it may be much larger than what is left. */
PL_WITHIN void forward_rows(const struct state *s, bool half, const float *x, float *y, int64_t rows,
                                int64_t begin, int64_t end) {
    int64_t row = s->channels * s->plane;
    float low = s->relu ? 0.0f : -INFINITY;
    for (int64_t n = 0; n < s->capacity; n++) {
        if (n >= rows) {
            memset(pl_from(y, n * row + begin * s->plane, s->half), 0,
                   (size_t)((end - begin) * s->plane) * pl_element_bytes(s->half));
            continue;
        }
        if (s->block > 1) {
            for (int64_t c = begin; c < end; c += s->block)
                if (half)
                    forward_block_half(s, c, pl_from(x, n * row + c * s->plane, true), pl_from(y, n * row + c * s->plane, true));
                else if (s->block == 8)
                    forward_block(s, c, 8, x + n * row + c * s->plane, y + n * row + c * s->plane);
                else
                    forward_block(s, c, s->block, x + n * row + c * s->plane, y + n * row + c * s->plane);
            continue;
        }
        if (s->plane == 1) {
            for (int64_t c = begin; c < end; c++)
                y[n * row + c] =
                    end_of((float)(((double)x[n * row + c] - s->b[c]) * s->a[c] + s->c[c]), low);
            continue;
        }
        for (int64_t c = begin; c < end; c++) {
            const float *from = x + n * row + c * s->plane;
            float *to = y + n * row + c * s->plane;
            float a = (float)s->a[c], b = (float)s->b[c], add = (float)s->c[c];
            for (int64_t i = 0; i < s->plane; i++)
                to[i] = end_of((from[i] - b) * a + add, low);
        }
    }
}

static void statistics(const struct job *j, int64_t begin, int64_t end) {
    struct state *s = j->s;
    double m = s->values;
    for (int64_t c = begin; c < end; c++) {
        if (s->batch) {
            s->mean[c] = m > 0 ? s->sum[c] / m : 0.0;
            double var = m > 0 ? s->sum2[c] / m - s->mean[c] * s->mean[c] : 0.0;
            s->var[c] = isinf(s->sum2[c]) ? (double)NAN : var < 0.0 ? 0.0 : var; /* squares beyond float: the loss shows it */
        } else {
            s->mean[c] = (double)j->io->p[2][c];
            s->var[c] = (double)j->io->p[3][c];
        }
        s->inv[c] = 1.0 / sqrt(s->var[c] + s->epsilon);
        s->a[c] = (double)j->io->p[0][c] * s->inv[c];
        s->b[c] = s->mean[c];
        s->c[c] = (double)j->io->p[1][c];
    }
}

PL_WITHIN void forward_of(const struct job *j, bool half, int64_t begin, int64_t end) {
    struct state *s = j->s;
    begin *= s->block;
    end *= s->block;
    if (s->batch && j->stage != REST)
        sums(s, half, NULL, j->io->x[0], j->io->x[0], j->io->rows, begin, end);
    if (j->stage == SUMS)
        return;
    statistics(j, begin, end);
    forward_rows(s, half, j->io->x[0], j->io->y, j->io->rows, begin, end);
}

PL_CLONES
static void forward_channels(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    forward_of(arg, false, begin, end);
}

PL_HALVES
static void forward_channels_half(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    forward_of(arg, true, begin, end);
}

static void put(float *dp, bool accumulate, int64_t c, double v) {
    if (dp != NULL)
        dp[c] = accumulate ? dp[c] + (float)v : (float)v;
}

/* Of channel c: sum of dy (x - mean) */
static double centred(const struct state *s, int64_t c) { return s->sum2[c] - s->mean[c] * s->sum[c]; }

/* The parameters' gradients, by sums over this rank's rows: those of all ranks are added up later. */
static void gradients(const struct job *j, int64_t begin, int64_t end) {
    const struct state *s = j->s;
    const struct pl_io *io = j->io;
    double m = s->values;
    for (int64_t c = begin; c < end; c++) {
        put(io->dp[0], io->accumulate, c, centred(s, c) * s->inv[c]);
        put(io->dp[1], io->accumulate, c, s->sum[c]);
        if (s->batch) {
            double unbiased = m > 1 ? s->var[c] * m / (m - 1) : s->var[c];
            put(io->dp[2], io->accumulate, c, (double)s->rows * s->mean[c]);
            put(io->dp[3], io->accumulate, c, (double)s->rows * unbiased);
        } else {
            put(io->dp[2], io->accumulate, c, (double)s->rows * (double)io->p[2][c]);
            put(io->dp[3], io->accumulate, c, (double)s->rows * (double)io->p[3][c]);
        }
    }
}

/* a, b, c for dx = a (dy - c - b (x - mean)). */
static void factors(const struct job *j, int64_t begin, int64_t end) {
    struct state *s = j->s;
    bool own = s->batch && s->values > 0;
    for (int64_t c = begin; c < end; c++) {
        s->a[c] = (double)j->io->p[0][c] * s->inv[c];
        s->b[c] = own ? centred(s, c) / s->values * s->inv[c] * s->inv[c] : 0.0;
        s->c[c] = own ? s->sum[c] / s->values : 0.0;
    }
}

PL_WITHIN void backward_block(const struct state *s, int64_t c, int64_t block, const float *x, const float *dy, float *dx) {
    double a[16], b[16], less[16];
    for (int64_t k = 0; k < block; k++) {
        a[k] = s->a[c + k];
        b[k] = s->b[c + k];
        less[k] = s->c[c + k] - s->b[c + k] * s->mean[c + k];
    }
    for (int64_t i = 0; i < s->plane; i++)
        for (int64_t k = 0; k < block; k++)
            dx[i * block + k] = (float)(a[k] * ((double)dy[i * block + k] - less[k] - b[k] * (double)x[i * block + k]));
}

/* In float, which has more digits than what is read and written. */
PL_WITHIN void backward_block_half(const struct state *s, int64_t c, const uint16_t *x, const uint16_t *dy, uint16_t *dx) {
    vec a, b, mean, less;
    for (int k = 0; k < HALVES; k++) {
        a[k] = (float)s->a[c + k];
        b[k] = (float)s->b[c + k];
        mean[k] = (float)s->mean[c + k];
        less[k] = (float)s->c[c + k];
    }
    for (int64_t i = 0; i < s->plane * HALVES; i += HALVES) {
        vec v = a * (WIDEN(dy + i) - less - b * (WIDEN(x + i) - mean));
        ROUND(dx + i, v);
    }
}

/* In double: with few elements a channel dx is a small difference of large terms. */
PL_WITHIN void backward_rows(const struct state *s, bool half, const struct pl_io *io, int64_t begin, int64_t end) {
    int64_t row = s->channels * s->plane;
    float *dx = io->dx[0];
    for (int64_t n = 0; n < s->capacity; n++) {
        if (n >= s->rows) {
            memset(pl_from(dx, n * row + begin * s->plane, s->half), 0,
                   (size_t)((end - begin) * s->plane) * pl_element_bytes(s->half));
            continue;
        }
        if (s->block > 1) {
            for (int64_t c = begin; c < end; c += s->block) {
                int64_t at = n * row + c * s->plane;
                if (half)
                    backward_block_half(s, c, pl_from(io->x[0], at, true), pl_from(io->dy, at, true), pl_from(dx, at, true));
                else if (s->block == 8)
                    backward_block(s, c, 8, io->x[0] + at, io->dy + at, dx + at);
                else
                    backward_block(s, c, s->block, io->x[0] + at, io->dy + at, dx + at);
            }
            continue;
        }
        if (s->plane == 1) {
            const float *x = io->x[0] + n * row, *dy = io->dy + n * row;
            for (int64_t c = begin; c < end; c++)
                dx[n * row + c] = (float)(s->a[c] * ((double)dy[c] - s->c[c] -
                                                     s->b[c] * ((double)x[c] - s->mean[c])));
            continue;
        }
        for (int64_t c = begin; c < end; c++) {
            int64_t at = n * row + c * s->plane;
            const float *x = io->x[0] + at, *dy = io->dy + at;
            double a = s->a[c], b = s->b[c], less = s->c[c] - s->b[c] * s->mean[c];
            for (int64_t i = 0; i < s->plane; i++)
                dx[at + i] = (float)(a * ((double)dy[i] - less - b * (double)x[i]));
        }
    }
}

PL_WITHIN void backward_of(const struct job *j, bool half, int64_t begin, int64_t end) {
    begin *= j->s->block;
    end *= j->s->block;
    if (j->stage != REST) {
        sums(j->s, half, j->s->relu ? j->io->y : NULL, j->io->dy, j->io->x[0], j->s->rows, begin, end);
        gradients(j, begin, end);
    }
    if (j->stage == SUMS)
        return;
    factors(j, begin, end);
    if (j->need_dx)
        backward_rows(j->s, half, j->io, begin, end);
}

PL_CLONES
static void backward_channels(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    backward_of(arg, false, begin, end);
}

PL_HALVES
static void backward_channels_half(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    backward_of(arg, true, begin, end);
}

static int64_t grain(const struct state *s) {
    return PL_CPU_GRAIN / (s->capacity * s->plane * s->block) + 1;
}

static void run(struct pl_plan *p, struct job *j, enum stage stage, pl_cpu_part_fn *part) {
    j->stage = stage;
    pl_cpu_parts(p->backend, j->s->channels / j->s->block, grain(j->s), part, j);
}

static bool over_ranks(const struct pl_plan *p, const struct pl_io *io) {
    const struct state *s = p->state;
    return p->op.sync && s->batch && io->sum != NULL;
}

static pl_status forward(struct pl_plan *p, const struct pl_io *io) {
    struct state *s = p->state;
    struct job j = {s, io, false, WHOLE};
    pl_cpu_part_fn *part = s->half ? forward_channels_half : forward_channels;
    s->batch = io->train;
    s->rows = io->rows;
    s->values = (double)(io->rows * s->plane);
    if (over_ranks(p, io)) {
        run(p, &j, SUMS, part);
        *s->over = (double)io->rows;
        PL_TRY(io->sum(io->sum_arg, s->sum, 2 * s->channels + 1));
        s->values = *s->over * (double)s->plane;
    }
    run(p, &j, over_ranks(p, io) ? REST : WHOLE, part);
    return PL_OK;
}

static pl_status backward(struct pl_plan *p, const struct pl_io *io) {
    struct state *s = p->state;
    struct job j = {s, io, p->op.need_dx[0] && io->dx[0] != NULL, WHOLE};
    pl_cpu_part_fn *part = s->half ? backward_channels_half : backward_channels;
    if (!over_ranks(p, io)) {
        run(p, &j, WHOLE, part);
        return PL_OK;
    }
    run(p, &j, SUMS, part);
    if (!j.need_dx) /* on every rank */
        return PL_OK;
    PL_TRY(io->sum(io->sum_arg, s->sum, 2 * s->channels));
    run(p, &j, REST, part);
    return PL_OK;
}

const struct pl_cpu_kind pl_cpu_batchnorm = {
    .layouts = PL_CPU_SAME, .halves = PL_CPU_HALF_BLOCKS, .rectifies = true, .plan = plan, .destroy = pl_cpu_destroy_state, .forward = forward, .backward = backward};
