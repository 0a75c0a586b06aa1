/* The events of a run, each to people and to metrics.jsonl. */
#include "report/report_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static pl_status open_metrics(struct pl_report *r, const char *dir)
{
    PL_TRY(pl_make_dirs(dir, "report"));
    r->path = pl_strdupf("%s/metrics.jsonl", dir);
    if (!r->path)
        return PL_ERR_MEMORY;
    r->metrics = open(r->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    return r->metrics >= 0 ? PL_OK : pl_error(PL_ERR_CHECKPOINT, "report", "%s: cannot be written: %s", r->path, strerror(errno));
}

pl_status pl_report_open(const char *dir, bool active, int64_t total_steps, double total_epochs, struct pl_report **out)
{
    struct pl_report *r = pl_alloc(sizeof *r, "a report");
    if (!r)
        return PL_ERR_MEMORY;
    *r = (struct pl_report){.active = active, .live = isatty(STDERR_FILENO), .metrics = -1, .total_steps = total_steps, .first_passes = -1,
                            .total_epochs = total_epochs, .started_ms = pl_now_ms()};
    pl_status s = active && dir ? open_metrics(r, dir) : PL_OK;
    if (s < 0)
        pl_report_close(r);
    else
        *out = r;
    return s;
}

void pl_report_length(struct pl_report *r, int64_t total_steps, double total_epochs)
{
    r->total_steps = total_steps;
    r->total_epochs = total_epochs;
}

void pl_report_close(struct pl_report *r)
{
    if (!r)
        return;
    if (r->metrics >= 0)
        close(r->metrics);
    pl_free(r->path);
    pl_free(r);
}

void pl_report_start(struct pl_report *r, const struct pl_report_start *s)
{
    struct pl_text t = {0};
    if (!r->active)
        return;
    r->started_ms = pl_now_ms();
    pl_metrics_text(&t, "version", PL_VERSION);
    pl_metrics_text(&t, "model", s->model);
    pl_metrics_int(&t, "ranks", s->ranks);
    pl_metrics_int(&t, "threads", s->threads);
    pl_metrics_text(&t, "device", s->device);
    pl_metrics_text(&t, "backend", s->backend);
    pl_metrics_text(&t, "precision", s->precision);
    pl_metrics_text(&t, "transport", s->transport);
    pl_metrics_text(&t, "algorithm", s->algorithm);
    pl_metrics_text(&t, "why", s->why);
    pl_metrics_text(&t, "sync", s->sync);
    if (s->tau > 0) {
        pl_metrics_int(&t, "tau", s->tau);
        pl_metrics_text(&t, "average", s->average_momentum ? "parameters and optimizer" : "parameters");
    }
    if (s->parts > 1)
        pl_metrics_int(&t, "parts", s->parts);
    if (s->stages > 0) {
        pl_metrics_int(&t, "stages", s->stages);
        pl_metrics_int(&t, "microbatch", s->microbatch);
    }
    pl_metrics_text(&t, "within_replica", s->within);
    pl_metrics_text(&t, "split_optimizer", s->together ? "node" : NULL);
    if (s->sync_bn)
        pl_text_add(&t, ", \"sync_bn\": true");
    pl_metrics_int(&t, "parameters", s->parameters);
    pl_metrics_int(&t, "batch", s->batch);
    pl_metrics_int(&t, "global_batch", s->global_batch);
    pl_metrics_int(&t, "train_samples", s->train_samples);
    pl_metrics_int(&t, "test_samples", s->test_samples);
    pl_metrics_text(&t, "trial", s->trial);
    pl_metrics_write(r, "start", &t);
    pl_text_free(&t);
    pl_progress_line(r, "Paceline %s: %s, %lld parameters, %d rank%s x %d thread%s, %s, batch %lld, %lld training samples", PL_VERSION,
                     s->model, (long long)s->parameters, s->ranks, s->ranks == 1 ? "" : "s", s->threads,
                     s->threads == 1 ? "" : "s", s->precision, (long long)s->global_batch, (long long)s->train_samples);
    pl_progress_line(r, "%s", s->device);
}

void pl_report_step(struct pl_report *r, const struct pl_report_step *s)
{
    struct pl_text t = {0};
    if (!r->active)
        return;
    pl_metrics_int(&t, "step", s->step);
    pl_metrics_int(&t, "epoch", s->epoch);
    if (s->local_steps > 0)
        pl_metrics_int(&t, "local_steps", s->local_steps);
    if (s->passes > 0)
        pl_metrics_int(&t, "passes", s->passes);
    pl_metrics_number(&t, "loss", s->loss);
    pl_metrics_number(&t, "total_loss", s->total_loss);
    pl_metrics_number(&t, "accuracy", s->accuracy);
    pl_metrics_number(&t, "lr", s->lr);
    pl_metrics_number(&t, "samples_per_s", s->samples_per_s);
    pl_metrics_number(&t, "step_ms", s->step_ms);
    pl_metrics_number(&t, "data_ms", s->data_ms);
    pl_metrics_number(&t, "compute_ms", s->compute_ms);
    pl_metrics_number(&t, "exchange_ms", s->exchange_ms);
    pl_metrics_number(&t, "exchange_total_ms", s->exchange_total_ms);
    pl_metrics_number(&t, "update_ms", s->update_ms);
    pl_metrics_number(&t, "grad_norm", s->grad_norm);
    pl_metrics_number(&t, "sent_mb", s->sent_mb);
    pl_metrics_number(&t, "saved_mb", s->saved_mb);
    pl_metrics_text(&t, "late", s->late);
    pl_metrics_write(r, "step", &t);
    pl_text_free(&t);
    pl_progress_step(r, s, false);
}

void pl_report_progress(struct pl_report *r, const struct pl_report_step *s)
{
    if (r->active)
        pl_progress_step(r, s, true);
}

void pl_report_eval(struct pl_report *r, int64_t step, int64_t epoch, const char *set, double loss, double accuracy, double top5, int64_t samples)
{
    struct pl_text t = {0};
    if (!r->active)
        return;
    pl_metrics_int(&t, "step", step);
    pl_metrics_int(&t, "epoch", epoch);
    pl_metrics_text(&t, "set", set);
    pl_metrics_number(&t, "loss", loss);
    pl_metrics_number(&t, "accuracy", accuracy);
    pl_metrics_number(&t, "top5", top5);
    pl_metrics_int(&t, "samples", samples);
    pl_metrics_write(r, "eval", &t);
    pl_text_free(&t);
    pl_progress_line(r, "step %lld: %s loss %.4f, accuracy %.4f (%lld samples)", (long long)step, set, loss, accuracy, (long long)samples);
}

void pl_report_checkpoint(struct pl_report *r, int64_t step, const char *path, double ms)
{
    struct pl_text t = {0};
    if (!r->active)
        return;
    pl_metrics_int(&t, "step", step);
    pl_metrics_text(&t, "path", path);
    pl_metrics_number(&t, "ms", ms);
    pl_metrics_write(r, "checkpoint", &t);
    pl_text_free(&t);
}

void pl_report_goes_on(struct pl_report *r, int64_t step) { r->first_step = step; }

void pl_report_resume(struct pl_report *r, int64_t step, const char *path)
{
    struct pl_text t = {0};
    if (!r->active)
        return;
    r->first_step = step;
    pl_metrics_int(&t, "step", step);
    pl_metrics_text(&t, "path", path);
    pl_metrics_write(r, "resume", &t);
    pl_text_free(&t);
    pl_progress_line(r, "continuing at step %lld from %s", (long long)step, path);
}

void pl_report_members(struct pl_report *r, int64_t step, const char *lost, const char *back, int members)
{
    struct pl_text t = {0};
    if (!r->active)
        return;
    pl_metrics_int(&t, "step", step);
    pl_metrics_text(&t, "rank", lost ? lost : back);
    pl_metrics_int(&t, "members", members);
    pl_metrics_write(r, lost ? "lost_rank" : "back_rank", &t);
    pl_text_free(&t);
    if (lost)
        pl_progress_line(r, "lost rank %s at step %lld; %d go on and share its data", lost, (long long)step, members);
    if (back)
        pl_progress_line(r, "rank %s is back at step %lld; %d share the data", back, (long long)step, members);
}

/* {"0": 12, "3": 7, "32+": 1} */
static void add_ages(struct pl_text *t, const struct pl_report_ages *a)
{
    const char *comma = "";
    pl_text_add(t, "{");
    for (int i = 0; i < a->ages; i++)
        if (a->count[i] > 0) {
            pl_text_add(t, "%s\"%d%s\": %lld", comma, i, i + 1 == a->ages ? "+" : "", (long long)a->count[i]);
            comma = ", ";
        }
    pl_text_add(t, "}");
}

static void add_shares(struct pl_text *t, const struct pl_report_ages *a)
{
    for (int r = 0; r < a->ranks; r++)
        pl_text_add(t, "%s%lld", r > 0 ? ", " : "", (long long)a->share[r]);
}

/* The same numbers to people. */
static void say_ages(struct pl_report *r, const struct pl_report_ages *a)
{
    struct pl_text t = {0};
    int64_t all = 0;
    double sum = 0;
    for (int i = 0; i < a->ages; i++) {
        all += a->count[i];
        sum += (double)i * (double)a->count[i];
    }
    if (a->ages > 0) {
        add_ages(&t, a);
        pl_progress_line(r, "staleness of gradients, in updates of a shard: mean %.1f, %s; dropped %lld of %lld", all > 0 ? sum / (double)all : 0,
                         t.s ? t.s : "", (long long)a->dropped, (long long)all);
        pl_text_free(&t);
    }
    add_shares(&t, a);
    pl_progress_line(r, "%s by rank: %s", a->ages > 0 ? "micro-batches" : "portions", t.s ? t.s : "");
    pl_text_free(&t);
}

void pl_report_end(struct pl_report *r, int64_t step, const char *reason, double seconds, int64_t samples, const struct pl_report_ages *a)
{
    struct pl_text t = {0};
    if (!r->active)
        return;
    if (a)
        say_ages(r, a);
    pl_metrics_int(&t, "step", step);
    pl_metrics_text(&t, "reason", reason);
    pl_metrics_number(&t, "seconds", seconds);
    pl_metrics_int(&t, "samples", samples);
    if (a && a->ages > 0) {
        pl_text_add(&t, ", \"staleness\": ");
        add_ages(&t, a);
        pl_metrics_int(&t, "dropped_gradients", a->dropped);
    }
    if (a) {
        pl_text_add(&t, ", \"%s\": [", a->ages > 0 ? "micro_batches" : "portions");
        add_shares(&t, a);
        pl_text_add(&t, "]");
    }
    pl_metrics_write(r, "end", &t);
    pl_text_free(&t);
    pl_progress_line(r, "%s at step %lld after %.1f s, %.0f samples/s", reason, (long long)step, seconds,
                     seconds > 0 ? (double)samples / seconds : 0);
}

void pl_report_say(struct pl_report *r, const char *fmt, ...)
{
    char text[1000];
    va_list args;
    if (!r->active)
        return;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    pl_progress_line(r, "%s", text);
}

pl_status pl_report_outcome(const char *dir, bool beside, int code, const char *reason, int64_t step, int ranks)
{
    const char *run = getenv("PACELINE_RUN");
    if (!dir || (beside && !run))
        return PL_OK;
    char *path = pl_strdupf("%s/exit%s%.100s.json", dir, beside ? "-" : "", beside ? run : ""), *part = path ? pl_strdupf("%s.part", path) : NULL;
    pl_status s = path && part ? PL_OK : PL_ERR_MEMORY;
    if (s == PL_OK && code < 0) {
        unlink(path);
    } else if (s == PL_OK) {
        FILE *f = fopen(part, "w");
        bool whole = f && fprintf(f, "{\"code\": %d, \"reason\": \"%s\", \"step\": %lld, \"ranks\": %d%s%.100s%s}\n", code, reason, (long long)step, ranks,
                                  run ? ", \"run\": \"" : "", run ? run : "", run ? "\"" : "") > 0;
        whole = (!f || fclose(f) == 0) && whole && rename(part, path) == 0;
        if (!whole)
            s = pl_error(PL_ERR_CHECKPOINT, "report", "%s cannot be written: %s", path, strerror(errno));
    }
    pl_free(path);
    pl_free(part);
    return s;
}
