/* relu, sigmoid, tanh, gelu: element by element, as layers of their own or by another layer's
 * `activation` key, which graph/ turns into a layer NAME.relu. They have no keys, so that this is
 * the same. */
#include "layer/kinds.h"

/* In the order of PL_ACTIVATION_CHOICES. */
const char *pl_layer_activation_name(int choice)
{
    static const char *const names[] = {NULL, "relu", "sigmoid", "tanh", "gelu"};
    return names[choice];
}

static pl_status shape(struct pl_layer *l, const struct pl_job_input *input)
{
    (void)input;
    l->y = l->x[0];
    return PL_OK;
}

static void op(const struct pl_layer *l, struct pl_op *op)
{
    op->kind = l->kind == &pl_layer_relu      ? PL_OP_RELU
               : l->kind == &pl_layer_sigmoid ? PL_OP_SIGMOID
               : l->kind == &pl_layer_tanh    ? PL_OP_TANH
                                              : PL_OP_GELU;
}

static const struct pl_key no_keys[] = {{.name = NULL}};

const struct pl_layer_kind pl_layer_relu = {
    .name = "relu",
    .help = "max(x, 0)",
    .keys = no_keys,
    .min_inputs = 1,
    .max_inputs = 1,
    .shape = shape,
    .op = op,
};

const struct pl_layer_kind pl_layer_sigmoid = {
    .name = "sigmoid",
    .help = "1 / (1 + exp(-x))",
    .keys = no_keys,
    .min_inputs = 1,
    .max_inputs = 1,
    .shape = shape,
    .op = op,
};

const struct pl_layer_kind pl_layer_tanh = {
    .name = "tanh",
    .help = "hyperbolic tangent",
    .keys = no_keys,
    .min_inputs = 1,
    .max_inputs = 1,
    .shape = shape,
    .op = op,
};

const struct pl_layer_kind pl_layer_gelu = {
    .name = "gelu",
    .help = "x times the share of a normal distribution below x",
    .keys = no_keys,
    .min_inputs = 1,
    .max_inputs = 1,
    .shape = shape,
    .op = op,
};
