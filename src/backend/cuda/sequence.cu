/* sequence: rows of a table, rows of positions, and what is not a product of the recurrent cells. Products are time-major: one position of all
 * samples, [n, ..], lies in one piece. */
#include "backend/cuda/kernel.cuh"

#include <math.h>

/* ---- embedding ---------------------------------------------------------------------------------------------------------- */

static __global__ void take(pl_cuda_table t, const float *id, int64_t n, float *y)
{
    PL_EACH_ROW(i, n)
        PL_EACH(k, t.units) {
            bool there = id[i] >= 0 && id[i] < (float)t.entries;
            y[i * t.units + k] = there ? t.rows[(int64_t)id[i] * t.units + k] : NAN;
        }
}

void pl_cuda_embedding_forward(pl_cuda_stream s, struct pl_cuda_table t, const float *id, int64_t n, float *y)
{
    PL_LAUNCH(take, pl_blocks_of_rows(n, t.units), PL_THREADS, s, t, id, n, y);
}

static __global__ void clear(float *v, int64_t n) { PL_EACH(i, n) v[i] = 0; }

void pl_cuda_clear(pl_cuda_stream s, float *v, int64_t n) { PL_LAUNCH(clear, pl_blocks(n), PL_THREADS, s, v, n); }

/* Of every entry the block of its first position adds up all of them, in their order. */
static __global__ void add(const float *id, int64_t n, const float *dy, int64_t entries, int64_t units, float *sum)
{
    for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
        int64_t entry = (int64_t)id[i];
        int before = !(id[i] >= 0 && entry < entries);
        PL_EACH_IN_BLOCK(k, i) before += id[k] == id[i];
        if (pl_block_sum(before) > 0)
            continue;
        for (int64_t k = i; k < n; k++)
            if (id[k] == id[i])
                PL_EACH_IN_BLOCK(u, units) sum[entry * units + u] += dy[k * units + u];
    }
}

void pl_cuda_embedding_backward(pl_cuda_stream s, const float *id, int64_t n, const float *dy, int64_t entries, int64_t units,
                                bool accumulate, float *gradient)
{
    if (!accumulate)
        pl_cuda_clear(s, gradient, entries * units);
    PL_LAUNCH(add, dim3((unsigned)(n < 65535 ? n : 65535)), PL_THREADS, s, id, n, dy, entries, units, gradient);
}

static __global__ void add_row(const void *x, bool x16, const float *w, int64_t n, int64_t row, void *y, bool y16)
{
    PL_EACH_ROW(i, n)
        PL_EACH(k, row) pl_put(y, y16, i * row + k, pl_get(x, x16, i * row + k) + w[k]);
}

void pl_cuda_add_row(pl_cuda_stream s, const void *x, bool x16, const float *w, int64_t n, int64_t row, void *y, bool y16)
{
    PL_LAUNCH(add_row, pl_blocks_of_rows(n, row), PL_THREADS, s, x, x16, w, n, row, y, y16);
}

/* ---- cells -------------------------------------------------------------------------------------------------------------- */

PL_DEVICE float sigmoid(float x) { return 1 / (1 + expf(-x)); }

/* What a gate has of the input and of the state; k among the gates, biases in. */
PL_DEVICE float from_input(const pl_cuda_cell &c, int64_t i, int64_t k)
{
    return c.gates[i * c.z + k] + (c.b ? c.b[k] : 0);
}
PL_DEVICE float from_state(const pl_cuda_cell &c, int64_t i, int64_t k)
{
    return (c.product ? c.product[i * c.z + k] : 0) + (c.bu ? c.bu[k] : 0);
}
PL_DEVICE float both(const pl_cuda_cell &c, int64_t i, int64_t k) { return from_input(c, i, k) + from_state(c, i, k); }

static __global__ void lstm(pl_cuda_cell c)
{
    PL_EACH_ROW(i, c.n)
        PL_EACH(k, c.h) {
            float *gate = c.gates + i * c.z + k;
            int64_t at = i * c.h + k;
            float in = sigmoid(both(c, i, k)), forget = sigmoid(both(c, i, c.h + k));
            float fresh = tanhf(both(c, i, 2 * c.h + k)), out = sigmoid(both(c, i, 3 * c.h + k));
            float state = forget * (c.before ? c.before[at] : 0) + in * fresh;
            gate[0] = in;
            gate[c.h] = forget;
            gate[2 * c.h] = fresh;
            gate[3 * c.h] = out;
            c.beside[at] = state;
            c.y[at] = out * tanhf(state);
        }
}

static __global__ void gru(pl_cuda_cell c)
{
    PL_EACH_ROW(i, c.n)
        PL_EACH(k, c.h) {
            float *gate = c.gates + i * c.z + k;
            int64_t at = i * c.h + k;
            float reset = sigmoid(both(c, i, k)), keep = sigmoid(both(c, i, c.h + k)), u = from_state(c, i, 2 * c.h + k);
            float fresh = tanhf(from_input(c, i, 2 * c.h + k) + reset * u);
            gate[0] = reset;
            gate[c.h] = keep;
            gate[2 * c.h] = fresh;
            c.beside[at] = u;
            c.y[at] = (1 - keep) * fresh + keep * (c.before ? c.before[at] : 0);
        }
}

void pl_cuda_cell_forward(pl_cuda_stream s, struct pl_cuda_cell c)
{
    if (c.z == 4 * c.h)
        PL_LAUNCH(lstm, pl_blocks_of_rows(c.n, c.h), PL_THREADS, s, c);
    else
        PL_LAUNCH(gru, pl_blocks_of_rows(c.n, c.h), PL_THREADS, s, c);
}

/* The gradient by h: what comes from y and, through U, from the position after. */
PL_DEVICE float gradient_of(const pl_cuda_cell_back &g, int64_t at) { return (g.dy ? g.dy[at] : 0) + (g.dh ? g.dh[at] : 0); }

static __global__ void lstm_back(pl_cuda_cell c, pl_cuda_cell_back g)
{
    PL_EACH_ROW(i, c.n)
        PL_EACH(k, c.h) {
            float *gate = c.gates + i * c.z + k;
            int64_t at = i * c.h + k;
            float in = gate[0], forget = gate[c.h], fresh = gate[2 * c.h], out = gate[3 * c.h];
            float dh = gradient_of(g, at), squashed = tanhf(c.beside[at]);
            float d = (g.first ? 0 : g.direct[at]) + dh * out * (1 - squashed * squashed);
            gate[0] = d * fresh * in * (1 - in);
            gate[c.h] = d * (c.before ? c.before[at] : 0) * forget * (1 - forget);
            gate[2 * c.h] = d * in * (1 - fresh * fresh);
            gate[3 * c.h] = dh * squashed * out * (1 - out);
            g.direct[at] = d * forget;
        }
}

static __global__ void gru_back(pl_cuda_cell c, pl_cuda_cell_back g)
{
    PL_EACH_ROW(i, c.n)
        PL_EACH(k, c.h) {
            float *gate = c.gates + i * c.z + k, *du = g.du + i * c.z + k;
            int64_t at = i * c.h + k;
            float reset = gate[0], keep = gate[c.h], fresh = gate[2 * c.h];
            float dh = gradient_of(g, at) + (g.first ? 0 : g.direct[at]), dn = dh * (1 - keep) * (1 - fresh * fresh);
            gate[0] = du[0] = dn * c.beside[at] * reset * (1 - reset);
            gate[c.h] = du[c.h] = dh * ((c.before ? c.before[at] : 0) - fresh) * keep * (1 - keep);
            gate[2 * c.h] = dn;
            du[2 * c.h] = dn * reset;
            g.direct[at] = dh * keep;
        }
}

void pl_cuda_cell_backward(pl_cuda_stream s, struct pl_cuda_cell c, struct pl_cuda_cell_back g)
{
    if (c.z == 4 * c.h)
        PL_LAUNCH(lstm_back, pl_blocks_of_rows(c.n, c.h), PL_THREADS, s, c, g);
    else
        PL_LAUNCH(gru_back, pl_blocks_of_rows(c.n, c.h), PL_THREADS, s, c, g);
}
