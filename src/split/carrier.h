/* Internal to split/: carries memory and values between the ranks of a replica, which have its stages or its parts, while they
 * compute, in a thread of its own that sleeps while there is nothing to carry. */
#ifndef PL_SPLIT_CARRIER_H
#define PL_SPLIT_CARRIER_H

#include "exchange/exchange.h"

struct pl_carrier;

/* What the ranks of the row have, in messages and in the timeline. Constant. */
struct pl_carrier_words { const char *one, *all, *to, *from, *wait; };

/* Memory on its way to or from another stage, both of whom know its length; the caller's from post until it has been waited
 * for. */
struct pl_crossing {
    bool sends;
    int stage;
    void *memory; /* of one that sends it is only read */
    size_t bytes;
    bool under_way;
    struct pl_transfer transfer;
    double traced; /* pl_trace_begin */
    struct pl_crossing *next;
};

/* row: the stages, or parts. Collective over it; they agree inside. */
pl_status pl_carrier_open(struct pl_world *row, const struct pl_carrier_words *words, const struct pl_exchange_options *o, struct pl_carrier **out);
/* lost: after an error; nothing is waited for. Otherwise collective over the row. NULL is fine. */
void pl_carrier_close(struct pl_carrier *c, bool lost);
const char *pl_carrier_why(const struct pl_carrier *c);

/* Those between two stages cross in the order in which both post them. */
void pl_carrier_post(struct pl_carrier *c, struct pl_crossing *x);
/* One that was not posted has crossed. PL_ERR_PEER after the timeout, or where a stage is lost. */
pl_status pl_carrier_wait(struct pl_carrier *c, const struct pl_crossing *x);
/* all[stages * PL_EXCHANGE_VALUES]: what each says; collective over the row. Valid until the next. */
pl_status pl_carrier_gather(struct pl_carrier *c, const double *mine, int n, const double **all);
/* Sums, or largest, over the row, in its order: the same bits on all. */
pl_status pl_carrier_sum(struct pl_carrier *c, double *v, int n);
pl_status pl_carrier_max(struct pl_carrier *c, double *v, int n);
double pl_carrier_waited_ms(struct pl_carrier *c); /* since it was asked */

#endif
