/* Where the device's memory is far and nobody else reads or writes parameters and optimizer state at every step: they stay
 * there, and so does a gradient that need not be added to others. They are brought for a checkpoint. */
#include "train/train.h"

/* Other kinds of sync work on the slabs in host memory: there each step sends parameters and brings the gradient. */
static bool may_stay(const struct pl_trainer *t)
{
    return t->table->far && t->table->optimizer && t->job->sync.kind == PL_SYNC_ALLREDUCE && t->job->sync.backup_workers == 0;
}

pl_status pl_trainer_settle(struct pl_trainer *t)
{
    bool alone = t->world->ranks == 1 && t->job->train.accumulate <= 1;
    if (!may_stay(t))
        return PL_OK;
    PL_TRY(pl_optimizer_stay(t->optimizer, t->table, t->backend, t->graph, alone));
    return pl_graph_stay(t->graph, alone);
}

pl_status pl_trainer_bring(struct pl_trainer *t)
{
    if (!pl_optimizer_stays(t->optimizer))
        return PL_OK;
    PL_TRY(pl_graph_bring_params(t->graph));
    return pl_optimizer_bring(t->optimizer);
}
