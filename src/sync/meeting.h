/* Internal to sync/: ranks that each go their own way and come together now and then. A thread of its own speaks for a
 * rank, also while the main thread computes, and alone uses the mesh. What is done between two meetings is a phase; rank 0
 * hands its work out piece by piece to who is free, and calls the meeting when all of it is done. Every rank opens the
 * same phases in the same order. Whoever fails tells all; a lost rank, or one that says nothing for exchange.timeout,
 * ends the run on every rank. */
#ifndef PL_SYNC_MEETING_H
#define PL_SYNC_MEETING_H

#include "sync/sync.h"

struct pl_meeting;
enum { PL_MEETING_VALUES = 8, PL_MEETING_COUNTS = 40, PL_MEETING_NOTE = 64 };

/* What a kind does in the thread, with the lock held. */
struct pl_meeting_hooks {
    void (*hear)(void *arg, int from, const void *note);  /* a note of PL_MEETING_NOTE bytes */
    pl_status (*turn)(void *arg, bool *busy);             /* after each look round; busy: look again soon */
    void *arg;
};

struct pl_meet {
    double values[PL_MEETING_VALUES]; /* sums over all ranks */
    int64_t step, epoch, position;    /* of a leg: where the run is now */
};

enum { PL_MEETING_LINE = 16 }; /* elements: shards do not share one of the cache */
/* Which part of a slab that rank keeps: elements [begin, end). */
void pl_meeting_shard(int64_t elems, int rank, int ranks, int64_t *begin, int64_t *end);

/* Collective; ranks agree inside. */
pl_status pl_meeting_create(const struct pl_replica *r, const struct pl_meeting_hooks *h, struct pl_meeting **out);
void pl_meeting_destroy(struct pl_meeting *m); /* NULL is fine */
struct pl_mesh *pl_meeting_mesh(struct pl_meeting *m); /* for the thread */
pl_status pl_meeting_start(struct pl_meeting *m);      /* the thread; nothing before a first time */

/* ---- lock held: by hooks it is, by the main thread it must be --------------------------------------- */
void pl_meeting_lock(struct pl_meeting *m);
void pl_meeting_unlock(struct pl_meeting *m);
/* The main thread waits for the thread to do something. An error: the run is over (pl_meeting_outcome). */
pl_status pl_meeting_wait(struct pl_meeting *m, bool (*done)(const void *arg), const void *arg);
/* The same though a rank is lost, on the first that is left, until the others are told. */
pl_status pl_meeting_wait_for_the_rest(struct pl_meeting *m, bool (*done)(const void *arg), const void *arg);
/* At most PL_MEETING_NOTE bytes. To oneself: heard at once. */
void pl_meeting_say(struct pl_meeting *m, int rank, const void *note, size_t bytes);
void pl_meeting_fail(struct pl_meeting *m, pl_status error); /* by the thread */
/* By the thread: that rank does not do what it has to. */
void pl_meeting_lose(struct pl_meeting *m, int rank, const char *why, ...) __attribute__((format(printf, 3, 4)));
bool pl_meeting_is_lost(const struct pl_meeting *m, int rank);

/* ---- phases: main thread, without the lock ------------------------------------------------------------ */
/* leg: micro-batches up to leg->until are handed out. Otherwise parts 0 to parts - 1, or nothing. */
pl_status pl_meeting_open(struct pl_meeting *m, const struct pl_leg *leg, int parts);
/* A set of so many samples once, `rows` of them at a time, in the order of epoch 0. When all have been handed out, who has
 * nothing to do is handed one that another still has, each at most twice: the first result counts. */
pl_status pl_meeting_open_set(struct pl_meeting *m, int64_t samples, int64_t rows);
/* The next piece of work, of parts `step`; PL_END: there is none any more. */
pl_status pl_meeting_take(struct pl_meeting *m, struct pl_ticket *out);
/* What came of it: added up. In a leg by PL_COUNT_*: if any asks to stop or save, the meeting comes early; of a set if any asks
 * to stop, which the meeting then says: the rest of the set is missing. */
void pl_meeting_done(struct pl_meeting *m, const double *values);
/* Of a set: what was taken last has been done by another, and need not be done. Any thread. */
bool pl_meeting_is_spare(struct pl_meeting *m);
/* Of a set: whether what was done last counts. After each done, before the next one and before the meeting. */
pl_status pl_meeting_counts_it(struct pl_meeting *m, bool *counts);
/* Waits for all. counts: [PL_MEETING_COUNTS] of this rank since the last, added to rank 0's totals; NULL: none. */
pl_status pl_meeting_meet(struct pl_meeting *m, const double *values, const int64_t *counts, struct pl_meet *out);

/* For pl_sync_meshed: a phase of its own, whether anything was before. */
pl_status pl_meeting_share_out(struct pl_meeting *m, const struct pl_parts *p, double *sum);

/* On rank 0: what has come in since it was last asked; counts [PL_MEETING_COUNTS] and micro-batches done by each rank
 * [ranks], of this run; the latter to be read only when no leg is open. */
void pl_meeting_news(struct pl_meeting *m, double *values);
void pl_meeting_counts(struct pl_meeting *m, int64_t *counts);
const int64_t *pl_meeting_shares(const struct pl_meeting *m);

/* ---- the end -------------------------------------------------------------------------------------------- */
/* Once the run is over: *out is only ended, tells and writes. Where a rank is lost, who of those that are left must be more than
 * the others, or half of them with the first; ranks that have died count for neither. Of these the first writes, and no
 * one else. Before it has, it must not leave: if it is lost as well, it is the next one's turn. */
void pl_meeting_parts(struct pl_meeting *m, struct pl_agreement *out);
/* To out->apart, whether it is in a leg, and the place up to which rank 0 handed work out, or where that is lost as far as
 * this rank knows it. */
void pl_meeting_place(struct pl_meeting *m, struct pl_agreement *out);
/* Tells all that the run is over with this exit code; 0: waits until all have come here, or where one is lost ends with 5. PL_END:
 * it is this rank that must write what it did not (wrote false), and then come again. Otherwise the thread ends. */
pl_status pl_meeting_leave(struct pl_meeting *m, int code, bool wrote);
pl_status pl_meeting_part(struct pl_meeting *m, int code, bool wrote, struct pl_parting *out); /* for pl_sync_meshed's leave */

#endif
