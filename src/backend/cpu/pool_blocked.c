/* pool_blocked: pooling where the channels of a block lie beside each other: tap by tap, eight channels
 * at once as one vector (the compiler's own type; it becomes what the processor has). Maximum remembers the number of the tap (of equals the first, not-a-number before
 * all numbers), as pool.c does the place. */
#include "backend/cpu/bf16.h"
#include "backend/cpu/pool.h"

#include <string.h>

#define LANES 8
typedef float vec __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));
typedef int32_t mask __attribute__((vector_size(LANES * sizeof(int32_t)), aligned(4), may_alias));

/* Not functions: how a vector is handed over depends on the instruction set. */
#define LOAD(p) (*(const vec *)(const void *)(p))
#define STORE(p, v) (*(vec *)(void *)(p) = (v))
#define CHOOSE(take, a, b) ((vec)(((take) & (mask)(a)) | (~(take) & (mask)(b))))
/* Of floats or bf16, from element i of t on. */
typedef uint32_t words PL_HALF_VECTOR(uint32_t, LANES);
typedef uint16_t halves PL_HALF_VECTOR(uint16_t, LANES);
#define READ(t, i, half) ((half) ? PL_WIDEN((const uint16_t *)(t) + (i), vec, words, halves) : LOAD((const float *)(t) + (i)))
#define WRITE(t, i, half, v)                                      \
    do {                                                          \
        if (half)                                                 \
            PL_ROUND((uint16_t *)(t) + (i), v, words, halves);    \
        else                                                      \
            STORE((float *)(t) + (i), v);                         \
    } while (0)

struct job {
    const struct pl_cpu_window *w;
    const void *x, *dy;
    void *y, *dx;
    float *planes; /* of bf16, backward: of each part, a block's gradient while it is summed */
    int32_t *from;
    const float *inverse;
    int64_t block;
    bool maximum;
};

int64_t pl_cpu_pool_block(const struct pl_op *op) {
    struct pl_cpu_dims y = pl_cpu_dims(&op->y);
    bool through = op->lx[0].block > 1 && op->lx[0].block % LANES == 0 && op->x[0].dims == 4 &&
                   (op->ly.block > 1 || y.h * y.w == 1) && op->lx[0].bf16 == op->ly.bf16;
    return through ? op->lx[0].block : 1;
}

/* Taps [*lo, *hi) of a window of `taps` that lie inside, its first at `start`. */
static inline void inside(int64_t start, int64_t dilation, int64_t taps, int64_t ins, int64_t *lo, int64_t *hi) {
    *lo = start < 0 ? (-start + dilation - 1) / dilation : 0;
    *hi = start < ins ? (ins - 1 - start) / dilation + 1 : 0;
    if (*hi > taps)
        *hi = taps;
}

/* One output of eight channels: element `to` of y, from the plane that begins at element `plane` of x, and from the row and
 * column where the window starts. */
PL_WITHIN void max_one(const struct job *j, bool half, int64_t plane, int64_t row, int64_t column, int64_t to) {
    const struct pl_cpu_window *w = j->w;
    int64_t i0, i1, j0, j1;
    inside(row, w->dh, w->kh, w->h, &i0, &i1);
    inside(column, w->dw, w->kw, w->w, &j0, &j1);
    vec best = READ(j->x, plane + ((row + i0 * w->dh) * w->w + column + j0 * w->dw) * j->block, half);
    mask at = (mask){0} + (int32_t)(i0 * w->kw + j0);
    for (int64_t i = i0; i < i1; i++)
        for (int64_t t = j0; t < j1; t++) {
            vec v = READ(j->x, plane + ((row + i * w->dh) * w->w + column + t * w->dw) * j->block, half);
            mask take = (v > best) | ((v != v) & (best == best)), tap = (mask){0} + (int32_t)(i * w->kw + t);
            best = CHOOSE(take, v, best);
            at = (take & tap) | (~take & at);
        }
    WRITE(j->y, to, half, best);
    if (j->from != NULL)
        *(mask *)(void *)(j->from + to) = at;
}

PL_WITHIN void average_one(const struct job *j, bool half, int64_t plane, int64_t row, int64_t column, float inverse, int64_t to) {
    const struct pl_cpu_window *w = j->w;
    int64_t i0, i1, j0, j1;
    vec sum = {0};
    inside(row, w->dh, w->kh, w->h, &i0, &i1);
    inside(column, w->dw, w->kw, w->w, &j0, &j1);
    for (int64_t i = i0; i < i1; i++)
        for (int64_t t = j0; t < j1; t++)
            sum += READ(j->x, plane + ((row + i * w->dh) * w->w + column + t * w->dw) * j->block, half);
    vec mean = sum * inverse;
    WRITE(j->y, to, half, mean);
}

/* Adds what the gradient of output `at` gives to each tap: all of it to the tap that was taken, or a share. dx: the plane. */
PL_WITHIN void spread_one(const struct job *j, bool half, int64_t at, const int32_t *from, float inverse, int64_t row, int64_t column,
                          float *dx) {
    const struct pl_cpu_window *w = j->w;
    int64_t i0, i1, j0, j1;
    inside(row, w->dh, w->kh, w->h, &i0, &i1);
    inside(column, w->dw, w->kw, w->w, &j0, &j1);
    mask tap = from == NULL ? (mask){0} : *(const mask *)(const void *)from;
    vec dy = READ(j->dy, at, half), share = dy * inverse;
    for (int64_t i = i0; i < i1; i++)
        for (int64_t t = j0; t < j1; t++) {
            float *to = dx + ((row + i * w->dh) * w->w + column + t * w->dw) * j->block;
            mask taken = tap == (int32_t)(i * w->kw + t);
            STORE(to, LOAD(to) + (from == NULL ? share : (vec)(taken & (mask)dy)));
        }
}

/* Blocks [begin, end) of samples x blocks of channels, eight channels after eight. */
PL_WITHIN void forward_units(const struct job *j, bool half, int64_t begin, int64_t end) {
    const struct pl_cpu_window *w = j->w;
    for (int64_t u = begin; u < end; u++)
        for (int64_t o = 0; o < w->oh * w->ow; o++)
            for (int64_t k = 0; k < j->block; k += LANES) {
                int64_t plane = u * w->h * w->w * j->block + k, at = (u * w->oh * w->ow + o) * j->block + k;
                int64_t row = o / w->ow * w->sh - w->top, column = o % w->ow * w->sw - w->left;
                if (j->maximum)
                    max_one(j, half, plane, row, column, at);
                else
                    average_one(j, half, plane, row, column, j->inverse[o], at);
            }
}

PL_CLONES
static void forward_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    forward_units(arg, false, begin, end);
}

PL_HALVES
static void forward_part_half(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    forward_units(arg, true, begin, end);
}

PL_WITHIN void backward_units(const struct job *j, bool half, float *sums, int64_t begin, int64_t end) {
    const struct pl_cpu_window *w = j->w;
    int64_t elems = w->h * w->w * j->block;
    for (int64_t u = begin; u < end; u++) {
        float *dx = half ? sums : (float *)j->dx + u * elems;
        memset(dx, 0, (size_t)elems * sizeof *dx);
        for (int64_t o = 0; o < w->oh * w->ow; o++)
            for (int64_t k = 0; k < j->block; k += LANES) {
                int64_t at = (u * w->oh * w->ow + o) * j->block + k;
                spread_one(j, half, at, j->maximum ? j->from + at : NULL, j->maximum ? 0.0f : j->inverse[o],
                           o / w->ow * w->sh - w->top, o % w->ow * w->sw - w->left, dx + k);
            }
        for (int64_t i = 0; half && i < elems; i++)
            pl_set_element(j->dx, u * elems + i, true, sums[i]);
    }
}

PL_CLONES
static void backward_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    backward_units(arg, false, NULL, begin, end);
}

PL_HALVES
static void backward_part_half(void *arg, int part, int64_t begin, int64_t end) {
    const struct job *j = arg;
    backward_units(j, true, j->planes + part * (j->w->h * j->w->w * j->block), begin, end);
}

pl_status pl_cpu_pool_blocked_plan(struct pl_plan *p, const struct pl_cpu_window *w, int64_t block) {
    if (!p->op.lx[0].bf16 || !p->op.train)
        return PL_OK;
    return pl_cpu_scratch(p->backend, (size_t)(p->backend->threads * w->h * w->w * block) * sizeof(float));
}

pl_status pl_cpu_pool_blocked(struct pl_plan *p, const struct pl_io *io, const struct pl_cpu_window *w, int64_t block,
                              int32_t *from, const float *inverse, bool backward) {
    struct job j = {.w = w, .x = io->x[0], .dy = io->dy, .y = io->y, .dx = io->dx[0], .planes = (float *)(void *)p->backend->scratch, .from = from,
                    .inverse = inverse, .block = block, .maximum = p->op.kind == PL_OP_MAXPOOL};
    pl_cpu_part_fn *floats = backward ? backward_part : forward_part, *of_halves = backward ? backward_part_half : forward_part_half;
    int64_t units = p->op.x[0].dim[0] * w->c / block;
    pl_cpu_parts(p->backend, units, PL_CPU_GRAIN / (w->h * w->w * block) + 1, p->op.lx[0].bf16 ? of_halves : floats, &j);
    return PL_OK;
}
