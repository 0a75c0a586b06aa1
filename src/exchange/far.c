/* Gradients that lie with a backend whose memory is far: its own library adds them up over the ranks, bucket by bucket, while the
 * layers before them still compute, and this room only waits for it. Counts travel by MPI as they always do. */
#include "exchange/exchange_internal.h"

#include <sched.h>

#define YIELD_MS 2.0  /* of polling before naps: most waits are over by then */
#define NAP_MS 0.1

pl_status pl_exchange_far_open(struct pl_exchange *x)
{
    const struct pl_exchange_far *f = &x->options.far;
    struct pl_world *w = x->world;
    unsigned char id[PL_REDUCER_ID_BYTES] = {0};
    pl_status s = f->table->reducer_open(f->backend, x->options.timeout_ms, &x->reducer);
    if (s == PL_OK && w->rank == 0)
        s = f->table->reducer_id(x->reducer, id);
    PL_TRY(pl_world_agree(w, s));
    /* The agreement after it: who waits in another library does not move MPI's messages. */
    PL_TRY(pl_world_agree(w, pl_world_broadcast(w, id, sizeof id, 0)));
    return pl_world_agree(w, f->table->reducer_join(x->reducer, id, w->rank, w->ranks));
}

/* Nothing else is asked of the others: who is late would take it for a part of the next step. */
static pl_status timed_out(const struct pl_exchange *x)
{
    return pl_error(PL_ERR_PEER, "exchange", "waited %g s for all ranks to add up their gradients in step %lld; %s does not tell which is missing\n"
                    "see what the others say last; exchange.timeout sets how long is waited", x->options.timeout_ms / 1000, (long long)x->step, x->name);
}

pl_status pl_exchange_far_finish(struct pl_exchange *x)
{
    double begin = pl_now_ms();
    for (bool done = false;;) {
        PL_TRY(x->options.far.table->reduced(x->reducer, &done));
        if (done)
            return PL_OK;
        double waited = pl_now_ms() - begin;
        if (waited > x->options.timeout_ms)
            return timed_out(x);
        if (waited > YIELD_MS)
            pl_sleep_ms(NAP_MS);
        else
            sched_yield();
    }
}
