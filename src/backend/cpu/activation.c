/* activation: relu, sigmoid, tanh, gelu, element by element. The gradients need y alone, gelu's x. Not a number
 * stays not a number, so that the loss shows it. */
#include "backend/cpu/bf16.h"
#include "backend/cpu/vmath.h"

struct job {
    const float *x, *dy; /* [N, ...]; dy NULL forward, x backward but for gelu */
    const float *y;
    float *out; /* y or dx */
};

PL_CLONES
static void relu_forward(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const float *x = ((struct job *)arg)->x;
    float *y = ((struct job *)arg)->out;
    for (int64_t i = begin; i < end; i++)
        y[i] = x[i] < 0.0f ? 0.0f : x[i];
}

PL_CLONES
static void relu_backward(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    const float *y = j->y, *dy = j->dy;
    float *dx = j->out;
    for (int64_t i = begin; i < end; i++)
        dx[i] = y[i] > 0.0f ? dy[i] : 0.0f;
}

/* Of bf16, by the bits: below zero is what the sign says and is a number. */
PL_HALVES
static void relu_forward_half(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    const int16_t *x = (const int16_t *)(const void *)j->x;
    int16_t *y = (int16_t *)(void *)j->out;
    for (int64_t i = begin; i < end; i++)
        y[i] = x[i] < 0 && (x[i] & 0x7fff) <= 0x7f80 ? 0 : x[i];
}

PL_HALVES
static void relu_backward_half(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    const int16_t *y = (const int16_t *)(const void *)j->y, *dy = (const int16_t *)(const void *)j->dy;
    int16_t *dx = (int16_t *)(void *)j->out;
    for (int64_t i = begin; i < end; i++)
        dx[i] = y[i] > 0 ? dy[i] : 0;
}

PL_CLONES
static void sigmoid_forward(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const float *x = ((struct job *)arg)->x;
    float *y = ((struct job *)arg)->out;
    for (int64_t i = begin; i < end; i++)
        y[i] = pl_vsigmoid(x[i]);
}

PL_CLONES
static void sigmoid_backward(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    const float *y = j->y, *dy = j->dy;
    float *dx = j->out;
    for (int64_t i = begin; i < end; i++)
        dx[i] = dy[i] * y[i] * (1.0f - y[i]);
}

PL_CLONES
static void tanh_forward(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const float *x = ((struct job *)arg)->x;
    float *y = ((struct job *)arg)->out;
    for (int64_t i = begin; i < end; i++)
        y[i] = pl_vtanh(x[i]);
}

PL_CLONES
static void tanh_backward(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    const float *y = j->y, *dy = j->dy;
    float *dx = j->out;
    for (int64_t i = begin; i < end; i++)
        dx[i] = dy[i] * (1.0f - y[i] * y[i]);
}

PL_WITHIN float gelu(float x) { return x * pl_vnormal(x).below; }
PL_WITHIN float gelu_slope(float x) {
    struct pl_vnormal n = pl_vnormal(x);
    return n.below + x * n.density;
}

PL_CLONES
static void gelu_forward(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const float *x = ((struct job *)arg)->x;
    float *y = ((struct job *)arg)->out;
    for (int64_t i = begin; i < end; i++)
        y[i] = gelu(x[i]);
}

PL_CLONES
static void gelu_backward(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    const float *x = j->x, *dy = j->dy;
    float *dx = j->out;
    for (int64_t i = begin; i < end; i++)
        dx[i] = dy[i] * gelu_slope(x[i]);
}

PL_HALVES
static void gelu_forward_half(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const uint16_t *x = (const void *)((struct job *)arg)->x;
    uint16_t *y = (void *)((struct job *)arg)->out;
    for (int64_t i = begin; i < end; i++)
        y[i] = pl_bf16_round(gelu(pl_bf16_widen(x[i])));
}

PL_HALVES
static void gelu_backward_half(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    const uint16_t *x = (const void *)j->x, *dy = (const void *)j->dy;
    uint16_t *dx = (void *)j->out;
    for (int64_t i = begin; i < end; i++)
        dx[i] = pl_bf16_round(pl_bf16_widen(dy[i]) * gelu_slope(pl_bf16_widen(x[i])));
}

void pl_cpu_relu_end(const struct pl_backend *b, void *y, bool half, int64_t n) {
    struct job j = {.x = y, .out = y};
    pl_cpu_parts(b, n, PL_CPU_GRAIN, half ? relu_forward_half : relu_forward, &j);
}

void pl_cpu_relu_mask(const struct pl_backend *b, const void *y, void *dy, bool half, int64_t n) {
    struct job j = {.y = y, .dy = dy, .out = dy};
    pl_cpu_parts(b, n, PL_CPU_GRAIN, half ? relu_backward_half : relu_backward, &j);
}

/* [halves], which a kind that does not go through them is not given */
struct bodies {
    pl_cpu_part_fn *forward[2], *backward[2];
};
static const struct bodies bodies[] = {[PL_OP_RELU] = {{relu_forward, relu_forward_half}, {relu_backward, relu_backward_half}},
                                       [PL_OP_SIGMOID] = {{sigmoid_forward}, {sigmoid_backward}},
                                       [PL_OP_TANH] = {{tanh_forward}, {tanh_backward}},
                                       [PL_OP_GELU] = {{gelu_forward, gelu_forward_half}, {gelu_backward, gelu_backward_half}}};

static pl_status forward(struct pl_plan *p, const struct pl_io *io) {
    struct job j = {.x = io->x[0], .out = io->y};
    pl_cpu_parts(p->backend, pl_shape_elems(&p->op.y), PL_CPU_GRAIN, bodies[p->op.kind].forward[p->op.ly.bf16], &j);
    return PL_OK;
}

static pl_status backward(struct pl_plan *p, const struct pl_io *io) {
    struct job j = {.x = io->x[0], .dy = io->dy, .y = io->y, .out = io->dx[0]};
    if (p->op.need_dx[0] && io->dx[0] != NULL)
        pl_cpu_parts(p->backend, pl_shape_elems(&p->op.y), PL_CPU_GRAIN, bodies[p->op.kind].backward[p->op.ly.bf16], &j);
    return PL_OK;
}

#define ACTIVATION(through) {.layouts = PL_CPU_SAME, .halves = through, .plan = pl_cpu_plan_nothing, .destroy = pl_cpu_destroy_state, .forward = forward, .backward = backward}
const struct pl_cpu_kind pl_cpu_relu = ACTIVATION(PL_CPU_HALVES);
const struct pl_cpu_kind pl_cpu_sigmoid = ACTIVATION(PL_CPU_FLOATS);
const struct pl_cpu_kind pl_cpu_tanh = ACTIVATION(PL_CPU_FLOATS);
const struct pl_cpu_kind pl_cpu_gelu = ACTIVATION(PL_CPU_HALVES);
