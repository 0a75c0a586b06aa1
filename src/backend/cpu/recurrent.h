/* recurrent: the products of a recurrent cell at one position, whose weights are packed once a pass: what recurrent.c and their
 * stages (recurrent_stages.h) both know. */
#ifndef PL_CPU_RECURRENT_H
#define PL_CPU_RECURRENT_H

#include "backend/cpu/lanes.h"

/* B[depth, columns], element (d, c) at from[d * next_depth + c * next_column], to packed[panel, depth, width of a tile]; of bf16
 * in pairs of depths, an even number of them. */
struct pl_cpu_packing {
    const float *from;
    int64_t depth, columns, next_depth, next_column;
    float *packed;
};
/* C[rows, columns] = (C +) A[rows, depth] B; b: where depth begins in B's first panel, panel: elements from there to the next one's. */
struct pl_cpu_step {
    const void *a, *b; /* float or bf16; a row of A then ends with a 0 where depth is odd */
    float *c;
    int64_t rows, depth, columns, lda, panel, ldc;
    bool add;
};

/* recurrent_bf16.c; NULL: not on this processor. */
const struct pl_cpu_steps *pl_cpu_steps_bf16(void);

#endif
