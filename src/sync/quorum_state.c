/* Backup workers: sums and state for ranks that were late or away. A rank that is one step late takes that step's sum from
 * a rank of the group and updates by itself; one that is further behind takes parameters, optimizer and position. */
#include "sync/quorum_internal.h"

#include <string.h>

#define STUCK 2.0            /* times sync.suspect_after without a byte: a transfer is tried with another rank */
enum { PARTS_OF_ID = 8 };    /* transfers of one fetch: the head and the slabs */
#define NO_VERSION (-2)      /* state is half written; the one after it is none either */

/* ---- handing state out -------------------------------------------------------------------------------- */

static pl_status take_snapshot(struct pl_sync *s)
{
    for (int i = 0; i < s->slabs; i++)
        if (!s->snapshot.slab[i] && !(s->snapshot.slab[i] = pl_alloc(pl_quorum_slab_bytes(s), "state for a rank that comes back")))
            return PL_ERR_MEMORY;
    for (int i = 0; i < s->slabs; i++)
        memcpy(s->snapshot.slab[i], s->local ? s->average.start[i] : s->slab[i], pl_quorum_slab_bytes(s));
    s->snapshot.head = s->now;
    memcpy(s->snapshot.head.state, s->local ? s->resting : s->replica.state, s->replica.state_bytes);
    s->snapshot.version = s->now.version;
    return PL_OK;
}

/* Only what holds still: nobody updates, nobody fetches, and the snapshot is free or the same. */
static bool snapshot_fits(struct pl_sync *s, int64_t version, pl_status *failed)
{
    if (s->snapshot.users > 0)
        return s->snapshot.version >= version;
    if (s->now.version < version || s->fetch.active || pthread_mutex_trylock(&s->state) != 0)
        return false;
    if (s->snapshot.version != s->now.version)
        *failed = take_snapshot(s);
    pthread_mutex_unlock(&s->state);
    return *failed == PL_OK;
}

int pl_quorum_sum_of(const struct pl_sync *s, int64_t round)
{
    for (int i = 0; i < 2; i++)
        if (s->sum[i].round == round)
            return i;
    return -1;
}

/* Not the one that the main thread may be updating by. */
static int next_sum(const struct pl_sync *s) { return pl_quorum_sum_of(s, s->last.round) == 0 ? 1 : 0; }

static void start_serving(struct server *v, bool snapshot, int transfers)
{
    v->wanted = false;
    v->sending = true;
    v->of_snapshot = snapshot;
    v->id = v->asked;
    v->transfers = transfers;
    v->moved = 0;
    v->moved_ms = pl_now_ms();
}

static pl_status serve_sum(struct pl_sync *s, int r)
{
    struct server *v = &s->server[r];
    struct message m = {.kind = GONE, .fetch = {v->asked, v->version, v->round}};
    int i = pl_quorum_sum_of(s, v->round);
    if (i < 0) {
        v->wanted = false;
        return pl_mesh_say(s->mesh, r, &m) < 0 ? PL_ERR_PEER : PL_OK; /* unsaid, it finds out by itself */
    }
    start_serving(v, false, 1);
    return pl_mesh_send(s->mesh, &v->transfer[0], r, v->asked, s->sum[i].sum, pl_quorum_sum_bytes(s));
}

static pl_status begin_serving(struct pl_sync *s, int r)
{
    struct server *v = &s->server[r];
    pl_status failed = PL_OK;
    if (v->round != 0)
        return serve_sum(s, r);
    if (!snapshot_fits(s, v->version, &failed))
        return failed;
    start_serving(v, true, 1 + s->slabs);
    s->snapshot.users++;
    PL_TRY(pl_mesh_send(s->mesh, &v->transfer[0], r, v->asked, &s->snapshot.head, sizeof s->snapshot.head));
    for (int i = 0; i < s->slabs; i++)
        PL_TRY(pl_mesh_send(s->mesh, &v->transfer[1 + i], r, v->asked + 1 + (uint64_t)i, s->snapshot.slab[i], pl_quorum_slab_bytes(s)));
    return PL_OK;
}

/* How far transfers have come; true: none is under way. */
static bool ended(const struct pl_transfer *t, int n, size_t *moved, bool *failed)
{
    bool all = true;
    *moved = 0;
    *failed = false;
    for (int i = 0; i < n; i++) {
        all = all && !t[i].active;
        *failed = *failed || t[i].failed;
        *moved += t[i].moved;
    }
    return all;
}

static bool stuck(const struct pl_sync *s, size_t moved, size_t *before, double *since)
{
    double now = pl_now_ms();
    if (moved != *before) {
        *before = moved;
        *since = now;
    }
    return s->options.survives && now - *since > STUCK * s->options.suspect_ms; /* otherwise it cannot be given up */
}

static void stop_serving(struct pl_sync *s, int r, uint64_t before)
{
    struct server *v = &s->server[r];
    pl_mesh_forget_transfers(s->mesh, r, before);
    v->sending = false;
    s->snapshot.users -= v->of_snapshot;
}

pl_status pl_quorum_serve(struct pl_sync *s)
{
    for (int r = 0; r < s->options.ranks; r++) {
        struct server *v = &s->server[r];
        size_t moved;
        bool failed;
        if (v->sending) {
            if (!ended(v->transfer, v->transfers, &moved, &failed) && !stuck(s, moved, &v->moved, &v->moved_ms))
                continue;
            stop_serving(s, r, v->id + PARTS_OF_ID);
        }
        if (v->wanted)
            PL_TRY(begin_serving(s, r));
    }
    return PL_OK;
}

void pl_quorum_take_request(struct pl_sync *s, int from, const struct message *m)
{
    struct server *v = &s->server[from];
    if (m->fetch.id <= v->asked)
        return;
    if (v->sending && s->options.survives)
        stop_serving(s, from, m->fetch.id); /* it gave up what is still on its way; over mpi it has it, and this rank does not know yet */
    v->asked = m->fetch.id;
    v->version = m->fetch.version;
    v->round = m->fetch.round;
    v->wanted = true;
}

int pl_quorum_make_room(struct pl_sync *s)
{
    int next = next_sum(s);
    for (int r = 0; r < s->options.ranks; r++) {
        struct server *v = &s->server[r];
        if (!v->sending || v->of_snapshot || v->transfer[0].memory != (unsigned char *)s->sum[next].sum)
            continue;
        if (!s->options.survives && v->transfer[0].active)
            return -1;
        stop_serving(s, r, v->id + PARTS_OF_ID);
    }
    s->sum[next].round = 0;
    return next;
}

/* ---- fetching state ------------------------------------------------------------------------------------ */

/* This rank may be one of them, if what it summed up with them was given up here and committed elsewhere. */
static int another_of(const struct pl_sync *s, const struct pl_ranks *group)
{
    int n = pl_ranks_count(group) - pl_ranks_has(group, s->options.me), wanted = n > 0 ? s->options.me % n : 0;
    for (int r = 0; r < s->options.ranks; r++)
        if (r != s->options.me && pl_ranks_has(group, r) && wanted-- == 0)
            return r;
    return -1;
}

/* A sum into the place of the next, state over what this rank holds. */
static pl_status begin_fetch(struct pl_sync *s, int from, int64_t version, int64_t round)
{
    struct message m = {.kind = FETCH};
    int next = round != 0 ? pl_quorum_make_room(s) : 0;
    if (next < 0)
        return PL_OK; /* later */
    s->fetch.id = (uint64_t)version << 24 | (s->fetches++ & 0xffff) << 3;
    s->fetch.from = from;
    s->fetch.round = round;
    s->fetch.transfers = round != 0 ? 1 : 1 + s->slabs;
    m.fetch.id = s->fetch.id;
    m.fetch.version = version;
    m.fetch.round = round;
    if (from < 0 || from == s->options.me || pl_mesh_say(s->mesh, from, &m) != PL_OK) {
        if (round != 0)
            s->fetch.none = round; /* nor next time: it may be lost */
        return PL_OK;
    }
    s->fetch.active = true;
    s->fetch.moved = 0;
    s->fetch.moved_ms = pl_now_ms();
    if (round != 0)
        return pl_mesh_receive(s->mesh, &s->fetch.transfer[0], from, s->fetch.id, s->sum[next].sum, pl_quorum_sum_bytes(s));
    s->now.version = NO_VERSION;
    PL_TRY(pl_mesh_receive(s->mesh, &s->fetch.transfer[0], from, s->fetch.id, &s->got, sizeof s->got));
    for (int i = 0; i < s->slabs; i++)
        PL_TRY(pl_mesh_receive(s->mesh, &s->fetch.transfer[1 + i], from, s->fetch.id + 1 + (uint64_t)i, s->slab[i], pl_quorum_slab_bytes(s)));
    return PL_OK;
}

static void end_fetch(struct pl_sync *s)
{
    s->fetch.active = false;
    pl_mesh_forget_transfers(s->mesh, s->fetch.from, s->fetch.id + PARTS_OF_ID);
}

uint64_t pl_quorum_hash(const struct pl_sync *s) { return pl_hash_words(PL_HASH_START, s->slab[0], pl_quorum_slab_bytes(s)); }

void pl_quorum_take_refusal(struct pl_sync *s, const struct message *m)
{
    if (!s->fetch.active || m->fetch.id != s->fetch.id)
        return;
    s->fetch.none = s->fetch.round;
    end_fetch(s);
}

static void take_sum(struct pl_sync *s)
{
    int next = next_sum(s);
    s->sum[next].round = s->fetch.round;
    pl_quorum_whole(s->quorum, pl_now_ms(), s->fetch.round);
}

/* The main thread waits meanwhile: nobody reads what is written. */
static void take_state(struct pl_sync *s)
{
    s->now = s->got;
    s->last = s->now.last;
    s->before = s->now.last.members;
    s->sum[0].round = s->sum[1].round = 0;
    memcpy(s->replica.state, s->got.state, s->replica.state_bytes);
    if (s->local) {
        pl_averaging_restart(&s->average);
        memcpy(s->resting, s->got.state, s->replica.state_bytes);
    }
    pl_quorum_fetched(s->quorum, pl_now_ms(), s->now.version, &s->now.last);
    s->ready = false;
    s->fetched = true;
    if (s->leaving)
        pl_quorum_leave(s->quorum, pl_now_ms(), pl_quorum_hash(s));
}

static pl_status go_on_fetching(struct pl_sync *s)
{
    bool failed;
    size_t moved;
    if (!ended(s->fetch.transfer, s->fetch.transfers, &moved, &failed)) {
        if (!stuck(s, moved, &s->fetch.moved, &s->fetch.moved_ms))
            return PL_OK;
        failed = true;
    }
    end_fetch(s);
    if (failed)
        s->fetch.none = s->fetch.round; /* from another, or once more */
    else if (s->fetch.round != 0)
        take_sum(s);
    else
        take_state(s);
    return PL_OK;
}

/* A rank that is one step behind takes the sum while its main thread still computes; otherwise that has to wait. */
pl_status pl_quorum_fetch(struct pl_sync *s, const struct pl_task_now *t)
{
    if (s->fetch.active)
        return go_on_fetching(s);
    bool in = pl_ranks_has(&s->now.last.members, s->options.me); /* otherwise it reads no samples, and needs the position too */
    if (t->duty == PL_DUTY_SUM && in && s->fetch.none != t->attempt.round && t->attempt.step == s->now.version)
        return begin_fetch(s, another_of(s, &t->attempt.group), t->version, t->attempt.round);
    if (s->fetched && in && !s->leaving)
        return PL_OK; /* behind once more, but the main thread goes on from what has come */
    if ((t->duty == PL_DUTY_SUM || t->duty == PL_DUTY_FETCH) && s->waiting && s->outcome == NONE)
        return begin_fetch(s, t->from, t->version, 0);
    return PL_OK;
}
