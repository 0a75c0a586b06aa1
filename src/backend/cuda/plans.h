/* plans: what the plans of operations share, but for products and convolutions. */
#ifndef PL_BACKEND_CUDA_PLANS_H
#define PL_BACKEND_CUDA_PLANS_H

#include "backend/cuda/cuda.h"

/* Refuses what the kernels cannot count: samples, or channels of a batch, of 2^31 elements or more. */
pl_status pl_cuda_check_sizes(const struct pl_plan *p);
/* The same, and that each input is the output's equal element by element: where flattened ones lie channels last, the views of
 * all of them get those channels. */
pl_status pl_cuda_check_same(struct pl_plan *p);
pl_status pl_cuda_far_state(struct pl_plan *p, size_t bytes, const char *what); /* makes p->far */
/* Whether all inputs and the output lie alike, so that one loop goes over all of them. */
bool pl_cuda_lie_alike(const struct pl_plan *p);
/* The next so many floats of memory that is cut up. */
static inline float *pl_cuda_take(char **at, int64_t elems)
{
    float *v = (float *)(void *)*at;
    *at += pl_cuda_copy_bytes(elems, false);
    return v;
}
/* After a plan's launches */
static inline pl_status pl_cuda_started(const struct pl_plan *p) { return pl_cuda_launched(p->backend->device, p->op.name); }

#endif
