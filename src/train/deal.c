/* Deals the data order out to those who are there: all ranks at the start, what is left of an epoch to fewer or more of
 * them in its midst. Whoever reads, the samples come in the same order; only where it is cut into steps differs. */
#include "train/train.h"

#include <math.h>

int64_t pl_train_micro_global(const struct pl_job *job, int members)
{
    const int64_t whole = job->train.global_batch;
    return whole > 0 ? whole / job->train.accumulate : job->train.batch * members;
}

/* Steps that so many samples take. */
static int64_t steps_in(const struct pl_trainer *t, int64_t samples)
{
    return pl_sampler_steps(pl_sampler_steps(samples, t->micro_global), t->job->train.accumulate);
}

/* Counted in steps as long as the present ones, the epoch under way ends with the (epoch + 1) * steps_per_epoch-th. */
static pl_status measure(struct pl_trainer *t)
{
    const struct pl_job *job = t->job;
    const struct pl_run_state *p = &t->state;
    if (job->sync.kind == PL_SYNC_SANDBLASTER) { /* how many steps a number of passes has is seen on the way */
        t->steps_per_epoch = 1;
        t->total_steps = job->train.steps > 0 ? job->train.steps : (double)p->epoch >= job->train.epochs ? p->step : INT64_MAX;
        return PL_OK;
    }
    t->steps_per_epoch = steps_in(t, t->source.epoch_samples);
    t->ahead = p->step + steps_in(t, t->source.epoch_samples - p->position) - (p->epoch + 1) * t->steps_per_epoch;
    t->total_steps = job->train.steps;
    if (job->train.steps > 0)
        return PL_OK;
    double steps = job->train.epochs * (double)t->steps_per_epoch;
    if (steps > 1e15)
        return pl_error(PL_ERR_USAGE, "job", "train.epochs %g of %lld steps each: too long a run", job->train.epochs, (long long)t->steps_per_epoch);
    int64_t total = (int64_t)ceil(steps - 1e-9) + t->ahead;
    t->total_steps = total > p->step ? total : p->step; /* it has gone further: by other ranks' steps there may be no such number */
    return PL_OK;
}

pl_status pl_trainer_deal(struct pl_trainer *t, int index, int members)
{
    int64_t wanted = pl_train_micro_global(t->job, members), most = t->batch * members;
    t->micro_global = wanted < most ? wanted : most;
    t->state.global_batch = t->job->sync.kind == PL_SYNC_SANDBLASTER ? t->source.epoch_samples : t->micro_global * t->job->train.accumulate;
    t->state.ranks = members * (t->world->ranks / t->peers->ranks);
    if (t->source.epoch_samples < INT64_MAX) /* a benchmark goes on until it has had enough */
        PL_TRY(measure(t));
    PL_TRY(pl_train_give_early_back(t));
    return t->source.deal(t->source.arg, t->micro_global, index, members, t->state.epoch, t->state.position);
}
