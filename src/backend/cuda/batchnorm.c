/* batchnorm: Ioffe & Szegedy 2015, over batch and plane of the real rows, with the rectifier behind it. In training the
 * gradients are those of the batch's own statistics; in evaluation the running ones are constants. */
#include "backend/cuda/plans.h"

struct state { bool batch; }; /* the last forward used the batch's own statistics */

static pl_status plan(struct pl_plan *p)
{
    if (p->x[0].c != p->y.c)
        return pl_cuda_refuse(&p->op, "its input is flattened with its channels last");
    if (p->op.sync)
        return pl_cuda_refuse(&p->op, "it normalises over the samples of one rank, not of all (train.sync_bn)");
    PL_TRY(pl_cuda_check_same(p));
    for (int i = 0; i < p->op.params; i++)
        if (pl_shape_elems(&p->op.p[i]) != p->y.c)
            return pl_cuda_refuse(&p->op, "a parameter has not one element a channel");
    size_t a = pl_cuda_channel_scratch(p->x[0]), b = pl_cuda_channel_scratch(p->y);
    PL_TRY(pl_cuda_scratch(p->backend, a > b ? a : b));
    p->state = pl_alloc(sizeof(struct state), "a batch normalisation's plan");
    if (!p->state)
        return PL_ERR_MEMORY;
    return pl_cuda_far_state(p, PL_CUDA_BATCHNORM_KEPT * (size_t)p->y.c * sizeof(double), "a batch normalisation's statistics");
}

static struct pl_cuda_batchnorm job_of(const struct pl_plan *p, const struct pl_io *io, bool batch)
{
    return (struct pl_cuda_batchnorm){.vx = p->x[0], .vy = p->y, .epsilon = p->op.epsilon, .relu = p->op.relu, .train = batch,
                                      .pass = p->backend->pass_far, .scale = io->p[0], .shift = io->p[1], .mean = io->p[2],
                                      .variance = io->p[3], .kept = p->far, .scratch = p->backend->scratch};
}

static pl_status forward(struct pl_plan *p, const struct pl_io *io)
{
    struct state *s = p->state;
    s->batch = io->train;
    pl_cuda_batchnorm_forward(p->backend->stream, job_of(p, io, s->batch), io->x[0], io->y);
    return pl_cuda_started(p);
}

static pl_status backward(struct pl_plan *p, const struct pl_io *io)
{
    const struct state *s = p->state;
    float *dx = p->op.need_dx[0] ? io->dx[0] : NULL;
    pl_cuda_batchnorm_backward(p->backend->stream, job_of(p, io, s->batch), io->x[0], io->y, io->dy, dx, io->dp, io->accumulate);
    return pl_cuda_started(p);
}

const struct pl_cuda_kind pl_cuda_batchnorm = {
    .rectifies = true, .any_layout = true, .by_channels = true, .plan = plan, .destroy = pl_cuda_destroy_state, .forward = forward, .backward = backward};
