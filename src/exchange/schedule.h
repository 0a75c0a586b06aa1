/* Internal to exchange/ (and its tests): who sends what to whom in an all-reduce, worked out beforehand. A
 * schedule is one member's list of sends and list of receives; collective.c carries it out. `in` is the
 * member's own part, never written; `out` becomes the sum. Every element is added up by one chain of members
 * and then handed on, so all get the same bits. */
#ifndef PL_SCHEDULE_H
#define PL_SCHEDULE_H

#include "base/base.h"

enum pl_pattern {
    PL_RING,             /* Patarasuk and Yuan, Bandwidth optimal all-reduce algorithms, JPDC 2009 */
    PL_HALVING_DOUBLING, /* Thakur, Rabenseifner, Gropp, Optimization of Collective Communication in MPICH, IJHPCA 2005 */
    PL_TREE,             /* a binomial tree to member 0 and back: few elements, many members */
    PL_PATTERNS,         /* those above are all-reduces */
    /* in and out are cut into a slot for each member, of equal lengths. */
    PL_SCATTER = PL_PATTERNS, /* out's slot q: what member q has in the slot of this member; not its own */
    PL_GATHER                 /* out's slot q: what member q has in its own slot; not its own */
};

enum pl_how {
    PL_FROM_IN, PL_FROM_OUT,        /* a send */
    PL_COPY, PL_ADD_IN, PL_ADD_OUT  /* a receive x: out = x, out = x + in, out = x + out */
};

struct pl_move {
    int64_t a, n;   /* elements [a, a + n) */
    int32_t peer;
    int32_t after;  /* of a send: so many receives, from the first, are done; of a receive: so many sends */
    uint32_t piece; /* counts the messages from the one to the other */
    enum pl_how how;
};

struct pl_schedule {
    enum pl_pattern pattern;
    int64_t elems;
    int sends, receives;
    struct pl_move *send, *receive; /* in the order in which they are to be posted */
};

/* Of member `me` of `members` (two at least), for `elems` elements; no message has more than `most`.
 * PL_ERR_MEMORY. */
pl_status pl_schedule_make(enum pl_pattern p, int me, int members, int64_t elems, int64_t most, struct pl_schedule *out);
void pl_schedule_free(struct pl_schedule *s);
const char *pl_pattern_name(enum pl_pattern p); /* as in the job file */

/* Where part r of `parts` of n elements begins, at a cache line; r = parts: n. */
int64_t pl_part(int64_t n, int r, int parts);

#endif
