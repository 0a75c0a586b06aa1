/* join: concatenation along channels, and the sum of several inputs, whose output may be the first of them. */
#include "backend/cuda/plans.h"

/* The view of input i in y, and the bytes of y before it. Of a canonical y a part is a run of elements, however they are named. */
static struct pl_cuda_view part_of(const struct pl_plan *p, int i, size_t *begin)
{
    struct pl_cuda_view v = p->x[i];
    bool last = p->y.sc < p->y.sp;
    int64_t elems = 0;
    for (int k = 0; k < i; k++)
        elems += last ? p->x[k].c : pl_shape_row_elems(&p->op.x[k]);
    *begin = (size_t)elems * pl_cuda_element_bytes(&p->y);
    v.sn = p->y.sn;
    v.sc = last ? 1 : v.h * v.w;
    v.sp = last ? p->y.c : 1;
    v.bf16 = p->y.bf16;
    return v;
}

static pl_status concat_plan(struct pl_plan *p)
{
    int64_t elems = 0;
    bool fits = true;
    for (int i = 0; i < p->op.inputs; i++) {
        elems += pl_shape_row_elems(&p->op.x[i]);
        fits = fits && p->x[i].n == p->y.n && (p->y.sc >= p->y.sp || p->x[i].h * p->x[i].w == p->y.h * p->y.w);
    }
    if (!fits || elems != pl_shape_row_elems(&p->op.y))
        return pl_cuda_refuse(&p->op, "inputs and output do not fit together");
    return pl_cuda_check_sizes(p);
}

static pl_status concat_forward(struct pl_plan *p, const struct pl_io *io)
{
    for (int i = 0; i < p->op.inputs; i++) {
        size_t begin;
        struct pl_cuda_view part = part_of(p, i, &begin);
        pl_cuda_copy(p->backend->stream, io->x[i], p->x[i], (char *)io->y + begin, part, false);
    }
    return pl_cuda_started(p);
}

static pl_status concat_backward(struct pl_plan *p, const struct pl_io *io)
{
    for (int i = 0; i < p->op.inputs; i++) {
        size_t begin;
        struct pl_cuda_view part = part_of(p, i, &begin);
        if (p->op.need_dx[i] && io->dx[i])
            pl_cuda_copy(p->backend->stream, (const char *)io->dy + begin, part, io->dx[i], p->x[i], false);
    }
    return pl_cuda_started(p);
}

static pl_status add_plan(struct pl_plan *p) { return pl_cuda_check_same(p); }

static pl_status add_forward(struct pl_plan *p, const struct pl_io *io)
{
    pl_cuda_stream stream = p->backend->stream;
    if (pl_cuda_lie_alike(p)) {
        struct pl_cuda_terms terms = {.count = p->op.inputs};
        for (int i = 0; i < p->op.inputs; i++) {
            terms.x[i] = io->x[i];
            terms.bf16[i] = p->x[i].bf16;
        }
        pl_cuda_sum(stream, terms, p->op.relu, io->y, p->y);
        return pl_cuda_started(p);
    }
    for (int i = 0; i < p->op.inputs; i++)
        if (i > 0 || io->x[0] != io->y)
            pl_cuda_copy(stream, io->x[i], p->x[i], io->y, p->y, i > 0);
    if (p->op.relu)
        pl_cuda_bias(stream, io->y, p->y, NULL, true);
    return pl_cuda_started(p);
}

static pl_status add_backward(struct pl_plan *p, const struct pl_io *io)
{
    pl_cuda_stream stream = p->backend->stream;
    for (int i = 0; i < p->op.inputs; i++) {
        if (!p->op.need_dx[i] || !io->dx[i])
            continue;
        if (p->op.relu)
            pl_cuda_function_back(stream, PL_CUDA_RELU, io->y, p->y, io->dy, p->y, io->dx[i], p->x[i]);
        else if (io->dx[i] != io->dy)
            pl_cuda_copy(stream, io->dy, p->y, io->dx[i], p->x[i], false);
    }
    return pl_cuda_started(p);
}

_Static_assert(PL_CUDA_TERMS == PL_MAX_INPUTS, "the sum takes all inputs of an operation");

const struct pl_cuda_kind pl_cuda_concat = {
    .any_layout = true, .plan = concat_plan, .destroy = pl_cuda_destroy_state, .forward = concat_forward, .backward = concat_backward};
const struct pl_cuda_kind pl_cuda_add = {
    .rectifies = true, .any_layout = true, .plan = add_plan, .destroy = pl_cuda_destroy_state, .forward = add_forward, .backward = add_backward};
