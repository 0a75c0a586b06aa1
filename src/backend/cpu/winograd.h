/* winograd: the transforms of minimal filtering on 6x6 patches (Winograd 1980; Lavin and Gray, CVPR
 * 2016): F(4x4, 3x3) and F(2x2, 5x5) with the points 0, 1, -1, 2, -2 and infinity, LANES channels at
 * once. With patch d, filter g and output y (S tiles along a side, R taps):
 *
 *     y = A^T [(G g G^T) * (B^T d B)] A      d: 6x6, g: RxR, y: SxS, S = 7 - R
 *
 * and the adjoint of each, for the gradients. A two-dimensional transform is the one-dimensional one
 * down the columns, then along the rows. */
#ifndef PL_CPU_WINOGRAD_H
#define PL_CPU_WINOGRAD_H

#include "backend/cpu/conv_winograd.h"
#include "backend/cpu/kernel.h"

/* t = B^T d, 6 to 6 */
PL_WITHIN void data_line(const vec *d, vec *t) {
    vec even = d[4] - 4.0f * d[2], odd = d[3] - 4.0f * d[1], far = d[4] - d[2], wide = 2.0f * (d[3] - d[1]);
    t[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
    t[1] = even + odd;
    t[2] = even - odd;
    t[3] = far + wide;
    t[4] = far - wide;
    t[5] = 4.0f * d[1] - 5.0f * d[3] + d[5];
}

/* d = B t, 6 to 6 */
PL_WITHIN void patch_line(const vec *t, vec *d) {
    vec sum1 = t[1] + t[2], difference1 = t[1] - t[2], sum2 = t[3] + t[4], difference2 = 2.0f * (t[3] - t[4]);
    d[0] = 4.0f * t[0];
    d[1] = 4.0f * (t[5] - difference1) - difference2;
    d[2] = -5.0f * t[0] - 4.0f * sum1 - sum2;
    d[3] = difference1 + difference2 - 5.0f * t[5];
    d[4] = t[0] + sum1 + sum2;
    d[5] = t[5];
}

/* y = A^T t, 6 to S */
PL_WITHIN void output_line(int outputs, const vec *t, vec *y) {
    vec sum1 = t[1] + t[2], difference1 = t[1] - t[2], sum2 = t[3] + t[4], difference2 = t[3] - t[4];
    y[0] = t[0] + sum1 + sum2;
    y[1] = difference1 + 2.0f * difference2;
    if (outputs == 2) {
        y[1] += t[5];
        return;
    }
    y[2] = sum1 + 4.0f * sum2;
    y[3] = difference1 + 8.0f * difference2 + t[5];
}

/* t = A y, S to 6 */
PL_WITHIN void spread_line(int outputs, const vec *y, vec *t) {
    vec even1 = y[0], odd1 = y[1], even2 = y[0], odd2 = 2.0f * y[1];
    if (outputs == 4) {
        even1 += y[2];
        odd1 += y[3];
        even2 += 4.0f * y[2];
        odd2 += 8.0f * y[3];
    }
    t[0] = y[0];
    t[1] = even1 + odd1;
    t[2] = even1 - odd1;
    t[3] = even2 + odd2;
    t[4] = even2 - odd2;
    t[5] = y[outputs - 1];
}

/* t = G g, R to 6 */
PL_WITHIN void filter_line(int taps, const vec *g, vec *t) {
    vec even1 = g[0] + g[2], odd1 = g[1], even2 = g[0] + 4.0f * g[2], odd2 = 2.0f * g[1];
    if (taps == 5) {
        even1 += g[4];
        odd1 += g[3];
        even2 += 16.0f * g[4];
        odd2 += 8.0f * g[3];
    }
    t[0] = g[0] * (1.0f / 4);
    t[1] = (even1 + odd1) * (-1.0f / 6);
    t[2] = (even1 - odd1) * (-1.0f / 6);
    t[3] = (even2 + odd2) * (1.0f / 24);
    t[4] = (even2 - odd2) * (1.0f / 24);
    t[5] = g[taps - 1];
}

/* g = G^T t, 6 to R */
PL_WITHIN void gather_line(int taps, const vec *t, vec *g) {
    vec sum1 = (t[1] + t[2]) * (-1.0f / 6), difference1 = (t[1] - t[2]) * (-1.0f / 6);
    vec sum2 = (t[3] + t[4]) * (1.0f / 24), difference2 = (t[3] - t[4]) * (1.0f / 24);
    g[0] = t[0] * (1.0f / 4) + sum1 + sum2;
    g[1] = difference1 + 2.0f * difference2;
    g[2] = sum1 + 4.0f * sum2;
    if (taps == 5) {
        g[3] = difference1 + 8.0f * difference2;
        g[4] = sum1 + 16.0f * sum2;
    }
    g[taps - 1] += t[5];
}

/* B^T d B of the patch at x, whose rows lie `row` floats apart; value i goes to v + i * step. */
PL_WITHIN void transform_data(const float *x, int64_t row, float *v, int64_t step) {
    vec column[SIDE][SIDE], t[SIDE][SIDE];
    for (int j = 0; j < SIDE; j++) {
        for (int i = 0; i < SIDE; i++)
            t[0][i] = LOAD(x + i * row + j * LANES);
        data_line(t[0], column[j]);
    }
    for (int i = 0; i < SIDE; i++) {
        vec line[SIDE];
        for (int j = 0; j < SIDE; j++)
            line[j] = column[j][i];
        data_line(line, t[i]);
        for (int j = 0; j < SIDE; j++)
            STORE(v + (i * SIDE + j) * step, t[i][j]);
    }
}

/* B m B^T is added to the square at x, whose rows lie `row` floats apart. */
PL_WITHIN void add_patch(const float *m, int64_t step, float *x, int64_t row) {
    vec column[SIDE][SIDE];
    for (int j = 0; j < SIDE; j++) {
        vec line[SIDE];
        for (int i = 0; i < SIDE; i++)
            line[i] = LOAD(m + (i * SIDE + j) * step);
        patch_line(line, column[j]);
    }
    for (int i = 0; i < SIDE; i++) {
        vec line[SIDE], out[SIDE];
        for (int j = 0; j < SIDE; j++)
            line[j] = column[j][i];
        patch_line(line, out);
        for (int j = 0; j < SIDE; j++)
            STORE(x + i * row + j * LANES, LOAD(x + i * row + j * LANES) + out[j]);
    }
}

/* A^T m A; value (i, j) goes to y + i * row + j * LANES */
PL_WITHIN void transform_output(int outputs, const float *m, int64_t step, const vec *bias, float *y, int64_t row) {
    vec column[SIDE][MOST_OUTPUTS];
    for (int j = 0; j < SIDE; j++) {
        vec line[SIDE];
        for (int i = 0; i < SIDE; i++)
            line[i] = LOAD(m + (i * SIDE + j) * step);
        output_line(outputs, line, column[j]);
    }
    for (int i = 0; i < outputs; i++) {
        vec line[SIDE], out[MOST_OUTPUTS];
        for (int j = 0; j < SIDE; j++)
            line[j] = column[j][i];
        output_line(outputs, line, out);
        for (int j = 0; j < outputs; j++)
            STORE(y + i * row + j * LANES, out[j] + *bias);
    }
}

/* A dy A^T of the tile at dy */
PL_WITHIN void transform_gradient(int outputs, const float *dy, int64_t row, float *v, int64_t step) {
    vec column[MOST_OUTPUTS][SIDE];
    for (int j = 0; j < outputs; j++) {
        vec line[MOST_OUTPUTS];
        for (int i = 0; i < outputs; i++)
            line[i] = LOAD(dy + i * row + j * LANES);
        spread_line(outputs, line, column[j]);
    }
    for (int i = 0; i < SIDE; i++) {
        vec line[MOST_OUTPUTS], out[SIDE];
        for (int j = 0; j < outputs; j++)
            line[j] = column[j][i];
        spread_line(outputs, line, out);
        for (int j = 0; j < SIDE; j++)
            STORE(v + (i * SIDE + j) * step, out[j]);
    }
}

/* G g G^T of a filter [taps, taps, LANES] */
PL_WITHIN void transform_filter(int taps, const float *g, float *u, int64_t step) {
    vec column[MOST_TAPS][SIDE];
    for (int j = 0; j < taps; j++) {
        vec line[MOST_TAPS];
        for (int i = 0; i < taps; i++)
            line[i] = LOAD(g + (i * taps + j) * LANES);
        filter_line(taps, line, column[j]);
    }
    for (int i = 0; i < SIDE; i++) {
        vec line[MOST_TAPS], out[SIDE];
        for (int j = 0; j < taps; j++)
            line[j] = column[j][i];
        filter_line(taps, line, out);
        for (int j = 0; j < SIDE; j++)
            STORE(u + (i * SIDE + j) * step, out[j]);
    }
}

/* G^T u G to a filter [taps, taps, LANES] */
PL_WITHIN void gather_filter(int taps, const float *u, int64_t step, float *g) {
    vec column[SIDE][MOST_TAPS];
    for (int j = 0; j < SIDE; j++) {
        vec line[SIDE];
        for (int i = 0; i < SIDE; i++)
            line[i] = LOAD(u + (i * SIDE + j) * step);
        gather_line(taps, line, column[j]);
    }
    for (int i = 0; i < taps; i++) {
        vec line[SIDE], out[MOST_TAPS];
        for (int j = 0; j < SIDE; j++)
            line[j] = column[j][i];
        gather_line(taps, line, out);
        for (int j = 0; j < taps; j++)
            STORE(g + (i * taps + j) * LANES, out[j]);
    }
}

#endif
