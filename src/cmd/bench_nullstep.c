/* paceline bench nullstep: how many steps a second the exchange of parameters and gradients alone allows, after the
 * synchronous-replica micro-benchmark of Abadi et al., TensorFlow: A System for Large-Scale Machine Learning, OSDI
 * 2016, section 6.2. A null step reads the parameters, computes nothing, agrees on the gradient as training does and
 * writes the update, plain SGD: of one number, of 100 MB, of 1 GB, or of 32 random rows a rank of a large embedding.
 * Of the embedding only touched rows travel: every rank has a slot for its rows in a small gradient that is 0 but there,
 * so that the sum gathers all slots, at twice the bytes of a gather. Gradients are whole numbers, and the parameters
 * are checked against them at the end. */
#include "cmd/cmd.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { TOUCHED = 32, ROW_ELEMS = 4096, SLOT_ELEMS = TOUCHED * (1 + ROW_ELEMS) }; /* a slot: rows' numbers, then their gradients */
#define MOST_STEPS 100000
#define MOST_EXACT (1 << 24) /* whole numbers in float */
#define BUCKET_BYTES (4 << 20) /* exchange.bucket_mb */
#define ABOUT_MS 2000.0      /* of a case, without --steps */

struct nullstep;
struct kind {
    const char *name;
    size_t bytes; /* of parameters; 0: --rows */
    int64_t (*gradient_elems)(const struct nullstep *n);
    void (*fetch)(struct nullstep *n, int64_t step);
    pl_status (*update)(struct nullstep *n, int64_t step);
    pl_status (*check)(const struct nullstep *n, int64_t steps);
};

struct options { const char *only, *json; int steps; int64_t rows; struct pl_exchange_options exchange; };

struct nullstep {
    struct pl_world *world;
    struct options o;
    const struct kind *kind;
    struct pl_exchange *exchange;
    int64_t elems, gradient_elems;
    float *params; /* [elems], or [rows, ROW_ELEMS] */
    _Atomic uint64_t seen; /* of the parameters that were read, so that they are */
};

struct times { double fetch_ms, exchange_ms, update_ms; };

/* ---- dense: all of the parameters ----------------------------------------------------------------------------- */

static float dense_value(int rank, int64_t i) { return (float)((i * 7 + rank * 13) % 3 - 1); }

static int64_t dense_elems(const struct nullstep *n) { return n->elems; }

static void read_part(void *arg, int64_t begin, int64_t end)
{
    struct nullstep *n = arg;
    uint64_t seen = 0;
    for (int64_t i = begin; i < end; i++) {
        uint32_t word;
        memcpy(&word, &n->params[i], sizeof word);
        seen ^= word;
    }
    atomic_fetch_xor(&n->seen, seen);
}

static void dense_fetch(struct nullstep *n, int64_t step)
{
    (void)step;
    pl_parallel_for(n->elems, 1 << 16, read_part, n);
}

static void subtract_part(void *arg, int64_t begin, int64_t end)
{
    struct nullstep *n = arg;
    const float *sum = pl_exchange_agreed(n->exchange);
    for (int64_t i = begin; i < end; i++)
        n->params[i] -= sum[i];
}

static pl_status dense_update(struct nullstep *n, int64_t step)
{
    (void)step;
    pl_parallel_for(n->elems, 1 << 16, subtract_part, n);
    return PL_OK;
}

static pl_status wrong(const struct nullstep *n, int64_t i, double wanted)
{
    return pl_error(PL_ERR_PEER, "bench", "nullstep %s: parameter %lld of %lld is %g, not %g", n->kind->name, (long long)i,
                    (long long)n->elems, (double)n->params[i], wanted);
}

static pl_status dense_check(const struct nullstep *n, int64_t steps)
{
    for (int64_t i = 0; i < n->elems; i++) {
        float sum = 0;
        for (int r = 0; r < n->world->ranks; r++)
            sum += dense_value(r, i);
        if (n->params[i] != -(float)steps * sum)
            return wrong(n, i, -(double)steps * (double)sum);
    }
    return PL_OK;
}

/* ---- sparse: some rows of it ---------------------------------------------------------------------------------- */

static int64_t sparse_elems(const struct nullstep *n) { return (int64_t)n->world->ranks * SLOT_ELEMS; }

static struct pl_rng rows_of(int rank, int64_t step) { return pl_rng_make(1, (uint64_t)rank + 1, (uint64_t)step, 0); }

static void sparse_fetch(struct nullstep *n, int64_t step)
{
    struct pl_rng rng = rows_of(n->world->rank, step);
    float *slot = pl_exchange_gradient(n->exchange) + (int64_t)n->world->rank * SLOT_ELEMS;
    for (int k = 0; k < TOUCHED; k++) {
        int64_t row = (int64_t)pl_rng_below(&rng, (uint64_t)n->o.rows);
        read_part(n, row * ROW_ELEMS, (row + 1) * ROW_ELEMS);
        slot[k] = (float)row;
    }
}

static pl_status sparse_update(struct nullstep *n, int64_t step)
{
    for (int rank = 0; rank < n->world->ranks; rank++) {
        const float *slot = pl_exchange_agreed(n->exchange) + (int64_t)rank * SLOT_ELEMS;
        for (int k = 0; k < TOUCHED; k++) {
            const float *gradient = slot + TOUCHED + (int64_t)k * ROW_ELEMS;
            if (!(slot[k] >= 0 && slot[k] < (float)n->o.rows))
                return pl_error(PL_ERR_PEER, "bench", "nullstep sparse: row %g of %lld from rank %d in step %lld", (double)slot[k],
                                (long long)n->o.rows, rank, (long long)step);
            float *row = n->params + (int64_t)slot[k] * ROW_ELEMS;
            for (int i = 0; i < ROW_ELEMS; i++)
                row[i] -= gradient[i];
        }
    }
    return PL_OK;
}

/* Draws all rows of all ranks and steps again. */
static pl_status sparse_check(const struct nullstep *n, int64_t steps)
{
    float *touched = pl_alloc((size_t)n->o.rows * sizeof *touched, "counts of rows");
    pl_status s = touched ? PL_OK : PL_ERR_MEMORY;
    for (int64_t step = 0; s == PL_OK && step < steps; step++)
        for (int rank = 0; rank < n->world->ranks; rank++) {
            struct pl_rng rng = rows_of(rank, step);
            for (int k = 0; k < TOUCHED; k++)
                touched[pl_rng_below(&rng, (uint64_t)n->o.rows)]++;
        }
    for (int64_t i = 0; s == PL_OK && i < n->elems; i++)
        if (n->params[i] != -touched[i / ROW_ELEMS])
            s = wrong(n, i, -(double)touched[i / ROW_ELEMS]);
    pl_free(touched);
    return s;
}

static const struct kind kinds[] = {{"scalar", sizeof(float), dense_elems, dense_fetch, dense_update, dense_check},
                                    {"100MB", 100000000, dense_elems, dense_fetch, dense_update, dense_check},
                                    {"1GB", 1000000000, dense_elems, dense_fetch, dense_update, dense_check},
                                    {"sparse", 0, sparse_elems, sparse_fetch, sparse_update, sparse_check}};
enum { KINDS = sizeof kinds / sizeof *kinds };

/* ---- a case ----------------------------------------------------------------------------------------------------- */

/* In buckets from the far end, as backward hands them over. */
static pl_status agree_on_gradient(struct nullstep *n, int64_t step)
{
    struct pl_exchange_times times;
    PL_TRY(pl_exchange_begin(n->exchange, step));
    for (int64_t end = n->gradient_elems, a; end > 0; end = a) {
        a = end > BUCKET_BYTES / 4 ? end - BUCKET_BYTES / 4 : 0;
        PL_TRY(pl_exchange_ready(n->exchange, a, end));
    }
    return pl_exchange_finish(n->exchange, &times);
}

static pl_status null_step(struct nullstep *n, int64_t step, struct times *t, double *ms)
{
    double begin = pl_now_ms();
    n->kind->fetch(n, step);
    double fetched = pl_now_ms();
    PL_TRY(agree_on_gradient(n, step));
    double agreed = pl_now_ms();
    PL_TRY(n->kind->update(n, step));
    double end = pl_now_ms();
    t->fetch_ms += fetched - begin;
    t->exchange_ms += agreed - fetched;
    t->update_ms += end - agreed;
    *ms = end - begin;
    return PL_OK;
}

/* So many steps from *step on; ms: NULL, or that of each. */
static pl_status run_steps(struct nullstep *n, int count, int64_t *step, struct times *t, double *ms)
{
    double one;
    *t = (struct times){0};
    for (int i = 0; i < count; i++, ++*step) {
        PL_TRY(null_step(n, *step, t, &one));
        if (ms)
            ms[i] = one;
    }
    return PL_OK;
}

static int64_t most_steps(const struct pl_world *w) { return MOST_EXACT / w->ranks; }

/* Runs `count` steps, then says how many would take about so long: the same number on all ranks. They start together. */
static pl_status fit(struct nullstep *n, double about_ms, int64_t most, int *count, int64_t *step)
{
    struct times t;
    PL_TRY(run_steps(n, *count, step, &t, NULL));
    double ms = (t.fetch_ms + t.exchange_ms + t.update_ms) / *count;
    PL_TRY(pl_exchange_max(n->exchange, &ms, 1));
    *count = (int)fmax(3, fmin(about_ms / ms, (double)most));
    return PL_OK;
}

/* Warms up twice, to know how many steps to time. *steps: all that were made. */
static pl_status time_steps(struct nullstep *n, double *ms /* [MOST_STEPS] */, struct times *t, int *timed, int64_t *steps)
{
    int64_t most = most_steps(n->world) / 4;
    *steps = 0;
    *timed = 3;
    PL_TRY(fit(n, ABOUT_MS / 10, most < 1000 ? most : 1000, timed, steps));
    PL_TRY(fit(n, ABOUT_MS, most < MOST_STEPS ? most : MOST_STEPS, timed, steps));
    if (n->o.steps > 0)
        *timed = n->o.steps;
    return run_steps(n, *timed, steps, t, ms);
}

static void print_case(const struct nullstep *n, double *ms, const struct times *t, int steps, FILE *json)
{
    double whole = t->fetch_ms + t->exchange_ms + t->update_ms, middle = pl_bench_median(ms, steps), p99 = ms[((int64_t)steps * 99 + 99) / 100 - 1];
    printf("%-7s %6d %9.1f %7d %11.2f %11.4f %11.4f %10.4f %12.4f %10.4f  %s\n", n->kind->name, n->world->ranks, (double)n->elems * 4 / 1e6, steps,
           steps / whole * 1000, middle, p99, t->fetch_ms / steps, t->exchange_ms / steps, t->update_ms / steps, pl_exchange_algorithm(n->exchange));
    fflush(stdout);
    if (json)
        fprintf(json, "{\"case\": \"%s\", \"ranks\": %d, \"nodes\": %d, \"transport\": \"%s\", \"algorithm\": \"%s\", \"parameters_mb\": %.3f, \"gradient_mb\": %.3f, "
                "\"steps\": %d, \"steps_per_s\": %.3f, \"step_ms\": %.4f, \"p99_ms\": %.4f, \"fetch_ms\": %.4f, \"exchange_ms\": %.4f, \"update_ms\": %.4f}\n",
                n->kind->name, n->world->ranks, n->world->nodes, pl_exchange_transport(n->exchange), pl_exchange_algorithm(n->exchange),
                (double)n->elems * 4 / 1e6, (double)n->gradient_elems * 4 / 1e6, steps, steps / whole * 1000, middle, p99, t->fetch_ms / steps,
                t->exchange_ms / steps, t->update_ms / steps);
}

/* What this rank sends in every step. */
static void fill_gradient(struct nullstep *n)
{
    float *gradient = pl_exchange_gradient(n->exchange);
    if (n->kind->bytes > 0)
        for (int64_t i = 0; i < n->gradient_elems; i++)
            gradient[i] = dense_value(n->world->rank, i);
    else
        for (int64_t i = TOUCHED; i < SLOT_ELEMS; i++)
            gradient[(int64_t)n->world->rank * SLOT_ELEMS + i] = 1;
}

static pl_status run_open_case(struct nullstep *n, double *ms, FILE *json)
{
    struct times t;
    int timed = 0;
    int64_t steps;
    fill_gradient(n);
    pl_status s = time_steps(n, ms, &t, &timed, &steps);
    if (s < 0)
        pl_world_abort(n->world, s);
    s = pl_world_agree(n->world, n->kind->check(n, steps));
    if (s == PL_OK && n->world->rank == 0)
        print_case(n, ms, &t, timed, json);
    return s;
}

static pl_status run_case(struct nullstep *n, FILE *json)
{
    double *ms = pl_alloc(MOST_STEPS * sizeof *ms, "times of steps");
    n->params = pl_alloc((size_t)n->elems * sizeof(float), "bench parameters");
    pl_status s = pl_world_agree(n->world, ms && n->params ? PL_OK : PL_ERR_MEMORY);
    if (s == PL_OK)
        s = pl_exchange_create(n->world, &n->o.exchange, n->gradient_elems, &n->exchange);
    if (s == PL_OK) {
        s = run_open_case(n, ms, json);
        pl_exchange_destroy(n->exchange);
    }
    pl_free(n->params);
    pl_free(ms);
    return s;
}

/* ---- all -------------------------------------------------------------------------------------------------------- */

/* Parameters, a gradient and a sum of every rank of a node. A case that does not fit is left out of all. */
static pl_status fits(struct nullstep *n, bool *out)
{
    double needed = n->world->local_ranks * ((double)n->elems + 2 * (double)n->gradient_elems) * 4 / 1e9, there = pl_memory_info("MemAvailable") / 1e9;
    char why[160];
    int rank, code;
    snprintf(why, sizeof why, "%s: node %s needs %.1f GB for its %d rank%s, %.1f are free", n->kind->name, n->world->host, needed, n->world->local_ranks,
             n->world->local_ranks == 1 ? "" : "s", there);
    PL_TRY(pl_world_first(n->world, needed > there, &rank, &code));
    *out = rank < 0;
    if (*out)
        return PL_OK;
    if (strcmp(n->o.only, "all") != 0)
        return pl_world_agree(n->world, needed > there ? pl_error(PL_ERR_MEMORY, "bench", "nullstep %s", why) : PL_OK);
    PL_TRY(pl_world_broadcast(n->world, why, sizeof why, rank));
    if (n->world->rank == 0)
        printf("# left out: %s\n", why);
    return PL_OK;
}

static pl_status run_all(struct nullstep *n, FILE *json)
{
    if (n->world->rank == 0)
        printf("# %d rank%s on %d node%s, %d thread%s each\n%-7s %6s %9s %7s %11s %11s %11s %10s %12s %10s  %s\n", n->world->ranks, n->world->ranks == 1 ? "" : "s", n->world->nodes,
               n->world->nodes == 1 ? "" : "s", n->world->threads, n->world->threads == 1 ? "" : "s", "case", "ranks", "MB", "steps", "steps/s", "median ms", "p99 ms", "fetch ms", "exchange ms",
               "update ms", "by");
    for (int k = 0; k < KINDS; k++) {
        bool room;
        n->kind = &kinds[k];
        if (strcmp(n->o.only, "all") != 0 && strcmp(n->o.only, n->kind->name) != 0)
            continue;
        n->elems = n->kind->bytes > 0 ? (int64_t)(n->kind->bytes / sizeof(float)) : n->o.rows * ROW_ELEMS;
        n->gradient_elems = n->kind->gradient_elems(n);
        PL_TRY(fits(n, &room));
        if (room)
            PL_TRY(run_case(n, json));
    }
    return PL_OK;
}

/* A name that is known, whether or not these ranks have anything to exchange. */
static pl_status choose(const char *option, const char *given, const char *const *names, const char **out)
{
    struct pl_text all = {0};
    *out = given ? given : names[0];
    for (int i = 0; names[i]; i++) {
        if (strcmp(names[i], *out) == 0) {
            pl_text_free(&all);
            return PL_OK;
        }
        pl_text_add(&all, "%s%s", i ? ", " : "", names[i]);
    }
    pl_error(PL_ERR_USAGE, "bench", "--%s %s: one of %s", option, given, all.s);
    pl_text_free(&all);
    return PL_ERR_USAGE;
}

static pl_status read_options(const struct pl_args *args, const struct pl_world *w, struct options *o)
{
    static const char *const only[] = {"all", "scalar", "100MB", "1GB", "sparse", NULL}, *const transports[] = {"auto", "mpi", "tcp", "verbs", NULL},
                             *const algorithms[] = {"auto", "native", "ring", "halving_doubling", "tree", NULL};
    int channels, rows;
    if (args->file || args->overrides > 0)
        return pl_error(PL_ERR_USAGE, "bench", "nullstep takes no job file and no keys");
    PL_TRY(choose("case", args->option_value[0], only, &o->only));
    if (args->option_value[1])
        PL_TRY(pl_bench_count("steps", args->option_value[1], 0, MOST_STEPS, &o->steps));
    if (o->steps > most_steps(w) / 2)
        return pl_error(PL_ERR_USAGE, "bench", "--steps %d: at most %lld on %d ranks, or the parameters leave the whole numbers of a float",
                        o->steps, (long long)most_steps(w) / 2, w->ranks);
    PL_TRY(pl_bench_count("rows", args->option_value[2], 65536, MOST_EXACT, &rows));
    PL_TRY(pl_bench_count("channels", args->option_value[6], 2, PL_MOST_CHANNELS, &channels));
    o->rows = rows;
    o->json = args->option_value[7];
    o->exchange = (struct pl_exchange_options){.two_level = true, .network = {.interface = args->option_value[5], .channels = channels},
                                               .bucket_bytes = BUCKET_BYTES, .timeout_ms = 60000};
    PL_TRY(choose("transport", args->option_value[3], transports, &o->exchange.transport));
    return choose("algorithm", args->option_value[4], algorithms, &o->exchange.algorithm);
}

static pl_status open_json(const struct nullstep *n, FILE **out)
{
    *out = n->o.json && n->world->rank == 0 ? fopen(n->o.json, "a") : NULL;
    if (n->o.json && n->world->rank == 0 && !*out)
        return pl_error(PL_ERR_CHECKPOINT, "bench", "%s: cannot be written", n->o.json);
    return pl_pool_start(n->world->threads);
}

static pl_status close_json(const struct nullstep *n, FILE *json)
{
    bool bad = json && ferror(json);
    if (json && ((fclose(json) != 0) | bad))
        return pl_error(PL_ERR_CHECKPOINT, "bench", "%s: cannot be written", n->o.json);
    return PL_OK;
}

pl_status pl_bench_nullstep(struct pl_world *w, int argc, char **argv)
{
    static const char *const names[] = {"case", "steps", "rows", "transport", "algorithm", "interface", "channels", "json", NULL};
    struct pl_args args;
    struct nullstep n = {.world = w};
    FILE *json = NULL;
    pl_status s = pl_args_read(argc, argv, names, &args);
    if (s == PL_OK)
        s = read_options(&args, w, &n.o);
    if (s == PL_OK)
        s = open_json(&n, &json);
    s = pl_world_agree(w, s);
    if (s == PL_OK)
        s = run_all(&n, json);
    pl_status closed = pl_world_agree(w, close_json(&n, json));
    pl_pool_stop();
    pl_args_free(&args);
    return s < 0 ? s : closed;
}
