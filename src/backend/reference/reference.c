/* The oracle: every operation as plain loops in double, written to be read, held against finite
 * differences, and what the fast backends are held against. */
#include "backend/reference/reference.h"

#include <string.h>

static const struct ref_op *const table[] = {
    [PL_OP_DENSE] = &ref_dense, [PL_OP_CONV] = &ref_conv, [PL_OP_MAXPOOL] = &ref_maxpool, [PL_OP_AVGPOOL] = &ref_avgpool,
    [PL_OP_RELU] = &ref_relu, [PL_OP_SIGMOID] = &ref_sigmoid, [PL_OP_TANH] = &ref_tanh, [PL_OP_GELU] = &ref_gelu,
    [PL_OP_EMBEDDING] = &ref_embedding, [PL_OP_POSITION_EMBEDDING] = &ref_position_embedding, [PL_OP_LSTM] = &ref_lstm, [PL_OP_GRU] = &ref_gru,
    [PL_OP_ATTENTION] = &ref_attention, [PL_OP_DROPOUT] = &ref_dropout, [PL_OP_BATCHNORM] = &ref_batchnorm, [PL_OP_LAYERNORM] = &ref_layernorm,
    [PL_OP_LRN] = &ref_lrn, [PL_OP_CONCAT] = &ref_concat, [PL_OP_ADD] = &ref_add,
    [PL_OP_SOFTMAX_LOSS] = &ref_softmax_loss, [PL_OP_SIGMOID_LOSS] = &ref_sigmoid_loss, [PL_OP_EUCLIDEAN_LOSS] = &ref_euclidean_loss};

struct pl_backend { int unused; };

static pl_status open_backend(const struct pl_device_options *o, struct pl_backend **out)
{
    (void)o;
    *out = pl_alloc(sizeof **out, "backend reference");
    return *out ? PL_OK : PL_ERR_MEMORY;
}

static void close_backend(struct pl_backend *b) { pl_free(b); }

static void describe(struct pl_backend *b, char *text, size_t bytes)
{
    (void)b;
    snprintf(text, bytes, "reference: plain loops in double on one thread, for checking");
}

static void *take(struct pl_backend *b, size_t bytes, const char *what) { (void)b; return pl_alloc(bytes, what); }
static void give(struct pl_backend *b, void *p) { (void)b; pl_free(p); }

static pl_status copy(struct pl_backend *b, void *to, const void *from, size_t bytes)
{
    (void)b;
    memcpy(to, from, bytes);
    return PL_OK;
}

static pl_status finish(struct pl_backend *b) { (void)b; return PL_OK; }

static void plan_destroy(struct pl_plan *p)
{
    if (!p)
        return;
    pl_free(p->saved);
    pl_free(p->mask);
    pl_free(p);
}

static pl_status plan(struct pl_backend *b, const struct pl_op *op, struct pl_plan **out)
{
    (void)b;
    if ((size_t)op->kind >= sizeof table / sizeof *table)
        return pl_error(PL_ERR_USAGE, "backend reference", "%s: it has no such operation (%d)", op->name, (int)op->kind);
    struct pl_plan *p = pl_alloc(sizeof *p, "a plan");
    if (!p)
        return PL_ERR_MEMORY;
    p->op = *op;
    p->ops = table[op->kind];
    size_t saved = p->ops->saved ? p->ops->saved(op) : 0, mask = p->ops->mask ? p->ops->mask(op) : 0;
    bool fine = (!saved || (p->saved = pl_alloc(saved * sizeof(double), "a plan"))) && (!mask || (p->mask = pl_alloc(mask, "a plan")));
    if (!fine) {
        plan_destroy(p);
        return PL_ERR_MEMORY;
    }
    *out = p;
    return PL_OK;
}

static pl_status forward(struct pl_plan *p, const struct pl_io *io)
{
    p->trained = io->train;
    p->status = PL_OK;
    p->ops->forward(p, io);
    return p->status;
}

static pl_status backward(struct pl_plan *p, const struct pl_io *io)
{
    p->status = PL_OK;
    p->ops->backward(p, io);
    return p->status;
}

const struct pl_backend_table pl_backend_reference = {
    .name = "reference", .open = open_backend, .close = close_backend, .describe = describe, .alloc = take, .free = give,
    .upload = copy, .download = copy, .finish = finish, .plan = plan, .plan_destroy = plan_destroy, .forward = forward, .backward = backward};
