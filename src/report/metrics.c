/* metrics.jsonl: one JSON object a line, appended by a single write, so that a run that is killed
 * leaves whole lines and two lives of a run do not mix theirs. */
#include "report/report_internal.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void pl_metrics_number(struct pl_text *t, const char *name, double v)
{
    if (isfinite(v))
        pl_text_add(t, ", \"%s\": %.9g", name, v);
}

void pl_metrics_int(struct pl_text *t, const char *name, int64_t v) { pl_text_add(t, ", \"%s\": %lld", name, (long long)v); }

void pl_metrics_text(struct pl_text *t, const char *name, const char *v)
{
    if (!v)
        return;
    pl_text_add(t, ", \"%s\": ", name);
    pl_text_add_json(t, v);
}

/* The first bytes of a line for which the disk had no more room. */
static void take_back(int fd, ssize_t n)
{
    struct stat st;
    if (fstat(fd, &st) == 0 && ftruncate(fd, st.st_size - n) != 0)
        return; /* half a line stays; readers skip what is no JSON */
}

void pl_metrics_write(struct pl_report *r, const char *event, const struct pl_text *members)
{
    struct pl_text line = {0};
    if (r->metrics < 0)
        return;
    pl_text_add(&line, "{\"event\": \"%s\"%s}\n", event, members->s ? members->s : "");
    ssize_t n = line.s ? write(r->metrics, line.s, line.len) : 0;
    int code = n < 0 ? errno : ENOSPC;
    if (line.s && n != (ssize_t)line.len) {
        if (n > 0)
            take_back(r->metrics, n);
        if (!r->metrics_failed)
            pl_progress_line(r, "%s: cannot be written (%s); training goes on without it", r->path, strerror(code));
        r->metrics_failed = true;
    }
    pl_text_free(&line);
}
