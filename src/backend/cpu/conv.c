/* conv: convolution by im2col and matrix products (Chellapilla et al. 2006; Caffe), sample by
 * sample, parts of the batch on the pool's threads. The columns are made for a band of output rows
 * at a time, so that they are still in the second-level cache when the product reads them.
 *
 * A thread sums the weight gradient of its samples into a copy of its own; the copies are added in
 * the order of the parts. Passes that oneDNN does better go there (conv_dnnl.c), 3x3 and 5x5
 * convolutions of stride 1 to minimal filtering (conv_winograd.c). */
#include "backend/cpu/cpu.h"
#include "backend/cpu/im2col.h"

#include <string.h>

#define BAND_BYTES (256 * 1024)

struct state {
    struct pl_cpu_window w;
    int64_t samples, groups, out; /* out: channels of a group */
    int64_t depth;                /* rows of the column matrix: channels of a group * kh * kw */
    int64_t band;                 /* output rows in one column matrix */
    bool pointwise;               /* 1x1, stride 1, no padding: the input is the column matrix */
    int parts;
    int64_t columns_elems, weight_elems; /* of one part's scratch */
    struct pl_cpu_winograd *winograd; /* NULL: not for it */
    struct pl_cpu_conv_dnnl *dnnl;
};

struct run {
    const struct state *s;
    const struct pl_io *io;
    float *scratch; /* parts x columns, then (parts - 1) x weights */
    bool bias;
};

static int64_t x_group(const struct state *s) { return s->w.c * s->w.h * s->w.w; }
static int64_t y_group(const struct state *s) { return s->out * s->w.oh * s->w.ow; }

static pl_status check(const struct pl_op *op) {
    struct pl_cpu_dims x = pl_cpu_dims(&op->x[0]), y = pl_cpu_dims(&op->y);
    const int64_t *w = op->p[0].dim;
    if (op->groups < 1 || x.c % op->groups || y.c % op->groups)
        return pl_cpu_refuse(op, "its channels do not divide into its groups");
    if (w[0] != y.c || w[1] != x.c / op->groups || w[2] != op->kernel[0] || w[3] != op->kernel[1])
        return pl_cpu_refuse(op, "input, output and weight do not fit together");
    return pl_cpu_gemm_check(op, y.c, y.h * y.w, w[1] * w[2] * w[3]);
}

static pl_status plan(struct pl_plan *p) {
    const struct pl_op *op = &p->op;
    PL_TRY(check(op));
    struct state *s = pl_alloc(sizeof *s, "a convolution's plan");
    if (s == NULL)
        return PL_ERR_MEMORY;
    p->state = s;
    s->w = pl_cpu_window(op);
    s->groups = op->groups;
    s->w.c /= s->groups;
    s->out = op->y.dim[1] / s->groups;
    s->samples = op->x[0].dim[0];
    s->depth = s->w.c * s->w.kh * s->w.kw;
    s->pointwise = pl_cpu_window_is_identity(&s->w);
    s->band = BAND_BYTES / 4 / (s->depth * s->w.ow) + 1;
    if (s->band > s->w.oh || s->pointwise)
        s->band = s->w.oh;
    s->parts = p->backend->blas_parallel ? pl_cpu_part_count(p->backend, s->samples, 1) : 1;
    s->columns_elems = s->pointwise ? 0 : (s->depth * s->band * s->w.ow + 15) / 16 * 16;
    s->weight_elems = (pl_shape_elems(&op->p[0]) + op->y.dim[1] + 15) / 16 * 16;
    s->winograd = pl_cpu_winograd_create(p);
    if (s->winograd == NULL)
        s->dnnl = pl_cpu_conv_dnnl_create(p);
    if (s->winograd == NULL && op->ly.block > 1 && !pl_cpu_conv_dnnl_whole(s->dnnl, op))
        return pl_cpu_refuse(op, "oneDNN no longer offers the layout that it asked for");
    int64_t elems = s->parts * s->columns_elems;
    if (op->train)
        elems += (s->parts - 1) * s->weight_elems;
    return pl_cpu_scratch(p->backend, (size_t)elems * sizeof(float));
}

static void destroy(struct pl_plan *p) {
    struct state *s = p->state;
    if (s != NULL) {
        pl_cpu_winograd_destroy(s->winograd);
        pl_cpu_conv_dnnl_destroy(s->dnnl);
    }
    pl_free(s);
}

/* y[o, P] = b[o] */
static void fill_bias(const struct run *r, int64_t channel, float *y) {
    int64_t plane = r->s->w.oh * r->s->w.ow;
    for (int64_t o = 0; o < r->s->out; o++)
        for (int64_t i = 0; i < plane; i++)
            y[o * plane + i] = r->io->p[1][channel + o];
}

/* The column matrix [depth, rows * ow] of a band of output rows; *ld is its row length. */
static const float *columns(const struct run *r, int part, const float *x, int64_t row,
                            int64_t rows, int64_t *ld) {
    const struct state *s = r->s;
    *ld = rows * s->w.ow;
    if (s->pointwise)
        return x;
    float *col = r->scratch + part * s->columns_elems;
    pl_cpu_im2col(&s->w, x, row, row + rows, col);
    return col;
}

static void forward_part(void *arg, int part, int64_t begin, int64_t end) {
    const struct run *r = arg;
    const struct state *s = r->s;
    int64_t plane = s->w.oh * s->w.ow, ld;
    for (int64_t i = begin * s->groups; i < end * s->groups; i++) {
        int64_t g = i % s->groups;
        const float *x = r->io->x[0] + i * x_group(s);
        float *y = r->io->y + i * y_group(s);
        if (r->bias)
            fill_bias(r, g * s->out, y);
        for (int64_t row = 0; row < s->w.oh; row += s->band) {
            int64_t rows = row + s->band < s->w.oh ? s->band : s->w.oh - row;
            const float *col = columns(r, part, x, row, rows, &ld);
            pl_cpu_gemm_here(&(struct pl_cpu_gemm){
                .m = s->out, .n = ld, .k = s->depth, .a = r->io->p[0] + g * s->out * s->depth,
                .lda = s->depth, .b = col, .ldb = ld, .beta = r->bias ? 1.0f : 0.0f,
                .c = y + row * s->w.ow, .ldc = plane});
        }
    }
}

static struct run run_of(struct pl_plan *p, const struct pl_io *io, bool bias) {
    return (struct run){p->state, io, (float *)(void *)p->backend->scratch, bias};
}

static void run_parts(struct pl_plan *p, struct run *r, pl_cpu_part_fn *body) {
    if (r->s->parts == 1)
        body(r, 0, 0, r->s->samples);
    else
        pl_cpu_parts(p->backend, r->s->samples, 1, body, r);
}

static pl_status forward(struct pl_plan *p, const struct pl_io *io) {
    struct state *s = p->state;
    pl_status status = PL_OK;
    if (s->winograd != NULL) {
        pl_cpu_winograd_forward(s->winograd, io);
        return PL_OK;
    }
    if (pl_cpu_conv_dnnl_forward(s->dnnl, io, &status))
        return status;
    struct run r = run_of(p, io, p->op.bias);
    run_parts(p, &r, forward_part);
    return PL_OK;
}

/* A part's own weight and bias gradient: the plan's for the first, scratch for the others. */
static float *part_weights(const struct run *r, int part, bool bias) {
    const struct state *s = r->s;
    if (part == 0)
        return r->io->dp[bias];
    float *w = r->scratch + s->parts * s->columns_elems + (part - 1) * s->weight_elems;
    return bias ? w + s->groups * s->out * s->depth : w;
}

PL_CLONES
static void sum_planes(const float *dy, int64_t channels, int64_t plane, float *db) {
    for (int64_t o = 0; o < channels; o++) {
        float lane[16] = {0};
        const float *d = dy + o * plane;
        int64_t i = 0;
        for (; i + 16 <= plane; i += 16)
            for (int k = 0; k < 16; k++)
                lane[k] += d[i + k];
        for (; i < plane; i++)
            lane[0] += d[i];
        float sum = 0.0f;
        for (int k = 0; k < 16; k++)
            sum += lane[k];
        db[o] += sum;
    }
}

static void weights_part(void *arg, int part, int64_t begin, int64_t end) {
    const struct run *r = arg;
    const struct state *s = r->s;
    int64_t plane = s->w.oh * s->w.ow, matrix = s->out * s->depth, ld;
    float *dw = part_weights(r, part, false), *db = r->bias ? part_weights(r, part, true) : NULL;
    bool fresh = part > 0 || !r->io->accumulate;
    if (db != NULL && fresh)
        memset(db, 0, (size_t)(s->groups * s->out) * sizeof *db);
    for (int64_t i = begin * s->groups; i < end * s->groups; i++) {
        int64_t g = i % s->groups;
        const float *x = r->io->x[0] + i * x_group(s), *dy = r->io->dy + i * y_group(s);
        for (int64_t row = 0; row < s->w.oh; row += s->band) {
            int64_t rows = row + s->band < s->w.oh ? s->band : s->w.oh - row;
            const float *col = columns(r, part, x, row, rows, &ld);
            pl_cpu_gemm_here(&(struct pl_cpu_gemm){
                .tb = true, .m = s->out, .n = s->depth, .k = ld, .a = dy + row * s->w.ow,
                .lda = plane, .b = col, .ldb = ld,
                .beta = fresh && row == 0 && i / s->groups == begin ? 0.0f : 1.0f,
                .c = dw + g * matrix, .ldc = s->depth});
        }
        if (db != NULL)
            sum_planes(dy, s->out, plane, db + g * s->out);
    }
}

struct merge {
    const struct run *r;
    bool bias;
};

PL_CLONES
static void merge_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct merge *m = arg;
    float *sum = part_weights(m->r, 0, m->bias);
    for (int q = 1; q < m->r->s->parts; q++) {
        const float *more = part_weights(m->r, q, m->bias);
        for (int64_t i = begin; i < end; i++)
            sum[i] += more[i];
    }
}

static void weight_gradient(struct pl_plan *p, const struct pl_io *io) {
    const struct state *s = p->state;
    struct run r = run_of(p, io, p->op.bias && io->dp[1] != NULL);
    run_parts(p, &r, weights_part);
    if (s->parts == 1)
        return;
    struct merge m = {&r, false};
    pl_cpu_parts(p->backend, s->groups * s->out * s->depth, PL_CPU_GRAIN, merge_part, &m);
    m.bias = true;
    if (r.bias)
        pl_cpu_parts(p->backend, s->groups * s->out, PL_CPU_GRAIN, merge_part, &m);
}

static void data_part(void *arg, int part, int64_t begin, int64_t end) {
    const struct run *r = arg;
    const struct state *s = r->s;
    int64_t plane = s->w.oh * s->w.ow;
    for (int64_t i = begin * s->groups; i < end * s->groups; i++) {
        const float *w = r->io->p[0] + i % s->groups * s->out * s->depth;
        const float *dy = r->io->dy + i * y_group(s);
        float *dx = r->io->dx[0] + i * x_group(s);
        float *col = s->pointwise ? dx : r->scratch + part * s->columns_elems;
        if (!s->pointwise)
            memset(dx, 0, (size_t)x_group(s) * sizeof *dx);
        for (int64_t row = 0; row < s->w.oh; row += s->band) {
            int64_t rows = row + s->band < s->w.oh ? s->band : s->w.oh - row;
            int64_t ld = rows * s->w.ow;
            pl_cpu_gemm_here(&(struct pl_cpu_gemm){
                .ta = true, .m = s->depth, .n = ld, .k = s->out, .a = w, .lda = s->depth,
                .b = dy + row * s->w.ow, .ldb = plane, .c = col, .ldc = ld});
            if (!s->pointwise)
                pl_cpu_col2im_add(&s->w, col, row, row + rows, dx);
        }
    }
}

static pl_status backward(struct pl_plan *p, const struct pl_io *io) {
    struct state *s = p->state;
    pl_status status = PL_OK;
    bool data = p->op.need_dx[0] && io->dx[0] != NULL;
    if (s->winograd != NULL)
        data = !pl_cpu_winograd_backward(s->winograd, io) && data;
    else if (io->dp[0] != NULL && !pl_cpu_conv_dnnl_weights(s->dnnl, io, &status))
        weight_gradient(p, io);
    PL_TRY(status);
    struct run r = run_of(p, io, false);
    if (data && !pl_cpu_conv_dnnl_data(s->dnnl, io, &status))
        run_parts(p, &r, data_part);
    return status;
}

const struct pl_cpu_kind pl_cpu_conv = {
    .layouts = PL_CPU_OWN, .plan = plan, .destroy = destroy, .forward = forward, .backward = backward};
