/* lrn: local response normalisation across channels, Krizhevsky et al. 2012 in Caffe's form:
 * y = x / s^beta, s = k + alpha / size * (sum of x^2 over `size` channels around this one).
 * Worked on in strips of neighbouring pixels of one sample, all channels of a strip staying in the
 * cache, or where the channels of a block lie beside each other pixel by pixel; s is kept for backward. */
#include "backend/cpu/bf16.h"
#include "backend/cpu/vmath.h"

#include <math.h>
#include <string.h>

#define STRIP 128
#define LANES 8
#define LINES 4

struct state {
    int64_t channels, plane, strips; /* of one sample */
    int64_t before, after;           /* channels of a window on either side */
    float weight, beta, k;           /* weight: alpha / size */
    int64_t block;                   /* of channels that lie beside each other; 1: canonical */
    bool half;                       /* these are bf16 */
    int64_t line;                    /* floats of scratch a part: a pixel's channels and a window's overhang */
    float *s;                        /* training: [N, C, H, W], of blocks [N, H, W, C] */
};

struct job {
    const struct state *l;
    const struct pl_io *io;
    float *scratch; /* of each part: [C, STRIP], or LINES lines */
};

static pl_status plan(struct pl_plan *p) {
    const struct pl_op *op = &p->op;
    struct state *l = pl_alloc(sizeof *l, "a local response normalisation's plan");
    if (l == NULL)
        return PL_ERR_MEMORY;
    p->state = l;
    struct pl_cpu_dims d = pl_cpu_dims(&op->x[0]);
    if (op->size < 1)
        return pl_cpu_refuse(op, "its size is less than 1");
    l->channels = d.c;
    l->plane = d.h * d.w;
    l->strips = (l->plane + STRIP - 1) / STRIP;
    l->before = (op->size - 1) / 2;
    l->after = op->size - 1 - l->before;
    l->weight = (float)(op->alpha / (double)op->size);
    l->beta = (float)op->beta;
    l->k = (float)op->k;
    l->block = op->lx[0].block > 1 && op->ly.block > 1 ? op->lx[0].block : 1;
    l->half = op->lx[0].bf16 && op->ly.bf16;
    l->line = (d.c + op->size + LANES - 1) / LANES * LANES;
    int64_t part = l->block > 1 ? LINES * l->line : op->train ? d.c * STRIP : 0;
    PL_TRY(pl_cpu_scratch(p->backend, (size_t)(p->backend->threads * part) * sizeof(float)));
    if (!op->train)
        return PL_OK;
    l->s = pl_alloc((size_t)pl_shape_elems(&op->x[0]) * sizeof(float), "normalisation sums");
    return l->s == NULL ? PL_ERR_MEMORY : PL_OK;
}

static void destroy(struct pl_plan *p) {
    struct state *l = p->state;
    if (l != NULL)
        pl_free(l->s);
    pl_free(l);
}

/* s^-beta; AlexNet's beta by roots */
PL_WITHIN void powers(const struct state *l, const float *s, int64_t n, float *out) {
    if (l->beta == 0.75f)
        for (int64_t i = 0; i < n; i++)
            out[i] = 1.0f / sqrtf(s[i] * sqrtf(s[i]));
    else
        for (int64_t i = 0; i < n; i++)
            out[i] = pl_vexp(-l->beta * pl_vlog(s[i]));
}

/* The channels around c, `before` of them below and `after` above */
static inline void window(const struct state *l, int64_t c, int64_t before, int64_t after,
                          int64_t *first, int64_t *last) {
    *first = c - before < 0 ? 0 : c - before;
    *last = c + after >= l->channels ? l->channels - 1 : c + after;
}

PL_CLONES
static void forward_strips(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    const struct state *l = j->l;
    float sum[STRIP];
    for (int64_t t = begin; t < end; t++) {
        int64_t at = t % l->strips * STRIP, base = t / l->strips * l->channels * l->plane + at;
        int64_t n = l->plane - at < STRIP ? l->plane - at : STRIP, first, last;
        for (int64_t c = 0; c < l->channels; c++) {
            window(l, c, l->before, l->after, &first, &last);
            for (int64_t i = 0; i < n; i++)
                sum[i] = 0.0f;
            for (int64_t q = first; q <= last; q++) {
                const float *x = j->io->x[0] + base + q * l->plane;
                for (int64_t i = 0; i < n; i++)
                    sum[i] += x[i] * x[i];
            }
            const float *x = j->io->x[0] + base + c * l->plane;
            float *y = j->io->y + base + c * l->plane;
            for (int64_t i = 0; i < n; i++)
                sum[i] = l->k + l->weight * sum[i];
            for (int64_t i = 0; l->s != NULL && i < n; i++)
                l->s[base + c * l->plane + i] = sum[i];
            powers(l, sum, n, sum);
            for (int64_t i = 0; i < n; i++)
                y[i] = x[i] * sum[i];
        }
    }
}

/* dx = dy s^-beta - 2 beta weight x (sum of dy y / s over channels whose window has this one) */
PL_CLONES
static void backward_strips(void *arg, int part, int64_t begin, int64_t end) {
    const struct job *j = arg;
    const struct state *l = j->l;
    float *ratio = j->scratch + part * l->channels * STRIP, factor = 2.0f * l->beta * l->weight;
    float sum[STRIP], power[STRIP];
    for (int64_t t = begin; t < end; t++) {
        int64_t at = t % l->strips * STRIP, base = t / l->strips * l->channels * l->plane + at;
        int64_t n = l->plane - at < STRIP ? l->plane - at : STRIP, first, last;
        for (int64_t c = 0; c < l->channels; c++) {
            int64_t o = base + c * l->plane;
            const float *dy = j->io->dy + o, *y = j->io->y + o, *s = l->s + o;
            for (int64_t i = 0; i < n; i++)
                ratio[c * STRIP + i] = dy[i] * y[i] / s[i];
        }
        for (int64_t c = 0; c < l->channels; c++) {
            window(l, c, l->after, l->before, &first, &last);
            for (int64_t i = 0; i < n; i++)
                sum[i] = 0.0f;
            for (int64_t q = first; q <= last; q++)
                for (int64_t i = 0; i < n; i++)
                    sum[i] += ratio[q * STRIP + i];
            int64_t o = base + c * l->plane;
            const float *dy = j->io->dy + o, *x = j->io->x[0] + o, *s = l->s + o;
            float *dx = j->io->dx[0] + o;
            powers(l, s, n, power);
            for (int64_t i = 0; i < n; i++)
                dx[i] = dy[i] * power[i] - factor * x[i] * sum[i];
        }
    }
}

/* Between a pixel's channels in blocks and in a line. */
PL_WITHIN int64_t pixel_at(const struct state *l, int64_t t) { return t / l->plane * l->channels * l->plane + t % l->plane * l->block; }
PL_WITHIN int64_t channel_at(const struct state *l, int64_t c) { return c / l->block * l->plane * l->block + c % l->block; }
PL_WITHIN void gather(const struct state *l, bool half, const void *x, int64_t t, float *line) {
    for (int64_t c = 0; c < l->channels; c += LANES)
        for (int k = 0; k < LANES; k++)
            line[c + k] = pl_element(x, pixel_at(l, t) + channel_at(l, c) + k, half);
}
PL_WITHIN void scatter(const struct state *l, bool half, const float *line, void *x, int64_t t) {
    for (int64_t c = 0; c < l->channels; c += LANES)
        for (int k = 0; k < LANES; k++)
            pl_set_element(x, pixel_at(l, t) + channel_at(l, c) + k, half, line[c + k]);
}
/* sum[c] of the elements c .. c + size - 1 of a line with an overhang */
PL_WITHIN void sums_of(const struct state *l, const float *line, float *sum) {
    int64_t size = l->before + 1 + l->after;
    for (int64_t c = 0; c < l->channels; c++)
        sum[c] = line[c];
    for (int64_t q = 1; q < size; q++)
        for (int64_t c = 0; c < l->channels; c++)
            sum[c] += line[c + q];
}

PL_WITHIN void forward_lines(const struct job *j, bool half, int part, int64_t begin, int64_t end) {
    const struct state *l = j->l;
    float *x = j->scratch + LINES * part * l->line, *square = x + l->line, *sum = square + l->line;
    memset(square, 0, (size_t)l->line * sizeof *square);
    for (int64_t t = begin; t < end; t++) {
        gather(l, half, j->io->x[0], t, x);
        for (int64_t c = 0; c < l->channels; c++)
            square[l->before + c] = x[c] * x[c];
        sums_of(l, square, sum);
        for (int64_t c = 0; c < l->channels; c++)
            sum[c] = l->k + l->weight * sum[c];
        if (l->s != NULL)
            memcpy(l->s + t * l->channels, sum, (size_t)l->channels * sizeof *sum);
        powers(l, sum, l->channels, sum);
        for (int64_t c = 0; c < l->channels; c++)
            x[c] *= sum[c];
        scatter(l, half, x, j->io->y, t);
    }
}

PL_WITHIN void backward_lines(const struct job *j, bool half, int part, int64_t begin, int64_t end) {
    const struct state *l = j->l;
    float *power = j->scratch + LINES * part * l->line, *ratio = power + l->line, *line = ratio + l->line, *more = line + l->line;
    const float factor = 2.0f * l->beta * l->weight;
    memset(ratio, 0, (size_t)l->line * sizeof *ratio);
    for (int64_t t = begin; t < end; t++) {
        const float *s = l->s + t * l->channels;
        gather(l, half, j->io->y, t, line);
        gather(l, half, j->io->dy, t, power);
        for (int64_t c = 0; c < l->channels; c++)
            ratio[l->after + c] = power[c] * line[c] / s[c];
        sums_of(l, ratio, line);
        powers(l, s, l->channels, power);
        gather(l, half, j->io->x[0], t, more);
        for (int64_t c = 0; c < l->channels; c++)
            line[c] *= factor * more[c];
        gather(l, half, j->io->dy, t, more);
        for (int64_t c = 0; c < l->channels; c++)
            line[c] = more[c] * power[c] - line[c];
        scatter(l, half, line, j->io->dx[0], t);
    }
}

PL_CLONES
static void forward_pixels(void *arg, int part, int64_t begin, int64_t end) {
    forward_lines(arg, false, part, begin, end);
}

PL_CLONES
static void backward_pixels(void *arg, int part, int64_t begin, int64_t end) {
    backward_lines(arg, false, part, begin, end);
}

PL_HALVES
static void forward_pixels_half(void *arg, int part, int64_t begin, int64_t end) {
    forward_lines(arg, true, part, begin, end);
}

PL_HALVES
static void backward_pixels_half(void *arg, int part, int64_t begin, int64_t end) {
    backward_lines(arg, true, part, begin, end);
}

static void run(struct pl_plan *p, const struct pl_io *io, pl_cpu_part_fn *body) {
    const struct state *l = p->state;
    struct job j = {l, io, (float *)(void *)p->backend->scratch};
    int64_t strip = l->channels * (l->block > 1 ? 1 : l->plane < STRIP ? l->plane : STRIP);
    int64_t items = p->op.x[0].dim[0] * (l->block > 1 ? l->plane : l->strips);
    pl_cpu_parts(p->backend, items, PL_CPU_GRAIN / 4 / strip + 1, body, &j);
}

static pl_status forward(struct pl_plan *p, const struct pl_io *io) {
    const struct state *l = p->state;
    run(p, io, l->half ? forward_pixels_half : l->block > 1 ? forward_pixels : forward_strips);
    return PL_OK;
}

static pl_status backward(struct pl_plan *p, const struct pl_io *io) {
    const struct state *l = p->state;
    if (p->op.need_dx[0] && io->dx[0] != NULL)
        run(p, io, l->half ? backward_pixels_half : l->block > 1 ? backward_pixels : backward_strips);
    return PL_OK;
}

const struct pl_cpu_kind pl_cpu_lrn = {
    .layouts = PL_CPU_SAME, .halves = PL_CPU_HALF_BLOCKS, .plan = plan, .destroy = destroy, .forward = forward, .backward = backward};
