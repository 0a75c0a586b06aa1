/* dnnl: what dnnl.c and conv_dnnl.c share. oneDNN is used where it was found and where its OpenMP
 * threads can be told how many to be. */
#ifndef PL_BACKEND_CPU_DNNL_H
#define PL_BACKEND_CPU_DNNL_H

#include "backend/cpu/cpu.h"

#if defined(PL_HAVE_DNNL) && defined(_OPENMP)
#define PL_CPU_DNNL

#include <omp.h>
#include <oneapi/dnnl/dnnl.h>

struct pl_cpu_dnnl {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
};

/* Of the OpenMP team that the calling thread's next primitive gets; BLAS sets it back to 1. */
void pl_cpu_dnnl_threads(int threads);

#endif
#endif
