/* report: what rank 0 shows and writes: the progress line or batch log on stderr, metrics.jsonl
 * (appended, one write a line). On other ranks every function does nothing. */
#ifndef PL_REPORT_H
#define PL_REPORT_H

#include "base/base.h"

struct pl_report;
/* dir NULL: no metrics file. total_steps for the time left, INT64_MAX: not known. PL_ERR_CHECKPOINT (6) if dir cannot be written. */
pl_status pl_report_open(const char *dir, bool active, int64_t total_steps, double total_epochs, struct pl_report **out);
void pl_report_close(struct pl_report *r);
void pl_report_length(struct pl_report *r, int64_t total_steps, double total_epochs); /* where it has become another one */

struct pl_report_start { int ranks, threads; const char *device, *backend, *precision, *transport, *algorithm, *why, *model, *trial, *sync; int64_t tau; /* 0: not local_sgd */ bool average_momentum; int64_t parameters, batch, global_batch, train_samples, test_samples; int stages; int64_t microbatch; /* of a split model; stages 0: it is whole */ int parts; /* of each layer; 0, 1: it is whole */ const char *within; /* how its ranks exchange activations; NULL: whole */ bool together; /* split.optimizer */ bool sync_bn; };
void pl_report_start(struct pl_report *r, const struct pl_report_start *s);
struct pl_report_step { int64_t step, epoch, local_steps; /* that it is over, 0: not local_sgd */ double loss, total_loss, accuracy, lr, samples_per_s, step_ms, data_ms, compute_ms, exchange_ms, exchange_total_ms, update_ms, grad_norm, sent_mb, saved_mb; const char *late; int64_t passes; /* over the set so far, 0: not of sandblaster */ };
void pl_report_step(struct pl_report *r, const struct pl_report_step *s); /* NAN fields are left out */
void pl_report_progress(struct pl_report *r, const struct pl_report_step *s); /* live line only, at most 10 a second */
void pl_report_eval(struct pl_report *r, int64_t step, int64_t epoch, const char *set, double loss, double accuracy, double top5, int64_t samples);
void pl_report_checkpoint(struct pl_report *r, int64_t step, const char *path, double ms);
void pl_report_goes_on(struct pl_report *r, int64_t step); /* of a rank that reports from there on */
void pl_report_resume(struct pl_report *r, int64_t step, const char *path);
/* Ranks that were struck off, or let in again, NULL: none; members: how many go on. */
void pl_report_members(struct pl_report *r, int64_t step, const char *lost, const char *back, int members);
/* Of downpour: updates of the parameters while a gradient was computed and on its way; who computed how many. Of
 * sandblaster, ages 0: who computed how many portions. */
struct pl_report_ages { const int64_t *count; int ages; int64_t dropped; const int64_t *share; int ranks; }; /* count[ages], the last: that or more; share[ranks] */
void pl_report_end(struct pl_report *r, int64_t step, const char *reason, double seconds, int64_t samples, const struct pl_report_ages *a); /* a: or NULL */
/* report.dir/exit.json: how the run ended, for who started it; whole or not at all. dir NULL: nothing. code -1: takes away what an
 * earlier life left. Who started it is named by PACELINE_RUN. beside: another run has begun in dir: to exit-PACELINE_RUN.json,
 * or to nobody. PL_ERR_CHECKPOINT. */
pl_status pl_report_outcome(const char *dir, bool beside, int code, const char *reason, int64_t step, int ranks);
/* timeline.c: a picture of what each rank's threads do, from open to end: DIR/timeline-STEP.rank-RANK.json. open: PL_ERR_CHECKPOINT
 * where it cannot be written, or DIR/timeline-STEP.json is there. zero: right after all ranks met. write: between steps; what cannot
 * be written any more is said once. join, of one rank after all have ended theirs: one file of them all, DIR/timeline-STEP.json.
 * NULL is fine but for join. */
struct pl_timeline;
pl_status pl_timeline_open(const char *dir, int64_t step, int rank, int ranks, struct pl_timeline **out);
void pl_timeline_zero(struct pl_timeline *t);
void pl_timeline_write(struct pl_timeline *t);
void pl_timeline_end(struct pl_timeline *t);
pl_status pl_timeline_join(const struct pl_timeline *t, const char *dir, int64_t step);
void pl_timeline_close(struct pl_timeline *t);
/* A sentence for people, kept clear of the live line. */
void pl_report_say(struct pl_report *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
#endif
