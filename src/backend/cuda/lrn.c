/* lrn: local response normalisation across channels; p->far keeps what is raised to the power, for backward. */
#include "backend/cuda/plans.h"

static pl_status plan(struct pl_plan *p)
{
    if (p->x[0].c != p->y.c)
        return pl_cuda_refuse(&p->op, "its input is flattened with its channels last");
    PL_TRY(pl_cuda_check_same(p));
    if (p->op.size < 1)
        return pl_cuda_refuse(&p->op, "its size is less than 1");
    if (!p->op.train)
        return PL_OK;
    return pl_cuda_far_state(p, (size_t)pl_shape_elems(&p->op.y) * sizeof(float), "normalisation sums");
}

static struct pl_cuda_lrn numbers_of(const struct pl_op *op)
{
    int64_t before = (op->size - 1) / 2;
    return (struct pl_cuda_lrn){.before = before, .after = op->size - 1 - before, .weight = (float)(op->alpha / (double)op->size),
                                .beta = (float)op->beta, .k = (float)op->k};
}

static pl_status forward(struct pl_plan *p, const struct pl_io *io)
{
    pl_cuda_lrn_forward(p->backend->stream, numbers_of(&p->op), io->x[0], p->x[0], io->y, p->y, io->train ? p->far : NULL);
    return pl_cuda_started(p);
}

static pl_status backward(struct pl_plan *p, const struct pl_io *io)
{
    if (!p->op.need_dx[0] || !io->dx[0])
        return PL_OK;
    pl_cuda_lrn_backward(p->backend->stream, numbers_of(&p->op), io->x[0], p->x[0], io->y, io->dy, p->y, p->far, io->dx[0]);
    return pl_cuda_started(p);
}

const struct pl_cuda_kind pl_cuda_lrn = {
    .any_layout = true, .by_channels = true, .plan = plan, .destroy = pl_cuda_destroy_state, .forward = forward, .backward = backward};
