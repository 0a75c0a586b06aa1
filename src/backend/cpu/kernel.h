/* kernel: a tile of a matrix product in registers, six rows by two vectors of eight columns, as on all
 * processors with 16 vector registers (Goto and van de Geijn 2008; BLIS). Written in the compiler's own
 * vectors: a function with PL_FMA_CLONES around it becomes what the processor has. The files that
 * use it are compiled with -ffp-contract=fast, else a product would be rounded before it is added. */
#ifndef PL_CPU_KERNEL_H
#define PL_CPU_KERNEL_H

#include "base/base.h"

#define LANES 8
typedef float vec __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));
#define LOAD(p) (*(const vec *)(const void *)(p))
#define STORE(p, v) (*(vec *)(void *)(p) = (v))

#define ROWS 6
#define COLUMNS (2 * LANES)
static inline int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* C[rows, 16] = (C +) sum over depth of a[row, depth] b[depth, 16] */
struct product {
    int64_t depth;
    const float *a;
    int64_t row, next; /* of a: floats to the next row, to the next depth */
    const float *b;
    int64_t ldb;
    float *c;
    int64_t ldc;
};

/* rows: a constant up to ROWS */
PL_WITHIN void multiply(const struct product *p, int rows, bool add) {
    const float *a = p->a, *b = p->b;
    vec left[ROWS], right[ROWS];
    for (int i = 0; i < ROWS; i++)
        left[i] = right[i] = (vec){0};
    for (int64_t d = 0; d < p->depth; d++, a += p->next, b += p->ldb) {
        vec l = LOAD(b), r = LOAD(b + LANES);
        for (int i = 0; i < rows; i++) {
            float one = a[i * p->row];
            left[i] += one * l;
            right[i] += one * r;
        }
    }
    for (int i = 0; i < rows; i++) {
        float *c = p->c + i * p->ldc;
        if (add) {
            left[i] += LOAD(c);
            right[i] += LOAD(c + LANES);
        }
        STORE(c, left[i]);
        STORE(c + LANES, right[i]);
    }
}

PL_WITHIN void multiply_rows(const struct product *p, int64_t rows, bool add) {
    switch (rows) {
    case 1: multiply(p, 1, add); break;
    case 2: multiply(p, 2, add); break;
    case 3: multiply(p, 3, add); break;
    case 4: multiply(p, 4, add); break;
    case 5: multiply(p, 5, add); break;
    default: multiply(p, ROWS, add); break;
    }
}

/* A tile at the right edge writes no column beyond `columns`; b is padded. */
PL_WITHIN void multiply_edge(const struct product *p, int64_t rows, int64_t columns, bool add) {
    float tile[ROWS * COLUMNS];
    struct product q = *p;
    q.c = tile;
    q.ldc = COLUMNS;
    multiply_rows(&q, rows, false);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t k = 0; k < columns; k++)
            p->c[i * p->ldc + k] = tile[i * COLUMNS + k] + (add ? p->c[i * p->ldc + k] : 0.0f);
}

#endif
