/* Shapes of all layers from the input's on, and the layout of the slabs: parameter tensors in the
 * order in which layers run, each at a multiple of 16 elements (64 bytes), so that backward
 * finishes the gradient slab from its far end. The gaps between tensors are 0 for ever. */
#include "graph/graph_private.h"

#include <string.h>

#define MAX_SAMPLE_ELEMS 68719476736.0     /* 2^36: products of shapes stay within int64_t */
#define MAX_TENSOR_ELEMS 281474976710656.0 /* 2^48 */

static double elems_from(const struct pl_shape *s, int first)
{
    double n = 1;
    for (int i = first; i < s->dims; i++)
        n *= (double)s->dim[i];
    return n;
}

static pl_status check_size(const struct pl_graph *g, const struct pl_layer *l)
{
    double sample = elems_from(&l->y, 1), weight = 0;
    for (int i = 0; i < l->params; i++)
        weight += elems_from(&l->param[i].shape, 0);
    if (sample <= MAX_SAMPLE_ELEMS && sample * (double)g->batch <= MAX_TENSOR_ELEMS &&
        weight <= MAX_TENSOR_ELEMS)
        return PL_OK;
    return pl_job_layer_error(l->source, "%s: too large: %.3g numbers a sample, %.3g weights",
                              l->name, sample, weight);
}

static pl_status input_shape(struct pl_graph *g, const struct pl_job_input *input)
{
    if (input->dims < 1 || input->dims >= PL_MAX_DIMS)
        return pl_error(PL_ERR_USAGE, "graph", "input.data: wants 1 to %d dimensions, not %d",
                        PL_MAX_DIMS - 1, input->dims);
    g->data.dims = input->dims + 1;
    g->data.dim[0] = g->batch;
    for (int i = 0; i < input->dims; i++) {
        if (input->dim[i] < 1)
            return pl_error(PL_ERR_USAGE, "graph", "input.data: dimension %d is %lld", i + 1,
                            (long long)input->dim[i]);
        g->data.dim[i + 1] = input->dim[i];
    }
    if (elems_from(&g->data, 1) > MAX_SAMPLE_ELEMS || elems_from(&g->data, 0) > MAX_TENSOR_ELEMS)
        return pl_error(PL_ERR_USAGE, "graph", "input.data: too large: %.3g numbers a sample",
                        elems_from(&g->data, 1));
    return PL_OK;
}

/* A tensor of a graph whose slab is another's has the place that it has there. */
static pl_status shared_place(const struct pl_graph *share, const char *layer, struct pl_param *p)
{
    for (int i = 0; i < share->tensors; i++) {
        const struct pl_tensor *t = &share->tensor[i];
        bool same = strcmp(t->layer, layer) == 0 && strcmp(t->name, p->name) == 0 &&
                    t->param->shape.dims == p->shape.dims &&
                    memcmp(t->param->shape.dim, p->shape.dim, (size_t)p->shape.dims * sizeof p->shape.dim[0]) == 0;
        if (same) {
            p->offset = t->param->offset;
            return PL_OK;
        }
    }
    return pl_error(PL_ERR_USAGE, "graph", "parameters shared between two different models: one has no such %s/%s", layer, p->name);
}

int64_t pl_graph_layer_weights(const struct pl_layer *l)
{
    int64_t n = 0;
    for (int k = 0; k < l->params; k++)
        if (!l->param[k].statistic && l->param[k].lr_mult != 0)
            n += pl_shape_elems(&l->param[k].shape);
    return n;
}

pl_status pl_graph_slabs(struct pl_graph *g)
{
    for (int i = 0; i < g->layers; i++) {
        g->tensors += g->layer[i].params;
        g->weights += pl_graph_layer_weights(&g->layer[i]);
    }
    if (g->train && g->tensors == 0)
        return pl_error(PL_ERR_USAGE, "graph", "the network has no parameters to train");
    g->tensor = pl_alloc((size_t)(g->tensors + 1) * sizeof *g->tensor, "tensors");
    if (!g->tensor)
        return PL_ERR_MEMORY;
    int n = 0;
    for (int i = 0; i < g->layers; i++)
        for (int k = 0; k < g->layer[i].params; k++) {
            struct pl_param *p = &g->layer[i].param[k];
            int64_t elems = pl_shape_elems(&p->shape);
            if (g->share)
                PL_TRY(shared_place(g->share, g->layer[i].name, p));
            else
                p->offset = g->elems;
            g->elems += g->share ? 0 : pl_aligned(elems);
            g->tensor[n++] = (struct pl_tensor){.layer = g->layer[i].name, .name = p->name, .param = p};
        }
    if (g->share)
        g->elems = g->share->elems;
    return PL_OK;
}

pl_status pl_graph_shapes(struct pl_graph *g, const struct pl_job_input *input)
{
    PL_TRY(input_shape(g, input));
    for (int i = 0; i < g->layers; i++) {
        struct pl_layer *l = &g->layer[i];
        for (int k = 0; k < l->inputs; k++)
            l->x[k] = l->input[k] == PL_DATA ? g->data : g->layer[l->input[k]].y;
        PL_TRY(l->kind->shape(l, input));
        PL_TRY(check_size(g, l));
    }
    return PL_OK;
}
