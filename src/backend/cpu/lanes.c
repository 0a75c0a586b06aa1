/* lanes: the width of vectors that this processor multiplies fastest. */
#include "backend/cpu/lanes.h"

const struct pl_cpu_lanes *pl_cpu_lanes_here(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f"))
        return &pl_cpu_lanes_16;
    if (__builtin_cpu_supports("fma"))
        return &pl_cpu_lanes_8;
#endif
    return NULL;
}
