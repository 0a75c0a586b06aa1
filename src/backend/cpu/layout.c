/* layout: which plans exchange activations in blocks, and the copies for those that cannot read them.
 * Blocks begin at a convolution whose oneDNN primitives want them, go through all that works channel
 * by channel or element by element, and end at what knows canonical only (dense, losses). */
#include "backend/cpu/cpu.h"

#include <string.h>

static bool blocked(const struct pl_layout *l) { return l->block > 1; }

/* All inputs lie in blocks of the same size. */
static bool alike(const struct pl_op *op) {
    for (int i = 1; i < op->inputs; i++)
        if (op->lx[i].block != op->lx[0].block)
            return false;
    return blocked(&op->lx[0]);
}

struct pl_layout pl_cpu_layout(struct pl_backend *b, const struct pl_op *op) {
    struct pl_layout l = {0};
    struct pl_cpu_dims y = pl_cpu_dims(&op->y);
    enum pl_cpu_layouts how = pl_cpu_kinds[op->kind]->layouts;
    if (op->y.dims != 4 || y.h * y.w == 1) /* one element a channel: both are the same */
        return l;
    if (how == PL_CPU_OWN)
        return pl_cpu_conv_dnnl_layout(b, op);
    if (how == PL_CPU_SAME && alike(op))
        l = (struct pl_layout){op->lx[0].block, y.h * y.w};
    return l;
}

/* A pooling to one element a channel reads blocks, and what it writes is both. */
static bool goes_through(const struct pl_op *op) {
    struct pl_cpu_dims y = pl_cpu_dims(&op->y);
    return alike(op) && op->x[0].dims == 4 && (blocked(&op->ly) || y.h * y.w == 1);
}

pl_status pl_cpu_convert_plan(struct pl_plan *p) {
    size_t elems = 0;
    bool as_it_lies = p->kind->layouts == PL_CPU_OWN ? blocked(&p->op.ly) : p->kind->layouts == PL_CPU_SAME && goes_through(&p->op);
    if (as_it_lies)
        return PL_OK;
    for (int i = 0; i < p->op.inputs; i++)
        if (blocked(&p->op.lx[i])) {
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
    const float *from;
    float *to;
    int64_t block, plane, channels, blocks; /* blocks of a sample; the last may be filled up with zeros */
    bool out; /* canonical to blocks */
};

/* [plane, block] to [block, plane] or back, items [begin, end) of samples x blocks of channels */
static inline void copy_blocks(const struct copy *c, int64_t block, int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; u++) {
        int64_t first = u % c->blocks * block, there = c->channels - first < block ? c->channels - first : block;
        int64_t canonical = (u / c->blocks * c->channels + first) * c->plane, blocked_at = u * block * c->plane;
        const float *from = c->from + (c->out ? canonical : blocked_at);
        float *to = c->to + (c->out ? blocked_at : canonical);
        if (c->out && there < block)
            memset(to, 0, (size_t)(block * c->plane) * sizeof *to);
        if (c->out && there == block)
            for (int64_t i = 0; i < c->plane; i++)
                for (int64_t k = 0; k < block; k++)
                    to[i * block + k] = from[k * c->plane + i];
        else if (c->out)
            for (int64_t i = 0; i < c->plane; i++)
                for (int64_t k = 0; k < there; k++)
                    to[i * block + k] = from[k * c->plane + i];
        else
            for (int64_t k = 0; k < there; k++)
                for (int64_t i = 0; i < c->plane; i++)
                    to[k * c->plane + i] = from[i * block + k];
    }
}

PL_CLONES
static void copy_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct copy *c = arg;
    if (c->block == 8)
        copy_blocks(c, 8, begin, end);
    else
        copy_blocks(c, c->block, begin, end);
}

void pl_cpu_copy_blocks(const struct pl_backend *b, const struct pl_cpu_dims *d, int64_t block, const float *from, float *to, bool into_blocks) {
    struct copy c = {from, to, block, d->h * d->w, d->c, (d->c + block - 1) / block, into_blocks};
    pl_cpu_parts(b, d->n * c.blocks, PL_CPU_GRAIN / (block * c.plane) + 1, copy_part, &c);
}

static void copy(struct pl_plan *p, int i, const float *from, float *to, bool out) {
    const struct pl_layout *l = &p->op.lx[i];
    struct pl_cpu_dims d = {p->op.x[i].dim[0], pl_shape_row_elems(&p->op.x[i]) / l->plane, 1, l->plane};
    pl_cpu_copy_blocks(p->backend, &d, l->block, from, to, out);
}

/* The place of input i's copy, and behind it of its gradient's. */
static float *place(const struct pl_plan *p, int i) {
    float *at = (float *)(void *)p->backend->canonical;
    for (int k = 0; k < i; k++)
        if (blocked(&p->op.lx[k]))
            at += 2 * pl_shape_elems(&p->op.x[k]);
    return at;
}

struct pl_io pl_cpu_convert_in(struct pl_plan *p, const struct pl_io *io) {
    struct pl_io in = *io;
    for (int i = 0; i < p->op.inputs; i++)
        if (blocked(&p->op.lx[i])) {
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
        if (blocked(&p->op.lx[i]) && p->op.need_dx[i] && io->dx[i] != NULL)
            copy(p, i, place(p, i) + pl_shape_elems(&p->op.x[i]), io->dx[i], true);
}
