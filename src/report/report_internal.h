/* Internal to report/. */
#ifndef PL_REPORT_INTERNAL_H
#define PL_REPORT_INTERNAL_H

#include "report/report.h"

struct pl_report {
    bool active, live, live_shown, metrics_failed;
    int metrics;         /* file descriptor; -1: none */
    int64_t total_steps, first_step, first_passes; /* first_passes: before the first line, -1 until then */
    double total_epochs, started_ms, shown_ms;
    char *path;
};
/* metrics.c: appends one object, in one write. text: the members after "event". */
void pl_metrics_write(struct pl_report *r, const char *event, const struct pl_text *members);
void pl_metrics_number(struct pl_text *t, const char *name, double v); /* leaves NaN and infinities out */
void pl_metrics_int(struct pl_text *t, const char *name, int64_t v);
void pl_metrics_text(struct pl_text *t, const char *name, const char *v);
/* progress.c */
void pl_progress_line(struct pl_report *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void pl_progress_step(struct pl_report *r, const struct pl_report_step *s, bool live);

#endif
