/* Where a step is an iteration over the whole set (sync.kind sandblaster): it reads the set once for every point that a line
 * search looks at, each rank the portions that it is handed, always in the order of epoch 0. Epochs count these passes, so
 * that a run of train.epochs ends with the first step that has come so far. */
#include "train/train.h"

#include <math.h>

struct portions { struct pl_trainer *t; struct pl_step_result *out; };

static pl_status compute(void *arg)
{
    const struct portions *p = arg;
    struct pl_loss_sums sums = {0};
    bool last;
    p->t->stop_asked = p->t->stop_asked || pl_signals_seen(); /* a step may take long */
    return pl_train_micro_batch(p->t, 0, false, &sums, p->out, &last);
}

/* The loss of a step is that of the parameters it came to. */
static void commit(struct pl_trainer *t, const struct pl_descent_step *step, struct pl_step_result *out)
{
    struct pl_run_state *p = &t->state;
    out->lr = step->lr;
    out->grad_norm = step->grad_norm;
    out->rows *= step->passes;
    t->epoch_before = p->epoch;
    p->step++;
    p->epoch += step->passes;
    p->position = 0;
    p->samples_seen += (int64_t)out->rows;
    out->epoch = p->epoch - 1;
    out->passes = p->epoch;
    if (t->job->train.epochs > 0 && (double)p->epoch >= t->job->train.epochs - 1e-9)
        t->total_steps = p->step;
}

pl_status pl_train_step_whole(struct pl_trainer *t, struct pl_step_result *out)
{
    struct portions portions = {t, out};
    const struct pl_passes passes = {.samples = t->source.epoch_samples, .rows = t->batch, .save = t->save_asked, .compute = compute, .arg = &portions};
    struct pl_descent_step step = {0};
    struct pl_agreement agreed = {0};
    *out = (struct pl_step_result){.step = t->state.step, .grad_norm = NAN};
    double begin = pl_now_ms();
    pl_log_step(out->step);
    if (!t->fed) {
        PL_TRY(pl_train_give_early_back(t));
        PL_TRY(t->source.feed(t->source.arg));
    }
    t->fed = true;

    pl_status s = t->sync_table->whole->iterate(t->sync, &passes, &step, &agreed);
    pl_train_take_parts(&agreed, out);
    PL_TRY(s);
    PL_TRY(pl_train_check_finite(&(struct pl_agreement){.not_finite = agreed.not_finite}, out->step));
    pl_train_take_note(&agreed, out);
    out->converged = step.converged;
    if (step.given_up || step.converged)
        out->rows = 0;
    else
        commit(t, &step, out);
    if (step.converged)
        t->total_steps = t->state.step;
    out->step_ms = pl_now_ms() - begin;
    return PL_OK;
}
