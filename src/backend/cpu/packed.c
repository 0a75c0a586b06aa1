/* packed: which kernel multiplies, and what it wants of the factor that is not packed. */
#include "backend/cpu/packed.h"
#include "backend/cpu/bf16.h"

const struct pl_cpu_packed *pl_cpu_packed_here(const struct pl_backend *b, bool bf16) {
    if (bf16 && pl_cpu_packed_bf16() != NULL)
        return pl_cpu_packed_bf16();
    return b->lanes != NULL ? &b->lanes->packed : NULL;
}

int64_t pl_cpu_packed_elems(const struct pl_cpu_packed *by, int64_t depth, int64_t columns) { return up(columns, by->columns) * up(depth, 2); }

const void *pl_cpu_packed_row(const struct pl_cpu_packed *by, const float *packed, int64_t row) {
    const uint16_t *half = (const void *)packed;
    return by->half ? (const void *)(half + row * by->columns) : (const void *)(packed + row * by->columns);
}

/* Rows of n, each filled up to pairs. */
PL_HALVES
static void round_rows(const float *from, int64_t row, int64_t next, int64_t rows, int64_t n, uint16_t *to) {
    int64_t length = up(n, 2);
    for (int64_t r = 0; r < rows; r++) {
        if (next == 1)
            for (int64_t k = 0; k < n; k++)
                to[r * length + k] = pl_bf16_round(from[r * row + k]);
        else
            for (int64_t k = 0; k < n; k++)
                to[r * length + k] = pl_bf16_round(from[r * row + k * next]);
        if (n < length)
            to[(r + 1) * length - 1] = 0;
    }
}

void pl_cpu_packed_multiply(const struct pl_cpu_packed *by, struct pl_cpu_packed_product p, int64_t depths, uint16_t *half) {
    p.panel = (by->half ? up(depths, 2) : depths) * by->columns;
    if (by->half) {
        round_rows(p.a, p.lda, p.next, p.rows, p.depth, half);
        p.a = half;
        p.lda = up(p.depth, 2);
        p.next = 1;
    }
    by->multiply(&p);
}
