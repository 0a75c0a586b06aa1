/* Internal to sync/: replicas that differ for sync.tau steps and are then averaged, in their parameters and by choice in
 * the optimizer's state. The average is over samples: w = w0 + sum(n_r (w_r - w0)) / sum(n_r), with w0 what all started
 * from and n_r the samples that rank r has seen since. So one local step by plain SGD is synchronous SGD whatever the
 * shares. What is exchanged are differences, which are small: it rounds like a sum of gradients. Running statistics are
 * parameters. Averagings fall on the steps that tau divides, so that a run that goes on keeps their places, and on the
 * last. */
#ifndef PL_SYNC_AVERAGING_H
#define PL_SYNC_AVERAGING_H

#include "sync/counts.h"

enum { PL_AVERAGING_SLABS = 3 };

struct pl_averaging {
    int64_t tau, elems;                /* elems: of each slab */
    int slabs;                         /* parameters and, if it is averaged, the optimizer's state */
    float *slab[PL_AVERAGING_SLABS];   /* as they are now */
    float *start[PL_AVERAGING_SLABS];  /* [elems] each: as the last averaging left them */
    bool started;
    int64_t step, steps;               /* under way; local ones since the last averaging */
    double counts[PL_COUNTS], rows;    /* since then; of this step */
};

int pl_averaging_slabs(const struct pl_replica *r);
pl_status pl_averaging_open(struct pl_averaging *a, const struct pl_replica *r);
void pl_averaging_close(struct pl_averaging *a); /* also of zeros */

/* A local step: begins; has computed; is over. */
void pl_averaging_begin(struct pl_averaging *a, int64_t step);
void pl_averaging_count(struct pl_averaging *a, const struct pl_contribution *mine);
bool pl_averaging_due(const struct pl_averaging *a, bool last); /* last: of the run */

/* What this rank brings to the sum, of elements [from, to) of slab i: out [to - from] = n_r (w_r - w0). samples: n_r, of
 * counts before they are summed. */
void pl_averaging_weigh(const struct pl_averaging *a, double samples, int i, int64_t from, int64_t to, float *out);
/* The average, from sum [slabs * elems] over so many samples, of none the one before; the next one starts from it. */
void pl_averaging_take(struct pl_averaging *a, const float *sum, double samples);
/* The next one starts from what is in the slabs; and the other way round. */
void pl_averaging_restart(struct pl_averaging *a);
void pl_averaging_go_back(struct pl_averaging *a);

#endif
