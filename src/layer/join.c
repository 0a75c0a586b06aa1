/* concat, add: several layers into one. concat puts channels after each other (inception,
 * DenseNet); add sums inputs of one shape (residual networks). */
#include "layer/kinds.h"

struct add_config {
    int activation;
};

/* Do a and b agree in all dimensions from `first`? */
static bool agree(const struct pl_shape *a, const struct pl_shape *b, int first)
{
    if (a->dims != b->dims)
        return false;
    for (int i = first; i < a->dims; i++)
        if (a->dim[i] != b->dim[i])
            return false;
    return true;
}

static pl_status mismatch(const struct pl_layer *l, int i, const char *what)
{
    return pl_job_layer_error(l->source, "%s: %s: input 1 is %s and input %d is %s", l->name, what,
                              pl_layer_shape_text(&l->x[0]).s, i + 1,
                              pl_layer_shape_text(&l->x[i]).s);
}

static pl_status concat_shape(struct pl_layer *l, const struct pl_job_input *input)
{
    (void)input;
    l->y = l->x[0];
    for (int i = 1; i < l->inputs; i++) {
        if (!agree(&l->x[0], &l->x[i], 2))
            return mismatch(l, i, "concat needs inputs that differ in channels only");
        l->y.dim[1] += l->x[i].dim[1];
    }
    return PL_OK;
}

static void concat_op(const struct pl_layer *l, struct pl_op *op)
{
    (void)l;
    op->kind = PL_OP_CONCAT;
}

static pl_status add_shape(struct pl_layer *l, const struct pl_job_input *input)
{
    (void)input;
    l->y = l->x[0];
    for (int i = 1; i < l->inputs; i++)
        if (!agree(&l->x[0], &l->x[i], 1))
            return mismatch(l, i, "add needs inputs of one shape");
    return PL_OK;
}

static void add_op(const struct pl_layer *l, struct pl_op *op)
{
    (void)l;
    op->kind = PL_OP_ADD;
}

static const char *add_activation(const struct pl_layer *l)
{
    const struct add_config *c = l->config;
    return pl_layer_activation_name(c->activation);
}

static const struct pl_key no_keys[] = {{.name = NULL}};
static const struct pl_key add_keys[] = {
    PL_ACTIVATION_KEY(struct add_config),
    {.name = NULL},
};

const struct pl_layer_kind pl_layer_concat = {
    .name = "concat",
    .help = "puts the channels of its inputs after each other",
    .keys = no_keys,
    .min_inputs = 2,
    .max_inputs = PL_MAX_INPUTS,
    .shape = concat_shape,
    .op = concat_op,
};

const struct pl_layer_kind pl_layer_add = {
    .name = "add",
    .help = "sums its inputs",
    .keys = add_keys,
    .config_bytes = sizeof(struct add_config),
    .min_inputs = 2,
    .max_inputs = PL_MAX_INPUTS,
    .shape = add_shape,
    .op = add_op,
    .activation = add_activation,
};
