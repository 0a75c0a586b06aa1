/* softmax_loss, sigmoid_loss, euclidean_loss: the end of a network. They take the label, add the
 * loss and the hits to the sums, and give what predict writes: probabilities, or the input itself.
 * Of several, the last in the file is the network's end, the others train what they look at.
 * The checks here are of shapes; whether a class is in range is checked where data are read. */
#include "layer/kinds.h"

struct config {
    int64_t label_floats, positions; /* of the input, by shape(); positions: rows of a sample */
    double weight, smoothing;
};

static pl_status softmax_shape(struct pl_layer *l, const struct pl_job_input *input)
{
    struct config *c = l->config;
    if (input->label_floats != 0)
        return pl_job_layer_error(l->source,
                                  "%s: softmax_loss needs a class as label (label: int), but the "
                                  "input's label is %lld floats",
                                  l->name, (long long)input->label_floats);
    int64_t labels = pl_input_labels(input);
    const struct pl_shape *x = &l->x[0];
    bool sequence = x->dims == 3 && x->dim[1] == labels && x->dim[2] >= 2;
    c->label_floats = 0;
    c->positions = labels;
    l->y = sequence ? *x : pl_layer_flat(x);
    if (sequence)
        return PL_OK;
    if (labels > 1 || (x->dims == 3 && x->dim[2] > 1))
        return pl_job_layer_error(l->source,
                                  "%s: softmax_loss of input %s, but the input's label is %lld class%s\n"
                                  "of positions x classes it needs label: [int, POSITIONS]",
                                  l->name, pl_layer_shape_text(x).s, (long long)labels, labels == 1 ? "" : "es");
    if (l->y.dim[1] != x->dim[1] || l->y.dim[1] < 2)
        return pl_job_layer_error(l->source,
                                  "%s: softmax_loss needs one number for each of two or more "
                                  "classes, but gets %s",
                                  l->name, pl_layer_shape_text(x).s);
    return PL_OK;
}

static pl_status float_shape(struct pl_layer *l, const struct pl_job_input *input)
{
    struct config *c = l->config;
    l->y = pl_layer_flat(&l->x[0]);
    c->label_floats = input->label_floats;
    bool class_of_two = l->kind == &pl_layer_sigmoid_loss && c->label_floats == 0 && pl_input_labels(input) == 1;
    c->positions = 1;
    if (class_of_two ? l->y.dim[1] == 1 : l->y.dim[1] == c->label_floats)
        return PL_OK;
    if (c->label_floats == 0)
        return pl_job_layer_error(
            l->source,
            "%s: %s of input %s needs %lld floats as label, but the input's label is int", l->name,
            l->kind->name, pl_layer_shape_text(&l->x[0]).s, (long long)l->y.dim[1]);
    return pl_job_layer_error(
        l->source, "%s: %s of input %s needs %lld floats as label, but the input's label has %lld",
        l->name, l->kind->name, pl_layer_shape_text(&l->x[0]).s, (long long)l->y.dim[1],
        (long long)c->label_floats);
}

static void op(const struct pl_layer *l, struct pl_op *op)
{
    const struct config *c = l->config;
    op->kind = l->kind == &pl_layer_softmax_loss   ? PL_OP_SOFTMAX_LOSS
               : l->kind == &pl_layer_sigmoid_loss ? PL_OP_SIGMOID_LOSS
                                                   : PL_OP_EUCLIDEAN_LOSS;
    op->label_floats = c->label_floats;
    op->weight = c->weight;
    op->smoothing = c->smoothing;
    op->x[0] = pl_layer_flat(&l->x[0]);
    if (l->y.dims != 3)
        return;
    /* A row for each position, which count for their sample with their mean. */
    op->positions = c->positions;
    op->weight = c->weight / (double)c->positions;
    op->x[0] = op->y = pl_layer_rows(&l->x[0]);
}

#define WEIGHT_KEY                                                                                 \
    {                                                                                              \
        .name = "weight", .type = PL_KEY_DOUBLE, .offset = offsetof(struct config, weight),        \
        .def = "1", .min = 0, .max = 1e6,                                                          \
        .help = "times this loss in the sum that is trained on; of several losses the last in the " \
                "file is the one that is reported, the others are computed in training only"       \
    }

static const struct pl_key weight_key[] = {WEIGHT_KEY, {.name = NULL}};

static const struct pl_key softmax_keys[] = {
    WEIGHT_KEY,
    {.name = "smoothing",
     .type = PL_KEY_DOUBLE,
     .offset = offsetof(struct config, smoothing),
     .def = "0",
     .min = 0,
     .max = 0.99,
     .help = "part of the target that is shared by all classes (label smoothing, Szegedy et al. 2016), "
             "in evaluation too"},
    {.name = NULL},
};

const struct pl_layer_kind pl_layer_softmax_loss = {
    .name = "softmax_loss",
    .help = "softmax and cross entropy with a class; the loss of classification",
    .keys = softmax_keys,
    .config_bytes = sizeof(struct config),
    .min_inputs = 1,
    .max_inputs = 1,
    .loss = true,
    .shape = softmax_shape,
    .op = op,
};

const struct pl_layer_kind pl_layer_sigmoid_loss = {
    .name = "sigmoid_loss",
    .help = "sigmoid and cross entropy with numbers in [0, 1], or with a class of two",
    .keys = weight_key,
    .config_bytes = sizeof(struct config),
    .min_inputs = 1,
    .max_inputs = 1,
    .loss = true,
    .shape = float_shape,
    .op = op,
};

const struct pl_layer_kind pl_layer_euclidean_loss = {
    .name = "euclidean_loss",
    .help = "half the sum of squared differences to the label; the loss of regression",
    .keys = weight_key,
    .config_bytes = sizeof(struct config),
    .min_inputs = 1,
    .max_inputs = 1,
    .loss = true,
    .shape = float_shape,
    .op = op,
};
