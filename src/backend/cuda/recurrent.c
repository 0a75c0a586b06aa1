/* recurrent: the cells of LSTM and GRU, of products by cuBLAS and kernels between them. What of the gates comes from the input is
 * one product over all positions, and so are the gradients of weights and input; those with h go position after position
 * (Appleyard et al., Optimizing Performance of Recurrent Neural Networks on GPUs, 2016). Inside, tensors are time-major, [T, N, ..],
 * so that a position lies in one piece; x and y are turned. All rows up to the capacity are computed: padding rows are
 * finite and their dy is 0. Float, also where activations are bf16. */
#include "backend/cuda/plans.h"

enum { W, U, B, BU }; /* parameters */

struct state {
    int64_t n, t, i, h, z; /* samples, positions, features, units, gates * units */
    bool lstm;
    struct pl_cuda_matmul *input, *step;   /* x W^T, h U^T */
    struct pl_cuda_matmul *back, *data;    /* du U, dz W */
    struct pl_cuda_matmul *weights[2], *recurrent[2]; /* dz^T x, du^T h; accumulate */
};

/* Device memory. What need not be kept is in the backend's copies, as products use its scratch; so is all of it where no backward follows. */
struct memory {
    float *x, *gates, *beside, *y; /* [T, N, ..] I, z, H, H; backward makes dz of gates */
    float *du;                     /* [T, N, z]: gates, or GRU's own */
    float *product;                /* [N, z], not kept, as what follows */
    float *dh, *direct, *dy, *dx;  /* [N, H], [N, H], [T, N, H], [T, N, I] */
};

static int64_t kept_elems(const struct state *s, bool train)
{
    return s->n * s->t * (s->i + s->z + 2 * s->h + (train && !s->lstm ? s->z : 0));
}

static struct pl_cuda_view all_gates(const struct state *s)
{
    struct pl_shape gates = {2, {s->n * s->t, s->z}};
    return pl_cuda_view_of(&gates, &(struct pl_layout){0});
}

/* Copies move while plans are made. */
static struct memory memory_of(const struct pl_plan *p)
{
    const struct state *s = p->state;
    int64_t rows = s->n * s->t;
    char *copies = (char *)p->backend->copies + p->converted_bytes, *kept = p->far;
    struct memory m = {.product = pl_cuda_take(&copies, s->n * s->z)};
    if (!kept)
        kept = copies;
    m.x = pl_cuda_take(&kept, rows * s->i);
    m.gates = pl_cuda_take(&kept, rows * s->z);
    m.beside = pl_cuda_take(&kept, rows * s->h);
    m.y = pl_cuda_take(&kept, rows * s->h);
    m.du = s->lstm ? m.gates : pl_cuda_take(&kept, rows * s->z);
    m.dh = pl_cuda_take(&copies, s->n * s->h);
    m.direct = pl_cuda_take(&copies, s->n * s->h);
    m.dy = pl_cuda_take(&copies, rows * s->h);
    m.dx = pl_cuda_take(&copies, rows * s->i);
    return m;
}

enum { PARTS = 8, ALIGNED = 64 }; /* of either memory, each aligned to so many floats */

static pl_status take_memory(struct pl_plan *p, const struct state *s)
{
    int64_t rows = s->n * s->t, aligned = PARTS * ALIGNED;
    size_t kept = (size_t)(kept_elems(s, p->op.train) + aligned) * sizeof(float);
    size_t rest = (size_t)(s->n * s->z + 2 * s->n * s->h + rows * (s->h + s->i) + aligned) * sizeof(float);
    PL_TRY(pl_cuda_copies(p->backend, p->converted_bytes + (p->op.train ? rest : rest + kept)));
    if (!p->op.train)
        return PL_OK;
    PL_TRY(pl_cuda_scratch(p->backend, pl_cuda_channel_scratch(all_gates(s))));
    return pl_cuda_far_state(p, kept, "a recurrent layer's gates");
}

/* A position begins at a multiple of so many bytes, 64 at most. */
static uint32_t aligned_to(int64_t floats)
{
    uint32_t bytes = sizeof(float);
    while (bytes < 64 && floats * (int64_t)sizeof(float) % (2 * bytes) == 0)
        bytes *= 2;
    return bytes;
}

static pl_status plan_products(struct pl_plan *p, struct state *s)
{
    int64_t rows = s->n * s->t;
    struct pl_backend *b = p->backend;
    struct pl_cuda_matmul_shape input = {.tb = true, .m = rows, .n = s->z, .k = s->i}, step = {.tb = true, .m = s->n, .n = s->z, .k = s->h, .aligned = aligned_to(s->n * s->h)};
    struct pl_cuda_matmul_shape back = {.m = s->n, .n = s->h, .k = s->z, .aligned = aligned_to(s->n * s->z)}, data = {.m = rows, .n = s->i, .k = s->z};
    struct pl_cuda_matmul_shape weights = {.ta = true, .m = s->z, .n = s->i, .k = rows}, recurrent = {.ta = true, .m = s->z, .n = s->h, .k = rows - s->n, .aligned = aligned_to(s->n * s->z)};
    PL_TRY(pl_cuda_matmul_create(b, &input, &s->input));
    if (s->t > 1)
        PL_TRY(pl_cuda_matmul_create(b, &step, &s->step));
    if (!p->op.train)
        return PL_OK;
    for (int more = 0; more < 2; more++) {
        weights.accumulate = recurrent.accumulate = more == 1;
        PL_TRY(pl_cuda_matmul_create(b, &weights, &s->weights[more]));
        if (s->t > 1)
            PL_TRY(pl_cuda_matmul_create(b, &recurrent, &s->recurrent[more]));
    }
    if (s->t > 1)
        PL_TRY(pl_cuda_matmul_create(b, &back, &s->back));
    return p->op.need_dx[0] ? pl_cuda_matmul_create(b, &data, &s->data) : PL_OK;
}

static pl_status plan(struct pl_plan *p)
{
    const struct pl_op *op = &p->op;
    struct state *s = p->state = pl_alloc(sizeof *s, "a recurrent layer's plan");
    if (!s)
        return PL_ERR_MEMORY;
    *s = (struct state){.n = op->x[0].dim[0], .t = op->x[0].dim[1], .i = op->x[0].dim[2], .h = op->p[U].dim[1], .lstm = op->kind == PL_OP_LSTM};
    s->z = (s->lstm ? 4 : 3) * s->h;
    bool fits = op->x[0].dims == 3 && op->p[W].dim[0] == s->z && op->p[W].dim[1] == s->i && op->p[U].dim[0] == s->z &&
                pl_shape_elems(&op->y) == s->n * s->h * (op->last ? 1 : s->t);
    if (!fits)
        return pl_cuda_refuse(op, "input, output and weights do not fit together");
    PL_TRY(pl_cuda_check_sizes(p));
    PL_TRY(take_memory(p, s));
    return plan_products(p, s);
}

static void destroy(struct pl_plan *p)
{
    struct state *s = p->state;
    if (s) {
        struct pl_cuda_matmul *all[] = {s->input, s->step, s->back, s->data, s->weights[0], s->weights[1], s->recurrent[0], s->recurrent[1]};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
            pl_cuda_matmul_destroy(all[i]);
    }
    pl_cuda_destroy_state(p);
}

/* [N, T, width] to [T, N, width], or back. */
static void turn(const struct pl_plan *p, const float *from, float *to, int64_t width, bool back)
{
    const struct state *s = p->state;
    struct pl_cuda_view samples = {.n = s->t, .c = s->n, .h = 1, .w = width, .sn = width, .sc = s->t * width, .sp = 1}, positions = samples;
    positions.sn = s->n * width;
    positions.sc = width;
    pl_cuda_copy(p->backend->stream, from, back ? positions : samples, to, back ? samples : positions, false);
}

static struct pl_cuda_cell cell_at(const struct pl_plan *p, const struct pl_io *io, const struct memory *m, int64_t t)
{
    const struct state *s = p->state;
    int64_t row = s->n * s->h;
    const float *kept = s->lstm ? m->beside : m->y;
    return (struct pl_cuda_cell){.n = s->n, .h = s->h, .z = s->z, .b = p->op.bias ? io->p[B] : NULL, .bu = p->op.bias ? io->p[BU] : NULL,
                                 .gates = m->gates + t * s->n * s->z, .product = t > 0 ? m->product : NULL, .before = t > 0 ? kept + (t - 1) * row : NULL,
                                 .beside = m->beside + t * row, .y = m->y + t * row};
}

static pl_status forward(struct pl_plan *p, const struct pl_io *io)
{
    const struct state *s = p->state;
    struct memory m = memory_of(p);
    int64_t row = s->n * s->h;
    turn(p, io->x[0], m.x, s->i, false);
    PL_TRY(pl_cuda_matmul_run(s->input, m.x, io->p[W], NULL, m.gates));
    for (int64_t t = 0; t < s->t; t++) {
        if (t > 0)
            PL_TRY(pl_cuda_matmul_run(s->step, m.y + (t - 1) * row, io->p[U], NULL, m.product));
        pl_cuda_cell_forward(p->backend->stream, cell_at(p, io, &m, t));
    }
    struct pl_cuda_view last = {.n = 1, .c = 1, .h = 1, .w = row, .sn = row, .sc = row, .sp = 1};
    if (p->op.last)
        pl_cuda_copy(p->backend->stream, m.y + (s->t - 1) * row, last, io->y, last, false);
    else
        turn(p, m.y, io->y, s->h, true);
    return pl_cuda_started(p);
}

static pl_status parameter_gradients(struct pl_plan *p, const struct pl_io *io, const struct memory *m)
{
    const struct state *s = p->state;
    struct pl_cuda_view view = all_gates(s);
    PL_TRY(pl_cuda_matmul_run(s->weights[io->accumulate], m->gates, m->x, NULL, io->dp[W]));
    if (s->t > 1)
        PL_TRY(pl_cuda_matmul_run(s->recurrent[io->accumulate], m->du + s->n * s->z, m->y, NULL, io->dp[U]));
    else if (!io->accumulate)
        pl_cuda_clear(p->backend->stream, io->dp[U], s->z * s->h);
    if (p->op.bias) {
        pl_cuda_bias_back(p->backend->stream, m->gates, view, io->accumulate, io->dp[B], p->backend->scratch);
        pl_cuda_bias_back(p->backend->stream, m->du, view, io->accumulate, io->dp[BU], p->backend->scratch);
    }
    return pl_cuda_started(p);
}

static pl_status backward(struct pl_plan *p, const struct pl_io *io)
{
    const struct state *s = p->state;
    struct memory m = memory_of(p);
    int64_t row = s->n * s->h;
    if (!p->op.last)
        turn(p, io->dy, m.dy, s->h, false);
    for (int64_t t = s->t - 1; t >= 0; t--) {
        bool end = t == s->t - 1;
        struct pl_cuda_cell_back g = {.dy = !p->op.last ? m.dy + t * row : end ? io->dy : NULL, .dh = end ? NULL : m.dh, .direct = m.direct, .first = end,
                                      .du = m.du + t * s->n * s->z};
        pl_cuda_cell_backward(p->backend->stream, cell_at(p, io, &m, t), g);
        if (t > 0)
            PL_TRY(pl_cuda_matmul_run(s->back, g.du, io->p[U], NULL, m.dh));
    }
    PL_TRY(parameter_gradients(p, io, &m));
    if (!s->data || !io->dx[0])
        return PL_OK;
    PL_TRY(pl_cuda_matmul_run(s->data, m.gates, io->p[W], NULL, m.dx));
    turn(p, m.dx, io->dx[0], s->i, true);
    return pl_cuda_started(p);
}

const struct pl_cuda_kind pl_cuda_recurrent = {.plan = plan, .destroy = destroy, .forward = forward, .backward = backward};
