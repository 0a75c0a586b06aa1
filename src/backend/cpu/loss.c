/* loss: softmax with cross-entropy, sigmoid with cross-entropy, squared distance. Rows are cut over
 * the threads, each row's loss is computed in double, and the rows are added in their order by the
 * caller's thread, so the sum does not depend on the threads. Backward gives sums over rows, not
 * means: dx of a row is the gradient of its own loss times the weight; of a padding row, or a position
 * without a label, it is 0. */
#include "backend/cpu/cpu.h"

#include <math.h>
#include <string.h>

struct row_loss {
    double loss;
    bool correct, correct5, wrong_label;
};

struct state {
    int64_t columns;
    struct row_loss *row; /* [N] of the last forward */
    double *share;        /* [samples] what a labelled position counts, in this pass; NULL: 1 */
};

struct job {
    const struct pl_plan *p;
    const struct pl_op *op;
    const struct state *s;
    const struct pl_io *io;
};

static int32_t class_of(const struct job *j, int64_t n) { return ((const int32_t *)j->io->label)[n]; }
static bool no_label(const struct job *j, int64_t n) { return j->s->share != NULL && class_of(j, n) == PL_NO_LABEL; }

static pl_status plan(struct pl_plan *p) {
    const struct pl_op *op = &p->op;
    int64_t columns = pl_shape_row_elems(&op->x[0]), rows = op->x[0].dim[0];
    if (op->kind == PL_OP_SOFTMAX_LOSS && (op->x[0].dims < 2 || op->x[0].dim[1] != columns))
        return pl_cpu_refuse(op, "its input is not one number a class");
    if (op->kind != PL_OP_SOFTMAX_LOSS && op->label_floats == 0 && columns != 1)
        return pl_cpu_refuse(op, "integer labels need one number a sample");
    bool positions = op->kind == PL_OP_SOFTMAX_LOSS && op->positions > 0;
    size_t samples = positions ? (size_t)(rows / op->positions) : 0;
    struct state *s = pl_alloc(sizeof *s + (size_t)rows * sizeof *s->row + samples * sizeof *s->share, "a loss's plan");
    if (s == NULL)
        return PL_ERR_MEMORY;
    p->state = s;
    s->columns = columns;
    s->row = (struct row_loss *)(void *)(s + 1);
    s->share = positions ? (double *)(void *)(s->row + rows) : NULL;
    return PL_OK;
}

static void count_labels(struct pl_plan *p, const struct pl_io *io) {
    struct state *s = p->state;
    int64_t each = p->op.positions;
    for (int64_t i = 0; s->share != NULL && io->label != NULL && i < io->rows / each; i++)
        s->share[i] = pl_label_share((const int32_t *)io->label + i * each, each);
}

static double share_of(const struct pl_plan *p, int64_t n) {
    const struct state *s = p->state;
    return s->share != NULL ? s->share[n / p->op.positions] : 1.0;
}

/* y = softmax(x), and the logarithm of its denominator before the maximum was taken off */
static double softmax_row(const float *x, int64_t columns, float *y) {
    float most = x[0];
    for (int64_t c = 1; c < columns; c++)
        most = x[c] > most ? x[c] : most;
    double sum = 0.0;
    for (int64_t c = 0; c < columns; c++) {
        double e = exp((double)x[c] - (double)most);
        y[c] = (float)e;
        sum += e;
    }
    double inverse = 1.0 / sum;
    for (int64_t c = 0; c < columns; c++)
        y[c] = (float)((double)y[c] * inverse);
    return log(sum) + (double)most;
}

static void rank_row(const float *x, int64_t columns, int32_t label, struct row_loss *out) {
    int64_t above = 0;
    for (int64_t c = 0; c < columns; c++)
        above += x[c] > x[label] || (x[c] == x[label] && c < label);
    bool number = x[label] == x[label];
    out->correct = number && above == 0;
    out->correct5 = number && above < 5;
}

static void softmax_rows(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    int64_t columns = j->s->columns;
    for (int64_t n = begin; n < end; n++) {
        const float *x = j->io->x[0] + n * columns;
        struct row_loss *out = &j->s->row[n];
        double lse = softmax_row(x, columns, j->io->y + n * columns);
        *out = (struct row_loss){0};
        if (j->io->label == NULL || n >= j->io->rows || no_label(j, n))
            continue;
        int32_t label = class_of(j, n);
        out->wrong_label = label < 0 || label >= columns;
        if (out->wrong_label)
            continue;
        double share = j->op->smoothing, all = 0.0;
        for (int64_t c = 0; share > 0.0 && c < columns; c++)
            all += (double)x[c];
        out->loss = lse - (1.0 - share) * (double)x[label] - share / (double)columns * all;
        rank_row(x, columns, label, out);
    }
}

static double target(const struct job *j, int64_t n, int64_t k) {
    if (j->op->label_floats > 0)
        return (double)((const float *)j->io->label)[n * j->s->columns + k];
    return (double)((const int32_t *)j->io->label)[n];
}

static void sigmoid_rows(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    for (int64_t n = begin; n < end; n++) {
        const float *x = j->io->x[0] + n * j->s->columns;
        struct row_loss *out = &j->s->row[n];
        *out = (struct row_loss){0};
        bool count = j->io->label != NULL && n < j->io->rows, right = true;
        for (int64_t k = 0; k < j->s->columns; k++) {
            double v = (double)x[k], e = exp(-fabs(v));
            j->io->y[n * j->s->columns + k] = (float)(v >= 0 ? 1.0 / (1.0 + e) : e / (1.0 + e));
            if (!count)
                continue;
            double t = target(j, n, k);
            out->loss += (v > 0 ? v : 0) - v * t + log1p(e) + (v - v);
            right = right && (v > 0) == (t > 0.5);
        }
        out->correct = out->correct5 = count && right;
    }
}

static void euclidean_rows(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    int64_t columns = j->s->columns;
    for (int64_t n = begin; n < end; n++) {
        const float *x = j->io->x[0] + n * columns;
        double sum = 0.0;
        if (j->io->y != x - n * columns)
            memcpy(j->io->y + n * columns, x, (size_t)columns * sizeof *x);
        for (int64_t k = 0; j->io->label != NULL && n < j->io->rows && k < columns; k++) {
            double d = (double)x[k] - target(j, n, k);
            sum += d * d;
        }
        j->s->row[n] = (struct row_loss){.loss = sum / 2};
    }
}

static pl_status forward(struct pl_plan *p, const struct pl_io *io) {
    struct state *s = p->state;
    struct job j = {p, &p->op, s, io};
    count_labels(p, io);
    pl_cpu_part_fn *body = p->op.kind == PL_OP_SOFTMAX_LOSS   ? softmax_rows
                           : p->op.kind == PL_OP_SIGMOID_LOSS ? sigmoid_rows
                                                              : euclidean_rows;
    pl_cpu_parts(p->backend, p->op.x[0].dim[0], PL_CPU_GRAIN / 16 / s->columns + 1, body, &j);
    if (io->label == NULL || io->sums == NULL)
        return PL_OK;
    for (int64_t n = 0; n < io->rows; n++) {
        if (s->row[n].wrong_label)
            return pl_error(PL_ERR_DATA, "backend", "layer %s: label %d is not one of %lld classes",
                            p->op.name, ((const int32_t *)io->label)[n], (long long)s->columns);
        double share = share_of(p, n), loss = share * s->row[n].loss;
        io->sums->loss += loss;
        io->sums->total += p->op.weight * loss;
        io->sums->correct += s->row[n].correct ? share : 0;
        io->sums->correct5 += s->row[n].correct5 ? share : 0;
    }
    io->sums->rows += io->rows;
    return PL_OK;
}

/* dx = weight * (y - target) for all three */
static void backward_rows(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct job *j = arg;
    int64_t columns = j->s->columns;
    for (int64_t n = begin; n < end; n++) {
        float *dx = j->io->dx[0] + n * columns;
        const float *y = j->io->y + n * columns;
        if (n >= j->io->rows || no_label(j, n)) {
            memset(dx, 0, (size_t)columns * sizeof *dx);
            continue;
        }
        if (j->op->kind == PL_OP_SOFTMAX_LOSS) {
            int32_t label = class_of(j, n);
            if (dx != y)
                memcpy(dx, y, (size_t)columns * sizeof *dx);
            float share = (float)(j->op->smoothing / (double)columns);
            for (int64_t k = 0; share > 0.0f && k < columns; k++)
                dx[k] -= share;
            if (label >= 0 && label < columns)
                dx[label] -= (float)(1.0 - j->op->smoothing);
        } else {
            for (int64_t k = 0; k < columns; k++)
                dx[k] = (float)((double)y[k] - target(j, n, k));
        }
        float weight = (float)(j->op->weight * share_of(j->p, n));
        for (int64_t k = 0; weight != 1.0f && k < columns; k++)
            dx[k] *= weight;
    }
}

static pl_status backward(struct pl_plan *p, const struct pl_io *io) {
    struct state *s = p->state;
    struct job j = {p, &p->op, s, io};
    count_labels(p, io); /* another batch may have come in between */
    if (p->op.need_dx[0] && io->dx[0] != NULL)
        pl_cpu_parts(p->backend, p->op.x[0].dim[0], PL_CPU_GRAIN / s->columns + 1, backward_rows,
                     &j);
    return PL_OK;
}

const struct pl_cpu_kind pl_cpu_softmax_loss = {.plan = plan, .destroy = pl_cpu_destroy_state, .forward = forward, .backward = backward};
const struct pl_cpu_kind pl_cpu_sigmoid_loss = {.plan = plan, .destroy = pl_cpu_destroy_state, .forward = forward, .backward = backward};
const struct pl_cpu_kind pl_cpu_euclidean_loss = {.plan = plan, .destroy = pl_cpu_destroy_state, .forward = forward, .backward = backward};
