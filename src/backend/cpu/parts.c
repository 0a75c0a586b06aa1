/* parts: cuts work over the process's pool. The pool's own cut has no number for the part, and some
 * operations need one (scratch of their own, partial sums that are added in a fixed order), so the
 * pool is given one item per part. */
#include "backend/cpu/cpu.h"

struct job {
    pl_cpu_part_fn *body;
    void *arg;
    int64_t n;
    int parts;
};

int pl_cpu_part_count(const struct pl_backend *b, int64_t n, int64_t grain) {
    int64_t most = n / (grain < 1 ? 1 : grain);
    if (most < 1)
        most = 1;
    return most < b->threads ? (int)most : b->threads;
}

static void run_parts(void *arg, int64_t begin, int64_t end) {
    const struct job *j = arg;
    for (int64_t p = begin; p < end; p++)
        j->body(j->arg, (int)p, j->n * p / j->parts, j->n * (p + 1) / j->parts);
}

void pl_cpu_parts(const struct pl_backend *b, int64_t n, int64_t grain, pl_cpu_part_fn *body,
                  void *arg) {
    if (n <= 0)
        return;
    struct job j = {body, arg, n, pl_cpu_part_count(b, n, grain)};
    if (j.parts == 1)
        body(arg, 0, 0, n);
    else
        pl_parallel_for(j.parts, 1, run_parts, &j);
}

struct pl_cpu_dims pl_cpu_dims(const struct pl_shape *s) {
    struct pl_cpu_dims d = {s->dim[0], 1, 1, 1};
    if (s->dims > 1)
        d.c = s->dim[1];
    if (s->dims > 2)
        d.h = s->dim[2];
    for (int i = 3; i < s->dims; i++)
        d.w *= s->dim[i];
    return d;
}
