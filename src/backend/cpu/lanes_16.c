/* lanes_16: our products on vectors of sixteen floats (AVX-512). */
#define LANES 16
#include "backend/cpu/lanes_table.h"

const struct pl_cpu_lanes pl_cpu_lanes_16 = PL_LANES_TABLE;
