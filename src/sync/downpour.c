/* Downpour SGD (Dean et al., Large scale distributed deep networks, NIPS 2012): every rank keeps a part of the parameters,
 * its shard, and is also a worker. A worker computes gradients of micro-batches that it is handed as it is free, by
 * parameters that it fetches from all shards every sync.n_fetch of them, and pushes the sum of its gradients to all shards
 * every sync.n_push; in between it goes down its own gradient by plain SGD. A shard applies a gradient when it comes, by the
 * optimizer: sum over micro-batches of mean gradients, with the learning rate of the step that they belong to. Its version
 * counts updates; a gradient whose parameters are more than sync.max_staleness versions old is dropped and counted.
 *
 * The thread of meeting.c serves this rank's shard while the main thread computes, so a slow rank serves as fast as others.
 * A rank's requests come to a shard in order: what it fetches holds what it pushed. The first sync.warmup steps are
 * synchronous SGD. At a meeting all has been applied; each fetches all shards, parameters and optimizer's state, so that
 * evaluations and checkpoints are those of any other kind, and a run may go on with another. */
#include "sync/counts.h"
#include "sync/meeting.h"

#include <math.h>
#include <string.h>

#define GRAIN 16384

_Static_assert((int)PL_STALENESS_MOST + 2 <= (int)PL_MEETING_COUNTS, "a meeting adds them up");

/* Before memory of that id goes from one rank to another, and what needs none. */
enum kind { PUSH, APPLIED, FETCH, STATE };
struct note {
    enum kind kind;
    int slab;                        /* fetch, state: 0 parameters, from 1 on the optimizer's slots */
    uint64_t id;
    int64_t version;                 /* push: of the parameters it was computed by; state: of these */
    double lr, rows, steps;          /* push: the sum is over so many samples, and micro-batches */
};
_Static_assert(sizeof(struct note) <= PL_MEETING_NOTE, "it fits");

/* Another rank, or this one: as a worker that uses this rank's shard, and as the shard that this rank's worker uses. */
struct peer {
    int64_t begin, end;              /* its shard: elements [begin, end) of the slab */
    uint64_t sent;                   /* ids of this direction */
    /* the worker */
    struct note pushed;
    bool pushes, wants, sending;     /* its gradient is coming; it waits for a slab; a slab is on its way to it */
    int slab;
    float *in, *out;                 /* [elements of this rank's shard] */
    struct pl_transfer from, to;
    /* the shard */
    int64_t version;                 /* of its parameters here */
    bool applies, applied;           /* it has a gradient of ours; and says so */
    bool owes, gives;                /* we wait for a slab; it is coming */
    struct pl_transfer push, state;
};

struct pl_sync {
    struct pl_replica replica;
    struct pl_meeting *meeting;
    int me, ranks, slabs;            /* slabs: parameters and the optimizer's slots */
    int64_t elems, n_fetch, n_push, most;
    float *gradient, *accrued, *outgoing; /* [elems] */
    struct peer *peer;               /* [ranks] */
    int *all;                        /* [ranks] 0, 1, ... */
    /* the main thread's */
    struct pl_contribution mine;
    double rows, lr;                 /* of what has accrued */
    int64_t steps, done;             /* micro-batches: accrued; since the leg's begin */
    int64_t step, reported;          /* of the last ticket; up to which rank 0 has told */
    bool started;
    double counts[PL_COUNTS];
    struct pl_staleness staleness;
    /* between the two: by the meeting's lock */
    struct note push;
    bool push_asked, fetch_asked, reduce_asked, reduced;
    int fetch_slab;
    int64_t round;
    /* the thread's */
    float *shard;                    /* this rank's parameters, as they are now */
    int64_t version;
    int64_t ages[PL_MEETING_COUNTS]; /* since the last meeting; the last but one: dropped. By the lock. */
};

enum { DROPPED = PL_STALENESS_MOST + 1 };

static const struct peer *own(const struct pl_sync *s) { return &s->peer[s->me]; }
static int64_t shard_elems(const struct peer *p) { return p->end - p->begin; }
static size_t shard_bytes(const struct peer *p) { return (size_t)shard_elems(p) * sizeof(float); }

static float *slab_of(struct pl_sync *s, int i)
{
    return i == 0 ? pl_graph_params(s->replica.graph) : pl_optimizer_slot(s->replica.optimizer, i - 1);
}

/* ---- the shard ------------------------------------------------------------------------------------------ */

/* This takes a while, and nobody else touches the shard. */
static void update(struct pl_sync *s, const struct note *n, const float *sum)
{
    struct pl_update u = {.lr = n->lr, .step = s->version, .samples = n->rows, .clip = n->steps};
    pl_meeting_unlock(s->meeting);
    pl_optimizer_update_range(s->replica.optimizer, &u, own(s)->begin, own(s)->end, sum, s->shard, s->shard);
    pl_meeting_lock(s->meeting);
    s->version++;
}

static void apply(struct pl_sync *s, int from, const struct note *n, const float *sum)
{
    int64_t age = s->version - n->version;
    struct note done = {.kind = APPLIED};
    s->ages[age < PL_STALENESS_MOST ? age : PL_STALENESS_MOST]++;
    if (s->most > 0 && age > s->most)
        s->ages[DROPPED]++;
    else
        update(s, n, sum);
    pl_meeting_say(s->meeting, from, &done, sizeof done);
}

static pl_status send_slab(struct pl_sync *s, int to)
{
    struct peer *p = &s->peer[to];
    struct note n = {.kind = STATE, .slab = p->slab, .id = ++p->sent, .version = s->version};
    const float *from = p->slab == 0 ? s->shard : slab_of(s, p->slab) + own(s)->begin;
    p->wants = false;
    p->sending = true;
    memcpy(p->out, from, shard_bytes(own(s))); /* updates go on while it travels */
    pl_meeting_say(s->meeting, to, &n, sizeof n);
    return pl_mesh_send(pl_meeting_mesh(s->meeting), &p->to, to, n.id, p->out, shard_bytes(own(s)));
}

/* What comes from a worker, in its order. */
static pl_status serve(struct pl_sync *s, int from, bool *busy)
{
    struct peer *p = &s->peer[from];
    if (p->pushes && p->from.done) {
        *busy = true;
        p->pushes = false;
        apply(s, from, &p->pushed, p->in);
    }
    p->sending = p->sending && p->to.active;
    if (!p->wants || p->pushes || p->sending)
        return PL_OK;
    *busy = true;
    return send_slab(s, from);
}

/* ---- this rank's worker, in the thread ------------------------------------------------------------------ */

static pl_status push_to(struct pl_sync *s, int to)
{
    struct peer *p = &s->peer[to];
    struct note n = s->push;
    n.version = p->version;
    p->applies = true;
    p->applied = false;
    if (to == s->me) {
        apply(s, to, &n, s->outgoing + p->begin);
        return PL_OK;
    }
    n.id = ++p->sent;
    pl_meeting_say(s->meeting, to, &n, sizeof n);
    return pl_mesh_send(pl_meeting_mesh(s->meeting), &p->push, to, n.id, s->outgoing + p->begin, shard_bytes(p));
}

static void fetch_from(struct pl_sync *s, int from)
{
    struct peer *p = &s->peer[from];
    struct note n = {.kind = FETCH, .slab = s->fetch_slab};
    p->owes = true;
    if (from != s->me) {
        pl_meeting_say(s->meeting, from, &n, sizeof n);
        return;
    }
    if (s->fetch_slab == 0)
        memcpy(slab_of(s, 0) + p->begin, s->shard, shard_bytes(p));
    p->version = s->version;
    p->owes = false;
}

static pl_status go_on_reducing(struct pl_sync *s)
{
    struct pl_mesh *mesh = pl_meeting_mesh(s->meeting);
    if (s->reduce_asked) {
        s->reduce_asked = false;
        PL_TRY(pl_mesh_reduce(mesh, (uint64_t)s->round, s->all, s->ranks, s->gradient, s->accrued, s->elems));
    }
    s->reduced = s->reduced || (s->round > 0 && pl_mesh_reduced(mesh, (uint64_t)s->round));
    return PL_OK;
}

static pl_status turn(void *arg, bool *busy)
{
    struct pl_sync *s = arg;
    if (s->push_asked) {
        s->push_asked = false;
        *busy = true;
        for (int i = 1; i <= s->ranks; i++) /* each begins with another, itself last */
            PL_TRY(push_to(s, (s->me + i) % s->ranks));
    }
    if (s->fetch_asked && !own(s)->applies) {
        s->fetch_asked = false;
        *busy = true;
        for (int i = 1; i <= s->ranks; i++)
            fetch_from(s, (s->me + i) % s->ranks);
    }
    PL_TRY(go_on_reducing(s));
    for (int r = 0; r < s->ranks; r++) {
        struct peer *p = &s->peer[r];
        PL_TRY(serve(s, r, busy));
        if (p->gives && p->state.done) {
            p->owes = p->gives = false;
            *busy = true;
        }
        if (p->applies && p->applied && !p->push.active) {
            p->applies = false;
            *busy = true;
        }
    }
    return PL_OK;
}

static void hear(void *arg, int from, const void *note)
{
    struct pl_sync *s = arg;
    struct peer *p = &s->peer[from];
    struct pl_mesh *mesh = pl_meeting_mesh(s->meeting);
    struct note n;
    pl_status status = PL_OK;
    memcpy(&n, note, sizeof n);
    switch (n.kind) {
    case PUSH:
        p->pushed = n;
        p->pushes = true;
        status = pl_mesh_receive(mesh, &p->from, from, n.id, p->in, shard_bytes(own(s)));
        break;
    case FETCH:
        p->wants = true;
        p->slab = n.slab;
        break;
    case STATE:
        p->gives = true;
        p->version = n.version;
        status = pl_mesh_receive(mesh, &p->state, from, n.id, slab_of(s, n.slab) + p->begin, shard_bytes(p));
        break;
    case APPLIED: p->applied = true; break;
    }
    if (status < 0)
        pl_meeting_fail(s->meeting, status);
}

/* ---- set-up --------------------------------------------------------------------------------------------- */

static void downpour_destroy(struct pl_sync *s)
{
    if (!s)
        return;
    pl_meeting_destroy(s->meeting);
    for (int r = 0; s->peer && r < s->ranks; r++) {
        pl_free(s->peer[r].in);
        pl_free(s->peer[r].out);
    }
    pl_free(s->peer);
    pl_free(s->all);
    pl_free(s->gradient);
    pl_free(s->accrued);
    pl_free(s->outgoing);
    pl_free(s->shard);
    pl_free(s);
}

static pl_status make_peers(struct pl_sync *s)
{
    for (int r = 0; r < s->ranks; r++) {
        s->all[r] = r;
        pl_meeting_shard(s->elems, r, s->ranks, &s->peer[r].begin, &s->peer[r].end);
    }
    for (int r = 0; r < s->ranks; r++) {
        struct peer *p = &s->peer[r];
        p->in = pl_alloc(shard_bytes(own(s)) + PL_MEETING_LINE, "gradients of other ranks");
        p->out = pl_alloc(shard_bytes(own(s)) + PL_MEETING_LINE, "parameters for other ranks");
        if (!p->in || !p->out)
            return PL_ERR_MEMORY;
    }
    return PL_OK;
}

static pl_status prepare(struct pl_sync *s)
{
    size_t bytes = (size_t)s->elems * sizeof(float);
    s->peer = pl_alloc((size_t)s->ranks * sizeof *s->peer, "other ranks");
    s->all = pl_alloc((size_t)s->ranks * sizeof *s->all, "other ranks");
    s->gradient = pl_alloc(bytes, "gradients");
    s->accrued = pl_alloc(bytes, "accrued gradients");
    s->outgoing = pl_alloc(bytes, "gradients under way");
    if (!s->peer || !s->all || !s->gradient || !s->accrued || !s->outgoing)
        return PL_ERR_MEMORY;
    PL_TRY(make_peers(s));
    s->shard = pl_alloc(shard_bytes(own(s)) + PL_MEETING_LINE, "a shard of the parameters");
    return s->shard ? PL_OK : PL_ERR_MEMORY;
}

static pl_status downpour_create(const struct pl_replica *r, struct pl_exchange *x, struct pl_sync **out)
{
    struct pl_sync *s = pl_alloc(sizeof *s, "sync");
    (void)x;
    if (s)
        *s = (struct pl_sync){.replica = *r, .me = r->world->rank, .ranks = r->world->ranks, .elems = pl_graph_elems(r->graph),
                              .slabs = 1 + pl_optimizer_slots(r->optimizer), .n_fetch = r->job->sync.n_fetch,
                              .n_push = r->job->sync.n_push, .most = r->job->sync.max_staleness};
    pl_status status = pl_world_agree(r->world, s ? prepare(s) : PL_ERR_MEMORY);
    const struct pl_meeting_hooks hooks = {.hear = hear, .turn = turn, .arg = s};
    if (status == PL_OK)
        status = pl_meeting_create(r, &hooks, &s->meeting);
    if (status < 0)
        downpour_destroy(s);
    else
        *out = s;
    return status;
}

/* ---- how it ends ---------------------------------------------------------------------------------------- */

static bool slab_is_here(const void *arg)
{
    const struct pl_sync *s = arg;
    bool all = !s->fetch_asked;
    for (int r = 0; r < s->ranks; r++)
        all = all && !s->peer[r].owes;
    return all;
}

static bool rest_is_here(const void *arg)
{
    const struct pl_sync *s = arg;
    bool all = !s->fetch_asked;
    for (int r = 0; r < s->ranks; r++)
        all = all && (!s->peer[r].owes || pl_meeting_is_lost(s->meeting, r));
    return all;
}

static void ask_for(struct pl_sync *s, int slab)
{
    s->fetch_slab = slab;
    s->fetch_asked = true;
}

/* A rank is lost, and with it its shard: what this one fetched of that last stands in for it. */
static bool salvage(struct pl_sync *s, struct pl_agreement *out)
{
    pl_status status = PL_OK;
    pl_meeting_place(s->meeting, out);
    for (int i = 0; out->apart && i < s->slabs && status == PL_OK; i++) {
        pl_meeting_lock(s->meeting);
        for (int r = 0; r < s->ranks; r++)
            s->peer[r].applies = s->peer[r].owes = false;
        ask_for(s, i);
        status = pl_meeting_wait_for_the_rest(s->meeting, rest_is_here, s);
        pl_meeting_unlock(s->meeting);
    }
    return status == PL_OK;
}

/* The status of what failed, and in *out how it ends here. Whoever it was, all others are told. */
static pl_status ended(struct pl_sync *s, pl_status status, struct pl_agreement *out)
{
    if (status >= 0)
        return status;
    pl_meeting_parts(s->meeting, out);
    out->writes = out->writes && salvage(s, out);
    if (!out->tells)
        pl_meeting_leave(s->meeting, pl_exit_code(status), true);
    return status;
}

/* ---- the warm-up: synchronous SGD ----------------------------------------------------------------------- */

static pl_status downpour_begin(struct pl_sync *s, int64_t step)
{
    s->step = step;
    return pl_meeting_start(s->meeting);
}

static pl_status downpour_contribute(struct pl_sync *s, const struct pl_contribution *mine)
{
    s->mine = *mine;
    memset(s->counts, 0, sizeof s->counts);
    pl_counts_add(s->counts, mine);
    return PL_OK;
}

static bool is_reduced(const void *arg) { return ((const struct pl_sync *)arg)->reduced; }

static pl_status sum_up(struct pl_sync *s)
{
    pl_meeting_lock(s->meeting);
    s->reduced = false;
    s->reduce_asked = true;
    s->round = s->step + 1;
    pl_status status = pl_meeting_wait(s->meeting, is_reduced, s);
    pl_meeting_unlock(s->meeting);
    return status;
}

static pl_status downpour_finish(struct pl_sync *s, struct pl_agreement *out)
{
    struct pl_meet met;
    double begin = pl_now_ms();
    *out = (struct pl_agreement){.sum = s->accrued, .steps = 1, .writes = s->me == 0};
    pl_status status = sum_up(s);
    if (status == PL_OK)
        status = pl_meeting_open(s->meeting, NULL, 0);
    if (status == PL_OK)
        status = pl_meeting_meet(s->meeting, s->counts, NULL, &met);
    if (status < 0)
        return ended(s, status, out);
    pl_counts_read(met.values, out);
    s->replica.world->reported = s->me > 0 && (out->not_finite > 0 || !isfinite(out->total)); /* all say so otherwise */
    out->times.exposed_ms = out->times.busy_ms = pl_now_ms() - begin;
    return PL_OK;
}

/* ---- a rank on its own way ------------------------------------------------------------------------------ */

/* Parameters and optimizer are the same on all ranks; nobody goes before all have theirs in their shards. */
static pl_status downpour_set_out(struct pl_sync *s, const struct pl_leg *leg, struct pl_agreement *out)
{
    int64_t updates = leg->step * s->ranks / s->n_push;
    PL_TRY(pl_meeting_start(s->meeting));
    pl_meeting_lock(s->meeting);
    memcpy(s->shard, slab_of(s, 0) + own(s)->begin, shard_bytes(own(s)));
    s->version = s->started ? s->version : updates;
    for (int r = 0; r < s->ranks && !s->started; r++)
        s->peer[r].version = updates;
    pl_meeting_unlock(s->meeting);
    s->started = true;
    s->done = s->steps = 0;
    s->rows = 0;
    s->reported = leg->step;
    pl_status status = pl_meeting_open(s->meeting, NULL, 0);
    if (status == PL_OK)
        status = pl_meeting_meet(s->meeting, NULL, NULL, NULL);
    if (status == PL_OK)
        status = pl_meeting_open(s->meeting, leg, 0);
    return ended(s, status, out);
}

static pl_status downpour_take(struct pl_sync *s, struct pl_ticket *out, struct pl_agreement *how)
{
    pl_status status = pl_meeting_take(s->meeting, out);
    if (status == PL_OK)
        s->step = out->step;
    return ended(s, status, how);
}

struct pass { const float *in; float *out; };

static void add(void *arg, int64_t begin, int64_t end)
{
    const struct pass *p = arg;
    for (int64_t i = begin; i < end; i++)
        p->out[i] += p->in[i];
}

static void accrue(struct pl_sync *s, double lr)
{
    struct pass p = {s->gradient, s->accrued};
    if (s->steps == 0)
        memcpy(s->accrued, s->gradient, (size_t)s->elems * sizeof *s->accrued);
    else
        pl_parallel_for(s->elems, GRAIN, add, &p);
    s->steps++;
    s->rows += s->mine.rows;
    s->lr = lr;
}

static bool is_applied(const void *arg)
{
    const struct pl_sync *s = arg;
    bool all = !s->push_asked;
    for (int r = 0; r < s->ranks; r++)
        all = all && !s->peer[r].applies;
    return all;
}

static void hand_over(struct pl_sync *s)
{
    float *sum = s->accrued;
    s->accrued = s->outgoing;
    s->outgoing = sum;
    s->push = (struct note){.kind = PUSH, .lr = s->lr, .rows = s->rows, .steps = (double)s->steps};
    s->push_asked = true;
    s->steps = 0;
    s->rows = 0;
}

/* One push is under way at a time: who computes faster than it is applied waits here. */
static pl_status push_and_fetch(struct pl_sync *s, bool push, bool fetch)
{
    pl_status status = PL_OK;
    pl_meeting_lock(s->meeting);
    if (push && (status = pl_meeting_wait(s->meeting, is_applied, s)) == PL_OK)
        hand_over(s);
    if (fetch && status == PL_OK) {
        ask_for(s, 0);
        status = pl_meeting_wait(s->meeting, slab_is_here, s);
    }
    pl_meeting_unlock(s->meeting);
    return status;
}

/* Between fetches, by plain SGD. */
static void go_down(struct pl_sync *s, double lr)
{
    struct pl_update u = {.lr = lr, .samples = s->mine.rows, .clip = 1};
    pl_optimizer_descend(s->replica.optimizer, &u, s->gradient, slab_of(s, 0));
}

/* Rank 0 alone knows what the others have done. */
static void tell(struct pl_sync *s, int64_t step, struct pl_agreement *out)
{
    double v[PL_MEETING_VALUES];
    if (s->me != 0)
        return;
    pl_meeting_news(s->meeting, v);
    pl_counts_read(v, out);
    out->steps = step - s->reported;
    s->reported = step;
}

static pl_status downpour_learn(struct pl_sync *s, double lr, struct pl_agreement *out)
{
    double begin = pl_now_ms();
    bool fetch = ++s->done % s->n_fetch == 0;
    *out = (struct pl_agreement){.apart = true, .writes = s->me == 0};
    accrue(s, lr);
    pl_status status = push_and_fetch(s, s->done % s->n_push == 0, fetch);
    if (status < 0)
        return ended(s, status, out);
    if (!fetch)
        go_down(s, lr);
    pl_meeting_done(s->meeting, s->counts);
    if (s->step >= s->reported)
        tell(s, s->step + 1, out);
    out->times.exposed_ms = out->times.busy_ms = pl_now_ms() - begin;
    return PL_OK;
}

/* ---- they come together --------------------------------------------------------------------------------- */

static pl_status fetch_all(struct pl_sync *s)
{
    for (int i = 0; i < s->slabs; i++) {
        pl_meeting_lock(s->meeting);
        ask_for(s, i);
        pl_status status = pl_meeting_wait(s->meeting, slab_is_here, s);
        pl_meeting_unlock(s->meeting);
        PL_TRY(status);
    }
    return PL_OK;
}

/* To rank 0. */
static pl_status tell_ages(struct pl_sync *s)
{
    int64_t ages[PL_MEETING_COUNTS];
    PL_TRY(pl_meeting_open(s->meeting, NULL, 0));
    pl_meeting_lock(s->meeting);
    memcpy(ages, s->ages, sizeof ages);
    memset(s->ages, 0, sizeof s->ages);
    pl_meeting_unlock(s->meeting);
    return pl_meeting_meet(s->meeting, NULL, ages, NULL);
}

/* All gradients have been applied when all are there. */
static pl_status come_together(struct pl_sync *s, struct pl_meet *met)
{
    if (s->steps > 0)
        PL_TRY(push_and_fetch(s, true, false));
    pl_meeting_lock(s->meeting);
    pl_status status = pl_meeting_wait(s->meeting, is_applied, s);
    pl_meeting_unlock(s->meeting);
    PL_TRY(status);
    PL_TRY(pl_meeting_meet(s->meeting, NULL, NULL, met));
    PL_TRY(fetch_all(s));
    return tell_ages(s);
}

static pl_status downpour_gather(struct pl_sync *s, struct pl_agreement *out)
{
    struct pl_meet met;
    int64_t reported = s->reported;
    double begin = pl_now_ms();
    *out = (struct pl_agreement){.writes = s->me == 0};
    pl_status status = come_together(s, &met);
    if (status < 0)
        return ended(s, status, out);
    tell(s, met.step, out);
    out->steps = met.step > reported ? met.step - reported : 1;
    out->step = met.step;
    out->epoch = met.epoch;
    out->position = met.position;
    out->stop = met.values[PL_COUNT_STOP] > 0;
    out->save = met.values[PL_COUNT_SAVE] > 0;
    out->times.exposed_ms = out->times.busy_ms = pl_now_ms() - begin;
    return PL_OK;
}

static const struct pl_staleness *downpour_staleness(struct pl_sync *s)
{
    int64_t counts[PL_MEETING_COUNTS];
    pl_meeting_counts(s->meeting, counts);
    memcpy(s->staleness.count, counts, sizeof s->staleness.count);
    s->staleness.dropped = counts[DROPPED];
    s->staleness.share = pl_meeting_shares(s->meeting);
    return &s->staleness;
}

/* ---- work in parts, and the end ------------------------------------------------------------------------- */

static pl_status downpour_share_out(struct pl_sync *s, const struct pl_parts *p, double *sum) { return pl_meeting_share_out(s->meeting, p, sum); }

static pl_status downpour_leave(struct pl_sync *s, int code, bool wrote, struct pl_parting *out)
{
    return pl_meeting_part(s->meeting, code, wrote, out);
}

static float *downpour_gradient(struct pl_sync *s) { return s->gradient; }

static struct pl_path downpour_path(const struct pl_sync *s)
{
    const struct pl_mesh *mesh = pl_meeting_mesh(s->meeting);
    return (struct pl_path){pl_mesh_transport(mesh), "downpour", pl_mesh_why(mesh)};
}

static const struct pl_sync_meshed meshed = {
    .gradient = downpour_gradient,
    .path = downpour_path,
    .share_out = downpour_share_out,
    .leave = downpour_leave,
};

static const struct pl_sync_apart apart = {
    .set_out = downpour_set_out,
    .take = downpour_take,
    .learn = downpour_learn,
    .gather = downpour_gather,
    .staleness = downpour_staleness,
};

const struct pl_sync_table pl_sync_downpour = {
    .name = "downpour",
    .meshed = &meshed,
    .apart = &apart,
    .create = downpour_create,
    .destroy = downpour_destroy,
    .begin = downpour_begin,
    .contribute = downpour_contribute,
    .finish = downpour_finish,
};
