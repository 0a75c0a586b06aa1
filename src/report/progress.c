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

static void time_left(const struct pl_report *r, int64_t step, char *text, size_t bytes)
{
    double done = (double)(step - r->first_step), left = (double)(r->total_steps - step);
    double seconds = done > 0 ? (pl_now_ms() - r->started_ms) / 1000 / done * left : 0;
    if (seconds >= 3600)
        snprintf(text, bytes, "%.0f h %02.0f min", floor(seconds / 3600), floor(fmod(seconds, 3600) / 60));
    else if (seconds >= 60)
        snprintf(text, bytes, "%.0f min %02.0f s", floor(seconds / 60), floor(fmod(seconds, 60)));
    else
        snprintf(text, bytes, "%.0f s", seconds);
}

void pl_progress_step(struct pl_report *r, const struct pl_report_step *s, bool live)
{
    char text[512], left[48];
    double now = pl_now_ms();
    if (live && (!r->live || now - r->shown_ms < LIVE_MS))
        return;
    r->shown_ms = now;
    time_left(r, s->step, left, sizeof left);
    int n = snprintf(text, sizeof text, "epoch %lld/%.4g  step %lld/%lld  loss %.4f", (long long)s->epoch + 1,
                     ceil(r->total_epochs), (long long)s->step, (long long)r->total_steps, s->loss);
    if (isfinite(s->accuracy))
        n += snprintf(text + n, sizeof text - (size_t)n, "  accuracy %.4f", s->accuracy);
    n += snprintf(text + n, sizeof text - (size_t)n, "  %.0f samples/s  %s left", s->samples_per_s, left);
    if (s->late)
        snprintf(text + n, sizeof text - (size_t)n, "  late: %s", s->late);
    put(r, text, r->live);
}
