/* The table of layer kinds, looked up by name, and the little that all kinds share. A new kind is a
 * file beside this one, a line in kinds.h and a line in the array below. */
#include "layer/kinds.h"

#include <string.h>

static const struct pl_layer_kind *const kinds[] = {
    &pl_layer_dense,
    &pl_layer_conv,
    &pl_layer_maxpool,
    &pl_layer_avgpool,
    &pl_layer_relu,
    &pl_layer_sigmoid,
    &pl_layer_tanh,
    &pl_layer_gelu,
    &pl_layer_embedding,
    &pl_layer_position_embedding,
    &pl_layer_lstm,
    &pl_layer_gru,
    &pl_layer_attention,
    &pl_layer_dropout,
    &pl_layer_batchnorm,
    &pl_layer_layernorm,
    &pl_layer_lrn,
    &pl_layer_flatten,
    &pl_layer_concat,
    &pl_layer_add,
    &pl_layer_softmax_loss,
    &pl_layer_sigmoid_loss,
    &pl_layer_euclidean_loss,
    NULL,
};

const struct pl_layer_kind *const *pl_layer_list(void) { return kinds; }

const struct pl_layer_kind *pl_layer_find(const char *name)
{
    for (int i = 0; kinds[i]; i++)
        if (strcmp(kinds[i]->name, name) == 0)
            return kinds[i];
    return NULL;
}

const char *pl_layer_nearest(const char *name)
{
    const char *best = NULL;
    int least = 2 + (int)strlen(name) / 4; /* further away is another word, not a slip */
    for (int i = 0; kinds[i]; i++) {
        int d = pl_text_distance(name, kinds[i]->name);
        if (d < least) {
            least = d;
            best = kinds[i]->name;
        }
    }
    return best;
}

double pl_layer_flops(const struct pl_layer *l, int64_t rows)
{
    if (l->kind == &pl_layer_lstm || l->kind == &pl_layer_gru) /* every weight once at every position */
        return 2.0 * (double)rows * (double)l->x[0].dim[1] * (double)(pl_shape_elems(&l->param[0].shape) + pl_shape_elems(&l->param[1].shape));
    if (l->kind == &pl_layer_attention) { /* both products, for every pair of positions */
        struct pl_op op = {0};
        l->kind->op(l, &op);
        double positions = (double)l->x[0].dim[1], pairs = op.causal ? positions * (positions + 1) / 2 : positions * positions;
        return 2.0 * (double)rows * 2 * pairs * (double)l->y.dim[2];
    }
    if (l->kind != &pl_layer_dense && l->kind != &pl_layer_conv)
        return 0;
    /* each output number is a dot product over the weight's fan-in */
    return 2.0 * (double)rows * (double)pl_shape_row_elems(&l->y) * (double)l->param[0].init.fan_in;
}

struct pl_shape_text pl_layer_shape_text(const struct pl_shape *s)
{
    struct pl_shape_text t = {{0}};
    size_t at = 0;
    for (int i = 1; i < s->dims; i++)
        at += (size_t)snprintf(t.s + at, sizeof t.s - at, "%s%lld", i > 1 ? "x" : "",
                               (long long)s->dim[i]);
    return t;
}

struct pl_shape pl_layer_flat(const struct pl_shape *s)
{
    return (struct pl_shape){2, {s->dim[0], pl_shape_row_elems(s)}};
}

struct pl_shape pl_layer_rows(const struct pl_shape *s)
{
    return (struct pl_shape){2, {s->dim[0] * s->dim[1], s->dim[2]}};
}

pl_status pl_layer_need_sequence(const struct pl_layer *l)
{
    if (l->x[0].dims == 3)
        return PL_OK;
    return pl_job_layer_error(l->source, "%s: %s needs an input of positions x features, but gets %s",
                              l->name, l->kind->name, pl_layer_shape_text(&l->x[0]).s);
}

pl_status pl_layer_need_image(const struct pl_layer *l)
{
    if (l->x[0].dims == 4)
        return PL_OK;
    return pl_job_layer_error(l->source,
                              "%s: %s needs an input of channels x height x width, but gets %s",
                              l->name, l->kind->name, pl_layer_shape_text(&l->x[0]).s);
}
