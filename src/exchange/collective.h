/* Internal to exchange/ (and its tests): all-reduces by schedules, several at a time, over any transport. One
 * thread at a time. */
#ifndef PL_COLLECTIVE_H
#define PL_COLLECTIVE_H

#include "exchange/schedule.h"
#include "transport/transport.h"

enum { PL_PIECE_BYTES = 128 << 10, /* of a message: what was received is added up while it lies in the second-level cache */
       PL_COLLECTIVES = 4 };       /* under way at a time: while one waits for a message, others use the link */

struct pl_collectives; /* of one open group */

pl_status pl_collectives_create(const struct pl_transport_table *table, struct pl_transport *t, const struct pl_group *g,
                                struct pl_collectives **out);
/* From now on among member[n] of the open group, ascending, this one of them. Only when idle. */
pl_status pl_collectives_among(struct pl_collectives *c, const int *member, int n);
/* Those under way are over; their messages are the caller's to forget. */
void pl_collectives_abandon(struct pl_collectives *c);
void pl_collectives_destroy(struct pl_collectives *c); /* the transport is closed before */

struct pl_reduction {
    enum pl_pattern pattern;
    bool bytes;        /* elements are bytes, which are not added up: scatter and gather */
    enum pl_reduce op;
    const void *in; /* [n], left as it is; stays so until done */
    void *out;      /* [n], apart from in */
    int64_t n;
    uint64_t step;
    uint32_t bucket; /* step and bucket: the same on all members, and no other's that is under way */
};

/* Every member starts the same reductions in the same order. PL_END: not yet, those under way come first. They
 * are called done in that order. */
pl_status pl_collectives_start(struct pl_collectives *c, const struct pl_reduction *r, unsigned *ticket);
/* Goes on with what can be gone on with. *moved: anything was received or sent. PL_ERR_PEER. */
pl_status pl_collectives_progress(struct pl_collectives *c, bool *moved);
uint64_t pl_collectives_sent(const struct pl_collectives *c); /* bytes, so far; any thread */
bool pl_collectives_idle(const struct pl_collectives *c); /* none is under way */
bool pl_collectives_done(const struct pl_collectives *c, unsigned ticket);

#endif
