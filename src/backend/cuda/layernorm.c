/* layernorm: each row to mean 0 and variance 1, then scale and shift. Mean and 1 / deviation of each row stay for backward. All rows up
 * to the capacity are computed: padding rows are finite and their dy is 0. */
#include "backend/cuda/plans.h"

enum { SCALE, SHIFT };

static pl_status plan(struct pl_plan *p)
{
    const struct pl_op *op = &p->op;
    int64_t rows = op->x[0].dim[0], columns = pl_shape_row_elems(&op->x[0]);
    bool fits = pl_shape_elems(&op->y) == pl_shape_elems(&op->x[0]);
    for (int i = 0; i < op->params; i++)
        fits = fits && pl_shape_elems(&op->p[i]) == columns;
    if (!fits)
        return pl_cuda_refuse(op, "input, output and scale do not fit together");
    PL_TRY(pl_cuda_check_sizes(p));
    if (!op->train)
        return PL_OK;
    if (op->params > 0)
        PL_TRY(pl_cuda_scratch(p->backend, pl_cuda_layernorm_scratch(rows, columns)));
    return pl_cuda_far_state(p, 2 * (size_t)rows * sizeof(float), "layer normalisation's means");
}

static struct pl_cuda_layernorm job_of(const struct pl_plan *p, const struct pl_io *io)
{
    bool scales = p->op.params > 0;
    return (struct pl_cuda_layernorm){.rows = p->op.x[0].dim[0], .columns = pl_shape_row_elems(&p->op.x[0]), .x16 = p->x[0].bf16, .y16 = p->y.bf16,
                                      .epsilon = (float)p->op.epsilon, .scale = scales ? io->p[SCALE] : NULL, .shift = scales ? io->p[SHIFT] : NULL, .kept = p->far};
}

static pl_status forward(struct pl_plan *p, const struct pl_io *io)
{
    pl_cuda_layernorm_forward(p->backend->stream, job_of(p, io), io->x[0], io->y);
    return pl_cuda_started(p);
}

static pl_status backward(struct pl_plan *p, const struct pl_io *io)
{
    if (p->op.params > 0 && io->dp[SCALE] && io->dp[SHIFT])
        pl_cuda_layernorm_sums(p->backend->stream, job_of(p, io), io->x[0], io->dy, io->accumulate, io->dp[SCALE], io->dp[SHIFT], p->backend->scratch);
    if (p->op.need_dx[0] && io->dx[0])
        pl_cuda_layernorm_backward(p->backend->stream, job_of(p, io), io->x[0], io->dy, io->dx[0]);
    return pl_cuda_started(p);
}

const struct pl_cuda_kind pl_cuda_layernorm = {
    .any_layout = true, .by_channels = true, .plan = plan, .destroy = pl_cuda_destroy_state, .forward = forward, .backward = backward};
