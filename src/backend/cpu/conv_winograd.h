/* conv_winograd: what a convolution by minimal filtering and its stages (winograd_stages.h) both know. */
#ifndef PL_CPU_CONV_WINOGRAD_H
#define PL_CPU_CONV_WINOGRAD_H

#include "backend/cpu/lanes.h"

#define SIDE 6 /* of a patch */
#define POINTS (SIDE * SIDE)
#define MOST_TAPS 5
#define MOST_OUTPUTS 4

struct pl_cpu_winograd {
    struct pl_backend *backend;
    const struct pl_cpu_lanes *lanes;
    struct pl_cpu_dims x, y;
    bool x_blocked, y_blocked; /* as others see them */
    bool x_half, y_half;       /* these are bf16 */
    int64_t top, left;
    int taps, outputs;
    bool bias;
    bool data;    /* takes the data gradient too, */
    bool adjoint; /* tile by tile with the weights' */
};

/* Channels as they are, and up to whole blocks. */
struct pl_cpu_planes {
    int64_t real, channels, h, w;
};

/* 36 matrices [rows, ld], `step` floats apart */
struct pl_cpu_matrices {
    float *at;
    int64_t ld, step;
};

struct pl_cpu_pass {
    const struct pl_cpu_winograd *g;
    const struct pl_io *io;
    const void *in, *gradient; /* in blocks; forward: x, data: dy, weights: x and dy */
    void *out;                 /* forward: y; data: dx */
    bool in_half, gradient_half, out_half; /* these are bf16 */
    struct pl_cpu_planes from, to;
    int64_t top, left;                 /* zeros before the first row and column of `from` */
    int64_t across, per_sample, tiles; /* tiles of a row, of a sample, of the batch */
    int64_t block, first, count;       /* tiles at once; those of this block */
    int64_t panels;                    /* of the products' columns; the last may be of one vector */
    struct pl_cpu_matrices v, u, m;    /* patches, or dy's tiles; filters, or their gradient; products, or dy's tiles */
    const float *bias;                 /* up to whole blocks */
    bool turned, reversed; /* filters: [from, to] and not [to, from]; with the last tap first */
};

#endif
