/* dense: y = x W^T + b and its gradients, three matrix products (cuBLAS and Caffe do the same), by the
 * library or, where the batch is narrow, two of them by our own (dense_narrow.c), or with bf16 factors (dense_bf16.c). All rows up to the capacity are
 * computed: padding rows are finite and their dy is 0. */
#include "backend/cpu/bf16.h"

struct state {
    bool narrow;
    struct pl_cpu_dense_bf16 *bf16; /* NULL: float */
};

static pl_status plan(struct pl_plan *p) {
    const struct pl_op *op = &p->op;
    if (pl_shape_row_elems(&op->x[0]) != op->p[0].dim[1] ||
        pl_shape_row_elems(&op->y) != op->p[0].dim[0])
        return pl_cpu_refuse(op, "input, output and weight do not fit together");
    struct state *s = p->state = pl_alloc(sizeof *s, "a dense layer's plan");
    if (s == NULL)
        return PL_ERR_MEMORY;
    PL_TRY(pl_cpu_dense_bf16_create(p, &s->bf16));
    if (s->bf16 == NULL)
        PL_TRY(pl_cpu_dense_narrow_plan(p, &s->narrow));
    return pl_cpu_gemm_check(op, op->x[0].dim[0], op->p[0].dim[0], op->p[0].dim[1]);
}

static void destroy(struct pl_plan *p) {
    struct state *s = p->state;
    if (s != NULL)
        pl_cpu_dense_bf16_destroy(s->bf16);
    pl_free(s);
}

struct bias_job {
    int64_t columns;
    const float *bias; /* [O] */
    float *y;          /* [N, O] */
};

PL_CLONES
static void bias_rows(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct bias_job *j = arg;
    for (int64_t n = begin; n < end; n++)
        for (int64_t o = 0; o < j->columns; o++)
            j->y[n * j->columns + o] = j->bias[o];
}

static pl_status forward(struct pl_plan *p, const struct pl_io *io) {
    const struct state *s = p->state;
    if (s->bf16 != NULL)
        return pl_cpu_dense_bf16_forward(s->bf16, io);
    if (s->narrow) {
        pl_cpu_dense_narrow_forward(p, io);
        return PL_OK;
    }
    int64_t n = p->op.x[0].dim[0], out = p->op.p[0].dim[0], in = p->op.p[0].dim[1];
    if (p->op.bias) {
        struct bias_job j = {out, io->p[1], io->y};
        pl_cpu_parts(p->backend, n, PL_CPU_GRAIN / out + 1, bias_rows, &j);
    }
    pl_cpu_gemm(p->backend,
                &(struct pl_cpu_gemm){.tb = true, .m = n, .n = out, .k = in, .a = io->x[0],
                                      .lda = in, .b = io->p[0], .ldb = in,
                                      .beta = p->op.bias ? 1.0f : 0.0f, .c = io->y, .ldc = out});
    return PL_OK;
}

struct sum_job {
    int64_t rows, stride;
    const void *from;
    float *to;
    bool accumulate;
};

PL_WITHIN void sum_columns(const struct sum_job *j, bool half, int64_t begin, int64_t end) {
    const void *restrict from = j->from;
    float *restrict to = j->to;
    if (!j->accumulate)
        for (int64_t o = begin; o < end; o++)
            to[o] = 0.0f;
    for (int64_t n = 0; n < j->rows; n++)
        for (int64_t o = begin; o < end; o++)
            to[o] += pl_element(from, n * j->stride + o, half);
}

PL_CLONES
static void sum_floats(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    sum_columns(arg, false, begin, end);
}

PL_HALVES
static void sum_halves(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    sum_columns(arg, true, begin, end);
}

void pl_cpu_sum_rows(const struct pl_backend *b, const void *from, bool half, int64_t rows, int64_t columns, int64_t stride, float *to, bool accumulate) {
    struct sum_job j = {rows, stride, from, to, accumulate};
    pl_cpu_parts(b, columns, PL_CPU_GRAIN / rows + 1, half ? sum_halves : sum_floats, &j);
}

static void weight_gradient(struct pl_plan *p, const struct pl_io *io) {
    int64_t n = p->op.x[0].dim[0], out = p->op.p[0].dim[0], in = p->op.p[0].dim[1];
    pl_cpu_gemm(p->backend, &(struct pl_cpu_gemm){.ta = true, .m = out, .n = in, .k = n, .a = io->dy, .lda = out, .b = io->x[0], .ldb = in,
                                                  .beta = io->accumulate ? 1.0f : 0.0f, .c = io->dp[0], .ldc = in});
}

static void data_gradient(struct pl_plan *p, const struct pl_io *io) {
    int64_t n = p->op.x[0].dim[0], out = p->op.p[0].dim[0], in = p->op.p[0].dim[1];
    pl_cpu_gemm(p->backend, &(struct pl_cpu_gemm){.m = n, .n = in, .k = out, .a = io->dy, .lda = out, .b = io->p[0], .ldb = in, .c = io->dx[0], .ldc = in});
}

static pl_status backward(struct pl_plan *p, const struct pl_io *io) {
    const struct state *s = p->state;
    int64_t n = p->op.x[0].dim[0], out = p->op.p[0].dim[0];
    if (io->dp[0] && s->bf16 == NULL)
        (s->narrow ? pl_cpu_dense_narrow_weights : weight_gradient)(p, io);
    if (p->op.bias && io->dp[1])
        pl_cpu_sum_rows(p->backend, io->dy, p->op.ly.bf16, n, out, out, io->dp[1], io->accumulate);
    if (s->bf16 != NULL)
        return pl_cpu_dense_bf16_backward(s->bf16, io);
    if (p->op.need_dx[0] && io->dx[0])
        data_gradient(p, io);
    return PL_OK;
}

const struct pl_cpu_kind pl_cpu_dense = {
    .halves = PL_CPU_MIXED, .plan = plan, .destroy = destroy, .forward = forward, .backward = backward};
