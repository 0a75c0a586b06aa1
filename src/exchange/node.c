/* Adding up within a node, in memory that its ranks share: a slab for each rank's gradient and one for the
 * sum, which all read. A rank says in its line of the control block how many buckets it has posted. Once all
 * have posted one, each rank adds its part of it over all slabs, in rank order, straight into the sum, and
 * counts it as done; the bucket is whole when all have. No copy, no gather, and the same bits for all, since
 * every element is added by one rank (Jain et al., Framework for Scalable Intra-Node Collective Operations using
 * Shared Memory, SC 2018; here without their copies in and out).
 *
 * The main thread does this itself as it hands buckets over, and the rest in drain: where the ranks fill the
 * cores a thread of its own would only take turns with it on the same core. Only drain waits: it looks a few times,
 * yields for a moment, then sleeps on a futex until any rank moves on.
 *
 * Nobody overwrites what another still reads:
 *  - a gradient of step t is read until its bucket is done by all, and drain of step t returns only then; the
 *    next backward comes after it;
 *  - the sum of step t is read, by the update, until that rank posts its first bucket of t + 1; no bucket of
 *    t + 1 is added up before all ranks have posted it;
 *  - of a rank's small values there are two copies, used in turn: who writes number k + 2 has read everybody's
 *    k + 1, and who posted k + 1 had read everybody's k.
 * Where there are several nodes, progress.c sums over them what was added up here before it is called whole. */
#include "exchange/exchange_internal.h"
#include "exchange/node.h"
#include "exchange/schedule.h"

#include <linux/futex.h>
#include <sched.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define BLOCK 2048      /* elements added up at a time: the sum stays in the first-level cache */
#define GRAIN 16384     /* of a thread's part */
#define MAX_BUCKETS 256 /* posted and not yet added up by this rank; posting waits beyond */
#define SPINS 64        /* a microsecond or two: a neighbour on a core of its own is that near */
#define YIELD_MS 0.5    /* then a wait sleeps */
#define SLEEP_MS 100    /* at most, so that the timeout is seen */

/* One rank's, written by it alone. The counts run from the start of the run. */
struct line {
    _Alignas(64) _Atomic uint64_t posted; /* buckets */
    _Atomic uint64_t done;                /* buckets of which its part is added up */
    _Atomic uint64_t said;                /* small values */
    _Atomic uint64_t met;                 /* times that it has come to pl_node_meet */
};

struct control {
    uint64_t token;                         /* of pl_exchange_map */
    _Alignas(64) _Atomic uint32_t events;   /* a futex: changes when somebody moves on while others sleep */
    _Atomic uint32_t sleepers;
    _Alignas(64) _Atomic uint64_t results; /* of values that all nodes said */
    struct line line[]; /* [ranks]; behind them the values, [ranks + 1][2][places]: of each rank, and results */
};

struct pl_shared {
    struct pl_exchange *exchange;
    struct control *control;
    struct line *mine;
    int rank, ranks;
    const int *name; /* [ranks] in the run; NULL: the same */
    double *place;    /* the values in the control block */
    size_t places;    /* of a copy of them */
    size_t slab; /* elements from one rank's gradient to the next one's, and to the sum, and to what is common */
    struct { int64_t a, b; } bucket[MAX_BUCKETS];
    uint64_t posted, done, said; /* as in the line */
    double *values; /* of a small sum under way, NULL: none */
    enum pl_reduce op;
    int n;
};

/* ---- layout ------------------------------------------------------------------------------------- */

static size_t whole_pages(size_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }
static size_t lines_bytes(int ranks) { return sizeof(struct control) + (size_t)ranks * sizeof(struct line); }
static size_t places_of(int values) { return ((size_t)pl_exchange_most_values(values) + 7) / 8 * 8; } /* whole cache lines */
static size_t slab_bytes(int64_t elems) { return whole_pages((size_t)elems * sizeof(float)); }

static size_t control_bytes(int ranks, int values)
{
    return whole_pages(lines_bytes(ranks) + (size_t)(ranks + 1) * 2 * places_of(values) * sizeof(double));
}

size_t pl_exchange_shared_bytes(int ranks, int64_t elems, int values, int common)
{
    return control_bytes(ranks, values) + (size_t)(ranks + 1 + common) * slab_bytes(elems);
}

void pl_exchange_shared_extents(int rank, int ranks, int64_t elems, int values, int common, struct pl_extent own[PL_OWN_EXTENTS])
{
    size_t slab = slab_bytes(elems), gradient = control_bytes(ranks, values) + (size_t)rank * slab;
    size_t sum = control_bytes(ranks, values) + (size_t)ranks * slab, pages = slab / PAGE;
    size_t begin = pages * (size_t)rank / (size_t)ranks * PAGE, end = pages * (size_t)(rank + 1) / (size_t)ranks * PAGE;
    own[0] = rank == 0 ? (struct pl_extent){0, gradient + slab} : (struct pl_extent){gradient, slab}; /* control too */
    for (int i = 0; i <= PL_EXCHANGE_COMMON; i++) /* the sum first */
        own[1 + i] = i <= common ? (struct pl_extent){sum + (size_t)i * slab + begin, end - begin} : (struct pl_extent){0, 0};
}

/* ---- adding up ---------------------------------------------------------------------------------- */

static void add_two(const float *restrict x, const float *restrict y, float *restrict sum, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        sum[i] = x[i] + y[i];
}

static void add_one(const float *restrict x, float *restrict sum, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        sum[i] += x[i];
}

static void add_range(const struct pl_shared *s, int64_t a, int64_t n, float *out)
{
    const float *first = s->exchange->gradient - (size_t)s->rank * s->slab + a;
    for (int64_t i = 0, m; i < n; i += m) {
        m = n - i < BLOCK ? n - i : BLOCK;
        if (s->ranks == 1) {
            memcpy(out + i, first + i, (size_t)m * sizeof *out);
            continue;
        }
        add_two(first + i, first + s->slab + i, out + i, m);
        for (int r = 2; r < s->ranks; r++)
            add_one(first + (size_t)r * s->slab + i, out + i, m);
    }
}

struct stretch { const struct pl_shared *s; int64_t a; };

static void add_stretch(void *arg, int64_t begin, int64_t end)
{
    const struct stretch *t = arg;
    add_range(t->s, t->a + begin, end - begin, t->s->exchange->sum + t->a + begin);
}

bool pl_node_posted(const struct pl_shared *s, uint64_t bucket)
{
    for (int r = 0; r < s->ranks; r++)
        if (atomic_load(&s->control->line[r].posted) < bucket)
            return false;
    return true;
}

/* Tells those who sleep. A sleeper counts itself in, then looks whether anybody has moved on; who moves on
 * counts that first and then looks for sleepers: one of the two sees the other. */
static void wake(struct pl_shared *s)
{
    if (atomic_load(&s->control->sleepers) == 0)
        return;
    atomic_fetch_add(&s->control->events, 1);
    syscall(SYS_futex, &s->control->events, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

/* Adds this rank's part of every bucket that all have posted. */
static void add_up(struct pl_shared *s)
{
    for (; pl_node_posted(s, s->done + 1); wake(s)) {
        int64_t a = s->bucket[s->done % MAX_BUCKETS].a, n = s->bucket[s->done % MAX_BUCKETS].b - a;
        int64_t begin = pl_part(n, s->rank, s->ranks), end = pl_part(n, s->rank + 1, s->ranks);
        struct stretch stretch = {s, a + begin};
        pl_parallel_for(end - begin, GRAIN, add_stretch, &stretch);
        atomic_store(&s->mine->done, ++s->done);
    }
}

/* ---- waiting ------------------------------------------------------------------------------------ */

static void sleep_until_event(struct pl_shared *s, uint32_t seen)
{
    struct timespec limit = {.tv_nsec = SLEEP_MS * 1000000L};
    syscall(SYS_futex, &s->control->events, FUTEX_WAIT, seen, &limit, NULL, 0);
}

/* Appends the names of ranks: those that have posted or said less than this rank, or with `adding` those that have
 * added up less. */
static void append_missing(const struct pl_shared *s, bool adding, char *text, size_t bytes)
{
    uint64_t said = atomic_load(&s->mine->said), posted = atomic_load(&s->mine->posted), met = atomic_load(&s->mine->met);
    for (int r = 0; r < s->ranks; r++) {
        const struct line *l = &s->control->line[r];
        bool late = adding ? atomic_load(&l->done) < posted : atomic_load(&l->said) < said || atomic_load(&l->posted) < posted || atomic_load(&l->met) < met;
        if (!late)
            continue;
        char name[16];
        snprintf(name, sizeof name, "%d", s->name ? s->name[r] : r);
        pl_exchange_append(text, bytes, name);
    }
}

void pl_node_missing(const struct pl_shared *s, char *text, size_t bytes) { append_missing(s, false, text, bytes); }

static pl_status timed_out(const struct pl_shared *s, double ms)
{
    char missing[256] = "";
    append_missing(s, false, missing, sizeof missing);
    if (!missing[0])
        append_missing(s, true, missing, sizeof missing);
    return pl_exchange_timed_out(ms, s->exchange->step, missing);
}

typedef bool condition(struct pl_shared *s);

/* Until it holds, or for so long. Whatever all have posted is added up in the meantime. */
static pl_status wait_for(struct pl_shared *s, condition *holds, double timeout_ms)
{
    for (int i = 0; i < SPINS; i++) {
        if (holds(s))
            return PL_OK;
        pl_relax();
    }
    double begin = pl_now_ms(), waited = 0;
    while (waited < YIELD_MS) {
        if (holds(s))
            return PL_OK;
        sched_yield();
        waited = pl_now_ms() - begin;
    }
    pl_status status = PL_OK;
    atomic_fetch_add(&s->control->sleepers, 1);
    for (;;) {
        uint32_t seen = atomic_load(&s->control->events);
        if (holds(s))
            break;
        if (pl_now_ms() - begin > timeout_ms) {
            status = timed_out(s, timeout_ms);
            break;
        }
        sleep_until_event(s, seen);
    }
    atomic_fetch_sub(&s->control->sleepers, 1);
    return status;
}

static pl_status wait_until(struct pl_shared *s, condition *holds) { return wait_for(s, holds, s->exchange->options.timeout_ms); }

static bool a_bucket_is_free(struct pl_shared *s)
{
    add_up(s);
    return s->posted - s->done < MAX_BUCKETS;
}

static bool all_are_done(struct pl_shared *s)
{
    for (int r = 0; r < s->ranks; r++)
        if (atomic_load(&s->control->line[r].done) < s->posted)
            return false;
    return true;
}

static bool all_is_whole(struct pl_shared *s)
{
    add_up(s);
    return all_are_done(s);
}

/* The copy of values `number` of a rank; of s->ranks: what all nodes gave. */
static double *values_at(const struct pl_shared *s, int rank, uint64_t number)
{
    return s->place + ((size_t)rank * 2 + number % 2) * s->places;
}

static void combine(enum pl_reduce op, const double *restrict v, double *restrict out, int n)
{
    for (int i = 0; i < n; i++)
        out[i] = op == PL_MAX_F64 ? (v[i] > out[i] ? v[i] : out[i]) : out[i] + v[i];
}

bool pl_node_reduce(const struct pl_shared *s, uint64_t number, enum pl_reduce op, double *out, int n)
{
    for (int r = 0; r < s->ranks; r++)
        if (atomic_load(&s->control->line[r].said) < number)
            return false;
    memcpy(out, values_at(s, 0, number), (size_t)n * sizeof *out);
    for (int r = 1; r < s->ranks; r++)
        combine(op, values_at(s, r, number), out, n);
    return true;
}

static bool values_are_whole(struct pl_shared *s) { return pl_node_reduce(s, s->said, s->op, s->values, s->n); }

static pl_status finish_values(struct pl_shared *s)
{
    if (!s->values)
        return PL_OK;
    PL_TRY(wait_until(s, values_are_whole));
    s->values = NULL;
    return PL_OK;
}

/* ---- with a network: what progress.c asks besides -------------------------------------------------- */

void pl_node_post(struct pl_shared *s)
{
    atomic_store(&s->mine->posted, ++s->posted);
    wake(s);
}

void pl_node_say(struct pl_shared *s, const double *values, int n)
{
    memcpy(values_at(s, s->rank, s->said + 1), values, (size_t)n * sizeof *values);
    atomic_store(&s->mine->said, ++s->said);
}

pl_status pl_node_drain(struct pl_shared *s) { return wait_until(s, all_are_done); }

void pl_node_add(const struct pl_shared *s, int64_t a, int64_t n, float *out) { add_range(s, a, n, out); }

void pl_node_done(struct pl_shared *s)
{
    atomic_fetch_add(&s->mine->done, 1);
    wake(s);
}

void pl_node_publish(struct pl_shared *s, uint64_t number, const double *values, int n)
{
    memcpy(values_at(s, s->ranks, number), values, (size_t)n * sizeof *values);
    atomic_store(&s->control->results, number);
}

bool pl_node_result(const struct pl_shared *s, uint64_t number, double *out, int n)
{
    if (atomic_load(&s->control->results) < number)
        return false;
    memcpy(out, values_at(s, s->ranks, number), (size_t)n * sizeof *out);
    return true;
}

/* ---- what is common ------------------------------------------------------------------------------ */

float *pl_node_common(const struct pl_shared *s, int i) { return s->exchange->sum + (size_t)(1 + i) * s->slab; }

struct pl_span pl_node_near(const struct pl_shared *s)
{
    int64_t elems = s->exchange->elems;
    return (struct pl_span){pl_part(elems, s->rank, s->ranks), pl_part(elems, s->rank + 1, s->ranks)};
}

static bool all_have_come(struct pl_shared *s)
{
    uint64_t met = atomic_load(&s->mine->met);
    for (int r = 0; r < s->ranks; r++)
        if (atomic_load(&s->control->line[r].met) < met)
            return false;
    return true;
}

/* Half as long as other waits: who is silent here is named here, before other nodes, which wait for this one, name those who wait. */
pl_status pl_node_meet(struct pl_shared *s)
{
    atomic_fetch_add(&s->mine->met, 1);
    wake(s);
    return wait_for(s, all_have_come, s->exchange->options.timeout_ms / 2);
}

/* ---- the algorithm ------------------------------------------------------------------------------ */

static pl_status shared_post_bucket(struct pl_exchange *x, int64_t a, int64_t b, bool exact)
{
    (void)exact;
    struct pl_shared *s = x->shared;
    if (pl_fault("exchange.start", x->step))
        return pl_error(PL_ERR_PEER, "exchange", "debug.fault at exchange.start");
    PL_TRY(wait_until(s, a_bucket_is_free));
    s->bucket[s->posted % MAX_BUCKETS].a = a;
    s->bucket[s->posted % MAX_BUCKETS].b = b;
    pl_node_post(s);
    add_up(s);
    return PL_OK;
}

static pl_status shared_post_values(struct pl_exchange *x, enum pl_reduce op, double *values, int n)
{
    struct pl_shared *s = x->shared;
    if (n > x->options.values)
        return pl_error(PL_ERR_USAGE, "exchange", "a small sum of %d values", n);
    PL_TRY(finish_values(s)); /* one at a time */
    s->values = values;
    s->op = op;
    s->n = n;
    pl_node_say(s, values, n);
    wake(s);
    return PL_OK;
}

static pl_status shared_drain(struct pl_exchange *x)
{
    PL_TRY(wait_until(x->shared, all_is_whole));
    return finish_values(x->shared);
}

pl_status pl_exchange_shared_open(struct pl_exchange *x, void *memory, int rank, int ranks, const int *name)
{
    struct pl_shared *s = pl_alloc(sizeof *s, "exchange");
    if (!s)
        return PL_ERR_MEMORY;
    *s = (struct pl_shared){.exchange = x, .control = memory, .rank = rank, .ranks = ranks, .name = name};
    s->mine = &s->control->line[rank];
    s->place = (double *)(void *)((char *)memory + lines_bytes(ranks));
    s->places = places_of(x->options.values);
    s->slab = slab_bytes(x->elems) / sizeof(float);
    float *slabs = (float *)(void *)((char *)memory + control_bytes(ranks, x->options.values));
    x->gradient = slabs + (size_t)rank * s->slab;
    x->sum = slabs + (size_t)ranks * s->slab;
    x->shared = s;
    return PL_OK;
}

/* The others keep what they have mapped. */
void pl_exchange_shared_close(struct pl_exchange *x)
{
    if (x->world && x->shared)
        pl_exchange_unmap(x->shared->control, pl_exchange_shared_bytes(x->shared->ranks, x->elems, x->options.values, x->options.common), x->shared->ranks);
    pl_free(x->shared);
    x->shared = NULL;
}

const struct pl_algorithm pl_algorithm_shared = {
    .post_bucket = shared_post_bucket,
    .post_values = shared_post_values,
    .drain = shared_drain,
    .close = pl_exchange_shared_close,
};
