/* winograd_stages: what a convolution by minimal filtering does between its plan's calls (conv_winograd.c), on vectors of
 * LANES channels. Activations are read by patches_part and gradients_part alone, and written by outputs_part. */
#ifndef PL_CPU_WINOGRAD_STAGES_H
#define PL_CPU_WINOGRAD_STAGES_H

#include "backend/cpu/bf16.h"
#include "backend/cpu/conv_winograd.h"
#include "backend/cpu/winograd.h"

#include <string.h>

/* Tile t's sample, and its first row and column of output. */
PL_WITHIN void tile_at(const struct pl_cpu_pass *p, int64_t t, int64_t *sample, int64_t *row, int64_t *column) {
    *sample = t / p->per_sample;
    *row = t % p->per_sample / p->across * p->g->outputs;
    *column = t % p->across * p->g->outputs;
}

/* Between a vector and bf16 */
typedef uint32_t words PL_HALF_VECTOR(uint32_t, LANES);
typedef uint16_t halves PL_HALF_VECTOR(uint16_t, LANES);
#define LOAD_HALF(p) PL_WIDEN(p, vec, words, halves)
#define STORE_HALF(p, v) PL_ROUND(p, v, words, halves)

/* Copies the part of a square that lies inside the planes, zeros outside. plane: the element of t where the channels begin. */
PL_WITHIN void cut_out(const void *t, bool half, int64_t plane, int64_t h, int64_t w, int64_t row, int64_t column, int64_t side, float *out) {
    for (int64_t i = 0; i < side; i++)
        for (int64_t j = 0; j < side; j++) {
            bool inside = row + i >= 0 && row + i < h && column + j >= 0 && column + j < w;
            int64_t at = plane + ((row + i) * w + column + j) * LANES;
            vec v = {0};
            if (inside && half)
                v = LOAD_HALF((const uint16_t *)t + at);
            else if (inside)
                v = LOAD((const float *)t + at);
            STORE(out + (i * side + j) * LANES, v);
        }
}

/* The same where all of it lies inside, and from bf16. */
PL_WITHIN void widen_square(const uint16_t *from, int64_t pitch, int64_t side, float *out) {
    for (int64_t i = 0; i < side; i++)
        for (int64_t j = 0; j < side; j++) {
            vec v = LOAD_HALF(from + i * pitch + j * LANES);
            STORE(out + (i * side + j) * LANES, v);
        }
}

/* Tiles [begin, end) of the block: their patches to V */
PL_LANES_TARGET
static void patches_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct pl_cpu_pass *p = arg;
    const struct pl_cpu_planes *x = &p->from;
    float square[POINTS * LANES];
    for (int64_t t = begin; t < end; t++) {
        int64_t sample, row, column;
        tile_at(p, p->first + t, &sample, &row, &column);
        row -= p->top;
        column -= p->left;
        bool inside = row >= 0 && column >= 0 && row + SIDE <= x->h && column + SIDE <= x->w;
        for (int64_t c = 0; c < x->channels; c += LANES) {
            int64_t plane = (sample * x->channels + c) * x->h * x->w, at = plane + (row * x->w + column) * LANES;
            float *v = p->v.at + t * p->v.ld + c;
            if (inside && !p->in_half) {
                transform_data((const float *)p->in + at, x->w * LANES, v, p->v.step);
                continue;
            }
            if (inside)
                widen_square((const uint16_t *)p->in + at, x->w * LANES, SIDE, square);
            else if (p->in_half)
                cut_out(p->in, true, plane, x->h, x->w, row, column, SIDE, square);
            else
                cut_out(p->in, false, plane, x->h, x->w, row, column, SIDE, square);
            transform_data(square, SIDE * LANES, v, p->v.step);
        }
    }
}

/* Blocks of LANES filters [begin, end) to U, [panel, depth, columns] at each point */
PL_LANES_TARGET
static void filters_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct pl_cpu_pass *p = arg;
    const int taps = p->g->taps, area = taps * taps;
    int64_t depth = p->from.real, lane = p->turned ? area : depth * area, next = p->turned ? p->to.real * area : area;
    float filter[MOST_TAPS * MOST_TAPS * LANES];
    for (int64_t b = begin; b < end; b++) {
        int64_t first = b * LANES, panel = first / COLUMNS * COLUMNS, columns = least(p->to.channels - panel, COLUMNS);
        int64_t lanes = least(p->to.real - first, LANES);
        float *u = p->u.at + panel * depth + first - panel;
        const float *w = p->io->p[0] + first * lane;
        memset(filter, 0, sizeof filter);
        for (int64_t d = 0; d < depth; d++, w += next, u += columns) {
            for (int q = 0; q < area; q++)
                for (int64_t i = 0; i < lanes; i++)
                    filter[(p->reversed ? area - 1 - q : q) * LANES + i] = w[i * lane + q];
            if (taps == 3)
                transform_filter(3, filter, u, p->u.step);
            else
                transform_filter(5, filter, u, p->u.step);
        }
    }
}

/* Items [begin, end) of points x panels: M = V U */
PL_LANES_TARGET
static void products_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct pl_cpu_pass *p = arg;
    int64_t panels = p->panels, depth = p->from.real;
    for (int64_t i = begin; i < end; i++) {
        int64_t point = i / panels, k = i % panels * COLUMNS, columns = least(p->to.channels - k, COLUMNS);
        struct product q = {.depth = depth, .a = p->v.at + point * p->v.step, .row = p->v.ld, .next = 1,
                            .b = p->u.at + point * p->u.step + k * depth, .ldb = columns,
                            .c = p->m.at + point * p->m.step + k, .ldc = p->m.ld};
        for (int64_t t = 0; t < p->count; t += ROWS, q.a += ROWS * p->v.ld, q.c += ROWS * p->m.ld)
            multiply_panel(&q, least(ROWS, p->count - t), columns, false);
    }
}

/* Tiles [begin, end) of the block: from M to the output, cut off at its edges */
PL_LANES_TARGET
static void outputs_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct pl_cpu_pass *p = arg;
    const struct pl_cpu_planes *y = &p->to;
    const int side = p->g->outputs;
    float square[MOST_OUTPUTS * MOST_OUTPUTS * LANES];
    for (int64_t t = begin; t < end; t++) {
        int64_t sample, row, column;
        tile_at(p, p->first + t, &sample, &row, &column);
        bool whole = row + side <= y->h && column + side <= y->w && !p->out_half;
        for (int64_t k = 0; k < y->channels; k += LANES) {
            int64_t at = (sample * y->channels + k) * y->h * y->w + (row * y->w + column) * LANES;
            const float *m = p->m.at + t * p->m.ld + k;
            vec bias = {0};
            if (p->bias != NULL)
                bias = LOAD(p->bias + k);
            float *to = whole ? (float *)p->out + at : square;
            int64_t pitch = (whole ? y->w : side) * LANES;
            if (side == 4)
                transform_output(4, m, p->m.step, &bias, to, pitch);
            else
                transform_output(2, m, p->m.step, &bias, to, pitch);
            for (int64_t i = 0; !whole && i < side && row + i < y->h; i++)
                for (int64_t j = 0; j < side && column + j < y->w; j++) {
                    vec v = LOAD(square + (i * side + j) * LANES);
                    int64_t there = at + (i * y->w + j) * LANES;
                    if (p->out_half)
                        STORE_HALF((uint16_t *)p->out + there, v);
                    else
                        STORE((float *)p->out + there, v);
                }
        }
    }
}

/* Tiles [begin, end) of the block: their gradients to W */
PL_LANES_TARGET
static void gradients_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct pl_cpu_pass *p = arg;
    const struct pl_cpu_planes *y = &p->to;
    const int side = p->g->outputs;
    float square[MOST_OUTPUTS * MOST_OUTPUTS * LANES];
    for (int64_t t = begin; t < end; t++) {
        int64_t sample, row, column;
        tile_at(p, p->first + t, &sample, &row, &column);
        bool whole = row + side <= y->h && column + side <= y->w;
        for (int64_t k = 0; k < y->channels; k += LANES) {
            int64_t plane = (sample * y->channels + k) * y->h * y->w, at = plane + (row * y->w + column) * LANES;
            const float *from = whole && !p->gradient_half ? (const float *)p->gradient + at : square;
            int64_t pitch = (from == square ? side : y->w) * LANES;
            if (whole && p->gradient_half)
                widen_square((const uint16_t *)p->gradient + at, y->w * LANES, side, square);
            else if (p->gradient_half)
                cut_out(p->gradient, true, plane, y->h, y->w, row, column, side, square);
            else if (!whole)
                cut_out(p->gradient, false, plane, y->h, y->w, row, column, side, square);
            float *w = p->m.at + t * p->m.ld + k;
            if (side == 4)
                transform_gradient(4, from, pitch, w, p->m.step);
            else
                transform_gradient(2, from, pitch, w, p->m.step);
        }
    }
}

/* Adds a patch's gradient to the part of a plane that it covers; row, column: its first, which may lie outside. */
PL_WITHIN void add_inside(const float *m, int64_t step, float *plane, int64_t h, int64_t w, int64_t row, int64_t column) {
    float square[POINTS * LANES];
    if (row >= 0 && column >= 0 && row + SIDE <= h && column + SIDE <= w) {
        add_patch(m, step, plane + (row * w + column) * LANES, w * LANES);
        return;
    }
    memset(square, 0, sizeof square);
    add_patch(m, step, square, SIDE * LANES);
    for (int64_t i = row < 0 ? -row : 0; i < SIDE && row + i < h; i++)
        for (int64_t j = column < 0 ? -column : 0; j < SIDE && column + j < w; j++) {
            float *to = plane + ((row + i) * w + column + j) * LANES;
            STORE(to, LOAD(to) + LOAD(square + (i * SIDE + j) * LANES));
        }
}

/* Items [begin, end) of samples x blocks of channels: what the tiles of this block add to the gradient of their patches. A
 * sample's channels go to one thread, as patches overlap. */
PL_LANES_TARGET
static void patch_gradients_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct pl_cpu_pass *p = arg;
    const struct pl_cpu_planes *x = &p->to;
    int64_t blocks = x->channels / LANES;
    for (int64_t k = begin; k < end; k++) {
        int64_t sample = p->first / p->per_sample + k / blocks, c = k % blocks * LANES, row, column;
        int64_t from = sample * p->per_sample, last = least(from + p->per_sample, p->first + p->count);
        float *plane = (float *)p->out + (sample * x->channels + c) * x->h * x->w;
        for (int64_t t = from > p->first ? from : p->first; t < last; t++) {
            tile_at(p, t, &sample, &row, &column);
            add_inside(p->m.at + (t - p->first) * p->m.ld + c, p->m.step, plane, x->h, x->w, row - p->top, column - p->left);
        }
    }
}

/* Items [begin, end) of points x panels of input channels: dU (+)= W^T V */
PL_LANES_TARGET
static void weights_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct pl_cpu_pass *p = arg;
    int64_t panels = p->panels;
    for (int64_t i = begin; i < end; i++) {
        int64_t point = i / panels, c = i % panels * COLUMNS, columns = least(p->from.channels - c, COLUMNS);
        struct product q = {.depth = p->count, .a = p->m.at + point * p->m.step, .row = 1, .next = p->m.ld,
                            .b = p->v.at + point * p->v.step + c, .ldb = p->v.ld,
                            .c = p->u.at + point * p->u.step + c, .ldc = p->u.ld};
        for (int64_t k = 0; k < p->to.real; k += ROWS, q.a += ROWS, q.c += ROWS * p->u.ld)
            multiply_panel(&q, least(ROWS, p->to.real - k), columns, p->first > 0);
    }
}

/* Output channels [begin, end): dw from dU. A tile's value at point (1, 1) is the sum of its dy. */
PL_LANES_TARGET
static void filter_gradients_part(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct pl_cpu_pass *p = arg;
    const int taps = p->g->taps, area = taps * taps;
    float filter[MOST_TAPS * MOST_TAPS * LANES];
    for (int64_t k = begin; k < end; k++)
        for (int64_t c = 0; c < p->from.channels; c += LANES) {
            const float *u = p->u.at + k * p->u.ld + c;
            float *dw = p->io->dp[0] + (k * p->from.real + c) * area;
            int64_t lanes = least(p->from.real - c, LANES);
            if (taps == 3)
                gather_filter(3, u, p->u.step, filter);
            else
                gather_filter(5, u, p->u.step, filter);
            for (int64_t i = 0; i < lanes; i++)
                for (int q = 0; q < area; q++)
                    dw[i * area + q] = filter[q * LANES + i] + (p->io->accumulate ? dw[i * area + q] : 0.0f);
        }
}

#endif
