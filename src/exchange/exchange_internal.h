/* Internal to exchange/ (and its tests): the ways to add up, behind the contract. */
#ifndef PL_EXCHANGE_INTERNAL_H
#define PL_EXCHANGE_INTERNAL_H

#include "exchange/exchange.h"

struct pl_native; /* progress.c */
struct pl_shared; /* node.c */

/* A way to add up over several ranks. Called by the main thread, the same calls on every rank. */
struct pl_algorithm {
    const char *name;
    /* Elements [a, b) of the gradient are final: adds them up, or starts to. */
    pl_status (*post_bucket)(struct pl_exchange *x, int64_t a, int64_t b);
    /* The same for n doubles, in place. */
    pl_status (*post_values)(struct pl_exchange *x, enum pl_reduce op, double *values, int n);
    /* Until all that was posted is whole. */
    pl_status (*drain)(struct pl_exchange *x);
    void (*close)(struct pl_exchange *x);
};

struct pl_exchange {
    struct pl_world *world; /* NULL in tests of the shared memory alone */
    struct pl_exchange_options options;
    const struct pl_algorithm *algorithm; /* NULL with one rank */
    struct pl_native *native;
    struct pl_shared *shared;
    const char *transport;
    char why[256];
    float *gradient, *sum; /* [elems] */
    float *own[2];         /* those of them that close with us */
    int64_t elems, step;
    int64_t bucket_end, ready_from; /* elements of the open bucket: [ready_from, bucket_end) */
    double first_post_ms, within_ms;
};

/* progress.c: MPI's all-reduce, driven by a thread. Collective. */
extern const struct pl_algorithm pl_algorithm_native;
pl_status pl_exchange_native_open(struct pl_exchange *x);

/* node.c: `memory` is shared by all `ranks`, zeroed, at least pl_exchange_shared_bytes. */
extern const struct pl_algorithm pl_algorithm_shared;
size_t pl_exchange_shared_bytes(int ranks, int64_t elems);
pl_status pl_exchange_shared_open(struct pl_exchange *x, void *memory, int rank, int ranks);

/* What a rank should touch first, so that it lies near it: its own gradient and its part of the sum. */
struct pl_extent { size_t offset, bytes; };
enum { PL_OWN_EXTENTS = 2 };
void pl_exchange_shared_extents(int rank, int ranks, int64_t elems, struct pl_extent own[PL_OWN_EXTENTS]);

/* shared_memory.c: maps `bytes` that all ranks of the run, on one node, share and reserves this rank's own.
 * PL_END on all ranks with the reason in why where that cannot be had. Collective. */
pl_status pl_exchange_map(struct pl_world *w, size_t bytes, const struct pl_extent own[PL_OWN_EXTENTS], void **out,
                          char *why, size_t why_bytes);
void pl_exchange_unmap(void *memory, size_t bytes);

/* An exchange in given shared memory, for tests: no world, the ranks are threads or forked processes. */
pl_status pl_exchange_create_in(void *memory, int rank, int ranks, const struct pl_exchange_options *o, int64_t elems,
                                struct pl_exchange **out);

/* The one message of a wait that took too long. missing: "2, 5". */
pl_status pl_exchange_timed_out(const struct pl_exchange *x, int64_t step, const char *missing);

#endif
