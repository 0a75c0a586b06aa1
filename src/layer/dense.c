/* dense: a fully connected layer, y = x W^T + b with W [units, inputs]. It takes an input of any
 * shape as one row of numbers a sample, so that no flatten layer is needed before it. */
#include "layer/kinds.h"

struct config {
    int64_t units;
    int activation;
    struct pl_weight_config weights;
};

static pl_status shape(struct pl_layer *l, const struct pl_job_input *input)
{
    (void)input;
    const struct config *c = l->config;
    if (c->units < 1)
        return pl_job_layer_error(l->source, "%s: dense needs `units`", l->name);
    int64_t inputs = pl_shape_row_elems(&l->x[0]);
    l->y = (struct pl_shape){2, {l->x[0].dim[0], c->units}};
    struct pl_shape w = {2, {c->units, inputs}};
    return pl_layer_weights(l, &c->weights, &w, inputs);
}

static void op(const struct pl_layer *l, struct pl_op *op)
{
    const struct config *c = l->config;
    op->kind = PL_OP_DENSE;
    op->bias = c->weights.bias;
    op->x[0] = pl_layer_flat(&l->x[0]);
}

static const char *activation(const struct pl_layer *l)
{
    const struct config *c = l->config;
    return pl_layer_activation_name(c->activation);
}

static const struct pl_key keys[] = {
    {.name = "units",
     .type = PL_KEY_INT,
     .offset = offsetof(struct config, units),
     .min = 1,
     .max = 1e9,
     .help = "outputs of a sample"},
    PL_ACTIVATION_KEY(struct config),
    PL_WEIGHT_KEYS(struct config),
    {.name = NULL},
};

const struct pl_layer_kind pl_layer_dense = {
    .name = "dense",
    .help = "fully connected: every output is a weighted sum of all inputs",
    .keys = keys,
    .config_bytes = sizeof(struct config),
    .min_inputs = 1,
    .max_inputs = 1,
    .shape = shape,
    .op = op,
    .activation = activation,
};
