/* Carries schedules out: posts receives and sends as soon as what they wait for is done, and adds up what
 * arrived, in the schedule's order, so that the sums have the same bits in every run.
 *
 * Nothing waits for ever: by the transport's rule a member starts reduction k only when k - L is done, with
 * L = PL_COLLECTIVES for rings. In a ring all messages to a member come from one other, in the order in which
 * they are waited for. In other patterns they come from several, and a message of k + 1 could stand in
 * front of one that k needs while k's own receives from others fill the window: there L = 1. */
#include "exchange/collective.h"

#include <string.h>

#define WINDOW 16 /* requests in flight of each kind, of a reduction */

/* A reduction under way. The first so many moves of each list are done, the next up to `posted` in flight. */
struct active {
    struct pl_reduction what;
    const struct pl_schedule *schedule;
    size_t elem_bytes;
    int receives_done, receives_posted, sends_done, sends_posted;
    struct pl_request receive[WINDOW], send[WINDOW];
};

struct cached { struct pl_schedule schedule; size_t elem_bytes; int me, members; struct cached *next; };

struct pl_collectives {
    const struct pl_transport_table *table;
    struct pl_transport *transport;
    int group_me, group_members, me, members; /* of the open group; among those who take part now */
    int *peer;                                /* [members] their places in the group */
    struct cached *cache;
    struct active active[PL_COLLECTIVES]; /* number k lies at k % PL_COLLECTIVES */
    unsigned started, done;
    _Atomic uint64_t sent;
    unsigned char *scratch; /* [WINDOW * PL_PIECE_BYTES] what is added to `out`; of the one reduction that is no ring */
};

pl_status pl_collectives_create(const struct pl_transport_table *table, struct pl_transport *t, const struct pl_group *g,
                                struct pl_collectives **out)
{
    struct pl_collectives *c = pl_alloc(sizeof *c, "collectives");
    if (!c)
        return PL_ERR_MEMORY;
    c->table = table;
    c->transport = t;
    c->group_me = c->me = g->me;
    c->group_members = c->members = g->members;
    c->peer = pl_alloc((size_t)g->members * sizeof *c->peer, "who takes part");
    for (int i = 0; c->peer && i < g->members; i++)
        c->peer[i] = i;
    c->scratch = pl_alloc((size_t)WINDOW * PL_PIECE_BYTES, "what a collective receives");
    if (!c->scratch || !c->peer) {
        pl_collectives_destroy(c);
        return PL_ERR_MEMORY;
    }
    *out = c;
    return PL_OK;
}

void pl_collectives_destroy(struct pl_collectives *c)
{
    if (!c)
        return;
    for (struct cached *i = c->cache, *next; i; i = next) {
        next = i->next;
        pl_schedule_free(&i->schedule);
        pl_free(i);
    }
    pl_free(c->scratch);
    pl_free(c->peer);
    pl_free(c);
}

pl_status pl_collectives_among(struct pl_collectives *c, const int *member, int n)
{
    if (!pl_collectives_idle(c) || n > c->group_members)
        return pl_error(PL_ERR_USAGE, "exchange", "%d members cannot take over in the midst of a collective", n);
    c->members = n;
    for (int i = 0; i < n; i++) {
        c->peer[i] = member[i];
        if (member[i] == c->group_me)
            c->me = i;
    }
    return PL_OK;
}

void pl_collectives_abandon(struct pl_collectives *c) { c->done = c->started; }

/* Buckets have the same few lengths in every step. */
static pl_status find_schedule(struct pl_collectives *c, enum pl_pattern p, int64_t n, size_t elem_bytes, const struct pl_schedule **out)
{
    for (struct cached *i = c->cache; i; i = i->next)
        if (i->schedule.pattern == p && i->schedule.elems == n && i->elem_bytes == elem_bytes && i->me == c->me && i->members == c->members) {
            *out = &i->schedule;
            return PL_OK;
        }
    struct cached *made = pl_alloc(sizeof *made, "a schedule");
    if (!made)
        return PL_ERR_MEMORY;
    pl_status s = pl_schedule_make(p, c->me, c->members, n, (int64_t)(PL_PIECE_BYTES / elem_bytes), &made->schedule);
    if (s < 0) {
        pl_free(made);
        return s;
    }
    made->elem_bytes = elem_bytes;
    made->me = c->me;
    made->members = c->members;
    made->next = c->cache;
    c->cache = made;
    *out = &made->schedule;
    return PL_OK;
}

static bool may_start(const struct pl_collectives *c, enum pl_pattern p)
{
    if (c->started == c->done)
        return true;
    return p == PL_RING && c->active[c->done % PL_COLLECTIVES].what.pattern == PL_RING && c->started - c->done < PL_COLLECTIVES;
}

pl_status pl_collectives_start(struct pl_collectives *c, const struct pl_reduction *r, unsigned *ticket)
{
    if (!may_start(c, r->pattern))
        return PL_END;
    struct active *a = &c->active[c->started % PL_COLLECTIVES];
    a->what = *r;
    a->elem_bytes = r->bytes ? 1 : r->op == PL_SUM_F32 ? sizeof(float) : sizeof(double);
    a->receives_done = a->receives_posted = a->sends_done = a->sends_posted = 0;
    PL_TRY(find_schedule(c, r->pattern, r->n, a->elem_bytes, &a->schedule));
    *ticket = c->started++;
    return PL_OK;
}

/* ---- adding up ---------------------------------------------------------------------------------- */

static void add_f32(float *restrict out, const float *restrict x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] += x[i];
}

static void add_f64(double *restrict out, const double *restrict x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] += x[i];
}

static void max_f64(double *restrict out, const double *restrict x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = x[i] > out[i] || x[i] != x[i] ? x[i] : out[i];
}

static void combine(enum pl_reduce op, void *out, const void *x, int64_t n)
{
    if (op == PL_SUM_F32)
        add_f32(out, x, n);
    else if (op == PL_SUM_F64)
        add_f64(out, x, n);
    else
        max_f64(out, x, n);
}

/* ---- moving ------------------------------------------------------------------------------------- */

/* What is added to `out` comes to a place of its own first; the rest comes to `out` itself, and what is to be
 * added there, of `in`, is added afterwards. */
static void *destination(struct pl_collectives *c, struct active *a, int i)
{
    const struct pl_move *m = &a->schedule->receive[i];
    if (m->how == PL_ADD_OUT)
        return c->scratch + (size_t)(i % WINDOW) * PL_PIECE_BYTES;
    return (char *)a->what.out + (size_t)m->a * a->elem_bytes;
}

static void take(struct pl_collectives *c, struct active *a, int i)
{
    const struct pl_move *m = &a->schedule->receive[i];
    size_t at = (size_t)m->a * a->elem_bytes;
    char *out = (char *)a->what.out + at;
    if (m->how == PL_ADD_IN)
        combine(a->what.op, out, (const char *)a->what.in + at, m->n);
    else if (m->how == PL_ADD_OUT)
        combine(a->what.op, out, destination(c, a, i), m->n);
}

static struct pl_label label(const struct active *a, const struct pl_move *m)
{
    return (struct pl_label){.step = a->what.step, .bucket = a->what.bucket, .piece = m->piece};
}

static pl_status post_receives(struct pl_collectives *c, struct active *a)
{
    for (; a->receives_posted < a->schedule->receives && a->receives_posted - a->receives_done < WINDOW; a->receives_posted++) {
        int i = a->receives_posted;
        const struct pl_move *m = &a->schedule->receive[i];
        if (m->after > a->sends_done)
            return PL_OK;
        PL_TRY(c->table->post_receive(c->transport, c->peer[m->peer], label(a, m), destination(c, a, i), (size_t)m->n * a->elem_bytes, &a->receive[i % WINDOW]));
    }
    return PL_OK;
}

static pl_status post_sends(struct pl_collectives *c, struct active *a)
{
    for (; a->sends_posted < a->schedule->sends && a->sends_posted - a->sends_done < WINDOW; a->sends_posted++) {
        int i = a->sends_posted;
        const struct pl_move *m = &a->schedule->send[i];
        if (m->after > a->receives_done)
            return PL_OK;
        const char *from = (const char *)(m->how == PL_FROM_IN ? a->what.in : a->what.out) + (size_t)m->a * a->elem_bytes;
        PL_TRY(c->table->post_send(c->transport, c->peer[m->peer], label(a, m), from, (size_t)m->n * a->elem_bytes, &a->send[i % WINDOW]));
        atomic_fetch_add(&c->sent, (uint64_t)m->n * a->elem_bytes);
    }
    return PL_OK;
}

/* Tests those in flight from the oldest on. */
static pl_status test(struct pl_collectives *c, struct pl_request *request, int *done, int posted, bool *one)
{
    *one = false;
    if (*done == posted)
        return PL_OK;
    PL_TRY(c->table->test(c->transport, &request[*done % WINDOW], one));
    *done += *one ? 1 : 0;
    return PL_OK;
}

static pl_status go_on(struct pl_collectives *c, struct active *a, bool *moved)
{
    for (bool some = true; some;) {
        bool received, sent;
        PL_TRY(post_receives(c, a));
        PL_TRY(post_sends(c, a));
        PL_TRY(test(c, a->receive, &a->receives_done, a->receives_posted, &received));
        if (received)
            take(c, a, a->receives_done - 1);
        PL_TRY(test(c, a->send, &a->sends_done, a->sends_posted, &sent));
        some = received || sent;
        *moved |= some;
    }
    return PL_OK;
}

static bool whole(const struct active *a)
{
    return a->receives_done == a->schedule->receives && a->sends_done == a->schedule->sends;
}

pl_status pl_collectives_progress(struct pl_collectives *c, bool *moved)
{
    *moved = false;
    for (unsigned k = c->done; k != c->started; k++)
        PL_TRY(go_on(c, &c->active[k % PL_COLLECTIVES], moved));
    for (; c->done != c->started && whole(&c->active[c->done % PL_COLLECTIVES]); c->done++)
        *moved = true;
    return PL_OK;
}

uint64_t pl_collectives_sent(const struct pl_collectives *c) { return atomic_load(&c->sent); }
bool pl_collectives_idle(const struct pl_collectives *c) { return c->started == c->done; }
bool pl_collectives_done(const struct pl_collectives *c, unsigned ticket) { return (int)(c->done - ticket) > 0; }
