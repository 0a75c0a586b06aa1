/* recurrent: the cells of LSTM and GRU. What of the gates comes from the input is one product over all positions, and so are the
 * gradients of the weights and of the input; only the products with h go position after position. In these each thread has
 * samples of its own from the first position to the last, so that no thread waits for another (Appleyard et al., Optimizing
 * Performance of Recurrent Neural Networks on GPUs, 2016, order the same products so). All rows up to the capacity are computed:
 * padding rows are finite and their dy is 0. The library would copy U into its order at every position: our own kernel takes it
 * packed once a pass. With bf16 the factors of all products are; gates, states and sums stay float.
 *
 * Of z = W x + b + U h + bu [N, T, G * H] the activated gates stay where they are made, and backward writes the gradient by z
 * over them. GRU's third gate, n = tanh(W x + b + r * u) with u = U h + bu, has u, then the gradient by it, beside. */
#include "backend/cpu/bf16.h"
#include "backend/cpu/packed.h"
#include "backend/cpu/vmath.h"

#include <string.h>

enum { W, U, B, BU }; /* parameters */

struct state {
    int64_t n, t, i, h, z; /* samples, positions, features, units; gates * units */
    bool lstm;
    struct pl_cpu_dense_bf16 *by[2]; /* the products with W and, for its gradient, with U; NULL: float */
    float *bias;   /* [z]: b + bu, but for GRU's third gate, which has b */
    float *gates;  /* [N, T, z] */
    float *beside; /* [N, T, H]: LSTM: c; GRU: u */
    float *out;    /* [N, T, H]: h, where y has the last one only; otherwise NULL */
    float *before; /* [N, T, H]: h one position earlier; in scratch, but where products with bf16 use that */
    float *dh, *dc; /* [N, H] in scratch */
    const struct pl_cpu_packed *step; /* multiplies at a position; NULL: the library does */
    float *packed, *packed_third;    /* U for it, in scratch: forward two matrices, as GRU's third gate goes elsewhere, backward one */
    uint16_t *half; /* [N, most depth] in scratch: A in bf16 */
};

struct job {
    const struct state *s;
    const struct pl_io *io;
    float *h; /* [N, T, H]: y, or s->out */
};

/* ---- set-up ---------------------------------------------------------------------------------- */

static pl_status check(const struct pl_plan *p, const struct state *s) {
    const struct pl_op *op = &p->op;
    int64_t y = op->last ? s->n * s->h : s->n * s->t * s->h;
    bool fits = op->x[0].dims == 3 && op->p[W].dim[0] == s->z && op->p[W].dim[1] == s->i && op->p[U].dim[0] == s->z && pl_shape_elems(&op->y) == y;
    if (!fits)
        return pl_cpu_refuse(op, "input, output and weights do not fit together");
    PL_TRY(pl_cpu_gemm_check(op, s->n * s->t, s->z, s->i));
    return pl_cpu_gemm_check(op, s->t * s->z, s->t * s->h, s->h);
}

/* Whether memory of its own is needed: for backward, or as the products with bf16 use what is shared. */
static bool keeps(const struct pl_plan *p) { return p->op.train || p->backend->bf16; }
static bool keeps_before(const struct pl_plan *p) { return p->op.train && p->backend->bf16; }

static int64_t kept_elems(const struct pl_plan *p, const struct state *s) {
    return s->n * s->t * (s->z + (1 + p->op.last + keeps_before(p)) * s->h);
}

/* Gates that h adds to as one, the first of a row of U. */
static int64_t gates_together(const struct state *s) { return s->lstm ? s->z : 2 * s->h; }

/* A product over all positions as a dense layer's, whose weights are the parameter k. */
static pl_status plan_product(const struct pl_plan *p, struct state *s, int k) {
    const struct pl_op *op = &p->op;
    int64_t rows = s->n * s->t;
    struct pl_plan dense = {.backend = p->backend,
                            .op = {.kind = PL_OP_DENSE, .name = op->name, .inputs = 1, .params = 1, .bias = k == W && op->bias, .train = op->train,
                                   .need_dx = {k == W && op->need_dx[0]}}};
    dense.op.x[0] = (struct pl_shape){2, {rows, k == W ? s->i : s->h}};
    dense.op.y = (struct pl_shape){2, {rows, s->z}};
    dense.op.p[0] = op->p[k];
    return pl_cpu_dense_bf16_create(&dense, &s->by[k]);
}

/* Of a plan that keeps nothing in memory that other plans use too. */
static pl_status take_memory(struct pl_plan *p, struct state *s) {
    size_t kept = (size_t)kept_elems(p, s) * sizeof(float), scratch = (size_t)((s->n * s->t + 2 * s->n) * s->h) * sizeof(float), packed = 0;
    if (s->step != NULL) {
        int64_t columns = s->step->columns, forward = (up(gates_together(s), columns) + up(s->h, columns)) * up(s->h, 2), backward = up(s->h, columns) * up(s->z, 2);
        packed = (size_t)(forward > backward ? forward : backward) * sizeof(float) + (size_t)(s->n * up(s->z, 2)) * sizeof *s->half;
    }
    PL_TRY(pl_cpu_scratch(p->backend, packed + scratch + (keeps(p) ? 0 : kept)));
    s->bias = pl_alloc((size_t)s->z * sizeof(float), "a recurrent layer's biases");
    if (s->bias == NULL)
        return PL_ERR_MEMORY;
    if (keeps(p) && (s->gates = pl_alloc(kept, "a recurrent layer's gates")) == NULL)
        return PL_ERR_MEMORY;
    return PL_OK;
}

static pl_status plan(struct pl_plan *p) {
    const struct pl_op *op = &p->op;
    struct state *s = p->state = pl_alloc(sizeof *s, "a recurrent layer's plan");
    if (s == NULL)
        return PL_ERR_MEMORY;
    *s = (struct state){.n = op->x[0].dim[0], .t = op->x[0].dim[1], .i = op->x[0].dim[2], .h = op->p[U].dim[1], .lstm = op->kind == PL_OP_LSTM};
    s->z = (s->lstm ? 4 : 3) * s->h;
    PL_TRY(check(p, s));
    PL_TRY(plan_product(p, s, W));
    s->step = pl_cpu_packed_here(p->backend, s->by[W] != NULL);
    if (op->train)
        PL_TRY(plan_product(p, s, U));
    return take_memory(p, s);
}

static void destroy(struct pl_plan *p) {
    struct state *s = p->state;
    if (s != NULL) {
        pl_cpu_dense_bf16_destroy(s->by[W]);
        pl_cpu_dense_bf16_destroy(s->by[U]);
        pl_free(s->bias);
        pl_free(s->gates);
    }
    pl_free(s);
}

/* With scratch, which moves while plans are made. */
static struct state at_work(const struct pl_plan *p) {
    struct state s = *(const struct state *)p->state;
    int64_t rows = s.n * s.t;
    float *scratch = (float *)(void *)p->backend->scratch;
    s.before = scratch;
    s.dh = scratch + rows * s.h;
    s.dc = s.dh + s.n * s.h;
    s.packed = s.dc + s.n * s.h;
    if (s.gates == NULL) {
        s.gates = s.packed;
        s.packed = s.gates + kept_elems(p, &s);
    }
    s.beside = s.gates + rows * s.z;
    s.out = p->op.last ? s.beside + rows * s.h : NULL;
    if (keeps_before(p))
        s.before = s.beside + (1 + p->op.last) * rows * s.h;
    if (s.step == NULL)
        return s;
    s.half = (uint16_t *)(void *)s.packed;
    s.packed = (float *)(void *)(s.half + s.n * up(s.z, 2));
    s.packed_third = s.packed + up(gates_together(&s), s.step->columns) * up(s.h, 2);
    return s;
}

/* ---- forward --------------------------------------------------------------------------------- */

static void sum_biases(const struct state *s, const struct pl_io *io) {
    for (int64_t k = 0; k < s->z; k++)
        s->bias[k] = io->p[B][k] + (k < gates_together(s) ? io->p[BU][k] : 0.0f);
}

/* What gates and GRU's u begin with. */
static void begin_rows(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    const struct state *s = j->s;
    for (int64_t r = begin; r < end; r++) {
        if (s->by[W] == NULL)
            memcpy(s->gates + r * s->z, s->bias, (size_t)s->z * sizeof *s->bias);
        if (!s->lstm)
            memcpy(s->beside + r * s->h, j->io->p[BU] + 2 * s->h, (size_t)s->h * sizeof *s->beside);
    }
}

/* Of one sample at one position; c, h before: NULL at the first. */
PL_CLONES
static void lstm_row(float *restrict z, const float *restrict before, float *restrict c, float *restrict h, int64_t H) {
    float *restrict i = z, *restrict f = z + H, *restrict g = z + 2 * H, *restrict o = z + 3 * H;
    for (int64_t k = 0; k < H; k++) {
        i[k] = pl_vsigmoid(i[k]);
        f[k] = pl_vsigmoid(f[k]);
        g[k] = pl_vtanh(g[k]);
        o[k] = pl_vsigmoid(o[k]);
    }
    if (before)
        for (int64_t k = 0; k < H; k++)
            c[k] = f[k] * before[k] + i[k] * g[k];
    else
        for (int64_t k = 0; k < H; k++)
            c[k] = i[k] * g[k];
    for (int64_t k = 0; k < H; k++)
        h[k] = o[k] * pl_vtanh(c[k]);
}

PL_CLONES
static void gru_row(float *restrict gates, const float *restrict before, const float *restrict u, float *restrict h, int64_t H) {
    float *restrict r = gates, *restrict z = gates + H, *restrict n = gates + 2 * H;
    for (int64_t k = 0; k < H; k++) {
        r[k] = pl_vsigmoid(r[k]);
        z[k] = pl_vsigmoid(z[k]);
        n[k] = pl_vtanh(n[k] + r[k] * u[k]);
        h[k] = (1.0f - z[k]) * n[k];
    }
    if (before)
        for (int64_t k = 0; k < H; k++)
            h[k] += z[k] * before[k];
}

/* For samples from `begin` on. */
static uint16_t *half_of(const struct state *s, int64_t begin) { return s->half + begin * up(s->z, 2); }

/* Samples [begin, end): to[.., columns] += h at position t - 1 times rows of U from `row` on. */
static void add_state(const struct job *j, int64_t begin, int64_t end, int64_t t, int64_t row, int64_t columns, float *to, int64_t stride) {
    const struct state *s = j->s;
    if (s->step != NULL) {
        struct pl_cpu_packed_product q = {.a = j->h + (begin * s->t + t - 1) * s->h, .b = row > 0 ? s->packed_third : s->packed, .c = to + (begin * s->t + t) * stride,
                                          .rows = end - begin, .depth = s->h, .columns = columns, .lda = s->t * s->h, .next = 1, .ldc = s->t * stride, .add = true};
        pl_cpu_packed_multiply(s->step, q, s->h, half_of(s, begin));
        return;
    }
    pl_cpu_gemm_here(&(struct pl_cpu_gemm){.tb = true, .m = end - begin, .n = columns, .k = s->h, .a = j->h + (begin * s->t + t - 1) * s->h, .lda = s->t * s->h,
                                           .b = j->io->p[U] + row * s->h, .ldb = s->h, .beta = 1.0f, .c = to + (begin * s->t + t) * stride, .ldc = s->t * stride});
}

static void forward_samples(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    const struct state *s = j->s;
    for (int64_t t = 0; t < s->t; t++) {
        if (t > 0)
            add_state(j, begin, end, t, 0, gates_together(s), s->gates, s->z);
        if (t > 0 && !s->lstm)
            add_state(j, begin, end, t, 2 * s->h, s->h, s->beside, s->h);
        for (int64_t n = begin; n < end; n++) {
            int64_t r = n * s->t + t;
            float *beside = s->beside + r * s->h, *h = j->h + r * s->h;
            if (s->lstm)
                lstm_row(s->gates + r * s->z, t > 0 ? beside - s->h : NULL, beside, h, s->h);
            else
                gru_row(s->gates + r * s->z, t > 0 ? h - s->h : NULL, beside, h, s->h);
        }
    }
}

static void pack(const struct pl_plan *p, const struct state *s, struct pl_cpu_packing how) {
    int64_t columns = s->step->columns;
    pl_cpu_parts(p->backend, up(how.columns, columns) / columns, PL_CPU_GRAIN / (how.depth * columns) + 1, s->step->pack, &how);
}

/* U^T, that h is multiplied with. */
static void pack_forward(const struct pl_plan *p, const struct state *s, const float *u) {
    int64_t together = gates_together(s);
    pack(p, s, (struct pl_cpu_packing){.from = u, .depth = s->h, .columns = together, .next_depth = 1, .next_column = s->h, .packed = s->packed});
    if (!s->lstm)
        pack(p, s, (struct pl_cpu_packing){.from = u + together * s->h, .depth = s->h, .columns = s->h, .next_depth = 1, .next_column = s->h, .packed = s->packed_third});
}

/* U, that the gradients by the gates are. */
static void pack_backward(const struct pl_plan *p, const struct state *s, const float *u) {
    pack(p, s, (struct pl_cpu_packing){.from = u, .depth = s->z, .columns = s->h, .next_depth = s->h, .next_column = 1, .packed = s->packed});
}

static void take_last(const struct job *j, float *y) {
    const struct state *s = j->s;
    for (int64_t n = 0; n < s->n; n++)
        memcpy(y + n * s->h, j->h + ((n + 1) * s->t - 1) * s->h, (size_t)s->h * sizeof *y);
}

/* Samples of a thread at least, so that its products are wide enough. */
static int64_t least_samples(const struct pl_plan *p) {
    const struct state *s = p->state;
    return p->backend->blas_parallel || s->step != NULL ? 4 : s->n;
}

/* Gates: W x with the biases; u: its own. */
static pl_status from_input(struct pl_plan *p, const struct pl_io *io, struct job *j) {
    const struct state *s = j->s;
    int64_t rows = s->n * s->t;
    if (p->op.bias) {
        sum_biases(s, io);
        pl_cpu_parts(p->backend, rows, PL_CPU_GRAIN / s->z + 1, begin_rows, j);
    } else if (!s->lstm) {
        memset(s->beside, 0, (size_t)(rows * s->h) * sizeof *s->beside);
    }
    if (s->by[W] != NULL)
        return pl_cpu_dense_bf16_forward(s->by[W], &(struct pl_io){.x = {io->x[0]}, .p = {io->p[W], s->bias}, .y = s->gates});
    pl_cpu_gemm(p->backend, &(struct pl_cpu_gemm){.tb = true, .m = rows, .n = s->z, .k = s->i, .a = io->x[0], .lda = s->i, .b = io->p[W], .ldb = s->i,
                                                  .beta = p->op.bias ? 1.0f : 0.0f, .c = s->gates, .ldc = s->z});
    return PL_OK;
}

static pl_status forward(struct pl_plan *p, const struct pl_io *io) {
    struct state s = at_work(p);
    struct job j = {&s, io, p->op.last ? s.out : io->y};
    PL_TRY(from_input(p, io, &j));
    if (s.step != NULL && s.t > 1)
        pack_forward(p, &s, io->p[U]);
    pl_cpu_parts(p->backend, s.n, least_samples(p), forward_samples, &j);
    if (p->op.last)
        take_last(&j, io->y);
    return PL_OK;
}

/* ---- backward -------------------------------------------------------------------------------- */

/* Gates to gradients by what goes into them. dh: of h here; dc: of c from the next position, and left for the one before. */
PL_CLONES
static void lstm_row_back(float *restrict z, const float *restrict before, const float *restrict c, const float *restrict dh, float *restrict dc, int64_t H) {
    float *restrict i = z, *restrict f = z + H, *restrict g = z + 2 * H, *restrict o = z + 3 * H;
    for (int64_t k = 0; k < H; k++) {
        float squashed = pl_vtanh(c[k]), d = dc[k] + dh[k] * o[k] * (1.0f - squashed * squashed);
        float from = before ? before[k] : 0.0f, forget = f[k], in = i[k], new = g[k];
        o[k] = dh[k] * squashed * o[k] * (1.0f - o[k]);
        i[k] = d * new * in * (1.0f - in);
        f[k] = d * from * forget * (1.0f - forget);
        g[k] = d * in * (1.0f - new * new);
        dc[k] = d * forget;
    }
}

/* u to the gradient by it; dh to what reaches h before directly. */
PL_CLONES
static void gru_row_back(float *restrict gates, const float *restrict before, float *restrict u, float *restrict dh, int64_t H) {
    float *restrict r = gates, *restrict z = gates + H, *restrict n = gates + 2 * H;
    for (int64_t k = 0; k < H; k++) {
        float keep = z[k], reset = r[k], dn = dh[k] * (1.0f - keep) * (1.0f - n[k] * n[k]), from = before ? before[k] : 0.0f;
        r[k] = dn * u[k] * reset * (1.0f - reset);
        z[k] = dh[k] * (from - n[k]) * keep * (1.0f - keep);
        n[k] = dn;
        u[k] = dn * reset;
        dh[k] *= keep;
    }
}

/* dh of samples [begin, end) (+)= what comes from position t through rows of U from `row` on. */
static void back_state(const struct job *j, int64_t begin, int64_t end, int64_t t, int64_t row, int64_t columns, const float *from, int64_t stride, bool add) {
    const struct state *s = j->s;
    if (s->step != NULL) {
        struct pl_cpu_packed_product q = {.a = from + (begin * s->t + t) * stride, .b = pl_cpu_packed_row(s->step, s->packed, row), .c = s->dh + begin * s->h,
                                          .rows = end - begin, .depth = columns, .columns = s->h, .lda = s->t * stride, .next = 1, .ldc = s->h, .add = add};
        pl_cpu_packed_multiply(s->step, q, s->z, half_of(s, begin));
        return;
    }
    pl_cpu_gemm_here(&(struct pl_cpu_gemm){.m = end - begin, .n = s->h, .k = columns, .a = from + (begin * s->t + t) * stride, .lda = s->t * stride,
                                           .b = j->io->p[U] + row * s->h, .ldb = s->h, .beta = add ? 1.0f : 0.0f, .c = s->dh + begin * s->h, .ldc = s->h});
}

/* dh: what has come from the position after, and from y. */
static void take_dy(const struct job *j, int64_t n, int64_t t, float *dh) {
    const struct state *s = j->s;
    bool last = s->out != NULL;
    const float *dy = j->io->dy + (last ? n : n * s->t + t) * s->h;
    for (int64_t k = 0; k < s->h && (!last || t == s->t - 1); k++)
        dh[k] += dy[k];
}

static void backward_samples(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    const struct state *s = j->s;
    memset(s->dh + begin * s->h, 0, (size_t)((end - begin) * s->h) * sizeof *s->dh);
    memset(s->dc + begin * s->h, 0, (size_t)((end - begin) * s->h) * sizeof *s->dc);
    for (int64_t t = s->t - 1; t >= 0; t--) {
        for (int64_t n = begin; n < end; n++) {
            int64_t r = n * s->t + t;
            float *dh = s->dh + n * s->h, *beside = s->beside + r * s->h;
            take_dy(j, n, t, dh);
            if (s->lstm)
                lstm_row_back(s->gates + r * s->z, t > 0 ? beside - s->h : NULL, beside, dh, s->dc + n * s->h, s->h);
            else
                gru_row_back(s->gates + r * s->z, t > 0 ? j->h + (r - 1) * s->h : NULL, beside, dh, s->h);
        }
        if (t == 0)
            break;
        back_state(j, begin, end, t, 0, gates_together(s), s->gates, s->z, !s->lstm);
        if (!s->lstm)
            back_state(j, begin, end, t, 2 * s->h, s->h, s->beside, s->h, true);
    }
}

static void shift_samples(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    const struct state *s = j->s;
    int64_t row = s->t * s->h;
    for (int64_t n = begin; n < end; n++) {
        memset(s->before + n * row, 0, (size_t)s->h * sizeof *s->before);
        memcpy(s->before + n * row + s->h, j->h + n * row, (size_t)(row - s->h) * sizeof *s->before);
    }
}

/* dp = sum over rows of from[., k] x[., i] */
static void weight_gradient(const struct pl_plan *p, const struct pl_io *io, const float *from, int64_t k, int64_t stride, const float *x, int64_t i, float *dp) {
    const struct state *s = p->state;
    pl_cpu_gemm(p->backend, &(struct pl_cpu_gemm){.ta = true, .m = k, .n = i, .k = s->n * s->t, .a = from, .lda = stride, .b = x, .ldb = i,
                                                  .beta = io->accumulate ? 1.0f : 0.0f, .c = dp, .ldc = i});
}

static void bias_gradient(const struct pl_plan *p, const struct pl_io *io, const float *from, int64_t k, int64_t stride, float *dp) {
    const struct state *s = p->state;
    pl_cpu_sum_rows(p->backend, from, false, s->n * s->t, k, stride, dp, io->accumulate);
}

/* Rows of GRU's third gate have another gradient by what comes from h. */
static void bias_gradients(const struct pl_plan *p, const struct pl_io *io, const struct state *s) {
    int64_t both = gates_together(s);
    bias_gradient(p, io, s->gates, s->z, s->z, io->dp[B]);
    bias_gradient(p, io, s->gates, both, s->z, io->dp[BU]);
    if (!s->lstm)
        bias_gradient(p, io, s->beside, s->h, s->h, io->dp[BU] + both);
}

static void products(struct pl_plan *p, const struct pl_io *io, const struct state *s) {
    int64_t both = gates_together(s);
    weight_gradient(p, io, s->gates, s->z, s->z, io->x[0], s->i, io->dp[W]);
    weight_gradient(p, io, s->gates, both, s->z, s->before, s->h, io->dp[U]);
    if (!s->lstm)
        weight_gradient(p, io, s->beside, s->h, s->h, s->before, s->h, io->dp[U] + both * s->h);
    if (p->op.need_dx[0] && io->dx[0])
        pl_cpu_gemm(p->backend, &(struct pl_cpu_gemm){.m = s->n * s->t, .n = s->i, .k = s->z, .a = s->gates, .lda = s->z, .b = io->p[W], .ldb = s->i,
                                                      .c = io->dx[0], .ldc = s->i});
}

/* GRU's gradients by u take the place of those by its third gate once these have been multiplied. */
static pl_status products_bf16(const struct pl_io *io, const struct state *s) {
    PL_TRY(pl_cpu_dense_bf16_backward(s->by[W], &(struct pl_io){.x = {io->x[0]}, .p = {io->p[W]}, .dy = s->gates, .dp = {io->dp[W]}, .dx = {io->dx[0]},
                                                                .accumulate = io->accumulate}));
    for (int64_t r = 0; !s->lstm && r < s->n * s->t; r++)
        memcpy(s->gates + r * s->z + 2 * s->h, s->beside + r * s->h, (size_t)s->h * sizeof *s->gates);
    return pl_cpu_dense_bf16_backward(s->by[U], &(struct pl_io){.x = {s->before}, .p = {io->p[U]}, .dy = s->gates, .dp = {io->dp[U]}, .accumulate = io->accumulate});
}

static pl_status backward(struct pl_plan *p, const struct pl_io *io) {
    struct state s = at_work(p);
    struct job j = {&s, io, p->op.last ? s.out : io->y};
    if (s.step != NULL && s.t > 1)
        pack_backward(p, &s, io->p[U]);
    pl_cpu_parts(p->backend, s.n, least_samples(p), backward_samples, &j);
    pl_cpu_parts(p->backend, s.n, PL_CPU_GRAIN / (s.t * s.h) + 1, shift_samples, &j);
    if (p->op.bias)
        bias_gradients(p, io, &s);
    if (s.by[W] != NULL)
        return products_bf16(io, &s);
    products(p, io, &s);
    return PL_OK;
}

const struct pl_cpu_kind pl_cpu_recurrent = {.plan = plan, .destroy = destroy, .forward = forward, .backward = backward};
