/* dense: y = x W^T + b and its gradients, three matrix products. All rows up to the capacity are computed: padding rows are
 * finite and their dy is 0. With bf16 all factors are: the forward pass rounds the weights into p->far, where backward reads
 * them again, and what comes in float is rounded into a copy. */
#include "backend/cuda/plans.h"

struct state {
    struct pl_cuda_matmul *forward, *data;
    struct pl_cuda_matmul *weights, *weights_more; /* dW =, dW += */
    bool rounds_x, rounds_dy;
};

static pl_status plan_products(struct pl_plan *p, struct state *s)
{
    const struct pl_op *op = &p->op;
    int64_t rows = op->x[0].dim[0], out = op->p[0].dim[0], in = op->p[0].dim[1];
    bool bf16 = p->backend->options.bf16;
    struct pl_cuda_matmul_shape forward = {.tb = true, .m = rows, .n = out, .k = in, .bias = op->bias, .relu = op->relu, .bf16 = bf16, .bf16_out = p->y.bf16};
    struct pl_cuda_matmul_shape weights = {.ta = true, .m = out, .n = in, .k = rows, .bf16 = bf16};
    struct pl_cuda_matmul_shape data = {.m = rows, .n = in, .k = out, .bf16 = bf16, .bf16_out = p->x[0].bf16};
    PL_TRY(pl_cuda_matmul_create(p->backend, &forward, &s->forward));
    if (!op->train)
        return PL_OK;
    PL_TRY(pl_cuda_matmul_create(p->backend, &weights, &s->weights));
    weights.accumulate = true;
    PL_TRY(pl_cuda_matmul_create(p->backend, &weights, &s->weights_more));
    if (op->need_dx[0])
        PL_TRY(pl_cuda_matmul_create(p->backend, &data, &s->data));
    return op->bias ? pl_cuda_scratch(p->backend, pl_cuda_channel_scratch(p->y)) : PL_OK;
}

static size_t x_bytes(const struct pl_plan *p) { return pl_cuda_copy_bytes(pl_shape_elems(&p->op.x[0]), true); }
static size_t dy_bytes(const struct pl_plan *p) { return pl_cuda_copy_bytes(pl_shape_elems(&p->op.y), true); }

static pl_status plan_rounding(struct pl_plan *p, struct state *s)
{
    if (!p->backend->options.bf16)
        return PL_OK;
    s->rounds_x = !p->x[0].bf16;
    s->rounds_dy = !p->y.bf16;
    PL_TRY(pl_cuda_copies(p->backend, p->converted_bytes + (s->rounds_x ? x_bytes(p) : 0) + (s->rounds_dy ? dy_bytes(p) : 0)));
    return pl_cuda_far_state(p, (size_t)pl_shape_elems(&p->op.p[0]) * sizeof(uint16_t), "weights in bf16");
}

static pl_status plan(struct pl_plan *p)
{
    const struct pl_op *op = &p->op;
    if (pl_shape_row_elems(&op->x[0]) != op->p[0].dim[1] || pl_shape_row_elems(&op->y) != op->p[0].dim[0])
        return pl_cuda_refuse(op, "input, output and weight do not fit together");
    PL_TRY(pl_cuda_check_sizes(p));
    struct state *s = p->state = pl_alloc(sizeof *s, "a dense layer's plan");
    if (!s)
        return PL_ERR_MEMORY;
    PL_TRY(plan_rounding(p, s));
    return plan_products(p, s);
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

/* A tensor as it is multiplied: rounded into a copy, `behind` the others, or as it is. */
static const void *factor(const struct pl_plan *p, const float *t, const struct pl_cuda_view *v, bool rounds, size_t behind)
{
    void *copy = (char *)p->backend->copies + p->converted_bytes + behind;
    struct pl_cuda_view rounded = *v;
    if (!rounds)
        return t;
    rounded.bf16 = true;
    pl_cuda_copy(p->backend->stream, t, *v, copy, rounded, false);
    return copy;
}

static const void *input(const struct pl_plan *p, const struct pl_io *io)
{
    const struct state *s = p->state;
    return factor(p, io->x[0], &p->x[0], s->rounds_x, 0);
}

static pl_status forward(struct pl_plan *p, const struct pl_io *io)
{
    const struct state *s = p->state;
    const int64_t *d = p->op.p[0].dim;
    if (p->far)
        pl_cuda_weights_lay(p->backend->stream, (struct pl_cuda_weights){d[0], d[1], 1, false, true}, io->p[0], p->far);
    return pl_cuda_matmul_run(s->forward, input(p, io), p->far ? p->far : io->p[0], p->op.bias ? io->p[1] : NULL, io->y);
}

static pl_status backward(struct pl_plan *p, const struct pl_io *io)
{
    const struct state *s = p->state;
    pl_cuda_stream stream = p->backend->stream;
    if (p->op.relu)
        pl_cuda_relu_mask(stream, io->y, (float *)(uintptr_t)io->dy, p->y);
    if (p->op.bias && io->dp[1])
        pl_cuda_bias_back(stream, io->dy, p->y, io->accumulate, io->dp[1], p->backend->scratch);
    const void *dy = factor(p, io->dy, &p->y, s->rounds_dy, s->rounds_x ? x_bytes(p) : 0);
    if (io->dp[0])
        PL_TRY(pl_cuda_matmul_run(io->accumulate ? s->weights_more : s->weights, dy, input(p, io), NULL, io->dp[0]));
    if (s->data && io->dx[0])
        PL_TRY(pl_cuda_matmul_run(s->data, dy, p->far ? p->far : io->p[0], NULL, io->dx[0]));
    return PL_OK;
}

const struct pl_cuda_kind pl_cuda_dense = {.rectifies = true, .takes_bf16 = true, .plan = plan, .destroy = destroy, .forward = forward, .backward = backward};
