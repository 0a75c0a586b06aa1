/* attention: every head of every sample by itself, cut over the threads; so no sum depends on them. A head goes through its queries a
 * block at a time, with their scores against all keys that they may see, so that memory is in proportion to the positions and not to
 * their square: only the logarithm of each softmax's denominator stays, and backward makes the weights again (Rabe and Staats,
 * Self-attention does not need O(n^2) memory, 2021; Dao et al., FlashAttention, NeurIPS 2022, whose keys go in blocks as well).
 * With bf16 the factors of all products are, keys and values packed once a head; where the processor has no such products, and with
 * floats, the library multiplies: our own were no faster there (heads of 32 features, Zen 4). All rows up to the capacity are
 * computed: padding rows are finite and their dy is 0. */
#include "backend/cpu/packed.h"
#include "backend/cpu/vmath.h"

#include <math.h>
#include <string.h>

enum { Q, K, V, THIRDS };
enum { BLOCK = 64 }; /* queries */

struct state {
    int64_t n, t, f, heads, d; /* samples, positions, features, heads, features of one */
    bool causal;
    float scale;
    float *denominator; /* [N, heads, T], its logarithm; NULL: no backward */
    const struct pl_cpu_packed *packed; /* multiplies bf16; NULL: the library does floats */
};

/* Memory of a thread, in scratch. */
struct room {
    float *weight, *slope;       /* [BLOCK, T] */
    float *by_feature[THIRDS];   /* K^T, V^T packed, [d, T] */
    float *by_position[THIRDS];  /* K, V packed, [T, d] */
    float *block;                /* weight or slope packed, [BLOCK, T] */
    float *turned[THIRDS];       /* [d, T]: gradients of K and V so far */
    uint16_t *half;              /* what is not packed, in bf16 */
};

/* One head of one sample; rows of x and dx are THIRDS * f apart, those of y and dy f. */
struct head {
    const struct state *s;
    const float *x, *dy;
    float *y, *dx;
    float *denominator;
    struct room room;
};

struct job {
    const struct pl_plan *p;
    const struct pl_io *io;
    void (*head)(const struct head *h);
};

/* ---- set-up ---------------------------------------------------------------------------------- */

/* Floats from `at` on; base NULL: they are only counted. */
static float *take(float *base, int64_t *at, int64_t elems) {
    float *v = base != NULL ? base + *at : NULL;
    *at += up(elems, 16);
    return v;
}

/* Sets r; the floats it takes. */
static int64_t make_room(const struct state *s, float *base, struct room *r) {
    int64_t at = 0;
    r->weight = take(base, &at, BLOCK * s->t);
    r->slope = take(base, &at, BLOCK * s->t);
    if (s->packed == NULL)
        return at;
    for (int i = K; i <= V; i++) {
        r->by_feature[i] = take(base, &at, pl_cpu_packed_elems(s->packed, s->d, s->t));
        r->by_position[i] = take(base, &at, pl_cpu_packed_elems(s->packed, s->t, s->d));
        r->turned[i] = take(base, &at, s->d * s->t);
    }
    r->block = take(base, &at, pl_cpu_packed_elems(s->packed, BLOCK, s->t));
    r->half = (uint16_t *)(void *)take(base, &at, BLOCK / 2 * up(s->t > s->d ? s->t : s->d, 2));
    return at;
}

static int64_t room_elems(const struct state *s) { return make_room(s, NULL, &(struct room){0}); }

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
    s->packed = p->backend->bf16 ? pl_cpu_packed_bf16() : NULL;
    PL_TRY(pl_cpu_gemm_check(op, s->t, s->t, THIRDS * s->f));
    PL_TRY(pl_cpu_scratch(p->backend, (size_t)(p->backend->threads * room_elems(s)) * sizeof(float)));
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
    struct room room;
    make_room(s, (float *)(void *)j->p->backend->scratch + part * room_elems(s), &room);
    for (int64_t i = begin; i < end; i++) {
        int64_t in = i / s->heads * s->t * THIRDS * s->f + i % s->heads * s->d, out = i / s->heads * s->t * s->f + i % s->heads * s->d;
        struct head h = {.s = s, .x = io->x[0] + in, .y = io->y + out, .room = room};
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
    int64_t n = s->n * s->heads, grain = p->backend->blas_parallel || s->packed != NULL ? 262144 / (s->t * s->t * s->d) + 1 : n;
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
    float most[PL_SUMS], sum[PL_SUMS] = {0}, top = w[0];
    int64_t whole = n / PL_SUMS * PL_SUMS;
    for (int l = 0; l < PL_SUMS; l++)
        most[l] = w[0];
    for (int64_t k = 0; k < whole; k += PL_SUMS)
        for (int l = 0; l < PL_SUMS; l++)
            most[l] = w[k + l] > most[l] ? w[k + l] : most[l];
    for (int64_t k = whole; k < n; k++)
        most[0] = w[k] > most[0] ? w[k] : most[0];
    for (int l = 0; l < PL_SUMS; l++)
        top = most[l] > top ? most[l] : top;
    for (int64_t k = 0; k < n; k++)
        w[k] = pl_vexp((w[k] - top) * scale);
    for (int64_t k = 0; k < whole; k += PL_SUMS)
        for (int l = 0; l < PL_SUMS; l++)
            sum[l] += w[k + l];
    for (int64_t k = whole; k < n; k++)
        sum[0] += w[k];
    float all = pl_vtotal(sum);
    float inverse = 1.0f / all;
    for (int64_t k = 0; k < n; k++)
        w[k] *= inverse;
    return top * scale + pl_vlog(all);
}

/* The head's keys or values: THIRDS * f from row to row. */
static const float *rows_of(const struct head *h, int which) { return h->x + which * h->s->f; }
static void pack(const struct state *s, struct pl_cpu_packing how) { s->packed->pack(&how, 0, 0, (how.columns + s->packed->columns - 1) / s->packed->columns); }

static void pack_by_feature(const struct head *h, int which) {
    const struct state *s = h->s;
    if (s->packed != NULL)
        pack(s, (struct pl_cpu_packing){.from = rows_of(h, which), .depth = s->d, .columns = s->t, .next_depth = 1, .next_column = THIRDS * s->f, .packed = h->room.by_feature[which]});
}
static void pack_by_position(const struct head *h, int which) {
    const struct state *s = h->s;
    if (s->packed != NULL)
        pack(s, (struct pl_cpu_packing){.from = rows_of(h, which), .depth = s->t, .columns = s->d, .next_depth = THIRDS * s->f, .next_column = 1, .packed = h->room.by_position[which]});
}

/* to[count, keys] = rows, which are lda apart, times the keys or values turned */
static void times_features(const struct head *h, const struct block *b, const float *rows, int64_t lda, int which, float *to) {
    const struct state *s = h->s;
    if (s->packed != NULL) {
        struct pl_cpu_packed_product q = {.a = rows, .b = h->room.by_feature[which], .c = to, .rows = b->count, .depth = s->d, .columns = b->keys, .lda = lda, .next = 1, .ldc = b->keys};
        pl_cpu_packed_multiply(s->packed, q, s->d, h->room.half);
        return;
    }
    pl_cpu_gemm_here(&(struct pl_cpu_gemm){.tb = true, .m = b->count, .n = b->keys, .k = s->d, .a = rows, .lda = lda, .b = rows_of(h, which), .ldb = THIRDS * s->f, .c = to, .ldc = b->keys});
}

/* to[count, d], ldc apart, = weight[count, keys] times the keys or values */
static void times_positions(const struct head *h, const struct block *b, const float *weight, int which, float *to, int64_t ldc) {
    const struct state *s = h->s;
    if (s->packed != NULL) {
        struct pl_cpu_packed_product q = {.a = weight, .b = h->room.by_position[which], .c = to, .rows = b->count, .depth = b->keys, .columns = s->d, .lda = b->keys, .next = 1, .ldc = ldc};
        pl_cpu_packed_multiply(s->packed, q, s->t, h->room.half);
        return;
    }
    pl_cpu_gemm_here(&(struct pl_cpu_gemm){.m = b->count, .n = s->d, .k = b->keys, .a = weight, .lda = b->keys, .b = rows_of(h, which), .ldb = THIRDS * s->f, .c = to, .ldc = ldc});
}

/* The gradient of keys or values = or += weight[count, keys], turned, times rows, which are lda apart. */
static void add_block(const struct head *h, const struct block *b, const float *weight, const float *rows, int64_t lda, int which, bool more) {
    const struct state *s = h->s;
    if (s->packed != NULL) {
        pack(s, (struct pl_cpu_packing){.from = weight, .depth = b->count, .columns = b->keys, .next_depth = b->keys, .next_column = 1, .packed = h->room.block});
        struct pl_cpu_packed_product q = {.a = rows, .b = h->room.block, .c = h->room.turned[which], .rows = s->d, .depth = b->count, .columns = b->keys, .lda = 1, .next = lda, .ldc = s->t, .add = more};
        pl_cpu_packed_multiply(s->packed, q, b->count, h->room.half);
        return;
    }
    pl_cpu_gemm_here(&(struct pl_cpu_gemm){.ta = true, .m = b->keys, .n = s->d, .k = b->count, .a = weight, .lda = b->keys, .b = rows, .ldb = lda, .beta = more ? 1.0f : 0.0f,
                                           .c = h->dx + which * s->f, .ldc = THIRDS * s->f});
}

/* Turned back, 16 positions at a time, whose lines stay in the cache. */
static void end_blocks(const struct head *h, int which) {
    const struct state *s = h->s;
    for (int64_t first = 0; s->packed != NULL && first < s->t; first += 16)
        for (int64_t k = 0; k < s->d; k++)
            for (int64_t t = first; t < least(first + 16, s->t); t++)
                h->dx[t * THIRDS * s->f + which * s->f + k] = h->room.turned[which][k * s->t + t];
}

static void forward_head(const struct head *h) {
    const struct state *s = h->s;
    float *weight = h->room.weight;
    pack_by_feature(h, K);
    pack_by_position(h, V);
    for (int64_t i = 0; i < blocks(s); i++) {
        struct block b = block_of(s, i);
        times_features(h, &b, h->x + b.first * THIRDS * s->f, THIRDS * s->f, K, weight);
        for (int64_t q = 0; q < b.count; q++) {
            int64_t n = seen(s, &b, q);
            float denominator = weigh(weight + q * b.keys, n, s->scale);
            memset(weight + q * b.keys + n, 0, (size_t)(b.keys - n) * sizeof *weight);
            if (h->denominator != NULL)
                h->denominator[b.first + q] = denominator;
        }
        times_positions(h, &b, weight, V, h->y + b.first * s->f, s->f);
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
PL_CLONES
static float dot_of(const float *restrict y, const float *restrict dy, int64_t d) {
    float sum[PL_SUMS] = {0};
    int64_t whole = d / PL_SUMS * PL_SUMS;
    for (int64_t k = 0; k < whole; k += PL_SUMS)
        for (int l = 0; l < PL_SUMS; l++)
            sum[l] += y[k + l] * dy[k + l];
    for (int64_t k = whole; k < d; k++)
        sum[0] += y[k] * dy[k];
    return pl_vtotal(sum);
}

/* Scores and gradients by the weights become weights and gradients by the scores. */
static void slopes(const struct head *h, const struct block *b) {
    const struct state *s = h->s;
    for (int64_t q = 0; q < b->count; q++) {
        int64_t n = seen(s, b, q), t = b->first + q;
        float *w = h->room.weight + q * b->keys, *slope = h->room.slope + q * b->keys;
        slope_row(w, slope, n, s->scale, h->denominator[t], dot_of(h->y + t * s->f, h->dy + t * s->f, s->d));
        memset(w + n, 0, (size_t)(b->keys - n) * sizeof *w);
        memset(slope + n, 0, (size_t)(b->keys - n) * sizeof *slope);
    }
}

/* From the last block, which has all keys, to the first. */
static void backward_head(const struct head *h) {
    const struct state *s = h->s;
    int64_t ld = THIRDS * s->f;
    pack_by_feature(h, K);
    pack_by_feature(h, V);
    pack_by_position(h, K);
    for (int64_t i = blocks(s) - 1; i >= 0; i--) {
        struct block b = block_of(s, i);
        const float *q = h->x + b.first * ld, *dy = h->dy + b.first * s->f;
        bool more = i < blocks(s) - 1;
        times_features(h, &b, q, ld, K, h->room.weight);
        times_features(h, &b, dy, s->f, V, h->room.slope);
        slopes(h, &b);
        times_positions(h, &b, h->room.slope, K, h->dx + b.first * ld, ld);
        add_block(h, &b, h->room.slope, q, ld, K, more);
        add_block(h, &b, h->room.weight, dy, s->f, V, more);
    }
    end_blocks(h, K);
    end_blocks(h, V);
}

static pl_status backward(struct pl_plan *p, const struct pl_io *io) {
    if (p->op.need_dx[0] && io->dx[0] != NULL)
        run(p, io, backward_head);
    return PL_OK;
}

const struct pl_cpu_kind pl_cpu_attention = {.plan = plan, .destroy = destroy, .forward = forward, .backward = backward};
