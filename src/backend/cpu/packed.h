/* packed: matrix products by a factor that was packed before, for several products or because the library would do so every time: of
 * recurrent cells and of attention, on vectors of floats (packed_stages.h) or of bf16 (packed_bf16.c). On the calling thread. */
#ifndef PL_CPU_PACKED_H
#define PL_CPU_PACKED_H

#include "backend/cpu/lanes.h"

/* B[depth, columns], element (d, c) at from[d * next_depth + c * next_column], to packed[panel, depth, width of a tile]; of bf16
 * in pairs of depths, an even number of them. pack goes through panels: of (columns + width - 1) / width. */
struct pl_cpu_packing {
    const float *from;
    int64_t depth, columns, next_depth, next_column;
    float *packed;
};
/* C[rows, columns] = (C +) A[rows, depth] B; b: where depth begins in B's first panel, panel: elements from there to the next one's. */
struct pl_cpu_packed_product {
    const void *a, *b; /* float or bf16; a row of A then ends with a 0 where depth is odd */
    float *c;
    int64_t rows, depth, columns, panel, ldc;
    int64_t lda, next; /* of A: elements to the next row, to the next depth, which of bf16 is the next element */
    bool add;
};

/* The fastest for this precision; NULL: the library's products are to be taken. */
const struct pl_cpu_packed *pl_cpu_packed_here(const struct pl_backend *b, bool bf16);
/* Floats that B packed takes, of either kind. */
int64_t pl_cpu_packed_elems(const struct pl_cpu_packed *by, int64_t depth, int64_t columns);
/* Where depth `row`, even, begins in the first panel. */
const void *pl_cpu_packed_row(const struct pl_cpu_packed *by, const float *packed, int64_t row);
/* p, whose A is of floats and whose B was packed with `depths`. half: room for A in bf16, [rows, depth, made even]. */
void pl_cpu_packed_multiply(const struct pl_cpu_packed *by, struct pl_cpu_packed_product p, int64_t depths, uint16_t *half);

/* packed_bf16.c; NULL: not on this processor. */
const struct pl_cpu_packed *pl_cpu_packed_bf16(void);

#endif
