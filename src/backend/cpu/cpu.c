/* cpu: the backend's table, memory, and the making of plans. What an operation does is in the file
 * of its name; the list that maps operations to them is at the end. Memory is the host's own, so
 * upload and download copy and finish has nothing to wait for. */
#include "backend/cpu/lanes.h"

#include <string.h>

static pl_status cpu_open(const struct pl_device_options *o, struct pl_backend **out) {
    if (o->bf16 && !pl_cpu_dnnl_bf16())
        return pl_error(PL_ERR_USAGE, "backend", "train.precision bf16 on CPUs needs AVX512-BF16 or AMX, and oneDNN: `paceline doctor` shows what is here");
    struct pl_backend *b = pl_alloc(sizeof *b, "the cpu backend");
    if (b == NULL)
        return PL_ERR_MEMORY;
    b->threads = o->threads < 1 ? 1 : o->threads;
    b->blas_parallel = pl_cpu_blas_open(b->threads);
    b->lanes = pl_cpu_lanes_here();
    b->dnnl = pl_cpu_dnnl_open();
    b->bf16 = o->bf16;
    if (b->bf16 && b->dnnl == NULL) {
        pl_free(b);
        return PL_ERR_MEMORY;
    }
    *out = b;
    return PL_OK;
}

static void cpu_close(struct pl_backend *b) {
    if (b == NULL)
        return;
    pl_pool_delegate(NULL);
    pl_cpu_dnnl_close(b->dnnl);
    pl_free(b->scratch);
    pl_free(b->canonical);
    pl_free(b);
}

static void cpu_describe(struct pl_backend *b, char *text, size_t bytes) {
    char have[256];
    pl_backend_cpu_describe(have, sizeof have);
    snprintf(text, bytes, "%d thread%s, %s", b->threads, b->threads == 1 ? "" : "s", have);
}

static void *cpu_alloc(struct pl_backend *b, size_t bytes, const char *what) {
    (void)b;
    return pl_alloc(bytes, what);
}

static void cpu_free(struct pl_backend *b, void *p) {
    (void)b;
    pl_free(p);
}

static pl_status cpu_copy(struct pl_backend *b, void *to, const void *from, size_t bytes) {
    (void)b;
    if (bytes > 0)
        memcpy(to, from, bytes);
    return PL_OK;
}

static pl_status cpu_finish(struct pl_backend *b) {
    (void)b;
    return PL_OK;
}

pl_status pl_cpu_plan_nothing(struct pl_plan *p) {
    (void)p;
    return PL_OK;
}

void pl_cpu_destroy_state(struct pl_plan *p) { pl_free(p->state); }

pl_status pl_cpu_scratch(struct pl_backend *b, size_t bytes) {
    if (bytes <= b->scratch_bytes)
        return PL_OK;
    char *more = pl_alloc(bytes, "the cpu backend's scratch memory");
    if (more == NULL)
        return PL_ERR_MEMORY;
    pl_free(b->scratch);
    b->scratch = more;
    b->scratch_bytes = bytes;
    return PL_OK;
}

pl_status pl_cpu_refuse(const struct pl_op *op, const char *why) {
    return pl_error(PL_ERR_USAGE, "backend", "cpu cannot compute layer %s: %s",
                    op->name ? op->name : "?", why);
}

const struct pl_cpu_kind *const pl_cpu_kinds[PL_OP_EUCLIDEAN_LOSS + 1] = {
    [PL_OP_DENSE] = &pl_cpu_dense,
    [PL_OP_CONV] = &pl_cpu_conv,
    [PL_OP_MAXPOOL] = &pl_cpu_maxpool,
    [PL_OP_AVGPOOL] = &pl_cpu_avgpool,
    [PL_OP_RELU] = &pl_cpu_relu,
    [PL_OP_SIGMOID] = &pl_cpu_sigmoid,
    [PL_OP_TANH] = &pl_cpu_tanh,
    [PL_OP_GELU] = &pl_cpu_gelu,
    [PL_OP_EMBEDDING] = &pl_cpu_embedding,
    [PL_OP_POSITION_EMBEDDING] = &pl_cpu_position_embedding,
    [PL_OP_LSTM] = &pl_cpu_recurrent,
    [PL_OP_GRU] = &pl_cpu_recurrent,
    [PL_OP_ATTENTION] = &pl_cpu_attention,
    [PL_OP_DROPOUT] = &pl_cpu_dropout,
    [PL_OP_BATCHNORM] = &pl_cpu_batchnorm,
    [PL_OP_LAYERNORM] = &pl_cpu_layernorm,
    [PL_OP_LRN] = &pl_cpu_lrn,
    [PL_OP_CONCAT] = &pl_cpu_concat,
    [PL_OP_ADD] = &pl_cpu_add,
    [PL_OP_SOFTMAX_LOSS] = &pl_cpu_softmax_loss,
    [PL_OP_SIGMOID_LOSS] = &pl_cpu_sigmoid_loss,
    [PL_OP_EUCLIDEAN_LOSS] = &pl_cpu_euclidean_loss,
};

static void cpu_plan_destroy(struct pl_plan *p) {
    if (p == NULL)
        return;
    p->kind->destroy(p);
    pl_free(p);
}

static bool cpu_fuses_relu(enum pl_op_kind kind) {
    return kind == PL_OP_CONV || kind == PL_OP_BATCHNORM || kind == PL_OP_ADD || kind == PL_OP_DENSE;
}

static bool cpu_wants_bf16(const struct pl_backend *b, enum pl_op_kind kind) {
    return b->bf16 && kind == PL_OP_DENSE;
}

static pl_status cpu_plan(struct pl_backend *b, const struct pl_op *op, struct pl_plan **out) {
    *out = NULL;
    if (op->kind > PL_OP_EUCLIDEAN_LOSS || pl_cpu_kinds[op->kind] == NULL)
        return pl_cpu_refuse(op, "this kind of operation is unknown to it");
    struct pl_plan *p = pl_alloc(sizeof *p, "a plan");
    if (p == NULL)
        return PL_ERR_MEMORY;
    p->op = *op;
    p->backend = b;
    p->kind = pl_cpu_kinds[op->kind];
    pl_status s = p->kind->plan(p);
    if (s == PL_OK)
        s = pl_cpu_convert_plan(p);
    if (s < 0)
        cpu_plan_destroy(p);
    else
        *out = p;
    return s;
}

/* oneDNN's own rectifier behind a convolution makes 0 of what is not a number; ours lets the loss show it. */
static pl_status cpu_forward(struct pl_plan *p, const struct pl_io *io) {
    struct pl_io in = p->converts ? pl_cpu_convert_in(p, io) : *io;
    PL_TRY(p->kind->forward(p, &in));
    if (p->op.relu && !p->kind->rectifies)
        pl_cpu_relu_end(p->backend, io->y, p->op.ly.bf16, pl_shape_elems(&p->op.y));
    return PL_OK;
}

static pl_status cpu_backward(struct pl_plan *p, const struct pl_io *io) {
    if (p->op.relu && !p->kind->rectifies)
        pl_cpu_relu_mask(p->backend, io->y, (void *)(uintptr_t)io->dy, p->op.ly.bf16, pl_shape_elems(&p->op.y));
    if (!p->converts)
        return p->kind->backward(p, io);
    struct pl_io in = pl_cpu_convert_in(p, io);
    PL_TRY(p->kind->backward(p, &in));
    pl_cpu_convert_out(p, io);
    return PL_OK;
}

const struct pl_backend_table pl_backend_cpu = {
    .name = "cpu",
    .open = cpu_open,
    .close = cpu_close,
    .describe = cpu_describe,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .upload = cpu_copy,
    .download = cpu_copy,
    .finish = cpu_finish,
    .layout = pl_cpu_layout,
    .fuses_relu = cpu_fuses_relu,
    .wants_bf16 = cpu_wants_bf16,
    .round = pl_cpu_round_here,
    .plan = cpu_plan,
    .plan_destroy = cpu_plan_destroy,
    .forward = cpu_forward,
    .backward = cpu_backward,
};
