/* dense_narrow: two of the matrix products of a dense layer where the batch is narrow against the weights.
 * The library copies both matrices into the order its kernel reads, or makes two passes over the gradient;
 * here the batch is packed, which is small, and the weights are read or written as they lie:
 *
 *     forward    Y^T[o, n] = W[o, i] X^T[i, n]     tiles of six units by 16 samples
 *     weights    dW[o, i]  = dY^T[o, n] X[n, i]    six units by 16 inputs
 *
 * Measured on Zen 3, 64 samples, 2048 x 2048, one thread, of 94 GFLOP/s: OpenBLAS 72 and 66, these 83 and 88.
 * The third product, dX = dY W, reads the weights as the library likes them and stays there (78; ours 70).
 * The order of every sum depends on the shapes alone. */
#include "backend/cpu/cpu.h"
#include "backend/cpu/kernel.h"

#define MOST_SAMPLES 256 /* beyond, the copy pays; measured */
#define LEAST_SIDE 384   /* below, packing the batch takes what the products save */
#define DEPTH 256        /* of a tile: its panel stays in the first-level cache */
#define CHUNK (64 * COLUMNS) /* inputs of a weight gradient at once: their panels stay in the second level */

struct job {
    int64_t n, in, out;
    const float *x, *w, *bias, *dy;
    float *y, *dw;
    bool accumulate;
    float *packed, *turned; /* scratch */
};

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

pl_status pl_cpu_dense_narrow_plan(const struct pl_plan *p, bool *narrow) {
    int64_t n = p->op.x[0].dim[0], out = p->op.p[0].dim[0], in = p->op.p[0].dim[1];
    *narrow = n <= MOST_SAMPLES && in >= LEAST_SIDE && out >= LEAST_SIDE && pl_cpu_eight_lanes();
    int64_t elems = up(n, COLUMNS) * (up(in, COLUMNS) + up(out, ROWS));
    return *narrow ? pl_cpu_scratch(p->backend, (size_t)elems * sizeof(float)) : PL_OK;
}

/* Inputs [begin, end) of all samples to [panel, in, 16] */
PL_FMA_CLONES
static void pack_samples(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    for (int64_t s = 0; s < up(j->n, COLUMNS); s++) {
        float *to = j->packed + s / COLUMNS * j->in * COLUMNS + s % COLUMNS;
        const float *x = j->x + s * j->in;
        for (int64_t i = begin; i < end; i++)
            to[i * COLUMNS] = s < j->n ? x[i] : 0.0f;
    }
}

/* Weights come from memory in pieces too short for the processor to see them coming: while this block of rows is
 * multiplied with one panel after the other, the next one is fetched. */
PL_WITHIN void ahead(const struct job *j, int64_t o, int64_t last, int64_t k, int64_t s, int64_t ld) {
    int64_t length = least(DEPTH, j->in - k), from = k + length * s / ld, to = k + length * (s + COLUMNS) / ld;
    for (int64_t r = o; r < least(o + ROWS, last); r++)
        for (int64_t i = from; i < to; i += COLUMNS)
            __builtin_prefetch(j->w + r * j->in + i);
}

/* Units [begin, end) * 6 of Y^T, then turned into Y */
PL_FMA_CLONES
static void forward_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    int64_t ld = up(j->n, COLUMNS), last = least(end * ROWS, j->out);
    for (int64_t k = 0; k < j->in; k += DEPTH)
        for (int64_t o = begin * ROWS; o < last; o += ROWS)
            for (int64_t s = 0; s < ld; s += COLUMNS) {
                ahead(j, o + ROWS, last, k, s, ld);
                struct product q = {.depth = least(DEPTH, j->in - k), .a = j->w + o * j->in + k, .row = j->in, .next = 1,
                                    .b = j->packed + s * j->in + k * COLUMNS, .ldb = COLUMNS, .c = j->turned + o * ld + s, .ldc = ld};
                multiply_rows(&q, least(ROWS, last - o), k > 0);
            }
    for (int64_t o = begin * ROWS; o < last; o += ROWS)
        for (int64_t s = 0; s < j->n; s++)
            for (int64_t r = o; r < least(o + ROWS, last); r++)
                j->y[s * j->out + r] = j->turned[r * ld + s] + (j->bias == NULL ? 0.0f : j->bias[r]);
}

/* Panels [begin, end) of 16 inputs, [panel, n, 16] */
PL_FMA_CLONES
static void pack_inputs(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    for (int64_t c = begin * COLUMNS; c < end * COLUMNS; c += COLUMNS)
        for (int64_t s = 0; s < j->n; s++) {
            const float *x = j->x + s * j->in + c;
            float *to = j->packed + c * j->n + s * COLUMNS;
            if (c + COLUMNS <= j->in) {
                STORE(to, LOAD(x));
                STORE(to + LANES, LOAD(x + LANES));
            } else {
                for (int64_t k = 0; k < COLUMNS; k++)
                    to[k] = c + k < j->in ? x[k] : 0.0f;
            }
        }
}

/* Blocks [begin, end) of six units, [block, n, 6] */
static void pack_units(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    for (int64_t o = begin * ROWS; o < end * ROWS; o += ROWS)
        for (int64_t s = 0; s < j->n; s++)
            for (int64_t r = 0; r < ROWS; r++)
                j->turned[o * j->n + s * ROWS + r] = o + r < j->out ? j->dy[s * j->out + o + r] : 0.0f;
}

/* Units [begin, end) * 6 of dW */
PL_FMA_CLONES
static void weights_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    for (int64_t chunk = 0; chunk < j->in; chunk += CHUNK)
        for (int64_t o = begin * ROWS; o < least(end * ROWS, j->out); o += ROWS)
            for (int64_t i = chunk; i < least(chunk + CHUNK, j->in); i += COLUMNS) {
                struct product q = {.depth = j->n, .a = j->turned + o * j->n, .row = 1, .next = ROWS,
                                    .b = j->packed + i * j->n, .ldb = COLUMNS, .c = j->dw + o * j->in + i, .ldc = j->in};
                if (i + COLUMNS <= j->in)
                    multiply_rows(&q, least(ROWS, j->out - o), j->accumulate);
                else
                    multiply_edge(&q, least(ROWS, j->out - o), j->in - i, j->accumulate);
            }
}

static struct job job_of(struct pl_plan *p, const struct pl_io *io) {
    return (struct job){.n = p->op.x[0].dim[0], .out = p->op.p[0].dim[0], .in = p->op.p[0].dim[1], .x = io->x[0], .w = io->p[0],
                        .dy = io->dy, .y = io->y, .dw = io->dp[0], .accumulate = io->accumulate,
                        .packed = (float *)(void *)p->backend->scratch};
}

void pl_cpu_dense_narrow_forward(struct pl_plan *p, const struct pl_io *io) {
    struct job j = job_of(p, io);
    j.bias = p->op.bias ? io->p[1] : NULL;
    j.turned = j.packed + up(j.n, COLUMNS) * j.in;
    pl_cpu_parts(p->backend, j.in, PL_CPU_GRAIN / j.n + 1, pack_samples, &j);
    pl_cpu_parts(p->backend, up(j.out, ROWS) / ROWS, 8, forward_part, &j);
}

void pl_cpu_dense_narrow_weights(struct pl_plan *p, const struct pl_io *io) {
    struct job j = job_of(p, io);
    j.turned = j.packed + up(j.in, COLUMNS) * j.n;
    pl_cpu_parts(p->backend, up(j.in, COLUMNS) / COLUMNS, PL_CPU_GRAIN / COLUMNS / j.n + 1, pack_inputs, &j);
    pl_cpu_parts(p->backend, up(j.out, ROWS) / ROWS, PL_CPU_GRAIN / ROWS / j.n + 1, pack_units, &j);
    pl_cpu_parts(p->backend, up(j.out, ROWS) / ROWS, 8, weights_part, &j);
}
