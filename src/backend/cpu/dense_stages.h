/* dense_stages: the products of dense_narrow.c and what packs their operands, on vectors of LANES floats. */
#ifndef PL_CPU_DENSE_STAGES_H
#define PL_CPU_DENSE_STAGES_H

#include "backend/cpu/dense_narrow.h"
#include "backend/cpu/kernel.h"

#include <string.h>

#define DEPTH (2048 / LANES) /* of a tile: its panel of 16 KiB stays in the first-level cache */
#define PITCH (DEPTH + 16)   /* rows a power of two apart would fall on the same sets of it */
#define CHUNK (64 * COLUMNS) /* inputs of a weight gradient at once: their panels stay in the second level */

/* Inputs [begin, end) of all samples to [panel, in, columns]; the last panel may be of one vector */
PL_LANES_TARGET
static void pack_samples(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct pl_cpu_narrow *j = arg;
    for (int64_t s = 0; s < up(j->n, LANES); s++) {
        int64_t panel = s / COLUMNS * COLUMNS, columns = least(up(j->n, LANES) - panel, COLUMNS);
        float *to = j->packed + panel * j->in + s - panel;
        const float *x = j->x + s * j->in;
        for (int64_t i = begin; i < end; i++)
            to[i * columns] = s < j->n ? x[i] : 0.0f;
    }
}

/* Weights come from memory in pieces too short for the processor to see them coming: while this block of rows is
 * multiplied with one panel after the other, the next one is fetched. */
PL_WITHIN void ahead(const struct pl_cpu_narrow *j, int64_t o, int64_t last, int64_t k, int64_t s, int64_t ld) {
    int64_t length = least(DEPTH, j->in - k), from = k + length * s / ld, to = k + length * least(s + COLUMNS, ld) / ld;
    for (int64_t r = o; r < least(o + ROWS, last); r++)
        for (int64_t i = from; i < to; i += 16)
            __builtin_prefetch(j->w + r * j->in + i);
}

/* Units [begin, end) * ROWS of Y^T, then turned into Y */
PL_LANES_TARGET
static void narrow_forward_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct pl_cpu_narrow *j = arg;
    int64_t ld = up(j->n, LANES), last = least(end * ROWS, j->out);
    float w[ROWS * PITCH];
    for (int64_t k = 0; k < j->in; k += DEPTH)
        for (int64_t o = begin * ROWS; o < last; o += ROWS) {
            int64_t depth = least(DEPTH, j->in - k), rows = least(ROWS, last - o);
            for (int64_t r = 0; r < rows; r++)
                memcpy(w + r * PITCH, j->w + (o + r) * j->in + k, (size_t)depth * sizeof *w);
            for (int64_t s = 0; s < ld; s += COLUMNS) {
                int64_t columns = least(ld - s, COLUMNS);
                ahead(j, o + ROWS, last, k, s, ld);
                struct product q = {.depth = depth, .a = w, .row = PITCH, .next = 1,
                                    .b = j->packed + s * j->in + k * columns, .ldb = columns, .c = j->turned + o * ld + s, .ldc = ld};
                multiply_panel(&q, rows, columns, k > 0);
            }
        }
    for (int64_t o = begin * ROWS; o < last; o += ROWS)
        for (int64_t s = 0; s < j->n; s++)
            for (int64_t r = o; r < least(o + ROWS, last); r++)
                j->y[s * j->out + r] = j->turned[r * ld + s] + (j->bias == NULL ? 0.0f : j->bias[r]);
}

/* Panels [begin, end) of COLUMNS inputs, [panel, n, COLUMNS] */
PL_LANES_TARGET
static void pack_inputs(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct pl_cpu_narrow *j = arg;
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

/* Blocks [begin, end) of ROWS units, [block, n, ROWS] */
PL_LANES_TARGET
static void pack_units(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct pl_cpu_narrow *j = arg;
    for (int64_t o = begin * ROWS; o < end * ROWS; o += ROWS)
        for (int64_t s = 0; s < j->n; s++)
            for (int64_t r = 0; r < ROWS; r++)
                j->turned[o * j->n + s * ROWS + r] = o + r < j->out ? j->dy[s * j->out + o + r] : 0.0f;
}

/* Units [begin, end) * ROWS of dW */
PL_LANES_TARGET
static void narrow_weights_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct pl_cpu_narrow *j = arg;
    for (int64_t chunk = 0; chunk < j->in; chunk += CHUNK)
        for (int64_t o = begin * ROWS; o < least(end * ROWS, j->out); o += ROWS)
            for (int64_t i = chunk; i < least(chunk + CHUNK, j->in); i += COLUMNS) {
                struct product q = {.depth = j->n, .a = j->turned + o * j->n, .row = 1, .next = ROWS,
                                    .b = j->packed + i * j->n, .ldb = COLUMNS, .c = j->dw + o * j->in + i, .ldc = j->in};
                if (i + COLUMNS <= j->in)
                    multiply_rows(&q, least(ROWS, j->out - o), 2, j->accumulate);
                else
                    multiply_edge(&q, least(ROWS, j->out - o), j->in - i, j->accumulate);
            }
}

#endif
