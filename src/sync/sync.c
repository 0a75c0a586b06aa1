/* The list of ways to agree, and what they say beside the gradient or the parameters. */
#include "sync/counts.h"

#include <string.h>

extern const struct pl_sync_table pl_sync_allreduce, pl_sync_local_sgd, pl_sync_quorum, pl_sync_downpour, pl_sync_sandblaster;

static const struct pl_sync_table *const kinds[] = {&pl_sync_allreduce, &pl_sync_local_sgd, &pl_sync_quorum, &pl_sync_downpour, &pl_sync_sandblaster};

const struct pl_sync_table *pl_sync_find(const char *name)
{
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(kinds[i]->name, name) == 0)
            return kinds[i];
    return NULL;
}

void pl_counts_add(double v[PL_COUNTS], const struct pl_contribution *mine)
{
    v[PL_COUNT_ROWS] += mine->rows;
    v[PL_COUNT_LOSS] += mine->loss;
    v[PL_COUNT_TOTAL] += mine->total;
    v[PL_COUNT_CORRECT] += mine->correct;
    v[PL_COUNT_CORRECT5] += mine->correct5;
    v[PL_COUNT_STOP] += mine->stop ? 1 : 0;
    v[PL_COUNT_SAVE] += mine->save ? 1 : 0;
    v[PL_COUNT_NOT_FINITE] = mine->not_finite || v[PL_COUNT_NOT_FINITE] > 0 ? 1 : 0; /* ranks, not steps */
}

void pl_counts_read(const double v[PL_COUNTS], struct pl_agreement *out)
{
    out->rows = v[PL_COUNT_ROWS];
    out->loss = v[PL_COUNT_LOSS];
    out->total = v[PL_COUNT_TOTAL];
    out->correct = v[PL_COUNT_CORRECT];
    out->correct5 = v[PL_COUNT_CORRECT5];
    out->stop = v[PL_COUNT_STOP] > 0;
    out->save = v[PL_COUNT_SAVE] > 0;
    out->not_finite = (int)v[PL_COUNT_NOT_FINITE];
}
