/* pool: maximum and average over windows. Maximum remembers where it found each in p->far; average divides by the points
 * inside the plane, or with count_pad inside the padded one. */
#include "backend/cuda/plans.h"

/* Whether every window along axis k has a point inside the plane */
static bool none_empty(const struct pl_op *op, int k, int64_t in, int64_t out)
{
    bool all = op->kernel[k] > 0 && op->stride[k] > 0;
    for (int64_t o = 0; o < out && all; o++) {
        int64_t begin = o * op->stride[k] - op->pad_begin[k];
        all = begin < in && begin + op->kernel[k] > 0;
    }
    return all;
}

static pl_status plan(struct pl_plan *p)
{
    const struct pl_cuda_view *x = &p->x[0], *y = &p->y;
    PL_TRY(pl_cuda_check_sizes(p));
    if (x->c != y->c || x->n != y->n)
        return pl_cuda_refuse(&p->op, "input and output differ in channels");
    if (!none_empty(&p->op, 0, x->h, y->h) || !none_empty(&p->op, 1, x->w, y->w))
        return pl_cuda_refuse(&p->op, "a window of it lies wholly in the padding");
    if (p->op.kind == PL_OP_AVGPOOL || !p->op.train)
        return PL_OK;
    return pl_cuda_far_state(p, (size_t)pl_shape_elems(&p->op.y) * sizeof(int32_t), "the places of a maximum pooling");
}

static struct pl_cuda_window window_of(const struct pl_op *op)
{
    struct pl_cuda_window w = {.count_pad = op->count_pad};
    for (int k = 0; k < 2; k++) {
        w.kernel[k] = op->kernel[k];
        w.stride[k] = op->stride[k];
        w.begin[k] = op->pad_begin[k];
        w.end[k] = op->pad_end[k];
    }
    return w;
}

static pl_status forward(struct pl_plan *p, const struct pl_io *io)
{
    if (p->op.kind == PL_OP_AVGPOOL)
        pl_cuda_pool_mean(p->backend->stream, window_of(&p->op), io->x[0], p->x[0], io->y, p->y);
    else
        pl_cuda_pool_largest(p->backend->stream, window_of(&p->op), io->x[0], p->x[0], io->y, p->y, io->train ? p->far : NULL);
    return pl_cuda_started(p);
}

static pl_status backward(struct pl_plan *p, const struct pl_io *io)
{
    if (!p->op.need_dx[0] || !io->dx[0])
        return PL_OK;
    if (p->op.kind == PL_OP_AVGPOOL)
        pl_cuda_pool_mean_back(p->backend->stream, window_of(&p->op), io->dy, p->y, io->dx[0], p->x[0]);
    else
        pl_cuda_pool_largest_back(p->backend->stream, window_of(&p->op), io->dy, p->y, p->far, io->dx[0], p->x[0]);
    return pl_cuda_started(p);
}

#define POOL {.any_layout = true, .plan = plan, .destroy = pl_cuda_destroy_state, .forward = forward, .backward = backward}
const struct pl_cuda_kind pl_cuda_maxpool = POOL;
const struct pl_cuda_kind pl_cuda_avgpool = POOL;
