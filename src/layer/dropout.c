/* dropout: in training sets each number to 0 with probability `rate` and scales the others by
 * 1 / (1 - rate); in evaluation it changes nothing (Srivastava et al. 2014, the inverted form).
 * What is dropped is a function of seed, step, sample and layer, never of the rank. */
#include "layer/kinds.h"

struct config {
    double rate;
};

static pl_status shape(struct pl_layer *l, const struct pl_job_input *input)
{
    (void)input;
    const struct config *c = l->config;
    if (!(c->rate < 1))
        return pl_job_layer_error(
            l->source, "%s: rate %g would drop everything; it must be below 1", l->name, c->rate);
    l->y = l->x[0];
    return PL_OK;
}

static void op(const struct pl_layer *l, struct pl_op *op)
{
    const struct config *c = l->config;
    op->kind = PL_OP_DROPOUT;
    op->rate = c->rate;
}

static const struct pl_key keys[] = {
    {.name = "rate",
     .type = PL_KEY_DOUBLE,
     .offset = offsetof(struct config, rate),
     .def = "0.5",
     .min = 0,
     .max = 1,
     .help = "probability of a number to be dropped in training"},
    {.name = NULL},
};

const struct pl_layer_kind pl_layer_dropout = {
    .name = "dropout",
    .help = "drops random numbers in training",
    .keys = keys,
    .config_bytes = sizeof(struct config),
    .min_inputs = 1,
    .max_inputs = 1,
    .shape = shape,
    .op = op,
};
