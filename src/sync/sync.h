/* sync: how replicas agree. One table a kind; this build has `allreduce`, which agrees on the update of each step:
 * the sum of the gradients of all samples of the global batch, divided by their number; `local_sgd`, in which
 * each updates by its own gradient and the parameters are averaged every sync.tau steps; `downpour`, in which each
 * keeps a part of the parameters, updates it by the gradients that come, and computes by parameters that it fetches; and
 * `sandblaster`, in which a step is an iteration of L-BFGS over the whole set, read once for each point of a line search. */
#ifndef PL_SYNC_H
#define PL_SYNC_H

#include "exchange/exchange.h"
#include "optim/optim.h"

struct pl_sync;

/* Where each rank goes its own way: from here until step `until`, after which all come together. */
struct pl_leg {
    int64_t step, epoch, position;           /* of the run: samples [position, ...) of the epoch's order are next */
    int64_t until, global_batch, epoch_samples;
};
/* A micro-batch, handed out to one rank: a slice of the global batch of that step. */
struct pl_ticket { int64_t step, epoch, first, rows; };

/* What a replica holds; outlives its sync. */
struct pl_replica {
    const struct pl_job *job;
    struct pl_graph *graph;
    struct pl_optimizer *optimizer;
    struct pl_world *world;
    const struct pl_exchange_options *exchange; /* until create returns */
    /* A micro-batch that this rank will be given next, so that it is read in the meantime. Any thread, one at a time. PL_END:
     * nothing is read any more. */
    pl_status (*ahead)(void *arg, const struct pl_ticket *t);
    void *arg;
    void *state;                                /* what else a rank that comes back needs */
    size_t state_bytes;
};

/* What a rank brings to a step besides its gradient: sums over its real samples. */
struct pl_contribution {
    double rows, loss, total, correct, correct5; /* loss of the main head, total of all, weighted */
    bool stop;       /* a signal asked this rank to stop */
    bool save;       /* a checkpoint is due by this rank's clock */
    bool not_finite; /* its total is NaN or infinite */
};
struct pl_agreement {
    const float *sum;      /* gradient to update by, summed over `rows` samples; valid until average or the next begin. Nothing of use
                            * where it stays with a far backend. */
    int64_t steps;         /* that the rest is over: 1, or the local ones since the last averaging. 0: there is no
                            * agreement yet, sum and rows are this rank's own and the rest is empty */
    double rows, loss, total, correct, correct5; /* sums over those who took part */
    bool stop;             /* somebody was asked to stop */
    bool save;             /* a checkpoint is due by somebody's clock */
    int not_finite;        /* ranks with a loss that is not finite */
    const char *late;      /* ranks that were dropped, "2, 5"; NULL: none */
    struct pl_exchange_times times;
    /* Where ranks may be late, lost and back (quorum). */
    bool went_on;          /* without this rank: its parameters, optimizer and state are a peer's now, and there is nothing to
                            * update by; the rest is of the peer's last step */
    bool ended;            /* the run has, and this rank was not there */
    bool writes;           /* this rank reports and writes checkpoints from now on */
    bool dealt;            /* others than before share the data of the next step */
    int place, members;    /* this rank's among them; how many */
    const char *lost, *back; /* ranks that were struck off, or let in again; NULL: none */
    /* Where each rank goes its own way (downpour). */
    bool tells;            /* ended: this rank says how the run ended, writes what there is to write, and then leaves */
    bool apart;            /* after it they differ; steps is what has come in on rank 0 since it last was anything */
    int64_t step, epoch, position; /* not apart: where the run is now */
};

/* How old gradients were when they came: updates of the parameters since they had been fetched. */
enum { PL_STALENESS_MOST = 32 };
struct pl_staleness {
    int64_t count[PL_STALENESS_MOST + 1]; /* of age i; the last: that or more */
    int64_t dropped;
    const int64_t *share;                 /* [ranks] micro-batches that each rank computed; borrowed */
};

/* Work in parts, each of which some rank does. */
struct pl_parts {
    int64_t id; /* rises from one to the next */
    int64_t step; /* of the run: how many it has made */
    int parts, values; /* values: PL_PART_VALUES at most */
    pl_status (*run)(void *arg, int part, double *sum); /* adds to sum[values] */
    void *arg;
};
enum { PL_PART_VALUES = 8 };

/* Which way gradients go: names for people. */
struct pl_path { const char *transport, *algorithm, *why; };

struct pl_parting {
    bool clean;          /* all ranks of the run are there */
    bool tells;          /* not so: this rank says how the run ended */
    int holders;         /* ranks that hold the same parameters, bit for bit; known to who writes */
    const char *dropped; /* "0: 12, 3: 140": how often each rank's gradient came late; borrowed */
};

/* Of kinds that move gradients over a mesh of their own, in which a rank may be late or lost. */
struct pl_sync_meshed {
    float *(*gradient)(struct pl_sync *s); /* [elems], zeroed */
    struct pl_path (*path)(const struct pl_sync *s);
    /* What is computed is of no use any more: to be asked between layers. Any thread. NULL: it always is. */
    bool (*abandoned)(void *s);
    /* While held, parameters and state may be written; a rank that comes back is given them only then when they are not. NULL:
     * none comes back. */
    void (*hold)(struct pl_sync *s, bool held);
    /* Each part once, by who is free; sum: over all, in their order. NAN where the run went on meanwhile. */
    pl_status (*share_out)(struct pl_sync *s, const struct pl_parts *p, double *sum);
    /* The run is over here: with code 0 after its last step, otherwise for all. Returns when the others know; PL_END, to be
     * called again, where this rank has to write what it did not (wrote false). */
    pl_status (*leave)(struct pl_sync *s, int code, bool wrote, struct pl_parting *out);
};

/* Where each rank goes its own way, after the warm-up: set_out, then take, a micro-batch (contribute, slice_final) and
 * learn in turn until there is nothing to take, then gather. An error that is not this rank's own comes with out->ended;
 * out->writes: this rank has what is left of the parameters, and the place in step, epoch and position. */
struct pl_sync_apart {
    pl_status (*set_out)(struct pl_sync *s, const struct pl_leg *leg, struct pl_agreement *out);
    pl_status (*take)(struct pl_sync *s, struct pl_ticket *out, struct pl_agreement *ended); /* PL_END: nothing is left */
    pl_status (*learn)(struct pl_sync *s, double lr, struct pl_agreement *out); /* from the gradient */
    pl_status (*gather)(struct pl_sync *s, struct pl_agreement *out); /* parameters and optimizer are the same on all ranks */
    const struct pl_staleness *(*staleness)(struct pl_sync *s);      /* rank 0: of the run so far */
};

/* A pass over the whole set is made in portions, each by who is free. */
struct pl_passes {
    int64_t samples, rows; /* of the set; of a portion */
    bool save;             /* a checkpoint is due by this rank's clock */
    /* Forward and backward of the next portion that was read ahead: contribute, slice_final, the gradient's slab. PL_END: it
     * was abandoned. */
    pl_status (*compute)(void *arg);
    void *arg;
};
struct pl_descent_step {
    int passes;
    double lr, grad_norm;  /* how far along its direction it went; at the new parameters */
    const char *converged; /* no further step is possible, and this was none; NULL: otherwise */
    bool given_up;         /* somebody was asked to stop: parameters are those before it */
};

/* Where a step is an iteration over the whole set. */
struct pl_sync_whole {
    /* out: of the last pass, which is at the new parameters; they are on all ranks. An error that is not this rank's own comes
     * with out->ended; out->writes: this rank has the parameters from before the step. */
    pl_status (*iterate)(struct pl_sync *s, const struct pl_passes *p, struct pl_descent_step *step, struct pl_agreement *out);
    const int64_t *(*shares)(struct pl_sync *s); /* rank 0: [ranks] portions of the run so far that each computed */
};

/* A kind, and a step of it: begin, micro-batches (slice_final, contribute in the last), finish, the update, average. */
struct pl_sync_table {
    const char *name;
    const struct pl_sync_meshed *meshed; /* NULL: it gets an exchange */
    const struct pl_sync_apart *apart;   /* NULL: all make the same steps */
    const struct pl_sync_whole *whole;   /* not NULL: it takes the place of begin, finish and average, which are */
    /* What the exchange must have room for, in slabs of the graph's size; the first is the gradient's. NULL: one. */
    int (*slabs)(const struct pl_replica *r);
    /* x: NULL where it is meshed; then collective. */
    pl_status (*create)(const struct pl_replica *r, struct pl_exchange *x, struct pl_sync **out);
    void (*destroy)(struct pl_sync *s);
    /* PL_END: this rank has no share in the step; finish follows, and says that it went on without it or has ended. */
    pl_status (*begin)(struct pl_sync *s, int64_t step);
    /* The forward pass is over; known before backward, so it travels along with the gradient. */
    pl_status (*contribute)(struct pl_sync *s, const struct pl_contribution *mine);
    /* Elements [a, b) of the gradient slab are final; from the far end to 0. PL_END: abandon the pass. NULL: finish is enough. */
    pl_status (*slice_final)(struct pl_sync *s, int64_t a, int64_t b);
    /* What to update by. */
    pl_status (*finish)(struct pl_sync *s, struct pl_agreement *out);
    /* After the update: the parameters are what replicas agree on; averages them if it is time or this is the run's last
     * step, and then fills in *out. Otherwise leaves all as it is. NULL: equal updates keep them equal. */
    pl_status (*average)(struct pl_sync *s, bool last, struct pl_agreement *out);
};

const struct pl_sync_table *pl_sync_find(const char *name); /* NULL: not built */

#endif
