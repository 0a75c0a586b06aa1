/* lanes_8: our products on vectors of eight floats (AVX with FMA). */
#define LANES 8
#include "backend/cpu/lanes_table.h"

const struct pl_cpu_lanes pl_cpu_lanes_8 = PL_LANES_TABLE;
