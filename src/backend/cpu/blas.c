/* blas: the one door to CBLAS, and what must be known of OpenBLAS to use it well.
 *
 * A product is cut over our pool and each part calls sgemm with one thread. An OpenMP build of
 * OpenBLAS asks the calling thread's own omp_get_max_threads(), so that is set to 1 on every thread
 * that comes by (seen in 0.3.21: no team is made); a pthread build is told once when opened. */
#include "backend/cpu/cpu.h"

#include <cblas.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

static void one_thread_here(void) {
#ifdef _OPENMP
    if (omp_get_max_threads() != 1)
        omp_set_num_threads(1);
#endif
}

bool pl_cpu_blas_open(int threads) {
    one_thread_here();
#ifdef PL_HAVE_OPENBLAS
    openblas_set_num_threads(1);
    if (openblas_get_parallel() == OPENBLAS_SEQUENTIAL)
        return threads == 1; /* may have been built without locks */
#ifndef _OPENMP
    if (openblas_get_parallel() == OPENBLAS_OPENMP)
        return threads == 1; /* cannot be told to stay on its thread */
#endif
    return true;
#else
    return threads == 1; /* nothing is known of it */
#endif
}

void pl_cpu_blas_describe(char *text, size_t bytes) {
#ifdef PL_HAVE_OPENBLAS
    static const char *const how[] = {"sequential build", "pthread build", "OpenMP build"};
    const char *config = openblas_get_config(); /* "OpenBLAS 0.3.21 NO_LAPACKE ..." */
    const char *version = config + strcspn(config, " ");
    version += *version == ' ';
    int parallel = openblas_get_parallel();
    const char *build = parallel >= 0 && parallel <= 2 ? how[parallel] : "unknown build";
    snprintf(text, bytes, "OpenBLAS %.*s %s, %s%s", (int)strcspn(version, " "), version,
             openblas_get_corename(), build,
             parallel == OPENBLAS_SEQUENTIAL ? " (products on one thread)" : "");
#else
    snprintf(text, bytes, "CBLAS of unknown make (products on one thread)");
#endif
}

pl_status pl_cpu_gemm_check(const struct pl_op *op, int64_t m, int64_t n, int64_t k) {
    if (m > INT_MAX || n > INT_MAX || k > INT_MAX)
        return pl_cpu_refuse(op, "a matrix of it has more than 2147483647 rows or columns");
    return PL_OK;
}

void pl_cpu_gemm_here(const struct pl_cpu_gemm *g) {
    one_thread_here();
    cblas_sgemm(CblasRowMajor, g->ta ? CblasTrans : CblasNoTrans, g->tb ? CblasTrans : CblasNoTrans,
                (int)g->m, (int)g->n, (int)g->k, 1.0f, g->a, (int)g->lda, g->b, (int)g->ldb,
                g->beta, g->c, (int)g->ldc);
}

static void gemm_rows(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    struct pl_cpu_gemm g = *(const struct pl_cpu_gemm *)arg;
    g.a += g.ta ? begin : begin * g.lda;
    g.c += begin * g.ldc;
    g.m = end - begin;
    pl_cpu_gemm_here(&g);
}

static void gemm_columns(void *arg, int part, int64_t begin, int64_t end) {
    (void)part;
    struct pl_cpu_gemm g = *(const struct pl_cpu_gemm *)arg;
    g.b += g.tb ? begin * g.ldb : begin;
    g.c += begin;
    g.n = end - begin;
    pl_cpu_gemm_here(&g);
}

/* Cuts the longer side of C, at least 16 wide and a quarter of a million multiply-adds a part. */
void pl_cpu_gemm(const struct pl_backend *b, const struct pl_cpu_gemm *g) {
    bool rows = g->m > g->n;
    int64_t length = rows ? g->m : g->n, other = rows ? g->n : g->m;
    int64_t grain = 262144 / (other * g->k + 1) + 1;
    if (grain < 16)
        grain = 16;
    if (!b->blas_parallel)
        grain = length;
    pl_cpu_parts(b, length, grain, rows ? gemm_rows : gemm_columns, (void *)(uintptr_t)g);
}

void pl_backend_cpu_sgemm(int64_t m, int64_t n, int64_t k, const float *a, const float *b,
                          float *c) {
    int threads = pl_pool_threads();
    struct pl_backend here = {.threads = threads < 1 ? 1 : threads};
    here.blas_parallel = pl_cpu_blas_open(here.threads);
    pl_cpu_gemm(&here, &(struct pl_cpu_gemm){.m = m, .n = n, .k = k, .a = a, .lda = k, .b = b,
                                             .ldb = n, .c = c, .ldc = n});
}

/* OpenBLAS 0.3.21 does not know the newer Xeons and runs them with its Haswell kernels, at 75 where
 * 124 GFLOP/s can be had. It chooses in its constructor, hence the second start. */
bool pl_backend_cpu_core_override(const char **coretype) {
#if defined(PL_HAVE_OPENBLAS) && defined(__x86_64__)
    if (getenv("OPENBLAS_CORETYPE") != NULL)
        return false;
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512vl") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512bw"))
        return false;
    const char *core = openblas_get_corename();
    if (strcasecmp(core, "Haswell") != 0 && strcasecmp(core, "Zen") != 0)
        return false;
    *coretype = "SkylakeX";
    return true;
#else
    (void)coretype;
    return false;
#endif
}
