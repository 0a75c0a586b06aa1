/* activation: relu, sigmoid, tanh, gelu, element by element. The gradients need y alone, gelu's x. */
#include "backend/cuda/plans.h"

static enum pl_cuda_function function_of(const struct pl_plan *p)
{
    switch (p->op.kind) {
    case PL_OP_RELU: return PL_CUDA_RELU;
    case PL_OP_SIGMOID: return PL_CUDA_SIGMOID;
    case PL_OP_TANH: return PL_CUDA_TANH;
    default: return PL_CUDA_GELU;
    }
}

static pl_status plan(struct pl_plan *p) { return pl_cuda_check_same(p); }

static pl_status forward(struct pl_plan *p, const struct pl_io *io)
{
    pl_cuda_function(p->backend->stream, function_of(p), io->x[0], p->x[0], io->y, p->y);
    return pl_cuda_started(p);
}

static pl_status backward(struct pl_plan *p, const struct pl_io *io)
{
    if (!p->op.need_dx[0] || !io->dx[0])
        return PL_OK;
    bool of_x = p->op.kind == PL_OP_GELU;
    pl_cuda_function_back(p->backend->stream, function_of(p), of_x ? io->x[0] : io->y, of_x ? p->x[0] : p->y, io->dy, p->y, io->dx[0], p->x[0]);
    return pl_cuda_started(p);
}

#define ACTIVATION {.any_layout = true, .plan = plan, .destroy = pl_cuda_destroy_state, .forward = forward, .backward = backward}
const struct pl_cuda_kind pl_cuda_relu = ACTIVATION;
const struct pl_cuda_kind pl_cuda_sigmoid = ACTIVATION;
const struct pl_cuda_kind pl_cuda_tanh = ACTIVATION;
const struct pl_cuda_kind pl_cuda_gelu = ACTIVATION;
