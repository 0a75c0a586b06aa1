/* lrn: local response normalisation across channels, y = x / (k + alpha/size * sum x^2)^beta over
 * `size` neighbouring channels (Krizhevsky et al. 2012, in Caffe's form with alpha/size). */
#include "layer/kinds.h"

struct config {
    int64_t size;
    double alpha, beta, k;
};

static pl_status shape(struct pl_layer *l, const struct pl_job_input *input)
{
    (void)input;
    const struct config *c = l->config;
    if (c->size % 2 == 0)
        return pl_job_layer_error(l->source,
                                  "%s: size %lld must be odd: a channel and as many on "
                                  "each side",
                                  l->name, (long long)c->size);
    PL_TRY(pl_layer_need_image(l));
    l->y = l->x[0];
    return PL_OK;
}

static void op(const struct pl_layer *l, struct pl_op *op)
{
    const struct config *c = l->config;
    op->kind = PL_OP_LRN;
    op->size = c->size;
    op->alpha = c->alpha;
    op->beta = c->beta;
    op->k = c->k;
}

static const struct pl_key keys[] = {
    {.name = "size",
     .type = PL_KEY_INT,
     .offset = offsetof(struct config, size),
     .def = "5",
     .min = 1,
     .max = 1e6,
     .help = "channels in a sum, odd"},
    {.name = "alpha",
     .type = PL_KEY_DOUBLE,
     .offset = offsetof(struct config, alpha),
     .def = "1e-4",
     .min = 0,
     .max = 1e6,
     .help = "factor of the sum of squares"},
    {.name = "beta",
     .type = PL_KEY_DOUBLE,
     .offset = offsetof(struct config, beta),
     .def = "0.75",
     .min = 0,
     .max = 1e6,
     .help = "exponent"},
    {.name = "k",
     .type = PL_KEY_DOUBLE,
     .offset = offsetof(struct config, k),
     .def = "1",
     .min = 1e-6,
     .max = 1e6,
     .help = "added to the sum"},
    {.name = NULL},
};

const struct pl_layer_kind pl_layer_lrn = {
    .name = "lrn",
    .help = "local response normalisation across channels",
    .keys = keys,
    .config_bytes = sizeof(struct config),
    .min_inputs = 1,
    .max_inputs = 1,
    .shape = shape,
    .op = op,
};
