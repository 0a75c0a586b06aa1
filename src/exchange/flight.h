/* Internal to exchange/: a flight is a bucket, or a few values, on its way over node and network; progress.c moves it
 * from stage to stage. The exchange thread's alone. */
#ifndef PL_EXCHANGE_FLIGHT_H
#define PL_EXCHANGE_FLIGHT_H

#include "exchange/collective.h"
#include "exchange/compressed.h"
#include "exchange/exchange_internal.h"

enum pl_task_kind { PL_BUCKET, PL_VALUES, PL_STOP };

struct pl_task {
    enum pl_task_kind kind;
    bool exact; /* PL_BUCKET: not compressed */
    enum pl_reduce op;
    int64_t a, n;    /* PL_BUCKET: elements [a, a + n) */
    double *values;  /* PL_VALUES: [n] */
    int64_t step;
    uint64_t number; /* buckets, and values, from the start of the run */
};

enum pl_stage { PL_POSTED, PL_ON_NODE, PL_SCATTERING, PL_ON_NETWORK, PL_WHOLE };

struct pl_flight {
    struct pl_task what;
    enum pl_stage stage;
    bool by_library, compressed;
    struct pl_request request; /* by_library */
    unsigned ticket;           /* otherwise */
    const void *in;
    void *out;
    float *residual; /* compressed */
    double traced;   /* pl_trace_begin */
    int64_t at, n;   /* elements [at, at + n) of the gradient */
    double said[PL_EXCHANGE_VALUES], sum[PL_EXCHANGE_VALUES]; /* unless the route has places for more */
};

/* What flights need on their way. */
struct pl_route {
    struct pl_exchange *exchange;
    struct pl_network network; /* table NULL: this rank has no counterpart on some node, and no network */
    struct pl_collectives *collectives;
    struct pl_compressed *compressed; /* NULL: not asked for */
    double *values;          /* [2 * options.values] what was said, and its sum, of one flight at a time; NULL: flights have room */
    uint64_t next_op;        /* numbers what goes over the network */
    int64_t partial_at;      /* of the node's sums that are in use */
    _Atomic uint64_t saved;  /* bytes that compression did not send */
};

/* PL_POSTED to PL_ON_NODE, or PL_WHOLE for who only waits for others. false: not yet. */
bool pl_flight_prepare(struct pl_route *r, struct pl_flight *f);
/* PL_ON_NODE, by way of PL_SCATTERING, to PL_ON_NETWORK. In order; PL_END: not yet. */
pl_status pl_flight_begin(struct pl_route *r, struct pl_flight *f);
/* PL_ON_NETWORK to PL_WHOLE, where it is. */
pl_status pl_flight_test(struct pl_route *r, struct pl_flight *f);
void pl_flight_finish(struct pl_route *r, struct pl_flight *f); /* PL_WHOLE: hands values back, tells the node */

#endif
