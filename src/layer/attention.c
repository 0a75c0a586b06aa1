/* attention: scaled dot-product attention in several heads, of a sequence to itself (Vaswani et al., Attention is all you need,
 * 2017, section 3.2). It has no weights: a dense layer before it, at every position, makes queries, keys and values, in this order,
 * and one behind it mixes the heads. Together the three are PyTorch's MultiheadAttention, with its in_proj and out_proj. */
#include "layer/kinds.h"

struct config {
    int64_t heads;
    bool causal;
};

static pl_status shape(struct pl_layer *l, const struct pl_job_input *input)
{
    (void)input;
    const struct config *c = l->config;
    if (c->heads < 1)
        return pl_job_layer_error(l->source, "%s: attention needs `heads`", l->name);
    PL_TRY(pl_layer_need_sequence(l));
    int64_t in = l->x[0].dim[2];
    if (in % (3 * c->heads) != 0)
        return pl_job_layer_error(l->source,
                                  "%s: attention takes queries, keys and values of %lld heads each: %lld features are not 3 x %lld x a whole number\n"
                                  "let a dense layer with `positions: true` before it give a multiple of %lld",
                                  l->name, (long long)c->heads, (long long)in, (long long)c->heads, (long long)(3 * c->heads));
    l->y = l->x[0];
    l->y.dim[2] = in / 3;
    return PL_OK;
}

static void op(const struct pl_layer *l, struct pl_op *op)
{
    const struct config *c = l->config;
    op->kind = PL_OP_ATTENTION;
    op->heads = c->heads;
    op->causal = c->causal;
}

static const struct pl_key keys[] = {
    {.name = "heads",
     .type = PL_KEY_INT,
     .offset = offsetof(struct config, heads),
     .min = 1,
     .max = 1e6,
     .help = "each with its share of the features of queries, keys and values"},
    {.name = "causal",
     .type = PL_KEY_BOOL,
     .offset = offsetof(struct config, causal),
     .def = "false",
     .help = "a position sees itself and those before it, none behind it"},
    {.name = NULL},
};

const struct pl_layer_kind pl_layer_attention = {
    .name = "attention",
    .help = "each position of a sequence takes from all others; of queries, keys and values side by side",
    .keys = keys,
    .config_bytes = sizeof(struct config),
    .min_inputs = 1,
    .max_inputs = 1,
    .shape = shape,
    .op = op,
};
