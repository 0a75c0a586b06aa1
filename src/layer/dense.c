/* dense: a fully connected layer, y = x W^T + b with W [units, inputs]. It takes an input of any
 * shape as one row of numbers a sample, so that no flatten layer is needed before it; or each
 * position of a sequence as such a row. */
#include "layer/kinds.h"

struct config {
    int64_t units;
    bool positions;
    int activation;
    struct pl_weight_config weights;
};

static pl_status shape(struct pl_layer *l, const struct pl_job_input *input)
{
    (void)input;
    const struct config *c = l->config;
    if (c->units < 1)
        return pl_job_layer_error(l->source, "%s: dense needs `units`", l->name);
    if (c->positions)
        PL_TRY(pl_layer_need_sequence(l));
    int64_t inputs = c->positions ? l->x[0].dim[2] : pl_shape_row_elems(&l->x[0]);
    l->y = (struct pl_shape){2, {l->x[0].dim[0], c->units}};
    if (c->positions)
        l->y = (struct pl_shape){3, {l->x[0].dim[0], l->x[0].dim[1], c->units}};
    struct pl_shape w = {2, {c->units, inputs}};
    return pl_layer_weights(l, &c->weights, &w, inputs);
}

static void op(const struct pl_layer *l, struct pl_op *op)
{
    const struct config *c = l->config;
    op->kind = PL_OP_DENSE;
    op->bias = c->weights.bias;
    op->x[0] = pl_layer_flat(&l->x[0]);
    if (!c->positions)
        return;
    op->positions = l->x[0].dim[1];
    op->x[0] = pl_layer_rows(&l->x[0]);
    op->y = pl_layer_rows(&l->y);
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
    {.name = "positions",
     .type = PL_KEY_BOOL,
     .offset = offsetof(struct config, positions),
     .def = "false",
     .help = "of positions x features: each position by itself, by the same weights"},
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
