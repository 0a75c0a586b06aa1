/* What people see on stderr: on a terminal one live line that is written over, in a batch log plain
 * lines. */
#include "report/report_internal.h"

#include <math.h>
#include <string.h>
#include <unistd.h>

#define LIVE_MS 100.0

static void put(struct pl_report *r, const char *text, bool live)
{
    char line[1024];
    const char *clear = r->live_shown ? "\r\033[K" : "";
    int n = snprintf(line, sizeof line, "%s%s%s", clear, text, live ? "" : "\n");
    if (n > (int)sizeof line - 1)
        n = (int)sizeof line - 1;
    if (write(STDERR_FILENO, line, (size_t)n) < 0)
        return; /* nobody is listening */
    r->live_shown = live;
}

void pl_progress_line(struct pl_report *r, const char *fmt, ...)
{
    char text[1000];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    put(r, text, false);
}

/* Where the steps are not known, by passes over the set. */
static void time_left(struct pl_report *r, const struct pl_report_step *s, char *text, size_t bytes)
{
    bool steps = r->total_steps < INT64_MAX;
    r->first_passes = r->first_passes < 0 ? s->passes - 1 : r->first_passes;
    double done = steps ? (double)(s->step - r->first_step) : (double)(s->passes - r->first_passes);
    double left = steps ? (double)(r->total_steps - s->step) : r->total_epochs - (double)s->passes;
    left = left > 0 ? left : 0;
    double seconds = done > 0 ? (pl_now_ms() - r->started_ms) / 1000 / done * left : 0;
    if (seconds >= 3600)
        snprintf(text, bytes, "%.0f h %02.0f min", floor(seconds / 3600), floor(fmod(seconds, 3600) / 60));
    else if (seconds >= 60)
        snprintf(text, bytes, "%.0f min %02.0f s", floor(seconds / 60), floor(fmod(seconds, 60)));
    else
        snprintf(text, bytes, "%.0f s", seconds);
}

/* "epoch 3/10  step 1200/4000", or what of it there is. */
static int where(const struct pl_report *r, const struct pl_report_step *s, char *text, size_t bytes)
{
    int n = snprintf(text, bytes, "%s %lld", s->passes > 0 ? "pass" : "epoch", (long long)s->epoch + 1);
    if (r->total_epochs > 0)
        n += snprintf(text + n, bytes - (size_t)n, "/%.4g", ceil(r->total_epochs));
    n += snprintf(text + n, bytes - (size_t)n, "  step %lld", (long long)s->step);
    if (r->total_steps < INT64_MAX)
        n += snprintf(text + n, bytes - (size_t)n, "/%lld", (long long)r->total_steps);
    return n;
}

void pl_progress_step(struct pl_report *r, const struct pl_report_step *s, bool live)
{
    char text[512], left[48];
    double now = pl_now_ms();
    if (live && (!r->live || now - r->shown_ms < LIVE_MS))
        return;
    r->shown_ms = now;
    time_left(r, s, left, sizeof left);
    int n = where(r, s, text, sizeof text);
    n += snprintf(text + n, sizeof text - (size_t)n, "  loss %.4f", s->loss);
    if (isfinite(s->accuracy))
        n += snprintf(text + n, sizeof text - (size_t)n, "  accuracy %.4f", s->accuracy);
    n += snprintf(text + n, sizeof text - (size_t)n, "  %.0f samples/s  %s left", s->samples_per_s, left);
    if (s->late)
        snprintf(text + n, sizeof text - (size_t)n, "  late: %s", s->late);
    put(r, text, r->live);
}
