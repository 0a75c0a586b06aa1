/* Internal to sync/quorum*.c: what a rank with backup workers holds. quorum.c: the step, in the main thread and in one of
 * its own; quorum_state.c: sums and state, handed to ranks that need them and fetched from those that have them. */
#ifndef PL_SYNC_QUORUM_INTERNAL_H
#define PL_SYNC_QUORUM_INTERNAL_H

#include "sync/averaging.h"
#include "sync/quorum_protocol.h"
#include "sync/sync.h"

#include <stdatomic.h>

enum { PL_QUORUM_SLABS = 4, PL_QUORUM_STATE = 1024 };

enum kind { NOTE, FETCH, GONE };
struct message {
    enum kind kind;
    union {
        struct pl_note note;
        struct { uint64_t id; int64_t version, round; } fetch; /* asks for the sum of that round, or with round 0 for state of
                                                                 * that version at least; GONE: it is not to be had here */
    };
};

/* Before the slabs: what version this is, and what else goes with it. */
struct head {
    int64_t version, steps, dropped[PL_QUORUM_RANKS]; /* steps: that led from the version before to this one */
    struct pl_attempt last;
    unsigned char state[PL_QUORUM_STATE];
};

enum outcome { NONE, COMMITTED, WENT_ON, ENDED };

struct server { /* of one rank that fetches */
    uint64_t asked;
    int64_t version, round; /* as in the message */
    bool wanted, sending;
    bool of_snapshot;       /* what is sent, and its id; otherwise it is a sum */
    uint64_t id;
    int transfers;
    size_t moved;
    double moved_ms;
    struct pl_transfer transfer[1 + PL_QUORUM_SLABS];
};

struct pl_sync {
    struct pl_replica replica;
    struct pl_mesh *mesh;
    struct pl_quorum *quorum;
    struct pl_quorum_options options;
    int64_t elems, sum_elems;     /* of a slab; of a sum */
    int slabs;
    float *slab[PL_QUORUM_SLABS]; /* what equal replicas hold: parameters and the optimizer's state */
    bool local;                   /* a version is made by averaging, not by a step: sync.kind local_sgd */
    struct pl_averaging average;  /* of these */
    float *gradient;              /* [sum_elems] what is summed up */
    struct { float *sum; int64_t round; } sum[2]; /* the last that was committed, and the next: round 0 while it is made */
    pthread_t thread;
    bool threaded;
    char late[512], lost[512], back[512], dropped_text[1024];

    pthread_mutex_t state;   /* held while what others may be given is written */
    pthread_mutex_t lock;    /* everything from here to the line */
    pthread_cond_t news;
    bool ready, leaving, stop, save, over, quit;
    bool waiting, fetched;   /* the main thread reads and writes nothing; meanwhile state has come */
    double values[PL_QUORUM_VALUES];
    bool works, whole;       /* whole: the gradient is, or all the local steps; the main thread's */
    bool missed, holds;      /* local: not all steps were made; state is held. The main thread's */
    unsigned char resting[PL_QUORUM_STATE]; /* local: the replica's state as it was averaged; by `state` */
    enum outcome outcome;
    struct head now;         /* what this rank holds; of it the state only in snapshots */
    struct pl_attempt last;  /* that led there, or by whose sum the main thread updates now */
    struct pl_ranks before;  /* who shared the data of the step before */
    pl_status failed;        /* of the thread */
    _Atomic bool abandon;
    /* ---- the thread's own ---- */
    int64_t reducing, forgot;
    int reducing_into;
    double moved_ms;
    struct { bool active; int from, transfers; uint64_t id; int64_t round, none; size_t moved; double moved_ms; struct pl_transfer transfer[1 + PL_QUORUM_SLABS]; } fetch; /* none: round of a sum that is not to be had */
    uint64_t fetches;
    struct head got;
    struct server *server;   /* [ranks] */
    struct { int64_t version; int users; struct head head; float *slab[PL_QUORUM_SLABS]; } snapshot;
    bool *told_lost;         /* [ranks] */
};

static inline size_t pl_quorum_slab_bytes(const struct pl_sync *s) { return (size_t)s->elems * sizeof(float); }
static inline size_t pl_quorum_sum_bytes(const struct pl_sync *s) { return (size_t)s->sum_elems * sizeof(float); }

/* ---- quorum_state.c; all by the thread, with the lock held ------------------------------------------------ */

int pl_quorum_sum_of(const struct pl_sync *s, int64_t round); /* its place in s->sum, -1: not here */
/* Where the next sum comes to: not in place of the last. Who still takes what lay there before is not waited for; over mpi,
 * where nothing can be taken back, -1 until it has. */
int pl_quorum_make_room(struct pl_sync *s);
uint64_t pl_quorum_hash(const struct pl_sync *s); /* of the parameters */
void pl_quorum_take_request(struct pl_sync *s, int from, const struct message *m);
void pl_quorum_take_refusal(struct pl_sync *s, const struct message *m);
pl_status pl_quorum_serve(struct pl_sync *s);
pl_status pl_quorum_fetch(struct pl_sync *s, const struct pl_task_now *t);

#endif
