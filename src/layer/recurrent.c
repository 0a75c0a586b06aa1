/* lstm, gru: a recurrent cell over the positions of a sequence (Hochreiter and Schmidhuber 1997; Cho et al. 2014), from the first
 * to the last. Names aside, tensors and the order of gates are those of PyTorch's LSTM and GRU of one layer: weight [G units,
 * features], recurrent [G units, units], bias and recurrent_bias [G units]. */
#include "layer/kinds.h"

struct config {
    int64_t units;
    bool last;
    struct pl_weight_config weights;
};

static pl_status shape(struct pl_layer *l, const struct pl_job_input *input)
{
    (void)input;
    const struct config *c = l->config;
    if (c->units < 1)
        return pl_job_layer_error(l->source, "%s: %s needs `units`", l->name, l->kind->name);
    PL_TRY(pl_layer_need_sequence(l));
    int64_t features = l->x[0].dim[2], gates = (l->kind == &pl_layer_lstm ? 4 : 3) * c->units;
    l->y = c->last ? (struct pl_shape){2, {l->x[0].dim[0], c->units}} : (struct pl_shape){3, {l->x[0].dim[0], l->x[0].dim[1], c->units}};
    struct pl_shape w = {2, {gates, features}}, u = {2, {gates, c->units}};
    PL_TRY(pl_layer_weight(l, &c->weights, "weight", &w, features, &l->param[0]));
    PL_TRY(pl_layer_weight(l, &c->weights, "recurrent", &u, c->units, &l->param[1]));
    l->params = 2;
    if (!c->weights.bias)
        return PL_OK;
    pl_layer_bias(&c->weights, "bias", gates, &l->param[l->params++]);
    pl_layer_bias(&c->weights, "recurrent_bias", gates, &l->param[l->params++]);
    return PL_OK;
}

static void op(const struct pl_layer *l, struct pl_op *op)
{
    const struct config *c = l->config;
    op->kind = l->kind == &pl_layer_lstm ? PL_OP_LSTM : PL_OP_GRU;
    op->bias = c->weights.bias;
    op->last = c->last;
}

static const struct pl_key keys[] = {
    {.name = "units",
     .type = PL_KEY_INT,
     .offset = offsetof(struct config, units),
     .min = 1,
     .max = 1e8,
     .help = "outputs at each position"},
    {.name = "last",
     .type = PL_KEY_BOOL,
     .offset = offsetof(struct config, last),
     .def = "false",
     .help = "hand on the output at the last position only"},
    PL_WEIGHT_KEYS(struct config),
    {.name = NULL},
};

const struct pl_layer_kind pl_layer_lstm = {
    .name = "lstm",
    .help = "long short-term memory over the positions of a sequence",
    .keys = keys,
    .config_bytes = sizeof(struct config),
    .min_inputs = 1,
    .max_inputs = 1,
    .shape = shape,
    .op = op,
};

const struct pl_layer_kind pl_layer_gru = {
    .name = "gru",
    .help = "gated recurrent units over the positions of a sequence",
    .keys = keys,
    .config_bytes = sizeof(struct config),
    .min_inputs = 1,
    .max_inputs = 1,
    .shape = shape,
    .op = op,
};
