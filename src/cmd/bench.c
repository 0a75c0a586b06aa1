/* paceline bench allreduce: bench_allreduce.c; bench nullstep: bench_nullstep.c.
 * paceline bench layers JOB.yaml: where the time of a step goes, layer by layer.
 * paceline bench data JOB.yaml: how fast the loader alone makes batches of data.train.
 * paceline bench step JOB.yaml: speed of a training step on made-up data, beside the machine's own
 * matrix product measured between the runs with the same threads, or the device's (bench_peak.c). Work counted: 2 per multiply-add
 * of convolutions and dense layers, times 3 for training. */
#include "cmd/bench_peak.h"
#include "cmd/cmd.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MOST_ROUNDS 100

extern const struct pl_command pl_cmd_bench;

struct made_up { struct pl_batch batch; };

static pl_status made_up_deal(void *arg, int64_t global_batch, int rank, int ranks, int64_t epoch, int64_t position)
{
    (void)arg, (void)global_batch, (void)rank, (void)ranks, (void)epoch, (void)position; /* noise for everybody */
    return PL_OK;
}

static pl_status made_up_next(void *arg, struct pl_batch **out)
{
    *out = &((struct made_up *)arg)->batch;
    return PL_OK;
}

static void made_up_release(void *arg, struct pl_batch *b) { (void)arg, (void)b; }

/* One batch of noise, used in every step. */
static pl_status made_up_make(struct made_up *m, const struct pl_trainer *t)
{
    const struct pl_job_input *in = &t->job->input;
    int64_t row = 1, classes = pl_graph_classes(t->graph), entries = pl_graph_entries(t->graph), wide = pl_input_labels(in);
    struct pl_rng r = pl_rng_make(1, (uint64_t)t->world->rank, 0, 0);
    for (int d = 0; d < in->dims; d++)
        row *= in->dim[d];
    PL_TRY(pl_batch_make(&m->batch, t->batch, row, (size_t)wide * sizeof(float), NULL));
    m->batch.rows = t->batch;
    if (entries == 0)
        pl_rng_normals(&r, m->batch.data, t->batch * row);
    for (int64_t i = 0; i < t->batch * row && entries > 0; i++)
        m->batch.data[i] = (float)pl_rng_below(&r, (uint64_t)entries);
    for (int64_t i = 0; i < t->batch * wide && classes > 0; i++)
        ((int32_t *)m->batch.label)[i] = (int32_t)pl_rng_below(&r, (uint64_t)classes);
    for (int64_t i = 0; i < t->batch; i++)
        m->batch.index[i] = i;
    return PL_OK;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double pl_bench_median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, by_value);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

struct figures {
    int rounds;
    double step_ms[MOST_ROUNDS], exposed_ms[MOST_ROUNDS], busy_ms[MOST_ROUNDS], update_ms[MOST_ROUNDS], peak[MOST_ROUNDS];
    double sent_mb;   /* a step, by this rank, with algorithms of our own */
    double memory_mb; /* the most that a rank held, mean of all ranks */
};

/* The most memory this process held so far. (getrusage would count what it was started from.) */
static double held_mb(void)
{
    char line[256];
    long kib = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %ld", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return (double)kib / 1024;
}

/* After warm-up, where the memory of training is read, rounds of steps and peak in turn, so that both see
 * the same machine. */
static pl_status measure(struct pl_trainer *t, int steps, struct figures *f, struct pl_bench_peak **p)
{
    struct pl_step_result r;
    double warm;
    for (int i = 0; i < 3; i++)
        PL_TRY(pl_trainer_step(t, &r));
    f->memory_mb = held_mb();
    PL_TRY(pl_trainer_sum(t, &f->memory_mb, 1));
    f->memory_mb /= t->world->ranks;
    PL_TRY(pl_bench_peak_create(t->table, t->backend, t->job->train.precision == PL_BF16, p));
    PL_TRY(pl_bench_peak_measure(*p, &warm));
    for (int round = 0; round < f->rounds; round++) {
        PL_TRY(pl_bench_peak_measure(*p, &f->peak[round]));
        double ms = 0, exposed = 0, busy = 0, update = 0, sent = 0;
        PL_TRY(pl_trainer_sum(t, &ms, 1)); /* start together */
        for (int i = 0; i < steps; i++) {
            PL_TRY(pl_trainer_step(t, &r));
            sent += r.exchange.sent_mb;
            ms += r.step_ms, exposed += r.exchange.exposed_ms, busy += r.exchange.busy_ms, update += r.update_ms;
        }
        f->step_ms[round] = ms / steps;
        f->exposed_ms[round] = exposed / steps;
        f->busy_ms[round] = busy / steps;
        f->update_ms[round] = update / steps;
        f->sent_mb = sent / steps;
    }
    return PL_OK;
}

static void print_figures(const struct pl_trainer *t, struct figures *f)
{
    int n = f->rounds;
    double step = pl_bench_median(f->step_ms, n), exposed = pl_bench_median(f->exposed_ms, n);
    double busy = pl_bench_median(f->busy_ms, n), peak = pl_bench_median(f->peak, n);
    double flops = 3 * pl_graph_flops(t->graph, t->batch) * t->peers->ranks / t->world->ranks; /* of a rank, the mean of a replica's */
    printf("{\"model\": \"%s\", \"ranks\": %d, \"threads\": %d, \"batch\": %lld, \"step_ms\": %.3f, "
           "\"samples_per_s\": %.1f, \"gflops_a_rank\": %.2f, \"peak_gflops\": %.2f, \"share_of_peak\": %.3f, "
           "\"exchange_ms\": %.3f, \"exchange_share\": %.3f, \"exchange_whole_ms\": %.3f, \"update_ms\": %.3f, \"sent_mb\": %.4f, \"memory_mb\": %.1f}\n",
           t->job->model_name, t->world->ranks, t->threads, (long long)t->batch, step,
           (double)t->micro_global / step * 1000, flops / step / 1e6, peak, flops / step / 1e6 / peak, exposed,
           exposed / step, busy, pl_bench_median(f->update_ms, n), f->sent_mb, f->memory_mb);
}

static void print_layers(const struct pl_trainer *t, const double *ms, int64_t steps, double step_ms)
{
    const struct pl_layer *l;
    int n = pl_graph_layers(t->graph, &l);
    double all = 0;
    printf("%-24s %-14s %-20s %10s %10s %9s %9s\n", "layer", "kind", "output of a sample", "forward ms", "backward", "GFLOP/s", "share");
    for (int i = 0; i < n; i++) {
        double f = ms[2 * i] / (double)steps, b = ms[2 * i + 1] / (double)steps, work = pl_layer_flops(&l[i], t->batch);
        char shape[96] = "";
        for (int d = 1, at = 0; d < l[i].y.dims; d++)
            at += snprintf(shape + at, sizeof shape - (size_t)at, "%s%lld", d > 1 ? " x " : "", (long long)l[i].y.dim[d]);
        all += f + b;
        printf("%-24s %-14s %-20s %10.3f %10.3f %9.2f %9.4f\n", l[i].name, l[i].kind->name, shape, f, b,
               work > 0 ? 3 * work / (f + b) / 1e6 : 0, (f + b) / step_ms);
    }
    printf("%-24s %-14s %-20s %10.3f %10.3f  of the step's %.3f ms\n", "the rest", "", "", step_ms - all, 0.0, step_ms);
}

/* Times of the layers, summed over rounds of steps. */
static pl_status bench_layers(struct pl_trainer *t, struct pl_world *w, int rounds, int64_t steps)
{
    const struct pl_layer *l;
    struct pl_step_result r;
    double step_ms = 0, *ms = pl_alloc(2 * (size_t)pl_graph_layers(t->graph, &l) * sizeof *ms, "times of layers");
    PL_TRY(pl_world_agree(w, ms ? PL_OK : PL_ERR_MEMORY));
    pl_status s = PL_OK;
    for (int64_t i = -3; s == PL_OK && i < rounds * steps; i++) {
        if (i == 0)
            pl_graph_time_layers(t->graph, ms);
        s = pl_trainer_step(t, &r);
        step_ms += i < 0 ? 0 : r.step_ms;
    }
    if (s < 0)
        pl_world_abort(w, s);
    if (w->rank == 0)
        print_layers(t, ms, rounds * steps, step_ms / (double)(rounds * steps));
    pl_graph_time_layers(t->graph, NULL);
    pl_free(ms);
    return s;
}

pl_status pl_bench_count(const char *name, const char *text, long otherwise, long most, int *out)
{
    char *end = "";
    long n = text ? strtol(text, &end, 10) : otherwise;
    if (n < 1 || n > most || *end)
        return pl_error(PL_ERR_USAGE, "bench", "--%s %s: an integer, 1 to %ld", name, text, most);
    *out = (int)n;
    return PL_OK;
}

static pl_status bench(struct pl_trainer *t, struct pl_world *w, const struct pl_args *args, bool by_layer)
{
    struct made_up m = {0};
    struct figures f = {0};
    struct pl_bench_peak *p = NULL;
    int steps = 0;
    pl_status s = made_up_make(&m, t);
    if (s == PL_OK && by_layer && pl_trainer_split(t))
        s = pl_error(PL_ERR_USAGE, "bench", "layers: a rank of a split model has some of them only, or parts\ngive split.pipeline=1 split.tensor=1");
    if (s == PL_OK)
        s = pl_bench_count("steps", args->option_value[0], 10, 1000000, &steps);
    if (s == PL_OK)
        s = pl_bench_count("rounds", args->option_value[1], 5, MOST_ROUNDS, &f.rounds);
    s = pl_world_agree(w, s);
    pl_trainer_attach(t, &(struct pl_source){.deal = made_up_deal, .next = made_up_next, .next_ready = made_up_next, .release = made_up_release, .arg = &m,
                                             .epoch_samples = INT64_MAX, .batch = &m.batch, .batches = 1});
    t->steps_per_epoch = t->total_steps = INT32_MAX;
    if (s == PL_OK) {
        s = by_layer ? bench_layers(t, w, f.rounds, steps) : measure(t, steps, &f, &p);
        if (s < 0)
            pl_world_abort(w, s);
        if (w->rank == 0 && !by_layer)
            print_figures(t, &f);
    }
    pl_trainer_detach(t);
    pl_batch_free(&m.batch);
    pl_bench_peak_destroy(p);
    return s;
}

/* ---- data: the loader alone ----------------------------------------------------------------------- */

struct reading {
    struct pl_dataset *data;
    struct pl_loader *loader;
    int batches;
    double *ms; /* [batches] from one batch to the next */
    struct { double ms, rows, read_ms, decode_ms, read_mb; } sum;
};

static pl_status open_reading(struct reading *r, const struct pl_world *w, const struct pl_job *job, const struct pl_args *args)
{
    int steps = 0, rounds = 0;
    PL_TRY(pl_bench_count("steps", args->option_value[0], 10, 1000000, &steps));
    PL_TRY(pl_bench_count("rounds", args->option_value[1], 5, MOST_ROUNDS, &rounds));
    if (!pl_job_set_given(&job->train_set))
        return pl_error(PL_ERR_USAGE, "job", "data.train.file, or files, is missing");
    r->batches = steps * rounds;
    r->ms = pl_alloc((size_t)r->batches * sizeof *r->ms, "times of batches");
    if (!r->ms)
        return PL_ERR_MEMORY;
    struct pl_loader_options o = {.global_batch = pl_train_micro_global(job, w->ranks), .rank = w->rank, .ranks = w->ranks, .seed = (uint64_t)job->train.seed,
                                  .shuffle = job->train_set.shuffle, .augment = true, .depth = 4, .threads = (int)job->data.threads};
    PL_TRY(pl_dataset_open(&job->train_set, &job->input, true, &r->data));
    return pl_loader_create(r->data, &o, &r->loader);
}

/* Takes every batch and gives it back at once. */
static pl_status read_batches(struct reading *r)
{
    double begin = pl_now_ms(), before = begin;
    PL_TRY(pl_loader_start(r->loader, 0, 0, false));
    for (int i = 0; i < r->batches; i++) {
        struct pl_batch *b;
        PL_TRY(pl_loader_next(r->loader, &b));
        r->sum.rows += (double)b->rows;
        r->sum.read_ms += b->read_ms;
        r->sum.decode_ms += b->decode_ms;
        r->sum.read_mb += (double)b->read_bytes / 1e6;
        pl_loader_release(r->loader, b);
        double now = pl_now_ms();
        r->ms[i] = now - before;
        before = now;
    }
    r->sum.ms = pl_now_ms() - begin;
    return PL_OK;
}

/* The slowest rank's time, everybody's samples. */
static pl_status print_reading(struct reading *r, struct pl_world *w, const struct pl_job *job)
{
    double (*all)[5] = pl_alloc((size_t)w->ranks * sizeof *all, "the ranks' times"), slowest = 0, v[5] = {0};
    PL_TRY(pl_world_agree(w, all ? PL_OK : PL_ERR_MEMORY));
    pl_status s = pl_world_allgather(w, &r->sum, sizeof r->sum, all);
    for (int k = 0; s == PL_OK && k < w->ranks; k++) {
        slowest = all[k][0] > slowest ? all[k][0] : slowest;
        for (int i = 1; i < 5; i++)
            v[i] += all[k][i];
    }
    if (s == PL_OK && w->rank == 0)
        printf("{\"model\": \"%s\", \"ranks\": %d, \"threads\": %d, \"batch\": %lld, \"batches\": %d, \"samples_per_s\": %.1f, \"batch_ms\": %.3f, "
               "\"read_mb_per_s\": %.1f, \"read_ms_a_sample\": %.4f, \"decode_ms_a_sample\": %.4f}\n",
               job->model_name, w->ranks, (int)job->data.threads, (long long)pl_loader_capacity(r->loader), r->batches, v[1] / slowest * 1000,
               pl_bench_median(r->ms, r->batches), v[4] / slowest * 1000, v[2] / v[1], v[3] / v[1]);
    pl_free(all);
    return s;
}

static pl_status bench_data(struct pl_world *w, const struct pl_job *job, const struct pl_args *args)
{
    struct reading r = {0};
    const struct pl_job_set *set = &job->train_set;
    pl_status s = pl_stage(w, job->data.stage, &set, 1);
    if (s == PL_OK)
        s = pl_world_agree(w, open_reading(&r, w, job, args));
    if (s == PL_OK)
        s = pl_world_agree(w, read_batches(&r));
    if (s == PL_OK)
        s = print_reading(&r, w, job);
    pl_loader_destroy(r.loader);
    pl_dataset_close(r.data);
    pl_free(r.ms);
    return s;
}

/* ---- the command ---------------------------------------------------------------------------------- */

static pl_status bench_training(struct pl_world *w, struct pl_job *job, const struct pl_args *args, bool by_layer)
{
    struct pl_trainer t;
    if (job->sync.backup_workers > 0)
        return pl_world_agree(w, pl_error(PL_ERR_USAGE, "bench", "steps with sync.backup_workers are measured by bench/stragglers.sh, in real runs"));
    if (job->sync.kind == PL_SYNC_DOWNPOUR)
        return pl_world_agree(w, pl_error(PL_ERR_USAGE, "bench", "sync.kind downpour has no steps that all ranks make\ngive sync.kind=allreduce"));
    if (job->sync.kind == PL_SYNC_SANDBLASTER)
        return pl_world_agree(w, pl_error(PL_ERR_USAGE, "bench", "a step of sync.kind sandblaster is over a whole training set\ngive sync.kind=allreduce, or train with it"));
    PL_TRY(pl_trainer_open(&t, w, job, true));
    job->optimizer.lr = 0; /* noise cannot be learnt, only diverge */
    pl_graph_init(t.graph, (uint64_t)job->train.seed);
    pl_status s = pl_world_agree(w, pl_trainer_settle(&t));
    if (s == PL_OK)
        s = bench(&t, w, args, by_layer);
    pl_trainer_close(&t);
    return s;
}

/* What needs no job. */
static int run_exchange(pl_status (*run)(struct pl_world *w, int argc, char **argv), int argc, char **argv)
{
    struct pl_world w;
    pl_status s = pl_world_start(NULL, NULL, &w);
    return s < 0 ? pl_cmd_not_started(&w, s) : pl_world_finish(&w, run(&w, argc, argv));
}

static int run_bench(int argc, char **argv)
{
    static const char *const options[] = {"steps", "rounds", NULL};
    struct pl_world w;
    struct pl_args args;
    struct pl_job *job;
    int code = 0;
    const char *what = argc > 0 ? argv[0] : "";
    bool data = strcmp(what, "data") == 0, by_layer = strcmp(what, "layers") == 0;
    if (strcmp(what, "allreduce") == 0)
        return run_exchange(pl_bench_allreduce, argc - 1, argv + 1);
    if (strcmp(what, "nullstep") == 0)
        return run_exchange(pl_bench_nullstep, argc - 1, argv + 1);
    if (!data && !by_layer && strcmp(what, "step") != 0) {
        fprintf(stderr, "paceline: bench knows: step, layers, data, allreduce, nullstep\nusage: %s\n", pl_cmd_bench.usage);
        return pl_exit_code(PL_ERR_USAGE);
    }
    if (pl_cmd_start(argc - 1, argv + 1, options, &w, &args, &job, &code) < 0)
        return code;
    pl_status s = data ? bench_data(&w, job, &args) : bench_training(&w, job, &args, by_layer);
    pl_job_destroy(job);
    pl_args_free(&args);
    return pl_world_finish(&w, s);
}

const struct pl_command pl_cmd_bench = {
    .name = "bench",
    .usage = "paceline bench step|layers|data JOB.yaml [--steps N] [--rounds R] [key=value ...]\n"
             "  paceline bench allreduce [--from BYTES] [--to BYTES] [--transport T] [--algorithm A] [--tune=FILE] ...\n"
             "  paceline bench nullstep [--case scalar|100MB|1GB|sparse|all] [--steps N] [--transport T] [--algorithm A] [--json FILE] ...",
    .help = "Times training steps of the job's model on made-up data: medians of R rounds (default 5) of N\n"
            "steps (default 10), each beside the machine's own matrix product (sgemm 2048, same threads).\n"
            "Prints one JSON object. memory_mb: the most that a rank held in training. bench/step does it for all models.\n"
            "`layers` instead shows where the time of these steps goes, layer by layer.\n"
            "`data` takes R x N batches of data.train from the loader and trains nothing: samples a second over all ranks,\n"
            "the median time of a batch, what was read from the file, and a sample's share of the loader's time for reading\n"
            "(with inflating) and for decoding (values, crops). A small set stays in memory: data.train.cache=none reads on.\n"
            "`allreduce` adds up messages of 4 bytes to 64 MB (--from, --to) over the ranks, by every way there is here, or\n"
            "by --transport shared|mpi|tcp|verbs and --algorithm, each beside plain MPI_Allreduce in turn: medians of --rounds (5).\n"
            "limit: share of what memory copies, or a link of --line Gbit/s, let through. thread ms: through the exchange\n"
            "thread, as in training. Above 1: a message that fits the caches. --interface, --channels: as exchange.*. Sizes rise by 4.\n"
            "--tune=FILE (with the =, or Open MPI's mpirun takes it for its own): writes the fastest as an exchange.table.\n"
            "`nullstep` reads parameters, computes nothing, agrees on a gradient as training does (--transport, --algorithm,\n"
            "--interface, --channels: as exchange.*) and updates: one number, 100 MB, 1 GB, or 32 random rows of 16 KB that each rank\n"
            "touches of --rows (65536: 1 GB, on every rank); steps a second, or as many as --steps. --json FILE: a line a case, appended.",
    .run = run_bench,
};
