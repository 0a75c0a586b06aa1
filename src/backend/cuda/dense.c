/* dense: y = x W^T + b and its gradients, three matrix products. All rows up to the capacity are computed: padding rows are
 * finite and their dy is 0. */
#include "backend/cuda/cuda.h"

struct state {
    struct pl_cuda_matmul *forward, *data;
    struct pl_cuda_matmul *weights, *weights_more; /* dW =, dW += */
};

static pl_status plan_products(struct pl_plan *p, struct state *s)
{
    const struct pl_op *op = &p->op;
    int64_t rows = op->x[0].dim[0], out = op->p[0].dim[0], in = op->p[0].dim[1];
    struct pl_cuda_matmul_shape weights = {.ta = true, .m = out, .n = in, .k = rows};
    PL_TRY(pl_cuda_matmul_create(p->backend, &(struct pl_cuda_matmul_shape){.tb = true, .m = rows, .n = out, .k = in, .bias = op->bias, .relu = op->relu}, &s->forward));
    if (!op->train)
        return PL_OK;
    PL_TRY(pl_cuda_matmul_create(p->backend, &weights, &s->weights));
    weights.accumulate = true;
    PL_TRY(pl_cuda_matmul_create(p->backend, &weights, &s->weights_more));
    if (op->need_dx[0])
        PL_TRY(pl_cuda_matmul_create(p->backend, &(struct pl_cuda_matmul_shape){.m = rows, .n = in, .k = out}, &s->data));
    return op->bias ? pl_cuda_scratch(p->backend, pl_cuda_channel_scratch(p->y)) : PL_OK;
}

static pl_status plan(struct pl_plan *p)
{
    const struct pl_op *op = &p->op;
    if (pl_shape_row_elems(&op->x[0]) != op->p[0].dim[1] || pl_shape_row_elems(&op->y) != op->p[0].dim[0])
        return pl_cuda_refuse(op, "input, output and weight do not fit together");
    struct state *s = p->state = pl_alloc(sizeof *s, "a dense layer's plan");
    return s ? plan_products(p, s) : PL_ERR_MEMORY;
}

static void destroy(struct pl_plan *p)
{
    struct state *s = p->state;
    if (s) {
        pl_cuda_matmul_destroy(s->forward);
        pl_cuda_matmul_destroy(s->data);
        pl_cuda_matmul_destroy(s->weights);
        pl_cuda_matmul_destroy(s->weights_more);
    }
    pl_cuda_destroy_state(p);
}

static pl_status forward(struct pl_plan *p, const struct pl_io *io)
{
    const struct state *s = p->state;
    return pl_cuda_matmul_run(s->forward, io->x[0], io->p[0], p->op.bias ? io->p[1] : NULL, io->y);
}

static pl_status backward(struct pl_plan *p, const struct pl_io *io)
{
    const struct state *s = p->state;
    pl_cuda_stream stream = p->backend->stream;
    if (p->op.relu)
        pl_cuda_relu_mask(stream, io->y, (float *)(uintptr_t)io->dy, pl_shape_elems(&p->op.y));
    if (io->dp[0])
        PL_TRY(pl_cuda_matmul_run(io->accumulate ? s->weights_more : s->weights, io->dy, io->x[0], NULL, io->dp[0]));
    if (p->op.bias && io->dp[1])
        pl_cuda_bias_back(stream, io->dy, p->y, io->accumulate, io->dp[1], p->backend->scratch);
    if (s->data && io->dx[0])
        PL_TRY(pl_cuda_matmul_run(s->data, io->dy, io->p[0], NULL, io->dx[0]));
    return PL_OK;
}

const struct pl_cuda_kind pl_cuda_dense = {.rectifies = true, .plan = plan, .destroy = destroy, .forward = forward, .backward = backward};
