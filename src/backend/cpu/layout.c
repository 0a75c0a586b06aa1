/* layout: which plans exchange activations in blocks, and the copies for those that want them otherwise.
 * Blocks begin at a convolution whose oneDNN primitives want them, go through all that works channel
 * by channel or element by element, and end at what knows canonical only (dense, losses). */
#include "backend/cpu/cpu.h"

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

/* Input i lies otherwise than the plan wants it. */
static bool foreign(const struct pl_plan *p, int i) {
    return p->inside != PL_CPU_AS_IT_LIES && blocked(&p->op.lx[i]) != (p->inside > 1);
}

pl_status pl_cpu_convert_plan(struct pl_plan *p) {
    size_t elems = 0;
    if (p->kind->layouts == PL_CPU_SAME && goes_through(&p->op))
        p->inside = PL_CPU_AS_IT_LIES;
    for (int i = 0; i < p->op.inputs; i++)
        if (foreign(p, i)) {
            p->converts = true;
            elems += 2 * (size_t)pl_shape_elems(&p->op.x[i]);
        }
    struct pl_backend *b = p->backend;
    if (elems * sizeof(float) <= b->copies_bytes)
        return PL_OK;
    char *more = pl_alloc(elems * sizeof(float), "the cpu backend's copies of tensors in another layout");
    if (more == NULL)
        return PL_ERR_MEMORY;
    pl_free(b->copies);
    b->copies = more;
    b->copies_bytes = elems * sizeof(float);
    return PL_OK;
}

struct copy {
    const float *from;
    float *to;
    int64_t block, plane;
    bool out; /* canonical to blocks */
};

/* [plane, block] to [block, plane] or back, items [begin, end) of samples x blocks of channels */
static inline void copy_blocks(const struct copy *c, int64_t block, int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; u++) {
        const float *from = c->from + u * block * c->plane;
        float *to = c->to + u * block * c->plane;
        if (c->out)
            for (int64_t i = 0; i < c->plane; i++)
                for (int64_t k = 0; k < block; k++)
                    to[i * block + k] = from[k * c->plane + i];
        else
            for (int64_t k = 0; k < block; k++)
                for (int64_t i = 0; i < c->plane; i++)
                    to[k * c->plane + i] = from[i * block + k];
    }
}

PL_CPU_CLONES
static void copy_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct copy *c = arg;
    if (c->block == 8)
        copy_blocks(c, 8, begin, end);
    else
        copy_blocks(c, c->block, begin, end);
}

/* Between the layout of input i and the plan's own; one of the two is canonical. */
static void copy(struct pl_plan *p, int i, const float *from, float *to, bool into_blocks) {
    struct pl_layout l = p->op.lx[i];
    if (!blocked(&l))
        l = (struct pl_layout){p->inside, p->op.x[i].dim[2] * p->op.x[i].dim[3]};
    struct copy c = {from, to, l.block, l.plane, into_blocks};
    int64_t item = l.block * l.plane;
    pl_cpu_parts(p->backend, pl_shape_elems(&p->op.x[i]) / item, PL_CPU_GRAIN / item + 1, copy_part, &c);
}

/* The place of input i's copy, and behind it of its gradient's. */
static float *place(const struct pl_plan *p, int i) {
    float *at = (float *)(void *)p->backend->copies;
    for (int k = 0; k < i; k++)
        if (foreign(p, k))
            at += 2 * pl_shape_elems(&p->op.x[k]);
    return at;
}

struct pl_io pl_cpu_convert_in(struct pl_plan *p, const struct pl_io *io) {
    struct pl_io in = *io;
    for (int i = 0; i < p->op.inputs; i++)
        if (foreign(p, i)) {
            float *x = place(p, i);
            copy(p, i, io->x[i], x, !blocked(&p->op.lx[i]));
            in.x[i] = x;
            if (io->dx[i] != NULL)
                in.dx[i] = x + pl_shape_elems(&p->op.x[i]);
        }
    return in;
}

void pl_cpu_convert_out(struct pl_plan *p, const struct pl_io *io) {
    for (int i = 0; i < p->op.inputs; i++)
        if (foreign(p, i) && p->op.need_dx[i] && io->dx[i] != NULL)
            copy(p, i, place(p, i) + pl_shape_elems(&p->op.x[i]), io->dx[i], blocked(&p->op.lx[i]));
}
