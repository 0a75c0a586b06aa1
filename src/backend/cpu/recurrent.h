/* recurrent: the products of a recurrent cell at one position, whose weights are packed once a pass: what recurrent.c and their
 * stages (recurrent_stages.h) both know. */
#ifndef PL_CPU_RECURRENT_H
#define PL_CPU_RECURRENT_H

#include "backend/cpu/lanes.h"

/* B[depth, columns], element (d, c) at from[d * next_depth + c * next_column], to packed[panel, depth, width of a tile]. */
struct pl_cpu_packing {
    const float *from;
    int64_t depth, columns, next_depth, next_column;
    float *packed;
};
/* C[rows, columns] = (C +) A[rows, depth] B; b: where depth begins in B's first panel, panel: floats from there to the next one's. */
struct pl_cpu_step {
    const float *a, *b;
    float *c;
    int64_t rows, depth, columns, lda, panel, ldc;
    bool add;
};

#endif
