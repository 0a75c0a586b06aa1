/* pool: maximum and average over windows, plane by plane, planes on the pool's threads. A row of
 * outputs takes two passes without branches: down the rows of its windows into one row as wide as
 * the input, then along that row. Maximum remembers where it found it (of equals the first in
 * reading order); average divides by the elements of the window that lie inside the plane. */
#include "backend/cpu/pool.h"

#include <math.h>
#include <string.h>

#define MOST (1 << 30) /* elements of a plane: above any index, and sums of two fit */

struct range {
    int64_t first, last; /* outputs for which a tap of the row lies inside the plane */
};

struct state {
    struct pl_cpu_window w;
    int64_t planes;
    struct range *tap; /* [kw] */
    int32_t *from;     /* maximum, training: [planes, oh, ow] index into the plane of x; blocked: the tap */
    float *inverse;    /* average: [oh, ow] 1 / elements inside */
    int64_t strip;     /* elements of a part's scratch: three rows */
    int64_t block;     /* of the layout; 1: canonical, otherwise pool_blocked.c computes */
};

struct job {
    const struct state *s;
    const float *x, *dy; /* [planes, h, w], [planes, oh, ow] */
    float *y, *dx;
    float *scratch;
};

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

/* Whether every window along one axis has a tap in the plane. */
static bool none_empty(int64_t outs, int64_t stride, int64_t pad, int64_t dilation, int64_t taps,
                       int64_t ins) {
    bool all = true;
    for (int64_t o = 0; o < outs; o++) {
        int64_t lo, hi;
        inside(o, stride, pad, dilation, taps, ins, &lo, &hi);
        all = all && lo < hi;
    }
    return all;
}

static pl_status check(const struct pl_op *op, const struct pl_cpu_window *w) {
    if (w->c != pl_cpu_dims(&op->y).c)
        return pl_cpu_refuse(op, "input and output differ in channels");
    if (w->h * w->w > MOST)
        return pl_cpu_refuse(op, "a plane of it has more than 2^30 elements");
    if (!none_empty(w->oh, w->sh, w->top, w->dh, w->kh, w->h) ||
        !none_empty(w->ow, w->sw, w->left, w->dw, w->kw, w->w))
        return pl_cpu_refuse(op, "a window of it lies wholly in the padding");
    return PL_OK;
}

static pl_status plan(struct pl_plan *p) {
    struct pl_cpu_window w = pl_cpu_window(&p->op);
    PL_TRY(check(&p->op, &w));
    struct state *s = pl_alloc(sizeof *s + (size_t)w.kw * sizeof *s->tap, "a pooling plan");
    if (s == NULL)
        return PL_ERR_MEMORY;
    p->state = s;
    s->w = w;
    s->planes = p->op.x[0].dim[0] * w.c;
    s->block = pl_cpu_pool_block(&p->op);
    if (s->block > 1)
        PL_TRY(pl_cpu_pool_blocked_plan(p, &s->w, s->block));
    s->tap = (struct range *)(void *)(s + 1);
    for (int64_t j = 0; j < w.kw; j++)
        pl_cpu_window_range(w.w, w.ow, w.sw, j * w.dw - w.left, &s->tap[j].first,
                            &s->tap[j].last);
    int64_t widest = (w.ow - 1) * w.sw + (w.kw - 1) * w.dw + 1; /* all that the taps touch */
    if (widest < w.left + w.w)
        widest = w.left + w.w;
    s->strip = 3 * ((widest + 15) / 16 * 16);
    return pl_cpu_scratch(p->backend, (size_t)(p->backend->threads * s->strip) * sizeof(float));
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

/* Points of a window at output o that lie in the padded image, which ends at `end`. */
static int64_t padded(int64_t o, int64_t stride, int64_t pad, int64_t taps, int64_t end) {
    int64_t start = o * stride - pad;
    return (start + taps < end ? start + taps : end) - start;
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
            int64_t points = (i1 - i0) * (j1 - j0);
            if (p->op.count_pad)
                points = padded(r, w->sh, w->top, w->kh, w->h + p->op.pad_end[0]) * padded(q, w->sw, w->left, w->kw, w->w + p->op.pad_end[1]);
            s->inverse[r * w->ow + q] = 1.0f / (float)points;
        }
    return PL_OK;
}

/* Rows [*first, *last) step dh of the windows that start at row0. */
static inline void rows_inside(const struct pl_cpu_window *w, int64_t row0, int64_t *first,
                               int64_t *last) {
    for (*first = row0; *first < 0;)
        *first += w->dh;
    *last = row0 + w->kh * w->dh < w->h ? row0 + w->kh * w->dh : w->h;
}

/* Takes a value from further on if it is larger. */
static inline void later(float *best, int32_t *at, float v, int32_t here) {
    *at = v > *best ? here : *at;
    *best = v > *best ? v : *best;
}

/* Down: m[c] = the largest of the windows' rows in column c, base[c] = its row's start. */
static inline void max_down(const struct pl_cpu_window *w, const float *x, int64_t row0,
                            float *restrict m, int32_t *restrict base) {
    int64_t h, last;
    rows_inside(w, row0, &h, &last);
    int32_t at0 = (int32_t)(h * w->w), step = (int32_t)(w->dh * w->w);
    const float *v0 = x + at0; /* where there are less than three rows, one counts twice */
    const float *v1 = h + w->dh < last ? v0 + step : v0;
    const float *v2 = h + 2 * w->dh < last ? v1 + step : v1;
    for (int64_t c = 0; c < w->w; c++) {
        float best = v0[c];
        int32_t at = at0;
        later(&best, &at, v1[c], at0 + step);
        later(&best, &at, v2[c], at0 + 2 * step);
        m[c] = best;
        base[c] = at;
    }
    for (h += 3 * w->dh; h < last; h += w->dh)
        for (int64_t c = 0; c < w->w; c++)
            later(&m[c], &base[c], x[h * w->w + c], (int32_t)(h * w->w));
}

/* The same from anywhere: of equals the smaller index wins. */
static inline void pick(float *best, int32_t *at, float v, int32_t here) {
    bool more = v > *best, equal = v == *best, before = here < *at;
    bool take = more | (equal & before);
    *best = take ? v : *best;
    *at = take ? here : *at;
}

/* Along: m[0], base[0] belong to column -left, and there is padding enough on both sides. */
static inline void max_along(const struct pl_cpu_window *w, const float *m, const int32_t *base,
                             float *restrict y, int32_t *restrict at) {
    for (int64_t q = 0; q < w->ow; q++) {
        y[q] = m[q * w->sw];
        at[q] = base[q * w->sw] + (int32_t)(q * w->sw - w->left);
    }
    for (int64_t j = 1; j < w->kw; j++)
        for (int64_t q = 0; q < w->ow; q++) {
            int64_t c = q * w->sw + j * w->dw;
            pick(&y[q], &at[q], m[c], base[c] + (int32_t)(c - w->left));
        }
}

/* The same for three taps with stride 2: AlexNet's and the CIFAR-10 networks'. */
static inline void max_along_3(const struct pl_cpu_window *w, const float *m, const int32_t *base,
                               float *restrict y, int32_t *restrict at) {
    for (int64_t q = 0; q < w->ow; q++) {
        int32_t c = 2 * (int32_t)q - (int32_t)w->left, from = base[2 * q] + c;
        float best = m[2 * q];
        pick(&best, &from, m[2 * q + 1], base[2 * q + 1] + c + 1);
        pick(&best, &from, m[2 * q + 2], base[2 * q + 2] + c + 2);
        y[q] = best;
        at[q] = from;
    }
}

static inline bool has_nan(const float *x, int64_t n) {
    int32_t found = 0;
    for (int64_t i = 0; i < n; i++)
        found |= x[i] != x[i];
    return found != 0;
}

/* One output of a plane with not-a-numbers, slowly: they win, so that the loss shows them. */
static void max_one_nan(const struct pl_cpu_window *w, const float *x, int64_t o, float *y,
                          int32_t *at) {
    int64_t i0, i1, j0, j1, r = o / w->ow, q = o % w->ow, best = -1;
    inside(r, w->sh, w->top, w->dh, w->kh, w->h, &i0, &i1);
    inside(q, w->sw, w->left, w->dw, w->kw, w->w, &j0, &j1);
    for (int64_t i = i0; i < i1; i++)
        for (int64_t j = j0; j < j1; j++) {
            int64_t row = r * w->sh - w->top + i * w->dh, column = q * w->sw - w->left + j * w->dw;
            int64_t here = row * w->w + column;
            if (best < 0 || x[here] > x[best] || (isnan(x[here]) && !isnan(x[best])))
                best = here;
        }
    *y = x[best];
    *at = (int32_t)best;
}

/* Padding that loses against whatever is in the plane, -inf too. */
static void max_padding(const struct state *s, float *m, int32_t *base) {
    for (int64_t c = 0; c < s->strip / 3; c++) {
        m[c] = -INFINITY;
        base[c] = MOST;
    }
}

/* One plane: x [h, w], y and at [oh, ow]; at is NULL in evaluation. m, base, unused: scratch. */
static inline void max_plane(const struct pl_cpu_window *w, const float *x, float *m,
                             int32_t *base, int32_t *unused, float *y, int32_t *at) {
    bool three = w->kw == 3 && w->sw == 2 && w->dw == 1;
    for (int64_t r = 0; r < w->oh; r++) {
        int32_t *at_row = at == NULL ? unused : at + r * w->ow;
        max_down(w, x, r * w->sh - w->top, m + w->left, base + w->left);
        if (three)
            max_along_3(w, m, base, y + r * w->ow, at_row);
        else
            max_along(w, m, base, y + r * w->ow, at_row);
    }
}

/* Four outputs at once: rows of small networks are too short for what the compiler would make of a loop. */
typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t places __attribute__((vector_size(16), aligned(4), may_alias));

#ifdef __clang__
#define EVEN(a, b) __builtin_shufflevector(a, b, 0, 2, 4, 6)
#define ODD(a, b) __builtin_shufflevector(a, b, 1, 3, 5, 7)
#else
#define EVEN(a, b) __builtin_shuffle(a, b, (places){0, 2, 4, 6})
#define ODD(a, b) __builtin_shuffle(a, b, (places){1, 3, 5, 7})
#endif

PL_WITHIN void later_four(four *best, places *at, four v, places here) {
    places more = v > *best;
    *at = (here & more) | (*at & ~more);
    *best = (four)(((places)v & more) | ((places)*best & ~more));
}

PL_WITHIN void max_four_2x2(const float *x, int64_t width, int32_t start, float *y, int32_t *at) {
    const four a = *(const four *)(const void *)x, b = *(const four *)(const void *)(x + 4);
    const four c = *(const four *)(const void *)(x + width), d = *(const four *)(const void *)(x + width + 4);
    const places here = start + (places){0, 2, 4, 6};
    four best = EVEN(a, b);
    places from = here;
    later_four(&best, &from, ODD(a, b), here + 1);
    later_four(&best, &from, EVEN(c, d), here + (int32_t)width);
    later_four(&best, &from, ODD(c, d), here + (int32_t)width + 1);
    *(four *)(void *)y = best;
    *(places *)(void *)at = from;
}

/* The pooling of most networks, 2x2 with stride 2 and no padding, in one pass: n outputs whose
 * windows start at x and, a row below, at x + width; x is at `start` in its plane. */
PL_WITHIN void max_row_2x2(const float *restrict x, int64_t width, int64_t n, int32_t start, float *restrict y, int32_t *restrict at) {
    const float *below = x + width;
    int32_t row = (int32_t)width;
    int64_t q = 0;
    for (; q + 4 <= n; q += 4)
        max_four_2x2(x + 2 * q, width, start + (int32_t)(2 * q), y + q, at + q);
    for (; q < n; q++) {
        float best = x[2 * q];
        int32_t from = start + (int32_t)(2 * q), here = from;
        later(&best, &from, x[2 * q + 1], here + 1);
        later(&best, &from, below[2 * q], here + row);
        later(&best, &from, below[2 * q + 1], here + row + 1);
        y[q] = best;
        at[q] = from;
    }
}

static bool is_2x2(const struct pl_cpu_window *w) {
    return w->kh == 2 && w->kw == 2 && w->sh == 2 && w->sw == 2 && w->top == 0 && w->left == 0 &&
           w->dh == 1 && w->dw == 1 && 2 * w->oh <= w->h && 2 * w->ow <= w->w;
}

PL_CLONES
static void max_forward(void *arg, int part, int64_t begin, int64_t end) {
    const struct job *j = arg;
    const struct state *s = j->s;
    const struct pl_cpu_window *w = &s->w;
    float *m = j->scratch + part * s->strip;
    int32_t *base = (int32_t *)(void *)(m + s->strip / 3), *unused = base + s->strip / 3;
    int64_t outs = w->oh * w->ow;
    bool two = is_2x2(w);
    max_padding(s, m, base);
    for (int64_t c = begin; c < end; c++) {
        const float *x = j->x + c * w->h * w->w;
        float *y = j->y + c * outs;
        int32_t *at = s->from == NULL ? NULL : s->from + c * outs;
        if (has_nan(x, w->h * w->w))
            for (int64_t o = 0; o < outs; o++)
                max_one_nan(w, x, o, y + o, at == NULL ? unused : at + o);
        else if (!two)
            max_plane(w, x, m, base, unused, y, at);
        else
            for (int64_t r = 0; r < w->oh; r++)
                max_row_2x2(x + 2 * r * w->w, w->w, w->ow, (int32_t)(2 * r * w->w), y + r * w->ow,
                            at == NULL ? unused : at + r * w->ow);
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

static inline void average_row(const struct state *s, const float *x, int64_t row0,
                               const float *inverse, float *restrict sum, float *restrict y) {
    const struct pl_cpu_window *w = &s->w;
    int64_t h, last;
    rows_inside(w, row0, &h, &last);
    memcpy(sum, x + h * w->w, (size_t)w->w * sizeof *sum);
    for (h += w->dh; h < last; h += w->dh)
        for (int64_t c = 0; c < w->w; c++)
            sum[c] += x[h * w->w + c];
    for (int64_t q = 0; q < w->ow; q++)
        y[q] = 0.0f;
    for (int64_t j = 0; j < w->kw; j++) {
        const float *from = sum + j * w->dw - w->left;
        if (w->sw == 2)
            for (int64_t q = s->tap[j].first; q < s->tap[j].last; q++)
                y[q] += from[2 * q];
        else
            for (int64_t q = s->tap[j].first; q < s->tap[j].last; q++)
                y[q] += from[q * w->sw];
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

PL_CLONES
static void average_forward(void *arg, int part, int64_t begin, int64_t end) {
    const struct job *j = arg;
    float *sum = j->scratch + part * j->s->strip;
    const struct pl_cpu_window *w = &j->s->w;
    int64_t outs = w->oh * w->ow, ins = w->h * w->w;
    for (int64_t c = begin; c < end; c++) {
        if (is_global(w)) {
            j->y[c] = average_all(j->x + c * ins, ins) * j->s->inverse[0];
            continue;
        }
        for (int64_t r = 0; r < w->oh; r++)
            average_row(j->s, j->x + c * ins, r * w->sh - w->top, j->s->inverse + r * w->ow, sum,
                        j->y + c * outs + r * w->ow);
    }
}

static inline void spread_row(const struct state *s, const float *dy, int64_t row0,
                              const float *inverse, float *restrict sum, float *restrict dx) {
    const struct pl_cpu_window *w = &s->w;
    int64_t h, last;
    rows_inside(w, row0, &h, &last);
    for (int64_t c = 0; c < w->w; c++)
        sum[c] = 0.0f;
    for (int64_t j = 0; j < w->kw; j++) {
        float *to = sum + j * w->dw - w->left;
        for (int64_t q = s->tap[j].first; q < s->tap[j].last; q++)
            to[q * w->sw] += dy[q] * inverse[q];
    }
    for (; h < last; h += w->dh)
        for (int64_t c = 0; c < w->w; c++)
            dx[h * w->w + c] += sum[c];
}

PL_CLONES
static void average_backward(void *arg, int part, int64_t begin, int64_t end) {
    const struct job *j = arg;
    float *sum = j->scratch + part * j->s->strip;
    const struct pl_cpu_window *w = &j->s->w;
    int64_t outs = w->oh * w->ow, ins = w->h * w->w;
    for (int64_t c = begin; c < end; c++) {
        float *dx = j->dx + c * ins;
        float all = j->dy[c * outs] * j->s->inverse[0];
        bool global = is_global(w);
        for (int64_t i = 0; i < ins; i++)
            dx[i] = global ? all : 0.0f;
        for (int64_t r = 0; !global && r < w->oh; r++)
            spread_row(j->s, j->dy + c * outs + r * w->ow, r * w->sh - w->top,
                       j->s->inverse + r * w->ow, sum, dx);
    }
}

static pl_status run(struct pl_plan *p, const struct pl_io *io, pl_cpu_part_fn *body, bool backward) {
    const struct state *s = p->state;
    if (s->block > 1)
        return pl_cpu_pool_blocked(p, io, &s->w, s->block, s->from, s->inverse, backward);
    struct job j = {s,     io->x[0],  io->dy,
                    io->y, io->dx[0], (float *)(void *)p->backend->scratch};
    pl_cpu_parts(p->backend, s->planes, PL_CPU_GRAIN / (s->w.h * s->w.w) + 1, body, &j);
    return PL_OK;
}

static pl_status forward(struct pl_plan *p, const struct pl_io *io) {
    return run(p, io, p->op.kind == PL_OP_MAXPOOL ? max_forward : average_forward, false);
}

static pl_status backward(struct pl_plan *p, const struct pl_io *io) {
    if (!p->op.need_dx[0] || io->dx[0] == NULL)
        return PL_OK;
    return run(p, io, p->op.kind == PL_OP_MAXPOOL ? max_backward : average_backward, true);
}

const struct pl_cpu_kind pl_cpu_maxpool = {
    .layouts = PL_CPU_SAME, .halves = PL_CPU_HALF_BLOCKS, .plan = plan_max, .destroy = destroy, .forward = forward, .backward = backward};
const struct pl_cpu_kind pl_cpu_avgpool = {
    .layouts = PL_CPU_SAME, .halves = PL_CPU_HALF_BLOCKS, .plan = plan_average, .destroy = destroy, .forward = forward, .backward = backward};
