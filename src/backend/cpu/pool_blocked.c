/* pool_blocked: pooling where the channels of a block lie beside each other: tap by tap, eight channels
 * at once as one vector (the compiler's own type; it becomes what the processor has). Maximum remembers the number of the tap (of equals the first, not-a-number before
 * all numbers), as pool.c does the place. */
#include "backend/cpu/pool.h"

#include <string.h>

#define LANES 8
typedef float vec __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));
typedef int32_t mask __attribute__((vector_size(LANES * sizeof(int32_t)), aligned(4), may_alias));

/* Not functions: how a vector is handed over depends on the instruction set. */
#define LOAD(p) (*(const vec *)(const void *)(p))
#define STORE(p, v) (*(vec *)(void *)(p) = (v))
#define CHOOSE(take, a, b) ((vec)(((take) & (mask)(a)) | (~(take) & (mask)(b))))

struct job {
    const struct pl_cpu_window *w;
    const float *x, *dy;
    float *y, *dx;
    int32_t *from;
    const float *inverse;
    int64_t block;
    bool maximum;
};

int64_t pl_cpu_pool_block(const struct pl_op *op) {
    struct pl_cpu_dims y = pl_cpu_dims(&op->y);
    bool through = op->lx[0].block > 1 && op->lx[0].block % LANES == 0 && op->x[0].dims == 4 &&
                   (op->ly.block > 1 || y.h * y.w == 1);
    return through ? op->lx[0].block : 1;
}

/* Taps [*lo, *hi) of a window of `taps` that lie inside, its first at `start`. */
static inline void inside(int64_t start, int64_t dilation, int64_t taps, int64_t ins, int64_t *lo, int64_t *hi) {
    *lo = start < 0 ? (-start + dilation - 1) / dilation : 0;
    *hi = start < ins ? (ins - 1 - start) / dilation + 1 : 0;
    if (*hi > taps)
        *hi = taps;
}

/* One output of eight channels; x is the plane, row and column where the window starts. */
static inline void max_one(const struct pl_cpu_window *w, const float *x, int64_t block, int64_t row, int64_t column,
                           float *y, int32_t *from) {
    int64_t i0, i1, j0, j1;
    inside(row, w->dh, w->kh, w->h, &i0, &i1);
    inside(column, w->dw, w->kw, w->w, &j0, &j1);
    vec best = LOAD(x + ((row + i0 * w->dh) * w->w + column + j0 * w->dw) * block);
    mask at = (mask){0} + (int32_t)(i0 * w->kw + j0);
    for (int64_t i = i0; i < i1; i++)
        for (int64_t j = j0; j < j1; j++) {
            vec v = LOAD(x + ((row + i * w->dh) * w->w + column + j * w->dw) * block);
            mask take = (v > best) | ((v != v) & (best == best)), tap = (mask){0} + (int32_t)(i * w->kw + j);
            best = CHOOSE(take, v, best);
            at = (take & tap) | (~take & at);
        }
    STORE(y, best);
    if (from != NULL)
        *(mask *)(void *)from = at;
}

static inline void average_one(const struct pl_cpu_window *w, const float *x, int64_t block, int64_t row, int64_t column,
                               float inverse, float *y) {
    int64_t i0, i1, j0, j1;
    vec sum = {0};
    inside(row, w->dh, w->kh, w->h, &i0, &i1);
    inside(column, w->dw, w->kw, w->w, &j0, &j1);
    for (int64_t i = i0; i < i1; i++)
        for (int64_t j = j0; j < j1; j++)
            sum += LOAD(x + ((row + i * w->dh) * w->w + column + j * w->dw) * block);
    STORE(y, sum * inverse);
}

/* Adds what one output's gradient gives to each tap: all of it to the tap that was taken, or a share. */
static inline void spread_one(const struct job *j, const float *gradient, const int32_t *from, float inverse, int64_t row, int64_t column,
                              float *dx) {
    const struct pl_cpu_window *w = j->w;
    int64_t i0, i1, j0, j1;
    inside(row, w->dh, w->kh, w->h, &i0, &i1);
    inside(column, w->dw, w->kw, w->w, &j0, &j1);
    mask at = from == NULL ? (mask){0} : *(const mask *)(const void *)from;
    vec dy = LOAD(gradient), share = dy * inverse;
    for (int64_t i = i0; i < i1; i++)
        for (int64_t t = j0; t < j1; t++) {
            float *to = dx + ((row + i * w->dh) * w->w + column + t * w->dw) * j->block;
            mask taken = at == (int32_t)(i * w->kw + t);
            STORE(to, LOAD(to) + (from == NULL ? share : (vec)(taken & (mask)dy)));
        }
}

/* Blocks [begin, end) of samples x blocks of channels, eight channels after eight. */
PL_CLONES
static void forward_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    const struct pl_cpu_window *w = j->w;
    for (int64_t u = begin; u < end; u++)
        for (int64_t o = 0; o < w->oh * w->ow; o++)
            for (int64_t k = 0; k < j->block; k += LANES) {
                const float *x = j->x + u * w->h * w->w * j->block + k;
                int64_t at = (u * w->oh * w->ow + o) * j->block + k;
                int64_t row = o / w->ow * w->sh - w->top, column = o % w->ow * w->sw - w->left;
                if (j->maximum)
                    max_one(w, x, j->block, row, column, j->y + at, j->from == NULL ? NULL : j->from + at);
                else
                    average_one(w, x, j->block, row, column, j->inverse[o], j->y + at);
            }
}

PL_CLONES
static void backward_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    const struct pl_cpu_window *w = j->w;
    for (int64_t u = begin; u < end; u++) {
        float *dx = j->dx + u * w->h * w->w * j->block;
        memset(dx, 0, (size_t)(w->h * w->w * j->block) * sizeof *dx);
        for (int64_t o = 0; o < w->oh * w->ow; o++)
            for (int64_t k = 0; k < j->block; k += LANES) {
                int64_t at = (u * w->oh * w->ow + o) * j->block + k;
                spread_one(j, j->dy + at, j->maximum ? j->from + at : NULL, j->maximum ? 0.0f : j->inverse[o],
                           o / w->ow * w->sh - w->top, o % w->ow * w->sw - w->left, dx + k);
            }
    }
}

pl_status pl_cpu_pool_blocked(struct pl_plan *p, const struct pl_io *io, const struct pl_cpu_window *w, int64_t block,
                              int32_t *from, const float *inverse, bool backward) {
    struct job j = {.w = w, .x = io->x[0], .dy = io->dy, .y = io->y, .dx = io->dx[0], .from = from, .inverse = inverse,
                    .block = block, .maximum = p->op.kind == PL_OP_MAXPOOL};
    int64_t units = p->op.x[0].dim[0] * w->c / block;
    pl_cpu_parts(p->backend, units, PL_CPU_GRAIN / (w->h * w->w * block) + 1, backward ? backward_part : forward_part, &j);
    return PL_OK;
}
