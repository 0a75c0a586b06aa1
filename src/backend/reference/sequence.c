/* Embeddings, the recurrent cells, position after position, then back, and attention. */
#include "backend/reference/reference.h"

#include <math.h>
#include <string.h>

static void embedding_forward(struct pl_plan *p, const struct pl_io *io)
{
    int64_t positions = pl_shape_elems(&p->op.x[0]), entries = p->op.p[0].dim[0], D = p->op.p[0].dim[1];
    for (int64_t i = 0; i < positions; i++) {
        int64_t id = (int64_t)io->x[0][i];
        if (id < 0 || id >= entries) {
            p->status = pl_error(PL_ERR_DATA, "backend", "layer %s: %lld is not one of %lld entries", p->op.name, (long long)id, (long long)entries);
            return;
        }
        for (int64_t d = 0; d < D; d++)
            io->y[i * D + d] = io->p[0][id * D + d];
    }
}

static size_t embedding_saved(const struct pl_op *op) { return (size_t)pl_shape_elems(&op->p[0]); }

static void embedding_backward(struct pl_plan *p, const struct pl_io *io)
{
    int64_t positions = io->rows * pl_shape_row_elems(&p->op.x[0]), n = pl_shape_elems(&p->op.p[0]), D = p->op.p[0].dim[1];
    for (int64_t i = 0; i < n; i++)
        p->saved[i] = 0;
    for (int64_t i = 0; i < positions; i++)
        for (int64_t d = 0; d < D; d++)
            p->saved[(int64_t)io->x[0][i] * D + d] += io->dy[i * D + d];
    for (int64_t i = 0; i < n; i++)
        ref_put(&io->dp[0][i], p->saved[i], io->accumulate);
}

static void position_forward(struct pl_plan *p, const struct pl_io *io)
{
    int64_t row = pl_shape_elems(&p->op.p[0]);
    for (int64_t i = 0; i < pl_shape_elems(&p->op.y); i++)
        io->y[i] = io->x[0][i] + io->p[0][i % row];
}

static size_t position_saved(const struct pl_op *op) { return (size_t)pl_shape_elems(&op->p[0]); }

static void position_backward(struct pl_plan *p, const struct pl_io *io)
{
    int64_t row = pl_shape_elems(&p->op.p[0]), n = io->rows * row;
    for (int64_t i = 0; i < row; i++)
        p->saved[i] = 0;
    for (int64_t i = 0; i < n; i++)
        p->saved[i % row] += io->dy[i];
    for (int64_t i = 0; i < row; i++)
        ref_put(&io->dp[0][i], p->saved[i], io->accumulate);
    if (io->dx[0])
        memcpy(io->dx[0], io->dy, (size_t)pl_shape_elems(&p->op.y) * sizeof(float));
}

/* ---- recurrent cells ------------------------------------------------------------------------- */

enum { W, U, B, BU }; /* parameters: of x, of h, their biases */

struct sizes { int64_t n, t, i, h, z; }; /* samples, positions, features, units, gates * units */
static struct sizes sizes_of(const struct pl_op *op)
{
    return (struct sizes){op->x[0].dim[0], op->x[0].dim[1], op->x[0].dim[2], op->p[U].dim[1], op->p[U].dim[0]};
}

/* What forward leaves of a position, and what backward adds up. */
struct kept {
    double *gate; /* [z] activated */
    double *un;   /* [h] gru: U h + bu of n */
    double *c, *h;
};
static int64_t kept_elems(const struct sizes *s) { return s->z + 3 * s->h; }
static struct kept kept_at(const struct pl_plan *p, const struct sizes *s, int64_t n, int64_t t)
{
    double *at = p->saved + (n * s->t + t) * kept_elems(s);
    return (struct kept){at, at + s->z, at + s->z + s->h, at + s->z + 2 * s->h};
}

static int64_t param_elems(const struct pl_op *op)
{
    int64_t n = 0;
    for (int k = 0; k < op->params; k++)
        n += pl_shape_elems(&op->p[k]);
    return n;
}

static size_t cell_saved(const struct pl_op *op)
{
    struct sizes s = sizes_of(op);
    return (size_t)(s.n * s.t * kept_elems(&s) + param_elems(op) + 2 * s.z + 3 * s.h);
}

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

/* W x + b of gate row k, and U h + bu. */
static double from_input(const struct pl_plan *p, const struct pl_io *io, const float *x, int64_t k)
{
    double sum = p->op.bias ? io->p[B][k] : 0;
    for (int64_t i = 0; i < p->op.p[W].dim[1]; i++)
        sum += (double)io->p[W][k * p->op.p[W].dim[1] + i] * x[i];
    return sum;
}
static double from_state(const struct pl_plan *p, const struct pl_io *io, const double *h, int64_t k)
{
    double sum = p->op.bias ? io->p[BU][k] : 0;
    for (int64_t i = 0; h && i < p->op.p[U].dim[1]; i++)
        sum += (double)io->p[U][k * p->op.p[U].dim[1] + i] * h[i];
    return sum;
}

static void lstm_at(struct pl_plan *p, const struct pl_io *io, const float *x, const struct kept *before, const struct kept *now)
{
    int64_t H = p->op.p[U].dim[1];
    for (int64_t k = 0; k < 4 * H; k++) {
        double z = from_input(p, io, x, k) + from_state(p, io, before ? before->h : NULL, k);
        now->gate[k] = k / H == 2 ? tanh(z) : sigmoid(z);
    }
    for (int64_t k = 0; k < H; k++) {
        const double *g = now->gate + k;
        now->c[k] = g[H] * (before ? before->c[k] : 0) + g[0] * g[2 * H];
        now->h[k] = g[3 * H] * tanh(now->c[k]);
    }
}

static void gru_at(struct pl_plan *p, const struct pl_io *io, const float *x, const struct kept *before, const struct kept *now)
{
    int64_t H = p->op.p[U].dim[1];
    const double *h = before ? before->h : NULL;
    for (int64_t k = 0; k < 2 * H; k++)
        now->gate[k] = sigmoid(from_input(p, io, x, k) + from_state(p, io, h, k));
    for (int64_t k = 0; k < H; k++) {
        double *g = now->gate + k;
        now->un[k] = from_state(p, io, h, 2 * H + k);
        g[2 * H] = tanh(from_input(p, io, x, 2 * H + k) + g[0] * now->un[k]);
        now->h[k] = (1 - g[H]) * g[2 * H] + g[H] * (h ? h[k] : 0);
    }
}

static void cell_forward(struct pl_plan *p, const struct pl_io *io)
{
    struct sizes s = sizes_of(&p->op);
    for (int64_t n = 0; n < s.n; n++)
        for (int64_t t = 0; t < s.t; t++) {
            struct kept now = kept_at(p, &s, n, t), before = {0};
            if (t > 0)
                before = kept_at(p, &s, n, t - 1);
            (p->op.kind == PL_OP_LSTM ? lstm_at : gru_at)(p, io, io->x[0] + (n * s.t + t) * s.i, t > 0 ? &before : NULL, &now);
            for (int64_t k = 0; k < s.h; k++) {
                if (!p->op.last)
                    io->y[(n * s.t + t) * s.h + k] = (float)now.h[k];
                else if (t == s.t - 1)
                    io->y[n * s.h + k] = (float)now.h[k];
            }
        }
}

/* Gradients by what goes into the gates: dz by W x + b, du by U h + bu; dh becomes what reaches h before besides U, dc likewise. */
static void lstm_slopes(const struct sizes *s, const struct kept *before, const struct kept *now, double *dh, double *dc, double *dz, double *du)
{
    for (int64_t k = 0; k < s->h; k++) {
        double i = now->gate[k], f = now->gate[s->h + k], g = now->gate[2 * s->h + k], o = now->gate[3 * s->h + k], c = tanh(now->c[k]);
        double d = dc[k] + dh[k] * o * (1 - c * c);
        dz[k] = d * g * i * (1 - i);
        dz[s->h + k] = d * (before ? before->c[k] : 0) * f * (1 - f);
        dz[2 * s->h + k] = d * i * (1 - g * g);
        dz[3 * s->h + k] = dh[k] * c * o * (1 - o);
        dc[k] = d * f;
        dh[k] = 0;
    }
    for (int64_t k = 0; k < s->z; k++)
        du[k] = dz[k];
}

static void gru_slopes(const struct sizes *s, const struct kept *before, const struct kept *now, double *dh, double *dc, double *dz, double *du)
{
    (void)dc;
    for (int64_t k = 0; k < s->h; k++) {
        double r = now->gate[k], z = now->gate[s->h + k], n = now->gate[2 * s->h + k];
        double dn = dh[k] * (1 - z) * (1 - n * n);
        dz[k] = du[k] = dn * now->un[k] * r * (1 - r);
        dz[s->h + k] = du[s->h + k] = dh[k] * ((before ? before->h[k] : 0) - n) * z * (1 - z);
        dz[2 * s->h + k] = dn;
        du[2 * s->h + k] = dn * r;
        dh[k] *= z;
    }
}

static void add_gradients(const struct pl_plan *p, const struct sizes *s, const float *x, const double *h, const double *dz, const double *du, double *dp)
{
    double *dw = dp, *dU = dw + s->z * s->i, *db = dU + s->z * s->h, *dbu = db + s->z;
    for (int64_t k = 0; k < s->z; k++) {
        for (int64_t i = 0; i < s->i; i++)
            dw[k * s->i + i] += dz[k] * x[i];
        for (int64_t i = 0; h && i < s->h; i++)
            dU[k * s->h + i] += du[k] * h[i];
        if (p->op.bias) {
            db[k] += dz[k];
            dbu[k] += du[k];
        }
    }
}

static void sample_backward(struct pl_plan *p, const struct pl_io *io, const struct sizes *s, int64_t n, double *dp, double *scratch)
{
    double *dz = scratch, *du = dz + s->z, *dh = du + s->z, *dc = dh + s->h;
    for (int64_t k = 0; k < s->h; k++)
        dh[k] = dc[k] = 0;
    for (int64_t t = s->t - 1; t >= 0; t--) {
        struct kept now = kept_at(p, s, n, t), before = {0};
        const float *x = io->x[0] + (n * s->t + t) * s->i;
        if (t > 0)
            before = kept_at(p, s, n, t - 1);
        for (int64_t k = 0; k < s->h && (!p->op.last || t == s->t - 1); k++)
            dh[k] += io->dy[p->op.last ? n * s->h + k : (n * s->t + t) * s->h + k];
        (p->op.kind == PL_OP_LSTM ? lstm_slopes : gru_slopes)(s, t > 0 ? &before : NULL, &now, dh, dc, dz, du);
        add_gradients(p, s, x, t > 0 ? before.h : NULL, dz, du, dp);
        for (int64_t k = 0; k < s->z; k++)
            for (int64_t i = 0; i < s->h; i++)
                dh[i] += du[k] * io->p[U][k * s->h + i];
        for (int64_t i = 0; io->dx[0] && i < s->i; i++) {
            double sum = 0;
            for (int64_t k = 0; k < s->z; k++)
                sum += dz[k] * io->p[W][k * s->i + i];
            io->dx[0][(n * s->t + t) * s->i + i] = (float)sum;
        }
    }
}

static void cell_backward(struct pl_plan *p, const struct pl_io *io)
{
    struct sizes s = sizes_of(&p->op);
    double *dp = p->saved + s.n * s.t * kept_elems(&s), *at = dp;
    int64_t elems = param_elems(&p->op);
    for (int64_t i = 0; i < elems; i++)
        dp[i] = 0;
    for (int64_t n = 0; n < s.n; n++)
        sample_backward(p, io, &s, n, dp, dp + elems);
    for (int k = 0; k < p->op.params; k++)
        for (int64_t i = 0; i < pl_shape_elems(&p->op.p[k]); i++)
            ref_put(&io->dp[k][i], *at++, io->accumulate);
}

/* ---- attention ------------------------------------------------------------------------------- */

/* One head of one sample: a position's row of each begins `stride` behind the one before. */
struct head {
    int64_t positions, d, stride, first; /* first: of Q in a row of x, and of y */
    double scale, *weight;               /* [T]: what a position takes from each */
    bool causal;
};

/* A position's weights and their slopes, and a sample's gradient. */
static size_t attention_saved(const struct pl_op *op) { return (size_t)(2 * op->x[0].dim[1] + pl_shape_row_elems(&op->x[0])); }

static struct head head_of(const struct pl_plan *p, int64_t k)
{
    int64_t t = p->op.x[0].dim[1], features = p->op.y.dim[2], d = features / p->op.heads;
    return (struct head){.positions = t, .d = d, .stride = features, .first = k * d, .scale = 1 / sqrt((double)d), .causal = p->op.causal, .weight = p->saved};
}

enum { Q, K, V };
/* Where number `which` of queries, keys or values of position t begins, in a sample's x. */
static int64_t at(const struct head *h, int which, int64_t t) { return (3 * t + which) * h->stride + h->first; }
static int64_t seen(const struct head *h, int64_t t) { return h->causal ? t + 1 : h->positions; }

static void weigh(const struct head *h, const float *x, int64_t t)
{
    double *w = h->weight, most = -INFINITY, sum = 0;
    for (int64_t s = 0; s < seen(h, t); s++) {
        w[s] = 0;
        for (int64_t i = 0; i < h->d; i++)
            w[s] += h->scale * x[at(h, Q, t) + i] * x[at(h, K, s) + i];
        most = w[s] > most ? w[s] : most;
    }
    for (int64_t s = 0; s < seen(h, t); s++)
        sum += w[s] = exp(w[s] - most);
    for (int64_t s = 0; s < seen(h, t); s++)
        w[s] /= sum;
}

static void attention_forward(struct pl_plan *p, const struct pl_io *io)
{
    for (int64_t n = 0; n < p->op.x[0].dim[0]; n++)
        for (int64_t k = 0; k < p->op.heads; k++) {
            struct head h = head_of(p, k);
            const float *x = io->x[0] + n * pl_shape_row_elems(&p->op.x[0]);
            float *y = io->y + n * pl_shape_row_elems(&p->op.y);
            for (int64_t t = 0; t < h.positions; t++) {
                weigh(&h, x, t);
                for (int64_t i = 0; i < h.d; i++) {
                    double sum = 0;
                    for (int64_t s = 0; s < seen(&h, t); s++)
                        sum += h.weight[s] * x[at(&h, V, s) + i];
                    y[t * h.stride + h.first + i] = (float)sum;
                }
            }
        }
}

/* Gradients by the scores, before the softmax, over the weights of position t; dy of that position. */
static void slopes(const struct head *h, const float *x, const float *dy, int64_t t, double *ds)
{
    const double *w = h->weight;
    double dot = 0;
    for (int64_t s = 0; s < seen(h, t); s++) {
        ds[s] = 0;
        for (int64_t i = 0; i < h->d; i++)
            ds[s] += dy[i] * x[at(h, V, s) + i];
        dot += ds[s] * w[s];
    }
    for (int64_t s = 0; s < seen(h, t); s++)
        ds[s] = w[s] * (ds[s] - dot) * h->scale;
}

/* dx: [T, 3F] of the sample, zeroed. */
static void head_backward(const struct head *h, const float *x, const float *dy, double *ds, double *dx)
{
    for (int64_t t = 0; t < h->positions; t++) {
        const float *dy_t = dy + t * h->stride + h->first;
        weigh(h, x, t);
        slopes(h, x, dy_t, t, ds);
        for (int64_t s = 0; s < seen(h, t); s++)
            for (int64_t i = 0; i < h->d; i++) {
                dx[at(h, Q, t) + i] += ds[s] * x[at(h, K, s) + i];
                dx[at(h, K, s) + i] += ds[s] * x[at(h, Q, t) + i];
                dx[at(h, V, s) + i] += h->weight[s] * dy_t[i];
            }
    }
}

static void attention_backward(struct pl_plan *p, const struct pl_io *io)
{
    int64_t row = pl_shape_row_elems(&p->op.x[0]);
    double *ds = p->saved + p->op.x[0].dim[1], *dx = ds + p->op.x[0].dim[1];
    for (int64_t n = 0; io->dx[0] && n < p->op.x[0].dim[0]; n++) {
        memset(dx, 0, (size_t)row * sizeof *dx);
        for (int64_t k = 0; k < p->op.heads; k++) {
            struct head h = head_of(p, k);
            head_backward(&h, io->x[0] + n * row, io->dy + n * pl_shape_row_elems(&p->op.y), ds, dx);
        }
        for (int64_t i = 0; i < row; i++)
            io->dx[0][n * row + i] = (float)dx[i];
    }
}

const struct ref_op ref_embedding = {.saved = embedding_saved, .forward = embedding_forward, .backward = embedding_backward};
const struct ref_op ref_lstm = {.saved = cell_saved, .forward = cell_forward, .backward = cell_backward};
const struct ref_op ref_gru = {.saved = cell_saved, .forward = cell_forward, .backward = cell_backward};
const struct ref_op ref_position_embedding = {.saved = position_saved, .forward = position_forward, .backward = position_backward};
const struct ref_op ref_attention = {.saved = attention_saved, .forward = attention_forward, .backward = attention_backward};
