/* One training step, from a batch to new parameters: the design's section 2, top to bottom. */
#include "train/train.h"

#include <math.h>
#include <string.h>

static pl_status on_slice_final(void *arg, int64_t a, int64_t b)
{
    struct pl_trainer *t = arg;
    return t->sync_table->slice_final ? t->sync_table->slice_final(t->sync, a, b) : PL_OK;
}

/* What the ranks of a replica know of a step, on all of them: the last stage has the loss, or the first part speaks for all. */
static pl_status merge_row(struct pl_trainer *t, struct pl_contribution *c)
{
    double one = t->grid.part == 0;
    double v[] = {one * c->rows, one * c->loss, one * c->total, one * c->correct, one * c->correct5, c->stop, c->save, c->not_finite};
    PL_TRY(pl_trainer_row_sum(t, v, sizeof v / sizeof *v));
    *c = (struct pl_contribution){.rows = v[0], .loss = v[1], .total = v[2], .correct = v[3], .correct5 = v[4], .stop = v[5] > 0, .save = v[6] > 0, .not_finite = v[7] > 0};
    return PL_OK;
}

static pl_status contribute(struct pl_trainer *t, const struct pl_loss_sums *sums)
{
    struct pl_contribution mine = {.rows = (double)sums->rows, .loss = sums->loss, .total = sums->total,
                                   .correct = sums->correct, .correct5 = sums->correct5,
                                   .not_finite = !isfinite(sums->total), .stop = t->stop_asked, .save = t->save_asked};
    if (pl_trainer_split(t))
        PL_TRY(merge_row(t, &mine));
    return t->sync_table->contribute(t->sync, &mine);
}

/* Forward and backward; in a trial the rank sleeps before them, or in their place. */
static pl_status compute(struct pl_trainer *t, const struct pl_graph_batch *in, int64_t step, int64_t micro, bool last, struct pl_loss_sums *sums)
{
    double sleep_ms = t->job->debug.compute_ms;
    bool in_place = sleep_ms > 0;
    pl_slice_fn *slice = last ? on_slice_final : NULL;
    sleep_ms += micro == 0 ? pl_trial_delay_ms(t->job, t->world->rank, step) : 0;
    pl_status s = pl_trial_sleep(sleep_ms, in->abandoned, in->arg);
    if (s == PL_OK && t->pipeline) {
        s = pl_pipeline_pass(t->pipeline, in, sums, slice, t);
        return s == PL_OK ? contribute(t, sums) : s;
    }
    if (s == PL_OK && t->shards) {
        s = pl_shards_pass(t->shards, t->graph, in, sums, slice, t);
        return s == PL_OK ? contribute(t, sums) : s;
    }
    double traced = pl_trace_begin();
    if (s == PL_OK)
        s = in_place ? pl_trial_forward(in, sums) : pl_graph_forward(t->graph, in, true, sums);
    pl_trace_end(traced, "step", "forward", step);
    if (s == PL_OK && last)
        s = contribute(t, sums);
    traced = pl_trace_begin();
    if (s == PL_OK)
        s = in_place ? pl_trial_backward(t->graph, slice, t) : pl_graph_backward(t->graph, in, micro > 0, slice, t);
    pl_trace_end(traced, "step", "backward", step);
    return s;
}

/* One key for every draw of an epoch: a sample is drawn once in it. */
static struct pl_graph_batch as_input(const struct pl_trainer *t, const struct pl_batch *b)
{
    return (struct pl_graph_batch){.rows = b->rows, .data = b->data, .pixels = b->pixels, .label = b->label, .index = b->index,
                                   .seed = (uint64_t)t->job->train.seed, .step_key = (uint64_t)b->epoch};
}

/* Of a micro-batch's passes, for other ranks. */
static double take_waited_ms(struct pl_trainer *t)
{
    double ms = t->statistics_ms;
    t->statistics_ms = 0;
    if (t->tensor)
        ms += pl_tensor_group_waited_ms(t->tensor);
    return t->pipeline ? pl_pipeline_waited_ms(t->pipeline) : ms;
}

pl_status pl_train_micro_batch(struct pl_trainer *t, int64_t micro, bool abandoned, struct pl_loss_sums *sums,
                               struct pl_step_result *out, bool *last)
{
    struct pl_batch *b;
    double begin = pl_now_ms();
    double traced = pl_trace_begin();
    PL_TRY(pl_train_take_batch(t, &b));
    pl_trace_end(traced, "data", "wait for a batch", out->step);
    double loaded = pl_now_ms();
    out->epoch = b->epoch;
    out->end = b->end;
    *last = micro + 1 >= t->job->train.accumulate || b->end == t->source.epoch_samples;
    struct pl_graph_batch in = as_input(t, b), next;
    in.abandoned = t->sync_table->meshed ? t->sync_table->meshed->abandoned : NULL;
    in.arg = t->sync;
    in.more = !*last;
    pl_status s = abandoned ? PL_END : pl_train_look_ahead(t);
    if (t->early) {
        next = as_input(t, t->early);
        in.next = &next;
    }
    if (s == PL_OK)
        s = compute(t, &in, out->step, micro, *last, sums);
    if (s == PL_END && pl_graph_drop_next(t->graph) < 0) /* what was sent of it may not have been used */
        s = PL_ERR_MEMORY;
    t->source.release(t->source.arg, b);
    double waited = take_waited_ms(t);
    out->data_ms += loaded - begin;
    out->compute_ms += pl_now_ms() - loaded - waited;
    out->waited_ms += waited;
    return s;
}

static pl_status clip_factor(struct pl_trainer *t, const struct pl_agreement *a, struct pl_step_result *out, double *clip)
{
    double limit = t->job->optimizer.clip_norm, squares;
    *clip = 1;
    if (limit <= 0)
        return PL_OK;
    PL_TRY(pl_optimizer_squares(t->optimizer, &squares));
    PL_TRY(pl_trainer_row_sum(t, &squares, 1));
    out->grad_norm = sqrt(squares) / a->rows;
    *clip = out->grad_norm > limit ? limit / out->grad_norm : 1;
    return PL_OK;
}

static pl_status update(struct pl_trainer *t, const struct pl_agreement *a, struct pl_step_result *out)
{
    struct pl_update u = {.lr = out->lr, .step = out->step, .samples = a->rows};
    if (a->rows == 0)
        return PL_OK; /* a local step without samples, at the end of an epoch */
    PL_TRY(pl_optimizer_take(t->optimizer, a->sum));
    PL_TRY(clip_factor(t, a, out, &u.clip));
    return pl_optimizer_apply(t->optimizer, &u, t->graph);
}

pl_status pl_train_check_finite(const struct pl_agreement *a, int64_t step)
{
    char since[48] = "";
    if (a->not_finite == 0 && isfinite(a->total))
        return PL_OK;
    if (a->steps > 1)
        snprintf(since, sizeof since, "one of the steps %lld to ", (long long)(step - a->steps + 1));
    return pl_error(PL_ERR_NOT_FINITE, "train",
                    "the loss is not finite in %s%lld (on %d rank%s)\n"
                    "lower optimizer.lr, add optimizer.warmup or optimizer.clip_norm, or look at the data",
                    since[0] ? since : "step ", (long long)step, a->not_finite, a->not_finite == 1 ? "" : "s");
}

/* A run of epochs follows the data order, not the count of its steps. */
double pl_train_lr(const struct pl_trainer *t, int64_t step)
{
    int64_t ahead = t->job->train.steps > 0 ? 0 : t->ahead;
    return pl_schedule_lr(t->job, step - ahead, t->steps_per_epoch, t->total_steps - ahead);
}

void pl_train_take_note(const struct pl_agreement *a, struct pl_step_result *out)
{
    out->agreed = a->steps;
    out->exchange = a->times;
    out->exchange.exposed_ms += out->waited_ms;
    out->compute_ms -= a->times.within_ms;
    if (a->steps == 0)
        return;
    out->rows = a->rows;
    out->loss = a->loss / a->rows;
    out->total_loss = a->total / a->rows;
    out->accuracy = a->correct / a->rows;
    out->top5 = a->correct5 / a->rows;
    out->late = a->late;
    out->lost = a->lost;
    out->back = a->back;
    out->stop = a->stop;
    out->save = a->save;
}

/* Until here a step may be abandoned and done again: now it counts, and so do the samples that it read. */
static void commit(struct pl_trainer *t, const struct pl_step_result *out)
{
    struct pl_run_state *p = &t->state;
    bool epoch_ends = out->end == t->source.epoch_samples;
    p->step++;
    p->epoch = epoch_ends ? out->epoch + 1 : out->epoch;
    p->position = epoch_ends ? 0 : out->end;
}

static pl_status deal(struct pl_trainer *t, const struct pl_agreement *a)
{
    pl_trainer_hold(t, true);
    pl_status s = pl_trainer_deal(t, a->place, a->members);
    pl_trainer_hold(t, false);
    return s;
}

/* Parameters, optimizer and state are a peer's now: goes on from where it is. */
static pl_status catch_up(struct pl_trainer *t, const struct pl_agreement *a, double begin, struct pl_step_result *out)
{
    out->went_on = true;
    pl_train_take_note(a, out);
    pl_status s = deal(t, a);
    out->step_ms = pl_now_ms() - begin;
    return s;
}

void pl_train_take_parts(const struct pl_agreement *a, struct pl_step_result *out)
{
    out->ended = a->ended;
    out->writes = a->writes;
    out->tells = a->tells;
}

pl_status pl_trainer_step(struct pl_trainer *t, struct pl_step_result *out)
{
    struct pl_loss_sums sums = {0};
    struct pl_agreement agreed;
    bool last = false;
    if (pl_train_apart(t))
        return pl_train_step_apart(t, out);
    if (t->sync_table->whole)
        return pl_train_step_whole(t, out);
    *out = (struct pl_step_result){.step = t->state.step, .grad_norm = NAN};
    double begin = pl_now_ms();

    pl_log_step(out->step);
    take_waited_ms(t); /* what was waited for between steps is none of this one's */
    pl_status s = t->sync_table->begin(t->sync, out->step);
    if (s == PL_OK && t->statistics)
        s = pl_exchange_begin(t->statistics, out->step);
    last = s == PL_END; /* this rank has no share */
    for (int64_t micro = 0; s >= 0 && !last; micro++)
        s = pl_train_micro_batch(t, micro, s == PL_END, &sums, out, &last);
    PL_TRY(s);
    s = t->sync_table->finish(t->sync, &agreed);
    pl_train_take_parts(&agreed, out);
    if (s != PL_OK || agreed.ended)
        return s;
    if (agreed.went_on)
        return catch_up(t, &agreed, begin, out);
    PL_TRY(pl_train_check_finite(&agreed, out->step));

    double updating = pl_now_ms(), traced = pl_trace_begin();
    out->lr = pl_train_lr(t, out->step);
    pl_trainer_hold(t, true);
    s = update(t, &agreed, out);
    out->update_ms = pl_now_ms() - updating;
    pl_trace_end(traced, "step", "update", out->step);
    commit(t, out);
    if (s == PL_OK && t->sync_table->average)
        s = t->sync_table->average(t->sync, t->state.step == t->total_steps, &agreed);
    pl_train_take_parts(&agreed, out);
    bool with_it = s == PL_OK && !agreed.ended && !agreed.went_on;
    if (with_it)
        s = pl_train_check_finite(&agreed, out->step);
    if (with_it && s == PL_OK) {
        pl_train_take_note(&agreed, out);
        t->state.samples_seen += (int64_t)out->rows;
    }
    pl_trainer_hold(t, false);
    if (s != PL_OK || agreed.ended)
        return s;
    if (agreed.went_on)
        return catch_up(t, &agreed, begin, out);
    if (agreed.dealt)
        PL_TRY(deal(t, &agreed));
    out->step_ms = pl_now_ms() - begin;
    return PL_OK;
}
