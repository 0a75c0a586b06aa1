/* exchange: adds up gradients over the ranks while backward goes on, and carries all other traffic.
 * One thread talks to the transport; everything here is a request to it, served in order, so every
 * rank must make the same requests in the same order. All functions: main thread. */
#ifndef PL_EXCHANGE_H
#define PL_EXCHANGE_H

#include "transport/transport.h"

struct pl_exchange;

struct pl_exchange_options {
    const char *transport; /* name or "auto" */
    double bucket_bytes;   /* a bucket goes out when it holds this much */
    double timeout_ms;     /* of every wait */
};
struct pl_exchange_times {
    double exposed_ms; /* main thread waited for it in finish */
    double total_ms;   /* sum over buckets from hand-over to whole */
    double busy_ms;    /* from the first bucket's hand-over to the last one's end */
};

/* Chooses and opens the transport, starts the thread. One rank alone has neither. Collective. */
pl_status pl_exchange_create(struct pl_world *w, const struct pl_exchange_options *o, struct pl_exchange **out);
/* Ends the thread, then closes. Collective when no error happened; after an error nothing is waited for. */
void pl_exchange_destroy(struct pl_exchange *x);
const char *pl_exchange_transport(const struct pl_exchange *x); /* name */
const char *pl_exchange_algorithm(const struct pl_exchange *x);
const char *pl_exchange_why(const struct pl_exchange *x);       /* a sentence */

/* Gradient of a step: own gradient `mine` and the sum over ranks `sum`, both [elems], distinct. The
 * own one is never written. begin; ready for ranges [a, b) from elems down to 0 without a gap;
 * finish waits until `sum` is whole. */
pl_status pl_exchange_begin(struct pl_exchange *x, const float *mine, float *sum, int64_t elems, int64_t step);
pl_status pl_exchange_ready(struct pl_exchange *x, int64_t a, int64_t b);
pl_status pl_exchange_finish(struct pl_exchange *x, struct pl_exchange_times *times);

/* Sums n doubles (at most 16) over the ranks, in the step: posted now, valid after finish. */
pl_status pl_exchange_post_sum(struct pl_exchange *x, double *values, int n);
/* The same, waited for. */
pl_status pl_exchange_sum(struct pl_exchange *x, double *values, int n);
pl_status pl_exchange_max(struct pl_exchange *x, double *values, int n);

#endif
