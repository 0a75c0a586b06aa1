/* lanes_table: the table of lanes_8.c or lanes_16.c, which has set LANES. */
#include "backend/cpu/dense_stages.h"
#include "backend/cpu/lanes.h"
#include "backend/cpu/packed_stages.h"
#include "backend/cpu/winograd_stages.h"

#define PL_LANES_TABLE \
    { \
        .lanes = LANES, .rows = ROWS, .columns = COLUMNS, .most_effort = 0.9, \
        .winograd = {patches_part, filters_part, products_part, outputs_part, gradients_part, weights_part, filter_gradients_part, patch_gradients_part}, \
        .dense = {pack_samples, narrow_forward_part, pack_inputs, pack_units, narrow_weights_part}, \
        .packed = {.pack = pack_panels, .multiply = multiply_packed, .columns = COLUMNS}, \
    }
