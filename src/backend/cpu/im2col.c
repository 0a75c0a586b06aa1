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
 * makes one of a plain loop. Pieces of fixed size become single moves; the last may overlap. */
static inline void copy_row(const float *restrict x, int64_t n, float *restrict out) {
    if (n >= 8) {
        for (int64_t i = 0; i + 8 < n; i += 8)
            memcpy(out + i, x + i, 8 * sizeof *out);
        memcpy(out + n - 8, x + n - 8, 8 * sizeof *out);
    } else if (n >= 4) {
        memcpy(out, x, 4 * sizeof *out);
        memcpy(out + n - 4, x + n - 4, 4 * sizeof *out);
    } else {
        for (int64_t i = 0; i < n; i++)
            out[i] = x[i];
    }
}

/* Where a tap's outputs lie in the plane: a rectangle of the band, and its first input. */
struct part {
    int64_t first, last; /* rows of the band, counted from its own first */
    int64_t lo, hi;      /* columns */
    int64_t start;       /* index in the plane of the input of (first, lo) */
};

static inline struct part part_of(const struct pl_cpu_window *w, int64_t i, int64_t j,
                                  int64_t first, int64_t last) {
    struct part p;
    int64_t down = first * w->sh + i * w->dh - w->top, across = j * w->dw - w->left;
    pl_cpu_window_range(w->h, last - first, w->sh, down, &p.first, &p.last);
    pl_cpu_window_range(w->w, w->ow, w->sw, across, &p.lo, &p.hi);
    if (p.lo >= p.hi)
        p.first = p.last = p.lo = p.hi = 0;
    p.start = (p.first * w->sh + down) * w->w + p.lo * w->sw + across;
    return p;
}

static inline void zero_columns(float *out, int64_t pitch, int64_t rows, int64_t n) {
    for (int64_t c = 0; c < n; c++)
        for (int64_t r = 0; r < rows; r++)
            out[r * pitch + c] = 0.0f;
}

/* One tap over a band of rows: out [rows, ow] */
static inline void tap_copy(const struct pl_cpu_window *w, const float *x, const struct part *p,
                            int64_t rows, float *out) {
    int64_t n = p->hi - p->lo, pitch = w->sh * w->w, ow = w->ow, stride = w->sw;
    if (p->first > 0)
        memset(out, 0, (size_t)(p->first * ow) * sizeof *out);
    if (p->last < rows)
        memset(out + p->last * ow, 0, (size_t)((rows - p->last) * ow) * sizeof *out);
    zero_columns(out + p->first * ow, ow, p->last - p->first, p->lo);
    zero_columns(out + p->first * ow + p->hi, ow, p->last - p->first, ow - p->hi);
    const float *from = x + p->start;
    out += p->first * ow + p->lo;
    for (int64_t r = p->first; r < p->last; r++, out += ow, from += pitch) {
        if (stride == 1)
            copy_row(from, n, out);
        else if (stride == 2)
            for (int64_t q = 0; q < n; q++)
                out[q] = from[2 * q];
        else
            for (int64_t q = 0; q < n; q++)
                out[q] = from[stride * q];
    }
}

PL_CLONES
void pl_cpu_im2col(const struct pl_cpu_window *w, const float *x, int64_t first, int64_t last,
                   float *col) {
    int64_t row = (last - first) * w->ow;
    for (int64_t c = 0; c < w->c; c++, x += w->h * w->w)
        for (int64_t i = 0; i < w->kh; i++)
            for (int64_t j = 0; j < w->kw; j++, col += row) {
                struct part p = part_of(w, i, j, first, last);
                tap_copy(w, x, &p, last - first, col);
            }
}

static inline void tap_add(const struct pl_cpu_window *w, const float *restrict col,
                           const struct part *p, float *restrict x) {
    int64_t n = p->hi - p->lo, pitch = w->sh * w->w, ow = w->ow, stride = w->sw;
    float *to = x + p->start;
    col += p->first * ow + p->lo;
    for (int64_t r = p->first; r < p->last; r++, col += ow, to += pitch) {
        if (stride == 1)
            for (int64_t q = 0; q < n; q++)
                to[q] += col[q];
        else
            for (int64_t q = 0; q < n; q++)
                to[stride * q] += col[q];
    }
}

PL_CLONES
void pl_cpu_col2im_add(const struct pl_cpu_window *w, const float *col, int64_t first,
                       int64_t last, float *x) {
    int64_t row = (last - first) * w->ow;
    for (int64_t c = 0; c < w->c; c++, x += w->h * w->w)
        for (int64_t i = 0; i < w->kh; i++)
            for (int64_t j = 0; j < w->kw; j++, col += row) {
                struct part p = part_of(w, i, j, first, last);
                tap_add(w, col, &p, x);
            }
}
