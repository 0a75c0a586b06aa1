/* Where each rank goes its own way (sync.kind downpour): a step here is one micro-batch of this rank, by parameters of its
 * own. They come together where something is due for all: an evaluation, a checkpoint, the end; or as soon as the global
 * batch under way is handed out, when one is asked to stop or to save. What happens in between is sync's. */
#include "train/train.h"

#include <math.h>

int64_t pl_train_steps_of(const struct pl_trainer *t, struct pl_period every)
{
    if (every.unit == PL_NEVER || every.unit == PL_MS || every.n <= 0)
        return 0;
    double steps = every.unit == PL_EPOCHS ? every.n * (double)t->steps_per_epoch : every.n;
    return steps < 1 ? 1 : llround(steps);
}

bool pl_train_apart(const struct pl_trainer *t)
{
    return t->sync_table->apart && (t->apart || t->state.step >= pl_train_steps_of(t, t->job->sync.warmup));
}

pl_status pl_train_ahead(void *arg, const struct pl_ticket *ticket)
{
    struct pl_trainer *t = arg;
    return t->source.ask(t->source.arg, ticket->epoch, ticket->first, ticket->rows);
}

/* The first step after which it is due. */
static int64_t next_due(const struct pl_trainer *t, struct pl_period every, int64_t until)
{
    int64_t n = pl_train_steps_of(t, every), ahead = every.unit == PL_EPOCHS ? t->ahead : 0;
    int64_t due = n > 0 ? ((t->state.step - ahead) / n + 1) * n + ahead : until;
    return due < until ? due : until;
}

static pl_status set_out(struct pl_trainer *t, struct pl_agreement *out)
{
    const struct pl_run_state *p = &t->state;
    struct pl_leg leg = {.step = p->step, .epoch = p->epoch, .position = p->position, .until = t->total_steps,
                         .global_batch = p->global_batch, .epoch_samples = t->source.epoch_samples};
    if (pl_job_set_given(&t->job->test_set))
        leg.until = next_due(t, t->job->train.eval_every, leg.until);
    leg.until = next_due(t, t->job->checkpoint.every, leg.until);
    if (!t->fed) {
        PL_TRY(pl_train_give_early_back(t));
        PL_TRY(t->source.feed(t->source.arg));
    }
    t->fed = t->apart = true;
    return t->sync_table->apart->set_out(t->sync, &leg, out);
}

/* Only this rank knows: the others are told to end, and leave the message to it. */
static pl_status check_own(struct pl_trainer *t, const struct pl_loss_sums *sums, int64_t step)
{
    pl_status s = pl_train_check_finite(&(struct pl_agreement){.not_finite = !isfinite(sums->total), .total = sums->total}, step);
    if (s < 0)
        pl_world_say(t->world, s);
    return s;
}

static pl_status work(struct pl_trainer *t, const struct pl_ticket *ticket, struct pl_agreement *agreed, struct pl_step_result *out)
{
    struct pl_loss_sums sums = {0};
    bool last;
    out->step = ticket->step;
    pl_log_step(out->step);
    PL_TRY(pl_train_micro_batch(t, 0, false, &sums, out, &last));
    PL_TRY(check_own(t, &sums, out->step));
    out->lr = pl_train_lr(t, out->step);
    pl_status s = t->sync_table->apart->learn(t->sync, out->lr, agreed);
    if (s == PL_OK && out->step >= t->state.step)
        t->state.step = out->step + 1; /* for what this rank says until they meet */
    return s;
}

static void go_to(struct pl_trainer *t, const struct pl_agreement *a)
{
    t->state.step = a->step;
    t->state.epoch = a->epoch;
    t->state.position = a->position;
}

static pl_status meet(struct pl_trainer *t, struct pl_agreement *agreed, struct pl_step_result *out)
{
    PL_TRY(t->sync_table->apart->gather(t->sync, agreed));
    t->apart = false;
    go_to(t, agreed);
    out->step = t->state.step - 1;
    out->epoch = t->state.epoch - (t->state.position == 0);
    out->lr = pl_train_lr(t, out->step);
    return PL_OK;
}

pl_status pl_train_step_apart(struct pl_trainer *t, struct pl_step_result *out)
{
    struct pl_ticket ticket;
    struct pl_agreement agreed = {0};
    *out = (struct pl_step_result){.grad_norm = NAN};
    double begin = pl_now_ms();

    pl_status s = t->apart ? PL_OK : set_out(t, &agreed);
    if (s == PL_OK)
        s = t->sync_table->apart->take(t->sync, &ticket, &agreed);
    if (s == PL_OK)
        s = work(t, &ticket, &agreed, out);
    else if (s == PL_END)
        s = meet(t, &agreed, out);
    pl_train_take_parts(&agreed, out);
    if (agreed.ended && agreed.writes && agreed.apart)
        go_to(t, &agreed);
    PL_TRY(s);
    pl_train_take_note(&agreed, out);
    out->apart = agreed.apart;
    t->state.samples_seen += (int64_t)out->rows;
    out->step_ms = pl_now_ms() - begin;
    return PL_OK;
}
