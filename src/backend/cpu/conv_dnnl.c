/* conv_dnnl: convolutions by oneDNN (its JIT kernels for blocked layouts). Where all passes of a
 * convolution have such kernels and its channels fill the blocks, its activations are exchanged in
 * blocks (layout.c); otherwise they are canonical, and each pass reorders what it reads into the layout
 * its primitive wants, in the backend's scratch memory, and back what it writes. Weights are canonical.
 *
 * Which pass goes here where activations are canonical is a fixed rule, not a timing, so that a run's bits can be had again. It was
 * measured on Zen 3 (layers of CIFAR-10, ResNet-20, AlexNet on one and two threads, of ResNet-50 on
 * one; reorders included): the JIT kernels take between the same time as im2col and 2.2 times less
 * where the kernel is larger than 1x1 and the layout's blocks do not pad the weights by more than a
 * tenth. LeNet's channels (1, 20, 50) pad by up to a third: there im2col is as fast forward and
 * faster backward. 1x1 and oneDNN's other implementations ("gemm", "ref") stay with im2col. */
#include "backend/cpu/dnnl.h"

#ifdef PL_CPU_DNNL

#include <string.h>

#define LEGS 4

/* One tensor of a pass: the canonical one outside and the one the primitive sees. */
struct leg {
    int arg;                 /* DNNL_ARG_... */
    bool output;
    dnnl_memory_t outside, inside; /* the same object where the layouts are the same */
    dnnl_primitive_t reorder;      /* NULL where they are */
    dnnl_exec_arg_t reorder_args[2];
    size_t offset;                 /* of inside in the scratch memory */
};

struct pass {
    dnnl_primitive_desc_t desc;
    dnnl_primitive_t conv; /* NULL: im2col's */
    struct leg leg[LEGS];
    int legs;
    dnnl_memory_t pad; /* oneDNN's own scratch */
    size_t pad_offset, bytes;
    dnnl_exec_arg_t args[LEGS + 1];
};

struct pl_cpu_conv_dnnl {
    struct pl_backend *backend;
    const char *name;
    struct pass forward, weights, data;
    size_t sum_offset; /* of the gradient of this pass alone, where it is to be added */
    int64_t weight_elems, bias_elems;
};

struct shape {
    dnnl_memory_desc_t x, w, b, y;             /* any layout */
    dnnl_memory_desc_t dw, plain_w;
    dnnl_memory_desc_t outside_x, outside_y;   /* as others see them */
    dnnl_dims_t stride, dilate, pad_begin, pad_end;
};

static bool good(dnnl_status_t s) {
    return s == dnnl_success;
}

/* The tag of [N, C / block, H, W, block]; 0: oneDNN has no such layout. */
static dnnl_format_tag_t tag_of(int64_t block) {
    return block == 16 ? dnnl_aBcd16b : block == 8 ? dnnl_aBcd8b : block <= 1 ? dnnl_abcd : dnnl_format_tag_undef;
}

/* What is blocked outside is taken as it is, what is canonical the primitive may want otherwise. half: what is multiplied is
 * bf16, whatever it is outside. */
static void describe(const struct pl_op *op, const struct pl_layout *lx, const struct pl_layout *ly, bool half, struct shape *s) {
    struct pl_cpu_dims x = pl_cpu_dims(&op->x[0]), y = pl_cpu_dims(&op->y);
    int64_t g = op->groups;
    int wd = g > 1 ? 5 : 4;
    dnnl_dims_t w = {g, y.c / g, x.c / g, op->kernel[0], op->kernel[1]};
    if (g == 1)
        memcpy(w, (dnnl_dims_t){y.c, x.c, op->kernel[0], op->kernel[1]}, sizeof w);
    dnnl_dims_t xd = {x.n, x.c, x.h, x.w}, yd = {y.n, y.c, y.h, y.w};
    const dnnl_data_type_t f = dnnl_f32, t = half ? dnnl_bf16 : dnnl_f32;
    dnnl_memory_desc_init_by_tag(&s->x, 4, xd, t, lx->block > 1 ? tag_of(lx->block) : dnnl_format_tag_any);
    dnnl_memory_desc_init_by_tag(&s->y, 4, yd, t, ly->block > 1 ? tag_of(ly->block) : dnnl_format_tag_any);
    dnnl_memory_desc_init_by_tag(&s->w, wd, w, t, dnnl_format_tag_any);
    dnnl_memory_desc_init_by_tag(&s->dw, wd, w, f, dnnl_format_tag_any);
    dnnl_memory_desc_init_by_tag(&s->b, 1, (dnnl_dims_t){y.c}, f, dnnl_a);
    dnnl_memory_desc_init_by_tag(&s->outside_x, 4, xd, lx->bf16 ? dnnl_bf16 : f, tag_of(lx->block));
    dnnl_memory_desc_init_by_tag(&s->outside_y, 4, yd, ly->bf16 ? dnnl_bf16 : f, tag_of(ly->block));
    dnnl_memory_desc_init_by_tag(&s->plain_w, wd, w, f, g > 1 ? dnnl_abcde : dnnl_abcd);
    for (int i = 0; i < 2; i++) {
        s->stride[i] = op->stride[i];
        s->dilate[i] = op->dilation[i] < 1 ? 0 : op->dilation[i] - 1;
        s->pad_begin[i] = op->pad_begin[i];
        s->pad_end[i] = op->pad_end[i];
    }
}

static bool is_jit(const_dnnl_primitive_desc_t d) {
    const char *info = NULL;
    if (!good(dnnl_primitive_desc_query(d, dnnl_query_impl_info_str, 0, (void *)&info)))
        return false;
    return strncmp(info, "jit", 3) == 0 || strncmp(info, "brg", 3) == 0;
}

/* Whether a tensor's blocks make it more than a tenth larger. */
static bool pads_much(const dnnl_memory_desc_t *d) {
    double grown = 1.0;
    for (int i = 0; i < d->ndims; i++)
        grown *= (double)d->padded_dims[i] / (double)d->dims[i];
    return grown > 1.1;
}

/* The layout that a pass's primitive wants of one of its tensors. */
static const dnnl_memory_desc_t *wanted(const struct pass *p, int arg) {
    return dnnl_primitive_desc_query_md(p->desc, dnnl_query_exec_arg_md, arg);
}

/* Creates a pass's description from any of the three kinds of operation, if it is worth it. */
static bool choose(const struct pl_cpu_dnnl *d, const void *op, const_dnnl_primitive_desc_t hint,
                   int weights, struct pass *p) {
    dnnl_primitive_attr_t attr;
    if (!good(dnnl_primitive_attr_create(&attr)))
        return false;
    dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
    bool ok = good(dnnl_primitive_desc_create(&p->desc, op, attr, d->engine, hint));
    dnnl_primitive_attr_destroy(attr);
    return ok && is_jit(p->desc) && !pads_much(wanted(p, weights));
}

static size_t take(struct pass *p, size_t bytes) {
    size_t offset = p->bytes;
    p->bytes += (bytes + 63) / 64 * 64;
    return offset;
}

static bool make_reorder(const struct pl_cpu_dnnl *d, const dnnl_memory_desc_t *from,
                         const dnnl_memory_desc_t *to, dnnl_primitive_t *out) {
    dnnl_primitive_desc_t desc;
    if (!good(dnnl_reorder_primitive_desc_create(&desc, from, d->engine, to, d->engine, NULL)))
        return false;
    bool ok = good(dnnl_primitive_create(out, desc));
    dnnl_primitive_desc_destroy(desc);
    return ok;
}

static bool add_leg(const struct pl_cpu_dnnl *d, struct pass *p, int arg,
                    const dnnl_memory_desc_t *plain, bool output) {
    const dnnl_memory_desc_t *want = wanted(p, arg);
    struct leg *l = &p->leg[p->legs++];
    l->arg = arg;
    l->output = output;
    if (!good(dnnl_memory_create(&l->outside, plain, d->engine, DNNL_MEMORY_NONE)))
        return false;
    l->inside = l->outside;
    p->args[p->legs - 1] = (dnnl_exec_arg_t){arg, l->inside};
    if (dnnl_memory_desc_equal(want, plain))
        return true;
    l->inside = NULL;
    if (!good(dnnl_memory_create(&l->inside, want, d->engine, DNNL_MEMORY_NONE)))
        return false;
    p->args[p->legs - 1].memory = l->inside;
    l->offset = take(p, dnnl_memory_desc_get_size(want));
    l->reorder_args[0] = (dnnl_exec_arg_t){DNNL_ARG_FROM, output ? l->inside : l->outside};
    l->reorder_args[1] = (dnnl_exec_arg_t){DNNL_ARG_TO, output ? l->outside : l->inside};
    return make_reorder(d, output ? want : plain, output ? plain : want, &l->reorder);
}

static bool finish_pass(const struct pl_cpu_dnnl *d, struct pass *p) {
    const dnnl_memory_desc_t *pad =
        dnnl_primitive_desc_query_md(p->desc, dnnl_query_scratchpad_md, 0);
    if (!good(dnnl_memory_create(&p->pad, pad, d->engine, DNNL_MEMORY_NONE)))
        return false;
    p->pad_offset = take(p, dnnl_memory_desc_get_size(pad));
    p->args[p->legs] = (dnnl_exec_arg_t){DNNL_ARG_SCRATCHPAD, p->pad};
    return good(dnnl_primitive_create(&p->conv, p->desc));
}

static void destroy_pass(struct pass *p) {
    for (int i = 0; i < p->legs; i++) {
        struct leg *l = &p->leg[i];
        if (l->reorder != NULL)
            dnnl_primitive_destroy(l->reorder);
        if (l->inside != NULL && l->inside != l->outside)
            dnnl_memory_destroy(l->inside);
        if (l->outside != NULL)
            dnnl_memory_destroy(l->outside);
    }
    if (p->pad != NULL)
        dnnl_memory_destroy(p->pad);
    if (p->conv != NULL)
        dnnl_primitive_destroy(p->conv);
    if (p->desc != NULL)
        dnnl_primitive_desc_destroy(p->desc);
    *p = (struct pass){0};
}

static bool describe_forward(const struct pl_cpu_dnnl *d, const struct pl_op *op, const struct shape *s, struct pass *f) {
    dnnl_convolution_desc_t c;
    dnnl_prop_kind_t kind = op->train ? dnnl_forward_training : dnnl_forward_inference;
    return good(dnnl_dilated_convolution_forward_desc_init(
               &c, kind, dnnl_convolution_direct, &s->x, &s->w, op->bias ? &s->b : NULL, &s->y,
               s->stride, s->dilate, s->pad_begin, s->pad_end)) &&
           choose(d, &c, NULL, DNNL_ARG_WEIGHTS, f);
}

static bool describe_weights(const struct pl_cpu_dnnl *d, const struct pl_op *op, const struct shape *s, const_dnnl_primitive_desc_t hint, struct pass *b) {
    dnnl_convolution_desc_t c;
    return good(dnnl_dilated_convolution_backward_weights_desc_init(
               &c, dnnl_convolution_direct, &s->x, &s->dw, op->bias ? &s->b : NULL, &s->y,
               s->stride, s->dilate, s->pad_begin, s->pad_end)) &&
           choose(d, &c, hint, DNNL_ARG_DIFF_WEIGHTS, b);
}

static bool describe_data(const struct pl_cpu_dnnl *d, const struct shape *s, const_dnnl_primitive_desc_t hint, struct pass *b) {
    dnnl_convolution_desc_t c;
    return good(dnnl_dilated_convolution_backward_data_desc_init(
               &c, dnnl_convolution_direct, &s->x, &s->w, &s->y, s->stride, s->dilate,
               s->pad_begin, s->pad_end)) &&
           choose(d, &c, hint, DNNL_ARG_WEIGHTS, b);
}

static bool plan_forward(const struct pl_plan *p, const struct shape *s, struct pass *f) {
    const struct pl_cpu_dnnl *d = p->backend->dnnl;
    return describe_forward(d, &p->op, s, f) && add_leg(d, f, DNNL_ARG_SRC, &s->outside_x, false) &&
           add_leg(d, f, DNNL_ARG_WEIGHTS, &s->plain_w, false) &&
           (!p->op.bias || add_leg(d, f, DNNL_ARG_BIAS, &s->b, false)) &&
           add_leg(d, f, DNNL_ARG_DST, &s->outside_y, true) && finish_pass(d, f);
}

static bool plan_weights(const struct pl_plan *p, const struct shape *s,
                         const_dnnl_primitive_desc_t hint, struct pass *b) {
    const struct pl_cpu_dnnl *d = p->backend->dnnl;
    if (p->op.groups == 1 && p->op.x[0].dim[1] < 3)
        return false; /* one channel in: 4 times slower than im2col */
    return describe_weights(d, &p->op, s, hint, b) && add_leg(d, b, DNNL_ARG_SRC, &s->outside_x, false) &&
           add_leg(d, b, DNNL_ARG_DIFF_DST, &s->outside_y, false) &&
           add_leg(d, b, DNNL_ARG_DIFF_WEIGHTS, &s->plain_w, true) &&
           (!p->op.bias || add_leg(d, b, DNNL_ARG_DIFF_BIAS, &s->b, true)) && finish_pass(d, b);
}

static bool plan_data(const struct pl_plan *p, const struct shape *s,
                      const_dnnl_primitive_desc_t hint, struct pass *b) {
    const struct pl_cpu_dnnl *d = p->backend->dnnl;
    return describe_data(d, s, hint, b) && add_leg(d, b, DNNL_ARG_DIFF_DST, &s->outside_y, false) &&
           add_leg(d, b, DNNL_ARG_WEIGHTS, &s->plain_w, false) &&
           add_leg(d, b, DNNL_ARG_DIFF_SRC, &s->outside_x, true) && finish_pass(d, b);
}

/* Which of our blocked layouts a description is; 0: none of them, or padded. */
static int64_t block_of(const dnnl_memory_desc_t *d) {
    for (int64_t block = 8; block <= 16; block *= 2) {
        dnnl_memory_desc_t same;
        if (d->dims[1] % block == 0 && good(dnnl_memory_desc_init_by_tag(&same, 4, d->dims, d->data_type, tag_of(block))) &&
            dnnl_memory_desc_equal(d, &same))
            return block;
    }
    return 0;
}

/* Whether every pass has a primitive for these layouts. */
static bool takes(const struct pl_cpu_dnnl *d, const struct pl_op *op, const struct shape *s, const_dnnl_primitive_desc_t hint) {
    struct pass weights = {0}, data = {0};
    bool all = !op->train || (op->x[0].dim[1] / op->groups >= 3 && describe_weights(d, op, s, hint, &weights));
    if (all && op->train && op->need_dx[0])
        all = describe_data(d, s, hint, &data);
    destroy_pass(&weights);
    destroy_pass(&data);
    return all;
}

/* Multiplying these; canonical: none. */
static struct pl_layout layout_of(struct pl_backend *b, const struct pl_op *op, bool half) {
    struct pl_layout l = {0};
    struct shape s;
    struct pass forward = {0};
    describe(op, &op->lx[0], &l, half, &s);
    if (describe_forward(b->dnnl, op, &s, &forward))
        l.block = block_of(wanted(&forward, DNNL_ARG_DST));
    destroy_pass(&forward);
    if (l.block == 0)
        return l;
    l.plane = op->y.dim[2] * op->y.dim[3];
    l.bf16 = b->bf16 && l.block == 16; /* other blocks of bf16 nobody knows */
    describe(op, &op->lx[0], &l, half, &s);
    if ((half && !l.bf16) || !describe_forward(b->dnnl, op, &s, &forward) || !takes(b->dnnl, op, &s, forward.desc))
        l = (struct pl_layout){0};
    destroy_pass(&forward);
    return l;
}

/* A first convolution, of three channels, would be padded too much in bf16: it multiplies floats and rounds what it writes. */
struct pl_layout pl_cpu_conv_dnnl_layout(struct pl_backend *b, const struct pl_op *op) {
    struct pl_layout l = {0};
    bool pointwise = op->kernel[0] == 1 && op->kernel[1] == 1;
    if (b->dnnl == NULL || (pointwise && op->lx[0].block <= 1))
        return l;
    pl_cpu_dnnl_threads(b->threads); /* it chooses by them */
    if (b->bf16)
        l = layout_of(b, op, true);
    if (l.block == 0)
        l = layout_of(b, op, false);
    pl_cpu_dnnl_threads(1);
    return l;
}

/* Plans what is worth it; the forward description goes last, as the others are made from it. Without a
 * blocked output the inputs come canonical too. */
static void plan_passes(const struct pl_plan *p, struct pl_cpu_conv_dnnl *c, bool half) {
    struct shape s;
    struct pl_layout canonical = {0};
    describe(&p->op, p->op.ly.block > 1 ? &p->op.lx[0] : &canonical, &p->op.ly, half, &s);
    bool forward = plan_forward(p, &s, &c->forward);
    const_dnnl_primitive_desc_t hint = c->forward.desc;
    if (!p->op.train || hint == NULL || !plan_weights(p, &s, hint, &c->weights))
        destroy_pass(&c->weights);
    if (!p->op.train || hint == NULL || !p->op.need_dx[0] || !plan_data(p, &s, hint, &c->data))
        destroy_pass(&c->data);
    if (!forward)
        destroy_pass(&c->forward);
}

static void plan_all(const struct pl_plan *p, struct pl_cpu_conv_dnnl *c) {
    if (p->op.ly.bf16)
        plan_passes(p, c, true);
    if (pl_cpu_conv_dnnl_whole(c, &p->op))
        return;
    destroy_pass(&c->weights);
    destroy_pass(&c->data);
    destroy_pass(&c->forward);
    plan_passes(p, c, false);
}

struct pl_cpu_conv_dnnl *pl_cpu_conv_dnnl_create(const struct pl_plan *p) {
    bool pointwise = p->op.kernel[0] == 1 && p->op.kernel[1] == 1;
    if (p->backend->dnnl == NULL || (pointwise && p->op.ly.block <= 1))
        return NULL;
    struct pl_cpu_conv_dnnl *c = pl_alloc(sizeof *c, "a convolution's oneDNN plan");
    if (c == NULL)
        return NULL;
    c->backend = p->backend;
    c->name = p->op.name;
    c->weight_elems = pl_shape_elems(&p->op.p[0]);
    c->bias_elems = p->op.bias ? p->op.y.dim[1] : 0;
    pl_cpu_dnnl_threads(p->backend->threads);
    plan_all(p, c);
    pl_cpu_dnnl_threads(1);
    c->sum_offset = take(&c->weights, (size_t)(c->weight_elems + c->bias_elems) * sizeof(float));
    size_t most = c->forward.bytes > c->weights.bytes ? c->forward.bytes : c->weights.bytes;
    most = c->data.bytes > most ? c->data.bytes : most;
    if ((c->forward.conv == NULL && c->weights.conv == NULL && c->data.conv == NULL) ||
        pl_cpu_scratch(p->backend, most) < 0) {
        pl_cpu_conv_dnnl_destroy(c);
        return NULL;
    }
    pl_cpu_take_team();
    return c;
}

bool pl_cpu_conv_dnnl_whole(const struct pl_cpu_conv_dnnl *c, const struct pl_op *op) {
    return c != NULL && c->forward.conv != NULL && (!op->train || c->weights.conv != NULL) &&
           (!op->train || !op->need_dx[0] || c->data.conv != NULL);
}

void pl_cpu_conv_dnnl_destroy(struct pl_cpu_conv_dnnl *c) {
    if (c == NULL)
        return;
    destroy_pass(&c->weights);
    destroy_pass(&c->data);
    destroy_pass(&c->forward);
    pl_free(c);
}

/* Points a pass at this run's tensors, in the order of its legs, and at the scratch memory. */
static dnnl_status_t bind(const struct pl_cpu_conv_dnnl *c, struct pass *p,
                          const void *const *tensor) {
    char *scratch = c->backend->scratch;
    dnnl_status_t s = dnnl_memory_set_data_handle(p->pad, scratch + p->pad_offset);
    for (int i = 0; i < p->legs && good(s); i++) {
        struct leg *l = &p->leg[i];
        s = dnnl_memory_set_data_handle(l->outside, (void *)(uintptr_t)tensor[i]);
        if (l->reorder != NULL && good(s))
            s = dnnl_memory_set_data_handle(l->inside, scratch + l->offset);
    }
    return s;
}

static dnnl_status_t reorders(const struct pl_cpu_conv_dnnl *c, const struct pass *p,
                              bool output) {
    dnnl_status_t s = dnnl_success;
    for (int i = 0; i < p->legs && good(s); i++)
        if (p->leg[i].reorder != NULL && p->leg[i].output == output)
            s = dnnl_primitive_execute(p->leg[i].reorder, c->backend->dnnl->stream, 2,
                                       p->leg[i].reorder_args);
    return s;
}

static pl_status run(const struct pl_cpu_conv_dnnl *c, struct pass *p, const void *const *tensor) {
    dnnl_stream_t stream = c->backend->dnnl->stream;
    pl_cpu_dnnl_threads(c->backend->threads);
    dnnl_status_t s = bind(c, p, tensor);
    if (good(s))
        s = reorders(c, p, false);
    if (good(s))
        s = dnnl_primitive_execute(p->conv, stream, p->legs + 1, p->args);
    if (good(s))
        s = reorders(c, p, true);
    if (good(s))
        s = dnnl_stream_wait(stream);
    pl_cpu_dnnl_threads(1);
    if (good(s))
        return PL_OK;
    return pl_error(PL_ERR_MEMORY, "backend",
                    "layer %s: oneDNN's convolution failed with status %d", c->name, (int)s);
}

bool pl_cpu_conv_dnnl_forward(struct pl_cpu_conv_dnnl *c, const struct pl_io *io, pl_status *s) {
    if (c == NULL || c->forward.conv == NULL)
        return false;
    const void *with_bias[LEGS] = {io->x[0], io->p[0], io->p[1], io->y};
    const void *without[LEGS] = {io->x[0], io->p[0], io->y};
    *s = run(c, &c->forward, c->bias_elems > 0 ? with_bias : without);
    return true;
}

struct sum {
    const float *from;
    float *to;
};

PL_CLONES
static void add(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct sum *j = arg;
    for (int64_t i = begin; i < end; i++)
        j->to[i] += j->from[i];
}

/* Writes to the gradient, or beside it and adds. An unwanted bias gradient goes beside it too. */
bool pl_cpu_conv_dnnl_weights(struct pl_cpu_conv_dnnl *c, const struct pl_io *io, pl_status *s) {
    if (c == NULL || c->weights.conv == NULL)
        return false;
    float *dw = io->dp[0], *db = io->dp[1];
    float *beside = (float *)(void *)(c->backend->scratch + c->sum_offset);
    bool aside = io->accumulate || db == NULL;
    const void *tensor[LEGS] = {io->x[0], io->dy, io->accumulate ? beside : dw,
                                aside ? beside + c->weight_elems : db};
    *s = run(c, &c->weights, tensor);
    struct sum w = {beside, dw}, b = {beside + c->weight_elems, db};
    if (*s == PL_OK && io->accumulate) {
        pl_cpu_parts(c->backend, c->weight_elems, PL_CPU_GRAIN, add, &w);
        if (db != NULL)
            pl_cpu_parts(c->backend, c->bias_elems, PL_CPU_GRAIN, add, &b);
    }
    return true;
}

bool pl_cpu_conv_dnnl_data(struct pl_cpu_conv_dnnl *c, const struct pl_io *io, pl_status *s) {
    if (c == NULL || c->data.conv == NULL)
        return false;
    const void *tensor[LEGS] = {io->dy, io->p[0], io->dx[0]};
    *s = run(c, &c->data, tensor);
    return true;
}

#else

struct pl_layout pl_cpu_conv_dnnl_layout(struct pl_backend *b, const struct pl_op *op) {
    (void)b, (void)op;
    return (struct pl_layout){0};
}

struct pl_cpu_conv_dnnl *pl_cpu_conv_dnnl_create(const struct pl_plan *p) {
    (void)p;
    return NULL;
}

bool pl_cpu_conv_dnnl_whole(const struct pl_cpu_conv_dnnl *c, const struct pl_op *op) {
    (void)c, (void)op;
    return false;
}

void pl_cpu_conv_dnnl_destroy(struct pl_cpu_conv_dnnl *c) {
    (void)c;
}

bool pl_cpu_conv_dnnl_forward(struct pl_cpu_conv_dnnl *c, const struct pl_io *io, pl_status *s) {
    (void)c, (void)io, (void)s;
    return false;
}

bool pl_cpu_conv_dnnl_weights(struct pl_cpu_conv_dnnl *c, const struct pl_io *io, pl_status *s) {
    (void)c, (void)io, (void)s;
    return false;
}

bool pl_cpu_conv_dnnl_data(struct pl_cpu_conv_dnnl *c, const struct pl_io *io, pl_status *s) {
    (void)c, (void)io, (void)s;
    return false;
}

#endif
