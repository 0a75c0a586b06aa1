/* dropout: Srivastava et al. 2014, scaled in training ("inverted"). Whether an element is kept is a function of seed, step,
 * sample and layer alone, the same on every backend. The pattern is kept as bytes for backward. */
#include "backend/cuda/plans.h"

#include <math.h>

struct state {
    uint64_t least; /* an element is kept when its 32 random bits are at least this */
    float scale;
    bool dropped;   /* the last forward was in training */
};

static pl_status plan(struct pl_plan *p)
{
    PL_TRY(pl_cuda_check_same(p));
    if (!(p->op.rate >= 0 && p->op.rate < 1))
        return pl_cuda_refuse(&p->op, "its rate is not in [0, 1)");
    struct state *s = p->state = pl_alloc(sizeof *s, "a dropout plan");
    if (!s)
        return PL_ERR_MEMORY;
    s->least = (uint64_t)ceil(p->op.rate * 4294967296.0);
    s->scale = (float)(1 / (1 - p->op.rate));
    return p->op.train ? pl_cuda_far_state(p, (size_t)pl_shape_elems(&p->op.y), "a dropout pattern") : PL_OK;
}

static pl_status forward(struct pl_plan *p, const struct pl_io *io)
{
    struct state *s = p->state;
    if (io->train && !p->far)
        return pl_cuda_refuse(&p->op, "training with a plan that was made without");
    s->dropped = io->train;
    struct pl_cuda_dropout d = {.pass = p->backend->pass_far, .row_key = io->row_key, .layer_key = io->layer_key,
                                .least = s->least, .scale = s->scale};
    if (io->train)
        pl_cuda_dropout_forward(p->backend->stream, d, io->x[0], p->x[0], io->y, p->y, p->far);
    else if (io->y != io->x[0])
        pl_cuda_copy(p->backend->stream, io->x[0], p->x[0], io->y, p->y, false);
    return pl_cuda_started(p);
}

static pl_status backward(struct pl_plan *p, const struct pl_io *io)
{
    const struct state *s = p->state;
    if (!p->op.need_dx[0] || !io->dx[0])
        return PL_OK;
    if (s->dropped)
        pl_cuda_dropout_backward(p->backend->stream, s->scale, p->far, io->dy, p->y, io->dx[0], p->x[0]);
    else
        pl_cuda_copy(p->backend->stream, io->dy, p->y, io->dx[0], p->x[0], false);
    return pl_cuda_started(p);
}

const struct pl_cuda_kind pl_cuda_dropout = {
    .any_layout = true, .plan = plan, .destroy = pl_cuda_destroy_state, .forward = forward, .backward = backward};
