/* The run: steps until the end, evaluations and checkpoints when due, an orderly stop on a signal.
 * Set-up agrees on failure; from the first step on, an error of one rank alone ends the job. */
#include "train/train.h"

#include <math.h>
#include <string.h>

struct run {
    struct pl_trainer t;
    struct pl_dataset *train_data, *test_data;
    struct pl_loader *loader, *test_loader;
    struct pl_graph *eval_graph;
    struct pl_report *report;
    struct pl_checkpoint_writer *writer; /* rank 0 with a checkpoint.dir */
    struct pl_timeline *timeline;        /* report.timeline, or NULL */
    struct pl_train_watch *watch;        /* or NULL */
    bool root;
    double started_ms, saved_ms, shown_ms;
    int64_t first_step, samples;
    struct pl_step_result last;
    struct pl_report_step line; /* of what the ranks agreed on last; times are added up until they do again */
    int64_t saved_step;  /* of the newest checkpoint, written or under way; -1: none */
    bool pending, lost;  /* it is under way; it could not be written */
    double held_ms;      /* how long it held the loop */
    char owner[PL_OWNER_BYTES]; /* this run, in checkpoint.dir; empty: it has taken none */
};

static pl_status loader_deal(void *arg, int64_t global_batch, int rank, int ranks, int64_t epoch, int64_t position)
{
    PL_TRY(pl_loader_deal(arg, global_batch, rank, ranks));
    return pl_loader_start(arg, epoch, position, false);
}

static pl_status loader_next(void *arg, struct pl_batch **out) { return pl_loader_next(arg, out); }
static pl_status loader_next_ready(void *arg, struct pl_batch **out) { return pl_loader_next_ready(arg, out); }
static void loader_release(void *arg, struct pl_batch *b) { pl_loader_release(arg, b); }
static pl_status loader_feed(void *arg) { return pl_loader_feed(arg); }
static pl_status loader_ask(void *arg, int64_t epoch, int64_t first, int64_t rows) { return pl_loader_ask(arg, epoch, first, rows); }

/* ---- set-up ------------------------------------------------------------------------------------- */

static pl_status stage_data(struct run *r)
{
    const struct pl_job *job = r->t.job;
    const struct pl_job_set *set[] = {&job->train_set, &job->test_set};
    return pl_stage(r->t.world, job->data.stage, set, 2);
}

static pl_status open_data(struct run *r)
{
    const struct pl_job *job = r->t.job;
    if (!pl_job_set_given(&job->train_set))
        return pl_error(PL_ERR_USAGE, "job", "data.train.file, or files, is missing");
    if (job->train.stop_on && !pl_job_set_given(&job->test_set))
        return pl_error(PL_ERR_USAGE, "job", "train.stop needs data.test to be evaluated");
    PL_TRY(pl_dataset_open(&job->train_set, &job->input, true, &r->train_data));
    if (pl_job_set_given(&job->test_set))
        PL_TRY(pl_dataset_open(&job->test_set, &job->input, true, &r->test_data));
    int64_t samples = pl_dataset_samples(r->train_data);
    if (samples < r->t.peers->ranks)
        return pl_error(PL_ERR_DATA, "data", "%s: %lld samples for %d ranks\nstart fewer ranks",
                        pl_dataset_name(r->train_data), (long long)samples, r->t.peers->ranks);
    return PL_OK;
}

/* A pattern may match other files on another node. */
static pl_status compare_data(struct run *r, struct pl_dataset *d)
{
    if (!d)
        return PL_OK;
    uint64_t mine = pl_dataset_identity(d), first = mine;
    PL_TRY(pl_world_broadcast(r->t.world, &first, sizeof first, 0));
    if (first != mine)
        return pl_error(PL_ERR_DATA, "data", "%s: this rank %s than rank 0", pl_dataset_name(d),
                        pl_dataset_in_memory(d) ? "was given other samples" : "finds other files, or files of other lengths,");
    return PL_OK;
}

static pl_status open_loaders(struct run *r)
{
    struct pl_trainer *t = &r->t;
    struct pl_loader_options o = {.global_batch = t->micro_global, .rank = t->peers->rank,
                                  .ranks = t->peers->ranks, .seed = (uint64_t)t->job->train.seed,
                                  .shuffle = t->job->train_set.shuffle && !t->sync_table->whole, .augment = true,
                                  .classes = pl_graph_classes(t->graph), .entries = pl_graph_entries(t->graph), .labels_only = t->grid.stage > 0, .pixels = t->table->pixels != NULL, .depth = 4,
                                  .threads = (int)t->job->data.threads};
    PL_TRY(pl_loader_create(r->train_data, &o, &r->loader));
    struct pl_source source = {.deal = loader_deal, .next = loader_next, .next_ready = loader_next_ready, .release = loader_release, .feed = loader_feed,
                               .ask = loader_ask, .arg = r->loader, .epoch_samples = pl_dataset_samples(r->train_data)};
    source.batches = pl_loader_batches(r->loader, &source.batch);
    pl_trainer_attach(t, &source);
    t->train_file = pl_dataset_name(r->train_data);
    if (!r->test_data)
        return PL_OK;
    PL_TRY(pl_trainer_eval_graph(t, &r->eval_graph));
    return pl_trainer_eval_loader(t, r->test_data, &r->test_loader);
}

static double epochs_of(const struct pl_trainer *t)
{
    return t->sync_table->whole ? t->job->train.epochs : t->steps_per_epoch > 0 ? (double)(t->total_steps - t->ahead) / (double)t->steps_per_epoch : 0;
}

static pl_status open_outputs(struct run *r)
{
    struct pl_trainer *t = &r->t;
    PL_TRY(pl_report_open(t->job->report.dir, r->root, t->total_steps, epochs_of(t), &r->report));
    if (!t->job->checkpoint.dir)
        return PL_OK;
    if (!r->root)
        return PL_OK;
    struct pl_checkpoint_source what = {.graph = t->graph, .optimizer = t->optimizer, .job = t->job, .train_file = t->train_file, .owner = r->owner, .split = pl_trainer_split(t),
                                        .parts = pl_trainer_split(t) ? t->grid.pieces : pl_trainer_differs(t) ? t->world->ranks : 0};
    return pl_checkpoint_writer_create(t->job->checkpoint.dir, &what, &r->writer);
}

static bool over(const struct pl_trainer *t) { return t->state.done || t->state.step >= t->total_steps; }

/* Once nothing can refuse the run any more, if it will write there; each rank may come to. */
static pl_status take_directory(struct run *r)
{
    const char *dir = r->t.job->checkpoint.dir;
    struct pl_world *w = r->t.world;
    if (!dir || over(&r->t))
        return PL_OK;
    PL_TRY(pl_world_agree(w, r->root ? pl_checkpoint_own(dir, r->owner) : PL_OK));
    return pl_world_agree(w, pl_world_broadcast(w, r->owner, sizeof r->owner, 0));
}

static pl_status open_timeline(struct run *r)
{
    const struct pl_job *job = r->t.job;
    struct pl_world *w = r->t.world;
    if (!job->report.timeline || over(&r->t))
        return PL_OK;
    PL_TRY(pl_world_agree(w, pl_timeline_open(job->report.dir, r->t.state.step, w->rank, w->ranks, &r->timeline)));
    pl_timeline_zero(r->timeline);
    return PL_OK;
}

static pl_status set_up(struct run *r, struct pl_world *w, const struct pl_job *job, char *path, size_t bytes)
{
    r->root = w->rank == 0;
    r->saved_step = -1;
    PL_TRY(pl_trainer_open(&r->t, w, job, true));
    PL_TRY(stage_data(r));
    PL_TRY(pl_world_agree(w, open_data(r)));
    PL_TRY(pl_world_agree(w, compare_data(r, r->train_data)));
    PL_TRY(pl_world_agree(w, compare_data(r, r->test_data)));
    PL_TRY(pl_world_agree(w, open_loaders(r)));
    PL_TRY(pl_trainer_resume(&r->t, path, bytes));
    PL_TRY(pl_world_agree(w, r->root && job->checkpoint.dir ? pl_checkpoint_probe(job->checkpoint.dir) : PL_OK));
    PL_TRY(pl_world_agree(w, open_outputs(r)));
    PL_TRY(take_directory(r));
    return open_timeline(r);
}

static void tear_down(struct run *r)
{
    pl_checkpoint_writer_destroy(r->writer);
    pl_report_close(r->report);
    pl_trainer_detach(&r->t);
    pl_loader_destroy(r->loader);
    pl_loader_destroy(r->test_loader);
    pl_dataset_close(r->train_data);
    pl_dataset_close(r->test_data);
    pl_graph_destroy(r->eval_graph);
    if (r->t.world)
        pl_trainer_close(&r->t);
}

/* Between two averagings; 0: the ranks agree in every step. */
static int64_t local_steps(const struct pl_job *job) { return job->sync.kind == PL_SYNC_LOCAL_SGD ? job->sync.tau : 0; }

/* How the ranks agree. */
static void announce_sync(const struct run *r, const struct pl_path *p)
{
    const struct pl_job *j = r->t.job;
    if (local_steps(j) > 0)
        pl_report_say(r->report, "local SGD: %s averaged every %lld steps (sync.tau) by %s; %s",
                      j->sync.average_momentum ? "parameters and the optimizer's state are" : "parameters are", (long long)j->sync.tau, p->algorithm, p->why);
    else if (r->t.sync_table->apart)
        pl_report_say(r->report, "downpour: each rank keeps a shard of the parameters, fetches all every %lld of its micro-batches and pushes gradients every %lld, over %s; %s",
                      (long long)j->sync.n_fetch, (long long)j->sync.n_push, p->transport, p->why);
    else if (r->t.sync_table->whole)
        pl_report_say(r->report, "sandblaster: L-BFGS with a line search in place of optimizer.lr; each rank keeps a shard, and portions of %lld samples go to who is free, over %s; %s",
                      (long long)r->t.batch, p->transport, p->why);
    else
        pl_report_say(r->report, "gradients are added up by %s; %s", p->algorithm, p->why);
}

/* Who has which layers, and how much of the work. */
static void announce_stages(const struct run *r)
{
    const struct pl_trainer *t = &r->t;
    const struct pl_graph_stage *stage;
    int stages = pl_graph_stages(t->graph, &stage);
    double flops = 0;
    struct pl_text text = {0};
    for (int s = 0; s < stages; s++)
        flops += stage[s].flops;
    for (int s = 0; s < stages; s++)
        pl_text_add(&text, "%s%s to %s (%.0f %% of the work, %lld parameters)", s ? ", " : "", stage[s].first, stage[s].last, 100 * stage[s].flops / flops, (long long)stage[s].weights);
    pl_report_say(r->report, "%d replica%s of %d ranks, a batch of %lld in parts of %lld; %s", t->grid.replicas, t->grid.replicas == 1 ? "" : "s", stages,
                  (long long)t->batch, (long long)t->rows, pl_pipeline_why(t->pipeline));
    pl_report_say(r->report, "their layers: %s", text.s ? text.s : "");
    pl_text_free(&text);
}

static int64_t weights_of(const struct pl_trainer *t)
{
    const struct pl_graph_stage *stage;
    int64_t sum = 0;
    for (int s = pl_graph_stages(t->graph, &stage) - 1; s >= 0; s--)
        sum += stage[s].weights;
    return sum;
}

/* Which layers are shared out, and how much of the parameters a rank has. */
static void announce_parts(const struct run *r)
{
    const struct pl_trainer *t = &r->t;
    const struct pl_layer *layer;
    struct pl_text text = {0};
    for (int i = 0, n = pl_graph_layers(t->graph, &layer); i < n; i++)
        if (layer[i].params > 0 && layer[i].param[0].whole > 0)
            pl_text_add(&text, "%s%s", text.s ? ", " : "", layer[i].name);
    pl_report_say(r->report, "%d replica%s of %d ranks, each with a part of every layer: %lld of %lld parameters; %s", t->grid.replicas, t->grid.replicas == 1 ? "" : "s",
                  t->grid.parts, (long long)pl_graph_weights(t->graph), (long long)weights_of(t), pl_tensor_group_why(t->tensor));
    pl_report_say(r->report, "split layers: %s", text.s ? text.s : "");
    pl_text_free(&text);
}

static void announce_together(const struct run *r)
{
    const struct pl_trainer *t = &r->t;
    int slabs = 1 + pl_optimizer_slots(t->optimizer);
    pl_report_say(r->report, "parameters and optimizer state, %.1f MB, are on a node once; each of its ranks updates its share of them",
                  (double)slabs * (double)pl_graph_elems(t->graph) * sizeof(float) / 1e6);
}

static void announce(struct run *r, const char *from)
{
    struct pl_trainer *t = &r->t;
    struct pl_path path = pl_trainer_path(t);
    char device[256];
    char *trial = pl_trial_describe(t->job);
    t->table->describe(t->backend, device, sizeof device);
    struct pl_report_start s = {.precision = pl_job_precision_name(t->job), .ranks = t->world->ranks, .threads = t->threads, .device = device,
                                .backend = t->table->name, .transport = path.transport,
                                .algorithm = path.algorithm, .why = path.why,
                                .sync = pl_job_sync_name(t->job), .tau = local_steps(t->job), .average_momentum = t->job->sync.average_momentum,
                                .model = t->job->model_name, .trial = trial,
                                .stages = t->pipeline ? t->grid.stages : 0, .microbatch = t->rows, .parts = t->grid.parts,
                                .within = t->pipeline ? pl_pipeline_why(t->pipeline) : t->tensor ? pl_tensor_group_why(t->tensor) : NULL,
                                .together = t->together, .sync_bn = t->statistics != NULL,
                                .parameters = weights_of(t), .batch = t->batch,
                                .global_batch = t->state.global_batch,
                                .train_samples = pl_dataset_samples(r->train_data),
                                .test_samples = r->test_data ? pl_dataset_samples(r->test_data) : 0};
    pl_report_start(r->report, &s);
    pl_free(trial);
    if (t->together)
        announce_together(r);
    if (t->pipeline)
        announce_stages(r);
    if (t->tensor)
        announce_parts(r);
    if (t->peers->ranks > 1 || t->sync_table->whole)
        announce_sync(r, &path);
    if (t->statistics)
        pl_report_say(r->report, "batch normalisation takes the statistics of all ranks' samples, %lld numbers a layer at most", (long long)pl_graph_sync_values(t->graph));
    if (!t->job->checkpoint.dir)
        pl_report_say(r->report, "no checkpoint.dir: the trained network is not kept");
    if (from[0]) {
        pl_report_resume(r->report, t->state.step, from);
        r->saved_step = t->state.step;
    }
}

/* ---- the loop ----------------------------------------------------------------------------------- */

static bool due_since(const struct pl_trainer *t, struct pl_period every, int64_t since)
{
    if (t->sync_table->whole && every.unit == PL_EPOCHS) /* these are not counted in steps */
        return every.n > 0 && floor((double)t->state.epoch / every.n) > floor((double)t->epoch_before / every.n);
    int64_t n = pl_train_steps_of(t, every), ahead = every.unit == PL_EPOCHS ? t->ahead : 0;
    return n > 0 && (t->state.step - ahead) / n > (since - ahead) / n;
}

/* Whether a multiple of it was passed since the ranks last agreed: that is in this step, or with local SGD in one
 * since the averaging before. */
static bool due(const struct pl_trainer *t, struct pl_period every)
{
    int64_t tau = local_steps(t->job);
    return due_since(t, every, tau > 0 ? (t->state.step - 1) / tau * tau : t->state.step - 1);
}

static double metric_of(const struct pl_job *job, const struct pl_evaluation *e)
{
    const double by_metric[] = {e->accuracy, e->top5, e->loss};
    return by_metric[job->train.stop_metric];
}

static bool better(const struct pl_job *job, double value, double best)
{
    bool loss = job->train.stop_metric == 2;
    return isnan(best) || (loss ? value < best : value > best);
}

/* checkpoint.dir is this run's, or it has taken none. */
static bool owned(const struct run *r) { return pl_checkpoint_owned(r->t.job->checkpoint.dir, r->owner); }

/* checkpoint.on_error: stop ends the run, continue says so and trains on, but not where another run has begun: whatever failed
 * here, that is why. */
static pl_status survive(struct run *r, pl_status s)
{
    if (s >= 0 || s == PL_ERR_ECHO)
        return s;
    if (!owned(r)) {
        pl_error_clear();
        return !r->root ? PL_ERR_ECHO : pl_checkpoint_still_owned(r->t.job->checkpoint.dir, r->owner);
    }
    if (r->t.job->checkpoint.on_error == 0)
        return s;
    pl_report_say(r->report, "%s; training goes on without this checkpoint", pl_error_text());
    pl_error_clear();
    r->lost = true;
    return PL_OK;
}

/* Takes note of the checkpoint that was under way. */
static pl_status settle(struct run *r)
{
    if (!r->pending)
        return PL_OK;
    r->pending = false;
    PL_TRY(survive(r, pl_checkpoint_writer_finish(r->writer)));
    if (!r->lost)
        pl_report_checkpoint(r->report, r->saved_step, r->t.job->checkpoint.dir, r->held_ms);
    return PL_OK;
}

/* One replica's pieces are all there is to write. */
static pl_status save_piece(const struct pl_trainer *t, const char *dir)
{
    const float *slot[PL_PARTS_MAX];
    const struct pl_checkpoint_source src = {.graph = t->graph, .optimizer = t->optimizer, .params = pl_graph_params(t->graph), .slot = slot, .state = &t->state};
    for (int i = pl_optimizer_slots(t->optimizer) - 1; i >= 0; i--)
        slot[i] = pl_optimizer_slot(t->optimizer, i);
    return t->grid.replica == 0 ? pl_checkpoint_save_stage(dir, t->grid.piece, &src) : PL_OK;
}

/* What is not the same on all ranks, on every rank. All learn of one that could not write it, whose own message says why. */
static pl_status save_part(struct run *r)
{
    struct pl_trainer *t = &r->t;
    const char *dir = t->job->checkpoint.dir;
    struct pl_part part[PL_PARTS_MAX];
    bool stop = t->job->checkpoint.on_error == 0;
    bool split = pl_trainer_split(t);
    int number = split ? t->grid.piece : t->world->rank;
    pl_status s = pl_checkpoint_still_owned(dir, r->owner);
    if (s == PL_OK)
        s = split ? save_piece(t, dir) : pl_checkpoint_save_part(dir, t->state.step, number, t->graph, part, pl_trainer_parts(t, part));
    double failed = s < 0 ? t->world->rank + 1 : 0;
    if (s < 0 && !stop && !r->root && owned(r))
        pl_log("%s", pl_error_text());
    PL_TRY(pl_trainer_max(t, &failed, 1));
    if (failed > 0 && owned(r) && t->grid.replica == 0)
        pl_checkpoint_discard_part(dir, t->state.step, number);
    if (failed == 0 || s < 0)
        return s;
    return stop ? PL_ERR_ECHO : pl_error(PL_ERR_CHECKPOINT, "checkpoint", "rank %.0f could not write its part", failed - 1);
}

static pl_status save_all(struct run *r)
{
    struct pl_trainer *t = &r->t;
    bool parts = t->job->checkpoint.dir && (pl_trainer_split(t) || pl_trainer_differs(t));
    double wanted = r->writer && !(r->saved_step == t->state.step && !r->lost);
    r->saved_ms = pl_now_ms();
    if (parts)
        PL_TRY(pl_trainer_sum(t, &wanted, 1)); /* rank 0 decides: it alone knows what was lost */
    if (wanted == 0)
        return PL_OK;
    PL_TRY(r->writer ? settle(r) : PL_OK);
    PL_TRY(pl_trainer_bring(t));
    r->saved_step = t->state.step;
    r->lost = false;
    PL_TRY(parts ? survive(r, save_part(r)) : PL_OK);
    if (!r->writer || r->lost)
        return PL_OK;
    PL_TRY(survive(r, pl_checkpoint_writer_save(r->writer, pl_graph_params(t->graph), &t->state)));
    r->pending = !r->lost;
    r->held_ms = pl_now_ms() - r->saved_ms;
    return PL_OK;
}

static pl_status save(struct run *r)
{
    double traced = pl_trace_begin();
    pl_status s = save_all(r);
    pl_trace_end(traced, "run", "save", r->t.state.step);
    return s;
}

static pl_status evaluate(struct run *r)
{
    struct pl_trainer *t = &r->t;
    struct pl_evaluation e;
    if (!r->test_data || t->state.last_eval_step == t->state.step)
        return PL_OK;
    double traced = pl_trace_begin();
    pl_status s = pl_trainer_evaluate(t, r->eval_graph, r->test_loader, &e);
    pl_trace_end(traced, "run", "evaluate", t->state.step);
    if (s != PL_OK)
        return s < 0 ? s : PL_OK; /* PL_END: the run went on meanwhile */
    double value = metric_of(t->job, &e);
    bool best = better(t->job, value, t->state.best);
    pl_trainer_hold(t, true);
    t->state.last_eval_step = t->state.step;
    t->state.last_loss = e.loss;
    t->state.last_accuracy = e.accuracy;
    if (t->job->train.stop_on) /* the end by count is seen from step */
        t->state.done = value > t->job->train.stop_above || value < t->job->train.stop_below;
    if (best) {
        t->state.best = value;
        t->state.best_step = t->state.step;
    }
    pl_trainer_hold(t, false);
    if (r->root && r->watch && r->watch->evaluated)
        r->watch->evaluated(r->watch->arg, t->state.step, &e);
    pl_report_eval(r->report, t->state.step, t->state.epoch - (t->state.position == 0), "test", e.loss, e.accuracy, e.top5, e.samples);
    return best && t->job->checkpoint.keep_best ? save(r) : PL_OK;
}

static void add_times(struct pl_report_step *line, const struct pl_step_result *s)
{
    line->step_ms += s->step_ms;
    line->data_ms += s->data_ms;
    line->compute_ms += s->compute_ms;
    line->update_ms += s->update_ms;
}

/* What a line says beyond times: after a local step nothing new, as no rank knows what the others have. */
static void take_line(struct run *r)
{
    const struct pl_step_result *s = &r->last;
    struct pl_report_step *line = &r->line;
    line->local_steps = local_steps(r->t.job) > 0 ? s->agreed : 0;
    line->loss = s->loss;
    line->total_loss = pl_graph_losses(r->t.graph) > 1 ? s->total_loss : NAN;
    line->accuracy = s->accuracy;
    line->lr = s->lr;
    line->samples_per_s = s->rows / line->step_ms * 1000;
    line->exchange_ms = s->exchange.exposed_ms;
    line->exchange_total_ms = s->exchange.busy_ms;
    line->grad_norm = s->grad_norm;
    line->passes = s->passes;
    line->late = s->late;
    line->sent_mb = s->exchange.sent_mb > 0 ? s->exchange.sent_mb : NAN;
    line->saved_mb = s->exchange.saved_mb > 0 ? s->exchange.saved_mb : NAN;
}

static void report_step(struct run *r)
{
    const struct pl_period *every = &r->t.job->report.every;
    double now = pl_now_ms();
    bool by_time = every->unit == PL_MS && now - r->shown_ms >= every->n, known = r->line.samples_per_s > 0;
    bool first = r->t.state.step == r->first_step + r->last.agreed;
    r->line.step = r->t.state.step;
    r->line.epoch = r->last.epoch;
    add_times(&r->line, &r->last);
    if (r->last.agreed == 0 || r->last.rows == 0) { /* nothing new */
        if (known)
            pl_report_progress(r->report, &r->line); /* loss and accuracy as of the last averaging */
        return;
    }
    take_line(r);
    bool passed = r->t.sync_table->apart ? due_since(&r->t, *every, r->t.state.step - r->last.agreed) : due(&r->t, *every);
    if (passed || by_time || r->t.state.step == r->t.total_steps || first) {
        pl_report_step(r->report, &r->line);
        if (r->root && r->watch && r->watch->step)
            r->watch->step(r->watch->arg, &r->line, r->t.total_steps);
        r->shown_ms = now;
    } else {
        pl_report_progress(r->report, &r->line);
    }
    r->line.step_ms = r->line.data_ms = r->line.compute_ms = r->line.update_ms = 0;
}

/* Rank 0's, and a step later all ranks know. */
static bool due_by_clock(const struct run *r)
{
    const struct pl_period *every = &r->t.job->checkpoint.every;
    return every->unit == PL_MS && every->n > 0 && pl_now_ms() - r->saved_ms >= every->n;
}

static bool checkpoint_due(const struct run *r)
{
    const struct pl_period *every = &r->t.job->checkpoint.every;
    return every->unit == PL_MS ? r->last.save : due(&r->t, *every);
}

/* Reporting and checkpoints pass to another rank when the one that had them is lost, or stopped for a while. */
static pl_status take_over(struct run *r, bool writes)
{
    if (writes == r->root)
        return PL_OK;
    r->root = writes;
    if (r->writer)
        settle(r); /* what it had begun is whole or not there */
    pl_checkpoint_writer_destroy(r->writer);
    pl_report_close(r->report);
    r->writer = NULL;
    r->report = NULL;
    r->saved_step = -1;
    r->saved_ms = pl_now_ms();
    PL_TRY(open_outputs(r));
    pl_report_goes_on(r->report, r->t.state.step);
    return PL_OK;
}

/* Where ranks may be late or lost: what has become of them. */
static pl_status look_round(struct run *r)
{
    struct pl_trainer *t = &r->t;
    if (!t->sync_table->meshed)
        return PL_OK;
    if (r->last.went_on && r->last.step_ms > t->job->sync.suspect_ms)
        pl_log("the run went on without this rank: it goes on with a peer's parameters, from step %lld", (long long)t->state.step);
    PL_TRY(take_over(r, r->last.writes));
    if (r->last.lost || r->last.back) {
        pl_report_members(r->report, t->state.step, r->last.lost, r->last.back, t->state.ranks);
        pl_report_length(r->report, t->total_steps, epochs_of(t)); /* other ranks, other steps in an epoch */
    }
    return PL_OK;
}

/* The run cannot go on, or has gone on to its end: who writes keeps what there is. */
static pl_status ended(struct run *r, pl_status s)
{
    bool *reported = &r->t.world->reported;
    *reported = *reported || (s < 0 && !pl_error_text()); /* by the rank that knows why */
    if (!r->last.writes) {
        r->root = false; /* cut off: the others say how the run ended */
        return s < 0 ? s : PL_END;
    }
    pl_status kept = take_over(r, true);
    if (kept == PL_OK)
        kept = save(r);
    if (kept == PL_OK)
        kept = settle(r);
    *reported = *reported && kept == PL_OK;
    return kept < 0 ? kept : s < 0 ? s : PL_STOPPED;
}

/* Enough of them make a picture. */
static void trace_steps(struct run *r)
{
    pl_timeline_write(r->timeline);
    if (r->timeline && r->t.state.step >= r->first_step + r->t.job->report.timeline_steps)
        pl_timeline_end(r->timeline);
}

/* Steps until the end, the goal or a signal. PL_STOPPED for a signal. PL_END: without this rank. */
static pl_status run_steps(struct run *r)
{
    struct pl_trainer *t = &r->t;
    if (t->state.step > 0 && due(t, t->job->train.eval_every))
        PL_TRY(evaluate(r)); /* a signal stopped the run before it was made */
    while (r->last.apart || (t->state.step < t->total_steps && !t->state.done)) {
        if (pl_fault("step", t->state.step))
            return pl_error(PL_ERR_MEMORY, "train", "debug.fault at step");
        t->stop_asked = pl_signals_seen();
        t->save_asked = r->root && due_by_clock(r);
        double traced = pl_trace_begin();
        pl_status s = pl_trainer_step(t, &r->last);
        pl_trace_end(traced, "run", "step", r->last.step);
        trace_steps(r);
        if (r->last.ended)
            return ended(r, s);
        PL_TRY(s);
        PL_TRY(look_round(r));
        r->samples += (int64_t)r->last.rows;
        report_step(r);
        if (r->last.converged)
            pl_report_say(r->report, "converged at step %lld: %s", (long long)t->state.step, r->last.converged);
        if (r->last.agreed == 0 || r->last.apart)
            continue; /* what follows is for parameters that all ranks have */
        if (r->last.stop && t->state.step < t->total_steps)
            return PL_STOPPED;
        if (due(t, t->job->train.eval_every) || t->state.step == t->total_steps)
            PL_TRY(evaluate(r));
        if (checkpoint_due(r))
            PL_TRY(save(r));
        if (r->pending && !pl_checkpoint_writer_busy(r->writer))
            PL_TRY(settle(r));
    }
    return PL_OK;
}

static const struct pl_report_ages *staleness_of(const struct run *r, struct pl_report_ages *out)
{
    const struct pl_trainer *t = &r->t;
    *out = (struct pl_report_ages){.ranks = t->world->ranks};
    if (t->sync_table->whole)
        out->share = t->sync_table->whole->shares(t->sync);
    if (!t->sync_table->apart)
        return out->share ? out : NULL;
    const struct pl_staleness *s = t->sync_table->apart->staleness(t->sync);
    *out = (struct pl_report_ages){.count = s->count, .ages = PL_STALENESS_MOST + 1, .dropped = s->dropped, .share = s->share, .ranks = t->world->ranks};
    return out;
}

static pl_status close_run(struct run *r, pl_status s)
{
    struct pl_trainer *t = &r->t;
    const char *reason = s == PL_STOPPED ? "signal" : t->state.done ? "goal" : r->last.converged ? "converged" : "done";
    struct pl_report_ages ages;
    if (t->state.done)
        t->total_steps = t->state.step;
    PL_TRY(save(r));
    PL_TRY(settle(r));
    if (s == PL_STOPPED && r->lost)
        pl_report_say(r->report, "stopped on a signal after step %lld, without a checkpoint of it", (long long)t->state.step);
    else if (s == PL_STOPPED)
        pl_report_say(r->report, "stopped on a signal after step %lld; the checkpoint is in %s, run me again to continue",
                      (long long)t->state.step, t->job->checkpoint.dir);
    pl_report_end(r->report, t->state.step, reason, (pl_now_ms() - r->started_ms) / 1000, r->samples, staleness_of(r, &ages));
    return s;
}

static const char *reason_of(pl_status s) { return s == PL_STOPPED ? "signal" : s < 0 ? "error" : "done"; }

/* For the launcher. */
static void write_outcome(struct run *r, pl_status s)
{
    const struct pl_trainer *t = &r->t;
    if ((r->root || r->last.tells) && pl_report_outcome(t->job->report.dir, !owned(r), pl_exit_code(s), reason_of(s), t->state.step, t->state.ranks) < 0)
        pl_log("%s", pl_error_text());
}

/* Who tells how the run ended leaves when that is written: if it is lost before, another does it. */
static void leave_ended(struct run *r, pl_status s)
{
    struct pl_parting p;
    pl_world_say(r->t.world, s);
    write_outcome(r, s);
    if (r->last.tells)
        r->t.sync_table->meshed->leave(r->t.sync, pl_exit_code(s), true, &p);
    r->t.world->lost = true;
}

/* Where ranks may be lost they part one by one: all that are there know it when this returns. Who had to write may be
 * lost at the very end, and another does. */
static pl_status leave(struct run *r, pl_status s)
{
    struct pl_trainer *t = &r->t;
    struct pl_parting p = {.clean = false};
    pl_status left = PL_OK;
    int code = s == PL_STOPPED ? 0 : pl_exit_code(s);
    if (r->root || s != PL_ERR_NOT_FINITE) /* that all find together */
        pl_world_say(t->world, s); /* now: peers that end are errors of their own, which are cleared */
    t->world->reported = t->world->reported || s < 0;
    while ((left = t->sync_table->meshed->leave(t->sync, code, r->root, &p)) == PL_END) {
        PL_TRY(take_over(r, true));
        if (s >= 0)
            PL_TRY(close_run(r, s));
    }
    if (p.dropped && p.dropped[0])
        pl_report_say(r->report, "%s that came late, by rank: %s", local_steps(t->job) > 0 ? "replicas" : "gradients", p.dropped);
    if (p.holders > 0)
        pl_report_say(r->report, "%d rank%s the same parameters, bit for bit", p.holders, p.holders == 1 ? " holds" : "s hold");
    t->world->lost = !p.clean;
    r->last.tells = p.tells;
    return s >= 0 && left < 0 ? left : s;
}

static pl_status already_done(struct run *r)
{
    const struct pl_run_state *p = &r->t.state;
    if (isnan(p->last_loss))
        pl_report_say(r->report, "this run is done: step %lld of %lld", (long long)p->step, (long long)r->t.total_steps);
    else
        pl_report_say(r->report, "this run is done: step %lld of %lld; last evaluation: loss %.4f, accuracy %.4f",
                      (long long)p->step, (long long)r->t.total_steps, p->last_loss, p->last_accuracy);
    write_outcome(r, PL_OK);
    return PL_OK;
}

static pl_status run_to_end(struct run *r)
{
    struct pl_trainer *t = &r->t;
    pl_status s = run_steps(r);
    if (s >= 0 && s != PL_END && !r->last.ended)
        s = close_run(r, s);
    if (r->last.ended) {
        leave_ended(r, s);
        return s;
    }
    if (t->sync_table->meshed)
        s = leave(r, s);
    else if (s < 0 && s != PL_ERR_NOT_FINITE)
        pl_world_abort(t->world, s); /* this rank alone: the others wait for it */
    write_outcome(r, s);
    return s;
}

/* Once all ranks have written theirs. */
static pl_status end_timeline(struct run *r, struct pl_world *w, const struct pl_job *job, pl_status s)
{
    bool joins = r->timeline && s >= 0 && !w->lost;
    if (joins && pl_world_agree(w, PL_OK) == PL_OK && w->rank == 0 && pl_timeline_join(r->timeline, job->report.dir, r->first_step) < 0) {
        pl_log("%s", pl_error_text());
        pl_error_clear();
    }
    pl_timeline_close(r->timeline);
    return s;
}

pl_status pl_train(struct pl_world *w, const struct pl_job *job, struct pl_train_watch *watch)
{
    struct run r = {.watch = watch};
    char path[4096] = "";
    pl_status s = pl_world_agree(w, job->checkpoint.dir ? pl_signals_catch(&job->checkpoint.signals) : PL_OK);
    if (s == PL_OK)
        s = set_up(&r, w, job, path, sizeof path);
    if (s < 0) {
        if (w->rank == 0)
            pl_report_outcome(job->report.dir, false, pl_exit_code(s), "error", 0, w->ranks); /* if there is that directory */
        tear_down(&r);
        return s;
    }
    r.started_ms = r.saved_ms = pl_now_ms();
    r.first_step = r.t.state.step;
    if (r.t.state.last_eval_step == 0)
        r.t.state.last_eval_step = -1;
    if (r.root)
        pl_report_outcome(job->report.dir, false, -1, NULL, 0, 0);
    announce(&r, path);
    if (over(&r.t))
        s = already_done(&r);
    else
        s = run_to_end(&r);
    pl_log_step(-1);
    if (watch)
        watch->end = r.t.state;
    pl_timeline_end(r.timeline); /* while there are the layers it names */
    tear_down(&r);
    return end_timeline(&r, w, job, s < 0 && !w->lost ? pl_world_agree(w, s) : s == PL_END ? PL_OK : s);
}
