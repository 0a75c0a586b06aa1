/* paceline bench allreduce: how long it takes to add up a message over all ranks, by every way that this run could
 * choose, each beside plain MPI_Allreduce: rounds of the one and the other in turn, so that both see the same
 * machine. The sum is checked first. Latency, algorithm and bus bandwidth as NCCL's tests define them: bytes / time,
 * and that times 2 (ranks - 1) / ranks, what each rank sends and receives at least (over a link: each node). The limit is what the wires of a
 * run can carry: memory copies of all ranks at once on one node, or the rate of a link (--line, Gbit/s). */
#include "cmd/cmd.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MOST_ROUNDS 100
#define ROUND_MS 30     /* about, of each of the two that take turns */
#define COPY_BYTES (64u << 20)

struct way { const char *transport, *algorithm; };
static const struct way ways[] = {{"shared", "shared memory"}, {"mpi", "native"}, {"mpi", "ring"}, {"mpi", "halving_doubling"}, {"mpi", "tree"},
                                  {"tcp", "ring"}, {"tcp", "halving_doubling"}, {"tcp", "tree"},
                                  {"verbs", "ring"}, {"verbs", "halving_doubling"}, {"verbs", "tree"}};
enum { WAYS = sizeof ways / sizeof *ways, MOST_SIZES = 32 };
static bool is_shared(const struct way *w) { return strcmp(w->transport, "shared") == 0; }
static bool same_transport(const struct way *a, const struct way *b) { return strcmp(a->transport, b->transport) == 0; }

struct options {
    double from, to;
    int rounds;
    const char *transport, *algorithm, *tune;
    struct pl_transport_options network;
    double line_gbit; /* 0: memory is the limit */
};

struct bench {
    struct pl_world *world;
    struct options o;
    double limit_gbs; /* of the bus */
    bool works[WAYS];
    int sizes;
    size_t bytes[MOST_SIZES];
    double ms[MOST_SIZES][WAYS]; /* as in training: through the exchange thread, where there is one */
};

/* ---- one way, one size -------------------------------------------------------------------------- */

static pl_status open_way(struct bench *b, const struct way *way, size_t bytes, bool direct, struct pl_exchange **out)
{
    bool shared = is_shared(way);
    struct pl_exchange_options o = {.transport = shared ? "auto" : way->transport, .algorithm = shared ? "auto" : way->algorithm, .two_level = true,
                                    .network = b->o.network, .bucket_bytes = INFINITY, .timeout_ms = 60000, .direct = direct};
    return pl_exchange_create(b->world, &o, (int64_t)(bytes / sizeof(float)), out);
}

static float value(int rank, int64_t i) { return (float)((i * 7 + rank * 13) % 1001) - 500; }

static pl_status run_once(struct pl_exchange *x, int64_t n, int64_t step)
{
    struct pl_exchange_times times;
    PL_TRY(pl_exchange_begin(x, step));
    PL_TRY(pl_exchange_ready(x, 0, n));
    return pl_exchange_finish(x, &times);
}

static pl_status check(struct bench *b, struct pl_exchange *x, const struct way *way, int64_t n)
{
    float *mine = pl_exchange_gradient(x);
    const float *sum = pl_exchange_agreed(x);
    for (int64_t i = 0; i < n; i++)
        mine[i] = value(b->world->rank, i);
    PL_TRY(run_once(x, n, 0));
    for (int64_t i = 0; i < n; i++) {
        float wanted = 0; /* whole numbers: exact in any order */
        for (int r = 0; r < b->world->ranks; r++)
            wanted += value(r, i);
        if (sum[i] != wanted)
            return pl_error(PL_ERR_PEER, "bench", "%s %s: element %lld of %lld is %g, not %g", way->transport, way->algorithm,
                            (long long)i, (long long)n, (double)sum[i], (double)wanted);
    }
    return PL_OK;
}

static pl_status repeat(struct pl_exchange *x, int64_t n, int times, double *ms)
{
    double begin = pl_now_ms();
    for (int i = 0; i < times; i++)
        PL_TRY(run_once(x, n, i + 1));
    *ms = (pl_now_ms() - begin) / times;
    return PL_OK;
}

static pl_status repeat_mpi(struct bench *b, struct pl_exchange *x, float *out, int64_t n, int times, double *ms)
{
    double begin = pl_now_ms();
    for (int i = 0; i < times; i++)
        PL_TRY(pl_world_allreduce(b->world, pl_exchange_gradient(x), out, n));
    *ms = (pl_now_ms() - begin) / times;
    return PL_OK;
}

/* How often fits a round: the same on all ranks. */
static pl_status fit(struct bench *b, double ms, int *times)
{
    *times = ms * 2000 < ROUND_MS ? 2000 : (int)(ROUND_MS / ms);
    *times = *times < 1 ? 1 : *times;
    return pl_world_broadcast(b->world, times, sizeof *times, 0);
}

struct result { double ms, mpi_ms, ratio; };

static pl_status measure(struct bench *b, const struct way *way, struct pl_exchange *x, size_t bytes, struct result *out)
{
    int64_t n = (int64_t)(bytes / sizeof(float));
    int times, mpi_times, rounds = b->o.rounds;
    double ours[MOST_ROUNDS], mpi[MOST_ROUNDS], ratio[MOST_ROUNDS], warm;
    float *out_mpi = pl_alloc(bytes, "the sum by MPI");
    pl_status s = pl_world_agree(b->world, out_mpi ? PL_OK : PL_ERR_MEMORY);
    if (s == PL_OK)
        s = check(b, x, way, n);
    for (int i = 0; s == PL_OK && i < 2; i++)
        s = repeat(x, n, i ? 5 : 1, &warm);
    if (s == PL_OK)
        s = fit(b, warm, &times);
    for (int i = 0; s == PL_OK && i < 2; i++)
        s = repeat_mpi(b, x, out_mpi, n, i ? 5 : 1, &warm);
    if (s == PL_OK)
        s = fit(b, warm, &mpi_times);
    for (int r = 0; s == PL_OK && r < rounds; r++) {
        s = repeat(x, n, times, &ours[r]);
        if (s == PL_OK)
            s = repeat_mpi(b, x, out_mpi, n, mpi_times, &mpi[r]);
        ratio[r] = s == PL_OK ? ours[r] / mpi[r] : 0;
    }
    pl_free(out_mpi);
    if (s == PL_OK)
        *out = (struct result){pl_bench_median(ours, rounds), pl_bench_median(mpi, rounds), pl_bench_median(ratio, rounds)};
    return s;
}

/* Measures by the main thread alone, then through the exchange thread, where there is one. */
static pl_status measure_way(struct bench *b, int k, int size)
{
    size_t bytes = b->bytes[size];
    struct result r[2] = {{0}};
    bool one_thread = is_shared(&ways[k]) && b->world->nodes == 1;
    for (int threaded = 0; threaded < (one_thread ? 1 : 2); threaded++) {
        struct pl_exchange *x;
        PL_TRY(open_way(b, &ways[k], bytes, !threaded, &x));
        pl_status s = measure(b, &ways[k], x, bytes, &r[threaded]);
        if (s < 0)
            pl_world_abort(b->world, s);
        pl_exchange_destroy(x);
    }
    b->ms[size][k] = r[one_thread ? 0 : 1].ms;
    if (b->world->rank != 0)
        return PL_OK;
    int ends = b->o.line_gbit > 0 ? b->world->nodes : b->world->ranks; /* of the wires */
    double share = 2.0 * (ends - 1) / ends, gbs = (double)bytes / r[0].ms / 1e6;
    printf("%11zu  %-7s %-17s %11.4f %9.3f %9.3f %7.3f %11.4f %7.2f", bytes, ways[k].transport, ways[k].algorithm, r[0].ms, gbs, gbs * share,
           gbs * share / b->limit_gbs, r[0].mpi_ms, r[0].ratio);
    if (one_thread)
        printf("           -\n");
    else
        printf(" %11.4f\n", r[1].ms);
    fflush(stdout);
    return PL_OK;
}

/* ---- all ---------------------------------------------------------------------------------------- */

/* GB/s of a memory copy while all ranks copy. */
static pl_status measure_copy(struct bench *b)
{
    char *from = pl_alloc(COPY_BYTES, "bench memory"), *to = pl_alloc(COPY_BYTES, "bench memory");
    double ms[5], nothing = 0;
    pl_status s = pl_world_agree(b->world, from && to ? PL_OK : PL_ERR_MEMORY);
    for (int i = 0; s == PL_OK && i < 5; i++) {
        s = pl_world_broadcast(b->world, &nothing, sizeof nothing, 0);
        double begin = pl_now_ms();
        if (s == PL_OK)
            memcpy(to, from, COPY_BYTES);
        from[i] = to[i + 1];
        ms[i] = pl_now_ms() - begin;
    }
    pl_free(from);
    pl_free(to);
    b->limit_gbs = b->o.line_gbit > 0 ? b->o.line_gbit / 8 : COPY_BYTES / pl_bench_median(ms, 5) / 1e6;
    return s;
}

static bool asked_for(const char *list, const char *name) { return !list || strcmp(list, name) == 0; }

/* Which ways there are here; why not the others. */
static pl_status probe(struct bench *b)
{
    bool any = false;
    for (int k = 0; k < WAYS; k++) {
        const struct pl_transport_table *table;
        char why[1024] = "";
        if (!asked_for(b->o.transport, ways[k].transport) || !asked_for(b->o.algorithm, ways[k].algorithm))
            continue;
        if (is_shared(&ways[k])) {
            b->works[k] = b->world->most_local > 1;
        } else {
            pl_status s = pl_transport_find(b->world, ways[k].transport, &b->o.network, &table, why, sizeof why);
            b->works[k] = s == PL_OK;
            if (s < 0 && b->world->rank == 0 && (k == 0 || !same_transport(&ways[k - 1], &ways[k])))
                printf("# %s\n", pl_error_text());
            pl_error_clear();
        }
        any |= b->works[k];
    }
    return any ? PL_OK : pl_error(PL_ERR_USAGE, "bench", "none of the ways asked for works here\npaceline doctor shows what does");
}

/* From each size on the fastest way of a transport, as lines of a table. */
static pl_status write_table(struct bench *b)
{
    /* On two levels the members are the nodes, and a message is a part of the node's. */
    int columns = b->world->nodes > 1 ? b->world->least_local : 1;
    FILE *f = fopen(b->o.tune, "w");
    if (!f)
        return pl_error(PL_ERR_CHECKPOINT, "bench", "%s: cannot be written", b->o.tune);
    fprintf(f, "# TRANSPORT MEMBERS BYTES ALGORITHM, from paceline bench allreduce --tune on %s: exchange.table\n", b->world->host);
    for (int t = 0; t < WAYS; t++) {
        if (!b->works[t] || is_shared(&ways[t]) || (t > 0 && b->works[t - 1] && same_transport(&ways[t - 1], &ways[t])))
            continue;
        for (int i = 0, last = -1, lines = 0; i <= b->sizes; i++) {
            int best = -1;
            for (int k = t; i < b->sizes && k < WAYS && same_transport(&ways[k], &ways[t]); k++)
                if (b->works[k] && (best < 0 || b->ms[i][k] < b->ms[i][best]))
                    best = k;
            if (i > 0 && best != last && (i == b->sizes || lines < 14)) {
                char bytes[32] = "-";
                if (i < b->sizes)
                    snprintf(bytes, sizeof bytes, "%zu", b->bytes[i - 1] * 2 / (size_t)columns);
                fprintf(f, "%s %d %s %s\n", ways[t].transport, b->world->ranks / columns, bytes, ways[last].algorithm);
                lines++;
            }
            last = best;
        }
    }
    bool bad = ferror(f) != 0;
    if ((fclose(f) != 0) | bad)
        return pl_error(PL_ERR_CHECKPOINT, "bench", "%s: cannot be written", b->o.tune);
    return PL_OK;
}

/* Before minutes of measuring. */
static pl_status try_table(const struct bench *b)
{
    FILE *f = b->o.tune && b->world->rank == 0 ? fopen(b->o.tune, "a") : NULL;
    if (b->o.tune && b->world->rank == 0 && !f)
        return pl_error(PL_ERR_CHECKPOINT, "bench", "%s: cannot be written", b->o.tune);
    if (f)
        fclose(f);
    return PL_OK;
}

static pl_status run_all(struct bench *b)
{
    PL_TRY(pl_world_agree(b->world, try_table(b)));
    PL_TRY(pl_world_agree(b->world, probe(b)));
    PL_TRY(measure_copy(b));
    if (b->world->rank == 0) {
        printf("# %d ranks on %d node%s; limit of the bus: %.2f GB/s (%s)\n", b->world->ranks, b->world->nodes, b->world->nodes == 1 ? "" : "s",
               b->limit_gbs, b->o.line_gbit > 0 ? "the line" : "memory copies of all ranks at once");
        printf("%11s  %-7s %-17s %11s %9s %9s %7s %11s %7s %11s\n", "bytes", "by", "algorithm", "ms", "GB/s", "bus GB/s", "limit", "MPI ms", "ratio", "thread ms");
    }
    for (double n = b->o.from; n <= b->o.to && b->sizes < MOST_SIZES; n *= 4) {
        b->bytes[b->sizes] = (size_t)n / sizeof(float) * sizeof(float);
        for (int k = 0; k < WAYS; k++)
            if (b->works[k])
                PL_TRY(measure_way(b, k, b->sizes));
        b->sizes++;
    }
    pl_status s = b->o.tune && b->world->rank == 0 ? write_table(b) : PL_OK;
    return pl_world_agree(b->world, s);
}

static pl_status number(const char *name, const char *text, double otherwise, double least, double most, double *out)
{
    char *end = "";
    *out = text ? strtod(text, &end) : otherwise;
    if (*end || !(*out >= least && *out <= most))
        return pl_error(PL_ERR_USAGE, "bench", "--%s %s: a number from %g to %g", name, text ? text : "", least, most);
    return PL_OK;
}

static pl_status read_options(const struct pl_args *args, struct options *o)
{
    double rounds, channels;
    if (args->file || args->overrides > 0)
        return pl_error(PL_ERR_USAGE, "bench", "allreduce takes no job file and no keys");
    PL_TRY(number("from", args->option_value[0], 4, 4, 1e12, &o->from));
    PL_TRY(number("to", args->option_value[1], 64 << 20, 4, 1e12, &o->to));
    PL_TRY(number("rounds", args->option_value[2], 5, 1, MOST_ROUNDS, &rounds));
    PL_TRY(number("channels", args->option_value[6], 2, 1, PL_MOST_CHANNELS, &channels));
    PL_TRY(number("line", args->option_value[7], 0, 0, 1e6, &o->line_gbit));
    if (o->from > o->to)
        return pl_error(PL_ERR_USAGE, "bench", "--from %.0f is more than --to %.0f", o->from, o->to);
    o->rounds = (int)rounds;
    o->transport = args->option_value[3];
    o->algorithm = args->option_value[4];
    o->tune = args->option_value[8];
    for (int k = 0; k < WAYS && o->transport && strcmp(ways[k].transport, o->transport) != 0; k++)
        if (k == WAYS - 1)
            return pl_error(PL_ERR_USAGE, "bench", "--transport %s: one of shared, mpi, tcp, verbs", o->transport);
    for (int k = 0; k < WAYS && o->algorithm && strcmp(ways[k].algorithm, o->algorithm) != 0; k++)
        if (k == WAYS - 1)
            return pl_error(PL_ERR_USAGE, "bench", "--algorithm %s: one of native, ring, halving_doubling, tree", o->algorithm);
    o->network = (struct pl_transport_options){.channels = (int)channels, .interface = args->option_value[5], .timeout_ms = 60000};
    return PL_OK;
}

pl_status pl_bench_allreduce(struct pl_world *w, int argc, char **argv)
{
    static const char *const names[] = {"from", "to", "rounds", "transport", "algorithm", "interface", "channels", "line", "tune", NULL};
    struct pl_args args;
    struct bench *b = pl_alloc(sizeof *b, "bench");
    pl_status s = b ? pl_args_read(argc, argv, names, &args) : PL_ERR_MEMORY;
    if (s == PL_OK)
        s = read_options(&args, &b->o);
    if (s == PL_OK && w->ranks < 2)
        s = pl_error(PL_ERR_USAGE, "bench", "allreduce takes two ranks at least: mpirun -n 2 paceline bench allreduce");
    s = pl_world_agree(w, s);
    if (s == PL_OK) {
        b->world = w;
        s = run_all(b);
    }
    if (b)
        pl_args_free(&args);
    pl_free(b);
    return s;
}
