/* The kernels of the cuda backend as plain functions: each starts work on the stream and returns at once. Pointers are to
 * device memory, but for what is taken by value. Whether the start failed tells pl_cuda_launched. Numbers of elements are
 * int64_t; everything is in float, sums over many in double or in a fixed order, so that the same run gives the same bits. */
#ifndef PL_BACKEND_CUDA_KERNELS_H
#define PL_BACKEND_CUDA_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pl_cuda_stream_tag *pl_cuda_stream; /* a cudaStream_t */

/* What changes from pass to pass; kernels get a pointer to it in device memory. */
struct pl_cuda_pass { int64_t rows; uint64_t seed, step_key; };

/* An activation [n, c, plane]: element (i, k, at) is at i * sn + k * sc + at * sp. Canonical: sc = plane, sp = 1; channels
 * last: sc = 1, sp = c. */
struct pl_cuda_view { int64_t n, c, h, w, sn, sc, sp; };

#ifdef __cplusplus
}
#endif
#endif
