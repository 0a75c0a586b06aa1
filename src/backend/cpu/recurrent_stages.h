/* recurrent_stages: the products of recurrent.c at one position and what packs their weights, on vectors of LANES floats. */
#ifndef PL_CPU_RECURRENT_STAGES_H
#define PL_CPU_RECURRENT_STAGES_H

#include "backend/cpu/kernel.h"
#include "backend/cpu/recurrent.h"

/* Panels [begin, end); columns beyond the last are 0. */
static void pack_step(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct pl_cpu_packing *p = arg;
    for (int64_t c = begin * COLUMNS; c < end * COLUMNS; c++) {
        float *to = p->packed + c / COLUMNS * COLUMNS * p->depth + c % COLUMNS;
        const float *from = p->from + c * p->next_column;
        for (int64_t d = 0; d < p->depth; d++)
            to[d * COLUMNS] = c < p->columns ? from[d * p->next_depth] : 0.0f;
    }
}

PL_LANES_TARGET
static void multiply_step(const struct pl_cpu_step *s) {
    for (int64_t c = 0; c < s->columns; c += COLUMNS)
        for (int64_t r = 0; r < s->rows; r += ROWS) {
            struct product q = {.depth = s->depth, .a = (const float *)s->a + r * s->lda, .row = s->lda, .next = 1,
                                .b = (const float *)s->b + c / COLUMNS * s->panel, .ldb = COLUMNS, .c = s->c + r * s->ldc + c, .ldc = s->ldc};
            if (c + COLUMNS <= s->columns)
                multiply_rows(&q, least(ROWS, s->rows - r), 2, s->add);
            else
                multiply_edge(&q, least(ROWS, s->rows - r), s->columns - c, s->add);
        }
}

#endif
