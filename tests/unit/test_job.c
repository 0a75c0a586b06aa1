/* The job file: places in messages, "did you mean", types and ranges, overrides, either-or keys, paths,
 * what is refused because it is not built, and the text that goes into checkpoints. */
#include "job/job.h"
#include "layer/layer.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#define MODEL "model:\n  name: m\n  input: {data: [3], label: int}\n  layers:\n    - {name: d, kind: dense, units: 2}\n    - {name: loss, kind: softmax_loss}\n"
#define DATA "data: {train: {file: a.h5}}\n"
#define TRAIN "train: {steps: 10}\n"

static struct pl_job *parsed(const char *text)
{
    struct pl_job *job = NULL;
    pl_error_clear();
    if (pl_job_parse(text, "/x/job.yaml", &job) != PL_OK)
        fail_msg("refused: %s\n%s", pl_error_text(), text);
    return job;
}

static void refused(const char *text, const char *message)
{
    struct pl_job *job = NULL;
    pl_error_clear();
    pl_status s = pl_job_parse(text, "job.yaml", &job);
    if (s != PL_ERR_USAGE)
        fail_msg("status %d, wanted a refusal with \"%s\" of\n%s", s, message, text);
    if (!strstr(pl_error_text(), message))
        fail_msg("wanted \"%s\"\n   found \"%s\"", message, pl_error_text());
    pl_error_clear();
}

static void test_places(void **state)
{
    (void)state;
    refused(MODEL DATA "train: {steps: 10, sed: 3}\n", "job: job.yaml:8:20: unknown key train.sed\ndid you mean train.seed?");
    refused(MODEL DATA "trian: {steps: 10}\n", "job.yaml:8:1: unknown key trian");
    refused(MODEL DATA "train:\n  steps: ten\n", "job.yaml:9:10: train.steps: wanted an integer, at least 1, found \"ten\"");
    refused(MODEL DATA "train: {steps: 0}\n", "job.yaml:8:16: train.steps: wanted an integer, at least 1");
    refused(MODEL DATA TRAIN "optimizer: {kind: sgd, lr: 1e30}\n", "optimizer.lr: wanted a number, from 0 to 1e+18, found \"1e30\"");
    refused(MODEL DATA "train: {steps: [1]}\n", "train.steps: wanted an integer, at least 1, found \"a list\"");
    refused(MODEL DATA "train: 7\n", "train: wanted a map of keys, found \"7\"");
    refused(MODEL DATA "train: {steps: 10, steps: 11}\n", "job.yaml:8:20: steps stands here twice");
    refused(MODEL DATA "train: {steps: 10\n", "not YAML");
    refused("- a\n", "job.yaml:1:1: a job file is a map of keys");
    refused("", "model is missing");
    refused(DATA TRAIN, "model is missing");
    refused("model: {name: m, layers: []}\n" DATA TRAIN, "the model needs input");
    refused("model: {name: m, input: {data: [3]}, layers: []}\n" DATA TRAIN, "the model needs layers");
    refused("model: {name: m, input: {data: [3]}, layer: []}\n" DATA TRAIN, "unknown key layer of a model");
    refused("model: {name: m, input: {data: [0]}, layers: []}\n" DATA TRAIN, "input.data: wanted");
    refused("model: {name: m, input: {data: [3]}, layers: [{kind: relu}]}\n" DATA TRAIN, "a layer needs a name");
    refused("model: {name: m, input: {data: [3]}, layers: [{name: a, kind: relu}, {name: a, kind: relu}]}\n" DATA TRAIN, "two layers are named a");
    refused("model: {name: m, input: {data: [3]}, layers: [{name: a/b, kind: relu}]}\n" DATA TRAIN, "layer name \"a/b\"");
    refused("model: {name: m, input: {data: [3]}, layers: [{name: ., kind: relu}]}\n" DATA TRAIN, "layer name \".\"");
    refused("model: {name: m, input: {data: [3], label: float}, layers: [{name: a, kind: relu}]}\n" DATA TRAIN, "input.label: int for a class");
    refused(MODEL DATA "train: {steps: 5}\ntrain.steps: 6\n", "job.yaml:9:1: train.steps: in a file keys stand below each other");
    refused(MODEL DATA TRAIN "---\ntrain: {steps: 6}\n", "a second YAML document");
    refused(MODEL DATA TRAIN "...\n}\n", "not YAML");
    refused(MODEL "data: {train: {file: a.h5, files: [b.h5]}}\n" TRAIN, "data.train.file and data.train.files are both given");
    refused(MODEL "data: {test: {files: [b.h5, '']}}\n" TRAIN, "data.test.files: wanted a text or a list of texts, found \"\"");
    refused("a: &a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\n"
            "e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n", "more than 100000 entries");
}

static void test_choices(void **state)
{
    (void)state;
    refused(MODEL DATA TRAIN "optimizer: {kind: adamax}\n", "optimizer.kind: wanted one of sgd|momentum|");
    refused(MODEL DATA TRAIN "exchange: {transport: nccl}\n", "exchange.transport nccl adds up what lies on GPUs: it needs device.kind cuda");
    refused(MODEL DATA TRAIN "device: {kind: cuda}\nexchange: {transport: nccl, compress: bf16}\n", "exchange.transport nccl with exchange.compress: NCCL sends gradients as they are");
    refused(MODEL DATA TRAIN "device: {kind: cuda}\nexchange: {transport: nccl, algorithm: ring}\n", "exchange.transport nccl with exchange.algorithm: NCCL chooses its own");
    refused(MODEL DATA TRAIN "device: {kind: cuda}\nexchange: {transport: nccl, two_level: never}\n", "exchange.transport nccl with exchange.two_level");
    refused(MODEL DATA TRAIN "device: {kind: cuda}\nexchange: {transport: nccl, channels: 4}\n", "exchange.transport nccl with exchange.channels");
    refused(MODEL DATA TRAIN "device: {kind: cuda}\nexchange: {transport: nccl}\nsync: {backup_workers: 1}\n", "NCCL cannot go on without a rank");
    refused(MODEL DATA TRAIN "device: {kind: cuda}\nexchange: {transport: nccl}\nsync: {kind: local_sgd}\n", "it is of sync.kind allreduce");
    refused(MODEL DATA TRAIN "exchange: {compress: zip}\n", "exchange.compress: wanted one of none|bf16|one_bit|top_k");
    refused(MODEL DATA TRAIN "split: {optimizer: true}\n", "split.optimizer: wanted one of none|node");
    refused(MODEL DATA TRAIN "split: {optimizer: node}\nsync: {kind: local_sgd}\n", "split.optimizer is of sync.kind allreduce");
    refused(MODEL DATA TRAIN "split: {optimizer: node}\nsync: {backup_workers: 1}\n", "split.optimizer with sync.backup_workers");
    refused(MODEL DATA TRAIN "split: {optimizer: node, tensor: 2}\n", "split.optimizer with split.tensor");
    refused(MODEL DATA TRAIN "split: {optimizer: node, pipeline: 2}\n", "split.optimizer with split.pipeline");
    refused(MODEL DATA TRAIN "split: {optimizer: node}\nexchange: {two_level: never}\n", "split.optimizer needs memory that the ranks of a node share");
    refused(MODEL DATA TRAIN "split: {optimizer: node}\ndevice: {kind: cuda}\n", "split.optimizer with device.kind cuda");
    refused(MODEL DATA "train: {steps: 1, global_batch: 48, reproducible: true}\nsplit: {optimizer: node}\n", "split.optimizer with train.reproducible");
    refused(MODEL DATA TRAIN "device: {memory_limit: 1}\n", "device.memory_limit: wanted a size such as 500 MB, 8 GB, 16 GiB or none, found \"1\"");
    refused(MODEL DATA TRAIN "device: {memory_limit: 0 GB}\n", "device.memory_limit: wanted a size");
    refused(MODEL DATA TRAIN "device: {memory_limit: 0.9 MB}\n", "device.memory_limit: wanted a size");
    refused(MODEL DATA TRAIN "device: {memory_limit: 1e12 GB}\n", "device.memory_limit: wanted a size");
    refused(MODEL DATA TRAIN "device: {memory_limit: nan GB}\n", "device.memory_limit: wanted a size");
    refused(MODEL DATA TRAIN "device: {memory_limit: 3 GBit}\n", "device.memory_limit: wanted a size");
    refused(MODEL DATA TRAIN "device: {memory_limit: -3 GB}\n", "device.memory_limit: wanted a size");
    refused(MODEL DATA TRAIN "split: {tensor: 0}\n", "split.tensor: wanted an integer");
    refused(MODEL DATA TRAIN "split: {tensor: 2, pipeline: 2}\n", "split.pipeline and split.tensor together");
    refused(MODEL DATA TRAIN "split: {tensor: 2}\nsync: {kind: local_sgd}\n", "split.tensor with this sync.kind");
    refused(MODEL DATA TRAIN "split: {tensor: 2}\nsync: {backup_workers: 1}\n", "split.tensor with sync.backup_workers");
    refused(MODEL DATA TRAIN "split: {tensor: 2}\nexchange: {compress: bf16}\n", "exchange.compress with split.tensor");
    refused(MODEL DATA TRAIN "split: {tensor: 2}\ndevice: {kind: cuda}\n", "split.tensor with device.kind cuda");
    refused(MODEL DATA TRAIN "split: {tensor: 2}\ndebug: {compute_ms: 3}\n", "debug.compute_ms with split.tensor");
    refused(MODEL DATA "train: {steps: 1, global_batch: 48, reproducible: true}\nsplit: {tensor: 2}\n", "split.tensor with train.reproducible");
    refused(MODEL DATA TRAIN "split: {pipeline: 0}\n", "split.pipeline: wanted an integer");
    refused(MODEL DATA TRAIN "split: {pipeline: 2, at: [d, loss]}\n", "one less than split.pipeline");
    refused(MODEL DATA TRAIN "split: {at: d}\n", "one less than split.pipeline");
    refused(MODEL DATA TRAIN "split: {pipeline: 2}\nsync: {kind: local_sgd}\n", "split.pipeline with this sync.kind");
    refused(MODEL DATA TRAIN "split: {pipeline: 2}\nsync: {backup_workers: 1}\n", "split.pipeline with sync.backup_workers");
    refused(MODEL DATA "train: {steps: 1, accumulate: 2}\nsplit: {pipeline: 2}\n", "train.accumulate with split.pipeline");
    refused(MODEL DATA TRAIN "split: {pipeline: 2}\nexchange: {compress: bf16}\n", "exchange.compress with split.pipeline");
    refused(MODEL DATA TRAIN "split: {pipeline: 2}\ndevice: {kind: cuda}\n", "split.pipeline with device.kind cuda");
    refused(MODEL DATA "train: {steps: 1, sync_bn: true}\nsync: {kind: local_sgd}\n", "train.sync_bn is of sync.kind allreduce");
    refused(MODEL DATA "train: {steps: 1, sync_bn: true}\nsync: {kind: downpour}\n", "train.sync_bn is of sync.kind allreduce");
    refused(MODEL DATA "train: {steps: 1, sync_bn: true}\nsync: {backup_workers: 1}\n", "train.sync_bn with sync.backup_workers");
    refused(MODEL DATA "train: {steps: 1, sync_bn: true}\nsplit: {pipeline: 2}\n", "train.sync_bn with split.pipeline");
    refused(MODEL DATA "train: {steps: 1, sync_bn: true, global_batch: 48, reproducible: true}\n", "train.sync_bn with train.reproducible");
    refused(MODEL DATA "train: {steps: 1, sync_bn: true}\ndevice: {kind: cuda}\n", "train.sync_bn with device.kind cuda");
    refused(MODEL DATA "train: {steps: 1, global_batch: 48, reproducible: true, micro_shards: 12}\n", "train.micro_shards is a power of two");
    refused(MODEL DATA "train: {steps: 1, global_batch: 48, reproducible: true, micro_shards: 32}\n", "no multiple of train.micro_shards");
    refused(MODEL DATA "train: {steps: 1, global_batch: 48, reproducible: true}\nsync: {kind: local_sgd}\n", "train.reproducible is of sync.kind allreduce");
    refused(MODEL DATA "train: {steps: 1, global_batch: 48, reproducible: true}\nexchange: {compress: bf16}\n", "exchange.compress with train.reproducible");
    refused(MODEL DATA "train: {steps: 1, global_batch: 48, reproducible: true}\nsplit: {pipeline: 2}\n", "split.pipeline with train.reproducible");
    refused(MODEL DATA TRAIN "split: {pipeline: 2}\ndebug: {compute_ms: 3}\n", "debug.compute_ms with split.pipeline");
    refused(MODEL DATA TRAIN "sync: {kind: sandblaster, backup_workers: 1}\n", "hands out what a slow rank has to another");
    refused(MODEL DATA TRAIN "sync: {kind: sandblaster, history: 0}\n", "sync.history: wanted an integer");
    refused(MODEL DATA TRAIN "sync: {kind: sandblaster}\nexchange: {compress: bf16}\n", "exchange.compress with sync.kind sandblaster");
    refused(MODEL DATA TRAIN "sync: {kind: sandblaster}\nexchange: {algorithm: ring}\n", "exchange.algorithm with sync.kind sandblaster");
    refused(MODEL DATA "train: {steps: 1, accumulate: 2}\nsync: {kind: sandblaster}\n", "train.accumulate with sync.kind sandblaster");
    refused(MODEL DATA "train: {steps: 1, global_batch: 8}\nsync: {kind: sandblaster}\n", "train.global_batch with sync.kind sandblaster");
    refused(MODEL DATA TRAIN "sync: {kind: sandblaster}\noptimizer: {clip_norm: 1}\n", "optimizer.clip_norm with sync.kind sandblaster");
    refused(MODEL DATA TRAIN "sync: {kind: sandblaster}\noptimizer: {kind: momentum}\n", "L-BFGS takes its place");
    refused(MODEL DATA TRAIN "sync: {kind: sandblaster}\noptimizer: {schedule: {kind: cosine}}\n", "optimizer.schedule with sync.kind sandblaster");
    refused(MODEL DATA TRAIN "sync: {kind: sandblaster}\noptimizer: {warmup: 3}\n", "optimizer.warmup with sync.kind sandblaster");
    refused(MODEL DATA TRAIN "sync: {kind: sandblaster}\ndebug: {compute_ms: 3}\n", "no way down by gradients of 0");
    refused(MODEL "data: {train: {file: a.h5, augment: {flip: true}}}\n" TRAIN "sync: {kind: sandblaster}\n", "augment.flip with sync.kind sandblaster");
    refused(MODEL "data: {train: {file: a.h5, augment: {crop: 20}}}\n" TRAIN "sync: {kind: sandblaster}\n", "augment.crop with sync.kind sandblaster");
    refused(MODEL DATA TRAIN "sync: {kind: downpour, backup_workers: 1}\n", "sync.backup_workers is of allreduce and local_sgd");
    refused(MODEL DATA TRAIN "sync: {kind: downpour, n_push: 0}\n", "sync.n_push: wanted an integer, at least 1");
    refused(MODEL DATA TRAIN "sync: {kind: downpour, warmup: 10 min}\n", "sync.warmup is counted in steps or epochs");
    refused(MODEL DATA TRAIN "sync: {kind: downpour}\nexchange: {compress: top_k}\n", "exchange.compress with sync.kind downpour");
    refused(MODEL DATA TRAIN "sync: {kind: downpour}\noptimizer: {kind: lars}\n", "lars needs the norms of whole tensors");
    refused(MODEL DATA TRAIN "sync: {kind: downpour}\noptimizer: {clip_norm: 1}\n", "optimizer.clip_norm with sync.kind downpour");
    refused(MODEL DATA "train: {steps: 1, accumulate: 2}\nsync: {kind: downpour}\n", "sync.n_push sums the gradients of several micro-batches");
    refused(MODEL DATA TRAIN "sync: {kind: local_sgd, tau: 0}\n", "sync.tau: wanted an integer, at least 1");
    refused(MODEL DATA TRAIN "sync: {kind: local_sgd, tau: 5}\nexchange: {compress: top_k}\n", "exchange.compress is for gradients; with sync.kind local_sgd");
    refused(MODEL DATA TRAIN "sync: {backup_workers: 1}\nexchange: {compress: bf16}\n", "exchange.compress with sync.backup_workers");
    refused(MODEL DATA TRAIN "sync: {backup_workers: 1, suspect_after: 2 s, lost_after: 1 s}\n", "sync.lost_after is less than sync.suspect_after");
    refused(MODEL DATA "train: {steps: 1, epochs: 1}\n", "train.epochs and train.steps are both given");
    refused(MODEL DATA "train: {steps: 1, batch: 1, global_batch: 1}\n", "train.batch and train.global_batch are both given");
    refused(MODEL DATA "train: {batch: 1}\n", "train.epochs or train.steps is missing");
    refused(MODEL DATA "train: {steps: 1, eval_every: 10 min}\n", "counted in steps or epochs");
    refused(MODEL DATA TRAIN "checkpoint: {every: 5 parsecs}\n", "wanted a period such as 50 steps");
    refused(MODEL "data: {train: {file: a.h5, mean: [1, x]}}\n" TRAIN, "data.train.mean: wanted a number or a list");
}

static void test_values(void **state)
{
    (void)state;
    struct pl_job *j = parsed(MODEL "data: {train: {file: ../a.h5, mean: 0.5, std: [1, 2.5e-1, 4], shuffle: off}, test: {file: /t.h5, limit: 1e3}}\n"
                              "train: {epochs: 2.5, global_batch: 96, eval_every: 20 steps, stop: {metric: loss, below: 0.5}}\n"
                              "optimizer: {kind: adam, lr: 1e-3, warmup: 1.5 epochs, schedule: {kind: multistep, at: [10, 20]}}\n"
                              "checkpoint: {every: 2 h, signals: USR2}\nexchange: {timeout: 500 ms}\n");
    assert_string_equal(j->train_set.file, "/x/../a.h5");
    assert_string_equal(j->test_set.file, "/t.h5");
    assert_int_equal(j->test_set.limit, 1000);
    assert_int_equal(j->train_set.mean.n, 1);
    assert_int_equal(j->train_set.std.n, 3);
    assert_true(j->train_set.std.v[1] == 0.25 && !j->train_set.shuffle && !j->test_set.shuffle);
    assert_true(j->train.epochs == 2.5 && j->train.steps == 0 && j->train.batch == 0 && j->train.global_batch == 96);
    assert_true(j->train.stop_on && j->train.stop_metric == 2 && j->train.stop_below == 0.5);
    assert_int_equal(j->train.eval_every.unit, PL_STEPS);
    assert_int_equal(j->optimizer.kind, PL_ADAM);
    assert_true(j->optimizer.warmup.unit == PL_EPOCHS && j->optimizer.warmup.n == 1.5);
    assert_true(j->optimizer.schedule.at.n == 2 && j->optimizer.schedule.at.v[1] == 20);
    assert_true(j->checkpoint.every.unit == PL_MS && j->checkpoint.every.n == 7.2e6);
    assert_int_equal(j->checkpoint.signals.n, 1);
    assert_string_equal(j->checkpoint.signals.v[0], "USR2");
    assert_true(j->exchange.timeout_ms == 500);
    /* defaults */
    assert_true(j->optimizer.beta2 == 0.999 && j->train.seed == 1 && j->checkpoint.keep == 3 && j->checkpoint.background);
    assert_true(j->train_set.scale == 1 && strcmp(j->train_set.data, "data") == 0);
    pl_job_destroy(j);
    j = parsed(MODEL DATA TRAIN);
    assert_true(j->train.batch == 64 && !j->train.stop_on && j->checkpoint.signals.n == 3);
    pl_job_destroy(j);
}

static char *write_file(const char *dir, const char *name, const char *text)
{
    char *path = pl_strdupf("%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
    return path;
}

/* A path in a file counts from that file, on the command line from the working directory. An override
 * replaces the file's other way to say it. */
static void test_overrides(void **state)
{
    (void)state;
    const char *dir = getenv("PL_TMPDIR") ? getenv("PL_TMPDIR") : ".";
    char *sub = pl_strdupf("%s/models", dir), cwd[4096];
    mkdir(sub, 0777);
    assert_non_null(getcwd(cwd, sizeof cwd));
    char *model = write_file(sub, "m.yaml", "name: other\ninput: {data: [3], label: int}\nlayers:\n  - {name: d, kind: dense, units: 2}\n  - {name: loss, kind: softmax_loss}\n");
    char *path = write_file(sub, "job.yaml", "model: m.yaml\ndata: {train: {file: a.h5}}\ntrain: {epochs: 3, batch: 8}\ncheckpoint: {dir: runs/x}\n");
    char *over[] = {"train.steps=7", "train.global_batch=32", "data.test.file=b.h5", "optimizer.schedule.kind=cosine", "report.dir=out", "train.stop.above=0.5"};
    struct pl_job *j;
    pl_error_clear();
    if (pl_job_read(path, 6, over, &j) != PL_OK)
        fail_msg("%s", pl_error_text());
    char *wanted = pl_strdupf("%s/a.h5", sub), *beside = pl_strdupf("%s/b.h5", cwd);
    assert_string_equal(j->model_name, "other");
    assert_string_equal(j->train_set.file, wanted);
    assert_string_equal(j->test_set.file, beside);
    assert_string_equal(j->checkpoint.dir, "runs/x");
    assert_string_equal(j->report.dir, "out");
    assert_true(j->train.epochs == 0 && j->train.steps == 7 && j->train.batch == 0 && j->train.global_batch == 32 && j->train.stop_on);

    /* The text that goes into a checkpoint says the same, model and overrides included, from anywhere. */
    struct pl_job *again;
    if (pl_job_parse(j->text, "checkpoint", &again) != PL_OK)
        fail_msg("%s\n%s", pl_error_text(), j->text);
    assert_string_equal(again->text, j->text);
    assert_string_equal(again->train_set.file, wanted);
    assert_string_equal(again->model_name, "other");
    assert_int_equal(again->layers, 2);
    assert_int_equal(again->optimizer.schedule.kind, PL_COSINE);
    pl_job_destroy(again);
    pl_job_destroy(j);

    char *without[] = {"checkpoint.dir=none", "train.init=none", "data.test.file=none"};
    assert_int_equal(pl_job_read(path, 3, without, &j), PL_OK);
    assert_true(!j->checkpoint.dir && !j->train.init && !j->test_set.file);
    pl_job_destroy(j);

    char *files[] = {"data.train.files=[c.h5, 'd/*.h5']", "data.test.files=none"};
    char *first = pl_strdupf("%s/c.h5", cwd), *second = pl_strdupf("%s/d/*.h5", cwd);
    assert_int_equal(pl_job_read(path, 2, files, &j), PL_OK);
    assert_null(j->train_set.file); /* what the command line says replaces the other way to say it */
    assert_int_equal(j->train_set.files.n, 2);
    assert_string_equal(j->train_set.files.v[0], first);
    assert_string_equal(j->train_set.files.v[1], second);
    assert_false(pl_job_set_given(&j->test_set));
    pl_job_destroy(j);
    pl_free(first);
    pl_free(second);

    char *map[] = {"data.train={file: sub/c.h5, scale: 0.5}"};
    char *below = pl_strdupf("%s/sub/c.h5", cwd);
    assert_int_equal(pl_job_read(path, 1, map, &j), PL_OK);
    assert_string_equal(j->train_set.file, below);
    pl_free(below);
    pl_job_destroy(j);
    assert_int_equal(pl_job_read(model, 0, NULL, &j), PL_OK); /* a model alone */
    assert_string_equal(j->model_name, "other");
    assert_null(j->train_set.file);
    pl_job_destroy(j);

    static char *const bad[][2] = {{"model.layers.d.units=3", "a model is not overridden in parts"},
                                   {"checkpoint.dir=", "checkpoint.dir: wanted a text that is not empty"},
                                   {"train.stepz=7", "job: command line, train.stepz=7: unknown key train.stepz\ndid you mean train.steps?"},
                                   {"train.steps", "\"train.steps\" is not key=value"},
                                   {"=3", "is not key=value"},
                                   {"train.batch=abc", "train.batch: wanted an integer"},
                                   {"model=nowhere.yaml", "nowhere.yaml"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char *one[] = {bad[i][0]};
        pl_error_clear();
        assert_int_equal(pl_job_read(path, 1, one, &j), PL_ERR_USAGE);
        if (!strstr(pl_error_text(), bad[i][1]))
            fail_msg("wanted \"%s\", found \"%s\"", bad[i][1], pl_error_text());
    }
    char *both[] = {"train.steps=7", "train.epochs=1"};
    pl_error_clear();
    assert_int_equal(pl_job_read(path, 2, both, &j), PL_ERR_USAGE);
    pl_error_clear();
    pl_free(wanted);
    pl_free(beside);
    pl_free(model);
    pl_free(path);
    pl_free(sub);
}

/* The tables themselves: names once, a meaning for each, defaults that their own type takes. */
static void check_table(const struct pl_key *keys, const char *what)
{
    for (const struct pl_key *k = keys; k && k->name; k++) {
        if (!k->help || !*k->help)
            fail_msg("%s %s has no meaning", what, k->name);
        for (const struct pl_key *other = keys; other != k; other++)
            if (strcmp(other->name, k->name) == 0)
                fail_msg("%s %s stands twice", what, k->name);
    }
}

static void test_tables(void **state)
{
    (void)state;
    check_table(pl_job_keys, "key");
    for (const struct pl_layer_kind *const *l = pl_layer_list(); *l; l++)
        check_table((*l)->keys, (*l)->name);
}

static bool have_in_common(const char *a, const char *b)
{
    struct pl_text of_a = {0}, of_b = {0};
    struct pl_job *first = parsed(a), *second = parsed(b);
    pl_job_common(first, &of_a);
    pl_job_common(second, &of_b);
    bool same = strcmp(of_a.s, of_b.s) == 0;
    pl_text_free(&of_a);
    pl_text_free(&of_b);
    pl_job_destroy(first);
    pl_job_destroy(second);
    return same;
}

static void test_common(void **state)
{
    (void)state;
    static const char first[] = MODEL DATA TRAIN;
    assert_true(have_in_common(first, "# a comment\n" TRAIN MODEL "data: {train: {file: b/a.h5, cache: none}}\n"));
    assert_true(have_in_common(first, MODEL DATA "train: {steps: 10, threads: 3, seed: 1}\nexchange: {interface: lo}\n"));
    assert_true(have_in_common(MODEL DATA TRAIN "checkpoint: {dir: a}\n", MODEL DATA TRAIN "checkpoint: {dir: b}\n"));
    assert_false(have_in_common(first, MODEL DATA TRAIN "checkpoint: {dir: b}\n"));
    assert_false(have_in_common(first, MODEL "data: {train: {files: [a.h5]}}\n" TRAIN));
    assert_false(have_in_common(first, MODEL DATA "train: {steps: 11}\n"));
    assert_false(have_in_common(first, MODEL DATA TRAIN "optimizer: {lr: 0.0100001}\n"));
    assert_false(have_in_common(first, MODEL DATA TRAIN "exchange: {bucket_mb: 5}\n"));
    assert_false(have_in_common(first, "model:\n  name: m\n  input: {data: [3], label: int}\n  layers:\n    - {name: d, kind: dense, units: 3}\n"
                                       "    - {name: loss, kind: softmax_loss}\n" DATA TRAIN));
}

/* Damaged text never crashes: every prefix of a job, and every job with one byte changed. */
static void test_damaged(void **state)
{
    (void)state;
    const char *text = MODEL "data: {train: {file: a.h5}, test: {file: b.h5}}\n" "train: {epochs: 2.5, batch: 8, stop: {metric: loss, below: 0.5}}\noptimizer: {schedule: {kind: multistep, at: [1, 2]}}\n";
    size_t n = strlen(text);
    struct pl_rng r = pl_rng_make(5, 0, 0, 0);
    int taken = 0;
    for (size_t i = 0; i < 2 * n; i++) {
        char *broken = pl_strdup(text);
        if (i < n)
            broken[i] = '\0';
        else
            broken[i - n] = (char)(1 + pl_rng_below(&r, 255));
        struct pl_job *j = NULL;
        pl_error_clear();
        if (pl_job_parse(broken, "job.yaml", &j) == PL_OK) {
            taken++;
            pl_job_destroy(j);
        } else {
            assert_non_null(pl_error_text());
        }
        pl_free(broken);
    }
    if (taken == 0 || taken >= (int)n)
        fail_msg("%d of %zu damaged jobs were taken", taken, 2 * n);
    pl_error_clear();
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_places), cmocka_unit_test(test_choices), cmocka_unit_test(test_values),
                                       cmocka_unit_test(test_overrides), cmocka_unit_test(test_tables), cmocka_unit_test(test_common), cmocka_unit_test(test_damaged)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
