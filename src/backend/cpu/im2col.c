/* im2col: row (c, i, j) of the column matrix is plane c shifted by (i, j), strided, zero outside.
 * The range of outputs that fall inside is worked out once per tap, so the inner loops have no
 * branch. */
#include "backend/cpu/im2col.h"

#include <string.h>

struct pl_cpu_window pl_cpu_window(const struct pl_op *op) {
    struct pl_cpu_dims x = pl_cpu_dims(&op->x[0]), y = pl_cpu_dims(&op->y);
    return (struct pl_cpu_window){
        .c = x.c, .h = x.h, .w = x.w, .oh = y.h, .ow = y.w,
        .kh = op->kernel[0], .kw = op->kernel[1], .sh = op->stride[0], .sw = op->stride[1],
        .dh = op->dilation[0] < 1 ? 1 : op->dilation[0],
        .dw = op->dilation[1] < 1 ? 1 : op->dilation[1],
        .top = op->pad_begin[0], .left = op->pad_begin[1]};
}

bool pl_cpu_window_is_identity(const struct pl_cpu_window *w) {
    return w->kh == 1 && w->kw == 1 && w->sh == 1 && w->sw == 1 && w->top == 0 && w->left == 0 &&
           w->oh == w->h && w->ow == w->w;
}

void pl_cpu_window_range(int64_t ins, int64_t outs, int64_t stride, int64_t offset, int64_t *first,
                         int64_t *last) {
    int64_t lo = offset < 0 ? -offset : 0, hi = offset < ins ? ins - offset : 0;
    if (stride != 1) { /* a division takes as long as a short row */
        lo = (lo + stride - 1) / stride;
        hi = (hi + stride - 1) / stride;
    }
    if (hi > outs)
        hi = outs;
    *first = lo < hi ? lo : hi;
    *last = hi;
}

/* Rows are short, often 8 to 32 elements: a call of memcpy would cost more than the copy, and gcc
 * makes one of a plain loop. Pieces of fixed size become single moves. */
static inline void copy_row(const float *restrict x, int64_t stride, int64_t n,
                            float *restrict out) {
    int64_t i = 0;
    if (stride == 1) {
        for (; i + 8 <= n; i += 8)
            memcpy(out + i, x + i, 8 * sizeof *out);
        for (; i + 2 <= n; i += 2)
            memcpy(out + i, x + i, 2 * sizeof *out);
        if (i < n)
            out[i] = x[i];
    } else if (stride == 2) {
        for (; i < n; i++)
            out[i] = x[2 * i];
    } else {
        for (; i < n; i++)
            out[i] = x[stride * i];
    }
}

static inline void zero(float *out, int64_t n) {
    while (n > 0)
        out[--n] = 0.0f;
}

/* One tap over output rows [first, last): out [last - first, ow] */
static inline void tap_copy(const struct pl_cpu_window *w, const float *x, int64_t i, int64_t j,
                            int64_t first, int64_t last, float *out) {
    int64_t offset = j * w->dw - w->left, lo, hi;
    pl_cpu_window_range(w->w, w->ow, w->sw, offset, &lo, &hi);
    for (int64_t r = first; r < last; r++, out += w->ow) {
        int64_t h = r * w->sh + i * w->dh - w->top;
        if (h < 0 || h >= w->h || lo >= hi) {
            zero(out, w->ow);
            continue;
        }
        zero(out, lo);
        copy_row(x + h * w->w + lo * w->sw + offset, w->sw, hi - lo, out + lo);
        zero(out + hi, w->ow - hi);
    }
}

PL_CPU_CLONES
void pl_cpu_im2col(const struct pl_cpu_window *w, const float *x, int64_t first, int64_t last,
                   float *col) {
    int64_t row = (last - first) * w->ow;
    for (int64_t c = 0; c < w->c; c++, x += w->h * w->w)
        for (int64_t i = 0; i < w->kh; i++)
            for (int64_t j = 0; j < w->kw; j++, col += row)
                tap_copy(w, x, i, j, first, last, col);
}

static inline void add_row(const float *restrict col, int64_t stride, int64_t n,
                           float *restrict x) {
    if (stride == 1)
        for (int64_t i = 0; i < n; i++)
            x[i] += col[i];
    else
        for (int64_t i = 0; i < n; i++)
            x[stride * i] += col[i];
}

static inline void tap_add(const struct pl_cpu_window *w, const float *col, int64_t i, int64_t j,
                           int64_t first, int64_t last, float *x) {
    int64_t offset = j * w->dw - w->left, lo, hi;
    pl_cpu_window_range(w->w, w->ow, w->sw, offset, &lo, &hi);
    if (lo >= hi)
        return;
    for (int64_t r = first; r < last; r++, col += w->ow) {
        int64_t h = r * w->sh + i * w->dh - w->top;
        if (h >= 0 && h < w->h)
            add_row(col + lo, w->sw, hi - lo, x + h * w->w + lo * w->sw + offset);
    }
}

PL_CPU_CLONES
void pl_cpu_col2im_add(const struct pl_cpu_window *w, const float *col, int64_t first,
                       int64_t last, float *x) {
    int64_t row = (last - first) * w->ow;
    for (int64_t c = 0; c < w->c; c++, x += w->h * w->w)
        for (int64_t i = 0; i < w->kh; i++)
            for (int64_t j = 0; j < w->kw; j++, col += row)
                tap_add(w, col, i, j, first, last, x);
}
