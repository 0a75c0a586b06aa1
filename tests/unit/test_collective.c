/* All-reduces by schedules, over a network that is only made up: all members in one thread, which lets them go on in
 * random order. The network obeys the rules of the contract and no better: a message that arrives before its
 * receive was posted holds up those behind it on its channel, of which there are few; a send may be done late. Checks
 * sums, equal bits, that the own part stays, that nothing waits for ever, whatever the sizes and the order. */
#include "exchange/collective.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { MOST = 9, CHANNELS = 2, DEPTH = 64, MOST_OPS = 12 };

struct message { struct pl_label label; char *data; size_t bytes; };

/* The wires into one member: [from][channel] a FIFO. */
struct net;
struct pl_transport { struct net *net; int me; };
struct held { struct pl_label label; void *p; size_t bytes; int peer; struct pl_request *request; };
struct net {
    int members;
    unsigned seed;
    struct { struct message m[DEPTH]; int head, count; } wire[MOST][MOST][CHANNELS]; /* [to][from] */
    struct held waiting[MOST][4096];
    int waiting_count[MOST];
    struct pl_transport t[MOST];
    bool broken; /* the next message of some length is lost */
};

static unsigned below(struct net *n, unsigned bound) { return (unsigned)rand_r(&n->seed) % bound; }

/* What stands first on any wire and is waited for arrives. */
static void deliver(struct net *n, int to)
{
    for (int from = 0; from < n->members; from++)
        for (int c = 0; c < CHANNELS; c++)
            for (bool some = true; some && n->wire[to][from][c].count > 0;) {
                struct message *m = &n->wire[to][from][c].m[n->wire[to][from][c].head];
                some = false;
                for (int i = 0; i < n->waiting_count[to] && !some; i++) {
                    struct held *h = &n->waiting[to][i];
                    if (h->peer != from || !pl_label_same(h->label, m->label))
                        continue;
                    assert_int_equal(h->bytes, m->bytes);
                    memcpy(h->p, m->data, m->bytes);
                    free(m->data);
                    h->request->active = false;
                    *h = n->waiting[to][--n->waiting_count[to]];
                    n->wire[to][from][c].head = (n->wire[to][from][c].head + 1) % DEPTH;
                    n->wire[to][from][c].count--;
                    some = true;
                }
            }
}

/* A send on a full wire is done only later. */
struct late { const void *p; size_t bytes; struct pl_label label; int peer; bool waits; };
_Static_assert(sizeof(struct late) <= sizeof(((struct pl_request *)0)->bytes), "fits");

static bool put(struct pl_transport *t, int peer, struct pl_label l, const void *p, size_t bytes)
{
    struct net *n = t->net;
    int c = (int)(l.piece % CHANNELS);
    if (n->wire[peer][t->me][c].count == DEPTH)
        return false;
    struct message *m = &n->wire[peer][t->me][c].m[(n->wire[peer][t->me][c].head + n->wire[peer][t->me][c].count++) % DEPTH];
    *m = (struct message){l, malloc(bytes), bytes};
    memcpy(m->data, p, bytes);
    return true;
}

/* As TCP does it: what could not be sent keeps its place in its channel's queue. Kept simple: the wire is long. */
static pl_status post_send(struct pl_transport *t, int peer, struct pl_label l, const void *p, size_t bytes, struct pl_request *r)
{
    struct late late = {.waits = below(t->net, 3) == 0};
    assert_true(put(t, peer, l, p, bytes)); /* DEPTH is more than the windows allow */
    memcpy(r->bytes, &late, sizeof late);
    r->active = true;
    return PL_OK;
}

static pl_status post_receive(struct pl_transport *t, int peer, struct pl_label l, void *p, size_t bytes, struct pl_request *r)
{
    struct net *n = t->net;
    assert_true(n->waiting_count[t->me] < 4096);
    n->waiting[t->me][n->waiting_count[t->me]++] = (struct held){l, p, bytes, peer, r};
    struct late none = {0};
    memcpy(r->bytes, &none, sizeof none);
    r->active = true;
    deliver(n, t->me);
    return PL_OK;
}

static pl_status test_request(struct pl_transport *t, struct pl_request *r, bool *done)
{
    for (int i = 0; i < t->net->waiting_count[t->me]; i++)
        if (t->net->waiting[t->me][i].request == r) {
            *done = false;
            return PL_OK;
        }
    struct late late;
    memcpy(&late, r->bytes, sizeof late);
    *done = !late.waits || below(t->net, 3) == 0;
    r->active = !*done;
    return PL_OK;
}

static const struct pl_transport_table fake = {.name = "fake", .post_send = post_send, .post_receive = post_receive, .test = test_request};

struct op { enum pl_pattern pattern; enum pl_reduce op; int64_t n; };
struct member {
    struct pl_collectives *c;
    int started;
    unsigned ticket[MOST_OPS];
    void *in[MOST_OPS], *out[MOST_OPS];
};

static double value(int member, int op, int64_t i)
{
    uint32_t h = (uint32_t)(i * 2654435761u) ^ (uint32_t)(member * 40503 + op * 977);
    return (double)(h % 100003) * 1.37e-3 - 61.0;
}

static void fill(struct member *m, int me, const struct op *op, int ops)
{
    for (int k = 0; k < ops; k++) {
        size_t size = op[k].op == PL_SUM_F32 ? sizeof(float) : sizeof(double);
        m->in[k] = malloc((size_t)op[k].n * size);
        m->out[k] = malloc((size_t)op[k].n * size);
        for (int64_t i = 0; i < op[k].n; i++)
            if (op[k].op == PL_SUM_F32)
                ((float *)m->in[k])[i] = (float)value(me, k, i);
            else
                ((double *)m->in[k])[i] = value(me, k, i);
    }
}

static double at(const void *p, enum pl_reduce op, int64_t i) { return op == PL_SUM_F32 ? (double)((const float *)p)[i] : ((const double *)p)[i]; }

static void check(const struct member *m, int members, int k, const struct op *op)
{
    size_t size = op->op == PL_SUM_F32 ? sizeof(float) : sizeof(double);
    for (int r = 1; r < members; r++)
        if (memcmp(m[r].out[k], m[0].out[k], (size_t)op->n * size) != 0)
            fail_msg("%s, %d members, %lld elements: member %d has other bits", pl_pattern_name(op->pattern), members, (long long)op->n, r);
    for (int64_t i = 0; i < op->n; i++) {
        double wanted = at(m[0].in[k], op->op, i), got = at(m[0].out[k], op->op, i), size_of = 0;
        for (int r = 0; r < members; r++) {
            double v = at(m[r].in[k], op->op, i);
            assert_true(v == (op->op == PL_SUM_F32 ? (double)(float)value(r, k, i) : value(r, k, i)));
            size_of += v < 0 ? -v : v;
            if (r > 0)
                wanted = op->op == PL_MAX_F64 ? (v > wanted ? v : wanted) : wanted + v;
        }
        double error = got > wanted ? got - wanted : wanted - got;
        if (error > (op->op == PL_SUM_F32 ? 1e-6 : 1e-14) * size_of)
            fail_msg("%s, %d members, element %lld of %lld: %.9g, wanted %.9g", pl_pattern_name(op->pattern), members, (long long)i, (long long)op->n, got, wanted);
    }
}

/* Lets a member go on, and start what it has not; its own progress into a step differs from the others'. */
static bool let_go_on(struct member *m, struct net *n, int me, const struct op *op, int ops)
{
    bool moved;
    if (m->started < ops && below(n, 4) == 0) {
        int k = m->started;
        struct pl_reduction r = {.pattern = op[k].pattern, .op = op[k].op, .in = m->in[k], .out = m->out[k], .n = op[k].n, .step = 7, .bucket = (uint32_t)k};
        pl_status s = pl_collectives_start(m->c, &r, &m->ticket[k]);
        assert_true(s == PL_OK || s == PL_END);
        m->started += s == PL_OK;
    }
    deliver(n, me);
    assert_int_equal(pl_collectives_progress(m->c, &moved), PL_OK);
    return m->started == ops && (ops == 0 || pl_collectives_done(m->c, m->ticket[ops - 1]));
}

static void run(int members, const struct op *op, int ops, unsigned seed)
{
    static struct net n; /* large */
    static struct member m[MOST];
    memset(&n, 0, sizeof n);
    memset(m, 0, sizeof m);
    n.members = members;
    n.seed = seed;
    for (int r = 0; r < members; r++) {
        struct pl_group g = {.me = r, .members = members};
        n.t[r] = (struct pl_transport){&n, r};
        assert_int_equal(pl_collectives_create(&fake, &n.t[r], &g, &m[r].c), PL_OK);
        fill(&m[r], r, op, ops);
    }
    bool all = false;
    for (int turn = 0; !all; turn++) {
        if (turn > 200000)
            fail_msg("%d members wait for ever; seed %u; first: %s of %lld elements", members, seed, pl_pattern_name(op[0].pattern), (long long)op[0].n);
        all = true;
        unsigned one = below(&n, (unsigned)members + 1); /* mostly one alone */
        for (int r = 0; r < members; r++)
            if ((unsigned)r == one || one == (unsigned)members)
                all &= let_go_on(&m[r], &n, r, op, ops);
            else
                all = false;
    }
    for (int k = 0; k < ops; k++)
        check(m, members, k, &op[k]);
    for (int r = 0; r < members; r++) {
        assert_int_equal(n.waiting_count[r], 0);
        pl_collectives_destroy(m[r].c);
        for (int k = 0; k < ops; k++)
            free(m[r].in[k]), free(m[r].out[k]);
    }
}

static void test_patterns(void **state)
{
    (void)state;
    static const int64_t sizes[] = {1, 2, 15, 16, 17, 100, 1000, 40000, 300007};
    for (int p = 0; p < PL_PATTERNS; p++)
        for (int members = 2; members <= MOST; members++)
            for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
                for (int reduce = PL_SUM_F32; reduce <= PL_MAX_F64; reduce++) {
                    if (reduce != PL_SUM_F32 && sizes[i] > 1000)
                        continue;
                    struct op op = {(enum pl_pattern)p, (enum pl_reduce)reduce, sizes[i]};
                    run(members, &op, 1, (unsigned)(members * 31 + (int)i));
                }
}

static unsigned first_seed(void) { return getenv("PL_TEST_SEED") ? (unsigned)atoi(getenv("PL_TEST_SEED")) : 1; }

/* Buckets of one pattern, and of several in turn. */
static void test_many(void **state)
{
    (void)state;
    for (unsigned seed = first_seed(), end = seed + 60; seed != end; seed++) {
        struct op op[MOST_OPS];
        unsigned s = seed;
        int members = 2 + rand_r(&s) % (MOST - 1), one = rand_r(&s) % (PL_PATTERNS + 1);
        for (int k = 0; k < MOST_OPS; k++) {
            op[k].pattern = (enum pl_pattern)(one < PL_PATTERNS ? one : rand_r(&s) % PL_PATTERNS);
            op[k].op = rand_r(&s) % 4 ? PL_SUM_F32 : PL_SUM_F64;
            op[k].n = op[k].op == PL_SUM_F32 ? 1 + rand_r(&s) % 150000 : 1 + rand_r(&s) % 16;
        }
        run(members, op, MOST_OPS, seed);
    }
}

/* Every send has its receive, in the same order between two members, of the same length; and no ring or halving
 * sends more than it must. */
static void test_bytes(void **state)
{
    (void)state;
    for (int p = 0; p < PL_PATTERNS; p++)
        for (int members = 2; members <= 40; members++)
            for (int64_t elems = 1; elems < 70000; elems = elems * 3 + 1) {
                struct pl_schedule s[40];
                for (int r = 0; r < members; r++)
                    assert_int_equal(pl_schedule_make((enum pl_pattern)p, r, members, elems, 5000, &s[r]), PL_OK);
                for (int r = 0; r < members; r++) {
                    int64_t sent = 0;
                    for (int i = 0; i < s[r].sends; i++) {
                        const struct pl_move *m = &s[r].send[i], *found = NULL;
                        sent += m->n;
                        for (int k = 0; k < s[m->peer].receives && !found; k++)
                            if (s[m->peer].receive[k].peer == r && s[m->peer].receive[k].piece == m->piece)
                                found = &s[m->peer].receive[k];
                        if (!found || found->a != m->a || found->n != m->n || m->n <= 0 || m->n > 5000)
                            fail_msg("%s, %d members: member %d's send %d has no receive", pl_pattern_name((enum pl_pattern)p), members, r, i);
                    }
                    bool power = (members & (members - 1)) == 0;
                    int64_t least = 2 * (members - 1) * (elems / members);
                    if ((p == PL_RING || (p == PL_HALVING_DOUBLING && power)) && sent > least + 64 * members)
                        fail_msg("%s, %d members: %lld of %lld elements sent", pl_pattern_name((enum pl_pattern)p), members, (long long)sent, (long long)least);
                }
                for (int r = 0; r < members; r++)
                    pl_schedule_free(&s[r]);
            }
}

/* More elements than an int counts. */
static void test_huge(void **state)
{
    (void)state;
    const int64_t elems = 5000000017;
    for (int p = 0; p < PL_PATTERNS; p++)
        for (int me = 0; me < 3; me++) {
            struct pl_schedule s;
            int64_t got = 0, farthest = 0;
            assert_int_equal(pl_schedule_make((enum pl_pattern)p, me, 3, elems, 1 << 22, &s), PL_OK);
            for (int i = 0; i < s.receives; i++) {
                assert_true(s.receive[i].a >= 0 && s.receive[i].n > 0 && s.receive[i].a + s.receive[i].n <= elems);
                got += s.receive[i].n;
                farthest = s.receive[i].a + s.receive[i].n > farthest ? s.receive[i].a + s.receive[i].n : farthest;
            }
            assert_true(got >= elems);
            assert_true(farthest == elems);
            pl_schedule_free(&s);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_huge), cmocka_unit_test(test_bytes), cmocka_unit_test(test_patterns), cmocka_unit_test(test_many)};
    return cmocka_run_group_tests_name("collective", tests, NULL, NULL);
}
