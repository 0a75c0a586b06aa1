/* Internal to sync/ (and its tests): who takes part in a step, and which ranks are still members; the design's section
 * 11. A state machine without clock, thread or network: it is told what happened and when, and asked what to say and do.
 *
 * One rank coordinates. It fixes the group of a step once enough are ready, and calls the step committed once every
 * member of the group holds the whole sum and more than half of all members have heard of this attempt. Each rank
 * promises to follow one coordinator at a time, named by its term; who takes over after it hears from more than half
 * what they hold, and goes on from the newest: a sum that may have been committed is taken, never made again (Lamport,
 * The part-time parliament, 1998; Oki and Liskov, Viewstamped replication, 1988; Ongaro and Ousterhout, In search of
 * an understandable consensus algorithm, 2014, whose terms and joint majorities these are).
 *
 * Ranks tell each other their whole state, whenever it changes and every so often: a note that is lost, or overtaken by
 * the next, does no harm. */
#ifndef PL_QUORUM_PROTOCOL_H
#define PL_QUORUM_PROTOCOL_H

#include "base/base.h"

enum { PL_QUORUM_RANKS = 1024, PL_QUORUM_VALUES = 8, PL_QUORUM_PARTS = 4096 };

struct pl_ranks { uint64_t word[PL_QUORUM_RANKS / 64]; };
static inline bool pl_ranks_has(const struct pl_ranks *s, int r) { return s->word[r / 64] >> (r % 64) & 1; }
static inline void pl_ranks_add(struct pl_ranks *s, int r) { s->word[r / 64] |= 1ull << (r % 64); }
static inline void pl_ranks_remove(struct pl_ranks *s, int r) { s->word[r / 64] &= ~(1ull << (r % 64)); }
int pl_ranks_count(const struct pl_ranks *s);
bool pl_ranks_same(const struct pl_ranks *a, const struct pl_ranks *b);
void pl_ranks_list(const struct pl_ranks *s, char *text, size_t bytes); /* "2, 5"; "": none */

/* A try to sum up the gradients of a step: what follows from it, should it be committed, is fixed with it. */
struct pl_attempt {
    int64_t round; /* names it, and rises; 0: none */
    int64_t step;
    struct pl_ranks group;   /* whose gradients count */
    struct pl_ranks members; /* who shares the data of the next step */
    double values[PL_QUORUM_VALUES]; /* sums over the group, in the order of its ranks */
    uint8_t stop, save;      /* somebody asked for it */
};
struct pl_view { int64_t number; struct pl_ranks members; };

/* Work in parts that are handed out as ranks ask, each counted once: of a rank, the last part that it did. */
struct pl_part_done { int64_t job; int32_t parts, part; double values[PL_QUORUM_VALUES]; };

struct pl_note {
    int64_t term, sequence;         /* promised; a rank's notes are numbered */
    int64_t version, version_round; /* committed steps that it holds, and the attempt that led there */
    int64_t ready;                  /* the step whose gradient it holds, -1: none */
    int64_t gave_up;                /* the last round whose sum it gave up half-way: it cannot be had any more */
    int64_t heard;                  /* of the attempts of this term, the last that it heard of */
    struct pl_attempt whole;        /* the last whose sum it holds */
    struct pl_view view, next_view; /* the last agreed, and one that it accepted since; number 0: none */
    struct pl_ranks lost;           /* to whom its connection is over */
    double values[PL_QUORUM_VALUES]; /* of `ready`; the first are samples: a group has some, if any rank that can be heard does */
    struct pl_part_done work;
    int32_t failed;                 /* exit code of an error that ends the run, 0: none */
    int32_t ended;                  /* the `end` that it was told, 0: none */
    uint64_t hash;                  /* leaving: of its parameters */
    uint8_t candidate, stop, save, leaving;
    /* Of the coordinator of `term`, what it decided. */
    uint8_t coordinates;
    int32_t end;      /* 0: the run goes on; otherwise an exit code + 1 */
    uint8_t clean;    /* with end: every rank of the run is there */
    int32_t source;   /* a rank that holds the run's version, for a receiver that does not; -1: none yet */
    int32_t part;     /* the receiver's next part of `job`, -1: none at present */
    int64_t agreed, agreed_round; /* version of the run */
    struct pl_attempt current;    /* round 0: none */
    int64_t job;      /* of `part` and `result` */
    uint8_t job_done; /* `result` holds */
    double result[PL_QUORUM_VALUES];
};

struct pl_quorum_options {
    int me, ranks, enough; /* enough: m, gradients that make a step */
    double grace_ms;       /* after the m-th is ready, for others; negative: a twentieth of a step */
    double suspect_ms, lost_ms, timeout_ms; /* timeout_ms: ranks ready, but too few */
    bool survives;         /* a lost rank can be gone without: attempts can be given up */
};

/* What this rank has to do now. It stays until it is done or overtaken. */
enum pl_duty {
    PL_DUTY_NONE,   /* compute, or wait */
    PL_DUTY_REDUCE, /* sum up with the group of `attempt` */
    PL_DUTY_SUM,    /* take the sum of `attempt` from a rank of its group, or else do as below */
    PL_DUTY_FETCH,  /* take state from rank `from`, of version `version` at least; from -1: nobody has it yet */
    PL_DUTY_END     /* `code`: the exit code */
};
struct pl_task_now {
    enum pl_duty duty;
    struct pl_attempt attempt;
    int from, code;
    int64_t version;
};

struct pl_quorum;
pl_status pl_quorum_create(const struct pl_quorum_options *o, int64_t version, double now, struct pl_quorum **out);
void pl_quorum_destroy(struct pl_quorum *q);

/* What happened. */
void pl_quorum_hear(struct pl_quorum *q, double now, int from, const struct pl_note *n);
void pl_quorum_lost(struct pl_quorum *q, double now, int rank); /* its connection is over; may be said again */
void pl_quorum_ready(struct pl_quorum *q, double now, int64_t step, const double values[PL_QUORUM_VALUES]);
void pl_quorum_ask(struct pl_quorum *q, bool stop, bool save); /* until said otherwise */
void pl_quorum_whole(struct pl_quorum *q, double now, int64_t round); /* the sum of the duty is here */
void pl_quorum_give_up(struct pl_quorum *q, int64_t round);             /* it was another's duty before it was whole */
void pl_quorum_fetched(struct pl_quorum *q, double now, int64_t version, const struct pl_attempt *last); /* that led there */
void pl_quorum_leave(struct pl_quorum *q, double now, uint64_t hash); /* the last step is done; hash: of its parameters */
void pl_quorum_fail(struct pl_quorum *q, double now, int code);
/* Part `part` of a job is done, with these values; part -1: takes part from now on. */
void pl_quorum_work(struct pl_quorum *q, double now, const struct pl_part_done *done);
/* Time went by; call it after all of the above, and every pl_quorum_period ms at least. */
void pl_quorum_tick(struct pl_quorum *q, double now);
double pl_quorum_period(const struct pl_quorum *q);

/* What is to be done. */
void pl_quorum_duty(const struct pl_quorum *q, struct pl_task_now *out);
/* Rounds below this are over for this rank, whether it took part or slept: what still comes of them is of no use. */
int64_t pl_quorum_first_round(const struct pl_quorum *q);
/* The version that this rank holds, or has once it updates with the sum of `last`, whose gradient was of step
 * version - 1. */
int64_t pl_quorum_version(const struct pl_quorum *q, struct pl_attempt *last);
bool pl_quorum_behind(const struct pl_quorum *q); /* the run went on without this rank */
bool pl_quorum_coordinates(const struct pl_quorum *q);
bool pl_quorum_cut_off(const struct pl_quorum *q); /* END, on the smaller side of a cut: nothing must be written */
int pl_quorum_holders(const struct pl_quorum *q); /* END of a coordinator: ranks that hold its parameters, bit for bit */
bool pl_quorum_clean(const struct pl_quorum *q);   /* END: every rank of the run is there, none was lost */
/* END: everybody knows, or is not waited for. */
bool pl_quorum_over(const struct pl_quorum *q, double now);
/* The next part to do of job, -1: none at present. True: the job is done, with result; NAN where the run has gone on
 * to the next. */
bool pl_quorum_part(struct pl_quorum *q, int64_t job, int *part, double result[PL_QUORUM_VALUES]);
/* Is there something to say to that rank? It is taken as said. */
bool pl_quorum_say(struct pl_quorum *q, double now, int to, struct pl_note *out);
void pl_quorum_unsaid(struct pl_quorum *q, int to); /* it could not be sent: to be said again */
/* Why the run ends: a sentence, empty where another rank says it. */
const char *pl_quorum_why(const struct pl_quorum *q);

#endif
