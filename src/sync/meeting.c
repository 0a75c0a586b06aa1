/* Ranks that meet now and then: see meeting.h. The notes: a rank asks rank 0 for work and says what came of the piece
 * before; rank 0 answers with a ticket, or that there is none; who has finished arrives; when all have, rank 0 calls the
 * meeting. */
#include "sync/meeting_internal.h"

#include <string.h>

#define BUSY_MS 0.2   /* after anything happened, look again at once for so long */
#define SLEEP_MS 50.0
#define FLUSH_MS 2000.0

_Static_assert((int)PL_COUNTS <= (int)PL_MEETING_VALUES && (int)PL_PART_VALUES == (int)PL_MEETING_VALUES, "a meeting adds them up");

/* ---- notes ------------------------------------------------------------------------------------------------ */

static void hear(struct pl_meeting *m, int from, const struct message *msg)
{
    switch (msg->kind) {
    case HELLO: break;
    case ASK: pl_meeting_hear_ask(m, from, msg); break;
    case RESULT:
        m->rank[from].worked_ms = pl_now_ms();
        pl_meeting_hear_result(m, from, msg->part, msg->values);
        break;
    case VERDICT:
        m->judged = true;
        m->counts_it = msg->counts;
        break;
    case SPARE: pl_meeting_hear_spare(m, msg->part); break;
    case ARRIVE: pl_meeting_hear_arrival(m, from, msg); break;
    case OWN: m->hooks.hear(m->hooks.arg, from, msg->own); break;
    case TICKET: pl_meeting_hear_ticket(m, &msg->ticket); break;
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
        pl_meeting_lose(m, from, MISSING, from, m->timeout_ms / 1000);
        break;
    case GIVEN_UP:
        m->rank[from].gave_up = true;
        pl_meeting_lose(m, from, "rank %d has given rank %d up", from, m->me);
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

void pl_meeting_post(struct pl_meeting *m, int rank, const struct message *msg)
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
    pl_meeting_post(m, rank, &msg);
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

static pl_status turn(struct pl_meeting *m, bool *busy)
{
    struct message msg;
    int from;
    bool said;
    double now = pl_now_ms();
    *busy = false;
    pl_meeting_look_at_clock(m, now);
    while (pl_mesh_hear(m->mesh, &from, &msg)) {
        *busy = true;
        m->rank[from].heard_ms = now;
        hear(m, from, &msg);
    }
    pl_meeting_look_round(m, now);
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

void pl_meeting_shard(int64_t elems, int rank, int ranks, int64_t *begin, int64_t *end)
{
    *begin = elems / PL_MEETING_LINE * rank / ranks * PL_MEETING_LINE;
    *end = rank + 1 == ranks ? elems : elems / PL_MEETING_LINE * (rank + 1) / ranks * PL_MEETING_LINE;
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

void pl_meeting_fail(struct pl_meeting *m, pl_status error) { m->failed = error; }

pl_status pl_meeting_wait(struct pl_meeting *m, bool (*done)(const void *arg), const void *arg)
{
    wake(m); /* once: it broadcasts whenever it was awake */
    while (!done(arg) && !pl_meeting_is_over(m))
        pthread_cond_wait(&m->news, &m->lock);
    return pl_meeting_is_over(m) ? pl_meeting_outcome(m) : PL_OK;
}

pl_status pl_meeting_wait_for_the_rest(struct pl_meeting *m, bool (*done)(const void *arg), const void *arg)
{
    wake(m);
    while (!done(arg) && !m->over && m->failed == PL_OK && m->code < 0)
        pthread_cond_wait(&m->news, &m->lock);
    return m->failed;
}

/* ---- the end ---------------------------------------------------------------------------------------------- */

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
    if (s < 0 && !wrote && pl_meeting_is_to_write(m))
        return PL_END;
    struct message msg = {.kind = FAIL, .code = s < 0 ? pl_exit_code(s) : code};
    pl_meeting_lock(m);
    if (m->code >= 0) /* another said why */
        m->replica.world->reported = true;
    bool found = m->lost < 0 || m->failed < 0 || pl_meeting_first_alive(m) == m->me; /* the first that is left is to find a loss itself */
    for (int r = 0; r < m->ranks && msg.code != 0 && found; r++)
        if (r != m->me)
            pl_meeting_post(m, r, &msg);
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
    out->tells = status < 0 && pl_meeting_tells(m);
    return code == 0 ? status : PL_OK;
}
