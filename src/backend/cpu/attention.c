/* attention: every head of every sample by itself, cut over the threads; so no sum depends on them. A head goes through its queries a
 * block at a time, with their scores against all keys that they may see, so that memory is in proportion to the positions and not to
 * their square: only the logarithm of each softmax's denominator stays, and backward makes the weights again (Rabe and Staats,
 * Self-attention does not need O(n^2) memory, 2021; Dao et al., FlashAttention, NeurIPS 2022, whose keys go in blocks as well).
 * All rows up to the capacity are computed: padding rows are finite and their dy is 0. */
#include "backend/cpu/cpu.h"
#include "backend/cpu/vmath.h"

#include <math.h>
#include <string.h>

enum { Q, K, V, THIRDS };
enum { BLOCK = 64 }; /* queries */
enum { LANES = 16 }; /* sums of so many, side by side: one would not become vector code */

struct state {
    int64_t n, t, f, heads, d; /* samples, positions, features, heads, features of one */
    bool causal;
    float scale;
    float *denominator; /* [N, heads, T], its logarithm; NULL: no backward */
};

/* One head of one sample; rows of x and dx are THIRDS * f apart, those of y and dy f. */
struct head {
    const struct state *s;
    const float *x, *y, *dy;
    float *out, *dx;
    float *denominator;
    float *weight, *slope; /* [BLOCK, T] in scratch */
};

struct job {
    const struct pl_plan *p;
    const struct pl_io *io;
    void (*head)(const struct head *h);
};

/* ---- set-up ---------------------------------------------------------------------------------- */

static pl_status plan(struct pl_plan *p) {
    const struct pl_op *op = &p->op;
    struct state *s = p->state = pl_alloc(sizeof *s, "attention's plan");
    if (s == NULL)
        return PL_ERR_MEMORY;
    *s = (struct state){.n = op->x[0].dim[0], .t = op->x[0].dim[1], .f = op->y.dim[2], .heads = op->heads, .causal = op->causal};
    if (op->x[0].dims != 3 || s->heads < 1 || s->f % s->heads != 0 || op->x[0].dim[2] != THIRDS * s->f || pl_shape_elems(&op->y) != s->n * s->t * s->f)
        return pl_cpu_refuse(op, "input, output and heads do not fit together");
    s->d = s->f / s->heads;
    s->scale = (float)(1.0 / sqrt((double)s->d));
    PL_TRY(pl_cpu_gemm_check(op, s->t, s->t, THIRDS * s->f));
    PL_TRY(pl_cpu_scratch(p->backend, (size_t)p->backend->threads * 2 * BLOCK * (size_t)s->t * sizeof(float)));
    if (op->train && (s->denominator = pl_alloc((size_t)(s->n * s->heads * s->t) * sizeof(float), "attention's denominators")) == NULL)
        return PL_ERR_MEMORY;
    return PL_OK;
}

static void destroy(struct pl_plan *p) {
    struct state *s = p->state;
    if (s != NULL)
        pl_free(s->denominator);
    pl_free(s);
}

static void heads(void *arg, int part, int64_t begin, int64_t end) {
    const struct job *j = arg;
    const struct state *s = j->p->state;
    const struct pl_io *io = j->io;
    float *scratch = (float *)(void *)j->p->backend->scratch + part * 2 * BLOCK * s->t;
    for (int64_t i = begin; i < end; i++) {
        int64_t in = i / s->heads * s->t * THIRDS * s->f + i % s->heads * s->d, out = i / s->heads * s->t * s->f + i % s->heads * s->d;
        struct head h = {.s = s, .x = io->x[0] + in, .y = io->y + out, .out = io->y + out, .weight = scratch, .slope = scratch + BLOCK * s->t};
        if (io->dx[0] != NULL) {
            h.dy = io->dy + out;
            h.dx = io->dx[0] + in;
        }
        if (s->denominator != NULL)
            h.denominator = s->denominator + i * s->t;
        j->head(&h);
    }
}

static void run(struct pl_plan *p, const struct pl_io *io, void (*head)(const struct head *h)) {
    const struct state *s = p->state;
    struct job j = {p, io, head};
    int64_t n = s->n * s->heads, grain = p->backend->blas_parallel ? 262144 / (s->t * s->t * s->d) + 1 : n;
    pl_cpu_parts(p->backend, n, grain, heads, &j);
}

/* ---- a head ---------------------------------------------------------------------------------- */

/* Queries [first, first + count) against keys [0, keys). */
struct block { int64_t first, count, keys; };
static struct block block_of(const struct state *s, int64_t i) {
    struct block b = {.first = i * BLOCK, .count = BLOCK};
    if (b.first + b.count > s->t)
        b.count = s->t - b.first;
    b.keys = s->causal ? b.first + b.count : s->t;
    return b;
}
static int64_t blocks(const struct state *s) { return (s->t + BLOCK - 1) / BLOCK; }
static int64_t seen(const struct state *s, const struct block *b, int64_t q) { return s->causal ? b->first + q + 1 : b->keys; }

/* Scores become weights; the logarithm of their denominator. */
PL_CLONES
static float weigh(float *restrict w, int64_t n, float scale) {
    float most[LANES], sum[LANES] = {0}, top = w[0], all = 0.0f;
    int64_t whole = n / LANES * LANES;
    for (int l = 0; l < LANES; l++)
        most[l] = w[0];
    for (int64_t k = 0; k < whole; k += LANES)
        for (int l = 0; l < LANES; l++)
            most[l] = w[k + l] > most[l] ? w[k + l] : most[l];
    for (int64_t k = whole; k < n; k++)
        most[0] = w[k] > most[0] ? w[k] : most[0];
    for (int l = 0; l < LANES; l++)
        top = most[l] > top ? most[l] : top;
    for (int64_t k = 0; k < n; k++)
        w[k] = pl_vexp((w[k] - top) * scale);
    for (int64_t k = 0; k < whole; k += LANES)
        for (int l = 0; l < LANES; l++)
            sum[l] += w[k + l];
    for (int64_t k = whole; k < n; k++)
        sum[0] += w[k];
    for (int l = 0; l < LANES; l++)
        all += sum[l];
    float inverse = 1.0f / all;
    for (int64_t k = 0; k < n; k++)
        w[k] *= inverse;
    return top * scale + pl_vlog(all);
}

/* scores of the block's queries: [count, keys] */
static void score(const struct head *h, const struct block *b, float *scores) {
    int64_t ld = THIRDS * h->s->f;
    pl_cpu_gemm_here(&(struct pl_cpu_gemm){.tb = true, .m = b->count, .n = b->keys, .k = h->s->d, .a = h->x + b->first * ld, .lda = ld,
                                           .b = h->x + K * h->s->f, .ldb = ld, .c = scores, .ldc = b->keys});
}

static void forward_head(const struct head *h) {
    const struct state *s = h->s;
    for (int64_t i = 0; i < blocks(s); i++) {
        struct block b = block_of(s, i);
        score(h, &b, h->weight);
        for (int64_t q = 0; q < b.count; q++) {
            int64_t n = seen(s, &b, q);
            float denominator = weigh(h->weight + q * b.keys, n, s->scale);
            memset(h->weight + q * b.keys + n, 0, (size_t)(b.keys - n) * sizeof *h->weight);
            if (h->denominator != NULL)
                h->denominator[b.first + q] = denominator;
        }
        pl_cpu_gemm_here(&(struct pl_cpu_gemm){.m = b.count, .n = s->d, .k = b.keys, .a = h->weight, .lda = b.keys, .b = h->x + V * s->f, .ldb = THIRDS * s->f,
                                               .c = h->out + b.first * s->f, .ldc = s->f});
    }
}

static pl_status forward(struct pl_plan *p, const struct pl_io *io) {
    run(p, io, forward_head);
    return PL_OK;
}

/* Scores become weights again, and gradients by the weights become those by the scores; dot: the sum of weight times gradient. */
PL_CLONES
static void slope_row(float *restrict w, float *restrict slope, int64_t n, float scale, float denominator, float dot) {
    for (int64_t k = 0; k < n; k++) {
        w[k] = pl_vexp(w[k] * scale - denominator);
        slope[k] = w[k] * (slope[k] - dot) * scale;
    }
}

/* weight . slope is y . dy */
static float dot_of(const float *y, const float *dy, int64_t d) {
    float sum = 0.0f;
    for (int64_t k = 0; k < d; k++)
        sum += y[k] * dy[k];
    return sum;
}

/* From the last block, which has all keys, to the first. */
static void backward_head(const struct head *h) {
    const struct state *s = h->s;
    int64_t ld = THIRDS * s->f;
    const float *k = h->x + K * s->f, *v = h->x + V * s->f;
    float *dk = h->dx + K * s->f, *dv = h->dx + V * s->f;
    for (int64_t i = blocks(s) - 1; i >= 0; i--) {
        struct block b = block_of(s, i);
        const float *q = h->x + b.first * ld, *dy = h->dy + b.first * s->f, *y = h->y + b.first * s->f;
        float more = i < blocks(s) - 1 ? 1.0f : 0.0f;
        score(h, &b, h->weight);
        pl_cpu_gemm_here(&(struct pl_cpu_gemm){.tb = true, .m = b.count, .n = b.keys, .k = s->d, .a = dy, .lda = s->f, .b = v, .ldb = ld, .c = h->slope, .ldc = b.keys});
        for (int64_t r = 0; r < b.count; r++) {
            int64_t n = seen(s, &b, r);
            float *w = h->weight + r * b.keys, *slope = h->slope + r * b.keys;
            slope_row(w, slope, n, s->scale, h->denominator[b.first + r], dot_of(y + r * s->f, dy + r * s->f, s->d));
            memset(w + n, 0, (size_t)(b.keys - n) * sizeof *w);
            memset(slope + n, 0, (size_t)(b.keys - n) * sizeof *slope);
        }
        pl_cpu_gemm_here(&(struct pl_cpu_gemm){.m = b.count, .n = s->d, .k = b.keys, .a = h->slope, .lda = b.keys, .b = k, .ldb = ld, .c = h->dx + b.first * ld, .ldc = ld});
        pl_cpu_gemm_here(&(struct pl_cpu_gemm){.ta = true, .m = b.keys, .n = s->d, .k = b.count, .a = h->slope, .lda = b.keys, .b = q, .ldb = ld, .beta = more, .c = dk, .ldc = ld});
        pl_cpu_gemm_here(&(struct pl_cpu_gemm){.ta = true, .m = b.keys, .n = s->d, .k = b.count, .a = h->weight, .lda = b.keys, .b = dy, .ldb = s->f, .beta = more, .c = dv, .ldc = ld});
    }
}

static pl_status backward(struct pl_plan *p, const struct pl_io *io) {
    if (p->op.need_dx[0] && io->dx[0] != NULL)
        run(p, io, backward_head);
    return PL_OK;
}

const struct pl_cpu_kind pl_cpu_attention = {.plan = plan, .destroy = destroy, .forward = forward, .backward = backward};
