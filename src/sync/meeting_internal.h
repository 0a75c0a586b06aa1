/* Internal to sync/meeting*.c. meeting.c: the thread, its notes, set-up and the end; meeting_handout.c: rank 0 hands out work and
 * adds up; meeting_work.c: a rank takes and does it; meeting_loss.c: a rank is lost. */
#ifndef PL_SYNC_MEETING_INTERNAL_H
#define PL_SYNC_MEETING_INTERNAL_H

#include "sync/counts.h"
#include "sync/meeting.h"

#include <stdatomic.h>

#define MISSING "rank %d did not come to a meeting for %.0f s (exchange.timeout)"
enum { OUTBOX = 32 };

_Static_assert((int)PL_COUNTS <= (int)PL_MEETING_VALUES && (int)PL_PART_VALUES == (int)PL_MEETING_VALUES, "a meeting adds them up");

enum kind { HELLO, ASK, RESULT, TICKET, CLOSED, VERDICT, SPARE, ARRIVE, MEET, GONE, GIVEN_UP, ROLL, HERE, FAIL, OWN };
struct message {
    enum kind kind;
    int part;        /* ask, result: what values are of, -1: of none; spare */
    int taken;       /* ask: tickets that came in this phase */
    bool idle;       /* ask: there is nothing else to do */
    bool counts;     /* verdict */
    int64_t phase;
    union {
        double values[PL_MEETING_VALUES];
        struct pl_ticket ticket;
        struct { double values[PL_MEETING_VALUES]; int64_t counts[PL_MEETING_COUNTS]; } arrive;
        struct pl_meet meet;
        int code;
        _Alignas(8) unsigned char own[PL_MEETING_NOTE];
    };
};

struct rank {
    bool local;                 /* on this node */
    bool lost;
    char why[256];
    bool calls, here;           /* when a rank is lost: it calls the roll; it has answered ours */
    bool gave_up, hangs;        /* this rank; itself: as it said */
    double heard_ms, worked_ms; /* any note; one of work (rank 0's) */
    struct message out[OUTBOX]; /* not yet said */
    unsigned first, n;
    /* rank 0's */
    bool asks, idle, arrived;
    int64_t phase;              /* in which it asks or has arrived */
    int given;                  /* tickets in it */
    double values[PL_MEETING_VALUES];
};

/* Of a set: who has it. */
struct portion { int holder[2], holders; bool done; };

struct pl_meeting {
    struct pl_replica replica;
    struct pl_meeting_hooks hooks;
    struct pl_mesh *mesh;
    int me, ranks, *leader; /* leader: [ranks] the first of each one's node */
    double timeout_ms;
    pthread_t thread;
    bool started, threaded;
    _Atomic bool asleep;
    _Atomic bool spare;   /* what the main thread does has been done by another */

    pthread_mutex_t lock; /* everything below */
    pthread_cond_t news;
    struct rank *rank;    /* [ranks] */
    int64_t phase;        /* the one that is open, or was last */
    bool leg, closed, asking, met, leaving, over;
    int64_t samples, rows; /* of the set that is gone through, in portions; 0: none is */
    struct pl_ticket hand;
    bool in_hand, hand_spare, asked_idle, judged, counts_it;
    int taken;
    double done[PL_MEETING_VALUES];
    int done_part, doing;
    struct pl_meet meet;
    int lost, code, from; /* lost, -1: nobody; code: the run is over with, said by `from` */
    bool called, noticed; /* the roll, by this rank; a loss, by the main thread */
    pl_status failed;     /* of the thread */
    double hello_ms, moved_ms, over_ms, lost_ms; /* lost_ms: anybody, last */
    double turned_ms, away_ms; /* away_ms: this process stood still for so long that others may have given it up; 0: never */
    /* ---- rank 0's ---- */
    struct pl_leg next;   /* of the leg: the global batch that is being handed out */
    int slice, parts, part;
    bool closing;
    double sum[PL_MEETING_VALUES], came[PL_MEETING_VALUES], *part_values; /* [part_room * PL_MEETING_VALUES] */
    struct portion *portion; /* [part_room] */
    int part_room, undone;   /* the first portion that may not be done */
    int64_t counts[PL_MEETING_COUNTS], *share;
};

/* All of these with the lock held. */

void pl_meeting_post(struct pl_meeting *m, int rank, const struct message *msg); /* to oneself: heard at once */

/* ---- meeting_handout.c: rank 0 ---- */
void pl_meeting_answer(struct pl_meeting *m, int rank); /* if it has asked in this phase */
void pl_meeting_hear_ask(struct pl_meeting *m, int from, const struct message *msg);
void pl_meeting_hear_arrival(struct pl_meeting *m, int from, const struct message *msg);
void pl_meeting_hear_result(struct pl_meeting *m, int from, int part, const double *values);
pl_status pl_meeting_room_for_parts(struct pl_meeting *m, int parts);

/* ---- meeting_work.c ---- */
void pl_meeting_hear_ticket(struct pl_meeting *m, const struct pl_ticket *t);
void pl_meeting_hear_spare(struct pl_meeting *m, int part);

/* ---- meeting_loss.c ---- */
void pl_meeting_look_at_clock(struct pl_meeting *m, double now); /* before it hears what has come */
void pl_meeting_look_round(struct pl_meeting *m, double now);    /* after it; says hello as well */
int pl_meeting_first_alive(const struct pl_meeting *m);
bool pl_meeting_is_over(const struct pl_meeting *m);
bool pl_meeting_is_to_write(const struct pl_meeting *m); /* a rank is lost, and this one ends the run and keeps what is left of it */
bool pl_meeting_tells(const struct pl_meeting *m);
pl_status pl_meeting_outcome(struct pl_meeting *m); /* of what is over; says it, where it is for this rank to say */

#endif
