/* dnnl: oneDNN's engine and stream, its threads, and what this build and machine have, in words. */
#include "backend/cpu/dnnl.h"

#include <string.h>

const char *pl_cpu_instructions(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f"))
        return "avx512";
    if (__builtin_cpu_supports("avx2"))
        return "avx2";
    return "sse2";
#else
    return "portable";
#endif
}

#ifdef PL_CPU_DNNL

struct pl_cpu_dnnl *pl_cpu_dnnl_open(void) {
    struct pl_cpu_dnnl *d = pl_alloc(sizeof *d, "oneDNN's engine");
    if (d == NULL)
        return NULL;
    if (dnnl_engine_create(&d->engine, dnnl_cpu, 0) != dnnl_success ||
        dnnl_stream_create(&d->stream, d->engine, dnnl_stream_in_order) != dnnl_success) {
        pl_cpu_dnnl_close(d);
        return NULL;
    }
    return d;
}

void pl_cpu_dnnl_close(struct pl_cpu_dnnl *d) {
    if (d == NULL)
        return;
    if (d->stream != NULL)
        dnnl_stream_destroy(d->stream);
    if (d->engine != NULL)
        dnnl_engine_destroy(d->engine);
    pl_free(d);
}

static bool knows(dnnl_cpu_isa_t isa) {
    return (dnnl_get_effective_cpu_isa() & isa) == isa;
}

bool pl_cpu_dnnl_bf16(void) { return knows(dnnl_cpu_isa_avx512_core_bf16); }
bool pl_cpu_dnnl_amx(void) { return knows(dnnl_cpu_isa_avx512_core_amx); }

void pl_cpu_dnnl_threads(int threads) {
    omp_set_num_threads(threads);
}

static void dnnl_text(char *text, size_t bytes) {
    const dnnl_version_t *v = dnnl_version();
    snprintf(text, bytes, "oneDNN %d.%d.%d", v->major, v->minor, v->patch);
}

#else

struct pl_cpu_dnnl *pl_cpu_dnnl_open(void) {
    return NULL;
}

void pl_cpu_dnnl_close(struct pl_cpu_dnnl *d) {
    (void)d;
}

bool pl_cpu_dnnl_bf16(void) { return false; }
bool pl_cpu_dnnl_amx(void) { return false; }

static void dnnl_text(char *text, size_t bytes) {
    snprintf(text, bytes, "no oneDNN");
}

#endif

void pl_backend_cpu_describe(char *text, size_t bytes) {
    char blas[128], dnnl[64];
    pl_cpu_blas_describe(blas, sizeof blas);
    dnnl_text(dnnl, sizeof dnnl);
    snprintf(text, bytes, "%s, %s, %s, %s", pl_cpu_instructions(), blas, dnnl, pl_cpu_dnnl_bf16() ? "bf16" : "no bf16");
}
