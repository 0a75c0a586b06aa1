/* Ranks that meet now and then: see meeting.h. The notes: a rank asks rank 0 for work and says what came of the piece
 * before; rank 0 answers with a ticket, or that there is none; who has finished arrives; when all have, rank 0 calls the
 * meeting. Asked for one ahead, a ticket is there when the main thread is ready for it. Portions of a set that others have
 * are handed out to who is idle only; of each result rank 0 says whether it counts, and to who else has that portion that
 * it is spare. */
#include "sync/counts.h"
#include "sync/meeting.h"

#include "data/data.h"

#include <math.h>
#include <string.h>

#define MISSING "rank %d did not come to a meeting for %.0f s (exchange.timeout)"
#define BUSY_MS 0.2   /* after anything happened, look again at once for so long */
#define SLEEP_MS 50.0
#define HELLO_MS 1000.0
#define FLUSH_MS 2000.0
enum { OUTBOX = 32 };

_Static_assert((int)PL_COUNTS <= (int)PL_MEETING_VALUES && (int)PL_PART_VALUES == (int)PL_MEETING_VALUES, "a meeting adds them up");

enum kind { HELLO, ASK, RESULT, TICKET, CLOSED, VERDICT, SPARE, ARRIVE, MEET, GONE, GIVEN_UP, ROLL, HERE, FAIL, OWN };
struct message {
    enum kind kind;
    int part;        /* ask, result: what values are of, -1: of none; spare */
    int taken;       /* ask: tickets that came in this phase */
    bool idle;       /* ask: there is nothing else to do */
    bool counts;     /* verdict */
    int64_t phase;
    union {
        double values[PL_MEETING_VALUES];
        struct pl_ticket ticket;
        struct { double values[PL_MEETING_VALUES]; int64_t counts[PL_MEETING_COUNTS]; } arrive;
        struct pl_meet meet;
        int code;
        _Alignas(8) unsigned char own[PL_MEETING_NOTE];
    };
};

struct rank {
    bool local;                 /* on this node */
    bool lost;
    char why[256];
    bool calls, here;           /* when a rank is lost: it calls the roll; it has answered ours */
    bool gave_up, hangs;        /* this rank; itself: as it said */
    double heard_ms, worked_ms; /* any note; one of work (rank 0's) */
    struct message out[OUTBOX]; /* not yet said */
    unsigned first, n;
    /* rank 0's */
    bool asks, idle, arrived;
    int64_t phase;              /* in which it asks or has arrived */
    int given;                  /* tickets in it */
    double values[PL_MEETING_VALUES];
};

/* Of a set: who has it. */
struct portion { int holder[2], holders; bool done; };

struct pl_meeting {
    struct pl_replica replica;
    struct pl_meeting_hooks hooks;
    struct pl_mesh *mesh;
    int me, ranks, *leader; /* leader: [ranks] the first of each one's node */
    double timeout_ms;
    pthread_t thread;
    bool started, threaded;
    _Atomic bool asleep;
    _Atomic bool spare;   /* what the main thread does has been done by another */

    pthread_mutex_t lock; /* everything below */
    pthread_cond_t news;
    struct rank *rank;    /* [ranks] */
    int64_t phase;        /* the one that is open, or was last */
    bool leg, closed, asking, met, leaving, over;
    int64_t samples, rows; /* of the set that is gone through, in portions; 0: none is */
    struct pl_ticket hand;
    bool in_hand, hand_spare, asked_idle, judged, counts_it;
    int taken;
    double done[PL_MEETING_VALUES];
    int done_part, doing;
    struct pl_meet meet;
    int lost, code, from; /* lost, -1: nobody; code: the run is over with, said by `from` */
    bool called, noticed; /* the roll, by this rank; a loss, by the main thread */
    pl_status failed;     /* of the thread */
    double hello_ms, moved_ms, over_ms, lost_ms; /* lost_ms: anybody, last */
    double turned_ms, away_ms; /* away_ms: this process stood still for so long that others may have given it up; 0: never */
    /* ---- rank 0's ---- */
    struct pl_leg next;   /* of the leg: the global batch that is being handed out */
    int slice, parts, part;
    bool closing;
    double sum[PL_MEETING_VALUES], came[PL_MEETING_VALUES], *part_values; /* [part_room * PL_MEETING_VALUES] */
    struct portion *portion; /* [part_room] */
    int part_room, undone;   /* the first portion that may not be done */
    int64_t counts[PL_MEETING_COUNTS], *share;
};

static void add(double *to, const double *v)
{
    for (int i = 0; i < PL_MEETING_VALUES; i++)
        to[i] += v[i];
}

/* ---- rank 0 hands out ----------------------------------------------------------------------------------- */

static void post(struct pl_meeting *m, int rank, const struct message *msg);
static void lose(struct pl_meeting *m, int r, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

static void next_global_batch(struct pl_leg *l)
{
    l->step++;
    l->position += l->global_batch;
    if (l->position < l->epoch_samples)
        return;
    l->epoch++;
    l->position = 0;
}

/* The next micro-batch of the leg; the meeting falls between two global batches. */
static bool next_of_leg(struct pl_meeting *m, struct pl_ticket *out)
{
    struct pl_leg *l = &m->next;
    while (l->step < l->until && !(m->closing && m->slice == 0)) {
        *out = (struct pl_ticket){.step = l->step, .epoch = l->epoch};
        pl_sampler_share(l->epoch_samples, l->global_batch, l->position, m->slice, m->ranks, &out->first, &out->rows);
        if (++m->slice == m->ranks) {
            m->slice = 0;
            next_global_batch(l);
        }
        if (out->rows > 0)
            return true;
    }
    return false;
}

/* Nobody's yet, or another's and of one only. */
static bool next_portion(struct pl_meeting *m, int r, struct pl_ticket *out)
{
    int i = m->part;
    if (m->closing)
        return false;
    if (i == m->parts) {
        while (m->undone < m->parts && m->portion[m->undone].done)
            m->undone++;
        for (i = m->undone; i < m->parts; i++)
            if (!m->portion[i].done && m->portion[i].holders == 1 && m->portion[i].holder[0] != r)
                break;
        if (i == m->parts)
            return false;
    } else {
        m->part++;
    }
    int64_t first = i * m->rows, left = m->samples - first;
    m->portion[i].holder[m->portion[i].holders++] = r;
    *out = (struct pl_ticket){.step = i, .first = first, .rows = left < m->rows ? left : m->rows};
    return true;
}

static bool next_ticket(struct pl_meeting *m, int r, struct pl_ticket *out)
{
    if (m->leg)
        return next_of_leg(m, out);
    if (m->samples > 0)
        return next_portion(m, r, out);
    *out = (struct pl_ticket){.step = m->part};
    return m->part < m->parts && m->part++ >= 0;
}

static void answer(struct pl_meeting *m, int r)
{
    struct rank *k = &m->rank[r];
    struct message msg = {.kind = TICKET, .phase = m->phase};
    if (!k->asks || k->phase != m->phase)
        return;
    if (m->samples > 0 && m->part == m->parts && !k->idle)
        return; /* what others have it may have when it is */
    k->asks = false;
    if (next_ticket(m, r, &msg.ticket))
        k->given++;
    else
        msg.kind = CLOSED;
    post(m, r, &msg);
}

/* All are there, and so all pieces of work are done. */
static void call_meeting(struct pl_meeting *m)
{
    struct message msg = {.kind = MEET, .phase = m->phase};
    for (int r = 0; r < m->ranks; r++)
        if (!m->rank[r].arrived || m->rank[r].phase != m->phase)
            return;
    for (int i = 0; i < m->parts; i++)
        add(m->sum, m->part_values + i * PL_MEETING_VALUES);
    if (m->samples > 0 && m->closing && m->sum[PL_COUNT_STOP] == 0)
        m->sum[PL_COUNT_STOP] = 1; /* said with a result that does not count */
    for (int r = 0; r < m->ranks; r++) {
        m->rank[r].arrived = false;
        add(m->sum, m->rank[r].values);
    }
    memcpy(msg.meet.values, m->sum, sizeof m->sum);
    msg.meet.step = m->next.step;
    msg.meet.epoch = m->next.epoch;
    msg.meet.position = m->next.position;
    for (int r = m->ranks - 1; r >= 0; r--) /* itself last: it may go on at once */
        post(m, r, &msg);
}

/* The first counts; who else has the portion may leave it. */
static void judge(struct pl_meeting *m, int from, int part, const double *v)
{
    struct portion *p = &m->portion[part];
    struct message verdict = {.kind = VERDICT, .phase = m->phase, .counts = !p->done}, spare = {.kind = SPARE, .phase = m->phase, .part = part};
    m->closing = m->closing || v[PL_COUNT_STOP] > 0;
    if (!p->done) {
        memcpy(m->part_values + part * PL_MEETING_VALUES, v, sizeof m->sum);
        m->share[from]++;
        p->done = true;
        if (p->holders == 2)
            post(m, p->holder[p->holder[0] == from], &spare);
    }
    post(m, from, &verdict);
}

static void take_result(struct pl_meeting *m, int from, int part, const double *v)
{
    if (part < 0)
        return;
    if (m->samples > 0) {
        judge(m, from, part, v);
        return;
    }
    if (!m->leg) {
        memcpy(m->part_values + part * PL_MEETING_VALUES, v, sizeof m->sum);
        return;
    }
    add(m->sum, v);
    add(m->came, v);
    m->share[from]++;
    m->closing = m->closing || v[PL_COUNT_STOP] > 0 || v[PL_COUNT_SAVE] > 0;
}

/* What is asked before this rank has opened the phase waits until it does; what was done is of the one before or of this. */
static void hear_ask(struct pl_meeting *m, int from, const struct message *msg)
{
    struct rank *k = &m->rank[from];
    k->given = k->phase == msg->phase ? k->given : 0;
    k->phase = msg->phase;
    k->worked_ms = pl_now_ms();
    take_result(m, from, msg->part, msg->values);
    if (msg->taken < k->given)
        return; /* idle, it said, but the answer was on its way */
    k->asks = true;
    k->idle = msg->idle;
    answer(m, from);
}

static void hear_arrival(struct pl_meeting *m, int from, const struct message *msg)
{
    struct rank *k = &m->rank[from];
    k->arrived = true;
    k->phase = msg->phase;
    k->worked_ms = pl_now_ms();
    memcpy(k->values, msg->arrive.values, sizeof k->values);
    for (int i = 0; i < PL_MEETING_COUNTS; i++)
        m->counts[i] += msg->arrive.counts[i];
    call_meeting(m);
}

/* ---- a rank works ---------------------------------------------------------------------------------------- */

/* With what came of the last. */
static void tell_result(struct pl_meeting *m, enum kind kind)
{
    struct message msg = {.kind = kind, .phase = m->phase, .part = m->done_part, .taken = m->taken, .idle = m->asked_idle};
    memcpy(msg.values, m->done, sizeof m->done);
    m->done_part = -1;
    post(m, 0, &msg);
}

/* Again when there is nothing else to do. */
static void ask(struct pl_meeting *m, bool idle)
{
    if (m->closed || m->in_hand || (m->asking && (m->asked_idle || !idle)))
        return;
    m->asking = true;
    m->asked_idle = idle;
    tell_result(m, ASK);
}

static void hear_ticket(struct pl_meeting *m, const struct pl_ticket *t)
{
    m->asking = m->hand_spare = false;
    m->in_hand = true;
    m->taken++;
    m->hand = *t;
    pl_status s = m->leg || m->samples > 0 ? m->replica.ahead(m->replica.arg, t) : PL_OK;
    if (s < 0)
        m->failed = s;
}

static void hear_spare(struct pl_meeting *m, int part)
{
    if (m->in_hand && m->hand.step == part)
        m->hand_spare = true;
    else if (m->doing == part)
        atomic_store(&m->spare, true);
}

static void hear(struct pl_meeting *m, int from, const struct message *msg)
{
    switch (msg->kind) {
    case HELLO: break;
    case ASK: hear_ask(m, from, msg); break;
    case RESULT:
        m->rank[from].worked_ms = pl_now_ms();
        take_result(m, from, msg->part, msg->values);
        break;
    case VERDICT:
        m->judged = true;
        m->counts_it = msg->counts;
        break;
    case SPARE: hear_spare(m, msg->part); break;
    case ARRIVE: hear_arrival(m, from, msg); break;
    case OWN: m->hooks.hear(m->hooks.arg, from, msg->own); break;
    case TICKET: hear_ticket(m, &msg->ticket); break;
    case CLOSED:
        m->asking = false;
        m->closed = true;
        break;
    case MEET:
        m->met = true;
        m->meet = msg->meet;
        break;
    case GONE:
        m->rank[from].hangs = true;
        lose(m, from, MISSING, from, m->timeout_ms / 1000);
        break;
    case GIVEN_UP:
        m->rank[from].gave_up = true;
        lose(m, from, "rank %d has given rank %d up", from, m->me);
        break;
    case ROLL: m->rank[from].calls = true; break;
    case HERE: m->rank[from].here = true; break;
    case FAIL:
        if (m->code < 0) {
            m->code = msg->code;
            m->from = from;
        }
        break;
    }
    pthread_cond_broadcast(&m->news);
}

static void post(struct pl_meeting *m, int rank, const struct message *msg)
{
    struct rank *k = &m->rank[rank];
    if (rank == m->me) {
        hear(m, rank, msg);
        return;
    }
    if (k->lost)
        return;
    if (k->n == OUTBOX) { /* it answers nothing, and there is no bound to what is to be said */
        m->failed = pl_error(PL_ERR_PEER, "sync", "rank %d takes no notes", rank);
        return;
    }
    k->out[(k->first + k->n++) % OUTBOX] = *msg;
}

void pl_meeting_say(struct pl_meeting *m, int rank, const void *note, size_t bytes)
{
    struct message msg = {.kind = OWN, .phase = m->phase};
    memcpy(msg.own, note, bytes);
    post(m, rank, &msg);
}

/* ---- the thread ------------------------------------------------------------------------------------------ */

static bool flush(struct pl_meeting *m)
{
    bool any = false;
    for (int r = 0; r < m->ranks; r++) {
        struct rank *k = &m->rank[r];
        pl_status s = PL_OK;
        while (k->n > 0 && (s = pl_mesh_say(m->mesh, r, &k->out[k->first])) == PL_OK) {
            k->first = (k->first + 1) % OUTBOX;
            k->n--;
            any = true;
        }
        if (s < 0)
            m->failed = s;
    }
    return any;
}

static double hello_period(const struct pl_meeting *m) { return m->timeout_ms / 4 < HELLO_MS ? m->timeout_ms / 4 : HELLO_MS; }

static void look_at_clock(struct pl_meeting *m, double now)
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
            post(m, r, &msg);
}

/* Each is told that it is lost, if that can be: it may only have hung. */
static void lose(struct pl_meeting *m, int r, const char *fmt, ...)
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
        post(m, r, &given_up);
    k->lost = true;
    m->lost_ms = pl_now_ms();
    m->lost = m->lost < 0 ? r : m->lost;
    pthread_cond_broadcast(&m->news);
    for (int to = 0; to < m->ranks && r == m->me; to++) /* its main thread hangs: the others are to go on without it */
        if (to != m->me)
            post(m, to, &gone);
}

static int first_alive(const struct pl_meeting *m)
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

static bool is_first_left(const struct pl_meeting *m) { return m->lost >= 0 && first_alive(m) == m->me; }

/* The first that is left asks who else is; each answers the one that is first as it sees it. */
static void call_the_roll(struct pl_meeting *m)
{
    struct message roll = {.kind = ROLL}, here = {.kind = HERE};
    struct rank *first = &m->rank[first_alive(m)];
    bool calls = is_first_left(m) && !m->called;
    for (int r = 0; r < m->ranks && calls; r++)
        if (r != m->me)
            post(m, r, &roll);
    m->called = m->called || calls;
    if (first->calls) /* who answers may have lost none */
        post(m, first_alive(m), &here);
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
        lose(m, r, MISSING, r, m->timeout_ms / 1000);
    }
    if (is_first_left(m) && side(m) != NOT_KNOWN && !m->noticed && now - m->lost_ms > m->timeout_ms)
        lose(m, m->me, MISSING, m->me, m->timeout_ms / 1000); /* the others wait for it */
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
            lose(m, r, "%s", why);
        else
            lose(m, r, "rank %d said nothing for %.0f s (exchange.timeout)", r, m->timeout_ms / 1000);
    }
}

static pl_status turn(struct pl_meeting *m, bool *busy)
{
    struct message msg;
    int from;
    bool said;
    double now = pl_now_ms();
    *busy = false;
    look_at_clock(m, now);
    while (pl_mesh_hear(m->mesh, &from, &msg)) {
        *busy = true;
        m->rank[from].heard_ms = now;
        hear(m, from, &msg);
    }
    look_for_lost(m, now);
    look_for_missing(m, now);
    call_the_roll(m);
    say_hello(m, now);
    PL_TRY(m->hooks.turn(m->hooks.arg, busy));
    said = flush(m);
    *busy = *busy || said;
    return m->failed;
}

static bool all_said(const struct pl_meeting *m)
{
    for (int r = 0; r < m->ranks; r++)
        if (!m->rank[r].lost && m->rank[r].n > 0)
            return false;
    return true;
}

static void *run(void *arg)
{
    struct pl_meeting *m = arg;
    bool over = false, busy = false;
    pl_status failed = PL_OK;
    while (!over && failed == PL_OK) {
        pthread_mutex_lock(&m->lock);
        failed = turn(m, &busy);
        over = m->over && (all_said(m) || pl_now_ms() - m->over_ms > FLUSH_MS);
        atomic_store(&m->asleep, !busy);
        pthread_cond_broadcast(&m->news);
        pthread_mutex_unlock(&m->lock);
        double now = pl_now_ms();
        if (busy)
            m->moved_ms = now;
        if (!over && failed == PL_OK)
            failed = pl_mesh_progress(m->mesh, now - m->moved_ms < BUSY_MS ? 0 : SLEEP_MS);
        atomic_store(&m->asleep, false);
    }
    pthread_mutex_lock(&m->lock);
    m->failed = failed;
    m->over = true;
    pthread_cond_broadcast(&m->news);
    pthread_mutex_unlock(&m->lock);
    return NULL;
}

/* The thread says what there is to say, and ends. */
static void stop(struct pl_meeting *m)
{
    if (!m->threaded)
        return;
    pthread_mutex_lock(&m->lock);
    m->over_ms = pl_now_ms();
    m->over = true;
    pthread_mutex_unlock(&m->lock);
    pl_mesh_wake(m->mesh);
    pthread_join(m->thread, NULL);
    m->threaded = false;
}

/* ---- set-up ---------------------------------------------------------------------------------------------- */

static pl_status prepare(struct pl_meeting *m)
{
    m->rank = pl_alloc((size_t)m->ranks * sizeof *m->rank, "notes");
    m->share = pl_alloc((size_t)m->ranks * sizeof *m->share, "counts");
    m->leader = pl_alloc((size_t)m->ranks * sizeof *m->leader, "the nodes of ranks");
    return m->rank && m->share && m->leader ? PL_OK : PL_ERR_MEMORY;
}

static pl_status find_neighbours(struct pl_meeting *m)
{
    const struct pl_world *w = m->replica.world;
    PL_TRY(pl_world_allgather(m->replica.world, &w->leader, sizeof w->leader, m->leader));
    for (int r = 0; r < m->ranks; r++)
        m->rank[r].local = m->leader[r] == w->leader;
    return PL_OK;
}

pl_status pl_meeting_create(const struct pl_replica *r, const struct pl_meeting_hooks *h, struct pl_meeting **out)
{
    struct pl_meeting *m = pl_alloc(sizeof *m, "a meeting");
    if (m) {
        *m = (struct pl_meeting){.replica = *r, .hooks = *h, .me = r->world->rank, .ranks = r->world->ranks, .lost = -1, .code = -1,
                                 .done_part = -1, .timeout_ms = r->job->exchange.timeout_ms};
        pthread_mutex_init(&m->lock, NULL);
        pthread_cond_init(&m->news, NULL);
    }
    pl_status s = pl_world_agree(r->world, m ? prepare(m) : PL_ERR_MEMORY);
    if (s == PL_OK)
        s = find_neighbours(m);
    if (s == PL_OK)
        s = pl_mesh_open(r->world, r->exchange, sizeof(struct message), &m->mesh);
    if (s < 0) {
        pl_meeting_destroy(m);
        return s;
    }
    m->replica.exchange = NULL;
    *out = m;
    return PL_OK;
}

void pl_meeting_destroy(struct pl_meeting *m)
{
    if (!m)
        return;
    stop(m);
    pl_mesh_close(m->mesh, m->started && !(m->leaving && m->met && m->failed == PL_OK));
    pthread_mutex_destroy(&m->lock);
    pthread_cond_destroy(&m->news);
    pl_free(m->rank);
    pl_free(m->share);
    pl_free(m->leader);
    pl_free(m->part_values);
    pl_free(m->portion);
    pl_free(m);
}

struct pl_mesh *pl_meeting_mesh(struct pl_meeting *m) { return m->mesh; }

pl_status pl_meeting_start(struct pl_meeting *m)
{
    if (m->started)
        return PL_OK;
    for (int r = 0; r < m->ranks; r++)
        m->rank[r].heard_ms = m->rank[r].worked_ms = pl_now_ms();
    pl_status s = pl_thread_start(&m->thread, "meeting", run, m);
    m->started = m->threaded = s == PL_OK;
    return s;
}

/* ---- the main thread -------------------------------------------------------------------------------------- */

void pl_meeting_lock(struct pl_meeting *m) { pthread_mutex_lock(&m->lock); }

void pl_meeting_fail(struct pl_meeting *m, pl_status error) { m->failed = error; }

void pl_meeting_lose(struct pl_meeting *m, int rank, const char *why) { lose(m, rank, "%s", why); }
bool pl_meeting_is_lost(const struct pl_meeting *m, int rank) { return m->rank[rank].lost; }

/* Where a rank is lost, the first that is left ends the run, and the others wait for it, or for their turn. */
static bool is_over(const struct pl_meeting *m)
{
    return m->over || m->failed < 0 || m->code >= 0 || (is_first_left(m) && side(m) != NOT_KNOWN);
}

/* A rank is lost, and it is this one that ends the run and keeps what is left of it. */
static bool is_to_write(const struct pl_meeting *m)
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
static pl_status outcome(struct pl_meeting *m)
{
    if (m->failed < 0)
        return m->failed;
    if (m->code < 0 && is_first_left(m)) {
        m->noticed = true;
        return say_loss(m);
    }
    m->replica.world->reported = true;
    return m->code > 0 ? -m->code : PL_ERR_PEER;
}

/* What the thread finds to do it does at once. */
static void wake(struct pl_meeting *m)
{
    if (atomic_load(&m->asleep))
        pl_mesh_wake(m->mesh);
}

void pl_meeting_unlock(struct pl_meeting *m)
{
    pthread_mutex_unlock(&m->lock);
    wake(m);
}

pl_status pl_meeting_wait(struct pl_meeting *m, bool (*done)(const void *arg), const void *arg)
{
    wake(m); /* once: it broadcasts whenever it was awake */
    while (!done(arg) && !is_over(m))
        pthread_cond_wait(&m->news, &m->lock);
    return is_over(m) ? outcome(m) : PL_OK;
}

pl_status pl_meeting_wait_for_the_rest(struct pl_meeting *m, bool (*done)(const void *arg), const void *arg)
{
    wake(m);
    while (!done(arg) && !m->over && m->failed == PL_OK && m->code < 0)
        pthread_cond_wait(&m->news, &m->lock);
    return m->failed;
}

static pl_status room_for_parts(struct pl_meeting *m, int parts)
{
    if (m->me != 0)
        return PL_OK;
    if (parts > m->part_room) {
        pl_free(m->part_values);
        pl_free(m->portion);
        m->part_values = pl_alloc((size_t)parts * PL_MEETING_VALUES * sizeof(double), "results of parts");
        m->portion = pl_alloc((size_t)parts * sizeof *m->portion, "portions");
        m->part_room = m->part_values && m->portion ? parts : 0;
        if (m->part_room == 0)
            return PL_ERR_MEMORY;
    }
    if (parts > 0) {
        memset(m->part_values, 0, (size_t)parts * PL_MEETING_VALUES * sizeof(double));
        memset(m->portion, 0, (size_t)parts * sizeof *m->portion);
    }
    return PL_OK;
}

static pl_status open_phase(struct pl_meeting *m, const struct pl_leg *leg, int parts, int64_t samples, int64_t rows)
{
    pl_meeting_lock(m);
    pl_status s = room_for_parts(m, parts);
    m->phase++;
    m->leg = leg != NULL;
    m->met = m->asking = m->asked_idle = m->in_hand = m->closing = false;
    m->closed = !leg && parts == 0;
    m->done_part = m->doing = -1;
    m->parts = parts;
    m->part = m->slice = m->taken = m->undone = 0;
    m->samples = samples;
    m->rows = rows;
    memset(m->sum, 0, sizeof m->sum);
    memset(m->done, 0, sizeof m->done);
    if (leg)
        m->next = *leg;
    if (s == PL_OK && !m->closed)
        ask(m, false);
    for (int r = 0; r < m->ranks && m->me == 0; r++)
        answer(m, r); /* who was here first */
    pl_meeting_unlock(m);
    return s;
}

pl_status pl_meeting_open(struct pl_meeting *m, const struct pl_leg *leg, int parts) { return open_phase(m, leg, parts, 0, 0); }

pl_status pl_meeting_open_set(struct pl_meeting *m, int64_t samples, int64_t rows)
{
    int64_t portions = (samples + rows - 1) / rows;
    int parts;
    PL_TRY(pl_narrow_int(portions, "portions of the training set", &parts));
    return open_phase(m, NULL, parts, samples, rows);
}

static bool has_ticket(const void *arg)
{
    const struct pl_meeting *m = arg;
    return m->in_hand || m->closed;
}

pl_status pl_meeting_take(struct pl_meeting *m, struct pl_ticket *out)
{
    pl_meeting_lock(m);
    if (m->samples > 0)
        ask(m, true);
    pl_status s = pl_meeting_wait(m, has_ticket, m);
    if (s == PL_OK && !m->in_hand)
        s = PL_END;
    if (s == PL_OK) {
        *out = m->hand;
        m->in_hand = false;
        m->doing = m->leg ? 0 : (int)m->hand.step;
        atomic_store(&m->spare, m->hand_spare);
        ask(m, false);
    }
    pl_meeting_unlock(m);
    return s;
}

void pl_meeting_done(struct pl_meeting *m, const double *values)
{
    pl_meeting_lock(m);
    m->done_part = m->doing;
    m->judged = false;
    memcpy(m->done, values, sizeof m->done);
    if (m->me == 0 || m->samples > 0)
        tell_result(m, RESULT);
    pl_meeting_unlock(m);
}

bool pl_meeting_is_spare(struct pl_meeting *m) { return atomic_load(&m->spare); }

static bool is_judged(const void *arg) { return ((const struct pl_meeting *)arg)->judged; }

pl_status pl_meeting_counts_it(struct pl_meeting *m, bool *counts)
{
    pl_meeting_lock(m);
    pl_status s = pl_meeting_wait(m, is_judged, m);
    *counts = m->counts_it;
    pl_meeting_unlock(m);
    return s;
}

static bool has_met(const void *arg) { return ((const struct pl_meeting *)arg)->met; }

pl_status pl_meeting_meet(struct pl_meeting *m, const double *values, const int64_t *counts, struct pl_meet *out)
{
    struct message msg = {.kind = ARRIVE, .phase = m->phase};
    if (values)
        memcpy(msg.arrive.values, values, sizeof msg.arrive.values);
    if (counts)
        memcpy(msg.arrive.counts, counts, sizeof msg.arrive.counts);
    pl_meeting_lock(m);
    if (m->done_part >= 0)
        tell_result(m, RESULT);
    post(m, 0, &msg);
    pl_status s = pl_meeting_wait(m, has_met, m);
    if (s == PL_OK && out)
        *out = m->meet;
    pl_meeting_unlock(m);
    return s;
}

pl_status pl_meeting_share_out(struct pl_meeting *m, const struct pl_parts *p, double *sum)
{
    struct pl_ticket part;
    struct pl_meet met;
    double v[PL_MEETING_VALUES];
    pl_status status = pl_meeting_start(m);
    if (status == PL_OK)
        status = pl_meeting_open(m, NULL, p->parts);
    while (status == PL_OK && (status = pl_meeting_take(m, &part)) == PL_OK) {
        memset(v, 0, sizeof v);
        PL_TRY(p->run(p->arg, (int)part.step, v)); /* this rank's own */
        pl_meeting_done(m, v);
    }
    if (status == PL_END)
        status = pl_meeting_meet(m, NULL, NULL, &met);
    for (int i = 0; i < p->values; i++)
        sum[i] = status == PL_OK ? met.values[i] : NAN; /* the run is over: the next step finds it so, in order */
    return PL_OK;
}

void pl_meeting_news(struct pl_meeting *m, double *values)
{
    pl_meeting_lock(m);
    memcpy(values, m->came, sizeof m->came);
    memset(m->came, 0, sizeof m->came);
    pl_meeting_unlock(m);
}

void pl_meeting_counts(struct pl_meeting *m, int64_t *counts)
{
    pl_meeting_lock(m);
    memcpy(counts, m->counts, sizeof m->counts);
    pl_meeting_unlock(m);
}

const int64_t *pl_meeting_shares(const struct pl_meeting *m) { return m->share; }

/* ---- the end ---------------------------------------------------------------------------------------------- */

/* To the global batch that rank 0 was handing out; another rank knows of those that it had pieces of. */
static struct pl_leg where_now(const struct pl_meeting *m)
{
    struct pl_leg l = m->next;
    int64_t first, rows;
    while (m->me > 0 && m->taken > 0 && l.step < m->hand.step)
        next_global_batch(&l);
    if (m->me > 0 || m->slice == 0)
        return l;
    pl_sampler_share(l.epoch_samples, l.global_batch, l.position, m->slice, m->ranks, &first, &rows);
    l.position = first < l.epoch_samples ? first : l.position;
    return l;
}

void pl_meeting_place(struct pl_meeting *m, struct pl_agreement *out)
{
    pl_meeting_lock(m);
    struct pl_leg l = where_now(m);
    out->apart = m->leg;
    out->step = l.step;
    out->epoch = l.epoch;
    out->position = l.position;
    pl_meeting_unlock(m);
}

/* That a rank failed by itself the first says, unless that was one before it. */
static bool tells(const struct pl_meeting *m)
{
    return first_alive(m) == m->me && (m->code >= 0 ? m->from > m->me : m->lost < 0 || side(m) == MOST);
}

void pl_meeting_parts(struct pl_meeting *m, struct pl_agreement *out)
{
    pl_meeting_lock(m);
    *out = (struct pl_agreement){.ended = true, .tells = tells(m), .writes = is_to_write(m)};
    pl_meeting_unlock(m);
}

static pl_status meet_at_the_end(struct pl_meeting *m)
{
    pl_meeting_lock(m);
    m->leaving = true;
    pl_meeting_unlock(m);
    PL_TRY(pl_meeting_open(m, NULL, 0));
    return pl_meeting_meet(m, NULL, NULL, NULL);
}

pl_status pl_meeting_leave(struct pl_meeting *m, int code, bool wrote)
{
    pl_status s = PL_OK;
    if (!m->threaded)
        return PL_OK;
    if (code == 0)
        s = meet_at_the_end(m);
    if (s < 0 && !wrote && is_to_write(m))
        return PL_END;
    struct message msg = {.kind = FAIL, .code = s < 0 ? pl_exit_code(s) : code};
    pl_meeting_lock(m);
    if (m->code >= 0) /* another said why */
        m->replica.world->reported = true;
    bool found = m->lost < 0 || m->failed < 0 || first_alive(m) == m->me; /* the first that is left is to find a loss itself */
    for (int r = 0; r < m->ranks && msg.code != 0 && found; r++)
        if (r != m->me)
            post(m, r, &msg);
    pl_meeting_unlock(m);
    stop(m);
    return s;
}

pl_status pl_meeting_part(struct pl_meeting *m, int code, bool wrote, struct pl_parting *out)
{
    *out = (struct pl_parting){.dropped = ""};
    pl_status status = pl_meeting_start(m);
    if (status == PL_OK)
        status = pl_meeting_leave(m, code, wrote);
    out->clean = code == 0 && status == PL_OK;
    out->tells = status < 0 && tells(m);
    return code == 0 ? status : PL_OK;
}
