/* batchnorm: each channel to mean 0 and variance 1 over the batch, then scale and shift (Ioffe &
 * Szegedy 2015). Evaluation uses running averages of mean and variance. Those are parameters
 * without a gradient: where others have theirs in the slab, they have the batch's statistic
 * (optim/). */
#include "layer/kinds.h"

struct config {
    double momentum, epsilon;
    bool scale;
    int activation;
};

static pl_status shape(struct pl_layer *l, const struct pl_job_input *input)
{
    (void)input;
    const struct config *c = l->config;
    if (!(c->epsilon > 0) || !(c->momentum < 1))
        return pl_job_layer_error(l->source, "%s: batchnorm needs epsilon > 0 and momentum < 1",
                                  l->name);
    static const char *const names[] = {"scale", "shift", "mean", "variance"};
    static const double start[] = {1, 0, 0, 1};
    for (int i = 0; i < 4; i++)
        l->param[i] = (struct pl_param){
            .name = names[i],
            .shape = {1, {l->x[0].dim[1]}},
            .init = {PL_INIT_CONSTANT, start[i], 0},
            .lr_mult = i < 2 && c->scale ? 1 : 0, /* scale: false keeps 1 and 0 for ever */
            .statistic = i >= 2,
            .momentum = i >= 2 ? c->momentum : 0,
        };
    l->params = 4;
    l->y = l->x[0];
    return PL_OK;
}

static void op(const struct pl_layer *l, struct pl_op *op)
{
    const struct config *c = l->config;
    op->kind = PL_OP_BATCHNORM;
    op->epsilon = c->epsilon;
    op->momentum = c->momentum;
}

static const char *activation(const struct pl_layer *l)
{
    const struct config *c = l->config;
    return pl_layer_activation_name(c->activation);
}

static const struct pl_key keys[] = {
    {.name = "momentum",
     .type = PL_KEY_DOUBLE,
     .offset = offsetof(struct config, momentum),
     .def = "0.9",
     .min = 0,
     .max = 1,
     .help = "of the running averages: running = momentum * running + (1 - momentum) * batch"},
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
     .help = "learn a scale and a shift for each channel (without weight decay)"},
    PL_ACTIVATION_KEY(struct config),
    {.name = NULL},
};

const struct pl_layer_kind pl_layer_batchnorm = {
    .name = "batchnorm",
    .help = "normalises each channel over the batch",
    .keys = keys,
    .config_bytes = sizeof(struct config),
    .min_inputs = 1,
    .max_inputs = 1,
    .shape = shape,
    .op = op,
    .activation = activation,
};
