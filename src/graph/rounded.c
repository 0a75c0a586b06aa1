/* Weights that the backend multiplies in bf16: a copy of each, one for all graphs that share the parameters. A forward pass
 * makes it anew, unless it is kept: by the optimizer as it writes the weights (pl_graph_stay), or in evaluation from
 * pl_graph_prepare on. Folded weights, of evaluation alone, are not among them. */
#include "graph/graph_private.h"

#define BF16_BYTES 2

static bool wanted(const struct pl_graph *g, int i)
{
    const struct pl_layer *l = &g->layer[i];
    struct pl_op op = {0};
    if (l->kind->view || l->params == 0 || g->node[i].norm || !g->table->wants_bf16)
        return false;
    l->kind->op(l, &op);
    return g->table->wants_bf16(g->backend, op.kind);
}

static struct pl_tensor *tensor_at(struct pl_graph *owner, int64_t offset)
{
    struct pl_tensor *t = owner->tensor;
    while (t->param->offset != offset)
        t++;
    return t;
}

pl_status pl_graph_rounded_create(struct pl_graph *g)
{
    struct pl_graph *owner = pl_graph_owner(g);
    int64_t elems = 0;
    for (int i = 0; i < g->layers; i++)
        elems += wanted(g, i) ? pl_aligned(pl_shape_elems(&g->layer[i].param[0].shape)) : 0;
    if (elems == 0)
        return PL_OK;
    if (g == owner && !(g->bf16 = g->table->alloc(g->backend, (size_t)elems * BF16_BYTES, "weights in bf16")))
        return PL_ERR_MEMORY;
    char *at = g->bf16;
    for (int i = 0; i < g->layers; i++) {
        if (!wanted(g, i))
            continue;
        struct pl_tensor *t = tensor_at(owner, g->layer[i].param[0].offset);
        if (g == owner) {
            t->bf16 = at;
            at += pl_aligned(pl_shape_elems(&t->param->shape)) * BF16_BYTES;
        }
        g->node[i].weight_bf16 = t->bf16;
    }
    return PL_OK;
}

void pl_graph_rounded_destroy(struct pl_graph *g)
{
    if (g->bf16)
        g->table->free(g->backend, g->bf16);
}

bool pl_graph_rounded_made(const struct pl_graph *g) { return pl_graph_owner(g)->bf16_kept || (!g->train && g->prepared); }

void pl_graph_round_all(struct pl_graph *g)
{
    const float *params = pl_graph_params(g);
    for (int i = 0; i < g->layers && !pl_graph_owner(g)->bf16_kept; i++)
        if (g->node[i].weight_bf16)
            g->table->round(params + g->layer[i].param[0].offset, g->node[i].weight_bf16, pl_shape_elems(&g->layer[i].param[0].shape));
}
