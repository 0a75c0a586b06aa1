/* checkpoint: DIR/step-00001200/ with model.h5 and manifest.json, written under another name,
 * synced, renamed; `latest` names the newest whole one. Layout: the design, section 8. */
#ifndef PL_CHECKPOINT_H
#define PL_CHECKPOINT_H

#include "optim/optim.h"

struct pl_run_state { /* attributes on /run */
    int64_t step;            /* committed steps */
    int64_t epoch, position; /* in the data order: samples of the epoch that have been read */
    int64_t samples_seen;
    int64_t global_batch;    /* samples of a step */
    int64_t train_samples;   /* and of the training set */
    int64_t seed;
    int ranks;
    bool done;               /* the run's last step */
    double best;             /* best value of the stop metric so far; NAN: none */
    double last_loss, last_accuracy; /* of the last evaluation; NAN: none */
    int64_t last_eval_step;
    int64_t best_step;       /* step of `best`; kept under checkpoint.keep_best */
};

/* Writes one checkpoint from host memory; returns when it is on disk and renamed, `latest` set and of
 * those up to this step all but `keep` removed (and but the best, if keep_best). One of the same step is
 * replaced, with a message. Later ones, of a run that went on from further, are left alone. Rank 0 only.
 * PL_ERR_CHECKPOINT; nothing whole is harmed. slots: slabs in slot order. */
struct pl_checkpoint_source {
    const struct pl_graph *graph; /* names and layout only */
    const struct pl_optimizer *optimizer; /* slot names only */
    const float *params;
    const float *const *slot;
    const struct pl_run_state *state;
    const struct pl_job *job;
    const char *train_file; /* the set's name, NULL: none */
    const char *owner; /* of pl_checkpoint_own; NULL: whose dir it is is not looked at. PL_ERR_CHECKPOINT where it is another's. */
    int parts; /* written before by so many ranks, 0: none */
    bool split; /* the parts are stages, or parts of layers (pl_checkpoint_save_stage): model.h5 shows what is in them; params and slot are not read */
};
/* A piece of a split model, a stage or a part of all layers, before pl_checkpoint_save makes all of them parts of the checkpoint of this step: its parameters and
 * optimizer state, under the names of the whole. What reads model.h5 need not know. One rank of each stage. */
pl_status pl_checkpoint_save_stage(const char *dir, int stage, const struct pl_checkpoint_source *src);
/* All of a checkpoint, or of a model.h5, in one new file, for those who move it alone. PL_ERR_CHECKPOINT, too, where that exists. */
pl_status pl_checkpoint_export(const char *path, const char *file);
pl_status pl_checkpoint_save(const char *dir, const struct pl_checkpoint_source *src);

/* A slab of trainable numbers that may differ by rank, /rank/R/NAME in R's part of a checkpoint: what compression lost,
 * momentum that is not averaged. */
#define PL_PARTS_MAX 4
struct pl_part {
    char name[64];
    float *slab; /* NULL: this run has no use for it */
    bool own;    /* each rank has its own; otherwise all need the same */
    bool mean;   /* what ranks without one of their own take: the mean of all. Otherwise their sum is shared out. */
};
/* Writes this rank's of `step`, those of part[n] that are its own, on every rank before pl_checkpoint_save makes them
 * parts of the checkpoint. */
pl_status pl_checkpoint_save_part(const char *dir, int64_t step, int rank, const struct pl_graph *g, const struct pl_part *part, int n);
/* Takes this rank's, or stage's, back, after any could not be written. */
void pl_checkpoint_discard_part(const char *dir, int64_t step, int rank);
/* Reads them back where the checkpoint has them: this rank's, or on another number of ranks or where it is not to be its
 * own, what comes of all. PL_END: it has one that this run has no use for. */
pl_status pl_checkpoint_load_part(const char *path, const struct pl_graph *g, int rank, int ranks, const struct pl_part *part, int n);

/* Before training: dir can be made and written. */
pl_status pl_checkpoint_probe(const char *dir);
/* dir belongs to the run that began there last: a batch system may start a run anew while ranks of its older life, which it
 * cannot reach, still compute (seen with Slurm 22.05). The older one commits nothing more once the new one has said so. */
enum { PL_OWNER_BYTES = 256 };
pl_status pl_checkpoint_own(const char *dir, char owner[PL_OWNER_BYTES]); /* rank 0: writes who it is to dir/owner */
bool pl_checkpoint_owned(const char *dir, const char *owner); /* also where that cannot be read, and if owner is NULL or empty */
pl_status pl_checkpoint_still_owned(const char *dir, const char *owner); /* the same; PL_ERR_CHECKPOINT names the other run */
/* Newest whole checkpoint of dir (or dir itself if it is one, or that of which it is the file `latest`) whose manifest holds: what `latest` names, or one
 * written after it; damaged ones are
 * named on stderr and passed over. *path NULL when there is none. Owner: the caller. */
pl_status pl_checkpoint_find(const char *dir, char **path);
/* What to read weights from: the file (.h5) or directory that is given, or if NULL the job's checkpoint.dir. PL_ERR_USAGE,
 * PL_ERR_CHECKPOINT: there is none. Owner of *path: the caller. */
pl_status pl_checkpoint_find_weights(const struct pl_job *job, const char *given, char **path);
int pl_checkpoint_count(const char *dir); /* of those in dir, damaged ones too */
/* Loads into host slabs. Refuses another model or another kind of optimizer (PL_ERR_CHECKPOINT). optimizer NULL: weights only.
 * params NULL: neither weights nor the optimizer's state, which others load. */
pl_status pl_checkpoint_load(const char *path, const struct pl_graph *g, struct pl_optimizer *o,
                             float *params, struct pl_run_state *state);
/* Weights by name from /params of any such file or checkpoint directory (train.init, eval). */
pl_status pl_checkpoint_load_weights(const char *path, const struct pl_graph *g, float *params);
/* A text kept with the run: job, optimizer, train_file, version. Owner: the caller. */
pl_status pl_checkpoint_text(const char *path, const char *what, char **text);

/* Background writer: takes a snapshot (copies), writes in its own thread, one at a time. what: without params, slot and state. */
struct pl_checkpoint_writer;
pl_status pl_checkpoint_writer_create(const char *dir, const struct pl_checkpoint_source *what, struct pl_checkpoint_writer **out);
/* Copies and returns; only when nothing is under way. Without checkpoint.background: waits, too. */
pl_status pl_checkpoint_writer_save(struct pl_checkpoint_writer *w, const float *params,
                                    const struct pl_run_state *state);
bool pl_checkpoint_writer_busy(const struct pl_checkpoint_writer *w);
/* Waits until all is on disk; the outcome of the write that was under way, once. */
pl_status pl_checkpoint_writer_finish(struct pl_checkpoint_writer *w);
void pl_checkpoint_writer_destroy(struct pl_checkpoint_writer *w);
#endif
