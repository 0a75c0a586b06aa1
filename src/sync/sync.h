/* sync: how replicas agree on one update a step. One table a kind; this build has `allreduce`:
 * the sum of the gradients of all samples of the global batch, divided by their number. */
#ifndef PL_SYNC_H
#define PL_SYNC_H

#include "exchange/exchange.h"

struct pl_sync;

/* What a rank brings to a step besides its gradient: sums over its real samples. */
struct pl_contribution {
    double rows, loss, total, correct, correct5; /* loss of the main head, total of all, weighted */
    bool stop;       /* a signal asked this rank to stop */
    bool save;       /* a checkpoint is due by this rank's clock */
    bool not_finite; /* its total is NaN or infinite */
};
struct pl_agreement {
    const float *sum;      /* agreed gradient, summed over samples; valid until the next begin */
    double rows, loss, total, correct, correct5; /* sums over those who took part */
    bool stop;             /* somebody was asked to stop */
    bool save;             /* a checkpoint is due by somebody's clock */
    int not_finite;        /* ranks with a loss that is not finite */
    const char *late;      /* ranks that were dropped, "2, 5"; NULL: none */
    struct pl_exchange_times times;
};

struct pl_sync_table {
    const char *name;
    pl_status (*create)(struct pl_exchange *x, struct pl_sync **out);
    void (*destroy)(struct pl_sync *s);
    pl_status (*begin)(struct pl_sync *s, int64_t step);
    /* The forward pass is over; known before backward, so it travels along with the gradient. */
    pl_status (*contribute)(struct pl_sync *s, const struct pl_contribution *mine);
    /* Elements [a, b) of the gradient slab are final; from the far end to 0. PL_END: abandon the pass. */
    pl_status (*slice_final)(struct pl_sync *s, int64_t a, int64_t b);
    pl_status (*finish)(struct pl_sync *s, struct pl_agreement *out);
};

const struct pl_sync_table *pl_sync_find(const char *name); /* NULL: not built */

#endif
