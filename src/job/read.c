/* A job file, its model and the command line's overrides to a checked struct pl_job.
 * Paths that are read count from the folder of the file they stand in, on the command line from the
 * working directory; paths that are written from the working directory. */
#include "job/read.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- overrides ---------------------------------------------------------------------------------- */

/* What stands on the command line replaces what stands in the file, the other way to say it too. */
static const char *const either_or[][2] = {{"train.epochs", "train.steps"},
                                              {"train.batch", "train.global_batch"},
                                              {"data.train.file", "data.train.files"},
                                              {"data.test.file", "data.test.files"}};

static struct pl_node *descend(struct pl_node *root, const char *path, bool make, const char **last)
{
    struct pl_node *at = root;
    for (const char *dot; (dot = strchr(path, '.')); path = dot + 1) {
        char *word = pl_strdupf("%.*s", (int)(dot - path), path);
        struct pl_node *next = word ? pl_node_get(at, word) : NULL;
        if (word && make && (!next || next->kind != PL_MAP)) {
            next = pl_node_new(PL_MAP, "command line");
            if (next && pl_node_put(at, word, next) < 0)
                next = NULL;
        }
        pl_free(word);
        if (!next)
            return NULL;
        at = next;
    }
    *last = path;
    return at;
}

/* Line 0: from the command line, whatever its own lines are. */
static void clear_lines(struct pl_node *n)
{
    n->line = 0;
    for (int i = 0; i < n->n; i++) {
        n->key_line[i] = 0;
        clear_lines(n->child[i]);
    }
}

static pl_status override(struct pl_node *root, const char *text)
{
    const char *equals = strchr(text, '='), *last;
    struct pl_node *value = NULL, *map;
    if (!equals || equals == text)
        return pl_error(PL_ERR_USAGE, "job", "command line: \"%s\" is not key=value", text);
    if (strncmp(text, "model.", 6) == 0)
        return pl_error(PL_ERR_USAGE, "job", "command line, %s: a model is not overridden in parts; give model=FILE", text);
    char *path = pl_strdupf("%.*s", (int)(equals - text), text), *where = pl_strdupf("command line, %s", text);
    pl_status s = pl_node_parse(equals + 1, strlen(equals + 1), where, &value);
    for (size_t i = 0; s == PL_OK && i < sizeof either_or / sizeof *either_or; i++)
        for (int side = 0; side < 2; side++)
            if (strcmp(path, either_or[i][side]) == 0 && (map = descend(root, either_or[i][1 - side], false, &last))) {
                struct pl_node *other = pl_node_get(map, last);
                if (other && other->line > 0) /* from the file */
                    pl_node_remove(map, last);
            }
    if (s == PL_OK) {
        clear_lines(value);
        if (value->kind == PL_MAP && value->n == 0 && equals[1] == '\0') { /* "key=" is an empty text */
            value->kind = PL_SCALAR;
            value->text = pl_strdup("");
        }
        map = descend(root, path, true, &last);
        s = map ? pl_node_put(map, last, value) : PL_ERR_MEMORY;
    }
    pl_free(path);
    pl_free(where);
    return s;
}

/* ---- the walk through the tree ------------------------------------------------------------------ */

static const struct pl_key *find_key(const char *path)
{
    for (const struct pl_key *k = pl_job_keys; k->name; k++)
        if (strcmp(k->name, path) == 0)
            return k;
    return NULL;
}

static bool is_group(const char *path)
{
    size_t n = strlen(path);
    for (const struct pl_key *k = pl_job_keys; k->name; k++)
        if (strncmp(k->name, path, n) == 0 && k->name[n] == '.')
            return true;
    for (int i = 0; pl_job_later[i]; i++)
        if (strncmp(pl_job_later[i], path, n) == 0 && pl_job_later[i][n] == '.')
            return true;
    return false;
}

/* The first part of a key that is nearest to it; NULL: none is near. */
static const char *nearest_section(const char *path)
{
    static char best[64];
    char name[64], given[64];
    int least = 3;
    snprintf(given, sizeof given, "%.*s", (int)strcspn(path, "."), path);
    for (const struct pl_key *k = pl_job_keys; k->name; k++) {
        snprintf(name, sizeof name, "%.*s", (int)strcspn(k->name, "."), k->name);
        int d = pl_text_distance(given, name);
        if (d > 0 && d < least) {
            least = d;
            snprintf(best, sizeof best, "%s", name);
        }
    }
    return least < 3 ? best : NULL;
}

static pl_status unknown(const struct pl_node *at, const char *path)
{
    for (int i = 0; pl_job_later[i]; i++)
        if (strcmp(pl_job_later[i], path) == 0)
            return pl_node_error(at, "%s is not in this version yet", path);
    const char *near = pl_key_nearest(pl_job_keys, path);
    if (!near)
        near = nearest_section(path);
    return pl_node_error(at, "unknown key %s%s%s%s", path, near ? "\ndid you mean " : "\nsee paceline train --help-keys",
                         near ? near : "", near ? "?" : "");
}

static pl_status walk(struct pl_job *j, const struct pl_node *map, const char *prefix)
{
    for (int i = 0; i < map->n; i++) {
        struct pl_node *child = map->child[i];
        struct pl_node at = {.file = child->file, .line = child->line ? map->key_line[i] : 0, .column = map->key_column[i]};
        if (!*prefix && strcmp(map->key[i], "model") == 0)
            continue;
        if (strchr(map->key[i], '.'))
            return pl_node_error(&at, "%s: in a file keys stand below each other: train: {steps: 100}", map->key[i]);
        char *path = pl_strdupf("%s%s%s", prefix, *prefix ? "." : "", map->key[i]);
        const struct pl_key *k = find_key(path);
        pl_status s;
        if (k) {
            s = pl_value_set(k, child, j);
            if (s == PL_OK && k->refuse && child->kind == PL_SCALAR && strcmp(child->text, k->refuse) != 0)
                s = pl_node_error(child, "%s: only %s in this version", path, k->refuse);
        } else if (is_group(path)) {
            s = child->kind == PL_MAP ? walk(j, child, path) : pl_node_error(child, "%s: wanted a map of keys, found \"%s\"", path, child->kind == PL_SCALAR ? child->text : "a list");
        } else {
            s = unknown(&at, path);
        }
        pl_free(path);
        PL_TRY(s);
    }
    return PL_OK;
}

/* ---- paths -------------------------------------------------------------------------------------- */

/* Makes a read path absolute, in the tree, so that the job's text holds wherever it is read again. */
static pl_status resolve_path(struct pl_node *n)
{
    char cwd[4096];
    if (n->kind != PL_SCALAR || !*n->text || strcmp(n->text, "none") == 0)
        return PL_OK;
    char *path = n->line > 0 ? pl_path_beside(n->file, n->text) : pl_strdup(n->text);
    if (path && path[0] != '/' && getcwd(cwd, sizeof cwd)) {
        char *full = pl_strdupf("%s/%s", cwd, path);
        pl_free(path);
        path = full;
    }
    if (!path)
        return PL_ERR_MEMORY;
    pl_free(n->text);
    n->text = path;
    return PL_OK;
}

/* A path, or each of a list. */
static pl_status resolve(struct pl_node *root, const char *key)
{
    const char *last;
    struct pl_node *map = descend(root, key, false, &last), *n = map ? pl_node_get(map, last) : NULL;
    for (int i = 0; n && n->kind == PL_LIST && i < n->n; i++)
        PL_TRY(resolve_path(n->child[i]));
    return n ? resolve_path(n) : PL_OK;
}

static pl_status load_model(struct pl_node *root)
{
    struct pl_node *n = pl_node_get(root, "model"), *model = NULL;
    char *text = NULL;
    size_t bytes = 0;
    if (!n)
        return pl_node_error(root, "model is missing: a file, or {name, input, layers} in place");
    if (n->kind == PL_MAP)
        return PL_OK;
    if (n->kind != PL_SCALAR)
        return pl_node_error(n, "model: wanted a file, or {name, input, layers} in place");
    PL_TRY(resolve(root, "model"));
    if (access(n->text, F_OK) != 0)
        return pl_node_error(n, "model: there is no file %s\na relative path counts from the folder of the job file, on the command line from the working directory", n->text);
    PL_TRY(pl_read_file(n->text, "job", PL_ERR_USAGE, &text, &bytes));
    pl_status s = pl_node_parse(text, bytes, n->text, &model);
    pl_free(text);
    PL_TRY(s);
    if (model->kind != PL_MAP) {
        s = pl_node_error(model, "a model is a map of name, input and layers");
        pl_node_free(model);
        return s;
    }
    return pl_node_put(root, "model", model);
}

bool pl_job_set_given(const struct pl_job_set *s) { return s->file || s->files.n > 0 || s->memory; }

/* ---- checks over several keys -------------------------------------------------------------------- */

static const struct pl_node *at_key(const struct pl_job *j, const char *key)
{
    const char *last;
    struct pl_node *map = descend(j->root, key, false, &last), *n = map ? pl_node_get(map, last) : NULL;
    return n ? n : j->root;
}

/* `files: none`, as with `file`. */
static void take_none_away(struct pl_texts *files)
{
    if (files->n == 1 && strcmp(files->v[0], "none") == 0) {
        pl_free(files->v[0]);
        files->n = 0;
    }
}

bool pl_job_given(const struct pl_job *j, const char *key) { return at_key(j, key) != j->root; }

static pl_status check_delay(const struct pl_job *j)
{
    if (pl_job_given(j, "debug.delay") && !pl_job_given(j, "debug.delay.ms"))
        return pl_node_error(at_key(j, "debug.delay"), "debug.delay needs ms: how long a rank sleeps");
    if (pl_job_given(j, "debug.delay.shape") && j->debug.delay.distribution != PL_DELAY_PARETO)
        return pl_node_error(at_key(j, "debug.delay.shape"), "debug.delay.shape is of distribution pareto only");
    return PL_OK;
}

static pl_status check_local_sgd(struct pl_job *j)
{
    if (j->sync.tau == 0)
        j->sync.tau = 10;
    if (strcmp(pl_job_compress_name(j), "none") != 0)
        return pl_node_error(at_key(j, "exchange.compress"), "exchange.compress is for gradients; with sync.kind local_sgd parameters are exchanged\n"
                             "a larger sync.tau sends less");
    return PL_OK;
}

static pl_status check_downpour(struct pl_job *j)
{
    j->sync.n_fetch += j->sync.n_fetch == 0;
    j->sync.n_push += j->sync.n_push == 0;
    if (j->sync.backup_workers > 0)
        return pl_node_error(at_key(j, "sync.backup_workers"), "sync.backup_workers is of allreduce and local_sgd; with sync.kind downpour nobody waits for late gradients");
    if (strcmp(pl_job_compress_name(j), "none") != 0)
        return pl_node_error(at_key(j, "exchange.compress"), "exchange.compress with sync.kind downpour is not in this version yet");
    if (j->train.accumulate > 1)
        return pl_node_error(at_key(j, "train.accumulate"), "train.accumulate with sync.kind downpour: sync.n_push sums the gradients of several micro-batches");
    if (j->optimizer.clip_norm > 0)
        return pl_node_error(at_key(j, "optimizer.clip_norm"), "optimizer.clip_norm with sync.kind downpour is not in this version yet");
    if (j->optimizer.kind == PL_LARS)
        return pl_node_error(at_key(j, "optimizer.kind"), "optimizer.kind lars needs the norms of whole tensors, with sync.kind downpour each rank has a part of them");
    if (j->sync.warmup.unit == PL_MS)
        return pl_node_error(at_key(j, "sync.warmup"), "sync.warmup is counted in steps or epochs");
    return PL_OK;
}

/* What it has no use for it would pass over without a word. */
static pl_status check_sandblaster(struct pl_job *j)
{
    const struct { bool on; const char *key, *why; } refused[] = {
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
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (refused[i].on)
            return pl_node_error(at_key(j, refused[i].key), "%s", refused[i].why);
    j->optimizer.kind = PL_SGD; /* it has no state that a checkpoint would have to keep */
    j->sync.history = j->sync.history > 0 ? j->sync.history : 10;
    j->sync.tolerance = pl_job_given(j, "sync.tolerance") ? j->sync.tolerance : 1e-6;
    return PL_OK;
}

static pl_status check_backup_workers(struct pl_job *j)
{
    if (strcmp(pl_job_compress_name(j), "none") != 0)
        return pl_node_error(at_key(j, "exchange.compress"), "exchange.compress with sync.backup_workers: what a late rank's gradient lost would be lost\n"
                             "leave one of them out");
    if (!pl_job_given(j, "sync.grace"))
        j->sync.grace_ms = -1;
    if (j->sync.lost_ms < j->sync.suspect_ms)
        return pl_node_error(at_key(j, "sync.lost_after"), "sync.lost_after is less than sync.suspect_after");
    return PL_OK;
}

/* Gradients stay on the GPUs: what needs them elsewhere cannot have them. */
static pl_status check_nccl(const struct pl_job *j)
{
    const struct { bool on; const char *key, *why; } refused[] = {
        {j->device.kind != PL_DEVICE_CUDA, "exchange.transport", "exchange.transport nccl adds up what lies on GPUs: it needs device.kind cuda"},
        {j->sync.kind != PL_SYNC_ALLREDUCE, "sync.kind", "exchange.transport nccl with this sync.kind: its ranks exchange what is in host memory\nit is of sync.kind allreduce"},
        {j->sync.backup_workers > 0, "sync.backup_workers", "exchange.transport nccl with sync.backup_workers: NCCL cannot go on without a rank"},
        {strcmp(pl_job_compress_name(j), "none") != 0, "exchange.compress", "exchange.transport nccl with exchange.compress: NCCL sends gradients as they are"},
        {strcmp(pl_job_algorithm_name(j), "auto") != 0, "exchange.algorithm", "exchange.transport nccl with exchange.algorithm: NCCL chooses its own"},
        {j->exchange.table != NULL, "exchange.table", "exchange.transport nccl with exchange.table: NCCL chooses its own algorithm"},
        {pl_job_given(j, "exchange.two_level"), "exchange.two_level", "exchange.transport nccl with exchange.two_level: NCCL knows nodes by itself"},
        {pl_job_given(j, "exchange.channels"), "exchange.channels", "exchange.transport nccl with exchange.channels: they are of tcp and verbs"},
        {j->exchange.interface != NULL, "exchange.interface", "exchange.transport nccl with exchange.interface: NCCL has NCCL_SOCKET_IFNAME for that"}};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (refused[i].on)
            return pl_node_error(at_key(j, refused[i].key), "%s", refused[i].why);
    return PL_OK;
}

/* A replica is a row of ranks, of which only some know the loss, and each has its part of the parameters. */
static pl_status check_split(const struct pl_job *j)
{
    const struct { bool on; const char *key, *why; } refused[] = {
        {j->sync.kind != PL_SYNC_ALLREDUCE, "sync.kind", "split.pipeline with this sync.kind is not in this version yet\nit is of sync.kind allreduce"},
        {j->sync.backup_workers > 0, "sync.backup_workers", "split.pipeline with sync.backup_workers is not in this version yet"},
        {j->train.accumulate > 1, "train.accumulate", "train.accumulate with split.pipeline: split.microbatches cuts a batch into parts that are computed one after the other"},
        {strcmp(pl_job_compress_name(j), "none") != 0, "exchange.compress", "exchange.compress with split.pipeline is not in this version yet"},
        {strcmp(pl_job_transport_name(j), "nccl") == 0, "exchange.transport", "exchange.transport nccl with split.pipeline is not in this version yet"},
        {j->device.kind == PL_DEVICE_CUDA, "device.kind", "split.pipeline with device.kind cuda is not in this version yet"},
        {j->debug.compute_ms > 0, "debug.compute_ms", "debug.compute_ms with split.pipeline: layers hand on what they compute"},
        {j->split.at.n > 0 && j->split.at.n != j->split.pipeline - 1, "split.at", "split.at names the first layer of each rank but the first: one less than split.pipeline"}};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (refused[i].on)
            return pl_node_error(at_key(j, refused[i].key), "%s", refused[i].why);
    return PL_OK;
}

/* A replica is a row of ranks that go through the same batch, each with its part of the parameters. */
static pl_status check_tensor(const struct pl_job *j)
{
    const struct { bool on; const char *key, *why; } refused[] = {
        {j->split.pipeline > 1, "split.pipeline", "split.pipeline and split.tensor together are not in this version yet"},
        {j->sync.kind != PL_SYNC_ALLREDUCE, "sync.kind", "split.tensor with this sync.kind is not in this version yet\nit is of sync.kind allreduce"},
        {j->sync.backup_workers > 0, "sync.backup_workers", "split.tensor with sync.backup_workers is not in this version yet"},
        {j->optimizer.kind == PL_LARS, "optimizer.kind", "split.tensor with optimizer.kind lars is not in this version yet: it needs norms of whole tensors"},
        {strcmp(pl_job_compress_name(j), "none") != 0, "exchange.compress", "exchange.compress with split.tensor is not in this version yet"},
        {strcmp(pl_job_transport_name(j), "nccl") == 0, "exchange.transport", "exchange.transport nccl with split.tensor is not in this version yet"},
        {strcmp(pl_job_algorithm_name(j), "native") == 0, "exchange.algorithm", "exchange.algorithm native with split.tensor: what all ranks of a replica compute alike must be added up alike, which MPI does not promise"},
        {j->device.kind == PL_DEVICE_CUDA, "device.kind", "split.tensor with device.kind cuda is not in this version yet"},
        {j->debug.compute_ms > 0, "debug.compute_ms", "debug.compute_ms with split.tensor: the ranks of a replica hand on what they compute"}};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (refused[i].on)
            return pl_node_error(at_key(j, refused[i].key), "%s", refused[i].why);
    return PL_OK;
}

static pl_status check_reproducible(const struct pl_job *j)
{
    const char *algorithm = pl_job_algorithm_name(j);
    int64_t shards = j->train.micro_shards;
    bool by_pairs = strcmp(algorithm, "auto") == 0 || strcmp(algorithm, "tree") == 0 || strcmp(algorithm, "halving_doubling") == 0;
    const struct { bool on; const char *key, *why; } refused[] = {
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
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (refused[i].on)
            return pl_node_error(at_key(j, refused[i].key), "%s", refused[i].why);
    return PL_OK;
}

/* In the midst of a pass every rank waits for all others. */
static pl_status check_sync_bn(const struct pl_job *j)
{
    const struct { bool on; const char *key, *why; } refused[] = {
        {j->sync.kind != PL_SYNC_ALLREDUCE, "sync.kind", "train.sync_bn is of sync.kind allreduce: with others the ranks do not compute a step together"},
        {j->sync.backup_workers > 0, "sync.backup_workers", "train.sync_bn with sync.backup_workers: a late rank would hold the others up in every batch normalisation"},
        {j->split.pipeline > 1, "split.pipeline", "train.sync_bn with split.pipeline is not in this version yet"},
        {j->train.reproducible, "train.reproducible", "train.sync_bn with train.reproducible: there each of train.micro_shards is normalised by itself\nleave one of them out"},
        {j->device.kind == PL_DEVICE_CUDA, "device.kind", "train.sync_bn with device.kind cuda is not in this version yet"}};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (refused[i].on)
            return pl_node_error(at_key(j, refused[i].key), "%s", refused[i].why);
    return PL_OK;
}

/* The ranks of a node update together what all of them compute by. */
static pl_status check_shared_optimizer(const struct pl_job *j)
{
    const struct { bool on; const char *key, *why; } refused[] = {
        {j->sync.kind != PL_SYNC_ALLREDUCE, "sync.kind", "split.optimizer is of sync.kind allreduce: with others the ranks of a node have different parameters, or do not update together"},
        {j->sync.backup_workers > 0, "sync.backup_workers", "split.optimizer with sync.backup_workers: a late rank would still compute by parameters that the others change"},
        {j->split.tensor > 1, "split.tensor", "split.optimizer with split.tensor is not in this version yet"},
        {j->split.pipeline > 1, "split.pipeline", "split.optimizer with split.pipeline is not in this version yet"},
        {j->train.reproducible, "train.reproducible", "split.optimizer with train.reproducible is not in this version yet"},
        {j->exchange.two_level == PL_TWO_LEVEL_NEVER, "exchange.two_level", "split.optimizer needs memory that the ranks of a node share; exchange.two_level is never"},
        {j->device.kind == PL_DEVICE_CUDA, "device.kind", "split.optimizer with device.kind cuda is not in this version yet"}};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (refused[i].on)
            return pl_node_error(at_key(j, refused[i].key), "%s", refused[i].why);
    return PL_OK;
}

static pl_status check(struct pl_job *j)
{
    take_none_away(&j->train_set.files);
    take_none_away(&j->test_set.files);
    take_none_away(&j->split.at);
    j->train_set.stage = j->test_set.stage = j->data.stage;
    if (j->train.epochs > 0 && j->train.steps > 0)
        return pl_node_error(at_key(j, "train.steps"), "train.epochs and train.steps are both given; one is enough");
    if (j->train.batch > 0 && j->train.global_batch > 0)
        return pl_node_error(at_key(j, "train.global_batch"), "train.batch and train.global_batch are both given; one is enough");
    if (j->train_set.file && j->train_set.files.n > 0)
        return pl_node_error(at_key(j, "data.train.files"), "data.train.file and data.train.files are both given; one is enough");
    if (j->test_set.file && j->test_set.files.n > 0)
        return pl_node_error(at_key(j, "data.test.files"), "data.test.file and data.test.files are both given; one is enough");
    if (j->train.epochs <= 0 && j->train.steps <= 0)
        return pl_node_error(at_key(j, "train"), "train.epochs or train.steps is missing");
    if (j->train.batch <= 0 && j->train.global_batch <= 0)
        j->train.batch = 64;
    if (j->optimizer.schedule.kind == PL_STEP && j->optimizer.schedule.every <= 0)
        return pl_node_error(at_key(j, "optimizer.schedule"), "schedule step needs every: so many steps");
    if (j->optimizer.schedule.kind == PL_MULTISTEP && j->optimizer.schedule.at.n == 0)
        return pl_node_error(at_key(j, "optimizer.schedule"), "schedule multistep needs at: [steps]");
    if (j->optimizer.warmup.unit == PL_MS)
        return pl_node_error(at_key(j, "optimizer.warmup"), "optimizer.warmup is counted in steps or epochs");
    if (j->train.eval_every.unit == PL_MS)
        return pl_node_error(at_key(j, "train.eval_every"), "train.eval_every is counted in steps or epochs");
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
        return pl_node_error(at_key(j, "report.timeline"), "report.timeline needs report.dir, where it is written");
    return check_delay(j);
}

/* ---- the whole ---------------------------------------------------------------------------------- */

static pl_status fill(struct pl_job *j)
{
    static const char *const read_paths[] = {"data.train.file", "data.train.files", "data.test.file", "data.test.files", "train.init", "exchange.table"};
    if (j->root->kind != PL_MAP)
        return pl_node_error(j->root, "a job file is a map of keys");
    PL_TRY(load_model(j->root));
    for (size_t i = 0; i < sizeof read_paths / sizeof *read_paths; i++)
        PL_TRY(resolve(j->root, read_paths[i]));
    for (const struct pl_key *k = pl_job_keys; k->name; k++)
        PL_TRY(pl_value_default(k, j));
    PL_TRY(walk(j, j->root, ""));
    PL_TRY(pl_job_read_model(j, pl_node_get(j->root, "model")));
    PL_TRY(check(j));
    struct pl_text text = {0};
    pl_node_emit(j->root, 0, &text);
    j->text = text.s;
    return j->text ? PL_OK : PL_ERR_MEMORY;
}

/* A model's file by itself is a job without data: to inspect it, to time it. */
static pl_status wrap_model(struct pl_node **root)
{
    if ((*root)->kind != PL_MAP || !pl_node_get(*root, "layers") || pl_node_get(*root, "model"))
        return PL_OK;
    struct pl_node *job = pl_node_new(PL_MAP, (*root)->file), *train = pl_node_new(PL_MAP, (*root)->file), *steps = pl_node_new(PL_SCALAR, (*root)->file);
    if (!job || !train || !steps || !(steps->text = pl_strdup("1")))
        return PL_ERR_MEMORY;
    PL_TRY(pl_node_put(train, "steps", steps));
    PL_TRY(pl_node_put(job, "train", train));
    PL_TRY(pl_node_put(job, "model", *root));
    *root = job;
    return PL_OK;
}

static pl_status build(const char *text, size_t bytes, const char *name, int overrides, char *const *over, struct pl_job **out)
{
    struct pl_job *j = pl_alloc(sizeof *j, "a job");
    if (!j)
        return PL_ERR_MEMORY;
    j->path = pl_strdup(name);
    pl_status s = pl_node_parse(text, bytes, name, &j->root);
    if (s == PL_OK)
        s = wrap_model(&j->root);
    for (int i = 0; s == PL_OK && i < overrides; i++)
        s = j->root->kind == PL_MAP ? override(j->root, over[i]) : PL_OK;
    if (s == PL_OK)
        s = fill(j);
    if (s < 0)
        pl_job_destroy(j);
    else
        *out = j;
    return s;
}

pl_status pl_job_read(const char *path, int overrides, char *const *over, struct pl_job **out)
{
    char *text = NULL;
    size_t bytes = 0;
    PL_TRY(pl_read_file(path, "job", PL_ERR_USAGE, &text, &bytes));
    pl_status s = build(text, bytes, path, overrides, over, out);
    pl_free(text);
    return s;
}

pl_status pl_job_parse(const char *text, const char *name, struct pl_job **out)
{
    return build(text, strlen(text), name, 0, NULL, out);
}

void pl_job_destroy(struct pl_job *j)
{
    if (!j)
        return;
    for (const struct pl_key *k = pl_job_keys; k->name; k++)
        pl_value_free(k, j);
    for (int i = 0; i < j->layers; i++) {
        pl_free(j->layer[i].name);
        pl_free(j->layer[i].kind);
        for (int f = 0; f < j->layer[i].from.n; f++)
            pl_free(j->layer[i].from.v[f]);
    }
    pl_free(j->layer);
    pl_free(j->model_name);
    pl_free(j->path);
    pl_free(j->text);
    pl_node_free(j->root);
    pl_free(j);
}
