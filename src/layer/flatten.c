/* flatten: the same numbers as one row a sample. A view: it has no operation and no memory. */
#include "layer/kinds.h"

static pl_status shape(struct pl_layer *l, const struct pl_job_input *input)
{
    (void)input;
    l->y = pl_layer_flat(&l->x[0]);
    return PL_OK;
}

static const struct pl_key no_keys[] = {{.name = NULL}};

const struct pl_layer_kind pl_layer_flatten = {
    .name = "flatten",
    .help = "channels x height x width to one row of numbers",
    .keys = no_keys,
    .min_inputs = 1,
    .max_inputs = 1,
    .view = true,
    .shape = shape,
};
