/* The table of a job's keys: name, type, default, range, meaning. `paceline train --help-keys` prints it. */
#include "job/node.h"

#include <stdlib.h>
#include <string.h>

#define AT(member) offsetof(struct pl_job, member)
#define MANY 1e18
#define PERIOD(n_, m_, d_, h_) {.name = n_, .type = PL_KEY_PERIOD, .offset = AT(m_), .def = d_, .help = h_}
#define INT(n_, m_, d_, lo, hi, h_) {.name = n_, .type = PL_KEY_INT, .offset = AT(m_), .def = d_, .min = lo, .max = hi, .help = h_}
#define DOUBLE(n_, m_, d_, lo, hi, h_) {.name = n_, .type = PL_KEY_DOUBLE, .offset = AT(m_), .def = d_, .min = lo, .max = hi, .help = h_}
#define TEXT(n_, m_, h_) {.name = n_, .type = PL_KEY_TEXT, .offset = AT(m_), .help = h_}
#define TEXT_OR(n_, m_, d_, h_) {.name = n_, .type = PL_KEY_TEXT, .offset = AT(m_), .def = d_, .help = h_}
#define CHOICE(n_, m_, d_, c_, h_) {.name = n_, .type = PL_KEY_CHOICE, .offset = AT(m_), .def = d_, .choices = c_, .help = h_}
#define BOOL(n_, m_, d_, h_) {.name = n_, .type = PL_KEY_BOOL, .offset = AT(m_), .def = d_, .help = h_}

#define SET_KEYS(set, member, shuffle_)                                                                   \
    TEXT(set ".file", member.file, "HDF5 file with the samples"),                                         \
    {.name = set ".files", .type = PL_KEY_TEXTS, .offset = AT(member.files), .help = "several, one set in this order; a pattern (*, ?, [a-z]) stands for what it matches, sorted"}, \
    TEXT_OR(set ".data", member.data, "data", "dataset of the inputs, [N, ...]"),                         \
    TEXT_OR(set ".label", member.label, "label", "dataset of the labels, [N] or [N, K]"),                 \
    DOUBLE(set ".scale", member.scale, "1", 0, 0, "inputs are multiplied by this"),                       \
    {.name = set ".mean", .type = PL_KEY_DOUBLES, .offset = AT(member.mean), .help = "subtracted after scaling, one for all or one a channel"}, \
    {.name = set ".std", .type = PL_KEY_DOUBLES, .offset = AT(member.std), .min = 1e-30, .max = MANY, .help = "divides after the mean, one for all or one a channel"}, \
    BOOL(set ".shuffle", member.shuffle, shuffle_, "another order of samples in every epoch"),            \
    CHOICE(set ".cache", member.cache, "auto", "auto|memory|none", "keep the samples in memory"),         \
    BOOL(set ".augment.flip", member.flip, "false", "mirror left and right at random"),                   \
    INT(set ".augment.crop", member.crop, "0", 0, MANY, "side of a random crop (the centre in evaluation); 0: none"), \
    INT(set ".augment.resize", member.resize, "0", 0, 65500, "shorter side of a JPEG image before the crop; 0: 8/7 of crop, or the input's"), \
    INT(set ".augment.pad", member.pad, "0", 0, MANY, "zeros added on each side before the crop"),        \
    INT(set ".limit", member.limit, "0", 0, MANY, "only the first so many samples; 0: all")

const struct pl_key pl_job_keys[] = {
    SET_KEYS("data.train", train_set, "true"),
    SET_KEYS("data.test", test_set, "false"),
    TEXT("data.stage", data.stage, "node-local directory: files are copied there first and stay for the next run"),
    INT("data.threads", data.threads, "1", 1, 256, "that decode the samples of a rank, the loader's own included"),
    DOUBLE("train.epochs", train.epochs, NULL, 1e-9, MANY, "length of the run; or train.steps"),
    INT("train.steps", train.steps, NULL, 1, MANY, "length of the run; or train.epochs"),
    INT("train.batch", train.batch, NULL, 1, MANY, "samples of a step on each replica (64); or train.global_batch"),
    INT("train.global_batch", train.global_batch, NULL, 1, MANY, "samples of a step over all replicas"),
    INT("train.seed", train.seed, "1", 0, MANY, "names every random number of the run"),
    INT("train.accumulate", train.accumulate, "1", 1, 1e6, "micro-batches of train.batch whose gradients are added up to one step; train.global_batch is shared out over them"),
    BOOL("train.reproducible", train.reproducible, "false", "the same bits on 1, 2, 4, ... ranks, and when the run goes on on others; slower"),
    INT("train.micro_shards", train.micro_shards, "8", 1, 4096, "reproducible: the global batch is computed in so many parts, a power of two"),
    BOOL("train.sync_bn", train.sync_bn, "false", "batch normalisation takes mean and variance over the samples of all ranks, not of each its own"),
    INT("train.threads", train.threads, "0", 0, 1024, "compute threads a rank; 0: its share of the cores"),
    CHOICE("train.precision", train.precision, "fp32", "fp32|tf32|bf16", "of compute; bf16: of activations and what is multiplied, on CPUs with AVX512-BF16 or AMX and on GPUs from compute capability 8.0 on; tf32: matrix products on a GPU may round what they multiply"),
    PERIOD("train.eval_every", train.eval_every, "1 epoch", "how often the test set is evaluated"),
    CHOICE("train.stop.metric", train.stop_metric, "accuracy", "accuracy|top5|loss", "what ends the run early, and what is the best"),
    DOUBLE("train.stop.above", train.stop_above, "inf", 0, 0, "the run ends when the metric is above this"),
    DOUBLE("train.stop.below", train.stop_below, "-inf", 0, 0, "the run ends when the metric is below this"),
    TEXT("train.init", train.init, "start from the weights in /params of this file"),
    CHOICE("optimizer.kind", optimizer.kind, "momentum", "sgd|momentum|nesterov|adagrad|adadelta|rmsprop|adam|adamw|lars", "how parameters follow the gradient"),
    DOUBLE("optimizer.lr", optimizer.lr, "0.01", 0, MANY, "base learning rate"),
    DOUBLE("optimizer.momentum", optimizer.momentum, "0.9", 0, 1, "of momentum, nesterov, lars"),
    DOUBLE("optimizer.weight_decay", optimizer.weight_decay, "0", 0, MANY, "L2 decay (decoupled with adamw)"),
    DOUBLE("optimizer.beta1", optimizer.beta1, "0.9", 0, 1, "adam, adamw: decay of the first moment"),
    DOUBLE("optimizer.beta2", optimizer.beta2, "0.999", 0, 1, "adam, adamw: decay of the second moment"),
    DOUBLE("optimizer.epsilon", optimizer.epsilon, "1e-8", 0, 1, "keeps divisions finite"),
    DOUBLE("optimizer.rho", optimizer.rho, "0.9", 0, 1, "adadelta, rmsprop: decay of the squares"),
    DOUBLE("optimizer.trust", optimizer.trust, "0.001", 0, MANY, "lars: trust coefficient"),
    DOUBLE("optimizer.clip_norm", optimizer.clip_norm, "0", 0, MANY, "most of the gradient's global norm; 0: no limit"),
    CHOICE("optimizer.schedule.kind", optimizer.schedule.kind, "fixed", "fixed|step|multistep|exp|inv|poly|cosine", "how the learning rate falls"),
    DOUBLE("optimizer.schedule.gamma", optimizer.schedule.gamma, "0.1", 0, MANY, "step, multistep, exp, inv"),
    DOUBLE("optimizer.schedule.power", optimizer.schedule.power, "1", 0, MANY, "inv, poly"),
    DOUBLE("optimizer.schedule.min", optimizer.schedule.min, "0", 0, MANY, "cosine: where it ends"),
    {.name = "optimizer.schedule.at", .type = PL_KEY_INTS, .offset = AT(optimizer.schedule.at), .min = 0, .max = MANY, .help = "multistep: the steps at which it falls"},
    INT("optimizer.schedule.every", optimizer.schedule.every, "0", 0, MANY, "step: it falls every so many steps"),
    INT("optimizer.schedule.total", optimizer.schedule.total, "0", 0, MANY, "poly, cosine: steps until the end; 0: the run's"),
    PERIOD("optimizer.warmup", optimizer.warmup, "never", "the learning rate rises linearly for so long"),
    CHOICE("sync.kind", sync.kind, "allreduce", "allreduce|local_sgd|downpour|sandblaster", "how replicas agree; local_sgd: parameters are averaged every tau steps; downpour: each goes its own way; sandblaster: L-BFGS on the whole set"),
    INT("sync.tau", sync.tau, NULL, 1, MANY, "local_sgd: steps that each rank makes by itself before an averaging (10)"),
    BOOL("sync.average_momentum", sync.average_momentum, "false", "local_sgd: average the optimizer's state (momentum, moments) with the parameters"),
    INT("sync.n_fetch", sync.n_fetch, NULL, 1, MANY, "downpour: a rank fetches the parameters after so many micro-batches (1)"),
    INT("sync.n_push", sync.n_push, NULL, 1, MANY, "downpour: and pushes the sum of its gradients after so many (1)"),
    INT("sync.max_staleness", sync.max_staleness, "0", 0, MANY, "downpour: a gradient is dropped if its part of the parameters has been updated more often since they were fetched; 0: never"),
    PERIOD("sync.warmup", sync.warmup, "never", "downpour: so many steps of synchronous SGD come first"),
    INT("sync.history", sync.history, NULL, 1, 1000, "sandblaster: steps and changes of the gradient that a direction is made from (10)"),
    DOUBLE("sync.tolerance", sync.tolerance, NULL, 0, MANY, "sandblaster: the run is converged when the gradient's norm is at most this (1e-6)"),
    {.name = "sync.backup_workers", .type = PL_KEY_INT, .offset = AT(sync.backup_workers), .def = "0", .min = 0, .max = MANY, .help = "late gradients that a step goes without: it takes the first of them, and ranks that are slow, stopped or lost hold nobody up"},
    {.name = "sync.grace", .type = PL_KEY_MS, .offset = AT(sync.grace_ms), .min = 0, .max = MANY, .help = "backup workers: wait so long for late ones once enough are ready; without it a twentieth of a step"},
    {.name = "sync.suspect_after", .type = PL_KEY_MS, .offset = AT(sync.suspect_ms), .def = "1 s", .min = 20, .max = MANY, .help = "backup workers: a rank that is silent for so long is left out"},
    {.name = "sync.lost_after", .type = PL_KEY_MS, .offset = AT(sync.lost_ms), .def = "60 s", .min = 100, .max = MANY, .help = "backup workers: and for so long, struck off; its share of the data goes to the others"},
    CHOICE("exchange.transport", exchange.transport, "auto", "auto|mpi|tcp|verbs|nccl", "what carries the gradients between nodes; by name: also between the ranks of one; nccl: between GPUs, one a rank"),
    CHOICE("exchange.algorithm", exchange.algorithm, "auto", "auto|native|ring|halving_doubling|tree", "how they are summed there; native: MPI's own"),
    CHOICE("exchange.two_level", exchange.two_level, "auto", "auto|never", "ranks of one node add up in memory that they share; never: as between nodes"),
    TEXT("exchange.table", exchange.table, "measured choices for algorithm auto, from `paceline bench allreduce --tune=FILE`"),
    INT("exchange.channels", exchange.channels, "2", 1, 16, "tcp, verbs: connections to each peer that share its data"),
    TEXT("exchange.interface", exchange.interface, "tcp, verbs: a network interface by name, its address or a CIDR; without it the fastest that reaches the peers"),
    CHOICE("exchange.compress", exchange.compress, "none", "none|bf16|one_bit|top_k", "of gradients between nodes; what is lost is added in the next step"),
    DOUBLE("exchange.compress_ratio", exchange.compress_ratio, "0.01", 1e-6, 0.5, "top_k: the part of the elements that is sent"),
    DOUBLE("exchange.bucket_mb", exchange.bucket_mb, "4", 0.001, 2047, "gradients travel in pieces of this size"),
    {.name = "exchange.timeout", .type = PL_KEY_MS, .offset = AT(exchange.timeout_ms), .def = "60 s", .min = 1, .max = MANY, .help = "longest wait for other ranks"},
    INT("split.tensor", split.tensor, "1", 1, 256, "ranks that share a replica, each with an equal share of every layer's channels; their number divides that of the ranks"),
    INT("split.pipeline", split.pipeline, "1", 1, 256, "ranks that share a replica, each with some of its layers; their number divides that of the ranks"),
    INT("split.microbatches", split.microbatches, "4", 1, 65536, "a replica's batch goes through the stages of split.pipeline in so many parts, at most as many as it has samples"),
    {.name = "split.at", .type = PL_KEY_TEXTS, .offset = AT(split.at), .help = "the first layer of each rank but the first; without it by what the layers compute"},
    CHOICE("split.optimizer", split.optimizer, "none", "none|node", "node: the ranks of a node hold parameters and optimizer state together, and each updates its share of them"),
    CHOICE("device.kind", device.kind, "auto", "auto|cpu|reference|cuda", "what computes; auto takes the processor"),
    {.name = "device.memory_limit", .type = PL_KEY_BYTES, .offset = AT(device.memory_limit), .def = "none", .help = "a rank takes no more of the device's memory, of a processor the node's, and ends with 7 where that is too little; libraries' own comes on top"},
    TEXT("checkpoint.dir", checkpoint.dir, "directory of the run's checkpoints; none: no checkpoints"),
    PERIOD("checkpoint.every", checkpoint.every, "10 min", "how often one is written"),
    INT("checkpoint.keep", checkpoint.keep, "3", 1, 1e6, "the newest so many are kept"),
    TEXT_OR("checkpoint.resume", checkpoint.resume, "auto", "auto: continue what is in dir; never; or a directory"),
    BOOL("checkpoint.keep_best", checkpoint.keep_best, "false", "also keep the one with the best evaluation"),
    BOOL("checkpoint.background", checkpoint.background, "true", "write while training goes on"),
    CHOICE("checkpoint.on_error", checkpoint.on_error, "stop", "stop|continue", "when one cannot be written"),
    {.name = "checkpoint.signals", .type = PL_KEY_TEXTS, .offset = AT(checkpoint.signals), .def = "[USR1, TERM, INT]", .help = "signals that checkpoint and stop the run"},
    TEXT("report.dir", report.dir, "directory of metrics.jsonl; none: no file"),
    PERIOD("report.every", report.every, "50 steps", "how often a step is reported"),
    BOOL("report.timeline", report.timeline, "false", "what each thread does when, for chrome://tracing or Perfetto: timeline-STEP.json in report.dir"),
    INT("report.timeline_steps", report.timeline_steps, "100", 1, 1e6, "of so many steps from the start of the run"),
    TEXT("debug.fault", debug.fault, "faults for trials: POINT[@rank=R][@step=S]:fail|exit|kill|hang|delay=MS"),
    DOUBLE("debug.compute_ms", debug.compute_ms, "0", 0, 1e6, "not 0: training sleeps so long instead of forward and backward, its gradients are 0; evaluations compute"),
    DOUBLE("debug.delay.ms", debug.delay.ms, "0", 0, 1e6, "ranks sleep in each step: fixed, the mean of exponential, the least of pareto"),
    {.name = "debug.delay.rank", .type = PL_KEY_INTS, .offset = AT(debug.delay.rank), .min = 0, .max = 1e6, .help = "only this rank, or these; without it all"},
    DOUBLE("debug.delay.probability", debug.delay.probability, "1", 0, 1, "of a rank's sleep in a step"),
    CHOICE("debug.delay.distribution", debug.delay.distribution, "fixed", "fixed|exponential|pareto", "of the sleep, drawn for each rank and step from train.seed"),
    DOUBLE("debug.delay.shape", debug.delay.shape, "1.5", 0.1, 100, "pareto: P(longer than x) = (ms / x) ^ shape"),
    {.name = NULL}};

/* In the order of the choices above. */
const char *pl_job_sync_name(const struct pl_job *j)
{
    static const char *const names[] = {"allreduce", "local_sgd", "downpour", "sandblaster"};
    return names[j->sync.kind];
}

const char *pl_job_precision_name(const struct pl_job *j)
{
    static const char *const names[] = {[PL_FP32] = "fp32", [PL_TF32] = "tf32", [PL_BF16] = "bf16"};
    return names[j->train.precision];
}

const char *pl_job_transport_name(const struct pl_job *j)
{
    static const char *const names[] = {"auto", "mpi", "tcp", "verbs", "nccl"};
    return names[j->exchange.transport];
}

const char *pl_job_algorithm_name(const struct pl_job *j)
{
    static const char *const names[] = {"auto", "native", "ring", "halving_doubling", "tree"};
    return names[j->exchange.algorithm];
}

const char *pl_job_compress_name(const struct pl_job *j)
{
    static const char *const names[] = {"none", "bf16", "one_bit", "top_k"};
    return names[j->exchange.compress];
}

static const char *type_name(const struct pl_key *k)
{
    static const char *const names[] = {[PL_KEY_INT] = "integer", [PL_KEY_DOUBLE] = "number", [PL_KEY_BOOL] = "true|false",
                                        [PL_KEY_TEXT] = "text", [PL_KEY_PERIOD] = "period", [PL_KEY_MS] = "time", [PL_KEY_BYTES] = "size",
                                        [PL_KEY_INTS] = "integers", [PL_KEY_DOUBLES] = "numbers", [PL_KEY_TEXTS] = "texts"};
    return k->type == PL_KEY_CHOICE ? k->choices : names[k->type];
}

void pl_job_print_keys(const char *prefix, const struct pl_key *keys)
{
    for (; keys->name; keys++)
        printf("%s%-28s %-12s  %s%s%s%s\n", prefix, keys->name, type_name(keys), keys->help, keys->def ? " (" : "", keys->def ? keys->def : "",
               keys->def ? ")" : "");
}

pl_status pl_job_print_value(const struct pl_job *j, const char *key)
{
    const char *near = pl_key_nearest(pl_job_keys, key);
    for (const struct pl_key *k = pl_job_keys; k->name; k++)
        if (strcmp(k->name, key) == 0) {
            struct pl_text t = {0};
            pl_value_text(k, j, &t);
            puts(t.s ? t.s : "");
            pl_text_free(&t);
            return PL_OK;
        }
    return pl_error(PL_ERR_USAGE, "job", "there is no key %s%s%s%s", key, near ? "\ndid you mean " : "", near ? near : "", near ? "?" : "");
}

static bool is_one_of(const char *const *names, size_t n, const char *key)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(key, names[i]) == 0)
            return true;
    return false;
}

/* What a run learns depends on it, and nothing else tells of it when it changes, as of the global batch. */
static bool shapes_learning(const char *key)
{
    static const char *const rooms[] = {"train.", "optimizer.", "sync.", "data.train.", "exchange.compress"};
    static const char *const not[] = {"train.threads", "train.precision", "train.seed", "train.init", "train.eval_every", "data.train.file",
                                      "data.train.files", "data.train.cache", "train.batch", "train.global_batch", "sync.suspect_after", "sync.lost_after"};
    bool yes = false;
    for (size_t i = 0; i < sizeof rooms / sizeof *rooms; i++)
        yes = yes || strncmp(key, rooms[i], strlen(rooms[i])) == 0;
    return yes && !is_one_of(not, sizeof not / sizeof *not, key);
}

static void value_of(const struct pl_job *j, const struct pl_key *k, struct pl_text *t)
{
    pl_value_text(k, j, t);
    if (k->def || pl_job_given(j, k->name) || !t->s || strtod(t->s, NULL) > 0) /* a sync.kind may have a default of its own */
        return;
    pl_text_free(t);
    pl_text_add(t, "not given");
}

void pl_job_changes(const struct pl_job *was, const struct pl_job *is, struct pl_text *out)
{
    for (const struct pl_key *k = pl_job_keys; k->name; k++) {
        struct pl_text before = {0}, now = {0};
        value_of(was, k, &before);
        value_of(is, k, &now);
        if (before.s && now.s && strcmp(before.s, now.s) != 0 && shapes_learning(k->name))
            pl_text_add(out, "%s%s %s (was %s)", out->s ? ", " : "", k->name, now.s, before.s);
        pl_text_free(&before);
        pl_text_free(&now);
    }
}

void pl_job_common(const struct pl_job *j, struct pl_text *out)
{
    static const char *const own[] = {"data.threads", "data.train.cache", "data.test.cache", "train.threads", "exchange.interface", "device.memory_limit",
                                      "debug.fault", "debug.delay.ms", "debug.delay.rank", "debug.delay.probability", "debug.delay.distribution", "debug.delay.shape"};
    static const char *const paths[] = {"data.train.file", "data.train.files", "data.test.file", "data.test.files", "data.stage", "train.init",
                                        "exchange.table", "checkpoint.dir", "checkpoint.resume", "report.dir"};
    for (const struct pl_key *k = pl_job_keys; k->name; k++) {
        struct pl_text value = {0};
        if (is_one_of(own, sizeof own / sizeof *own, k->name))
            continue;
        pl_value_text(k, j, &value);
        bool none = !value.s || strcmp(value.s, "none") == 0 || strcmp(value.s, "[]") == 0;
        pl_text_add(out, "%s=%s\n", k->name, none ? "none" : is_one_of(paths, sizeof paths / sizeof *paths, k->name) ? "(a path)" : value.s);
        pl_text_free(&value);
    }
    pl_node_emit(pl_node_get(j->root, "model"), 0, out);
}
