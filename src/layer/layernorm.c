/* layernorm: the features of a sample, or of each position of a sequence, to mean 0 and variance 1, then scale and shift (Ba, Kiros
 * and Hinton, Layer normalization, 2016). Training and evaluation are the same, and no sample sees another. */
#include "layer/kinds.h"

struct config {
    double epsilon;
    bool scale;
    int activation;
};

static pl_status shape(struct pl_layer *l, const struct pl_job_input *input)
{
    (void)input;
    const struct config *c = l->config;
    if (!(c->epsilon > 0))
        return pl_job_layer_error(l->source, "%s: layernorm needs epsilon > 0", l->name);
    if (l->x[0].dims > 3)
        return pl_job_layer_error(l->source, "%s: layernorm needs an input of features, or of positions x features, but gets %s",
                                  l->name, pl_layer_shape_text(&l->x[0]).s);
    l->y = l->x[0];
    static const char *const names[] = {"scale", "shift"};
    for (int i = 0; c->scale && i < 2; i++)
        l->param[l->params++] = (struct pl_param){.name = names[i],
                                                  .shape = {1, {l->x[0].dim[l->x[0].dims - 1]}},
                                                  .init = {PL_INIT_CONSTANT, i == 0 ? 1 : 0, 0},
                                                  .lr_mult = 1};
    return PL_OK;
}

static void op(const struct pl_layer *l, struct pl_op *op)
{
    const struct config *c = l->config;
    op->kind = PL_OP_LAYERNORM;
    op->epsilon = c->epsilon;
    if (l->x[0].dims < 3)
        return;
    op->positions = l->x[0].dim[1];
    op->x[0] = op->y = pl_layer_rows(&l->x[0]);
}

static const char *activation(const struct pl_layer *l)
{
    const struct config *c = l->config;
    return pl_layer_activation_name(c->activation);
}

static const struct pl_key keys[] = {
    {.name = "epsilon",
     .type = PL_KEY_DOUBLE,
     .offset = offsetof(struct config, epsilon),
     .def = "1e-5",
     .min = 0,
     .max = 1,
     .help = "added to the variance before its root is taken"},
    {.name = "scale",
     .type = PL_KEY_BOOL,
     .offset = offsetof(struct config, scale),
     .def = "true",
     .help = "learn a scale and a shift for each feature (without weight decay)"},
    PL_ACTIVATION_KEY(struct config),
    {.name = NULL},
};

const struct pl_layer_kind pl_layer_layernorm = {
    .name = "layernorm",
    .help = "normalises the features of each sample, or of each position of a sequence",
    .keys = keys,
    .config_bytes = sizeof(struct config),
    .min_inputs = 1,
    .max_inputs = 1,
    .shape = shape,
    .op = op,
    .activation = activation,
};
