/* Initial values of parameters, and the weight and bias tensors that dense and conv have in common.
 * Every block of a tensor has its own random stream, named by seed, layer, tensor and block: the
 * values do not depend on ranks, threads, or the other layers of the network.
 * Glorot & Bengio 2010 in Caffe's form (xavier); He et al. 2015 (he). */
#include "layer/kinds.h"

#include <math.h>
#include <string.h>

enum { BLOCK = 4096, STREAM = 0x696e6974 /* apart from the streams of dropout and sampling */ };

struct fill {
    int kind;
    double size; /* half the range of a uniform, deviation of a gaussian, the constant itself */
    uint64_t seed, tensor;
    int64_t elems;       /* of the whole tensor */
    int64_t begin, end;  /* of which these are wanted */
    float *w;            /* [end - begin] */
};

static double size_of(const struct pl_init *init)
{
    double fan_in = init->fan_in > 0 ? (double)init->fan_in : 1;
    switch (init->kind) {
    case PL_INIT_XAVIER:
        return sqrt(3 / fan_in);
    case PL_INIT_HE:
        return sqrt(2 / fan_in);
    default:
        return init->value;
    }
}

static double draw(const struct fill *f, struct pl_rng *r)
{
    switch (f->kind) {
    case PL_INIT_XAVIER:
    case PL_INIT_UNIFORM:
        return f->size * (2 * pl_rng_uniform(r) - 1);
    default:
        return f->size;
    }
}

static void fill_block(const struct fill *f, int64_t block, int64_t n, float *w)
{
    struct pl_rng r = pl_rng_make(f->seed, f->tensor, (uint64_t)block, STREAM);
    bool normal = f->kind == PL_INIT_HE || f->kind == PL_INIT_GAUSSIAN;
    if (normal)
        pl_rng_normals(&r, w, n);
    for (int64_t i = 0; i < n; i++)
        w[i] = (float)(normal ? f->size * w[i] : draw(f, &r));
}

/* begin, end: blocks from that of f->begin on. */
static void fill_blocks(void *arg, int64_t begin, int64_t end)
{
    const struct fill *f = arg;
    for (int64_t b = f->begin / BLOCK + begin; b < f->begin / BLOCK + end; b++) {
        float whole[BLOCK];
        int64_t first = b * BLOCK, last = first + BLOCK < f->elems ? first + BLOCK : f->elems;
        int64_t from = first > f->begin ? first : f->begin, to = last < f->end ? last : f->end;
        bool all = from == first && to == last;
        fill_block(f, b, last - first, all ? f->w + (first - f->begin) : whole);
        if (!all)
            memcpy(f->w + (from - f->begin), whole + (from - first), (size_t)(to - from) * sizeof *whole);
    }
}

void pl_init_fill(const struct pl_param *p, const char *layer, uint64_t seed, float *w)
{
    uint64_t h = pl_hash(PL_HASH_START, layer, strlen(layer) + 1);
    int64_t elems = pl_shape_elems(&p->shape), row = elems / p->shape.dim[0];
    struct fill f = {.kind = p->init.kind,
                     .size = size_of(&p->init),
                     .seed = seed,
                     .tensor = pl_hash(h, p->name, strlen(p->name) + 1),
                     .elems = pl_param_rows(p) * row,
                     .begin = p->first * row,
                     .end = p->first * row + elems,
                     .w = w};
    pl_parallel_for((f.end + BLOCK - 1) / BLOCK - f.begin / BLOCK, 4, fill_blocks, &f);
}

static pl_status weight_init(const struct pl_layer *l, const struct pl_weight_config *c,
                             int64_t fan_in, struct pl_init *out)
{
    *out = (struct pl_init){c->init, c->init_value, fan_in};
    bool derived = c->init == PL_INIT_XAVIER || c->init == PL_INIT_HE;
    if (derived && c->init_value != 0)
        return pl_job_layer_error(l->source, "%s: init_value means nothing to init: %s", l->name,
                                  c->init == PL_INIT_HE ? "he" : "xavier");
    if (c->init_value < 0 && c->init != PL_INIT_CONSTANT)
        return pl_job_layer_error(l->source, "%s: init_value %g is negative", l->name,
                                  c->init_value);
    if (c->init == PL_INIT_GAUSSIAN && c->init_value == 0)
        out->value = 0.01;
    if (c->init == PL_INIT_UNIFORM && c->init_value == 0)
        out->value = 0.05;
    return PL_OK;
}

pl_status pl_layer_weight(const struct pl_layer *l, const struct pl_weight_config *c, const char *name, const struct pl_shape *w,
                          int64_t fan_in, struct pl_param *p)
{
    struct pl_init init;
    PL_TRY(weight_init(l, c, fan_in, &init));
    *p = (struct pl_param){.name = name, .shape = *w, .init = init, .lr_mult = c->lr_mult, .decay_mult = c->decay_mult};
    return PL_OK;
}

void pl_layer_bias(const struct pl_weight_config *c, const char *name, int64_t elems, struct pl_param *p)
{
    *p = (struct pl_param){.name = name,
                           .shape = {1, {elems}},
                           .init = {PL_INIT_CONSTANT, c->bias_init, 0},
                           .lr_mult = c->bias_lr_mult,
                           .decay_mult = c->bias_decay_mult};
}

pl_status pl_layer_weights(struct pl_layer *l, const struct pl_weight_config *c,
                           const struct pl_shape *w, int64_t fan_in)
{
    PL_TRY(pl_layer_weight(l, c, "weight", w, fan_in, &l->param[0]));
    l->params = 1;
    if (c->bias)
        pl_layer_bias(c, "bias", w->dim[0], &l->param[l->params++]);
    return PL_OK;
}
