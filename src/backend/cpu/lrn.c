/* lrn: local response normalisation across channels, Krizhevsky et al. 2012 in Caffe's form:
 * y = x / s^beta, s = k + alpha / size * (sum of x^2 over `size` channels around this one).
 * Worked on in strips of neighbouring pixels of one sample, all channels of a strip staying in the
 * cache; s is kept for backward. */
#include "backend/cpu/cpu.h"
#include "backend/cpu/vmath.h"

#define STRIP 128

struct state {
    int64_t channels, plane, strips; /* of one sample */
    int64_t before, after;           /* channels of a window on either side */
    float weight, beta, k;           /* weight: alpha / size */
    float *s;                        /* training: [N, C, H, W] */
};

struct job {
    const struct state *l;
    const struct pl_io *io;
    float *ratio; /* scratch of each part: [C, STRIP] */
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
    if (!op->train)
        return PL_OK;
    l->s = pl_alloc((size_t)pl_shape_elems(&op->x[0]) * sizeof(float), "normalisation sums");
    if (l->s == NULL)
        return PL_ERR_MEMORY;
    return pl_cpu_scratch(p->backend, (size_t)(p->backend->threads * d.c) * STRIP * sizeof(float));
}

static void destroy(struct pl_plan *p) {
    struct state *l = p->state;
    if (l != NULL)
        pl_free(l->s);
    pl_free(l);
}

/* sum[i] += the elements of the channels around c, `before` of them below and `after` above */
static inline void window(const struct state *l, int64_t c, int64_t before, int64_t after,
                          int64_t *first, int64_t *last) {
    *first = c - before < 0 ? 0 : c - before;
    *last = c + after >= l->channels ? l->channels - 1 : c + after;
}

PL_CPU_CLONES
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
            for (int64_t i = 0; i < n; i++)
                y[i] = x[i] * pl_vexp(-l->beta * pl_vlog(sum[i]));
            for (int64_t i = 0; l->s != NULL && i < n; i++)
                l->s[base + c * l->plane + i] = sum[i];
        }
    }
}

/* dx = dy s^-beta - 2 beta weight x (sum of dy y / s over channels whose window has this one) */
PL_CPU_CLONES
static void backward_strips(void *arg, int part, int64_t begin, int64_t end) {
    const struct job *j = arg;
    const struct state *l = j->l;
    float *ratio = j->ratio + part * l->channels * STRIP, factor = 2.0f * l->beta * l->weight;
    float sum[STRIP];
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
            for (int64_t i = 0; i < n; i++)
                dx[i] = dy[i] * pl_vexp(-l->beta * pl_vlog(s[i])) - factor * x[i] * sum[i];
        }
    }
}

static void run(struct pl_plan *p, const struct pl_io *io, pl_cpu_part_fn *body) {
    const struct state *l = p->state;
    struct job j = {l, io, (float *)(void *)p->backend->scratch};
    int64_t strip = l->channels * (l->plane < STRIP ? l->plane : STRIP);
    pl_cpu_parts(p->backend, p->op.x[0].dim[0] * l->strips, PL_CPU_GRAIN / 4 / strip + 1, body,
                 &j);
}

static pl_status forward(struct pl_plan *p, const struct pl_io *io) {
    run(p, io, forward_strips);
    return PL_OK;
}

static pl_status backward(struct pl_plan *p, const struct pl_io *io) {
    if (p->op.need_dx[0] && io->dx[0] != NULL)
        run(p, io, backward_strips);
    return PL_OK;
}

const struct pl_cpu_kind pl_cpu_lrn = {
    .plan = plan, .destroy = destroy, .forward = forward, .backward = backward};
