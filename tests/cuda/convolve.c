/* Stands in for backend/cuda/convolve.c: each of the three passes goes over all products of the convolution, in double. */
#include "backend/cuda/cuda.h"
#include "emulated.h"

struct pl_cuda_convolve {
    struct pl_op op;
    bool last, bf16;
    double *sum; /* as large as the largest of x, y, w */
};

static int64_t largest(const struct pl_op *op)
{
    int64_t x = pl_shape_elems(&op->x[0]), y = pl_shape_elems(&op->y), w = pl_shape_elems(&op->p[0]);
    return x > y ? (x > w ? x : w) : (y > w ? y : w);
}

/* cuDNN pads the same on both sides, and its output follows from that. */
static bool follows(const struct pl_op *op, int k)
{
    int64_t reach = op->dilation[k] * (op->kernel[k] - 1) + 1;
    return op->y.dim[2 + k] == (op->x[0].dim[2 + k] + 2 * op->pad_begin[k] - reach) / op->stride[k] + 1;
}

pl_status pl_cuda_convolve_create(struct pl_backend *b, const struct pl_op *op, bool channels_last, bool bf16, struct pl_cuda_convolve **out)
{
    (void)b;
    if (!follows(op, 0) || !follows(op, 1))
        return pl_cuda_refuse(op, "cuDNN would make its output of another size");
    struct pl_cuda_convolve *c = pl_alloc(sizeof *c, "an emulated convolution");
    if (!c)
        return PL_ERR_MEMORY;
    c->op = *op;
    c->last = channels_last;
    c->bf16 = bf16;
    c->sum = pl_alloc((size_t)largest(op) * sizeof *c->sum, "an emulated convolution");
    *out = c->sum ? c : NULL;
    if (!c->sum)
        pl_free(c);
    return *out ? PL_OK : PL_ERR_MEMORY;
}

void pl_cuda_convolve_destroy(struct pl_cuda_convolve *c)
{
    if (!c)
        return;
    pl_free(c->sum);
    pl_free(c);
}

void pl_cuda_dnn_close(struct pl_cuda_dnn *dnn) { (void)dnn; }

/* Where element (n, c, h, w) of a tensor is */
static int64_t place(bool last, const struct pl_shape *s, int64_t n, int64_t c, int64_t h, int64_t w)
{
    int64_t C = s->dim[1], H = s->dim[2], W = s->dim[3];
    return last ? ((n * H + h) * W + w) * C + c : ((n * C + c) * H + h) * W + w;
}

/* sum[target] += left * right over all products; which of y, w, x is the target is told by which is NULL */
static void products(struct pl_cuda_convolve *k, const void *y, const void *w, const void *x)
{
    const struct pl_op *op = &k->op;
    int64_t cg = op->p[0].dim[1], og = op->y.dim[1] / op->groups, H = op->x[0].dim[2], W = op->x[0].dim[3];
    for (int64_t n = 0; n < op->y.dim[0]; n++)
        for (int64_t o = 0; o < op->y.dim[1]; o++)
            for (int64_t i = 0; i < op->y.dim[2]; i++)
                for (int64_t j = 0; j < op->y.dim[3]; j++)
                    for (int64_t c = 0; c < cg; c++)
                        for (int64_t a = 0; a < op->kernel[0]; a++)
                            for (int64_t b = 0; b < op->kernel[1]; b++) {
                                int64_t r = i * op->stride[0] - op->pad_begin[0] + a * op->dilation[0];
                                int64_t s = j * op->stride[1] - op->pad_begin[1] + b * op->dilation[1];
                                if (r < 0 || r >= H || s < 0 || s >= W)
                                    continue;
                                int64_t yi = place(k->last, &op->y, n, o, i, j), wi = place(k->last, &op->p[0], o, c, a, b);
                                int64_t xi = place(k->last, &op->x[0], n, o / og * cg + c, r, s);
                                double left = pl_emulated_get(y ? y : w, k->bf16, y ? yi : wi), right = pl_emulated_get(x ? x : w, k->bf16, x ? xi : wi);
                                k->sum[!y ? yi : !w ? wi : xi] += left * right;
                            }
}

struct pass { struct pl_cuda_convolve *k; const void *y, *w, *x; int64_t n; bool add; void *out; };

static void run_pass(const void *arg)
{
    const struct pass *p = arg;
    for (int64_t i = 0; i < p->n; i++)
        p->k->sum[i] = p->add ? pl_emulated_get(p->out, p->k->bf16, i) : 0;
    products(p->k, p->y, p->w, p->x);
    for (int64_t i = 0; i < p->n; i++)
        pl_emulated_put(p->out, p->k->bf16, i, (float)p->k->sum[i]);
}

static pl_status run(struct pl_cuda_convolve *k, const void *y, const void *w, const void *x, const struct pl_shape *shape, bool add, void *out)
{
    const struct pass p = {k, y, w, x, pl_shape_elems(shape), add, out};
    pl_emulated_check(y), pl_emulated_check(w), pl_emulated_check(x), pl_emulated_check(out);
    pl_emulated_do(run_pass, &p, sizeof p);
    return PL_OK;
}

pl_status pl_cuda_convolve_forward(struct pl_cuda_convolve *c, const void *x, const void *w, void *y)
{
    return run(c, NULL, w, x, &c->op.y, false, y);
}

pl_status pl_cuda_convolve_data(struct pl_cuda_convolve *c, const void *dy, const void *w, void *dx)
{
    return run(c, dy, w, NULL, &c->op.x[0], false, dx);
}

pl_status pl_cuda_convolve_weights(struct pl_cuda_convolve *c, const void *x, const void *dy, bool accumulate, void *dw)
{
    return run(c, dy, NULL, x, &c->op.p[0], accumulate, dw);
}
