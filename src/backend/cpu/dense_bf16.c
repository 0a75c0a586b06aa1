/* dense_bf16: the three matrix products of a dense layer with bf16 factors and float sums, by oneDNN. Weights come
 * in bf16 too, or are rounded at each forward pass into a copy, the plan's own where there is none outside; an input or an output that is of floats
 * outside is rounded into scratch memory, or written as it is. */
#include "backend/cpu/bf16.h"
#include "backend/cpu/dnnl.h"

#ifdef PL_CPU_DNNL

enum { A, B, C, BIAS, PAD, LEGS };

/* C = A B, or C += A B */
struct product {
    dnnl_primitive_t matmul; /* NULL: not wanted */
    dnnl_memory_t memory[LEGS];
    dnnl_exec_arg_t args[LEGS];
    int legs;
    size_t pad_bytes;
};

struct pl_cpu_dense_bf16 {
    struct pl_backend *backend;
    const char *name;
    int64_t n, in, out;
    bool x_half, y_half, bias;
    uint16_t *weights; /* [out, in]; NULL: those of pl_io */
    struct product forward, data, weight, weight_more;
};

/* A matrix [rows, columns], which may be stored as [columns, rows]. */
static dnnl_memory_desc_t matrix(int64_t rows, int64_t columns, bool turned, bool half) {
    dnnl_memory_desc_t d;
    dnnl_dims_t dims = {rows, columns}, strides = {turned ? 1 : columns, turned ? rows : 1};
    dnnl_memory_desc_init_by_strides(&d, 2, dims, half ? dnnl_bf16 : dnnl_f32, strides);
    return d;
}

static bool make_memory(const struct pl_backend *b, struct product *p, int leg, int arg, const dnnl_memory_desc_t *d) {
    if (dnnl_memory_create(&p->memory[leg], d, b->dnnl->engine, DNNL_MEMORY_NONE) != dnnl_success)
        return false;
    p->args[p->legs++] = (dnnl_exec_arg_t){arg, p->memory[leg]};
    return true;
}

static bool describe(const struct pl_backend *b, const dnnl_memory_desc_t *a, const dnnl_memory_desc_t *w, const dnnl_memory_desc_t *bias,
                     const dnnl_memory_desc_t *c, bool add, dnnl_primitive_desc_t *out) {
    dnnl_matmul_desc_t d;
    dnnl_primitive_attr_t attr;
    dnnl_post_ops_t sum;
    if (dnnl_matmul_desc_init(&d, a, w, bias, c) != dnnl_success || dnnl_primitive_attr_create(&attr) != dnnl_success)
        return false;
    dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
    bool ok = true;
    if (add && (ok = dnnl_post_ops_create(&sum) == dnnl_success)) {
        ok = dnnl_post_ops_append_sum(sum, 1.0f) == dnnl_success && dnnl_primitive_attr_set_post_ops(attr, sum) == dnnl_success;
        dnnl_post_ops_destroy(sum);
    }
    ok = ok && dnnl_primitive_desc_create(out, &d, attr, b->dnnl->engine, NULL) == dnnl_success;
    dnnl_primitive_attr_destroy(attr);
    return ok;
}

static bool make(const struct pl_backend *b, struct product *p, dnnl_memory_desc_t a, dnnl_memory_desc_t w, const dnnl_memory_desc_t *bias,
                 dnnl_memory_desc_t c, bool add) {
    dnnl_primitive_desc_t d;
    if (!describe(b, &a, &w, bias, &c, add, &d))
        return false;
    const dnnl_memory_desc_t *pad = dnnl_primitive_desc_query_md(d, dnnl_query_scratchpad_md, 0);
    p->pad_bytes = dnnl_memory_desc_get_size(pad);
    bool ok = make_memory(b, p, A, DNNL_ARG_SRC, &a) && make_memory(b, p, B, DNNL_ARG_WEIGHTS, &w) && make_memory(b, p, C, DNNL_ARG_DST, &c) &&
              make_memory(b, p, PAD, DNNL_ARG_SCRATCHPAD, pad) && (bias == NULL || make_memory(b, p, BIAS, DNNL_ARG_BIAS, bias)) &&
              dnnl_primitive_create(&p->matmul, d) == dnnl_success;
    dnnl_primitive_desc_destroy(d);
    return ok;
}

static void destroy_product(struct product *p) {
    if (p->matmul != NULL)
        dnnl_primitive_destroy(p->matmul);
    for (int i = 0; i < LEGS; i++)
        if (p->memory[i] != NULL)
            dnnl_memory_destroy(p->memory[i]);
}

void pl_cpu_dense_bf16_destroy(struct pl_cpu_dense_bf16 *d) {
    if (d == NULL)
        return;
    destroy_product(&d->forward);
    destroy_product(&d->data);
    destroy_product(&d->weight);
    destroy_product(&d->weight_more);
    pl_free(d->weights);
    pl_free(d);
}

/* Behind oneDNN's own scratch: roundings of x, then of dy. */
static size_t pad_bytes(const struct pl_cpu_dense_bf16 *d) {
    const struct product *p[] = {&d->forward, &d->data, &d->weight, &d->weight_more};
    size_t most = 0;
    for (int i = 0; i < 4; i++)
        most = p[i]->pad_bytes > most ? p[i]->pad_bytes : most;
    return (most + 63) / 64 * 64;
}

static bool make_all(const struct pl_plan *p, struct pl_cpu_dense_bf16 *d) {
    const struct pl_op *op = &p->op;
    const struct pl_backend *b = p->backend;
    int64_t n = d->n, in = d->in, out = d->out;
    dnnl_memory_desc_t bias = matrix(1, out, false, false);
    bool ok = make(b, &d->forward, matrix(n, in, false, true), matrix(in, out, true, true), d->bias ? &bias : NULL, matrix(n, out, false, d->y_half), false);
    if (ok && op->train)
        ok = make(b, &d->weight, matrix(out, n, true, true), matrix(n, in, false, true), NULL, matrix(out, in, false, false), false) &&
             make(b, &d->weight_more, matrix(out, n, true, true), matrix(n, in, false, true), NULL, matrix(out, in, false, false), true);
    if (ok && op->train && op->need_dx[0])
        ok = make(b, &d->data, matrix(n, out, false, true), matrix(out, in, false, true), NULL, matrix(n, in, false, d->x_half), false);
    return ok;
}

pl_status pl_cpu_dense_bf16_create(const struct pl_plan *p, struct pl_cpu_dense_bf16 **out) {
    const struct pl_op *op = &p->op;
    *out = NULL;
    if (!p->backend->bf16)
        return PL_OK;
    struct pl_cpu_dense_bf16 *d = pl_alloc(sizeof *d, "a dense layer's oneDNN plan");
    if (d == NULL)
        return PL_ERR_MEMORY;
    *out = d;
    *d = (struct pl_cpu_dense_bf16){.backend = p->backend, .name = op->name, .n = op->x[0].dim[0], .in = op->p[0].dim[1], .out = op->p[0].dim[0],
                                    .x_half = op->lx[0].bf16 && op->lx[0].block <= 1, .y_half = op->ly.bf16, .bias = op->bias};
    pl_cpu_dnnl_threads(p->backend->threads);
    bool made = make_all(p, d);
    pl_cpu_dnnl_threads(1);
    if (!made)
        return pl_cpu_refuse(op, "oneDNN has no bf16 product for it");
    if (!op->p_bf16 && (d->weights = pl_alloc((size_t)(d->in * d->out) * sizeof(uint16_t), "weights in bf16")) == NULL)
        return PL_ERR_MEMORY;
    pl_cpu_take_team();
    return pl_cpu_scratch(p->backend, pad_bytes(d) + (size_t)(d->n * (d->in + d->out)) * sizeof(uint16_t));
}

static pl_status run(const struct pl_cpu_dense_bf16 *d, const struct product *p, const void *a, const void *b, const void *bias, const void *c) {
    const void *at[LEGS] = {[A] = a, [B] = b, [C] = c, [BIAS] = bias, [PAD] = d->backend->scratch};
    dnnl_status_t s = dnnl_success;
    pl_cpu_dnnl_threads(d->backend->threads);
    for (int i = 0; i < LEGS && s == dnnl_success; i++)
        if (p->memory[i] != NULL)
            s = dnnl_memory_set_data_handle(p->memory[i], (void *)(uintptr_t)at[i]);
    if (s == dnnl_success)
        s = dnnl_primitive_execute(p->matmul, d->backend->dnnl->stream, p->legs, p->args);
    if (s == dnnl_success)
        s = dnnl_stream_wait(d->backend->dnnl->stream);
    pl_cpu_dnnl_threads(1);
    return s == dnnl_success ? PL_OK : pl_error(PL_ERR_MEMORY, "backend", "layer %s: oneDNN's matrix product failed with status %d", d->name, (int)s);
}

/* t itself, or its rounding in the scratch memory. */
static const void *rounded(const struct pl_cpu_dense_bf16 *d, const float *t, bool half, int64_t n, size_t offset) {
    void *copy = d->backend->scratch + pad_bytes(d) + offset;
    if (half)
        return t;
    pl_cpu_round(d->backend, t, copy, n);
    return copy;
}

static const void *input(const struct pl_cpu_dense_bf16 *d, const struct pl_io *io) { return rounded(d, io->x[0], d->x_half, d->n * d->in, 0); }

static void *weights(const struct pl_cpu_dense_bf16 *d, const struct pl_io *io) { return d->weights != NULL ? d->weights : io->p_bf16; }

pl_status pl_cpu_dense_bf16_forward(struct pl_cpu_dense_bf16 *d, const struct pl_io *io) {
    if (d->weights != NULL || !io->p_bf16_made)
        pl_cpu_round(d->backend, io->p[0], weights(d, io), d->in * d->out);
    return run(d, &d->forward, input(d, io), weights(d, io), d->bias ? io->p[1] : NULL, io->y);
}

pl_status pl_cpu_dense_bf16_backward(struct pl_cpu_dense_bf16 *d, const struct pl_io *io) {
    const void *dy = rounded(d, io->dy, d->y_half, d->n * d->out, (size_t)(d->n * d->in) * sizeof(uint16_t));
    if (io->dp[0] != NULL)
        PL_TRY(run(d, io->accumulate ? &d->weight_more : &d->weight, dy, input(d, io), NULL, io->dp[0]));
    return d->data.matmul != NULL && io->dx[0] != NULL ? run(d, &d->data, dy, weights(d, io), NULL, io->dx[0]) : PL_OK;
}

#else

pl_status pl_cpu_dense_bf16_create(const struct pl_plan *p, struct pl_cpu_dense_bf16 **out) {
    (void)p;
    *out = NULL;
    return PL_OK;
}

void pl_cpu_dense_bf16_destroy(struct pl_cpu_dense_bf16 *d) { (void)d; }

pl_status pl_cpu_dense_bf16_forward(struct pl_cpu_dense_bf16 *d, const struct pl_io *io) {
    (void)d, (void)io;
    return PL_OK;
}

pl_status pl_cpu_dense_bf16_backward(struct pl_cpu_dense_bf16 *d, const struct pl_io *io) {
    (void)d, (void)io;
    return PL_OK;
}

#endif
