/* train: the training run. A trainer holds everything a rank needs for a step; loop.c runs steps,
 * evaluations and checkpoints in their time. Main thread, but for pl_train_ahead. Collective are open, resume, settle, step,
 * evaluate and close; what else there is is local. */
#ifndef PL_TRAIN_H
#define PL_TRAIN_H

#include "checkpoint/checkpoint.h"
#include "data/data.h"
#include "optim/optim.h"
#include "report/report.h"
#include "split/split.h"
#include "sync/sync.h"
#include "world/world.h"

/* Where a step's micro-batches come from: the loader, or made-up data in a benchmark. */
struct pl_source {
    /* Goes to sample `position` of `epoch` and reads on from there as `rank` of `ranks`. */
    pl_status (*deal)(void *arg, int64_t global_batch, int rank, int ranks, int64_t epoch, int64_t position);
    pl_status (*next)(void *arg, struct pl_batch **out);
    pl_status (*next_ready)(void *arg, struct pl_batch **out); /* NULL where it is not there yet. NULL: this source cannot tell. */
    void (*release)(void *arg, struct pl_batch *b);
    /* From feed until the next deal, next gives what was asked for. ask: any thread. NULL: this source cannot. */
    pl_status (*feed)(void *arg);
    pl_status (*ask)(void *arg, int64_t epoch, int64_t first, int64_t rows);
    void *arg;
    int64_t epoch_samples; /* INT64_MAX: it never ends */
    const struct pl_batch *batch; /* [batches]: those that next gives, in turn; none: unknown */
    int batches;
};

struct pl_trainer {
    struct pl_world *world;
    struct pl_world *peers;              /* who has the same layers: all, or of a split model this stage, or part, of all replicas */
    struct pl_grid grid;                 /* of a split model */
    struct pl_pipeline *pipeline;        /* NULL: it has no stages */
    struct pl_tensor_group *tensor;      /* NULL: each rank has its layers whole */
    struct pl_shards *shards;            /* train.reproducible, or NULL */
    const struct pl_job *job;
    const struct pl_backend_table *table;
    struct pl_backend *backend;
    struct pl_graph *graph;              /* owns parameters and gradients */
    struct pl_optimizer *optimizer;      /* NULL when only evaluating */
    struct pl_exchange *exchange;
    struct pl_exchange *statistics;      /* of batch normalisation, with train.sync_bn on several ranks; or NULL */
    bool together;                       /* the ranks of a node have parameters and optimizer state together (split.optimizer) */
    double statistics_ms;                /* spent on them in this micro-batch */
    const struct pl_sync_table *sync_table;
    struct pl_sync *sync;
    struct pl_source source;
    struct pl_batch *early;              /* taken from the source for the next pass, NULL: none */
    int threads;
    bool pooled;                         /* they have been started */
    int64_t micro_global;                /* samples of a micro-batch over all ranks */
    int64_t batch;                       /* rows of this rank's micro-batch at most; of a split model its replica's */
    int64_t rows;                        /* that go through the layers at once */
    int64_t steps_per_epoch, total_steps;
    int64_t ahead;                       /* steps done more than epochs of steps_per_epoch have by now: since a change of global batch */
    bool stop_asked;                     /* by a signal seen on this rank */
    bool save_asked;                     /* by this rank's clock */
    bool fed, apart;                     /* train/apart.c: the source is fed; this rank is on its way */
    int64_t epoch_before;                /* train/whole.c: before the last step */
    const char *train_file;              /* the set's name; borrowed from it */
    struct pl_run_state state;           /* as of the last step that was committed: step to be done next, data to be read next */
};

struct pl_step_result {
    int64_t step, epoch, end;          /* end: the position in the epoch after it */
    int64_t agreed;                    /* steps that rows to total_loss are over: 1, or the local ones that ended with an
                                        * averaging; 0: a local step, after which the ranks differ and rows is 0 */
    double rows, loss, accuracy, top5; /* means over the samples that took part, of the main loss */
    double total_loss;                 /* what is trained on: every loss times its weight */
    double lr, grad_norm;              /* norm NAN unless clipping */
    int64_t passes;                    /* over the whole set so far, where a step is of such */
    const char *converged;             /* why there was no step, and is none any more; NULL: there may be */
    double step_ms, data_ms, compute_ms, update_ms; /* of this step on this rank */
    double waited_ms;                  /* for other stages or parts, or for statistics of other ranks' samples; counted in exchange.exposed_ms */
    struct pl_exchange_times exchange;
    const char *late;
    bool stop, save;
    bool apart;   /* the ranks are each on their way, and nothing here is for all: neither parameters nor the step */
    bool went_on; /* without this rank, which has a peer's parameters and position now */
    bool ended;   /* the run has, and this rank was not there */
    bool tells;   /* ended: this rank says how, whoever writes */
    bool writes;  /* this rank reports and writes checkpoints: known where ranks may be lost */
    const char *lost, *back; /* ranks, or NULL */
};

/* Opens device, network, exchange and, with `train`, optimizer and sync; parameters are 0 until they are
 * loaded or drawn. Ranks agree inside; on failure everything is closed and the agreed status returned.
 * t keeps pointers to w and job. */
pl_status pl_trainer_open(struct pl_trainer *t, struct pl_world *w, const struct pl_job *job, bool train);
void pl_trainer_close(struct pl_trainer *t);
/* A network for evaluation, with the trainer's parameters. */
pl_status pl_trainer_eval_graph(struct pl_trainer *t, struct pl_graph **out);
bool pl_trainer_split(const struct pl_trainer *t); /* each rank has a piece of the layers, t->grid.piece of them */
/* Sums, or the largest, of n values over the ranks of this replica. Nothing to do where it is one rank. */
pl_status pl_trainer_row_sum(struct pl_trainer *t, double *v, int n);
/* Sums, or the largest, of n values over all ranks. Collective, not with a sync that has a mesh. */
pl_status pl_trainer_sum(struct pl_trainer *t, double *v, int n);
pl_status pl_trainer_max(struct pl_trainer *t, double *v, int n);
/* How gradients travel, and why so. */
struct pl_path pl_trainer_path(const struct pl_trainer *t);
/* Around every change of parameters, optimizer and t->state after set-up: a rank that comes back may be given them. */
void pl_trainer_hold(struct pl_trainer *t, bool held);

/* split.optimizer: this rank's memory has what the run starts from written to it by this rank; false: by another of its node. */
bool pl_trainer_fills(const struct pl_trainer *t);

/* What may differ by rank at a point where parameters do not: [PL_PARTS_MAX]; how many. The first PL_RANKS_PARTS are in memory of
 * this rank alone. */
enum { PL_RANKS_PARTS = 1 };
int pl_trainer_parts(struct pl_trainer *t, struct pl_part *part);
bool pl_trainer_differs(struct pl_trainer *t); /* anything of it does: a checkpoint has parts */

/* train/same_job.c: whether all ranks were given the same job and run the same version. Collective; PL_ERR_USAGE on all. */
pl_status pl_train_same_job(struct pl_world *w, const struct pl_job *job);

/* train/deal.c */
/* Samples of a micro-batch over so many members, as the job says. */
int64_t pl_train_micro_global(const struct pl_job *job, int members);
/* From the position of t->state on this rank reads as member `index` of `members`, whatever came before: sets the
 * global batch, t->batch rows a member at most, the lengths of epoch and run, and restarts the source there. Every sample
 * still comes once an epoch, in the same order. A step that was not committed is read again. Local; the same state and `members` on all members. */
pl_status pl_trainer_deal(struct pl_trainer *t, int index, int members);

/* train/source.c */
/* Reads from s, whose memory a far backend pins; detach, before the source is closed. */
void pl_trainer_attach(struct pl_trainer *t, const struct pl_source *s);
void pl_trainer_detach(struct pl_trainer *t);
pl_status pl_train_take_batch(struct pl_trainer *t, struct pl_batch **out); /* the next; the source's release gives it back */
/* Takes the one after it, into t->early, if the backend is far and it need not be waited for. */
pl_status pl_train_look_ahead(struct pl_trainer *t);
/* It goes back unread: before the source is restarted or fed. */
pl_status pl_train_give_early_back(struct pl_trainer *t);

/* Loads what checkpoint.resume says, or train.init's weights, or draws initial values; deals out the data from there on.
 * path: the checkpoint's, "" for none. Before it: t->source and t->train_file. Ranks agree inside. */
pl_status pl_trainer_resume(struct pl_trainer *t, char *path, size_t bytes);

/* train/settle.c: after parameters and optimizer were set in host memory; and before they are read there. */
pl_status pl_trainer_settle(struct pl_trainer *t);
pl_status pl_trainer_bring(struct pl_trainer *t);

/* One step of the design's section 2. PL_ERR_NOT_FINITE is returned on all ranks together; any other
 * error is this rank's alone and ends the job by pl_world_abort. */
pl_status pl_trainer_step(struct pl_trainer *t, struct pl_step_result *out);

/* train/step.c, of a step: */
/* One micro-batch; the last one hands its slices over as they end. abandoned: it is only read, as the others went on; so it is
 * after PL_END. */
pl_status pl_train_micro_batch(struct pl_trainer *t, int64_t micro, bool abandoned, struct pl_loss_sums *sums, struct pl_step_result *out,
                               bool *last);
double pl_train_lr(const struct pl_trainer *t, int64_t step); /* the learning rate of a step, by the schedule */
/* Where they agree, so that all ranks end together. */
pl_status pl_train_check_finite(const struct pl_agreement *a, int64_t step);
/* Whose part it is to say and write what. */
void pl_train_take_parts(const struct pl_agreement *a, struct pl_step_result *out);
/* What the ranks agree on; after a local step nothing. */
void pl_train_take_note(const struct pl_agreement *a, struct pl_step_result *out);

/* train/apart.c: where each rank goes its own way between evaluations and checkpoints (sync.kind downpour). */
bool pl_train_apart(const struct pl_trainer *t); /* from t->state.step on */
/* A micro-batch of this rank's own, or where there is none left the meeting. */
pl_status pl_train_step_apart(struct pl_trainer *t, struct pl_step_result *out);
pl_status pl_train_ahead(void *arg, const struct pl_ticket *ticket); /* pl_replica's */
/* train/shards.c: where bits are the same on any number of ranks. */
struct pl_shards;
pl_status pl_shards_create(const struct pl_trainer *t, struct pl_shards **out); /* PL_ERR_USAGE: not on so many ranks */
pl_status pl_shards_take_gradient(struct pl_shards *s, float *whole, int64_t elems); /* where the sum over a rank's parts is wanted */
void pl_shards_destroy(struct pl_shards *s);
/* Forward and backward of a rank's share of the global batch; sums: over its parts. */
pl_status pl_shards_pass(struct pl_shards *s, struct pl_graph *g, const struct pl_graph_batch *b, struct pl_loss_sums *sums, pl_slice_fn *slice, void *arg);
/* Forward of several such shares, one after the other; then what they add up to. */
pl_status pl_shards_evaluate(struct pl_shards *s, struct pl_graph *g, const struct pl_graph_batch *b);
void pl_shards_sum(struct pl_shards *s, struct pl_loss_sums *out);

/* train/whole.c: where a step is an iteration over the whole set (sync.kind sandblaster). */
pl_status pl_train_step_whole(struct pl_trainer *t, struct pl_step_result *out);

/* Steps of a period, 0: it is not counted in steps. */
int64_t pl_train_steps_of(const struct pl_trainer *t, struct pl_period every);

struct pl_evaluation { double loss, accuracy, top5; int64_t samples; };
/* Every sample of the set once, over all ranks. graph: made with train false. PL_END: the run went on meanwhile. */
pl_status pl_trainer_evaluate(struct pl_trainer *t, struct pl_graph *graph, struct pl_loader *loader,
                              struct pl_evaluation *out);
pl_status pl_trainer_eval_loader(struct pl_trainer *t, struct pl_dataset *d, struct pl_loader **out);
/* What the network gives for every sample of the set, in its order: y is [rows, ...], borrowed, of samples [first, first + rows).
 * All ranks compute, take is called on the one that takes_output says. Collective; ranks agree inside on every error but PL_ERR_PEER, which is
 * this rank's alone. */
bool pl_trainer_takes_output(const struct pl_trainer *t);
typedef pl_status pl_output_fn(void *arg, int64_t first, int64_t rows, const float *y);
pl_status pl_trainer_predict(struct pl_trainer *t, struct pl_loader *loader, pl_output_fn *take, void *arg);

/* train/trial.c: debug.compute_ms and debug.delay. Main thread, not collective. */
pl_status pl_trial_check(const struct pl_job *job, int ranks); /* PL_ERR_USAGE: a delayed rank that there is not */
char *pl_trial_describe(const struct pl_job *job);             /* a sentence, NULL where nothing is on. Owner: the caller */
/* How long this rank is held up in a step, by seed, rank and step alone; 0 where it is not. */
double pl_trial_delay_ms(const struct pl_job *job, int rank, int64_t step);
/* True: the work is of no use any more. Asked at least once a millisecond, by the sleeping thread. */
typedef bool pl_abandon_fn(void *arg);
/* Sleeps until ms from now. PL_END as soon as abandon (may be NULL) says so. */
pl_status pl_trial_sleep(double ms, pl_abandon_fn *abandon, void *arg);
/* In place of pl_graph_forward and pl_graph_backward: a loss of 1 a sample, and the slices (slice may be NULL) of a
 * gradient that nobody writes to and that is therefore 0. */
pl_status pl_trial_forward(const struct pl_graph_batch *b, struct pl_loss_sums *sums);
pl_status pl_trial_backward(struct pl_graph *g, pl_slice_fn *slice, void *arg);

/* train/signals.c */
/* "USR1", "TERM", ...; a second INT ends the program. PL_ERR_USAGE */
pl_status pl_signals_catch(const struct pl_texts *names);
bool pl_signals_seen(void);
/* They do what they did before; one that was seen and came too late to stop the run is raised again. */
void pl_signals_release(bool stopped);

/* What a run tells the program that it is a part of. Functions may be NULL; they are called between steps, where the run reports. */
struct pl_train_watch {
    void (*step)(void *arg, const struct pl_report_step *line, int64_t steps); /* by report.every; steps: of the whole run */
    void (*evaluated)(void *arg, int64_t step, const struct pl_evaluation *e);
    void *arg;
    struct pl_run_state end; /* out, on every rank */
};

/* The whole run of `paceline train`. PL_STOPPED after a signal. watch: or NULL. */
pl_status pl_train(struct pl_world *w, const struct pl_job *job, struct pl_train_watch *watch);

#endif
