/* embedding: each number of the data names a row of a table, weight [entries, units]: ids of characters, words or categories
 * become positions x units (Bengio et al., A neural probabilistic language model, JMLR 2003). That they are below `entries` is
 * checked where data are read.
 * position_embedding: to each position of a sequence a vector of its own is added, weight [positions, features] (Gehring et al.,
 * Convolutional sequence to sequence learning, ICML 2017): attention by itself knows no order. */
#include "layer/kinds.h"

#define MOST_ENTRIES 16777216 /* data are floats, which tell integers apart up to here */

struct config {
    int64_t entries, units;
    struct pl_weight_config weights;
};

static pl_status shape(struct pl_layer *l, const struct pl_job_input *input)
{
    (void)input;
    const struct config *c = l->config;
    if (c->entries < 1 || c->units < 1)
        return pl_job_layer_error(l->source, "%s: embedding needs `entries` and `units`", l->name);
    if (l->input[0] >= 0)
        return pl_job_layer_error(l->source, "%s: embedding takes the data themselves, not what a layer makes of them\nname them: from: data",
                                  l->name);
    l->y = (struct pl_shape){3, {l->x[0].dim[0], pl_shape_row_elems(&l->x[0]), c->units}};
    struct pl_shape w = {2, {c->entries, c->units}};
    l->params = 1;
    return pl_layer_weight(l, &c->weights, "weight", &w, c->units, &l->param[0]);
}

static void op(const struct pl_layer *l, struct pl_op *op)
{
    op->kind = PL_OP_EMBEDDING;
    op->x[0] = pl_layer_flat(&l->x[0]);
}

static const struct pl_key keys[] = {
    {.name = "entries",
     .type = PL_KEY_INT,
     .offset = offsetof(struct config, entries),
     .min = 1,
     .max = MOST_ENTRIES,
     .help = "rows of the table: data are integers below this"},
    {.name = "units",
     .type = PL_KEY_INT,
     .offset = offsetof(struct config, units),
     .min = 1,
     .max = 1e9,
     .help = "numbers of a row"},
    PL_TABLE_KEYS(struct config),
    {.name = NULL},
};

const struct pl_layer_kind pl_layer_embedding = {
    .name = "embedding",
    .help = "a row of a table for each of the data, which are numbers of rows: positions x units",
    .keys = keys,
    .config_bytes = sizeof(struct config),
    .min_inputs = 1,
    .max_inputs = 1,
    .shape = shape,
    .op = op,
};

/* ---- position_embedding ---------------------------------------------------------------------- */

struct position_config {
    struct pl_weight_config weights;
};

static pl_status position_shape(struct pl_layer *l, const struct pl_job_input *input)
{
    (void)input;
    const struct position_config *c = l->config;
    PL_TRY(pl_layer_need_sequence(l));
    l->y = l->x[0];
    struct pl_shape w = {2, {l->x[0].dim[1], l->x[0].dim[2]}};
    l->params = 1;
    return pl_layer_weight(l, &c->weights, "weight", &w, l->x[0].dim[2], &l->param[0]);
}

static void position_op(const struct pl_layer *l, struct pl_op *op)
{
    (void)l;
    op->kind = PL_OP_POSITION_EMBEDDING;
}

static const struct pl_key position_keys[] = {
    PL_TABLE_KEYS(struct position_config),
    {.name = NULL},
};

const struct pl_layer_kind pl_layer_position_embedding = {
    .name = "position_embedding",
    .help = "adds to each position of a sequence a vector of weights of its own",
    .keys = position_keys,
    .config_bytes = sizeof(struct position_config),
    .min_inputs = 1,
    .max_inputs = 1,
    .shape = position_shape,
    .op = position_op,
};
