/* bench_peak: how fast this machine, or its device, multiplies matrices; of the commands of bench alone. */
#ifndef PL_CMD_BENCH_PEAK_H
#define PL_CMD_BENCH_PEAK_H

#include "backend/backend.h"

struct pl_bench_peak;
/* Of the device where table is a far one, otherwise of the host with the cpu backend's threads. The caller destroys *out also
 * after an error, and before backend is closed. */
pl_status pl_bench_peak_create(const struct pl_backend_table *table, struct pl_backend *backend, bool bf16, struct pl_bench_peak **out);
void pl_bench_peak_destroy(struct pl_bench_peak *p); /* NULL is fine */
pl_status pl_bench_peak_measure(struct pl_bench_peak *p, double *gflops);

#endif
