/* The mesh over tcp on loopback, among forked processes without MPI: notes whole and in order, also to a rank that does not
 * read for a while; sums among random members, given up half-way and begun anew, with the bits of the exchange; memory both
 * ways at once, forgotten half-way; and ranks that are stopped or killed in the midst of all that. */
#include "exchange/exchange_internal.h"
#include "forks.h"

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <cmocka.h>

#ifdef PL_HAVE_CRYPTO
extern const struct pl_transport_table pl_transport_tcp;

enum { NOTE_BYTES = 1500, LIMIT_MS = 20000 };
static const char *const algorithms[] = {"ring", "halving_doubling", "tree", "auto"};

static bool right_or(bool right, const char *what, const struct pl_group *g)
{
    if (!right)
        fprintf(stderr, "rank %d of %d: %s\n", g->me, g->members, what);
    return right;
}
#define RIGHT(cond) right_or(cond, #cond, g)

static bool open_network(const struct pl_group *g, struct pl_network *n)
{
    const struct pl_transport_options o = {.channels = 2, .interface = "lo", .timeout_ms = 20000};
    *n = (struct pl_network){.table = &pl_transport_tcp, .group = *g, .rank = pl_alloc(sizeof forks_rank, "ranks")};
    memcpy(n->rank, forks_rank, sizeof forks_rank);
    return n->table->open(&n->group, &o, &n->transport, n->how, sizeof n->how) == PL_OK;
}

static struct pl_mesh *open_mesh(const struct pl_group *g, const char *algorithm, double bucket_bytes)
{
    const struct pl_exchange_options o = {.algorithm = algorithm, .bucket_bytes = bucket_bytes, .timeout_ms = 20000};
    struct pl_network n;
    struct pl_mesh *m = NULL;
    if (!open_network(g, &n) || pl_mesh_open_in(&n, &o, NOTE_BYTES, &m) < 0)
        fprintf(stderr, "rank %d: %s\n", g->me, pl_error_text());
    return m;
}

static uint64_t draw(uint64_t a, uint64_t b, uint64_t below)
{
    const char *seed = getenv("PL_TEST_SEED");
    struct pl_rng r = pl_rng_make(seed ? (uint64_t)atoi(seed) : 1, a, b, 33);
    return pl_rng_below(&r, below);
}

static void go_on_for(struct pl_mesh *m, double ms)
{
    for (double end = pl_now_ms() + ms; pl_now_ms() < end;)
        pl_mesh_progress(m, 5);
}

/* ---- stopping and killing oneself, and going on at another's word ------------------------------------------------ */

static void tell_pid(const struct pl_group *g, struct forks *f)
{
    pid_t pid = getpid();
    memcpy(f->data[g->me], &pid, sizeof pid);
    forks_barrier(f);
}

static void wake(struct forks *f, int r)
{
    pid_t pid;
    memcpy(&pid, f->data[r], sizeof pid);
    kill(pid, SIGCONT);
}

/* ---- notes --------------------------------------------------------------------------------------------------------- */

static void make_note(unsigned char note[NOTE_BYTES], int from, int to, uint32_t number, bool last)
{
    struct pl_rng r = pl_rng_make(number, (uint64_t)from, (uint64_t)to, 7);
    for (int i = 0; i < NOTE_BYTES; i += 4) {
        uint32_t v = pl_rng_u32(&r);
        memcpy(note + i, &v, 4);
    }
    note[0] = last;
}

/* The next of that rank, as it was said; *last: it said so. */
static bool hear_next(const struct pl_group *g, struct pl_mesh *m, uint32_t heard[], bool last[])
{
    unsigned char note[NOTE_BYTES], wanted[NOTE_BYTES];
    int from;
    bool right = true;
    while (right && pl_mesh_hear(m, &from, note)) {
        make_note(wanted, from, g->me, heard[from]++, note[0]);
        right = RIGHT(note[0] <= 1 && !last[from] && memcmp(note, wanted, NOTE_BYTES) == 0);
        last[from] = note[0];
    }
    return right;
}

enum { MANY = 3000 };

static bool notes(const struct pl_group *g, struct forks *f, void *arg)
{
    struct pl_mesh *m = open_mesh(g, arg, 4096);
    uint32_t heard[FORKS_MOST] = {0}, said[FORKS_MOST] = {0};
    bool last[FORKS_MOST] = {0}, right = m != NULL, through = false;
    unsigned char note[NOTE_BYTES];
    for (double end = pl_now_ms() + LIMIT_MS; right && !through;) {
        through = true;
        for (int r = 0; r < g->members; r++) {
            for (bool room = r != g->me; room && said[r] < MANY;) {
                make_note(note, g->me, r, said[r], said[r] + 1 == MANY);
                pl_status s = pl_mesh_say(m, r, note);
                right = right && RIGHT(s == PL_OK || s == PL_END);
                room = s == PL_OK;
                said[r] += room;
            }
            through = through && (r == g->me || (last[r] && said[r] == MANY));
        }
        right = right && RIGHT(pl_mesh_progress(m, 1) == PL_OK && pl_now_ms() < end) && hear_next(g, m, heard, last);
    }
    for (int r = 0; right && r < g->members; r++)
        right = r == g->me || RIGHT(heard[r] == MANY);
    go_on_for(m, 20);
    forks_barrier(f);
    pl_mesh_close(m, false);
    return right;
}

static void many_notes(void **state)
{
    (void)state;
    assert_int_equal(forks_run(3, notes, NULL), 0);
}

/* Says what there is room for until there was none for a while; how many. */
static uint32_t say_until_full(struct pl_mesh *m, int from, int to)
{
    unsigned char note[NOTE_BYTES];
    uint32_t said = 0;
    for (double full = pl_now_ms(), end = full + LIMIT_MS; pl_now_ms() - full < 300 && pl_now_ms() < end;) {
        make_note(note, from, to, said, false);
        if (pl_mesh_say(m, to, note) == PL_OK) {
            said++;
            full = pl_now_ms();
        } else {
            pl_mesh_progress(m, 2);
        }
    }
    return said;
}

static bool say_last(const struct pl_group *g, struct pl_mesh *m, int to, uint32_t number)
{
    unsigned char note[NOTE_BYTES];
    make_note(note, g->me, to, number, true);
    for (double end = pl_now_ms() + LIMIT_MS; pl_mesh_say(m, to, note) == PL_END;)
        if (!RIGHT(pl_mesh_progress(m, 2) == PL_OK && pl_now_ms() < end))
            return false;
    return true;
}

static bool hear_all(const struct pl_group *g, struct pl_mesh *m, int from, uint32_t *heard_of)
{
    uint32_t heard[FORKS_MOST] = {0};
    bool last[FORKS_MOST] = {0};
    for (double end = pl_now_ms() + LIMIT_MS; !last[from];)
        if (!RIGHT(pl_mesh_progress(m, 2) == PL_OK && pl_now_ms() < end) || !hear_next(g, m, heard, last))
            return false;
    *heard_of = heard[from];
    return true;
}

/* Rank 1 stops reading; 0 says on until there is no room, and talks with 2 meanwhile. */
static bool full(const struct pl_group *g, struct forks *f, void *arg)
{
    struct pl_mesh *m = open_mesh(g, arg, 4096);
    bool right = m != NULL;
    uint32_t said = 0, heard = 0;
    _Atomic uint32_t *total = (void *)(f->data[15]);
    tell_pid(g, f);
    if (g->me == 0 && right) {
        pl_sleep_ms(100);
        said = say_until_full(m, 0, 1);
        right = RIGHT(said >= 32) && say_last(g, m, 2, 0) && hear_all(g, m, 2, &heard);
        atomic_store(total, said + 1);
        wake(f, 1);
        right = right && say_last(g, m, 1, said);
    } else if (g->me == 1 && right) {
        raise(SIGSTOP);
        right = hear_all(g, m, 0, &heard) && RIGHT(heard == atomic_load(total));
    } else if (right) {
        right = hear_all(g, m, 0, &heard) && say_last(g, m, 0, 0);
    }
    go_on_for(m, 20);
    forks_barrier(f);
    pl_mesh_close(m, false);
    return right;
}

static void notes_to_a_rank_that_does_not_read(void **state)
{
    (void)state;
    assert_int_equal(forks_run(3, full, NULL), 0);
}

/* ---- sums ---------------------------------------------------------------------------------------------------------- */

static float value(int rank, int64_t i, uint64_t round) /* whole numbers: exact in any order */
{
    return (float)((i * 7 + rank * 13 + (int64_t)round) % 1001) - 500;
}

struct sum { uint64_t round; int member[FORKS_MOST], n; int64_t elems; float *in, *out; };

static struct sum make_sum(int me, uint64_t round, const int *member, int n, int64_t elems)
{
    struct sum s = {.round = round, .n = n, .elems = elems, .in = malloc((size_t)elems * sizeof(float)), .out = malloc((size_t)elems * sizeof(float))};
    memcpy(s.member, member, (size_t)n * sizeof *member);
    for (int64_t i = 0; i < elems; i++)
        s.in[i] = value(me, i, round);
    return s;
}

static bool sum_is_right(const struct pl_group *g, const struct sum *s)
{
    for (int64_t i = 0; i < s->elems; i++) {
        float wanted = 0;
        for (int k = 0; k < s->n; k++)
            wanted += value(s->member[k], i, s->round);
        if (s->out[i] == wanted && s->in[i] == value(g->me, i, s->round))
            continue;
        fprintf(stderr, "rank %d, round %d of %d: element %lld of %lld is %g, wanted %g\n", g->me, (int)s->round, s->n, (long long)i,
                (long long)s->elems, (double)s->out[i], (double)wanted);
        return false;
    }
    return true;
}

/* The owner has other plans with the memory: who still uses it is seen. */
static void drop_sum(struct sum *s)
{
    memset(s->in, 0xEE, (size_t)s->elems * sizeof(float));
    memset(s->out, 0xEE, (size_t)s->elems * sizeof(float));
    free(s->in);
    free(s->out);
}

static bool wait_for_sum(const struct pl_group *g, struct pl_mesh *m, const struct sum *s)
{
    for (double end = pl_now_ms() + LIMIT_MS; !pl_mesh_reduced(m, s->round);)
        if (!RIGHT(pl_mesh_progress(m, 5) == PL_OK && pl_now_ms() < end))
            return false;
    return sum_is_right(g, s);
}

static bool sum_among(const struct pl_group *g, struct pl_mesh *m, uint64_t round, const int *member, int n, int64_t elems)
{
    struct sum s = make_sum(g->me, round, member, n, elems);
    bool right = RIGHT(pl_mesh_reduce(m, round, member, n, s.in, s.out, elems) == PL_OK) && wait_for_sum(g, m, &s);
    if (!right)
        pl_mesh_forget(m, round + 1);
    drop_sum(&s);
    return right;
}

enum { ROUNDS = 60 };

/* Each member gives it up at its own moment; to some it is whole by then. */
static bool give_up_sum(const struct pl_group *g, struct pl_mesh *m, uint64_t round, const int *member, int n, int64_t elems)
{
    struct sum s = make_sum(g->me, round, member, n, elems);
    bool right = RIGHT(pl_mesh_reduce(m, round, member, n, s.in, s.out, elems) == PL_OK);
    for (uint64_t i = draw(round, 100 + (uint64_t)g->me, 12); right && i > 0; i--)
        right = RIGHT(pl_mesh_progress(m, i % 3 == 0 ? 1 : 0) == PL_OK);
    if (right && pl_mesh_reduced(m, round))
        right = sum_is_right(g, &s);
    pl_mesh_forget(m, round + 1);
    drop_sum(&s);
    return right;
}

static bool random_sums(const struct pl_group *g, struct forks *f, void *arg)
{
    struct pl_mesh *m = open_mesh(g, arg, 16384);
    bool right = m != NULL;
    uint64_t round = 0;
    for (uint64_t k = 0; right && k < ROUNDS; k++) {
        int member[FORKS_MOST], n = 0;
        bool in = false;
        round += 1 + draw(k, 1, 5);
        for (int r = 0; r < g->members; r++)
            if (draw(k, 10 + (uint64_t)r, 3) > 0) {
                in = in || r == g->me;
                member[n++] = r;
            }
        int64_t elems = draw(k, 2, 4) == 0 ? 1 + (int64_t)draw(k, 3, 5) : 1 + (int64_t)draw(k, 3, 80000);
        if (!in)
            continue; /* the next may be under way already */
        pl_mesh_forget(m, round);
        if (k + 1 < ROUNDS && draw(k, 4, 3) == 0)
            right = give_up_sum(g, m, round, member, n, elems);
        else
            right = sum_among(g, m, round, member, n, elems);
    }
    pl_mesh_forget(m, round + 100);
    right = right && sum_among(g, m, round + 100, forks_rank, g->members, 0) && sum_among(g, m, round + 101, forks_rank, g->members, 1000003);
    forks_barrier(f);
    pl_mesh_close(m, false);
    return right;
}

static void sums_among_some(void **state)
{
    (void)state;
    for (int a = 0; a < 4; a++)
        for (int ranks = 2; ranks <= 5; ranks += 3)
            assert_int_equal(forks_run(ranks, random_sums, (void *)(uintptr_t)algorithms[a]), 0);
}

/* ---- a member stops, or is killed, in the midst of a sum ------------------------------------------------------------ */

struct end { const char *algorithm; bool killed; };
enum { BIG = 2500001 };
static const int others[2] = {0, 2};

static bool left_half_way(const struct pl_group *g, struct pl_mesh *m, bool killed)
{
    struct sum s = make_sum(g->me, 5, forks_rank, 3, BIG);
    const char *why;
    unsigned char note[NOTE_BYTES];
    int from;
    bool right = RIGHT(pl_mesh_reduce(m, 5, forks_rank, 3, s.in, s.out, BIG) == PL_OK);
    if (g->me == 1) {
        for (int i = 0; i < 4; i++)
            pl_mesh_progress(m, 1);
        if (right && RIGHT(!pl_mesh_reduced(m, 5)))
            raise(killed ? SIGKILL : SIGSTOP);
    }
    for (double begin = pl_now_ms(); g->me != 1 && pl_now_ms() - begin < (killed ? LIMIT_MS : 400) && !pl_mesh_lost(m, 1, &why);)
        right = right && RIGHT(pl_mesh_progress(m, 5) == PL_OK && !pl_mesh_hear(m, &from, note));
    right = right && RIGHT(g->me == 1 || (!pl_mesh_reduced(m, 5) && pl_mesh_lost(m, 1, &why) == killed));
    right = right && RIGHT(!pl_mesh_lost(m, 2 - g->me, &why));
    pl_mesh_forget(m, 6);
    drop_sum(&s);
    return right && (g->me == 1 || sum_among(g, m, 6, others, 2, BIG));
}

static bool pair_talks(const struct pl_group *g, struct pl_mesh *m)
{
    uint32_t heard;
    int to = 2 - g->me;
    return say_last(g, m, to, 0) && hear_all(g, m, to, &heard) && RIGHT(heard == 1);
}

/* What waits for the one that was killed fails, and nothing else. */
static bool is_gone(const struct pl_group *g, struct pl_mesh *m)
{
    struct pl_transfer in, out;
    unsigned char a[100], b[100] = {0}, note[NOTE_BYTES] = {0};
    bool right = RIGHT(pl_mesh_send(m, &out, 1, 9, b, sizeof b) == PL_OK && pl_mesh_receive(m, &in, 1, 9, a, sizeof a) == PL_OK);
    for (double end = pl_now_ms() + LIMIT_MS; right && (in.active || out.active);)
        right = RIGHT(pl_mesh_progress(m, 5) == PL_OK && pl_now_ms() < end);
    const char *why;
    right = right && RIGHT(in.failed && out.failed && !in.done && !out.done && pl_mesh_say(m, 1, note) == PL_END);
    return right && RIGHT(pl_mesh_lost(m, 1, &why) && strstr(why, "rank 1"));
}

static bool half_way(const struct pl_group *g, struct forks *f, void *arg)
{
    const struct end *e = arg;
    struct pl_mesh *m = open_mesh(g, e->algorithm, 262144);
    bool right = m != NULL;
    tell_pid(g, f);
    right = right && left_half_way(g, m, e->killed) && (g->me == 1 || pair_talks(g, m));
    if (e->killed) {
        right = right && is_gone(g, m) && sum_among(g, m, 7, others, 2, 1000);
        pl_mesh_close(m, true);
        return right;
    }
    if (g->me == 0)
        wake(f, 1);
    right = right && sum_among(g, m, 8, forks_rank, 3, BIG) && sum_among(g, m, 9, forks_rank, 3, 1000);
    forks_barrier(f);
    pl_mesh_close(m, false);
    return right;
}

static void a_sum_is_given_up(void **state)
{
    (void)state;
    for (int a = 0; a < 3; a++)
        for (int killed = 0; killed < 2; killed++) {
            struct end e = {algorithms[a], killed};
            assert_int_equal(forks_run(3, half_way, &e), killed); /* the killed one counts */
        }
}

/* ---- memory from one to another --------------------------------------------------------------------------------------- */

struct load { struct pl_transfer t; int from, to; uint64_t id; size_t bytes; unsigned char *memory; };

static void fill_load(const struct load *l, unsigned char *p)
{
    uint64_t x = l->id * 1000003 + (uint64_t)l->from * 101 + (uint64_t)l->to;
    for (size_t i = 0; i < l->bytes; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        p[i] = (unsigned char)(x >> 56);
    }
}

static bool begin_load(const struct pl_group *g, struct pl_mesh *m, struct load *l, int from, int to, uint64_t id, size_t bytes)
{
    l->from = from, l->to = to, l->id = id, l->bytes = bytes;
    l->memory = calloc(bytes + 1, 1);
    l->memory[bytes] = 77;
    if (from == g->me)
        fill_load(l, l->memory);
    pl_status s = from == g->me ? pl_mesh_send(m, &l->t, to, id, l->memory, bytes) : pl_mesh_receive(m, &l->t, from, id, l->memory, bytes);
    return RIGHT(s == PL_OK && !l->t.failed);
}

static bool arrived(const struct load *l)
{
    unsigned char *wanted = malloc(l->bytes + 1);
    fill_load(l, wanted);
    bool right = memcmp(wanted, l->memory, l->bytes) == 0 && l->memory[l->bytes] == 77;
    if (!right)
        fprintf(stderr, "from %d to %d, id %llu of %zu bytes differs\n", l->from, l->to, (unsigned long long)l->id, l->bytes);
    free(wanted);
    return right;
}

static void drop_load(struct load *l)
{
    memset(l->memory, 0xEE, l->bytes);
    memset(&l->t, 0xEE, sizeof l->t);
    free(l->memory);
}

static bool finish_load(const struct pl_group *g, struct pl_mesh *m, struct load *l)
{
    bool right = true;
    for (double end = pl_now_ms() + LIMIT_MS; right && l->t.active;)
        right = RIGHT(pl_mesh_progress(m, 5) == PL_OK && pl_now_ms() < end);
    right = right && RIGHT(l->t.done && !l->t.failed && l->t.moved == l->bytes) && arrived(l);
    drop_load(l);
    return right;
}

static const size_t sizes[] = {0, 1, PL_TRANSFER_PIECE - 1, PL_TRANSFER_PIECE, PL_TRANSFER_PIECE + 1, 10000000, 3 * PL_TRANSFER_PIECE};
enum { SIZES = sizeof sizes / sizeof *sizes };

/* All sizes both ways between all pairs at once, from this id on. */
static bool pass_all(const struct pl_group *g, struct pl_mesh *m, uint64_t id)
{
    struct load l[2 * FORKS_MOST * SIZES];
    int n = 0;
    bool right = true;
    for (int s = 0; s < SIZES; s++)
        for (int r = 0; r < g->members; r++)
            for (int out = 0; out < 2 && r != g->me; out++)
                right = begin_load(g, m, &l[n++], out ? g->me : r, out ? r : g->me, id + (uint64_t)s, sizes[s]) && right;
    for (int i = 0; right && i < n; i++)
        right = finish_load(g, m, &l[i]);
    return right;
}

/* All are forgotten, each side at its own moment; some were through by then. */
static bool forget_all(const struct pl_group *g, struct pl_mesh *m, uint64_t id, int *failed)
{
    struct load l[2 * FORKS_MOST];
    int n = 0;
    bool right = true;
    for (int r = 0; r < g->members; r++)
        for (int out = 0; out < 2 && r != g->me; out++)
            right = begin_load(g, m, &l[n++], out ? g->me : r, out ? r : g->me, id, 1 + draw(id, 1000 + (uint64_t)(out ? g->me * 16 + r : r * 16 + g->me), 9000000)) && right;
    for (uint64_t i = draw(id, (uint64_t)g->me, 60); right && i > 0; i--)
        right = RIGHT(pl_mesh_progress(m, 1) == PL_OK);
    for (int r = 0; r < g->members; r++)
        if (r != g->me)
            pl_mesh_forget_transfers(m, r, id + 1);
    for (int i = 0; i < n; i++) {
        right = right && RIGHT(!l[i].t.active && l[i].t.done != l[i].t.failed) && (l[i].t.failed || arrived(&l[i]));
        *failed += l[i].t.failed;
        drop_load(&l[i]);
    }
    return right;
}

static bool transfers(const struct pl_group *g, struct forks *f, void *arg)
{
    struct pl_mesh *m = open_mesh(g, arg, 4096);
    int failed = 0;
    bool right = m && pass_all(g, m, 1);
    for (uint64_t id = 100; right && id < 112; id++)
        right = forget_all(g, m, id, &failed);
    right = right && pass_all(g, m, 1000) && sum_among(g, m, 3, forks_rank, g->members, 5000);
    memcpy(f->data[g->me], &failed, sizeof failed);
    forks_barrier(f);
    for (int r = 0; r < g->members && r != g->me; r++) {
        int one;
        memcpy(&one, f->data[r], sizeof one);
        failed += one;
    }
    right = right && RIGHT(g->me < g->members - 1 || failed > 0); /* some were given up in time */
    pl_mesh_close(m, false);
    return right;
}

static void memory_both_ways(void **state)
{
    (void)state;
    assert_int_equal(forks_run(3, transfers, NULL), 0);
}

/* The receiver alone forgets: what still comes goes nowhere and holds nothing up; the sender sees no difference. */
static bool one_forgets(const struct pl_group *g, struct forks *f, void *arg)
{
    struct pl_mesh *m = open_mesh(g, arg, 4096);
    struct load first, back, next;
    bool right = m && begin_load(g, m, &first, 0, 1, 5, 10000000) && begin_load(g, m, &back, 1, 0, 5, 3000000);
    if (g->me == 1 && right) {
        right = RIGHT(pl_mesh_progress(m, 50) == PL_OK) && finish_load(g, m, &back);
        pl_mesh_forget_transfers(m, 0, 6);
        drop_load(&first);
    }
    right = right && begin_load(g, m, &next, 0, 1, 6, 1000000);
    if (g->me == 0)
        right = right && finish_load(g, m, &first) && finish_load(g, m, &back);
    right = right && finish_load(g, m, &next);
    forks_barrier(f);
    pl_mesh_close(m, false);
    return right;
}

static void only_the_receiver_forgets(void **state)
{
    (void)state;
    assert_int_equal(forks_run(2, one_forgets, NULL), 0);
}

/* ---- against the exchange ----------------------------------------------------------------------------------------------- */

enum { CUT = 4096, BUCKETS = 7 }; /* elements; the exchange cuts from the end, the mesh from the front */

static float rough(int rank, int64_t i)
{
    struct pl_rng r = pl_rng_make(9, (uint64_t)rank, (uint64_t)i, 1);
    return (float)(pl_rng_uniform(&r) - 0.5) * (i % 3 == 0 ? 1e6f : 1e-3f);
}

static bool same_bits(const struct pl_group *g, struct forks *f, void *arg)
{
    const int64_t elems = CUT * BUCKETS;
    const struct pl_levels l = {.node = forks_rank, .column_ranks = forks_rank, .node_ranks = 1, .columns = 1, .members = g->members};
    const struct pl_exchange_options o = {.algorithm = arg, .bucket_bytes = CUT * sizeof(float), .timeout_ms = 20000};
    struct pl_exchange_times times;
    struct pl_exchange *x = NULL;
    struct pl_network n;
    struct pl_mesh *m = open_mesh(g, arg, CUT * sizeof(float));
    bool right = m && open_network(g, &n) && RIGHT(pl_exchange_create_in(NULL, &l, &n, &o, elems, &x) == PL_OK && pl_exchange_begin(x, 0) == PL_OK);
    float *out = malloc((size_t)elems * sizeof *out);
    for (int64_t i = 0; right && i < elems; i++)
        pl_exchange_gradient(x)[i] = rough(g->me, i);
    for (int64_t end = elems; right && end > 0; end -= CUT)
        right = RIGHT(pl_exchange_ready(x, end - CUT, end) == PL_OK);
    right = right && RIGHT(pl_exchange_finish(x, &times) == PL_OK && pl_mesh_reduce(m, 1, forks_rank, g->members, pl_exchange_gradient(x), out, elems) == PL_OK);
    for (double end = pl_now_ms() + LIMIT_MS; right && !pl_mesh_reduced(m, 1);)
        right = RIGHT(pl_mesh_progress(m, 5) == PL_OK && pl_now_ms() < end);
    right = right && RIGHT(memcmp(out, pl_exchange_agreed(x), (size_t)elems * sizeof *out) == 0);
    for (int64_t i = 0; right && i < elems; i++) {
        double wanted = 0, most = 0;
        for (int r = 0; r < g->members; r++) {
            wanted += rough(r, i);
            most += fabs((double)rough(r, i));
        }
        right = RIGHT(fabs((double)out[i] - wanted) <= 1e-6 * most);
    }
    forks_barrier(f);
    pl_mesh_close(m, false);
    pl_exchange_destroy(x);
    free(out);
    return right;
}

static void the_bits_of_the_exchange(void **state)
{
    (void)state;
    for (int ranks = 2; ranks <= 5; ranks++)
        for (int a = 0; a < 3; a++)
            assert_int_equal(forks_run(ranks, same_bits, (void *)(uintptr_t)algorithms[a]), 0);
}

int main(void)
{
    forks_checks_leaks = true;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(many_notes),       cmocka_unit_test(notes_to_a_rank_that_does_not_read), cmocka_unit_test(sums_among_some),
        cmocka_unit_test(a_sum_is_given_up), cmocka_unit_test(memory_both_ways),                  cmocka_unit_test(only_the_receiver_forgets),
        cmocka_unit_test(the_bits_of_the_exchange),
    };
    const char *only = getenv("PL_TEST_ONLY");
    if (only)
        cmocka_set_test_filter(only);
    return cmocka_run_group_tests_name("mesh", tests, NULL, NULL);
}
#else
int main(void)
{
    printf("skipped: tcp is not in this build\n");
    return 77;
}
#endif
