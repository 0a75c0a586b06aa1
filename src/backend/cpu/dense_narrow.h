/* dense_narrow: what a dense layer's products for a narrow batch and their stages (dense_stages.h) both know. */
#ifndef PL_CPU_DENSE_NARROW_H
#define PL_CPU_DENSE_NARROW_H

#include "backend/cpu/lanes.h"

struct pl_cpu_narrow {
    int64_t n, in, out;
    const float *x, *w, *bias, *dy;
    float *y, *dw;
    bool accumulate;
    float *packed, *turned; /* scratch */
};

#endif
