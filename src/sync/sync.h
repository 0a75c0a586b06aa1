/* sync: how replicas agree. One table a kind; this build has `allreduce`, which agrees on the update of each step:
 * the sum of the gradients of all samples of the global batch, divided by their number; and `local_sgd`, in which
 * each updates by its own gradient and the parameters are averaged every sync.tau steps. */
#ifndef PL_SYNC_H
#define PL_SYNC_H

#include "exchange/exchange.h"
#include "optim/optim.h"

struct pl_sync;

/* What a replica holds; outlives its sync. */
struct pl_replica {
    const struct pl_job *job;
    struct pl_graph *graph;
    struct pl_optimizer *optimizer;
};

/* What a rank brings to a step besides its gradient: sums over its real samples. */
struct pl_contribution {
    double rows, loss, total, correct, correct5; /* loss of the main head, total of all, weighted */
    bool stop;       /* a signal asked this rank to stop */
    bool save;       /* a checkpoint is due by this rank's clock */
    bool not_finite; /* its total is NaN or infinite */
};
struct pl_agreement {
    const float *sum;      /* gradient to update by, summed over `rows` samples; valid until average or the next begin */
    int64_t steps;         /* that the rest is over: 1, or the local ones since the last averaging. 0: there is no
                            * agreement yet, sum and rows are this rank's own and the rest is empty */
    double rows, loss, total, correct, correct5; /* sums over those who took part */
    bool stop;             /* somebody was asked to stop */
    bool save;             /* a checkpoint is due by somebody's clock */
    int not_finite;        /* ranks with a loss that is not finite */
    const char *late;      /* ranks that were dropped, "2, 5"; NULL: none */
    struct pl_exchange_times times;
};

struct pl_sync_table {
    const char *name;
    /* What it exchanges, in slabs of the graph's size: those pl_exchange_create must have room for. The first is the gradient's. */
    int (*slabs)(const struct pl_replica *r);
    pl_status (*create)(const struct pl_replica *r, struct pl_exchange *x, struct pl_sync **out);
    void (*destroy)(struct pl_sync *s);
    pl_status (*begin)(struct pl_sync *s, int64_t step);
    /* The forward pass is over; known before backward, so it travels along with the gradient. */
    pl_status (*contribute)(struct pl_sync *s, const struct pl_contribution *mine);
    /* Elements [a, b) of the gradient slab are final; from the far end to 0. PL_END: abandon the pass. */
    pl_status (*slice_final)(struct pl_sync *s, int64_t a, int64_t b);
    /* What to update by. */
    pl_status (*finish)(struct pl_sync *s, struct pl_agreement *out);
    /* After the update: where it is the parameters that replicas agree on, averages them if it is time or this is the
     * run's last step, and then fills in *out. Otherwise leaves all as it is. */
    pl_status (*average)(struct pl_sync *s, bool last, struct pl_agreement *out);
};

const struct pl_sync_table *pl_sync_find(const char *name); /* NULL: not built */

#endif
