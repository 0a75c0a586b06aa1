/* layout: which plans exchange activations in blocks, and the copies for those that cannot read them.
 * Blocks begin at a convolution whose oneDNN primitives want them, go through all that works channel
 * by channel or element by element, and end at what knows canonical only (dense, losses). */
#include "backend/cpu/bf16.h"

#include <string.h>

static bool blocked(const struct pl_layout *l) { return l->block > 1; }

/* All inputs lie in blocks of the same size, or in none, with the same elements. */
static bool alike(const struct pl_op *op) {
    for (int i = 1; i < op->inputs; i++)
        if (op->lx[i].block != op->lx[0].block || op->lx[i].bf16 != op->lx[0].bf16)
            return false;
    return true;
}

/* Whether the kind reads inputs that are alike as they lie: blocks, but not flattened ones, or rows of bf16. */
static bool reads(const struct pl_cpu_kind *kind, const struct pl_op *op) {
    const struct pl_layout *x = &op->lx[0];
    bool halves = kind->halves == PL_CPU_HALVES || (kind->halves == PL_CPU_HALF_BLOCKS && blocked(x));
    return alike(op) && (x->bf16 ? halves : blocked(x)) && (!blocked(x) || op->x[0].dims == 4);
}

static bool is_loss(enum pl_op_kind kind) { return kind >= PL_OP_SOFTMAX_LOSS; }

struct pl_layout pl_cpu_layout(struct pl_backend *b, const struct pl_op *op) {
    struct pl_layout l = {0};
    struct pl_cpu_dims y = pl_cpu_dims(&op->y);
    const struct pl_cpu_kind *kind = pl_cpu_kinds[op->kind];
    bool planes = op->y.dims == 4 && y.h * y.w > 1; /* with one element a channel both orders are the same */
    if (is_loss(op->kind))
        return l;
    if (kind->halves == PL_CPU_MIXED)
        l.bf16 = b->bf16;
    else if (kind->layouts == PL_CPU_OWN && planes)
        l = pl_cpu_conv_dnnl_layout(b, op);
    else if ((kind->layouts == PL_CPU_SAME || !blocked(&op->lx[0])) && reads(kind, op))
        l = (struct pl_layout){.block = planes ? op->lx[0].block : 0, .plane = planes && blocked(&op->lx[0]) ? y.h * y.w : 0, .bf16 = op->lx[0].bf16};
    return l;
}

/* A pooling to one element a channel reads blocks, and what it writes is both. */
static bool goes_through(const struct pl_cpu_kind *kind, const struct pl_op *op) {
    struct pl_cpu_dims y = pl_cpu_dims(&op->y);
    bool same = op->ly.block == op->lx[0].block || y.h * y.w == 1 || (!blocked(&op->ly) && !blocked(&op->lx[0]));
    return reads(kind, op) && same && op->ly.bf16 == op->lx[0].bf16;
}

static bool as_it_lies(const struct pl_plan *p) {
    if (p->kind->layouts == PL_CPU_OWN)
        return blocked(&p->op.ly);
    if (p->kind->layouts == PL_CPU_CANONICAL && blocked(&p->op.lx[0]))
        return false;
    return p->kind->halves == PL_CPU_MIXED || goes_through(p->kind, &p->op);
}

static bool plain(const struct pl_layout *l) { return !blocked(l) && !l->bf16; }

pl_status pl_cpu_convert_plan(struct pl_plan *p) {
    size_t elems = 0;
    if (as_it_lies(p))
        return PL_OK;
    for (int i = 0; i < p->op.inputs; i++)
        if (!plain(&p->op.lx[i])) {
            p->converts = true;
            elems += 2 * (size_t)pl_shape_elems(&p->op.x[i]);
        }
    struct pl_backend *b = p->backend;
    if (elems * sizeof(float) <= b->canonical_bytes)
        return PL_OK;
    char *more = pl_alloc(elems * sizeof(float), "the cpu backend's copies of blocked tensors");
    if (more == NULL)
        return PL_ERR_MEMORY;
    pl_free(b->canonical);
    b->canonical = more;
    b->canonical_bytes = elems * sizeof(float);
    return PL_OK;
}

struct copy {
    const void *from;
    void *to;
    int64_t block, plane, channels, blocks; /* blocks of a sample; the last may be filled up with zeros */
    bool out;  /* canonical to blocks */
    bool half; /* the blocks are of bf16 */
};

/* [plane, block] to [block, plane] or back, items [begin, end) of samples x blocks of channels */
PL_WITHIN void copy_blocks(const struct copy *c, int64_t block, bool half, int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; u++) {
        int64_t first = u % c->blocks * block, there = c->channels - first < block ? c->channels - first : block;
        int64_t canonical = (u / c->blocks * c->channels + first) * c->plane, blocked_at = u * block * c->plane;
        const void *from = c->out ? pl_from(c->from, canonical, false) : pl_from(c->from, blocked_at, half);
        void *to = c->out ? pl_from(c->to, blocked_at, half) : pl_from(c->to, canonical, false);
        if (c->out && there < block)
            memset(to, 0, (size_t)(block * c->plane) * pl_element_bytes(half));
        if (c->out && there == block)
            for (int64_t i = 0; i < c->plane; i++)
                for (int64_t k = 0; k < block; k++)
                    pl_set_element(to, i * block + k, half, ((const float *)from)[k * c->plane + i]);
        else if (c->out)
            for (int64_t i = 0; i < c->plane; i++)
                for (int64_t k = 0; k < there; k++)
                    pl_set_element(to, i * block + k, half, ((const float *)from)[k * c->plane + i]);
        else
            for (int64_t k = 0; k < there; k++)
                for (int64_t i = 0; i < c->plane; i++)
                    ((float *)to)[k * c->plane + i] = pl_element(from, i * block + k, half);
    }
}

PL_CLONES
static void copy_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct copy *c = arg;
    if (c->block == 8)
        copy_blocks(c, 8, false, begin, end);
    else if (c->block == 16)
        copy_blocks(c, 16, false, begin, end);
    else
        copy_blocks(c, c->block, false, begin, end);
}

PL_HALVES
static void copy_part_half(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct copy *c = arg;
    copy_blocks(c, 16, true, begin, end);
}

static void run_copy(const struct pl_backend *b, const struct pl_cpu_dims *d, struct copy *c) {
    c->plane = d->h * d->w;
    c->channels = d->c;
    c->blocks = (d->c + c->block - 1) / c->block;
    pl_cpu_parts(b, d->n * c->blocks, PL_CPU_GRAIN / (c->block * c->plane) + 1, c->half ? copy_part_half : copy_part, c);
}

void pl_cpu_copy_blocks(const struct pl_backend *b, const struct pl_cpu_dims *d, int64_t block, const float *from, float *to, bool into_blocks) {
    run_copy(b, d, &(struct copy){.from = from, .to = to, .block = block, .out = into_blocks});
}

struct elements {
    const void *from;
    void *to;
};

PL_HALVES
static void round_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const float *restrict from = ((const struct elements *)arg)->from;
    uint16_t *restrict to = ((const struct elements *)arg)->to;
    for (int64_t i = begin; i < end; i++)
        to[i] = pl_bf16_round(from[i]);
}

PL_HALVES
static void widen_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const uint16_t *restrict from = ((const struct elements *)arg)->from;
    float *restrict to = ((const struct elements *)arg)->to;
    for (int64_t i = begin; i < end; i++)
        to[i] = pl_bf16_widen(from[i]);
}

void pl_cpu_round_here(const float *from, void *to, int64_t n) { round_part(&(struct elements){from, to}, 0, 0, n); }

void pl_cpu_round(const struct pl_backend *b, const float *from, void *to, int64_t n) {
    pl_cpu_parts(b, n, PL_CPU_GRAIN, round_part, &(struct elements){from, to});
}

void pl_cpu_widen(const struct pl_backend *b, const void *from, float *to, int64_t n) {
    pl_cpu_parts(b, n, PL_CPU_GRAIN, widen_part, &(struct elements){from, to});
}

static void copy(struct pl_plan *p, int i, const void *from, void *to, bool out) {
    const struct pl_layout *l = &p->op.lx[i];
    if (!blocked(l)) {
        int64_t n = pl_shape_elems(&p->op.x[i]);
        if (out)
            pl_cpu_round(p->backend, from, to, n);
        else
            pl_cpu_widen(p->backend, from, to, n);
        return;
    }
    struct pl_cpu_dims d = {p->op.x[i].dim[0], pl_shape_row_elems(&p->op.x[i]) / l->plane, 1, l->plane};
    run_copy(p->backend, &d, &(struct copy){.from = from, .to = to, .block = l->block, .out = out, .half = l->bf16});
}

/* The place of input i's copy, and behind it of its gradient's. */
static float *place(const struct pl_plan *p, int i) {
    float *at = (float *)(void *)p->backend->canonical;
    for (int k = 0; k < i; k++)
        if (!plain(&p->op.lx[k]))
            at += 2 * pl_shape_elems(&p->op.x[k]);
    return at;
}

struct pl_io pl_cpu_convert_in(struct pl_plan *p, const struct pl_io *io) {
    struct pl_io in = *io;
    for (int i = 0; i < p->op.inputs; i++)
        if (!plain(&p->op.lx[i])) {
            float *x = place(p, i);
            copy(p, i, io->x[i], x, false);
            in.x[i] = x;
            if (io->dx[i] != NULL)
                in.dx[i] = x + pl_shape_elems(&p->op.x[i]);
        }
    return in;
}

void pl_cpu_convert_out(struct pl_plan *p, const struct pl_io *io) {
    for (int i = 0; i < p->op.inputs; i++)
        if (!plain(&p->op.lx[i]) && p->op.need_dx[i] && io->dx[i] != NULL)
            copy(p, i, place(p, i) + pl_shape_elems(&p->op.x[i]), io->dx[i], true);
}
