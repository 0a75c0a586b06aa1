/* What goes with what: checks over several keys of a job whose every key is right by itself, and values that follow from others. */
#include "job/read.h"

#include <math.h>
#include <string.h>

/* on: the job has it; then it is refused at that key. */
struct refusal { bool on; const char *key, *why; };

static pl_status refuse(const struct pl_job *j, const struct refusal *r, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (r[i].on)
            return pl_node_error(pl_job_at(j, r[i].key), "%s", r[i].why);
    return PL_OK;
}

/* `files: none`, as with `file`. */
static void take_none_away(struct pl_texts *files)
{
    if (files->n == 1 && strcmp(files->v[0], "none") == 0) {
        pl_free(files->v[0]);
        files->n = 0;
    }
}

static pl_status check_delay(const struct pl_job *j)
{
    if (pl_job_given(j, "debug.delay") && !pl_job_given(j, "debug.delay.ms"))
        return pl_node_error(pl_job_at(j, "debug.delay"), "debug.delay needs ms: how long a rank sleeps");
    if (pl_job_given(j, "debug.delay.shape") && j->debug.delay.distribution != PL_DELAY_PARETO)
        return pl_node_error(pl_job_at(j, "debug.delay.shape"), "debug.delay.shape is of distribution pareto only");
    return PL_OK;
}

static pl_status check_local_sgd(struct pl_job *j)
{
    if (j->sync.tau == 0)
        j->sync.tau = 10;
    if (strcmp(pl_job_compress_name(j), "none") != 0)
        return pl_node_error(pl_job_at(j, "exchange.compress"), "exchange.compress is for gradients; with sync.kind local_sgd parameters are exchanged\n"
                             "a larger sync.tau sends less");
    return PL_OK;
}

static pl_status check_downpour(struct pl_job *j)
{
    j->sync.n_fetch += j->sync.n_fetch == 0;
    j->sync.n_push += j->sync.n_push == 0;
    if (j->sync.backup_workers > 0)
        return pl_node_error(pl_job_at(j, "sync.backup_workers"), "sync.backup_workers is of allreduce and local_sgd; with sync.kind downpour nobody waits for late gradients");
    if (strcmp(pl_job_compress_name(j), "none") != 0)
        return pl_node_error(pl_job_at(j, "exchange.compress"), "exchange.compress with sync.kind downpour is not in this version yet");
    if (j->train.accumulate > 1)
        return pl_node_error(pl_job_at(j, "train.accumulate"), "train.accumulate with sync.kind downpour: sync.n_push sums the gradients of several micro-batches");
    if (j->optimizer.clip_norm > 0)
        return pl_node_error(pl_job_at(j, "optimizer.clip_norm"), "optimizer.clip_norm with sync.kind downpour is not in this version yet");
    if (j->optimizer.kind == PL_LARS)
        return pl_node_error(pl_job_at(j, "optimizer.kind"), "optimizer.kind lars needs the norms of whole tensors, with sync.kind downpour each rank has a part of them");
    if (j->sync.warmup.unit == PL_MS)
        return pl_node_error(pl_job_at(j, "sync.warmup"), "sync.warmup is counted in steps or epochs");
    return PL_OK;
}

/* What it has no use for it would pass over without a word. */
static pl_status check_sandblaster(struct pl_job *j)
{
    const struct refusal refused[] = {
        {j->sync.backup_workers > 0, "sync.backup_workers", "sync.backup_workers is of allreduce and local_sgd; sync.kind sandblaster hands out what a slow rank has to another"},
        {strcmp(pl_job_compress_name(j), "none") != 0, "exchange.compress", "exchange.compress with sync.kind sandblaster: a line search compares gradients that must be exact"},
        {j->exchange.algorithm != 0, "exchange.algorithm", "exchange.algorithm with sync.kind sandblaster: each rank sends to every other what is its shard"},
        {j->train.accumulate > 1, "train.accumulate", "train.accumulate with sync.kind sandblaster: a step is over the whole set, in portions of train.batch"},
        {j->train.global_batch > 0, "train.global_batch", "train.global_batch with sync.kind sandblaster: a step is over the whole set, in portions of train.batch"},
        {j->optimizer.clip_norm > 0, "optimizer.clip_norm", "optimizer.clip_norm with sync.kind sandblaster: its line search limits a step"},
        {pl_job_given(j, "optimizer.kind") && j->optimizer.kind != PL_SGD, "optimizer.kind", "optimizer.kind with sync.kind sandblaster: L-BFGS takes its place\nleave it out, or give optimizer.kind=sgd"},
        {j->optimizer.schedule.kind != PL_FIXED, "optimizer.schedule", "optimizer.schedule with sync.kind sandblaster: its line search finds how far a step goes"},
        {j->optimizer.warmup.unit != PL_NEVER, "optimizer.warmup", "optimizer.warmup with sync.kind sandblaster: its line search finds how far a step goes"},
        {j->train_set.flip, "data.train.augment.flip", "data.train.augment.flip with sync.kind sandblaster: every pass must see the same samples"},
        {j->train_set.crop > 0, "data.train.augment.crop", "data.train.augment.crop with sync.kind sandblaster: every pass must see the same samples"},
        {j->debug.compute_ms > 0, "debug.compute_ms", "debug.compute_ms with sync.kind sandblaster: there is no way down by gradients of 0"}};
    PL_TRY(refuse(j, refused, sizeof refused / sizeof *refused));
    j->optimizer.kind = PL_SGD; /* it has no state that a checkpoint would have to keep */
    j->sync.history = j->sync.history > 0 ? j->sync.history : 10;
    j->sync.tolerance = pl_job_given(j, "sync.tolerance") ? j->sync.tolerance : 1e-6;
    return PL_OK;
}

static pl_status check_backup_workers(struct pl_job *j)
{
    if (strcmp(pl_job_compress_name(j), "none") != 0)
        return pl_node_error(pl_job_at(j, "exchange.compress"), "exchange.compress with sync.backup_workers: what a late rank's gradient lost would be lost\n"
                             "leave one of them out");
    if (!pl_job_given(j, "sync.grace"))
        j->sync.grace_ms = -1;
    if (j->sync.lost_ms < j->sync.suspect_ms)
        return pl_node_error(pl_job_at(j, "sync.lost_after"), "sync.lost_after is less than sync.suspect_after");
    return PL_OK;
}

/* Gradients stay on the GPUs: what needs them elsewhere cannot have them. */
static pl_status check_nccl(const struct pl_job *j)
{
    const struct refusal refused[] = {
        {j->device.kind != PL_DEVICE_CUDA, "exchange.transport", "exchange.transport nccl adds up what lies on GPUs: it needs device.kind cuda"},
        {j->sync.kind != PL_SYNC_ALLREDUCE, "sync.kind", "exchange.transport nccl with this sync.kind: its ranks exchange what is in host memory\nit is of sync.kind allreduce"},
        {j->sync.backup_workers > 0, "sync.backup_workers", "exchange.transport nccl with sync.backup_workers: NCCL cannot go on without a rank"},
        {strcmp(pl_job_compress_name(j), "none") != 0, "exchange.compress", "exchange.transport nccl with exchange.compress: NCCL sends gradients as they are"},
        {strcmp(pl_job_algorithm_name(j), "auto") != 0, "exchange.algorithm", "exchange.transport nccl with exchange.algorithm: NCCL chooses its own"},
        {j->exchange.table != NULL, "exchange.table", "exchange.transport nccl with exchange.table: NCCL chooses its own algorithm"},
        {pl_job_given(j, "exchange.two_level"), "exchange.two_level", "exchange.transport nccl with exchange.two_level: NCCL knows nodes by itself"},
        {pl_job_given(j, "exchange.channels"), "exchange.channels", "exchange.transport nccl with exchange.channels: they are of tcp and verbs"},
        {j->exchange.interface != NULL, "exchange.interface", "exchange.transport nccl with exchange.interface: NCCL has NCCL_SOCKET_IFNAME for that"}};
    return refuse(j, refused, sizeof refused / sizeof *refused);
}

/* A replica is a row of ranks, of which only some know the loss, and each has its part of the parameters. */
static pl_status check_split(const struct pl_job *j)
{
    const struct refusal refused[] = {
        {j->sync.kind != PL_SYNC_ALLREDUCE, "sync.kind", "split.pipeline with this sync.kind is not in this version yet\nit is of sync.kind allreduce"},
        {j->sync.backup_workers > 0, "sync.backup_workers", "split.pipeline with sync.backup_workers is not in this version yet"},
        {j->train.accumulate > 1, "train.accumulate", "train.accumulate with split.pipeline: split.microbatches cuts a batch into parts that are computed one after the other"},
        {strcmp(pl_job_compress_name(j), "none") != 0, "exchange.compress", "exchange.compress with split.pipeline is not in this version yet"},
        {strcmp(pl_job_transport_name(j), "nccl") == 0, "exchange.transport", "exchange.transport nccl with split.pipeline is not in this version yet"},
        {j->device.kind == PL_DEVICE_CUDA, "device.kind", "split.pipeline with device.kind cuda is not in this version yet"},
        {j->debug.compute_ms > 0, "debug.compute_ms", "debug.compute_ms with split.pipeline: layers hand on what they compute"},
        {j->split.at.n > 0 && j->split.at.n != j->split.pipeline - 1, "split.at", "split.at names the first layer of each rank but the first: one less than split.pipeline"}};
    return refuse(j, refused, sizeof refused / sizeof *refused);
}

/* A replica is a row of ranks that go through the same batch, each with its part of the parameters. */
static pl_status check_tensor(const struct pl_job *j)
{
    const struct refusal refused[] = {
        {j->split.pipeline > 1, "split.pipeline", "split.pipeline and split.tensor together are not in this version yet"},
        {j->sync.kind != PL_SYNC_ALLREDUCE, "sync.kind", "split.tensor with this sync.kind is not in this version yet\nit is of sync.kind allreduce"},
        {j->sync.backup_workers > 0, "sync.backup_workers", "split.tensor with sync.backup_workers is not in this version yet"},
        {j->optimizer.kind == PL_LARS, "optimizer.kind", "split.tensor with optimizer.kind lars is not in this version yet: it needs norms of whole tensors"},
        {strcmp(pl_job_compress_name(j), "none") != 0, "exchange.compress", "exchange.compress with split.tensor is not in this version yet"},
        {strcmp(pl_job_transport_name(j), "nccl") == 0, "exchange.transport", "exchange.transport nccl with split.tensor is not in this version yet"},
        {strcmp(pl_job_algorithm_name(j), "native") == 0, "exchange.algorithm", "exchange.algorithm native with split.tensor: what all ranks of a replica compute alike must be added up alike, which MPI does not promise"},
        {j->device.kind == PL_DEVICE_CUDA, "device.kind", "split.tensor with device.kind cuda is not in this version yet"},
        {j->debug.compute_ms > 0, "debug.compute_ms", "debug.compute_ms with split.tensor: the ranks of a replica hand on what they compute"}};
    return refuse(j, refused, sizeof refused / sizeof *refused);
}

static pl_status check_reproducible(const struct pl_job *j)
{
    const char *algorithm = pl_job_algorithm_name(j);
    int64_t shards = j->train.micro_shards;
    bool by_pairs = strcmp(algorithm, "auto") == 0 || strcmp(algorithm, "tree") == 0 || strcmp(algorithm, "halving_doubling") == 0;
    const struct refusal refused[] = {
        {j->train.global_batch == 0, "train.batch", "train.reproducible needs train.global_batch: train.batch on more ranks is another global batch"},
        {(shards & (shards - 1)) != 0, "train.micro_shards", "train.micro_shards is a power of two: its parts are added up in pairs"},
        {j->train.global_batch % shards != 0, "train.global_batch", "train.reproducible: train.global_batch is no multiple of train.micro_shards"},
        {j->sync.kind != PL_SYNC_ALLREDUCE, "sync.kind", "train.reproducible is of sync.kind allreduce: others depend on the ranks by their nature"},
        {j->sync.backup_workers > 0, "sync.backup_workers", "train.reproducible with sync.backup_workers: who is late would make a difference"},
        {j->train.accumulate > 1, "train.accumulate", "train.accumulate with train.reproducible: train.micro_shards are computed one after the other anyway"},
        {strcmp(pl_job_compress_name(j), "none") != 0, "exchange.compress", "exchange.compress with train.reproducible: what it loses depends on the ranks"},
        {!by_pairs, "exchange.algorithm", "train.reproducible adds up in pairs\nleave exchange.algorithm auto, or take tree or halving_doubling"},
        {j->split.tensor > 1, "split.tensor", "split.tensor with train.reproducible is not in this version yet"},
        {j->split.pipeline > 1, "split.pipeline", "split.pipeline with train.reproducible is not in this version yet"},
        {j->device.kind == PL_DEVICE_CUDA, "device.kind", "train.reproducible with device.kind cuda is not in this version yet"},
        {j->debug.compute_ms > 0, "debug.compute_ms", "debug.compute_ms with train.reproducible: there is nothing to reproduce"}};
    return refuse(j, refused, sizeof refused / sizeof *refused);
}

/* In the midst of a pass every rank waits for all others. */
static pl_status check_sync_bn(const struct pl_job *j)
{
    const struct refusal refused[] = {
        {j->sync.kind != PL_SYNC_ALLREDUCE, "sync.kind", "train.sync_bn is of sync.kind allreduce: with others the ranks do not compute a step together"},
        {j->sync.backup_workers > 0, "sync.backup_workers", "train.sync_bn with sync.backup_workers: a late rank would hold the others up in every batch normalisation"},
        {j->split.pipeline > 1, "split.pipeline", "train.sync_bn with split.pipeline is not in this version yet"},
        {j->train.reproducible, "train.reproducible", "train.sync_bn with train.reproducible: there each of train.micro_shards is normalised by itself\nleave one of them out"},
        {j->device.kind == PL_DEVICE_CUDA, "device.kind", "train.sync_bn with device.kind cuda is not in this version yet"}};
    return refuse(j, refused, sizeof refused / sizeof *refused);
}

/* The ranks of a node update together what all of them compute by. */
static pl_status check_shared_optimizer(const struct pl_job *j)
{
    const struct refusal refused[] = {
        {j->sync.kind != PL_SYNC_ALLREDUCE, "sync.kind", "split.optimizer is of sync.kind allreduce: with others the ranks of a node have different parameters, or do not update together"},
        {j->sync.backup_workers > 0, "sync.backup_workers", "split.optimizer with sync.backup_workers: a late rank would still compute by parameters that the others change"},
        {j->split.tensor > 1, "split.tensor", "split.optimizer with split.tensor is not in this version yet"},
        {j->split.pipeline > 1, "split.pipeline", "split.optimizer with split.pipeline is not in this version yet"},
        {j->train.reproducible, "train.reproducible", "split.optimizer with train.reproducible is not in this version yet"},
        {j->exchange.two_level == PL_TWO_LEVEL_NEVER, "exchange.two_level", "split.optimizer needs memory that the ranks of a node share; exchange.two_level is never"},
        {j->device.kind == PL_DEVICE_CUDA, "device.kind", "split.optimizer with device.kind cuda is not in this version yet"}};
    return refuse(j, refused, sizeof refused / sizeof *refused);
}

pl_status pl_job_check(struct pl_job *j)
{
    take_none_away(&j->train_set.files);
    take_none_away(&j->test_set.files);
    take_none_away(&j->split.at);
    j->train_set.stage = j->test_set.stage = j->data.stage;
    if (j->train.epochs > 0 && j->train.steps > 0)
        return pl_node_error(pl_job_at(j, "train.steps"), "train.epochs and train.steps are both given; one is enough");
    if (j->train.batch > 0 && j->train.global_batch > 0)
        return pl_node_error(pl_job_at(j, "train.global_batch"), "train.batch and train.global_batch are both given; one is enough");
    if (j->train_set.file && j->train_set.files.n > 0)
        return pl_node_error(pl_job_at(j, "data.train.files"), "data.train.file and data.train.files are both given; one is enough");
    if (j->test_set.file && j->test_set.files.n > 0)
        return pl_node_error(pl_job_at(j, "data.test.files"), "data.test.file and data.test.files are both given; one is enough");
    if (j->train.epochs <= 0 && j->train.steps <= 0)
        return pl_node_error(pl_job_at(j, "train"), "train.epochs or train.steps is missing");
    if (j->train.batch <= 0 && j->train.global_batch <= 0)
        j->train.batch = 64;
    if (j->optimizer.schedule.kind == PL_STEP && j->optimizer.schedule.every <= 0)
        return pl_node_error(pl_job_at(j, "optimizer.schedule"), "schedule step needs every: so many steps");
    if (j->optimizer.schedule.kind == PL_MULTISTEP && j->optimizer.schedule.at.n == 0)
        return pl_node_error(pl_job_at(j, "optimizer.schedule"), "schedule multistep needs at: [steps]");
    if (j->optimizer.warmup.unit == PL_MS)
        return pl_node_error(pl_job_at(j, "optimizer.warmup"), "optimizer.warmup is counted in steps or epochs");
    if (j->train.eval_every.unit == PL_MS)
        return pl_node_error(pl_job_at(j, "train.eval_every"), "train.eval_every is counted in steps or epochs");
    if (j->sync.kind == PL_SYNC_LOCAL_SGD)
        PL_TRY(check_local_sgd(j));
    if (j->sync.kind == PL_SYNC_DOWNPOUR)
        PL_TRY(check_downpour(j));
    if (j->sync.kind == PL_SYNC_SANDBLASTER)
        PL_TRY(check_sandblaster(j));
    if (j->sync.backup_workers > 0)
        PL_TRY(check_backup_workers(j));
    if (strcmp(pl_job_transport_name(j), "nccl") == 0)
        PL_TRY(check_nccl(j));
    if (j->train.sync_bn)
        PL_TRY(check_sync_bn(j));
    if (j->train.reproducible)
        PL_TRY(check_reproducible(j));
    if (j->split.optimizer != PL_OPTIMIZER_WHOLE)
        PL_TRY(check_shared_optimizer(j));
    if (j->split.tensor > 1)
        PL_TRY(check_tensor(j));
    if (j->split.pipeline > 1 || j->split.at.n > 0)
        PL_TRY(check_split(j));
    j->train.stop_on = !isinf(j->train.stop_above) || !isinf(j->train.stop_below);
    if (j->report.timeline && !j->report.dir)
        return pl_node_error(pl_job_at(j, "report.timeline"), "report.timeline needs report.dir, where it is written");
    return check_delay(j);
}
