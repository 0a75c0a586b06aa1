/* lanes: our own matrix products and what is built on them, compiled for vectors of eight floats and of sixteen. What depends
 * on the width is in headers (kernel.h, winograd.h, winograd_stages.h, dense_stages.h, packed_stages.h) that lanes_8.c and lanes_16.c
 * include; plans call it by these tables. Activations in blocks have blocks of as many channels. */
#ifndef PL_CPU_LANES_H
#define PL_CPU_LANES_H

#include "backend/cpu/cpu.h"

struct pl_cpu_packed_product; /* packed.h */
struct pl_cpu_packed { /* products by a matrix that was packed before */
    pl_cpu_part_fn *pack; /* of struct pl_cpu_packing */
    void (*multiply)(const struct pl_cpu_packed_product *s);
    int64_t columns;      /* of a tile */
    bool half;            /* both factors are bf16 */
};

struct pl_cpu_lanes {
    int64_t lanes, rows, columns; /* of a vector; of a product's tile */
    double most_effort;           /* time over that of a direct convolution, up to which it is done by minimal filtering */
    struct {                      /* of struct pl_cpu_pass (conv_winograd.h) */
        pl_cpu_part_fn *patches, *filters, *products, *outputs, *gradients, *weights, *filter_gradients, *patch_gradients;
    } winograd;
    struct { /* of struct pl_cpu_narrow (dense_narrow.h) */
        pl_cpu_part_fn *pack_samples, *forward, *pack_inputs, *pack_units, *weights;
    } dense;
    struct pl_cpu_packed packed;
};

extern const struct pl_cpu_lanes pl_cpu_lanes_8, pl_cpu_lanes_16;
const struct pl_cpu_lanes *pl_cpu_lanes_here(void); /* what this processor is for; NULL: neither */

static inline int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

#endif
