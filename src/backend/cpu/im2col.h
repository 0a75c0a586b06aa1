/* im2col: between one sample's planes and the matrix whose columns are the windows of an output. */
#ifndef PL_BACKEND_CPU_IM2COL_H
#define PL_BACKEND_CPU_IM2COL_H

#include "backend/cpu/cpu.h"

struct pl_cpu_window {
    int64_t c, h, w, oh, ow;           /* planes in and out */
    int64_t kh, kw, sh, sw, dh, dw;    /* kernel, stride, dilation */
    int64_t top, left;                 /* padding */
};
struct pl_cpu_window pl_cpu_window(const struct pl_op *op);
bool pl_cpu_window_is_identity(const struct pl_cpu_window *w); /* 1x1, stride 1, no padding */
/* Outputs [*first, *last) of `outs` for which tap `offset` of the window lies inside `ins`. */
void pl_cpu_window_range(int64_t ins, int64_t outs, int64_t stride, int64_t offset, int64_t *first,
                         int64_t *last);
/* col[c * kh * kw, (last - first) * ow] of output rows [first, last) from x [c, h, w]. */
void pl_cpu_im2col(const struct pl_cpu_window *w, const float *x, int64_t first, int64_t last,
                   float *col);
/* The transpose: adds every column element to where it came from. */
void pl_cpu_col2im_add(const struct pl_cpu_window *w, const float *col, int64_t first,
                       int64_t last, float *x);

#endif
