/* Where nobody else reads or writes parameters and optimizer state at every step. If the device's memory is far they stay
 * there, and so does a gradient that is not added to others, or is added to them there; they are brought for a checkpoint.
 * If it is the host's, this rank's alone, and weights are multiplied in bf16, the optimizer rounds them as it writes them. */
#include "train/train.h"

/* Other kinds of sync work on the slabs in host memory: there each step sends parameters and brings the gradient, or rounds
 * weights in its forward pass. */
static bool may_stay(const struct pl_trainer *t)
{
    if (t->together)
        return false;
    bool can = t->table->far ? t->table->optimizer != NULL : t->table->round != NULL;
    return can && t->job->sync.kind == PL_SYNC_ALLREDUCE && t->job->sync.backup_workers == 0;
}

pl_status pl_trainer_settle(struct pl_trainer *t)
{
    bool alone = t->world->ranks == 1, stays = alone || pl_exchange_is_far(t->exchange);
    if (!may_stay(t))
        return PL_OK;
    if (!t->table->far) {
        pl_optimizer_round(t->optimizer, t->table->round);
        return pl_graph_stay(t->graph, PL_STAY_PARAMS);
    }
    PL_TRY(pl_optimizer_stay(t->optimizer, t->table, t->backend, t->graph, stays));
    return pl_graph_stay(t->graph, alone && t->job->train.accumulate <= 1 ? PL_STAY_AS_ONE : stays ? PL_STAY_GRADIENT : PL_STAY_PARAMS);
}

pl_status pl_trainer_bring(struct pl_trainer *t)
{
    if (!pl_optimizer_stays(t->optimizer))
        return PL_OK;
    PL_TRY(pl_graph_bring_params(t->graph));
    return pl_optimizer_bring(t->optimizer);
}
