/* Ranks that meet now and then, when one is lost. Who is silent for exchange.timeout is, or does not come to a meeting, or whose
 * connections are over. The first that is left then calls the roll, and with it who else is left decides whether this side of
 * what may be a cut writes; the others wait for it, or for their turn. */
#include "sync/meeting_internal.h"

#include <stdarg.h>

#define HELLO_MS 1000.0

static double hello_period(const struct pl_meeting *m) { return m->timeout_ms / 4 < HELLO_MS ? m->timeout_ms / 4 : HELLO_MS; }

void pl_meeting_look_at_clock(struct pl_meeting *m, double now)
{
    if (m->turned_ms > 0 && now - m->turned_ms > m->timeout_ms - hello_period(m))
        m->away_ms = now - m->turned_ms;
    m->turned_ms = now;
}

static void say_hello(struct pl_meeting *m, double now)
{
    struct message msg = {.kind = HELLO};
    if (now - m->hello_ms < hello_period(m))
        return;
    m->hello_ms = now;
    for (int r = 0; r < m->ranks; r++)
        if (r != m->me && m->rank[r].n == 0)
            pl_meeting_post(m, r, &msg);
}

/* Each is told that it is lost, if that can be: it may only have hung. */
void pl_meeting_lose(struct pl_meeting *m, int r, const char *fmt, ...)
{
    struct message gone = {.kind = GONE}, given_up = {.kind = GIVEN_UP};
    struct rank *k = &m->rank[r];
    va_list args;
    if (k->lost)
        return;
    va_start(args, fmt);
    vsnprintf(k->why, sizeof k->why, fmt, args);
    va_end(args);
    if (r != m->me && !k->gave_up && k->n < OUTBOX)
        pl_meeting_post(m, r, &given_up);
    k->lost = true;
    m->lost_ms = pl_now_ms();
    m->lost = m->lost < 0 ? r : m->lost;
    pthread_cond_broadcast(&m->news);
    for (int to = 0; to < m->ranks && r == m->me; to++) /* its main thread hangs: the others are to go on without it */
        if (to != m->me)
            pl_meeting_post(m, to, &gone);
}

bool pl_meeting_is_lost(const struct pl_meeting *m, int rank) { return m->rank[rank].lost; }

int pl_meeting_first_alive(const struct pl_meeting *m)
{
    int r = 0;
    while (r < m->me && m->rank[r].lost)
        r++;
    return r;
}

/* It will write nothing. On this node nothing lies between: unless it was this rank that was away, a lost one has ended, or
 * hears that it was given up. */
static bool is_dead(const struct pl_meeting *m, int r)
{
    const struct rank *k = &m->rank[r];
    return k->lost && (k->hangs || (k->local && !k->gave_up && m->away_ms == 0));
}

/* Of those that may live, more are on this side of a cut than on the other: only that side writes. Of two halves it is the
 * one with the first rank. */
enum side { NOT_KNOWN, MOST, CUT_OFF };
static enum side side(const struct pl_meeting *m)
{
    int here = 0, others = 0, asked = 0, first = -1;
    for (int r = 0; r < m->ranks; r++) {
        const struct rank *k = &m->rank[r];
        if (is_dead(m, r))
            continue;
        bool is_here = !k->lost && (r == m->me || k->here);
        first = first < 0 ? is_here : first;
        here += is_here;
        others += !is_here;
        asked += !is_here && !k->lost;
    }
    if (m->rank[m->me].lost)
        return CUT_OFF;
    if (here > others || (here == others && first && m->away_ms == 0))
        return MOST;
    return asked > 0 ? NOT_KNOWN : CUT_OFF;
}

static bool is_first_left(const struct pl_meeting *m) { return m->lost >= 0 && pl_meeting_first_alive(m) == m->me; }

/* The first that is left asks who else is; each answers the one that is first as it sees it. */
static void call_the_roll(struct pl_meeting *m)
{
    struct message roll = {.kind = ROLL}, here = {.kind = HERE};
    struct rank *first = &m->rank[pl_meeting_first_alive(m)];
    bool calls = is_first_left(m) && !m->called;
    for (int r = 0; r < m->ranks && calls; r++)
        if (r != m->me)
            pl_meeting_post(m, r, &roll);
    m->called = m->called || calls;
    if (first->calls) /* who answers may have lost none */
        pl_meeting_post(m, pl_meeting_first_alive(m), &here);
    first->calls = false;
}

/* Rank 0: who has not come, and worked at nothing, for as long as somebody has waited for it. */
static void look_for_missing(struct pl_meeting *m, double now)
{
    double since = now;
    for (int r = 0; r < m->ranks; r++)
        if (m->rank[r].arrived && m->rank[r].worked_ms < since)
            since = m->rank[r].worked_ms;
    for (int r = 0; r < m->ranks && now - since > m->timeout_ms; r++) {
        struct rank *k = &m->rank[r];
        if (k->arrived || k->lost || now - k->worked_ms <= m->timeout_ms)
            continue;
        pl_meeting_lose(m, r, MISSING, r, m->timeout_ms / 1000);
    }
    if (is_first_left(m) && side(m) != NOT_KNOWN && !m->noticed && now - m->lost_ms > m->timeout_ms)
        pl_meeting_lose(m, m->me, MISSING, m->me, m->timeout_ms / 1000); /* the others wait for it */
}

/* At the end they go one by one: rank 0 counts those that have arrived as gone, the others wait for rank 0 alone, while it is
 * there. */
static bool may_go(const struct pl_meeting *m, int r)
{
    return m->leaving && (m->met || (m->me == 0 ? m->rank[r].arrived : r != 0 && !m->rank[0].lost));
}

static void look_for_lost(struct pl_meeting *m, double now)
{
    const char *why;
    for (int r = 0; r < m->ranks; r++) {
        struct rank *k = &m->rank[r];
        if (k->lost || r == m->me)
            continue;
        bool gone = pl_mesh_lost(m->mesh, r, &why);
        if ((!gone && now - k->heard_ms <= m->timeout_ms) || may_go(m, r))
            continue;
        if (gone)
            pl_meeting_lose(m, r, "%s", why);
        else
            pl_meeting_lose(m, r, "rank %d said nothing for %.0f s (exchange.timeout)", r, m->timeout_ms / 1000);
    }
}

void pl_meeting_look_round(struct pl_meeting *m, double now)
{
    look_for_lost(m, now);
    look_for_missing(m, now);
    call_the_roll(m);
    say_hello(m, now);
}

/* ---- what becomes of the run ------------------------------------------------------------------------------ */

/* Where a rank is lost, the first that is left ends the run, and the others wait for it, or for their turn. */
bool pl_meeting_is_over(const struct pl_meeting *m)
{
    return m->over || m->failed < 0 || m->code >= 0 || (is_first_left(m) && side(m) != NOT_KNOWN);
}

/* A rank is lost, and it is this one that ends the run and keeps what is left of it. */
bool pl_meeting_is_to_write(const struct pl_meeting *m)
{
    return m->code < 0 && m->failed == PL_OK && is_first_left(m) && side(m) == MOST;
}

/* At once: later another error may stand in its place. */
static pl_status say_loss(struct pl_meeting *m)
{
    int first = m->rank[m->me].lost ? m->me : m->rank[0].lost ? 0 : m->lost, left = 0;
    struct pl_text others = {0};
    for (int r = 0; r < m->ranks; r++) {
        left += !m->rank[r].lost;
        if (m->rank[r].lost && r != first)
            pl_text_add(&others, "%s%d", others.s ? ", " : "; lost as well: rank ", r);
    }
    const char *why = m->rank[first].why, *more = others.s ? others.s : "";
    if (side(m) == MOST || m->rank[m->me].lost)
        pl_error(PL_ERR_PEER, "sync", "%s%s", why, more);
    else if (m->away_ms > 0)
        pl_error(PL_ERR_PEER, "sync", "rank %d stood still for %.0f s, and the others are gone: it writes nothing", m->me, m->away_ms / 1000);
    else
        pl_error(PL_ERR_PEER, "sync", "%s%s\ncut off: %d of the %d ranks are on this side, which writes nothing", why, more, left, m->ranks);
    pl_text_free(&others);
    pl_world_say(m->replica.world, PL_ERR_PEER);
    return PL_ERR_PEER;
}

/* One message, from who found it; those who were told end with its code, and say nothing. */
pl_status pl_meeting_outcome(struct pl_meeting *m)
{
    if (m->failed < 0)
        return m->failed;
    if (m->code < 0 && is_first_left(m)) {
        m->noticed = true;
        return say_loss(m);
    }
    if (m->code > 0 && m->away_ms > 0) { /* for the others it was lost */
        pl_error((pl_status)-m->code, "sync", "rank %d stood still for %.0f s, and the others have ended the run: it writes nothing", m->me, m->away_ms / 1000);
        pl_world_say(m->replica.world, (pl_status)-m->code);
    }
    m->replica.world->reported = true;
    return m->code > 0 ? -m->code : PL_ERR_PEER;
}

/* That a rank failed by itself the first says, unless that was one before it. */
bool pl_meeting_tells(const struct pl_meeting *m)
{
    return pl_meeting_first_alive(m) == m->me && (m->code >= 0 ? m->from > m->me : m->lost < 0 || side(m) == MOST);
}

void pl_meeting_parts(struct pl_meeting *m, struct pl_agreement *out)
{
    pl_meeting_lock(m);
    *out = (struct pl_agreement){.ended = true, .tells = pl_meeting_tells(m), .writes = pl_meeting_is_to_write(m)};
    pl_meeting_unlock(m);
}
