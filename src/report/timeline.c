/* report.timeline: what base/trace.c has kept, as Chrome's trace events (Trace Event Format: X a span of a thread, b and e one of
 * several beside each other, M names), a process a rank, which chrome://tracing and Perfetto open. Each rank writes its own file,
 * in microseconds since the ranks last met; at an orderly end the first makes one of them all. */
#include "report/report_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { AT_ONCE = 512 };

struct pl_timeline {
    FILE *file;
    char *path, *whole; /* this rank's; all ranks' */
    int rank, ranks;
    double zero_ms;
    bool named[PL_TRACE_THREADS], failed;
    struct pl_trace_event event[AT_ONCE];
};

static char *rank_path(const char *dir, int64_t step, int rank) { return pl_strdupf("%s/timeline-%08lld.rank-%05d.json", dir, (long long)step, rank); }

static pl_status cannot(const char *path) { return pl_error(PL_ERR_CHECKPOINT, "report", "%s: cannot be written: %s", path, strerror(errno)); }

static pl_status open_file(struct pl_timeline *t)
{
    if (access(t->whole, F_OK) == 0)
        return pl_error(PL_ERR_CHECKPOINT, "report", "%s exists already\nmove it away, give another report.dir, or report.timeline=false", t->whole);
    t->file = fopen(t->path, "w"); /* what is left of a run that did not end in order */
    if (!t->file)
        return cannot(t->path);
    fprintf(t->file, "[\n{\"ph\": \"M\", \"name\": \"process_name\", \"pid\": %d, \"args\": {\"name\": \"rank %d\"}}", t->rank, t->rank);
    return pl_trace_start();
}

pl_status pl_timeline_open(const char *dir, int64_t step, int rank, int ranks, struct pl_timeline **out)
{
    struct pl_timeline *t = pl_alloc(sizeof *t, "the timeline");
    if (!t)
        return PL_ERR_MEMORY;
    t->rank = rank;
    t->ranks = ranks;
    t->path = rank_path(dir, step, rank);
    t->whole = pl_strdupf("%s/timeline-%08lld.json", dir, (long long)step);
    pl_status s = t->path && t->whole ? pl_make_dirs(dir, "report") : PL_ERR_MEMORY;
    if (s == PL_OK)
        s = open_file(t);
    if (s < 0)
        pl_timeline_close(t);
    else
        *out = t;
    return s;
}

void pl_timeline_zero(struct pl_timeline *t)
{
    if (t)
        t->zero_ms = pl_now_ms();
}

static void write_thread(struct pl_timeline *t, int thread)
{
    if (t->named[thread])
        return;
    t->named[thread] = true;
    fprintf(t->file, ",\n{\"ph\": \"M\", \"name\": \"thread_name\", \"pid\": %d, \"tid\": %d, \"args\": {\"name\": \"%s\"}}", t->rank, thread, pl_trace_thread(thread));
}

static void write_head(struct pl_timeline *t, const struct pl_trace_event *e, const char *kind, double ms)
{
    struct pl_text name = {0};
    pl_text_add_json(&name, e->name);
    fprintf(t->file, ",\n{\"ph\": \"%s\", \"name\": %s, \"cat\": \"%s\", \"pid\": %d, \"tid\": %d, \"ts\": %.3f", kind, name.s ? name.s : "\"\"", e->what, t->rank, e->thread,
            1000 * (ms - t->zero_ms));
    pl_text_free(&name);
}

static void write_event(struct pl_timeline *t, const struct pl_trace_event *e, int64_t id)
{
    char number[64] = "";
    if (e->number >= 0)
        snprintf(number, sizeof number, ", \"args\": {\"number\": %lld}", (long long)e->number);
    write_thread(t, e->thread);
    write_head(t, e, e->beside ? "b" : "X", e->begin_ms);
    if (!e->beside) {
        fprintf(t->file, ", \"dur\": %.3f%s}", 1000 * (e->end_ms - e->begin_ms), number);
        return;
    }
    fprintf(t->file, ", \"id\": \"%d.%lld\"%s}", t->rank, (long long)id, number);
    write_head(t, e, "e", e->end_ms);
    fprintf(t->file, ", \"id\": \"%d.%lld\"}", t->rank, (long long)id);
}

/* Says so once, and keeps nothing more. */
static void check(struct pl_timeline *t, int64_t missing)
{
    if (missing > 0)
        pl_log("report: %lld spans more than the timeline has room for in a step are not in it", (long long)missing);
    if (!ferror(t->file) || t->failed)
        return;
    pl_log("report: %s: cannot be written; training goes on without it", t->path);
    t->failed = true;
    pl_trace_stop();
}

void pl_timeline_write(struct pl_timeline *t)
{
    static int64_t id;
    int64_t missing;
    if (!t || !t->file || t->failed)
        return;
    for (int n = AT_ONCE; n == AT_ONCE;) {
        n = pl_trace_take(t->event, AT_ONCE, &missing);
        for (int i = 0; i < n; i++)
            write_event(t, &t->event[i], id++);
    }
    fflush(t->file);
    check(t, missing);
}

void pl_timeline_end(struct pl_timeline *t)
{
    if (!t || !t->file)
        return;
    pl_timeline_write(t);
    pl_trace_stop();
    fprintf(t->file, "\n]\n");
    bool fine = !ferror(t->file);
    fine = fclose(t->file) == 0 && fine;
    t->file = NULL;
    if (!fine && !t->failed)
        pl_log("report: %s: cannot be written", t->path);
    t->failed = t->failed || !fine;
}

/* Without the brackets. false: it is not there, or the other cannot be written. */
static bool append(FILE *to, const char *path, bool first)
{
    char line[4096];
    FILE *from = fopen(path, "r");
    if (!from)
        return false;
    bool begun = !first;
    while (fgets(line, sizeof line, from)) {
        bool bracket = strcmp(line, "[\n") == 0 || strcmp(line, "]\n") == 0;
        size_t n = strcspn(line, "\n");
        if (bracket || n == 0)
            continue;
        if (line[n - 1] == ',')
            line[--n] = '\0';
        fprintf(to, "%s%.*s", begun ? ",\n" : "", (int)n, line);
        begun = true;
    }
    fclose(from);
    return !ferror(to);
}

pl_status pl_timeline_join(const struct pl_timeline *t, const char *dir, int64_t step)
{
    char *part = NULL;
    FILE *to = fopen(t->whole, "wx");
    if (!to)
        return cannot(t->whole);
    fprintf(to, "[\n");
    bool fine = true;
    for (int r = 0; r < t->ranks && fine; r++) {
        part = rank_path(dir, step, r);
        fine = part && append(to, part, r == 0);
        pl_free(part);
    }
    fprintf(to, "\n]\n");
    fine = !ferror(to) && fine;
    if (fclose(to) != 0 || !fine) {
        unlink(t->whole);
        return cannot(t->whole);
    }
    for (int r = 0; r < t->ranks && (part = rank_path(dir, step, r)); r++) {
        unlink(part);
        pl_free(part);
    }
    return PL_OK;
}

void pl_timeline_close(struct pl_timeline *t)
{
    if (!t)
        return;
    pl_timeline_end(t);
    pl_free(t->path);
    pl_free(t->whole);
    pl_free(t);
}
