/* Internal to exchange/ (and its tests): the ways to add up, behind the contract. */
#ifndef PL_EXCHANGE_INTERNAL_H
#define PL_EXCHANGE_INTERNAL_H

#include "exchange/choose.h"
#include "exchange/compress/compress.h"
#include "exchange/exchange.h"
#include "exchange/group.h"

struct pl_progress; /* progress.c */
struct pl_shared;   /* node.c */

/* A way to add up over several ranks. Called by the main thread, the same calls on every rank. */
struct pl_algorithm {
    /* Elements [a, b) of the gradient are final: adds them up, or starts to. exact: whatever else is compressed. */
    pl_status (*post_bucket)(struct pl_exchange *x, int64_t a, int64_t b, bool exact);
    /* The same for n doubles, in place. */
    pl_status (*post_values)(struct pl_exchange *x, enum pl_reduce op, double *values, int n);
    /* Until all that was posted is whole. */
    pl_status (*drain)(struct pl_exchange *x);
    void (*close)(struct pl_exchange *x);
};

/* Who adds up with whom: the ranks of this node in memory that they share, then those of equal place (a column)
 * over all nodes. A node's sum is cut into as many parts as every node has ranks. One level: all ranks are one column. */
struct pl_levels {
    int *node, node_ranks, place; /* [node_ranks]; this rank's place among them */
    int *column_ranks, members;   /* [members] of this rank's column */
    int column, columns;          /* column -1: of a place that some node lacks; it waits for the others */
};

struct pl_exchange {
    struct pl_world *world; /* NULL in tests without MPI */
    struct pl_exchange_options options; /* values: as many as there are */
    const struct pl_algorithm *algorithm; /* NULL with one rank */
    struct pl_levels levels;
    struct pl_shared *shared;     /* NULL: one level */
    struct pl_progress *progress; /* NULL: one node */
    struct pl_reducer *reducer;   /* far.c: of buckets that are far; progress then has the small sums alone. NULL: none are */
    struct pl_choice choice;
    const char *transport;
    char why[1400], name[128];
    float *gradient, *sum; /* [elems] */
    float *partial;        /* [partial_elems] this node's sum of the parts of this rank's column */
    const struct pl_codec *codec; /* NULL: as it is */
    struct pl_span *exact, *gap;  /* [options.exacts], [options.gaps], of one allocation */
    float *residual;       /* [elems], or NULL: what compression lost, for the next step */
    float *own[4];         /* those of them that close with us */
    int64_t elems, partial_elems, step;
    int64_t bucket_end, ready_from; /* elements of the open bucket: [ready_from, bucket_end) */
    double first_post_ms, within_ms;
};

/* progress.c: over a network; NULL: this rank has no column. With shared memory, on two levels. */
extern const struct pl_algorithm pl_algorithm_network;
pl_status pl_exchange_network_open(struct pl_exchange *x, const struct pl_network *network);
void pl_exchange_network_traffic(struct pl_exchange *x, double *sent_mb, double *saved_mb); /* since the last call */

/* node.c: `memory` is shared by all `ranks`, zeroed, at least pl_exchange_shared_bytes. values, common: of the options. name[ranks]:
 * their numbers in the run, NULL: the same. */
extern const struct pl_algorithm pl_algorithm_shared;
size_t pl_exchange_shared_bytes(int ranks, int64_t elems, int values, int common);
pl_status pl_exchange_shared_open(struct pl_exchange *x, void *memory, int rank, int ranks, const int *name);
void pl_exchange_shared_close(struct pl_exchange *x);

/* What a rank should touch first, so that it lies near it: its own gradient and its part of the sum and of what is common. */
struct pl_extent { size_t offset, bytes; };
enum { PL_OWN_EXTENTS = 2 + PL_EXCHANGE_COMMON };
void pl_exchange_shared_extents(int rank, int ranks, int64_t elems, int values, int common, struct pl_extent own[PL_OWN_EXTENTS]);

/* far.c: sums that the backend makes of what lies with it. Collective; ranks agree inside. finish: waits for them. */
pl_status pl_exchange_far_open(struct pl_exchange *x);
pl_status pl_exchange_far_finish(struct pl_exchange *x);

/* shared_memory.c: maps `bytes` that the ranks node[ranks], which lie on one node, share and reserves this rank's
 * own. PL_END on all ranks of the run with the reason in why where any of them cannot have that. Collective. */
pl_status pl_exchange_map(struct pl_world *w, const int *node, int ranks, size_t bytes, const struct pl_extent own[PL_OWN_EXTENTS],
                          void **out, char *why, size_t why_bytes);
void pl_exchange_unmap(void *memory, size_t bytes, int ranks);

/* For tests without a world, whose ranks are threads or forked processes: an exchange in given shared memory, over a
 * given network, which it takes over, or on both levels. memory, network NULL: none. The lists in levels stay the
 * caller's. */
pl_status pl_exchange_create_in(void *memory, const struct pl_levels *levels, const struct pl_network *network,
                                const struct pl_exchange_options *o, int64_t elems, struct pl_exchange **out);
/* A mesh over a given network among all ranks, which it takes over. */
pl_status pl_mesh_open_in(const struct pl_network *network, const struct pl_exchange_options *o, size_t note_bytes, struct pl_mesh **out);

/* options.values, where 0 is said in words. */
static inline int pl_exchange_most_values(int values) { return values > 0 ? values : PL_EXCHANGE_VALUES; }

/* One more in a list of ranks, "2, 5", as far as it has room; more: a number, a list, or nothing. */
void pl_exchange_append(char *list, size_t bytes, const char *more);
/* The one message of a wait that took so long. missing: a list. */
pl_status pl_exchange_timed_out(double ms, int64_t step, const char *missing);

#endif
