/* dnnl: oneDNN's engine and stream, and what this build and machine have, in words. */
#include "backend/cpu/cpu.h"

#include <string.h>

static const char *instructions(void) {
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

#ifdef PL_HAVE_DNNL
#else
struct pl_cpu_dnnl *pl_cpu_dnnl_open(void) { return NULL; }
void pl_cpu_dnnl_close(struct pl_cpu_dnnl *d) { (void)d; }
static void dnnl_text(char *text, size_t bytes) { snprintf(text, bytes, "no oneDNN"); }
#endif

void pl_backend_cpu_describe(char *text, size_t bytes) {
    char blas[128], dnnl[128];
    pl_cpu_blas_describe(blas, sizeof blas);
    dnnl_text(dnnl, sizeof dnnl);
    snprintf(text, bytes, "%s, %s, %s", instructions(), blas, dnnl);
}
