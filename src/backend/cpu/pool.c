/* pool: maximum and average over windows, plane by plane, planes on the pool's threads. A row of
 * outputs is worked on tap by tap, so the inner loops are branch-free selects and sums over
 * neighbours. Maximum keeps where it found it (the first of equals); average divides by the
 * elements of the window that lie inside the plane. */
#include "backend/cpu/cpu.h"
#include "backend/cpu/im2col.h"

#include <math.h>
#include <string.h>

struct state {
    struct pl_cpu_window w;
    int64_t planes;
    int32_t *from;  /* maximum, training: [planes, oh, ow] index into the plane of x */
    float *inverse; /* average: [oh, ow] 1 / elements inside */
};

struct job {
    const struct state *s;
    const float *x, *dy;
    float *y, *dx;
};

static pl_status plan(struct pl_plan *p) {
    const struct pl_op *op = &p->op;
    struct state *s = pl_alloc(sizeof *s, "a pooling plan");
    if (s == NULL)
        return PL_ERR_MEMORY;
    p->state = s;
    s->w = pl_cpu_window(op);
    s->planes = op->x[0].dim[0] * s->w.c;
    if (s->w.c != pl_cpu_dims(&op->y).c)
        return pl_cpu_refuse(op, "input and output differ in channels");
    if (s->w.h * s->w.w > INT32_MAX)
        return pl_cpu_refuse(op, "a plane of it has more than 2147483647 elements");
    return PL_OK;
}

static void destroy(struct pl_plan *p) {
    struct state *s = p->state;
    if (s == NULL)
        return;
    pl_free(s->from);
    pl_free(s->inverse);
    pl_free(s);
}

static pl_status plan_max(struct pl_plan *p) {
    PL_TRY(plan(p));
    struct state *s = p->state;
    if (!p->op.train)
        return PL_OK;
    size_t elems = (size_t)(s->planes * s->w.oh * s->w.ow);
    s->from = pl_alloc(elems * sizeof *s->from, "the positions of a maximum pooling");
    return s->from == NULL ? PL_ERR_MEMORY : PL_OK;
}

/* Taps [*lo, *hi) of a window of `taps` at output o that lie inside. */
static void inside(int64_t o, int64_t stride, int64_t pad, int64_t dilation, int64_t taps,
                   int64_t ins, int64_t *lo, int64_t *hi) {
    int64_t start = o * stride - pad;
    *lo = start < 0 ? (-start + dilation - 1) / dilation : 0;
    *hi = start < ins ? (ins - 1 - start) / dilation + 1 : 0;
    if (*hi > taps)
        *hi = taps;
    if (*lo > *hi)
        *lo = *hi;
}

static pl_status plan_average(struct pl_plan *p) {
    PL_TRY(plan(p));
    struct state *s = p->state;
    const struct pl_cpu_window *w = &s->w;
    s->inverse = pl_alloc((size_t)(w->oh * w->ow) * sizeof(float), "an average pooling's plan");
    if (s->inverse == NULL)
        return PL_ERR_MEMORY;
    for (int64_t r = 0; r < w->oh; r++)
        for (int64_t q = 0; q < w->ow; q++) {
            int64_t i0, i1, j0, j1;
            inside(r, w->sh, w->top, w->dh, w->kh, w->h, &i0, &i1);
            inside(q, w->sw, w->left, w->dw, w->kw, w->w, &j0, &j1);
            int64_t count = (i1 - i0) * (j1 - j0);
            s->inverse[r * w->ow + q] = count > 0 ? 1.0f / (float)count : 0.0f;
        }
    return PL_OK;
}

/* y[q] = max(y[q], x[q * stride]) for q in [0, n); at[q] = where */
static inline void max_tap(const float *x, int64_t stride, int64_t n, int32_t where, float *y,
                           int32_t *at) {
    for (int64_t q = 0; q < n; q++) {
        float v = x[q * stride];
        int32_t here = where + (int32_t)(q * stride);
        at[q] = v > y[q] ? here : at[q];
        y[q] = v > y[q] ? v : y[q];
    }
}

static inline void max_tap_only(const float *x, int64_t stride, int64_t n, float *y) {
    for (int64_t q = 0; q < n; q++) {
        float v = x[q * stride];
        y[q] = v > y[q] ? v : y[q];
    }
}

/* at may be NULL; one copy for strides 1 and 2, whose loops are worth specialising */
static inline void max_tap_any(const float *x, int64_t stride, int64_t n, int32_t where, float *y,
                               int32_t *at) {
    if (at == NULL && stride == 1)
        max_tap_only(x, 1, n, y);
    else if (at == NULL && stride == 2)
        max_tap_only(x, 2, n, y);
    else if (at == NULL)
        max_tap_only(x, stride, n, y);
    else if (stride == 1)
        max_tap(x, 1, n, where, y, at);
    else if (stride == 2)
        max_tap(x, 2, n, where, y, at);
    else
        max_tap(x, stride, n, where, y, at);
}

/* One row of outputs; row0 is the first input row of its windows. */
static inline void max_row(const struct pl_cpu_window *w, const float *x, int64_t row0, float *y,
                           int32_t *at) {
    int64_t first_row = row0 < 0 ? 0 : row0;
    for (int64_t q = 0; q < w->ow; q++)
        y[q] = -INFINITY;
    for (int64_t q = 0; at != NULL && q < w->ow; q++) { /* if nothing exceeds -inf: NaN, say */
        int64_t column = q * w->sw - w->left;
        at[q] = (int32_t)(first_row * w->w + (column < 0 ? 0 : column));
    }
    for (int64_t i = 0; i < w->kh; i++) {
        int64_t h = row0 + i * w->dh;
        if (h < 0 || h >= w->h)
            continue;
        for (int64_t j = 0; j < w->kw; j++) {
            int64_t offset = j * w->dw - w->left, lo, hi;
            pl_cpu_window_range(w->w, w->ow, w->sw, offset, &lo, &hi);
            int64_t where = h * w->w + lo * w->sw + offset;
            if (lo < hi)
                max_tap_any(x + where, w->sw, hi - lo, (int32_t)where, y + lo,
                            at == NULL ? NULL : at + lo);
        }
    }
}

PL_CPU_CLONES
static void max_forward(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    const struct pl_cpu_window *w = &j->s->w;
    int64_t outs = w->oh * w->ow;
    for (int64_t c = begin; c < end; c++)
        for (int64_t r = 0; r < w->oh; r++) {
            int64_t to = c * outs + r * w->ow;
            max_row(w, j->x + c * w->h * w->w, r * w->sh - w->top, j->y + to,
                    j->s->from == NULL ? NULL : j->s->from + to);
        }
}

static void max_backward(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    int64_t outs = j->s->w.oh * j->s->w.ow, ins = j->s->w.h * j->s->w.w;
    for (int64_t c = begin; c < end; c++) {
        float *dx = j->dx + c * ins;
        const float *dy = j->dy + c * outs;
        const int32_t *from = j->s->from + c * outs;
        memset(dx, 0, (size_t)ins * sizeof *dx);
        for (int64_t q = 0; q < outs; q++)
            dx[from[q]] += dy[q];
    }
}

static inline void average_row(const struct pl_cpu_window *w, const float *x, int64_t row0,
                               const float *inverse, float *y) {
    for (int64_t q = 0; q < w->ow; q++)
        y[q] = 0.0f;
    for (int64_t i = 0; i < w->kh; i++) {
        int64_t h = row0 + i * w->dh;
        if (h < 0 || h >= w->h)
            continue;
        for (int64_t j = 0; j < w->kw; j++) {
            int64_t offset = j * w->dw - w->left, lo, hi;
            pl_cpu_window_range(w->w, w->ow, w->sw, offset, &lo, &hi);
            const float *from = x + h * w->w + offset;
            if (w->sw == 2)
                for (int64_t q = lo; q < hi; q++)
                    y[q] += from[2 * q];
            else
                for (int64_t q = lo; q < hi; q++)
                    y[q] += from[q * w->sw];
        }
    }
    for (int64_t q = 0; q < w->ow; q++)
        y[q] *= inverse[q];
}

/* One window over the whole plane. */
static inline float average_all(const float *x, int64_t n) {
    float lane[8] = {0}, sum = 0.0f;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int k = 0; k < 8; k++)
            lane[k] += x[i + k];
    for (; i < n; i++)
        sum += x[i];
    for (int k = 0; k < 8; k++)
        sum += lane[k];
    return sum;
}

static bool is_global(const struct pl_cpu_window *w) {
    return w->oh == 1 && w->ow == 1 && w->top == 0 && w->left == 0 && w->kh == w->h &&
           w->kw == w->w && w->dh == 1 && w->dw == 1;
}

PL_CPU_CLONES
static void average_forward(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    const struct pl_cpu_window *w = &j->s->w;
    int64_t outs = w->oh * w->ow, ins = w->h * w->w;
    for (int64_t c = begin; c < end; c++) {
        if (is_global(w)) {
            j->y[c] = average_all(j->x + c * ins, ins) * j->s->inverse[0];
            continue;
        }
        for (int64_t r = 0; r < w->oh; r++)
            average_row(w, j->x + c * ins, r * w->sh - w->top, j->s->inverse + r * w->ow,
                        j->y + c * outs + r * w->ow);
    }
}

static inline void spread_row(const struct pl_cpu_window *w, const float *dy, int64_t row0,
                              const float *inverse, float *dx) {
    for (int64_t i = 0; i < w->kh; i++) {
        int64_t h = row0 + i * w->dh;
        if (h < 0 || h >= w->h)
            continue;
        for (int64_t j = 0; j < w->kw; j++) {
            int64_t offset = j * w->dw - w->left, lo, hi;
            pl_cpu_window_range(w->w, w->ow, w->sw, offset, &lo, &hi);
            float *to = dx + h * w->w + offset;
            for (int64_t q = lo; q < hi; q++)
                to[q * w->sw] += dy[q] * inverse[q];
        }
    }
}

PL_CPU_CLONES
static void average_backward(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    const struct pl_cpu_window *w = &j->s->w;
    int64_t outs = w->oh * w->ow, ins = w->h * w->w;
    for (int64_t c = begin; c < end; c++) {
        float *dx = j->dx + c * ins;
        float all = j->dy[c * outs] * j->s->inverse[0];
        bool global = is_global(w);
        for (int64_t i = 0; i < ins; i++)
            dx[i] = global ? all : 0.0f;
        for (int64_t r = 0; !global && r < w->oh; r++)
            spread_row(w, j->dy + c * outs + r * w->ow, r * w->sh - w->top,
                       j->s->inverse + r * w->ow, dx);
    }
}

static pl_status run(struct pl_plan *p, const struct pl_io *io, pl_cpu_part_fn *body) {
    const struct state *s = p->state;
    struct job j = {s, io->x[0], io->dy, io->y, io->dx[0]};
    pl_cpu_parts(p->backend, s->planes, PL_CPU_GRAIN / (s->w.h * s->w.w) + 1, body, &j);
    return PL_OK;
}

static pl_status forward(struct pl_plan *p, const struct pl_io *io) {
    return run(p, io, p->op.kind == PL_OP_MAXPOOL ? max_forward : average_forward);
}

static pl_status backward(struct pl_plan *p, const struct pl_io *io) {
    if (!p->op.need_dx[0] || io->dx[0] == NULL)
        return PL_OK;
    return run(p, io, p->op.kind == PL_OP_MAXPOOL ? max_backward : average_backward);
}

const struct pl_cpu_kind pl_cpu_maxpool = {
    .plan = plan_max, .destroy = destroy, .forward = forward, .backward = backward};
const struct pl_cpu_kind pl_cpu_avgpool = {
    .plan = plan_average, .destroy = destroy, .forward = forward, .backward = backward};
