/* Internal to sync/: what a rank says of its samples, as doubles that are summed over the ranks. */
#ifndef PL_SYNC_COUNTS_H
#define PL_SYNC_COUNTS_H

#include "sync/sync.h"

enum {
    PL_COUNT_ROWS, PL_COUNT_LOSS, PL_COUNT_TOTAL, PL_COUNT_CORRECT, PL_COUNT_CORRECT5, PL_COUNT_STOP, PL_COUNT_SAVE,
    PL_COUNT_NOT_FINITE, PL_COUNTS
};

/* One step's, on top of what is there. */
void pl_counts_add(double v[PL_COUNTS], const struct pl_contribution *mine);
/* After they were summed. */
void pl_counts_read(const double v[PL_COUNTS], struct pl_agreement *out);

#endif
