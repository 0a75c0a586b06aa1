/* Dense and convolution: sums of products, forward and the two transposes. */
#include "backend/reference/reference.h"

static void dense_forward(struct pl_plan *p, const struct pl_io *io)
{
    int64_t N = p->op.y.dim[0], I = pl_shape_row_elems(&p->op.x[0]), O = pl_shape_row_elems(&p->op.y);
    for (int64_t n = 0; n < N; n++)
        for (int64_t o = 0; o < O; o++) {
            double sum = p->op.bias ? io->p[1][o] : 0;
            for (int64_t i = 0; i < I; i++)
                sum += (double)io->x[0][n * I + i] * io->p[0][o * I + i];
            io->y[n * O + o] = (float)sum;
        }
}

static void dense_backward(struct pl_plan *p, const struct pl_io *io)
{
    int64_t N = p->op.y.dim[0], I = pl_shape_row_elems(&p->op.x[0]), O = pl_shape_row_elems(&p->op.y);
    for (int64_t n = 0; io->dx[0] && n < N; n++)
        for (int64_t i = 0; i < I; i++) {
            double sum = 0;
            for (int64_t o = 0; o < O; o++)
                sum += (double)io->dy[n * O + o] * io->p[0][o * I + i];
            io->dx[0][n * I + i] = (float)sum;
        }
    for (int64_t o = 0; o < O; o++) {
        for (int64_t i = 0; i < I; i++) {
            double sum = 0;
            for (int64_t n = 0; n < N; n++)
                sum += (double)io->dy[n * O + o] * io->x[0][n * I + i];
            ref_put(&io->dp[0][o * I + i], sum, io->accumulate);
        }
        double sum = 0;
        for (int64_t n = 0; n < N; n++)
            sum += io->dy[n * O + o];
        if (p->op.bias)
            ref_put(&io->dp[1][o], sum, io->accumulate);
    }
}

/* Calls what for every product of a convolution: y[yi] += w[wi] * x[xi]. */
typedef void product_fn(void *arg, int64_t yi, int64_t wi, int64_t xi);
static void each_product(const struct pl_op *op, product_fn *what, void *arg)
{
    struct ref_dims x = ref_dims(&op->x[0]), y = ref_dims(&op->y);
    int64_t kh = op->kernel[0], kw = op->kernel[1], cg = x.c / op->groups, og = y.c / op->groups;
    for (int64_t n = 0; n < y.n; n++)
        for (int64_t o = 0; o < y.c; o++)
            for (int64_t i = 0; i < y.h; i++)
                for (int64_t j = 0; j < y.w; j++)
                    for (int64_t c = 0; c < cg; c++)
                        for (int64_t a = 0; a < kh; a++)
                            for (int64_t b = 0; b < kw; b++) {
                                int64_t row = i * op->stride[0] - op->pad_begin[0] + a * op->dilation[0];
                                int64_t column = j * op->stride[1] - op->pad_begin[1] + b * op->dilation[1];
                                if (row < 0 || row >= x.h || column < 0 || column >= x.w)
                                    continue;
                                what(arg, ((n * y.c + o) * y.h + i) * y.w + j, ((o * cg + c) * kh + a) * kw + b,
                                     ((n * x.c + o / og * cg + c) * x.h + row) * x.w + column);
                            }
}

struct conv_args { const struct pl_io *io; double *y, *dw, *dx; };
static void add_forward(void *arg, int64_t y, int64_t w, int64_t x)
{
    struct conv_args *a = arg;
    a->y[y] += (double)a->io->p[0][w] * a->io->x[0][x];
}
static void add_backward(void *arg, int64_t y, int64_t w, int64_t x)
{
    struct conv_args *a = arg;
    a->dw[w] += (double)a->io->dy[y] * a->io->x[0][x];
    a->dx[x] += (double)a->io->dy[y] * a->io->p[0][w];
}

static size_t conv_saved(const struct pl_op *op)
{
    return (size_t)(pl_shape_elems(&op->y) + pl_shape_elems(&op->p[0]) + pl_shape_elems(&op->x[0]));
}

static void conv_forward(struct pl_plan *p, const struct pl_io *io)
{
    struct ref_dims y = ref_dims(&p->op.y);
    int64_t n = pl_shape_elems(&p->op.y);
    for (int64_t i = 0; i < n; i++)
        p->saved[i] = p->op.bias ? io->p[1][i / (y.h * y.w) % y.c] : 0;
    each_product(&p->op, add_forward, &(struct conv_args){.io = io, .y = p->saved});
    for (int64_t i = 0; i < n; i++)
        io->y[i] = (float)p->saved[i];
}

static void conv_backward(struct pl_plan *p, const struct pl_io *io)
{
    struct ref_dims y = ref_dims(&p->op.y);
    int64_t ny = pl_shape_elems(&p->op.y), nw = pl_shape_elems(&p->op.p[0]), nx = pl_shape_elems(&p->op.x[0]);
    double *dw = p->saved, *dx = p->saved + nw;
    for (int64_t i = 0; i < nw + nx; i++)
        p->saved[i] = 0;
    each_product(&p->op, add_backward, &(struct conv_args){.io = io, .dw = dw, .dx = dx});
    for (int64_t i = 0; i < nw; i++)
        ref_put(&io->dp[0][i], dw[i], io->accumulate);
    for (int64_t i = 0; io->dx[0] && i < nx; i++)
        io->dx[0][i] = (float)dx[i];
    for (int64_t o = 0; p->op.bias && o < y.c; o++) {
        double sum = 0;
        for (int64_t i = 0; i < ny; i++)
            sum += i / (y.h * y.w) % y.c == o ? io->dy[i] : 0;
        ref_put(&io->dp[1][o], sum, io->accumulate);
    }
}

const struct ref_op ref_dense = {.forward = dense_forward, .backward = dense_backward};
const struct ref_op ref_conv = {.saved = conv_saved, .forward = conv_forward, .backward = conv_backward};
