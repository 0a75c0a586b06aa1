/* attention: scaled dot-product attention in several heads (Vaswani et al., 2017), of batches of products by cuBLAS, a product a head
 * of a sample, and kernels between them: Q K^T, its softmax over the keys, that times V; backward five products. Causal ones are computed
 * whole, and half of them is thrown away. The weights, [N, heads, T, T], stay for backward, which takes the heads apart
 * again; where no backward follows nothing stays. All rows up to the capacity are computed: padding rows are finite and their dy
 * is 0. Float, also where activations are bf16. */
#include "backend/cuda/plans.h"

#include <math.h>

enum { Q, K, V, THIRDS };

struct state {
    int64_t n, t, heads, d; /* samples, positions, heads, features of one */
    bool causal;
    struct pl_cuda_matmul *across;  /* [T, D] [T, D]^T: Q K^T, dy V^T */
    struct pl_cuda_matmul *of_rows; /* [T, T] [T, D]: weights V, slopes K */
    struct pl_cuda_matmul *of_columns; /* [T, T]^T [T, D]: slopes^T Q, weights^T dy */
};

/* Device memory. What need not be kept is in the backend's copies, as products use its scratch. */
struct memory {
    float *part[THIRDS];           /* [N, heads, T, D] each */
    float *dy;                     /* the same, backward */
    float *weights;                /* [N, heads, T, T]; kept where backward follows */
    float *slopes;                 /* the same, backward: by weights, then by scores */
};

static bool keeps(const struct pl_op *op) { return op->train && op->need_dx[0]; }
static int64_t part_elems(const struct state *s) { return s->n * s->heads * s->t * s->d; }
static int64_t weight_elems(const struct state *s) { return s->n * s->heads * s->t * s->t; }

/* Copies move while plans are made. */
static struct memory memory_of(const struct pl_plan *p)
{
    const struct state *s = p->state;
    char *copies = (char *)p->backend->copies + p->converted_bytes;
    struct memory m = {.weights = p->far};
    for (int i = 0; i < THIRDS; i++)
        m.part[i] = pl_cuda_take(&copies, part_elems(s));
    if (!m.weights) {
        m.weights = pl_cuda_take(&copies, weight_elems(s));
        return m;
    }
    m.dy = pl_cuda_take(&copies, part_elems(s));
    m.slopes = pl_cuda_take(&copies, weight_elems(s));
    return m;
}

static pl_status take_memory(struct pl_plan *p, const struct state *s)
{
    bool kept = keeps(&p->op);
    size_t parts = (kept ? THIRDS + 1 : THIRDS) * pl_cuda_copy_bytes(part_elems(s), false), weights = pl_cuda_copy_bytes(weight_elems(s), false);
    PL_TRY(pl_cuda_copies(p->backend, p->converted_bytes + parts + weights));
    return kept ? pl_cuda_far_state(p, weights, "attention's weights") : PL_OK;
}

static pl_status plan_products(struct pl_plan *p, struct state *s)
{
    int64_t batch = s->n * s->heads;
    struct pl_cuda_matmul_shape across = {.tb = true, .m = s->t, .n = s->t, .k = s->d, .batch = batch};
    struct pl_cuda_matmul_shape of_rows = {.m = s->t, .n = s->d, .k = s->t, .batch = batch}, of_columns = of_rows;
    of_columns.ta = true;
    PL_TRY(pl_cuda_matmul_create(p->backend, &across, &s->across));
    PL_TRY(pl_cuda_matmul_create(p->backend, &of_rows, &s->of_rows));
    return keeps(&p->op) ? pl_cuda_matmul_create(p->backend, &of_columns, &s->of_columns) : PL_OK;
}

static pl_status plan(struct pl_plan *p)
{
    const struct pl_op *op = &p->op;
    struct state *s = p->state = pl_alloc(sizeof *s, "attention's plan");
    if (!s)
        return PL_ERR_MEMORY;
    *s = (struct state){.n = op->x[0].dim[0], .t = op->x[0].dim[1], .heads = op->heads, .causal = op->causal};
    int64_t features = op->y.dim[2];
    if (op->x[0].dims != 3 || s->heads < 1 || features % s->heads != 0 || op->x[0].dim[2] != THIRDS * features || pl_shape_elems(&op->y) != s->n * s->t * features)
        return pl_cuda_refuse(op, "input, output and heads do not fit together");
    s->d = features / s->heads;
    PL_TRY(pl_cuda_check_sizes(p));
    if (s->n * s->heads > INT32_MAX || s->n * s->heads > INT64_MAX / 16 / (s->t * s->t))
        return pl_cuda_refuse(op, "its weights, of each position for each, are too many");
    PL_TRY(take_memory(p, s));
    return plan_products(p, s);
}

static void destroy(struct pl_plan *p)
{
    struct state *s = p->state;
    if (s) {
        pl_cuda_matmul_destroy(s->across);
        pl_cuda_matmul_destroy(s->of_rows);
        pl_cuda_matmul_destroy(s->of_columns);
    }
    pl_cuda_destroy_state(p);
}

static struct pl_cuda_heads thirds_of(const struct state *s, float *q, float *k, float *v)
{
    return (struct pl_cuda_heads){.n = s->n, .t = s->t, .parts = THIRDS, .heads = s->heads, .d = s->d, .part = {q, k, v}};
}

static struct pl_cuda_heads whole_of(const struct state *s, float *y)
{
    return (struct pl_cuda_heads){.n = s->n, .t = s->t, .parts = 1, .heads = s->heads, .d = s->d, .part = {y}};
}

static struct pl_cuda_scores scores_of(const struct state *s)
{
    return (struct pl_cuda_scores){.sequences = s->n * s->heads, .t = s->t, .scale = (float)(1 / sqrt((double)s->d)), .causal = s->causal};
}

/* What each head gives takes the place of its queries. */
static pl_status forward(struct pl_plan *p, const struct pl_io *io)
{
    const struct state *s = p->state;
    pl_cuda_stream stream = p->backend->stream;
    struct memory m = memory_of(p);
    pl_cuda_split_heads(stream, thirds_of(s, m.part[Q], m.part[K], m.part[V]), io->x[0]);
    PL_TRY(pl_cuda_matmul_run(s->across, m.part[Q], m.part[K], NULL, m.weights));
    pl_cuda_weigh(stream, scores_of(s), m.weights);
    PL_TRY(pl_cuda_matmul_run(s->of_rows, m.weights, m.part[V], NULL, m.part[Q]));
    pl_cuda_join_heads(stream, whole_of(s, m.part[Q]), io->y);
    return pl_cuda_started(p);
}

/* Each gradient takes the place of what is no longer needed: dV of V, dQ of dy, dK of K. */
static pl_status backward(struct pl_plan *p, const struct pl_io *io)
{
    const struct state *s = p->state;
    pl_cuda_stream stream = p->backend->stream;
    if (!keeps(&p->op) || !io->dx[0])
        return PL_OK;
    struct memory m = memory_of(p);
    pl_cuda_split_heads(stream, thirds_of(s, m.part[Q], m.part[K], m.part[V]), io->x[0]);
    pl_cuda_split_heads(stream, whole_of(s, m.dy), io->dy);
    PL_TRY(pl_cuda_matmul_run(s->across, m.dy, m.part[V], NULL, m.slopes));
    PL_TRY(pl_cuda_matmul_run(s->of_columns, m.weights, m.dy, NULL, m.part[V]));
    pl_cuda_weigh_back(stream, scores_of(s), m.weights, m.slopes);
    PL_TRY(pl_cuda_matmul_run(s->of_rows, m.slopes, m.part[K], NULL, m.dy));
    PL_TRY(pl_cuda_matmul_run(s->of_columns, m.slopes, m.part[Q], NULL, m.part[K]));
    pl_cuda_join_heads(stream, thirds_of(s, m.dy, m.part[K], m.part[V]), io->dx[0]);
    return pl_cuda_started(p);
}

const struct pl_cuda_kind pl_cuda_attention = {.plan = plan, .destroy = destroy, .forward = forward, .backward = backward};
