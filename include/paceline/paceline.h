/* libpaceline: training, and what was trained, as a part of another program, with its data in files or in memory.
 *
 *     struct paceline *p;
 *     struct paceline_job *job;
 *     paceline_open(&p);
 *     if (paceline_job_read(p, "job.yaml", 0, NULL, &job) == 0 && paceline_job_data(job, "train", &samples, &labels) == 0)
 *         paceline_train(p, job, NULL, NULL);
 *     paceline_job_close(job);
 *     paceline_close(p);
 *
 * Every rank of MPI_COMM_WORLD makes the same calls in the same order, where a line does not say otherwise, from one thread, and
 * makes no other call of MPI or HDF5 while one is running. Without mpirun there is one rank.
 *
 * Failure. A call returns 0, or the code that the program `paceline` would end with; paceline_message says why. A call of all
 * ranks that fails on one fails on all, with the same code, and the rank that knows why says it on stderr too. But once a run's
 * steps have begun, a rank that fails alone (its data cannot be read, a peer is lost) ends the whole MPI job with that code, as
 * the others wait for it. Where a run goes on without ranks that it lost (sync.backup_workers), or ended for them, MPI cannot be
 * used any more: what was trained is in the checkpoint, further calls return PACELINE_PEER, and the program should end.
 *
 * What it changes for the whole process: OpenMP and OpenBLAS have the threads that a job wants, also afterwards (set them again);
 * HDF5 prints no errors of its own any more, closes no files by itself at exit, takes no locks on files and heeds no
 * HDF5_VDS_PREFIX; the limits of open files and locked memory may be raised; while a run trains that has a checkpoint.dir, the
 * signals of checkpoint.signals are its own; MPI errors on MPI_COMM_WORLD are returned until paceline_close. */
#ifndef PACELINE_H
#define PACELINE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    PACELINE_OK = 0,
    PACELINE_USAGE = 2,      /* the job, or how it was called */
    PACELINE_DATA = 3,       /* data */
    PACELINE_NOT_FINITE = 4, /* the loss is not finite */
    PACELINE_PEER = 5,       /* another rank, MPI or the network */
    PACELINE_CHECKPOINT = 6, /* a checkpoint, or anything else that is written */
    PACELINE_MEMORY = 7,     /* out of memory or compute device */
    PACELINE_STOPPED = 75    /* stopped on a signal, with a checkpoint: the same call goes on */
};

const char *paceline_version(void); /* "0.1.0"; any time */
/* Why the last call failed, if this rank knows, otherwise "". Until the next call. */
const char *paceline_message(void);

/* ---- the ranks ------------------------------------------------------------------------------------ */

struct paceline;
/* Starts MPI unless the caller has, with MPI_THREAD_SERIALIZED or more. One at a time; MPI that paceline_close has ended cannot be
 * started again. */
int paceline_open(struct paceline **out);
/* After everything else. Ends MPI if paceline_open has started it. NULL is fine. */
void paceline_close(struct paceline *p);
int paceline_rank(const struct paceline *p);
int paceline_ranks(const struct paceline *p);

/* ---- a job ---------------------------------------------------------------------------------------- */

struct paceline_job;
/* The job file (README, "A first job"), with so many overrides "key=value" as on the command line. The same on all ranks. */
int paceline_job_read(struct paceline *p, const char *path, int overrides, const char *const *override, struct paceline_job **out);
/* The same from a text, which holds its model in place (model: {name, input, layers}); paths count from the working directory. */
int paceline_job_parse(struct paceline *p, const char *yaml, struct paceline_job **out);
void paceline_job_close(struct paceline_job *j); /* local; after the models made of it. NULL is fine */

enum paceline_type {
    PACELINE_FLOAT32, PACELINE_FLOAT64, PACELINE_UINT8, PACELINE_INT8, PACELINE_INT16, PACELINE_UINT16, PACELINE_INT32, PACELINE_UINT32,
    PACELINE_INT64, PACELINE_UINT64
};
/* Values in row order, the last dimension closest; dim[0] is the number of samples. */
struct paceline_array {
    enum paceline_type type;
    int dims; /* 1 to 8 */
    const int64_t *dim;
    const void *values;
};
/* Takes these samples as the set "train" or "test", instead of files: data [N, ...], channels first, label [N] of integers, [N, K] of
 * floats, or [N, T] of integers where there is a class at each position (-1: none), all of them on every rank. They are copied. The
 * set's other keys (scale, mean, augment, ...) hold as they do for files. Local; which ranks disagree about the samples is found in paceline_train (PACELINE_DATA). */
int paceline_job_data(struct paceline_job *j, const char *set, const struct paceline_array *data, const struct paceline_array *label);

/* ---- training ------------------------------------------------------------------------------------- */

/* Means over the samples of the step or of the evaluation; NAN where the loss has no classes. */
struct paceline_report {
    int64_t step, steps; /* done; of the whole run */
    double loss, accuracy;
    double samples_per_s; /* of steps, over all ranks; NAN in an evaluation */
    int evaluation;       /* 1: of the test set; 0: of the steps since the last report */
};
/* Called on the rank that reports, 0 unless it was lost, between two steps: as often as report.every says and after evaluations. */
typedef void paceline_watch(void *arg, const struct paceline_report *report);
/* The job's run, to its end: what `paceline train` does, with its files and its lines on stderr. It goes on from the newest
 * checkpoint of checkpoint.dir, if there is one and it is of the same samples (otherwise PACELINE_CHECKPOINT: give a new directory, and
 * train.init to start from what was learnt). watch: or NULL. */
int paceline_train(struct paceline *p, struct paceline_job *j, paceline_watch *watch, void *arg);

/* ---- what was trained ----------------------------------------------------------------------------- */

struct paceline_model;
/* The job's network with the parameters of `path`: a model.h5, or the newest whole checkpoint of a directory. NULL: of the job's
 * checkpoint.dir. Each rank has all of it. */
int paceline_model_open(struct paceline *p, struct paceline_job *j, const char *path, struct paceline_model **out);
void paceline_model_close(struct paceline_model *m); /* local; NULL is fine */
int64_t paceline_model_outputs(const struct paceline_model *m); /* numbers that it gives for a sample */
/* out[N * outputs]: what the network gives for data [N, ...], which is taken as the job's test set is. Local: ranks run what and
 * when they want. Costs some hundred microseconds beside the network's own: give it many samples at once. */
int paceline_model_run(struct paceline_model *m, const struct paceline_array *data, float *out);

#ifdef __cplusplus
}
#endif
#endif
