/* Opens and closes what a rank needs for a step. Each part that can fail on one rank alone is
 * followed by an agreement, so that a failure ends all ranks with one message. */
#include "train/train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Libraries split work by their number, and add up in another order. */
static int threads_of(const struct pl_world *w, const struct pl_job *job)
{
    return job->train.threads > 0 ? (int)job->train.threads : job->train.reproducible ? 1 : w->threads;
}

static pl_status open_device(struct pl_trainer *t)
{
    static const char *const names[] = {[PL_DEVICE_AUTO] = "cpu", [PL_DEVICE_CPU] = "cpu", [PL_DEVICE_REFERENCE] = "reference",
                                        [PL_DEVICE_CUDA] = "cuda"};
    t->table = pl_backend_find(names[t->job->device.kind]);
    if (!t->table)
        return PL_ERR_MEMORY;
    if (t->job->train.precision == PL_TF32 && !t->table->far)
        return pl_error(PL_ERR_USAGE, "train", "train.precision tf32 is of device.kind cuda, this is %s", t->table->name);
    if (t->job->train.precision == PL_BF16 && strcmp(t->table->name, "reference") == 0)
        return pl_error(PL_ERR_USAGE, "train", "train.precision bf16 is of device.kind cpu and cuda, this is reference");
    PL_TRY(pl_pool_start(t->threads));
    t->pooled = true;
    struct pl_device_options o = {.threads = t->threads, .local_rank = t->world->local_rank, .local_ranks = t->world->local_ranks,
                                  .tf32 = t->job->train.precision == PL_TF32, .bf16 = t->job->train.precision == PL_BF16};
    o.memory_limit = t->table->far ? t->job->device.memory_limit : 0;
    pl_memory_limit(t->table->far ? 0 : t->job->device.memory_limit, "device.memory_limit");
    return t->table->open(&o, &t->backend);
}

/* Splits the job's batch over ranks and micro-batches. */
static pl_status share_batch(struct pl_trainer *t, bool train)
{
    const struct pl_job *j = t->job;
    int64_t ranks = t->peers->ranks, k = j->train.accumulate > 0 ? j->train.accumulate : 1;
    if (j->train.global_batch > 0 && j->train.global_batch % k != 0)
        return pl_error(PL_ERR_USAGE, "train", "train.global_batch %lld is no multiple of train.accumulate %lld",
                        (long long)j->train.global_batch, (long long)k);
    t->micro_global = pl_train_micro_global(j, t->peers->ranks);
    t->batch = t->rows = (t->micro_global + ranks - 1) / ranks;
    if (t->grid.stages > 1)
        t->rows = (t->batch + j->split.microbatches - 1) / j->split.microbatches;
    if (!train || !j->train.reproducible)
        return PL_OK;
    t->rows = j->train.global_batch / j->train.micro_shards;
    return pl_shards_create(t, &t->shards);
}

/* This rank's layers. */
static pl_status make_graph(struct pl_trainer *t, bool train, struct pl_graph *share, struct pl_graph **out)
{
    const struct pl_graph_cut cut = {.stage = t->grid.stage, .stages = t->grid.stages, .at = &t->job->split.at, .part = t->grid.part, .parts = t->grid.parts};
    return pl_graph_create_stage(t->job, t->table, t->backend, t->rows, train, t->grid.pieces > 1 ? &cut : NULL, share, out);
}

pl_status pl_trainer_eval_graph(struct pl_trainer *t, struct pl_graph **out)
{
    PL_TRY(make_graph(t, false, t->graph, out));
    if (t->tensor)
        pl_tensor_group_serve(t->tensor, *out);
    return PL_OK;
}

static pl_status open_network(struct pl_trainer *t, bool train)
{
    PL_TRY(share_batch(t, train));
    PL_TRY(open_device(t));
    PL_TRY(make_graph(t, train, NULL, &t->graph));
    return train ? pl_optimizer_create(t->job, t->graph, &t->optimizer) : PL_OK;
}

static int by_offset(const void *a, const void *b)
{
    int64_t x = ((const struct pl_span *)a)->a, y = ((const struct pl_span *)b)->a;
    return (x > y) - (x < y);
}

/* Running statistics travel with the gradient, but half of one is none; and what lies between tensors stays 0. */
struct spans { struct pl_span *statistic, *gap; int statistics, gaps; };

static pl_status find_spans(const struct pl_graph *g, struct spans *s)
{
    const struct pl_tensor *tensor;
    int tensors = pl_graph_tensors(g, &tensor);
    size_t bytes = (size_t)(tensors + 1) * sizeof(struct pl_span);
    struct pl_span *all = pl_alloc(bytes, "spans");
    int64_t end = 0;
    *s = (struct spans){pl_alloc(bytes, "running statistics"), pl_alloc(bytes, "gaps"), 0, 0};
    if (!all || !s->statistic || !s->gap) {
        pl_free(all);
        return PL_ERR_MEMORY;
    }
    for (int t = 0; t < tensors; t++) {
        all[t].a = tensor[t].param->offset;
        all[t].b = all[t].a + pl_shape_elems(&tensor[t].param->shape);
        if (tensor[t].param->statistic)
            s->statistic[s->statistics++] = all[t];
    }
    all[tensors].a = all[tensors].b = pl_graph_elems(g);
    qsort(all, (size_t)tensors + 1, sizeof *all, by_offset);
    qsort(s->statistic, (size_t)s->statistics, sizeof *all, by_offset);
    for (int t = 0; t <= tensors; end = all[t++].b)
        if (all[t].a > end)
            s->gap[s->gaps++] = (struct pl_span){end, all[t].a};
    pl_free(all);
    return PL_OK;
}

/* A kind of sync that moves the gradients itself. */
static pl_status open_mesh(struct pl_trainer *t, const struct pl_replica *replica)
{
    if (t->job->sync.backup_workers > 0 && t->world->nodes == 1 && strcmp(replica->exchange->transport, "auto") == 0)
        pl_log_root("note: exchange.transport auto takes mpi on one node, where a lost rank ends the run; with exchange.transport=tcp it does not");
    PL_TRY(t->sync_table->create(replica, NULL, &t->sync));
    if (strcmp(pl_trainer_path(t).transport, "mpi") != 0 && !getenv("PACELINE_RECOVERY"))
        pl_log_root("note: the launcher ends the run when a rank dies; started by jobs/launch.sh it goes on without that rank");
    pl_graph_set_grads(t->graph, t->sync_table->meshed->gradient(t->sync));
    return PL_OK;
}

/* Gradients are added up where they are; who only evaluates has none. */
static void reduce_there(const struct pl_trainer *t, bool train, struct pl_exchange_options *o)
{
    if (train)
        o->far = (struct pl_exchange_far){t->table, t->backend, pl_graph_there(t->graph).grads};
    else
        o->transport = "mpi";
}

static pl_status open_row(struct pl_trainer *t, bool train, const struct pl_exchange_options *o)
{
    if (t->grid.parts > 1)
        return pl_tensor_group_create(t->world, &t->grid, o, t->graph, &t->tensor);
    const struct pl_pipeline_options p = {.grid = &t->grid, .job = t->job, .table = t->table, .backend = t->backend, .graph = t->graph,
                                          .batch = t->batch, .rows = t->rows, .train = train, .exchange = o};
    return t->grid.stages > 1 ? pl_pipeline_create(t->world, &p, &t->pipeline) : PL_OK;
}

static void set_grads(struct pl_trainer *t, float *grads)
{
    if (t->pipeline)
        pl_pipeline_set_grads(t->pipeline, grads);
    else
        pl_graph_set_grads(t->graph, grads);
}

/* Of ranks in their order, whatever nodes they are on. */
static void add_in_pairs(struct pl_exchange_options *o)
{
    if (strcmp(o->algorithm, "auto") == 0)
        o->algorithm = "halving_doubling";
    o->two_level = false;
    o->by_rank = true;
}

/* Called within a pass, by the main thread. */
static pl_status sum_statistics(void *arg, double *v, int64_t n)
{
    struct pl_trainer *t = arg;
    double begin = pl_now_ms(), traced = pl_trace_begin();
    pl_status s = pl_exchange_sum(t->statistics, v, (int)n);
    t->statistics_ms += pl_now_ms() - begin;
    pl_trace_end(traced, "exchange", "wait for statistics", t->state.step);
    return s;
}

/* An exchange of its own: nothing of a gradient stands before it in a queue. Without a thread, as its sums are waited for. */
static pl_status open_statistics(struct pl_trainer *t, struct pl_exchange_options o)
{
    int64_t values = pl_graph_sync_values(t->graph);
    if (t->job->train.sync_bn && values == 0)
        pl_log_root("note: train.sync_bn is of batch normalisation, which this network has not");
    if (values == 0 || t->peers->ranks == 1)
        return PL_OK;
    o.compress = NULL;
    o.exacts = o.gaps = 0;
    o.values = (int)values;
    o.common = 0;
    o.direct = true;
    PL_TRY(pl_exchange_create(t->peers, &o, 0, &t->statistics));
    pl_graph_set_sync(t->graph, sum_statistics, t);
    return PL_OK;
}

static pl_status meet(void *arg)
{
    struct pl_trainer *t = arg;
    double traced = pl_trace_begin();
    if (pl_fault("update.meet", t->state.step))
        return pl_error(PL_ERR_PEER, "train", "debug.fault at update.meet");
    pl_status s = pl_exchange_meet(t->exchange);
    pl_trace_end(traced, "step", "wait for the others' updates", t->state.step);
    return s;
}

static int slabs_together(const struct pl_trainer *t)
{
    return t->job->split.optimizer == PL_OPTIMIZER_NODE ? 1 + pl_optimizer_slots(t->optimizer) : 0;
}

/* Parameters and optimizer state of a node's ranks in one place, which each updates a share of. */
static pl_status put_together(struct pl_trainer *t)
{
    struct pl_span near = pl_exchange_near(t->exchange);
    struct pl_optimizer_shared shared = {.a = near.a, .b = near.b, .meet = meet, .arg = t};
    float *params = pl_exchange_common(t->exchange, 0);
    if (!params && t->world->most_local > 1)
        return pl_error(PL_ERR_USAGE, "train", "split.optimizer needs memory that the ranks of a node share, and here they have none: %s", pl_exchange_why(t->exchange));
    PL_TRY(pl_graph_keep_params(t->graph, params));
    if (!params) {
        pl_log_root("note: split.optimizer is for several ranks of one node, here each has one of its own");
        return pl_optimizer_share(t->optimizer, NULL);
    }
    for (int i = 0; i < pl_optimizer_slots(t->optimizer); i++)
        shared.slot[i] = pl_exchange_common(t->exchange, 1 + i);
    t->together = true;
    return pl_optimizer_share(t->optimizer, &shared);
}

/* The gradient is written where the exchange adds it up, or between averagings keeps it. */
static pl_status open_exchange(struct pl_trainer *t, bool train)
{
    const struct pl_job *j = t->job;
    struct pl_exchange_options o = {.transport = pl_job_transport_name(j), .algorithm = pl_job_algorithm_name(j), .table = j->exchange.table,
                                    .two_level = j->exchange.two_level == PL_TWO_LEVEL_AUTO,
                                    .network = {.channels = (int)j->exchange.channels, .interface = j->exchange.interface},
                                    .compress = pl_job_compress_name(j), .compress_ratio = j->exchange.compress_ratio,
                                    .bucket_bytes = j->exchange.bucket_mb * 1048576, .timeout_ms = j->exchange.timeout_ms};
    const struct pl_replica replica = {.job = j, .graph = t->graph, .optimizer = t->optimizer, .world = t->world, .exchange = &o, .ahead = pl_train_ahead, .arg = t,
                                       .state = &t->state, .state_bytes = sizeof t->state};
    struct spans spans;
    int64_t slabs = 1;
    PL_TRY(open_row(t, train, &o));
    if (pl_trainer_split(t))
        o.timeout_ms = 1.5 * o.timeout_ms + 5000; /* who is silent is first missed in its own replica, and named there */
    if (t->shards || t->tensor) /* what the parts of a replica have alike stays so */
        add_in_pairs(&o);
    if (strcmp(o.transport, "nccl") == 0)
        reduce_there(t, train, &o);
    pl_graph_slice_at_least(t->graph, (int64_t)(o.bucket_bytes / sizeof(float)));
    t->sync_table = pl_sync_find(!train ? "allreduce" : j->sync.backup_workers > 0 ? "quorum" : pl_job_sync_name(j));
    if (t->sync_table->meshed)
        return open_mesh(t, &replica);
    if (t->sync_table->slabs)
        slabs = t->sync_table->slabs(&replica);
    pl_status s = pl_world_agree(t->world, find_spans(t->graph, &spans));
    o.exact = spans.statistic, o.exacts = spans.statistics;
    o.gap = spans.gap, o.gaps = spans.gaps;
    o.common = train ? slabs_together(t) : 0;
    if (s == PL_OK)
        s = pl_exchange_create(t->peers, &o, train ? slabs * pl_graph_elems(t->graph) : 0, &t->exchange);
    pl_free(spans.statistic);
    pl_free(spans.gap);
    PL_TRY(pl_world_agree(t->world, s));
    if (!train)
        return PL_OK;
    if (o.common > 0)
        PL_TRY(pl_world_agree(t->world, put_together(t)));
    set_grads(t, pl_exchange_gradient(t->exchange));
    PL_TRY(open_statistics(t, o));
    if (t->shards)
        PL_TRY(pl_world_agree(t->world, pl_shards_take_gradient(t->shards, pl_exchange_gradient(t->exchange), pl_graph_elems(t->graph))));
    return pl_world_agree(t->world, t->sync_table->create(&replica, t->exchange, &t->sync));
}

static pl_status announce_trial(const struct pl_trainer *t)
{
    char *trial = pl_trial_describe(t->job);
    if (trial)
        pl_log_root("trial: %s", trial);
    pl_free(trial);
    return pl_world_agree(t->world, pl_trial_check(t->job, t->world->ranks));
}

/* What the job gives and L-BFGS on the whole set has no use for. */
static void note_unused(const struct pl_job *job)
{
    static const char *const keys[] = {"optimizer.lr", "optimizer.momentum", "optimizer.beta1", "optimizer.beta2", "optimizer.epsilon",
                                       "optimizer.rho", "optimizer.trust", "data.train.shuffle"};
    struct pl_text given = {0};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (pl_job_given(job, keys[i]))
            pl_text_add(&given, "%s%s", given.s ? ", " : "", keys[i]);
    if (given.s)
        pl_log_root("note: not used by sync.kind sandblaster: %s", given.s);
    pl_text_free(&given);
}

/* One rank alone evaluates a split model as a whole. */
static pl_status open_grid(struct pl_trainer *t, bool train)
{
    int64_t stages = t->job->split.pipeline, parts = t->job->split.tensor;
    bool split = stages * parts > 1 && (train || t->world->ranks > 1);
    if (!split)
        return PL_OK;
    PL_TRY(pl_grid_open(t->world, stages, parts, &t->grid));
    t->peers = &t->grid.column;
    if (stages > 1)
        pl_alloc_sharers(t->peers->local_ranks); /* other stages may need much less */
    return PL_OK;
}

pl_status pl_trainer_open(struct pl_trainer *t, struct pl_world *w, const struct pl_job *job, bool train)
{
    memset(t, 0, sizeof *t);
    t->world = t->peers = w;
    t->job = job;
    t->threads = threads_of(w, job);
    t->state.seed = job->train.seed;
    t->state.ranks = w->ranks;
    t->state.best = t->state.last_loss = t->state.last_accuracy = NAN;
    if (w->cores_unused && job->train.threads == 0)
        pl_log_root("note: the ranks of this node are bound to %d core%s each and leave others unused; "
                    "mpirun --bind-to none, or --map-by ppr:R:node:PE=T, gives them all",
                    w->cores, w->cores == 1 ? "" : "s");
    if (train && job->sync.kind != PL_SYNC_LOCAL_SGD && (job->sync.tau > 0 || job->sync.average_momentum))
        pl_log_root("note: sync.%s is of local_sgd and not used by sync.kind %s", job->sync.tau > 0 ? "tau" : "average_momentum", pl_job_sync_name(job));
    if (train && job->sync.kind != PL_SYNC_DOWNPOUR && (job->sync.n_fetch > 0 || job->sync.n_push > 0 || job->sync.max_staleness > 0 || job->sync.warmup.unit != PL_NEVER))
        pl_log_root("note: sync.n_fetch, n_push, max_staleness and warmup are of downpour and not used by sync.kind %s", pl_job_sync_name(job));
    if (train && job->sync.kind != PL_SYNC_SANDBLASTER && (job->sync.history > 0 || job->sync.tolerance > 0))
        pl_log_root("note: sync.history and tolerance are of sandblaster and not used by sync.kind %s", pl_job_sync_name(job));
    if (train && job->sync.kind == PL_SYNC_SANDBLASTER)
        note_unused(job);
    if (train && job->split.pipeline == 1 && pl_job_given(job, "split.microbatches"))
        pl_log_root("note: split.microbatches is of split.pipeline and not used without");
    if (train && !job->train.reproducible && pl_job_given(job, "train.micro_shards"))
        pl_log_root("note: train.micro_shards is of train.reproducible and not used without");
    if (w->local_ranks * t->threads > w->node_cores)
        pl_log_root("note: %d ranks of %d thread%s share %d cores of this node and wait for each other", w->local_ranks, t->threads, t->threads == 1 ? "" : "s", w->node_cores);
    pl_status s = pl_train_same_job(w, job);
    if (s == PL_OK)
        s = pl_world_agree(w, pl_fault_configure(job->debug.fault, w->rank));
    if (s == PL_OK)
        s = open_grid(t, train);
    if (s == PL_OK && train)
        s = announce_trial(t);
    if (s == PL_OK)
        s = pl_world_agree(w, open_network(t, train));
    if (s == PL_OK)
        s = open_exchange(t, train);
    if (s < 0)
        pl_trainer_close(t);
    return s;
}

bool pl_trainer_fills(const struct pl_trainer *t) { return !t->together || t->world->local_rank == 0; }
bool pl_trainer_split(const struct pl_trainer *t) { return t->pipeline || t->tensor; }

pl_status pl_trainer_row_sum(struct pl_trainer *t, double *v, int n)
{
    if (t->tensor)
        return pl_tensor_group_sum(t->tensor, v, n);
    return t->pipeline ? pl_pipeline_sum(t->pipeline, v, n) : PL_OK;
}

pl_status pl_trainer_sum(struct pl_trainer *t, double *v, int n)
{
    PL_TRY(pl_trainer_row_sum(t, v, n));
    return pl_exchange_sum(t->exchange, v, n);
}

pl_status pl_trainer_max(struct pl_trainer *t, double *v, int n)
{
    if (t->tensor)
        PL_TRY(pl_tensor_group_max(t->tensor, v, n));
    PL_TRY(t->pipeline ? pl_pipeline_max(t->pipeline, v, n) : PL_OK);
    return pl_exchange_max(t->exchange, v, n);
}

struct pl_path pl_trainer_path(const struct pl_trainer *t)
{
    if (!t->exchange)
        return t->sync_table->meshed->path(t->sync);
    if (t->grid.pieces > 1 && t->peers->ranks == 1)
        return (struct pl_path){"none", "none", "one replica, whose gradients need no others"};
    return (struct pl_path){pl_exchange_transport(t->exchange), pl_exchange_algorithm(t->exchange), pl_exchange_why(t->exchange)};
}

void pl_trainer_hold(struct pl_trainer *t, bool held)
{
    if (t->sync_table->meshed && t->sync_table->meshed->hold)
        t->sync_table->meshed->hold(t->sync, held);
}

int pl_trainer_parts(struct pl_trainer *t, struct pl_part *part)
{
    int slots = pl_optimizer_slots(t->optimizer);
    bool local = t->exchange && t->job->sync.kind == PL_SYNC_LOCAL_SGD && !t->job->sync.average_momentum && t->world->ranks > 1;
    float *residual = t->exchange ? pl_exchange_residual(t->exchange) : NULL;
    part[0] = (struct pl_part){.name = "compression", .slab = residual, .own = residual != NULL};
    for (int i = 0; i < slots; i++) {
        part[1 + i] = (struct pl_part){.slab = pl_optimizer_slot(t->optimizer, i), .own = local, .mean = true};
        snprintf(part[1 + i].name, sizeof part->name, "optimizer/%s", pl_optimizer_slot_name(t->optimizer, i));
    }
    return 1 + slots;
}

bool pl_trainer_differs(struct pl_trainer *t)
{
    struct pl_part part[PL_PARTS_MAX];
    bool differs = false;
    for (int i = pl_trainer_parts(t, part) - 1; i >= 0; i--)
        differs = differs || part[i].own;
    return differs;
}

void pl_trainer_close(struct pl_trainer *t)
{
    if (t->graph)
        set_grads(t, NULL);
    if (t->sync)
        t->sync_table->destroy(t->sync);
    pl_exchange_destroy(t->statistics);
    pl_exchange_destroy(t->exchange);
    pl_pipeline_destroy(t->pipeline, t->world->lost);
    pl_tensor_group_destroy(t->tensor, t->world->lost);
    pl_shards_destroy(t->shards);
    pl_optimizer_destroy(t->optimizer);
    pl_graph_destroy(t->graph);
    if (t->backend)
        t->table->close(t->backend);
    if (t->pooled)
        pl_pool_stop();
    pl_memory_limit(0, NULL);
    if (t->grid.pieces > 1) {
        pl_alloc_sharers(t->world->local_ranks);
        pl_grid_close(&t->grid);
    }
    memset(t, 0, sizeof *t);
}
