/* bench_peak: the matrix product beside which bench step puts a training step. Of the host: the cpu backend's own, in fp32
 * whatever the run's precision. Of a device: the forward pass of a dense layer in the run's precision, on noise, as the clock
 * of a GPU depends on what it multiplies; in bf16 it includes the rounding of the weights, some 3 % of it. */
#include "cmd/bench_peak.h"

#include <string.h>

enum { HOST_SIZE = 2048, DEVICE_SIZE = 8192, DEVICE_ROWS = 16384, PIECE = 1 << 20 };

struct pl_bench_peak {
    float *a, *c; /* of the host */
    const struct pl_backend_table *table;
    struct pl_backend *backend;
    struct pl_plan *plan;
    struct pl_io io;
};

static pl_status make_on_host(struct pl_bench_peak *p)
{
    size_t n = (size_t)HOST_SIZE * HOST_SIZE;
    p->a = pl_alloc(n * sizeof(float), "bench matrix");
    p->c = pl_alloc(n * sizeof(float), "bench matrix");
    for (size_t i = 0; p->a && i < n; i++)
        p->a[i] = (float)(i % 17) * 0.01f;
    return p->a && p->c ? PL_OK : PL_ERR_MEMORY;
}

/* As many elements, a multiple of PIECE, of the same noise over and over. */
static pl_status make_noise(struct pl_bench_peak *p, int64_t elems, bool bf16, float **out)
{
    size_t each = bf16 ? sizeof(uint16_t) : sizeof(float);
    struct pl_rng r = pl_rng_make(1, 0, 0, 0);
    float *noise = pl_alloc(PIECE * sizeof *noise, "bench matrix");
    char *far = noise ? p->table->alloc(p->backend, (size_t)elems * each, "a matrix of bench") : NULL;
    pl_status s = far ? PL_OK : PL_ERR_MEMORY;
    *out = (float *)(void *)far;
    if (noise)
        pl_rng_normals(&r, noise, PIECE);
    for (int64_t i = 0; bf16 && noise && i < PIECE; i++) /* the upper halves */
        memcpy((char *)noise + 2 * i, (const char *)noise + 4 * i + 2, 2);
    for (int64_t at = 0; s == PL_OK && at < elems; at += PIECE)
        s = p->table->upload(p->backend, far + (size_t)at * each, noise, PIECE * each);
    pl_free(noise);
    return s;
}

static pl_status make_on_device(struct pl_bench_peak *p, bool bf16)
{
    const int64_t n = DEVICE_SIZE, rows = DEVICE_ROWS;
    struct pl_op op = {.kind = PL_OP_DENSE, .name = "bench", .inputs = 1, .x = {{2, {rows, n}}}, .y = {2, {rows, n}}, .lx = {{.bf16 = bf16}},
                       .ly = {.bf16 = bf16}, .params = 1, .p = {{2, {n, n}}}};
    float *x = NULL, *w = NULL;
    pl_status s = make_noise(p, rows * n, bf16, &x);
    p->io = (struct pl_io){.rows = rows, .x = {x}};
    if (s == PL_OK)
        s = make_noise(p, n * n, false, &w);
    p->io.p[0] = w;
    PL_TRY(s);
    p->io.y = p->table->alloc(p->backend, pl_layout_bytes(&op.ly, &op.y), "a matrix of bench");
    return p->io.y ? p->table->plan(p->backend, &op, &p->plan) : PL_ERR_MEMORY;
}

pl_status pl_bench_peak_create(const struct pl_backend_table *table, struct pl_backend *backend, bool bf16, struct pl_bench_peak **out)
{
    struct pl_bench_peak *p = *out = pl_alloc(sizeof *p, "bench's matrix product");
    if (!p)
        return PL_ERR_MEMORY;
    p->table = table;
    p->backend = backend;
    return table->far ? make_on_device(p, bf16) : make_on_host(p);
}

void pl_bench_peak_destroy(struct pl_bench_peak *p)
{
    if (!p)
        return;
    if (p->plan)
        p->table->plan_destroy(p->plan);
    if (p->table->far) {
        p->table->free(p->backend, (void *)(uintptr_t)p->io.x[0]);
        p->table->free(p->backend, (void *)(uintptr_t)p->io.p[0]);
        p->table->free(p->backend, p->io.y);
    }
    pl_free(p->a);
    pl_free(p->c);
    pl_free(p);
}

/* Many in a row, so that the time to start one does not count. */
static pl_status measure_device(struct pl_bench_peak *p, double *gflops)
{
    enum { TIMES = 20 };
    PL_TRY(p->table->finish(p->backend));
    double begin = pl_now_ms();
    for (int i = 0; i < TIMES; i++)
        PL_TRY(p->table->forward(p->plan, &p->io));
    PL_TRY(p->table->finish(p->backend));
    *gflops = TIMES * 2.0 * DEVICE_ROWS * DEVICE_SIZE * DEVICE_SIZE / (pl_now_ms() - begin) / 1e6;
    return PL_OK;
}

pl_status pl_bench_peak_measure(struct pl_bench_peak *p, double *gflops)
{
    if (p->plan)
        return measure_device(p, gflops);
    double begin = pl_now_ms();
    pl_backend_cpu_sgemm(HOST_SIZE, HOST_SIZE, HOST_SIZE, p->a, p->a, p->c);
    *gflops = 2.0 * HOST_SIZE * HOST_SIZE * HOST_SIZE / (pl_now_ms() - begin) / 1e6;
    return PL_OK;
}
