/* dense_narrow: two of the matrix products of a dense layer where the batch is narrow against the weights.
 * The library copies both matrices into the order its kernel reads, or makes two passes over the gradient;
 * here the batch is packed, which is small, and the weights are read or written once:
 *
 *     forward    Y^T[o, n] = W[o, i] X^T[i, n]     tiles of six units by two vectors of samples
 *     weights    dW[o, i]  = dY^T[o, n] X[n, i]    six units by two vectors of inputs
 *
 * Measured on Zen 3, 64 samples, 2048 x 2048, one thread, of 94 GFLOP/s: OpenBLAS 72 and 66, these 83 and 88; on Zen 4
 * with vectors of sixteen floats in three quarters of OpenBLAS's time forward.
 * The third product, dX = dY W, reads the weights as the library likes them and stays there (78; ours 70).
 * The order of every sum depends on the shapes alone. */
#include "backend/cpu/dense_narrow.h"

#define MOST_SAMPLES 256 /* beyond, the copy pays; measured */
#define LEAST_SIDE 384   /* below, packing the batch takes what the products save */

pl_status pl_cpu_dense_narrow_plan(const struct pl_plan *p, bool *narrow) {
    int64_t n = p->op.x[0].dim[0], out = p->op.p[0].dim[0], in = p->op.p[0].dim[1];
    const struct pl_cpu_lanes *l = p->backend->lanes;
    *narrow = l != NULL && n <= MOST_SAMPLES && in >= LEAST_SIDE && out >= LEAST_SIDE;
    if (!*narrow)
        return PL_OK;
    int64_t elems = up(n, l->columns) * (up(in, l->columns) + up(out, l->rows));
    return pl_cpu_scratch(p->backend, (size_t)elems * sizeof(float));
}

static struct pl_cpu_narrow job_of(struct pl_plan *p, const struct pl_io *io) {
    return (struct pl_cpu_narrow){.n = p->op.x[0].dim[0], .out = p->op.p[0].dim[0], .in = p->op.p[0].dim[1], .x = io->x[0], .w = io->p[0],
                        .dy = io->dy, .y = io->y, .dw = io->dp[0], .accumulate = io->accumulate,
                        .packed = (float *)(void *)p->backend->scratch};
}

void pl_cpu_dense_narrow_forward(struct pl_plan *p, const struct pl_io *io) {
    const struct pl_cpu_lanes *l = p->backend->lanes;
    struct pl_cpu_narrow j = job_of(p, io);
    j.bias = p->op.bias ? io->p[1] : NULL;
    j.turned = j.packed + up(j.n, l->columns) * j.in;
    pl_cpu_parts(p->backend, j.in, PL_CPU_GRAIN / j.n + 1, l->dense.pack_samples, &j);
    pl_cpu_parts(p->backend, up(j.out, l->rows) / l->rows, 8, l->dense.forward, &j);
}

void pl_cpu_dense_narrow_weights(struct pl_plan *p, const struct pl_io *io) {
    const struct pl_cpu_lanes *l = p->backend->lanes;
    struct pl_cpu_narrow j = job_of(p, io);
    int64_t panels = up(j.in, l->columns) / l->columns, blocks = up(j.out, l->rows) / l->rows;
    j.turned = j.packed + panels * l->columns * j.n;
    pl_cpu_parts(p->backend, panels, PL_CPU_GRAIN / l->columns / j.n + 1, l->dense.pack_inputs, &j);
    pl_cpu_parts(p->backend, blocks, PL_CPU_GRAIN / l->rows / j.n + 1, l->dense.pack_units, &j);
    pl_cpu_parts(p->backend, blocks, 8, l->dense.weights, &j);
}
