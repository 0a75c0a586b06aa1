/* kernel: a tile of a matrix product in registers, six rows by one or two vectors of LANES columns, as on all processors
 * with 16 vector registers (Goto and van de Geijn 2008; BLIS); with the 32 of AVX-512 twelve rows are no faster (Zen 4).
 * Written in the compiler's own vectors. Included where LANES is defined; every function that uses it says PL_LANES_TARGET.
 * Those files are compiled with -ffp-contract=fast, else a product would be rounded before it is added. */
#ifndef PL_CPU_KERNEL_H
#define PL_CPU_KERNEL_H

#include "base/base.h"

#define ROWS 6
#define COLUMNS (2 * LANES)

#if LANES == 16 && defined(__x86_64__)
#define PL_LANES_TARGET __attribute__((target("avx512f")))
#elif defined(__x86_64__)
#define PL_LANES_TARGET __attribute__((target("fma")))
#else
#define PL_LANES_TARGET
#endif

typedef float vec __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));
#define LOAD(p) (*(const vec *)(const void *)(p))
#define STORE(p, v) (*(vec *)(void *)(p) = (v))

/* C[rows, columns] = (C +) sum over depth of a[row, depth] b[depth, columns] */
struct product {
    int64_t depth;
    const float *a;
    int64_t row, next; /* of a: floats to the next row, to the next depth */
    const float *b;
    int64_t ldb;
    float *c;
    int64_t ldc;
};

/* rows, vectors: constants up to ROWS and 2 */
PL_WITHIN void multiply(const struct product *p, int rows, int vectors, bool add) {
    const float *b = p->b, *a[2] = {p->a, p->a + 3 * p->row}; /* three rows in reach of each */
    vec left[ROWS], right[ROWS];
    for (int i = 0; i < ROWS; i++)
        left[i] = right[i] = (vec){0};
    for (int64_t d = 0; d < p->depth; d++, b += p->ldb) {
        vec l = LOAD(b), r = l;
        if (vectors == 2)
            r = LOAD(b + LANES);
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            float one = a[i / 3][i % 3 * p->row];
            left[i] += one * l;
            if (vectors == 2)
                right[i] += one * r;
        }
        a[0] += p->next;
        a[1] += p->next;
    }
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
        float *c = p->c + i * p->ldc;
        if (add)
            left[i] += LOAD(c);
        STORE(c, left[i]);
        if (vectors == 2 && add)
            right[i] += LOAD(c + LANES);
        if (vectors == 2)
            STORE(c + LANES, right[i]);
    }
}

/* rows: any up to ROWS */
PL_WITHIN void multiply_rows(const struct product *p, int64_t rows, int vectors, bool add) {
    switch (rows) {
    case 1: multiply(p, 1, vectors, add); break;
    case 2: multiply(p, 2, vectors, add); break;
    case 3: multiply(p, 3, vectors, add); break;
    case 4: multiply(p, 4, vectors, add); break;
    case 5: multiply(p, 5, vectors, add); break;
    default: multiply(p, ROWS, vectors, add); break;
    }
}

/* columns: COLUMNS, or LANES at the right edge */
PL_WITHIN void multiply_panel(const struct product *p, int64_t rows, int64_t columns, bool add) {
    if (columns > LANES)
        multiply_rows(p, rows, 2, add);
    else
        multiply_rows(p, rows, 1, add);
}

/* A tile at the right edge writes no column beyond `columns`; b is padded. */
PL_WITHIN void multiply_edge(const struct product *p, int64_t rows, int64_t columns, bool add) {
    float tile[ROWS * COLUMNS];
    struct product q = *p;
    q.c = tile;
    q.ldc = COLUMNS;
    multiply_panel(&q, rows, columns, false);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t k = 0; k < columns; k++)
            p->c[i * p->ldc + k] = tile[i * COLUMNS + k] + (add ? p->c[i * p->ldc + k] : 0.0f);
}

#endif
