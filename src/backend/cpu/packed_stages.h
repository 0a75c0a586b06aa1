/* packed_stages: products by a packed factor, and what packs it, on vectors of LANES floats. */
#ifndef PL_CPU_PACKED_STAGES_H
#define PL_CPU_PACKED_STAGES_H

#include "backend/cpu/kernel.h"
#include "backend/cpu/packed.h"

/* Panels [begin, end); columns beyond the last are 0. */
static void pack_panels(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    const struct pl_cpu_packing *p = arg;
    for (int64_t panel = begin; panel < end; panel++) {
        int64_t first = panel * COLUMNS, there = least(COLUMNS, p->columns - first);
        const float *from = p->from + first * p->next_column;
        float *to = p->packed + first * p->depth;
        for (int64_t d = 0; d < p->depth; d++, from += p->next_depth, to += COLUMNS) {
            for (int64_t c = 0; c < there; c++)
                to[c] = from[c * p->next_column];
            for (int64_t c = there; c < COLUMNS; c++)
                to[c] = 0.0f;
        }
    }
}

PL_LANES_TARGET
static void multiply_packed(const struct pl_cpu_packed_product *s) {
    for (int64_t c = 0; c < s->columns; c += COLUMNS)
        for (int64_t r = 0; r < s->rows; r += ROWS) {
            struct product q = {.depth = s->depth, .a = (const float *)s->a + r * s->lda, .row = s->lda, .next = s->next,
                                .b = (const float *)s->b + c / COLUMNS * s->panel, .ldb = COLUMNS, .c = s->c + r * s->ldc + c, .ldc = s->ldc};
            if (c + COLUMNS <= s->columns)
                multiply_rows(&q, least(ROWS, s->rows - r), 2, s->add);
            else
                multiply_edge(&q, least(ROWS, s->rows - r), s->columns - c, s->add);
        }
}

#endif
