/* exchange: adds up gradients over the ranks while backward goes on, and carries all other traffic.
 * Ranks that share one node add up in memory that they share, each in its own main thread. Between nodes one
 * thread talks to the transport, and what crosses it is a request to that thread; only one part a node goes out. Requests
 * are served in order, so every rank must make the same ones in the same order. All functions: main thread. */
#ifndef PL_EXCHANGE_H
#define PL_EXCHANGE_H

#include "backend/backend.h"
#include "transport/transport.h"

struct pl_exchange;

struct pl_span { int64_t a, b; }; /* elements [a, b) */

/* A gradient that lies with a backend, whose reducer adds it up in place. */
struct pl_exchange_far { const struct pl_backend_table *table; struct pl_backend *backend; float *gradient; };

struct pl_exchange_options {
    const char *transport; /* name or "auto"; "nccl" needs far */
    struct pl_exchange_far far; /* table NULL: gradients are in host memory */
    const char *algorithm; /* name or "auto" */
    const char *table;     /* file of measured choices for auto, or NULL */
    bool two_level;        /* shared memory within a node, where it can be had. With all ranks on one node a transport
                            * or an algorithm that is asked for by name is used instead. */
    struct pl_transport_options network; /* timeout_ms: as below */
    const char *compress;  /* codec of what goes between nodes, or "none", NULL; with algorithm auto only */
    double compress_ratio; /* top_k: the part of the elements that is sent */
    const struct pl_span *exact, *gap; /* [exacts], [gaps] ascending, apart: never compressed; hold nothing and stay 0. Copied. */
    int exacts, gaps;
    bool by_rank;          /* ranks stand in their order, not by nodes, which a ring, say, would visit once: sums have the same bits on
                            * whatever nodes they are */
    double bucket_bytes;   /* a bucket goes out when it holds this much */
    double timeout_ms;     /* of a wait in which nothing moves */
    int common;            /* slabs more that the ranks of a node have together (pl_exchange_common), PL_EXCHANGE_COMMON at most */
    int values;            /* doubles of a small sum at most; 0: PL_EXCHANGE_VALUES */
    bool direct;           /* no thread: the main thread does it all, polling, in finish, sum and max */
};
struct pl_exchange_times {
    double exposed_ms; /* main thread was busy with it or waited for it */
    double within_ms;  /* the part of that within ready, during backward */
    double busy_ms;    /* from the first bucket's hand-over to the last one's end */
    double sent_mb;    /* this rank sent so much to other nodes by algorithms of our own */
    double saved_mb;   /* and so much less than without compression */
};

/* Chooses how to add up, with memory for a gradient of elems (0: only sum and max are used). One rank alone
 * has nothing to do. Collective; ranks agree inside. */
pl_status pl_exchange_create(struct pl_world *w, const struct pl_exchange_options *o, int64_t elems, struct pl_exchange **out);
/* Ends the thread, then closes. Collective when no error happened; after an error nothing is waited for. */
void pl_exchange_destroy(struct pl_exchange *x);
const char *pl_exchange_transport(const struct pl_exchange *x); /* between nodes: name, or "none" */
const char *pl_exchange_algorithm(const struct pl_exchange *x); /* "shared memory", "native", "ring", "none" ... */
const char *pl_exchange_why(const struct pl_exchange *x);       /* a sentence */

/* Whether the gradient is far: then it is where the options say, the sum takes its place, and the next two give NULL. */
bool pl_exchange_is_far(const struct pl_exchange *x);
/* Host memory, [elems], zeroed, until destroy: where this rank writes its gradient, between begin and ready,
 * and where the sum over ranks is after finish, until the next begin. The gradient stays as it was written;
 * with one rank both are the same. */
float *pl_exchange_gradient(struct pl_exchange *x);
const float *pl_exchange_agreed(const struct pl_exchange *x);
/* With compression: [elems], what this rank's part in it lost so far, to be added later; NULL without. The sum over
 * ranks is what the sum of gradients lacks. To be kept and given back between two steps. */
float *pl_exchange_residual(struct pl_exchange *x);

/* Memory of this node's ranks together, [elems], zeroed, until destroy: one of options.common; NULL where they share none. Who
 * writes what in it, and when, is for them to arrange: once finish has returned on a rank, all of the node have handed their
 * gradients over, and are through with what they made them of; meet waits for all ranks of the node, and PL_ERR_PEER names those
 * that do not come. near: elements, whole cache lines, that lie near this rank; those of all ranks are the slab. */
enum { PL_EXCHANGE_COMMON = 3 };
float *pl_exchange_common(struct pl_exchange *x, int i);
struct pl_span pl_exchange_near(const struct pl_exchange *x);
pl_status pl_exchange_meet(struct pl_exchange *x);

/* The gradient of a step: begin; ready for ranges [a, b) from elems down to 0 without a gap; finish waits
 * until the sum is whole. PL_ERR_PEER names the ranks that are missing after the timeout. */
pl_status pl_exchange_begin(struct pl_exchange *x, int64_t step);
pl_status pl_exchange_ready(struct pl_exchange *x, int64_t a, int64_t b);
pl_status pl_exchange_finish(struct pl_exchange *x, struct pl_exchange_times *times);

#define PL_EXCHANGE_VALUES 16
/* Sums n doubles (at most options.values) over the ranks, in the step: posted now, valid after finish. */
pl_status pl_exchange_post_sum(struct pl_exchange *x, double *values, int n);
/* The same, waited for. */
pl_status pl_exchange_sum(struct pl_exchange *x, double *values, int n);
pl_status pl_exchange_max(struct pl_exchange *x, double *values, int n);

/* ---- mesh: every rank with every other ----------------------------------------------------------------------
 * For kinds of sync that decide themselves who takes part in what. Nothing here is collective but open; nothing waits
 * but progress; a lost rank is the trouble of what waits for it, and of nothing else. One thread at a time; wake: any. */

struct pl_mesh;

/* note_bytes: of a note, PL_CONTROL_BYTES at most. algorithm native: MPI's is not among
 * some ranks, refused. Collective; ranks agree inside. */
pl_status pl_mesh_open(struct pl_world *w, const struct pl_exchange_options *o, size_t note_bytes, struct pl_mesh **out);
/* What was said arrives, if it can. lost: a rank is lost, or others may not come here. NULL is fine. */
void pl_mesh_close(struct pl_mesh *m, bool lost);
const char *pl_mesh_transport(const struct pl_mesh *m);
const char *pl_mesh_algorithm(const struct pl_mesh *m); /* of reductions */
const char *pl_mesh_why(const struct pl_mesh *m);
bool pl_mesh_survives(const struct pl_mesh *m);          /* the loss of a rank; not so over mpi */
bool pl_mesh_lost(const struct pl_mesh *m, int rank, const char **why); /* its connections are over, and what it said has been heard */

/* A note comes whole and after those said before it. PL_END: too many are under way to that rank. Copied. */
pl_status pl_mesh_say(struct pl_mesh *m, int rank, const void *note);
bool pl_mesh_hear(struct pl_mesh *m, int *rank, void *note); /* the next that has come */

/* Moves what can be moved, sleeping first for wait_ms at most if nothing can. An error is this rank's own. */
pl_status pl_mesh_progress(struct pl_mesh *m, double wait_ms);
/* Since the last call: a note has come, a sum or a transfer has ended, a rank is lost, or wake was called. */
bool pl_mesh_news(struct pl_mesh *m);
void pl_mesh_wake(struct pl_mesh *m);

/* The sum over `members`, ascending, this rank one of them, in and out apart. round: rises from one to the next, the
 * same on all of them. One at a time; memory stays until it is done or given up. */
pl_status pl_mesh_reduce(struct pl_mesh *m, uint64_t round, const int *members, int n, const float *in, float *out, int64_t elems);
bool pl_mesh_reduced(const struct pl_mesh *m, uint64_t round);
/* Rounds below `before` are over, here and for whatever still comes of them. Not over mpi. */
void pl_mesh_forget(struct pl_mesh *m, uint64_t before);

/* Memory from one rank to another, both of whom know its length. id: rises between the two of them in each direction,
 * and is less than 2^63. The receiver posts before the sender, or soon after: what has no place holds up what follows. */
enum { PL_TRANSFER_PIECE = 256 << 10, PL_TRANSFER_WINDOW = 8 };
struct pl_transfer { /* the caller's, until it has ended; to be read only */
    bool active, done, failed;
    bool sends;
    int rank;
    uint64_t id;
    unsigned char *memory;
    size_t bytes, posted, moved;
    struct pl_request request[PL_TRANSFER_WINDOW];
    struct pl_transfer *next;
};
pl_status pl_mesh_send(struct pl_mesh *m, struct pl_transfer *t, int rank, uint64_t id, const void *p, size_t bytes);
pl_status pl_mesh_receive(struct pl_mesh *m, struct pl_transfer *t, int rank, uint64_t id, void *p, size_t bytes);
/* Those with that rank of ids below `before` are over, failed if they were not done. Over mpi only those that receive, and
 * only where the other has not begun to send, nor will. */
void pl_mesh_forget_transfers(struct pl_mesh *m, int rank, uint64_t before);

#endif
