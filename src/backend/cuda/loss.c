/* loss: softmax with cross-entropy, sigmoid with cross-entropy, squared distance. The sums over the real rows stay in device
 * memory (the end of p->far); who asks for them waits. */
#include "backend/cuda/plans.h"

_Static_assert((int)PL_CUDA_NO_LABEL == PL_NO_LABEL, "kernels and host mean the same");

/* The losses of all rows, their sum, and where rows are positions what each counts, a sample's alike. */
static bool of_positions(const struct pl_op *op) { return op->kind == PL_OP_SOFTMAX_LOSS && op->positions > 0; }
static struct pl_cuda_loss *sum_of(const struct pl_plan *p) { return (struct pl_cuda_loss *)p->far + p->op.x[0].dim[0]; }

static pl_status plan(struct pl_plan *p)
{
    const struct pl_op *op = &p->op;
    int64_t columns = pl_shape_row_elems(&op->x[0]);
    PL_TRY(pl_cuda_check_sizes(p));
    if (op->kind == PL_OP_SOFTMAX_LOSS && (op->x[0].dims < 2 || op->x[0].dim[1] != columns))
        return pl_cuda_refuse(op, "its input is not one number a class");
    if (op->kind != PL_OP_SOFTMAX_LOSS && op->label_floats == 0 && columns != 1)
        return pl_cuda_refuse(op, "integer labels need one number a sample");
    int64_t rows = op->x[0].dim[0], samples = of_positions(op) ? rows / op->positions : 0;
    return pl_cuda_far_state(p, (size_t)(rows + 1) * sizeof(struct pl_cuda_loss) + (size_t)samples * sizeof(double), "the losses of a batch");
}

static enum pl_cuda_loss_kind kind_of(const struct pl_op *op)
{
    return op->kind == PL_OP_SOFTMAX_LOSS   ? PL_CUDA_SOFTMAX_LOSS
           : op->kind == PL_OP_SIGMOID_LOSS ? PL_CUDA_SIGMOID_LOSS
                                            : PL_CUDA_EUCLIDEAN_LOSS;
}

static struct pl_cuda_labels labels_of(const struct pl_plan *p, const struct pl_io *io)
{
    return (struct pl_cuda_labels){.pass = p->backend->pass_far, .label = io->label,
                                   .floats = p->op.kind != PL_OP_SOFTMAX_LOSS && p->op.label_floats > 0,
                                   .share = of_positions(&p->op) ? (double *)(sum_of(p) + 1) : NULL,
                                   .positions = pl_op_positions(&p->op), .smoothing = p->op.smoothing, .weight = p->op.weight};
}

static pl_status sums(struct pl_plan *p, const struct pl_io *io)
{
    struct pl_cuda_loss sum;
    struct pl_cuda_device *d = p->backend->device;
    PL_TRY(pl_cuda_download(d, &sum, sum_of(p), sizeof sum));
    if (sum.wrong < io->rows) {
        int32_t label;
        PL_TRY(pl_cuda_download(d, &label, (const int32_t *)io->label + sum.wrong, sizeof label));
        return pl_error(PL_ERR_DATA, "backend", "layer %s: label %d is not one of %lld classes", p->op.name, label,
                        (long long)pl_shape_row_elems(&p->op.x[0]));
    }
    io->sums->loss += sum.loss;
    io->sums->total += p->op.weight * sum.loss;
    io->sums->correct += sum.correct;
    io->sums->correct5 += sum.correct5;
    io->sums->rows += io->rows;
    return PL_OK;
}

static pl_status forward(struct pl_plan *p, const struct pl_io *io)
{
    pl_cuda_loss_forward(p->backend->stream, kind_of(&p->op), labels_of(p, io), p->op.x[0].dim[0], pl_shape_row_elems(&p->op.x[0]),
                         io->x[0], io->y, p->far, sum_of(p));
    PL_TRY(pl_cuda_started(p));
    return io->label && io->sums ? sums(p, io) : PL_OK;
}

static pl_status backward(struct pl_plan *p, const struct pl_io *io)
{
    if (!p->op.need_dx[0] || !io->dx[0])
        return PL_OK;
    pl_cuda_loss_backward(p->backend->stream, kind_of(&p->op), labels_of(p, io), p->op.x[0].dim[0], pl_shape_row_elems(&p->op.x[0]),
                          io->y, io->dx[0]);
    return pl_cuda_started(p);
}

#define LOSS {.plan = plan, .destroy = pl_cuda_destroy_state, .forward = forward, .backward = backward, .sums = sums}
const struct pl_cuda_kind pl_cuda_softmax_loss = LOSS;
const struct pl_cuda_kind pl_cuda_sigmoid_loss = LOSS;
const struct pl_cuda_kind pl_cuda_euclidean_loss = LOSS;
