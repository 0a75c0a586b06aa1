/* parts: cuts work over the process's pool. The pool's own cut has no number for the part, and some
 * operations need one (scratch of their own, partial sums that are added in a fixed order), so the
 * pool is given one item per part.
 *
 * Once a plan uses oneDNN the parts, and all other loops of the process, run on its OpenMP team instead: libgomp's workers
 * spin for milliseconds after a primitive, and the pool's would have to share their cores (measured
 * on ResNet-20's first block: batch normalisation with two threads as slow as with one). */
#include "backend/cpu/dnnl.h"

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

#ifdef PL_CPU_DNNL
/* Always the whole team: libgomp ends and makes threads where the size changes. */
static void run_on_team(int threads, int parts, void (*part)(void *arg, int i), void *arg) {
#pragma omp parallel num_threads(threads)
    {
        int at = omp_get_thread_num(), of = omp_get_num_threads();
        for (int i = (int)((int64_t)parts * at / of); i < (int)((int64_t)parts * (at + 1) / of); i++)
            part(arg, i);
    }
}

void pl_cpu_take_team(void) { pl_pool_delegate(run_on_team); }
#else
void pl_cpu_take_team(void) {}
#endif

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
