/* embedding: rows of a table. Sums of a row's gradients are in the order of the positions, so that the same run gives the same bits. */
#include "backend/cuda/plans.h"

static pl_status plan(struct pl_plan *p)
{
    const struct pl_op *op = &p->op;
    if (pl_shape_elems(&op->y) != pl_shape_elems(&op->x[0]) * op->p[0].dim[1])
        return pl_cuda_refuse(op, "input, output and table do not fit together");
    return pl_cuda_check_sizes(p);
}

static pl_status forward(struct pl_plan *p, const struct pl_io *io)
{
    struct pl_cuda_table t = {io->p[0], p->op.p[0].dim[0], p->op.p[0].dim[1]};
    pl_cuda_embedding_forward(p->backend->stream, t, io->x[0], pl_shape_elems(&p->op.x[0]), io->y);
    return pl_cuda_started(p);
}

static pl_status backward(struct pl_plan *p, const struct pl_io *io)
{
    if (!io->dp[0])
        return PL_OK;
    pl_cuda_embedding_backward(p->backend->stream, io->x[0], pl_shape_elems(&p->op.x[0]), io->dy, p->op.p[0].dim[0], p->op.p[0].dim[1], io->accumulate, io->dp[0]);
    return pl_cuda_started(p);
}

const struct pl_cuda_kind pl_cuda_embedding = {.plan = plan, .destroy = pl_cuda_destroy_state, .forward = forward, .backward = backward};
