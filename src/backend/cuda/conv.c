/* conv: cuDNN's three products, and around them what it does not do: padding that is not the same on both sides (by a padded
 * copy), tensors that come in the other layout or of the other kind of element (by copies), the weights' order for channels
 * last and their rounding to bf16, the bias and its gradient, and the rectifier, ours because what is not a number should stay
 * so. */
#include "backend/cuda/plans.h"

struct state {
    struct pl_cuda_convolve *convolve;
    struct pl_cuda_view x, y;      /* as cuDNN takes them, x with its padding where that is copied */
    struct pl_cuda_weights w;      /* likewise */
    bool pads, copies_x, copies_y, copies_w;
    size_t w_at, dw_at, x_at, dx_at, y_at; /* in the backend's copies */
    size_t bytes;
};

bool pl_cuda_conv_wants_last(const struct pl_backend *b, const struct pl_op *op)
{
    int64_t x = op->x[0].dim[1], y = op->y.dim[1], unit = b->options.bf16 ? 8 : 4; /* 16 bytes */
    return (b->options.tf32 || b->options.bf16) && op->groups == 1 && x % unit == 0 && y % unit == 0;
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
    if (pl_shape_elems(&op->x[0]) > INT32_MAX || pl_shape_elems(&op->y) > INT32_MAX)
        return pl_cuda_refuse(op, "a batch of its input or output has more than 2^31 elements, cuDNN's limit\ntake a smaller train.batch; train.accumulate keeps the batch of a step");
    return PL_OK;
}

/* Whether a tensor lies as it is wanted. */
static bool lies(struct pl_cuda_view v, struct pl_cuda_view wanted)
{
    return v.bf16 == wanted.bf16 && (v.c == 1 || v.h * v.w == 1 || v.sc == wanted.sc);
}

static struct pl_cuda_view view_of(const struct pl_shape *s, struct pl_cuda_weights how)
{
    struct pl_layout l = {.block = how.last ? s->dim[1] : 0, .plane = how.last ? s->dim[2] * s->dim[3] : 0, .bf16 = how.bf16};
    return pl_cuda_view_of(s, &l);
}

/* A place for a tensor among the backend's copies. */
static size_t place(struct state *s, bool needed, int64_t elems)
{
    size_t at = s->bytes;
    if (needed)
        s->bytes += pl_cuda_copy_bytes(elems, s->w.bf16);
    return at;
}

static pl_status plan_copies(struct pl_plan *p, struct state *s, const struct pl_op *inner)
{
    int64_t w = pl_shape_elems(&p->op.p[0]), x = pl_shape_elems(&inner->x[0]);
    s->w_at = place(s, s->copies_w, w);
    s->dw_at = place(s, s->copies_w && p->op.train, w);
    s->x_at = place(s, s->copies_x, x);
    s->dx_at = place(s, s->copies_x && p->op.train && p->op.need_dx[0], x);
    s->y_at = place(s, s->copies_y, pl_shape_elems(&p->op.y));
    return pl_cuda_copies(p->backend, s->bytes);
}

/* pads: whatever padding there is is copied. */
static pl_status arrange(struct pl_plan *p, bool last, bool bf16, bool pads)
{
    const struct pl_op *op = &p->op;
    const int64_t *w = op->p[0].dim;
    struct pl_op inner = *op; /* what cuDNN is to compute */
    struct state *s = p->state;
    *s = (struct state){.w = {w[0], w[1], w[2] * w[3], last, bf16}, .copies_w = last || bf16, .pads = pads};
    /* Where a stride does not reach the last rows it does not matter how many are added there. */
    for (int k = 0; k < 2; k++)
        s->pads = s->pads || length(op, k, 2 * op->pad_begin[k]) != op->y.dim[2 + k];
    for (int k = 0; k < 2 && s->pads; k++) {
        inner.x[0].dim[2 + k] += op->pad_begin[k] + op->pad_end[k];
        inner.pad_begin[k] = inner.pad_end[k] = 0;
    }
    s->x = view_of(&inner.x[0], s->w);
    s->y = view_of(&inner.y, s->w);
    s->copies_x = s->pads || !lies(p->x[0], s->x);
    s->copies_y = !lies(p->y, s->y);
    PL_TRY(plan_copies(p, s, &inner));
    if (op->bias && op->train)
        PL_TRY(pl_cuda_scratch(p->backend, pl_cuda_channel_scratch(p->y)));
    return pl_cuda_convolve_create(p->backend, &inner, last, bf16, &s->convolve);
}

static bool has_padding(const struct pl_op *op) { return op->pad_begin[0] + op->pad_begin[1] + op->pad_end[0] + op->pad_end[1] > 0; }

/* Where cuDNN has no deterministic algorithm for channels last it is canonical between two copies, where it has none for bf16
 * either, of float, and where it does not like the padding, without. */
static pl_status plan(struct pl_plan *p)
{
    const struct pl_op *op = &p->op;
    bool last = pl_cuda_conv_wants_last(p->backend, op) && (op->lx[0].block > 1 || op->ly.block > 1), bf16 = p->backend->options.bf16;
    PL_TRY(check(op));
    PL_TRY(pl_cuda_check_sizes(p));
    p->state = pl_alloc(sizeof(struct state), "a convolution's plan");
    if (!p->state)
        return PL_ERR_MEMORY;
    pl_status s = arrange(p, last, bf16, false);
    while (s == PL_ERR_USAGE && (last || bf16)) {
        bf16 = bf16 && last;
        last = false;
        pl_error_clear();
        s = arrange(p, last, bf16, false);
    }
    if (s == PL_ERR_USAGE && has_padding(op)) {
        pl_error_clear();
        s = arrange(p, false, false, true);
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

static void *copied(const struct pl_plan *p, size_t at) { return (char *)p->backend->copies + at; }

static const void *input(const struct pl_plan *p, const struct pl_io *io)
{
    const struct state *s = p->state;
    if (!s->copies_x)
        return io->x[0];
    void *x = copied(p, s->x_at);
    if (s->pads)
        pl_cuda_pad(p->backend->stream, io->x[0], p->x[0], p->op.pad_begin[0], p->op.pad_begin[1], x, s->x);
    else
        pl_cuda_copy(p->backend->stream, io->x[0], p->x[0], x, s->x, false);
    return x;
}

static const void *weights(const struct pl_plan *p, const struct pl_io *io)
{
    const struct state *s = p->state;
    if (!s->copies_w)
        return io->p[0];
    pl_cuda_weights_lay(p->backend->stream, s->w, io->p[0], copied(p, s->w_at));
    return copied(p, s->w_at);
}

static pl_status forward(struct pl_plan *p, const struct pl_io *io)
{
    const struct state *s = p->state;
    void *y = s->copies_y ? copied(p, s->y_at) : io->y;
    PL_TRY(pl_cuda_convolve_forward(s->convolve, input(p, io), weights(p, io), y));
    if (s->copies_y)
        pl_cuda_copy(p->backend->stream, y, s->y, io->y, p->y, false);
    if (p->op.bias || p->op.relu)
        pl_cuda_bias(p->backend->stream, io->y, p->y, p->op.bias ? io->p[1] : NULL, p->op.relu);
    return PL_OK;
}

static pl_status backward_weights(struct pl_plan *p, const struct pl_io *io, const void *dy)
{
    const struct state *s = p->state;
    const void *x = input(p, io);
    if (!s->copies_w)
        return pl_cuda_convolve_weights(s->convolve, x, dy, io->accumulate, io->dp[0]);
    PL_TRY(pl_cuda_convolve_weights(s->convolve, x, dy, false, copied(p, s->dw_at)));
    pl_cuda_weights_back(p->backend->stream, s->w, copied(p, s->dw_at), io->dp[0], io->accumulate);
    return PL_OK;
}

static pl_status backward_data(struct pl_plan *p, const struct pl_io *io, const void *dy)
{
    const struct state *s = p->state;
    void *dx = s->copies_x ? copied(p, s->dx_at) : io->dx[0];
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
    const void *dy = io->dy;
    if (p->op.relu)
        pl_cuda_relu_mask(stream, io->y, (float *)(uintptr_t)io->dy, p->y);
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
