/* conv: cuDNN's three products, and around them what it does not do: padding that is not the same on both sides (by a padded
 * copy), tensors that come in the other layout (by copies), the weights' order for channels last, the bias and its gradient,
 * and the rectifier, ours because what is not a number should stay so. */
#include "backend/cuda/cuda.h"

struct state {
    struct pl_cuda_convolve *convolve;
    struct pl_cuda_view x, y;      /* as cuDNN takes them, x with its padding where that is copied */
    bool last, pads, copies_x, copies_y;
    int64_t w_at, dw_at, x_at, dx_at, y_at; /* floats into the backend's copies */
    int64_t elems;
};

bool pl_cuda_conv_wants_last(const struct pl_backend *b, const struct pl_op *op)
{
    return b->options.tf32 && op->groups == 1 && op->x[0].dim[1] % 4 == 0 && op->y.dim[1] % 4 == 0;
}

/* ---- the plan ----------------------------------------------------------------------------------- */

/* The length of the output in dimension k with so much padding in all. */
static int64_t length(const struct pl_op *op, int k, int64_t padding)
{
    int64_t reach = op->dilation[k] * (op->kernel[k] - 1) + 1, x = op->x[0].dim[2 + k] + padding;
    return x < reach ? 0 : (x - reach) / op->stride[k] + 1;
}

static pl_status check(const struct pl_op *op)
{
    if (op->x[0].dims != 4 || op->y.dims != 4 || op->p[0].dims != 4)
        return pl_cuda_refuse(op, "it takes images, [N, C, H, W]");
    for (int k = 0; k < 2; k++)
        if (op->y.dim[2 + k] != length(op, k, op->pad_begin[k] + op->pad_end[k]))
            return pl_cuda_refuse(op, "the size of its output does not follow from its input");
    if (op->p[0].dim[1] * op->groups != op->x[0].dim[1] || op->p[0].dim[0] != op->y.dim[1])
        return pl_cuda_refuse(op, "input, output and weight do not fit together");
    return PL_OK;
}

static bool lies(struct pl_cuda_view v, bool last) { return v.c == 1 || v.h * v.w == 1 || (last ? v.sc == 1 : v.sp == 1); }

static struct pl_cuda_view view_of(const struct pl_shape *s, bool last)
{
    struct pl_layout l = last ? (struct pl_layout){.block = s->dim[1], .plane = s->dim[2] * s->dim[3]} : (struct pl_layout){0};
    return pl_cuda_view_of(s, &l);
}

/* A place for a tensor among the backend's copies, aligned as memory of its own would be. */
static int64_t place(struct state *s, bool needed, int64_t elems)
{
    int64_t at = s->elems;
    if (needed)
        s->elems += (elems + 63) / 64 * 64;
    return at;
}

static pl_status plan_copies(struct pl_plan *p, struct state *s, const struct pl_op *inner)
{
    int64_t w = pl_shape_elems(&p->op.p[0]), x = pl_shape_elems(&inner->x[0]);
    s->w_at = place(s, s->last, w);
    s->dw_at = place(s, s->last && p->op.train, w);
    s->x_at = place(s, s->copies_x, x);
    s->dx_at = place(s, s->copies_x && p->op.train && p->op.need_dx[0], x);
    s->y_at = place(s, s->copies_y, pl_shape_elems(&p->op.y));
    return pl_cuda_copies(p->backend, (size_t)s->elems * sizeof(float));
}

static pl_status arrange(struct pl_plan *p, bool last)
{
    const struct pl_op *op = &p->op;
    struct pl_op inner = *op; /* what cuDNN is to compute */
    struct state *s = p->state;
    *s = (struct state){.last = last};
    /* Where a stride does not reach the last rows it does not matter how many are added there. */
    for (int k = 0; k < 2; k++)
        s->pads = s->pads || length(op, k, 2 * op->pad_begin[k]) != op->y.dim[2 + k];
    for (int k = 0; k < 2 && s->pads; k++) {
        inner.x[0].dim[2 + k] += op->pad_begin[k] + op->pad_end[k];
        inner.pad_begin[k] = inner.pad_end[k] = 0;
    }
    s->x = view_of(&inner.x[0], s->last);
    s->y = view_of(&inner.y, s->last);
    s->copies_x = s->pads || !lies(p->x[0], s->last);
    s->copies_y = !lies(p->y, s->last);
    PL_TRY(plan_copies(p, s, &inner));
    if (op->bias && op->train)
        PL_TRY(pl_cuda_scratch(p->backend, pl_cuda_channel_scratch(p->y)));
    return pl_cuda_convolve_create(p->backend, &inner, s->last, &s->convolve);
}

/* Where cuDNN has no deterministic algorithm for channels last it is canonical between two copies. */
static pl_status plan(struct pl_plan *p)
{
    const struct pl_op *op = &p->op;
    bool last = pl_cuda_conv_wants_last(p->backend, op) && (op->lx[0].block > 1 || op->ly.block > 1);
    PL_TRY(check(op));
    p->state = pl_alloc(sizeof(struct state), "a convolution's plan");
    if (!p->state)
        return PL_ERR_MEMORY;
    pl_status s = arrange(p, last);
    if (s == PL_ERR_USAGE && last) {
        pl_error_clear();
        s = arrange(p, false);
    }
    return s;
}

static void destroy(struct pl_plan *p)
{
    struct state *s = p->state;
    if (s)
        pl_cuda_convolve_destroy(s->convolve);
    pl_cuda_destroy_state(p);
}

/* ---- a pass ------------------------------------------------------------------------------------- */

static float *copied(const struct pl_plan *p, int64_t at) { return (float *)p->backend->copies + at; }

static const float *input(const struct pl_plan *p, const struct pl_io *io)
{
    const struct state *s = p->state;
    if (!s->copies_x)
        return io->x[0];
    float *x = copied(p, s->x_at);
    if (s->pads)
        pl_cuda_pad(p->backend->stream, io->x[0], p->x[0], p->op.pad_begin[0], p->op.pad_begin[1], x, s->x);
    else
        pl_cuda_copy(p->backend->stream, io->x[0], p->x[0], x, s->x, false);
    return x;
}

/* [O, C, kh, kw] as [O, kh, kw, C] for channels last */
static const float *weights(const struct pl_plan *p, const struct pl_io *io)
{
    const struct state *s = p->state;
    const int64_t *d = p->op.p[0].dim;
    if (!s->last)
        return io->p[0];
    pl_cuda_weights_last(p->backend->stream, d[0], d[1], d[2] * d[3], io->p[0], copied(p, s->w_at));
    return copied(p, s->w_at);
}

static pl_status forward(struct pl_plan *p, const struct pl_io *io)
{
    const struct state *s = p->state;
    float *y = s->copies_y ? copied(p, s->y_at) : io->y;
    PL_TRY(pl_cuda_convolve_forward(s->convolve, input(p, io), weights(p, io), y));
    if (s->copies_y)
        pl_cuda_copy(p->backend->stream, y, s->y, io->y, p->y, false);
    if (p->op.bias || p->op.relu)
        pl_cuda_bias(p->backend->stream, io->y, p->y, p->op.bias ? io->p[1] : NULL, p->op.relu);
    return PL_OK;
}

static pl_status backward_weights(struct pl_plan *p, const struct pl_io *io, const float *dy)
{
    const struct state *s = p->state;
    const int64_t *d = p->op.p[0].dim;
    const float *x = input(p, io);
    if (!s->last)
        return pl_cuda_convolve_weights(s->convolve, x, dy, io->accumulate, io->dp[0]);
    PL_TRY(pl_cuda_convolve_weights(s->convolve, x, dy, false, copied(p, s->dw_at)));
    pl_cuda_weights_back(p->backend->stream, d[0], d[1], d[2] * d[3], copied(p, s->dw_at), io->dp[0], io->accumulate);
    return PL_OK;
}

static pl_status backward_data(struct pl_plan *p, const struct pl_io *io, const float *dy)
{
    const struct state *s = p->state;
    float *dx = s->copies_x ? copied(p, s->dx_at) : io->dx[0];
    PL_TRY(pl_cuda_convolve_data(s->convolve, dy, weights(p, io), dx));
    if (s->pads)
        pl_cuda_crop(p->backend->stream, dx, s->x, p->op.pad_begin[0], p->op.pad_begin[1], io->dx[0], p->x[0]);
    else if (s->copies_x)
        pl_cuda_copy(p->backend->stream, dx, s->x, io->dx[0], p->x[0], false);
    return PL_OK;
}

static pl_status backward(struct pl_plan *p, const struct pl_io *io)
{
    const struct state *s = p->state;
    pl_cuda_stream stream = p->backend->stream;
    const float *dy = io->dy;
    if (p->op.relu)
        pl_cuda_relu_mask(stream, io->y, (float *)(uintptr_t)io->dy, pl_shape_elems(&p->op.y));
    if (p->op.bias && io->dp[1])
        pl_cuda_bias_back(stream, io->dy, p->y, io->accumulate, io->dp[1], p->backend->scratch);
    if (s->copies_y) {
        dy = copied(p, s->y_at);
        pl_cuda_copy(stream, io->dy, p->y, copied(p, s->y_at), s->y, false);
    }
    if (io->dp[0])
        PL_TRY(backward_weights(p, io, dy));
    return p->op.need_dx[0] && io->dx[0] ? backward_data(p, io, dy) : PL_OK;
}

const struct pl_cuda_kind pl_cuda_conv = {.rectifies = true, .any_layout = true, .plan = plan, .destroy = destroy, .forward = forward, .backward = backward};
