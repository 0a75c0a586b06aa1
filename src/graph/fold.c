/* Evaluation without normalisations: with running statistics batchnorm is a factor and a summand for
 * each channel. They go into the weights and the bias of the convolution or dense layer before it
 * where nobody else takes its output (Jacob et al., CVPR 2018, section 3.2). The folded weights are
 * the graph's own; the parameters stay as they are. */
#include "graph/graph_private.h"

#include <math.h>
#include <string.h>

enum { WEIGHT, BIAS };                 /* parameters of the layer before */
enum { SCALE, SHIFT, MEAN, VARIANCE }; /* those of batchnorm */

/* Memory of the host for one layer. channel: of SCALE, SHIFT, ... */
struct fold {
    float *weight, *bias, *channel[4];
    int64_t channels, row; /* weight [channels, row] */
};

static struct fold fold_of(const struct pl_graph *g, int i)
{
    struct fold f = {.channels = g->layer[i].param[WEIGHT].shape.dim[0],
                     .row = pl_shape_row_elems(&g->layer[i].param[WEIGHT].shape),
                     .weight = g->fold_host};
    f.bias = f.weight + f.channels * f.row;
    for (int k = 0; k < 4; k++)
        f.channel[k] = f.bias + (k + 1) * f.channels;
    return f;
}

/* ---- set-up ---------------------------------------------------------------------------------- */

static bool can_fold(const struct pl_graph *g, int i, const int *users)
{
    int from = g->layer[i].input[0];
    if (!pl_is_op(&g->layer[i], PL_OP_BATCHNORM) || from == PL_DATA || users[from] != 1)
        return false;
    struct pl_op op = {0};
    if (!g->layer[from].kind->op)
        return false;
    g->layer[from].kind->op(&g->layer[from], &op);
    return (op.kind == PL_OP_CONV || op.kind == PL_OP_DENSE) && pl_op_positions(&op) == 1;
}

void pl_graph_find_folds(struct pl_graph *g, const int *users)
{
    for (int i = 0; i < g->layers; i++) {
        int from = g->layer[i].input[0];
        if (!can_fold(g, i, users))
            continue;
        g->node[i].fused = true;
        g->node[from].norm = &g->layer[i];
        g->node[from].folded = g->folded_elems;
        struct fold f = fold_of(g, from);
        int64_t elems = f.channels * (f.row + 5);
        g->folded_elems += pl_aligned(f.channels * f.row) + pl_aligned(f.channels);
        g->fold_host_elems = elems > g->fold_host_elems ? elems : g->fold_host_elems;
    }
}

void pl_graph_fold_op(const struct pl_node *n, struct pl_op *op)
{
    if (!n->norm)
        return;
    op->bias = true;
    op->params = 2;
    op->p[BIAS] = n->norm->param[SHIFT].shape;
}

void pl_graph_fold_io(const struct pl_graph *g, int i, struct pl_io *io)
{
    const struct pl_node *n = &g->node[i];
    if (!n->norm)
        return;
    io->p[WEIGHT] = g->folded + n->folded;
    io->p[BIAS] = io->p[WEIGHT] + pl_aligned(pl_shape_elems(&g->layer[i].param[WEIGHT].shape));
}

/* ---- from the parameters of now -------------------------------------------------------------- */

static pl_status fetch(struct pl_graph *g, const struct pl_param *p, float *host)
{
    size_t bytes = (size_t)pl_shape_elems(&p->shape) * sizeof(float);
    return g->table->download(g->backend, host, pl_graph_params_there(g) + p->offset, bytes);
}

static pl_status fetch_all(struct pl_graph *g, int i, const struct fold *f)
{
    const struct pl_layer *l = &g->layer[i];
    PL_TRY(fetch(g, &l->param[WEIGHT], f->weight));
    if (l->params > BIAS)
        PL_TRY(fetch(g, &l->param[BIAS], f->bias));
    else
        memset(f->bias, 0, (size_t)f->channels * sizeof *f->bias);
    for (int k = 0; k < 4; k++)
        PL_TRY(fetch(g, &g->node[i].norm->param[k], f->channel[k]));
    return PL_OK;
}

static void fold_channel(const struct fold *f, int64_t c, double epsilon)
{
    double factor = (double)f->channel[SCALE][c] / sqrt((double)f->channel[VARIANCE][c] + epsilon);
    for (int64_t k = c * f->row; k < (c + 1) * f->row; k++)
        f->weight[k] = (float)((double)f->weight[k] * factor);
    f->bias[c] = (float)((double)f->channel[SHIFT][c] +
                         ((double)f->bias[c] - (double)f->channel[MEAN][c]) * factor);
}

static pl_status fold_layer(struct pl_graph *g, int i)
{
    struct fold f = fold_of(g, i);
    struct pl_io to = {0};
    struct pl_op norm = {0};
    g->node[i].norm->kind->op(g->node[i].norm, &norm);
    PL_TRY(fetch_all(g, i, &f));
    for (int64_t c = 0; c < f.channels; c++)
        fold_channel(&f, c, norm.epsilon);
    pl_graph_fold_io(g, i, &to);
    size_t weight_bytes = (size_t)(f.channels * f.row) * sizeof(float);
    PL_TRY(g->table->upload(g->backend, (float *)(uintptr_t)to.p[WEIGHT], f.weight, weight_bytes));
    return g->table->upload(g->backend, (float *)(uintptr_t)to.p[BIAS], f.bias,
                            (size_t)f.channels * sizeof(float));
}

pl_status pl_graph_prepare(struct pl_graph *g)
{
    PL_TRY(pl_graph_refresh_params(g));
    for (int i = 0; i < g->layers; i++)
        if (g->node[i].norm)
            PL_TRY(fold_layer(g, i));
    pl_graph_round_all(g);
    g->prepared = true;
    return PL_OK;
}
