/* Pooling: the largest value of a window (the first of equals), or the mean of what lies inside. */
#include "backend/reference/reference.h"

#include <math.h>

struct window { int64_t top, bottom, left, right; };

/* The part of output (i, j)'s window that lies inside the input. */
static struct window window_of(const struct pl_op *op, int64_t i, int64_t j)
{
    struct ref_dims x = ref_dims(&op->x[0]);
    int64_t top = i * op->stride[0] - op->pad_begin[0], left = j * op->stride[1] - op->pad_begin[1];
    int64_t bottom = top + op->kernel[0], right = left + op->kernel[1];
    return (struct window){top < 0 ? 0 : top, bottom > x.h ? x.h : bottom, left < 0 ? 0 : left, right > x.w ? x.w : right};
}

static int64_t largest(const float *plane, int64_t width, struct window w)
{
    int64_t best = -1;
    for (int64_t r = w.top; r < w.bottom; r++)
        for (int64_t c = w.left; c < w.right; c++)
            if (best < 0 || plane[r * width + c] > plane[best] || (isnan(plane[r * width + c]) && !isnan(plane[best])))
                best = r * width + c;
    return best;
}

/* What a mean divides by; beyond the padding (of a count that was rounded up) nothing counts. */
static double points(const struct pl_op *op, int64_t i, int64_t j, struct window w)
{
    struct ref_dims x = ref_dims(&op->x[0]);
    int64_t top = i * op->stride[0] - op->pad_begin[0], left = j * op->stride[1] - op->pad_begin[1];
    int64_t bottom = top + op->kernel[0], right = left + op->kernel[1];
    if (!op->count_pad)
        return (double)((w.bottom - w.top) * (w.right - w.left));
    bottom = bottom > x.h + op->pad_end[0] ? x.h + op->pad_end[0] : bottom;
    right = right > x.w + op->pad_end[1] ? x.w + op->pad_end[1] : right;
    return (double)((bottom - top) * (right - left));
}

static double sum_of(const float *plane, int64_t width, struct window w)
{
    double sum = 0;
    for (int64_t r = w.top; r < w.bottom; r++)
        for (int64_t c = w.left; c < w.right; c++)
            sum += plane[r * width + c];
    return sum;
}

static void forward(struct pl_plan *p, const struct pl_io *io, bool max)
{
    struct ref_dims x = ref_dims(&p->op.x[0]), y = ref_dims(&p->op.y);
    for (int64_t nc = 0; nc < y.n * y.c; nc++)
        for (int64_t i = 0; i < y.h; i++)
            for (int64_t j = 0; j < y.w; j++) {
                const float *plane = io->x[0] + nc * x.h * x.w;
                struct window w = window_of(&p->op, i, j);
                io->y[(nc * y.h + i) * y.w + j] = max ? plane[largest(plane, x.w, w)] : (float)(sum_of(plane, x.w, w) / points(&p->op, i, j, w));
            }
}

static void backward(struct pl_plan *p, const struct pl_io *io, bool max)
{
    struct ref_dims x = ref_dims(&p->op.x[0]), y = ref_dims(&p->op.y);
    for (int64_t i = 0; i < x.n * x.c * x.h * x.w; i++)
        p->saved[i] = 0;
    for (int64_t nc = 0; nc < y.n * y.c; nc++)
        for (int64_t i = 0; i < y.h; i++)
            for (int64_t j = 0; j < y.w; j++) {
                struct window w = window_of(&p->op, i, j);
                double *plane = p->saved + nc * x.h * x.w, dy = io->dy[(nc * y.h + i) * y.w + j];
                if (max) {
                    plane[largest(io->x[0] + nc * x.h * x.w, x.w, w)] += dy;
                    continue;
                }
                for (int64_t r = w.top; r < w.bottom; r++)
                    for (int64_t c = w.left; c < w.right; c++)
                        plane[r * x.w + c] += dy / points(&p->op, i, j, w);
            }
    for (int64_t i = 0; io->dx[0] && i < x.n * x.c * x.h * x.w; i++)
        io->dx[0][i] = (float)p->saved[i];
}

static size_t saved(const struct pl_op *op) { return (size_t)pl_shape_elems(&op->x[0]); }
static void max_forward(struct pl_plan *p, const struct pl_io *io) { forward(p, io, true); }
static void max_backward(struct pl_plan *p, const struct pl_io *io) { backward(p, io, true); }
static void avg_forward(struct pl_plan *p, const struct pl_io *io) { forward(p, io, false); }
static void avg_backward(struct pl_plan *p, const struct pl_io *io) { backward(p, io, false); }

const struct ref_op ref_maxpool = {.saved = saved, .forward = max_forward, .backward = max_backward};
const struct ref_op ref_avgpool = {.saved = saved, .forward = avg_forward, .backward = avg_backward};
