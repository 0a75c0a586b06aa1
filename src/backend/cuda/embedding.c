/* embedding: rows of a table, and one of its own for each position. Sums of a row's gradients are in the order of the positions, so
 * that the same run gives the same bits. */
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

/* ---- position_embedding ------------------------------------------------------------------------- */

/* A sample as a row of channels: the gradient of the weight is that of a bias. */
static struct pl_cuda_view rows_of(struct pl_cuda_view v)
{
    int64_t row = v.c * v.h * v.w;
    return (struct pl_cuda_view){.n = v.n, .c = row, .h = 1, .w = 1, .sn = row, .sc = 1, .sp = 1, .bf16 = v.bf16};
}

static pl_status position_plan(struct pl_plan *p)
{
    if (pl_shape_row_elems(&p->op.x[0]) != pl_shape_elems(&p->op.p[0]) || pl_shape_elems(&p->op.y) != pl_shape_elems(&p->op.x[0]))
        return pl_cuda_refuse(&p->op, "input, output and weight do not fit together");
    PL_TRY(pl_cuda_check_sizes(p));
    return p->op.train ? pl_cuda_scratch(p->backend, pl_cuda_channel_scratch(rows_of(p->y))) : PL_OK;
}

static pl_status position_forward(struct pl_plan *p, const struct pl_io *io)
{
    struct pl_cuda_view y = rows_of(p->y);
    pl_cuda_add_row(p->backend->stream, io->x[0], p->x[0].bf16, io->p[0], y.n, y.c, io->y, y.bf16);
    return pl_cuda_started(p);
}

static pl_status position_backward(struct pl_plan *p, const struct pl_io *io)
{
    struct pl_cuda_view y = rows_of(p->y);
    if (io->dp[0])
        pl_cuda_bias_back(p->backend->stream, io->dy, y, io->accumulate, io->dp[0], p->backend->scratch);
    if (p->op.need_dx[0] && io->dx[0])
        pl_cuda_copy(p->backend->stream, io->dy, y, io->dx[0], rows_of(p->x[0]), false);
    return pl_cuda_started(p);
}

const struct pl_cuda_kind pl_cuda_position_embedding = {
    .any_layout = true, .by_channels = true, .plan = position_plan, .destroy = pl_cuda_destroy_state, .forward = position_forward, .backward = position_backward};
