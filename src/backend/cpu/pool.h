/* pool: what pool.c and pool_blocked.c share. */
#ifndef PL_BACKEND_CPU_POOL_H
#define PL_BACKEND_CPU_POOL_H

#include "backend/cpu/cpu.h"
#include "backend/cpu/im2col.h"

/* The block of the layout that op goes through as it lies; 1: canonical. */
int64_t pl_cpu_pool_block(const struct pl_op *op);
/* At plan time, for a block above 1. */
pl_status pl_cpu_pool_blocked_plan(struct pl_plan *p, const struct pl_cpu_window *w, int64_t block);
/* from: [N, C / block, oh, ow, block] of a maximum, NULL in evaluation; inverse: [oh, ow] of an average. */
pl_status pl_cpu_pool_blocked(struct pl_plan *p, const struct pl_io *io, const struct pl_cpu_window *w, int64_t block,
                              int32_t *from, const float *inverse, bool backward);

#endif
