/* Backup workers: the first m of n gradients make a step (Chen et al., Revisiting distributed synchronous SGD, 2016), or
 * with local SGD the first m of n replicas an average. Who takes part is decided by the protocol; here a thread of its own speaks for this rank, also
 * while the main thread computes, so that a rank that is late holds nobody up: it hears notes, sums up with a group, hands
 * state to ranks that come back, and fetches it when the run went on without this one. The main thread only says that its
 * gradient is whole, waits for the outcome, and updates. With local SGD a version is that of an averaging: a rank that is
 * late for one reads what is left of its local steps without computing them, and goes on from the average of the others. */
#include "sync/quorum.h"
#include "sync/quorum_internal.h"

#include <math.h>
#include <string.h>

#define BUSY_MS 0.2          /* after anything happened, look again at once for so long */

_Static_assert((int)PL_COUNT_ROWS == 0, "the protocol looks at it");
_Static_assert((int)PL_COUNTS <= (int)PL_QUORUM_VALUES && (int)PL_PART_VALUES == (int)PL_QUORUM_VALUES, "a note holds them");

/* ---- the sum of a group -------------------------------------------------------------------------------- */

static void forget(struct pl_sync *s, int64_t before)
{
    if (before > s->forgot)
        pl_mesh_forget(s->mesh, (uint64_t)before);
    s->forgot = before > s->forgot ? before : s->forgot;
}

static pl_status join(struct pl_sync *s, const struct pl_attempt *a)
{
    int member[PL_QUORUM_RANKS], n = 0;
    for (int r = 0; r < s->options.ranks; r++)
        if (pl_ranks_has(&a->group, r))
            member[n++] = r;
    int next = pl_quorum_make_room(s);
    if (next < 0)
        return PL_OK;
    forget(s, a->round);
    s->reducing = a->round;
    s->reducing_into = next;
    return pl_mesh_reduce(s->mesh, (uint64_t)a->round, member, n, s->gradient, s->sum[next].sum, s->sum_elems);
}

static pl_status reduce(struct pl_sync *s, const struct pl_task_now *t)
{
    bool mine = t->duty == PL_DUTY_REDUCE;
    if (s->reducing != 0 && (!mine || t->attempt.round != s->reducing)) {
        forget(s, s->reducing + 1);
        if (pl_mesh_survives(s->mesh) && !pl_mesh_reduced(s->mesh, (uint64_t)s->reducing))
            pl_quorum_give_up(s->quorum, s->reducing);
        s->reducing = 0;
    }
    if (!mine)
        return PL_OK;
    if (s->reducing == 0)
        PL_TRY(join(s, &t->attempt));
    if (s->reducing != 0 && pl_mesh_reduced(s->mesh, (uint64_t)s->reducing)) {
        s->sum[s->reducing_into].round = s->reducing;
        pl_quorum_whole(s->quorum, pl_now_ms(), s->reducing);
    }
    return PL_OK;
}

/* ---- the thread ---------------------------------------------------------------------------------------- */

static bool hear(struct pl_sync *s)
{
    struct message m;
    int from;
    bool any = false;
    while (pl_mesh_hear(s->mesh, &from, &m)) {
        any = true;
        if (m.kind == NOTE)
            pl_quorum_hear(s->quorum, pl_now_ms(), from, &m.note);
        else if (m.kind == GONE)
            pl_quorum_take_refusal(s, &m);
        else
            pl_quorum_take_request(s, from, &m);
    }
    for (int r = 0; r < s->options.ranks; r++) {
        const char *why;
        if (s->told_lost[r] || r == s->options.me || !pl_mesh_lost(s->mesh, r, &why))
            continue;
        s->told_lost[r] = any = true;
        pl_quorum_lost(s->quorum, pl_now_ms(), r);
    }
    return any;
}

static bool say(struct pl_sync *s)
{
    struct message m = {.kind = NOTE};
    bool any = false;
    for (int r = 0; r < s->options.ranks; r++)
        if (pl_quorum_say(s->quorum, pl_now_ms(), r, &m.note)) {
            any = true;
            if (pl_mesh_say(s->mesh, r, &m) != PL_OK)
                pl_quorum_unsaid(s->quorum, r);
        }
    return any;
}

/* What the main thread waits for. */
static void tell(struct pl_sync *s, const struct pl_task_now *t)
{
    struct pl_attempt last;
    int64_t version = pl_quorum_version(s->quorum, &last);
    bool behind = pl_quorum_behind(s->quorum), in = pl_ranks_has(&last.members, s->options.me);
    enum outcome was = s->outcome;
    atomic_store(&s->abandon, behind || version > s->now.version || t->duty == PL_DUTY_END);
    if (s->waiting && s->outcome == NONE) {
        if (s->fetched && in && !s->leaving) /* behind again or not: the main thread has to know where it is now */
            s->outcome = WENT_ON;
        else if (version == s->now.version + 1 && last.step == s->now.version && pl_quorum_sum_of(s, last.round) >= 0 && pl_ranks_has(&s->now.last.members, s->options.me))
            s->outcome = COMMITTED;
        else if (version == s->now.version && !s->ready && !behind && in && !s->fetch.active)
            s->outcome = WENT_ON;
        else if (t->duty == PL_DUTY_END)
            s->outcome = ENDED;
        if (s->outcome == COMMITTED) {
            s->last = last;
            s->ready = false;
        }
    }
    s->over = t->duty == PL_DUTY_END && pl_quorum_over(s->quorum, pl_now_ms());
    if (s->outcome != was || s->over || s->works || s->leaving)
        pthread_cond_broadcast(&s->news);
}

static pl_status turn(struct pl_sync *s, bool *busy)
{
    struct pl_task_now t;
    int64_t reducing = s->reducing;
    double now = pl_now_ms();
    *busy = hear(s);
    pl_quorum_ask(s->quorum, s->stop, s->save);
    for (int i = 0; i < 2; i++) { /* what the first decides, the second acts on */
        pl_quorum_tick(s->quorum, now);
        pl_quorum_duty(s->quorum, &t);
        forget(s, pl_quorum_first_round(s->quorum));
        PL_TRY(reduce(s, &t));
        PL_TRY(pl_quorum_fetch(s, &t));
        pl_quorum_tick(s->quorum, now);
        pl_quorum_duty(s->quorum, &t);
    }
    PL_TRY(pl_quorum_serve(s));
    tell(s, &t);
    *busy = say(s) || *busy || s->reducing != reducing;
    return PL_OK;
}

static void *run(void *arg)
{
    struct pl_sync *s = arg;
    bool over = false, busy = false;
    pl_status failed = PL_OK;
    while (!over && failed == PL_OK) {
        pthread_mutex_lock(&s->lock);
        failed = turn(s, &busy);
        over = s->over || s->quit;
        pthread_mutex_unlock(&s->lock);
        if (over || failed < 0)
            break;
        double now = pl_now_ms(), wait = pl_quorum_period(s->quorum);
        if (busy)
            s->moved_ms = now;
        for (double end = now + wait; failed == PL_OK && now < end && !pl_mesh_news(s->mesh); now = pl_now_ms())
            failed = pl_mesh_progress(s->mesh, now - s->moved_ms < BUSY_MS ? 0 : end - now);
    }
    pthread_mutex_lock(&s->lock);
    s->failed = failed;
    s->over = true;
    atomic_store(&s->abandon, true);
    pthread_cond_broadcast(&s->news);
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

static void wake(struct pl_sync *s) { pl_mesh_wake(s->mesh); }

/* ---- set-up -------------------------------------------------------------------------------------------- */

static void quorum_destroy(struct pl_sync *s)
{
    if (!s)
        return;
    if (s->threaded) {
        pthread_mutex_lock(&s->lock);
        s->quit = true; /* if it has not ended by itself */
        pthread_mutex_unlock(&s->lock);
        wake(s);
        pthread_join(s->thread, NULL);
    }
    pl_mesh_close(s->mesh, !s->quorum || !pl_quorum_clean(s->quorum));
    pl_quorum_destroy(s->quorum);
    pthread_mutex_destroy(&s->state);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->news);
    for (int i = 0; i < PL_QUORUM_SLABS; i++)
        pl_free(s->snapshot.slab[i]);
    pl_averaging_close(&s->average);
    pl_free(s->gradient);
    pl_free(s->sum[0].sum);
    pl_free(s->sum[1].sum);
    pl_free(s->server);
    pl_free(s->told_lost);
    pl_free(s);
}

static pl_status check(const struct pl_replica *r)
{
    int64_t b = r->job->sync.backup_workers;
    if (r->world->ranks > PL_QUORUM_RANKS)
        return pl_error(PL_ERR_USAGE, "sync", "sync.backup_workers with %d ranks, %d can be had", r->world->ranks, PL_QUORUM_RANKS);
    if (b >= r->world->ranks)
        return pl_error(PL_ERR_USAGE, "sync", "sync.backup_workers %lld of %d ranks leaves none to train\nit must be less than the number of ranks",
                        (long long)b, r->world->ranks);
    if (r->state_bytes > sizeof ((struct head *)0)->state || 1 + pl_optimizer_slots(r->optimizer) > PL_QUORUM_SLABS)
        return pl_error(PL_ERR_USAGE, "sync", "a state of %zu bytes and %d slots has no room", r->state_bytes, pl_optimizer_slots(r->optimizer));
    return PL_OK;
}

static pl_status prepare(struct pl_sync *s)
{
    const struct pl_job *job = s->replica.job;
    const struct pl_world *w = s->replica.world;
    PL_TRY(check(&s->replica));
    s->local = job->sync.kind == PL_SYNC_LOCAL_SGD;
    if (s->local)
        PL_TRY(pl_averaging_open(&s->average, &s->replica));
    s->slabs = s->local ? s->average.slabs : 1 + pl_optimizer_slots(s->replica.optimizer);
    s->sum_elems = s->local ? s->slabs * s->elems : s->elems;
    s->slab[0] = pl_graph_params(s->replica.graph);
    for (int i = 1; i < s->slabs; i++)
        s->slab[i] = pl_optimizer_slot(s->replica.optimizer, i - 1);
    s->gradient = pl_alloc(pl_quorum_sum_bytes(s), "gradients");
    for (int i = 0; i < 2; i++)
        if (!(s->sum[i].sum = pl_alloc(pl_quorum_sum_bytes(s), "the agreed gradient")))
            return PL_ERR_MEMORY;
    s->server = pl_alloc((size_t)w->ranks * sizeof *s->server, "ranks that come back");
    s->told_lost = pl_alloc((size_t)w->ranks * sizeof *s->told_lost, "ranks that are lost");
    if (!s->gradient || !s->server || !s->told_lost)
        return PL_ERR_MEMORY;
    s->options = (struct pl_quorum_options){.me = w->rank, .ranks = w->ranks, .enough = w->ranks - (int)job->sync.backup_workers,
                                            .grace_ms = job->sync.grace_ms, .suspect_ms = job->sync.suspect_ms, .lost_ms = job->sync.lost_ms,
                                            .timeout_ms = job->exchange.timeout_ms};
    return PL_OK;
}

static struct pl_sync *make(const struct pl_replica *r)
{
    struct pl_sync *s = pl_alloc(sizeof *s, "sync");
    if (!s)
        return NULL;
    s->replica = *r;
    s->replica.exchange = NULL;
    s->elems = pl_graph_elems(r->graph);
    s->snapshot.version = -1;
    pthread_mutex_init(&s->state, NULL);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->news, NULL);
    return s;
}

static pl_status quorum_create(const struct pl_replica *r, struct pl_exchange *x, struct pl_sync **out)
{
    struct pl_sync *s = make(r);
    (void)x;
    pl_status status = pl_world_agree(r->world, s ? prepare(s) : PL_ERR_MEMORY);
    if (status == PL_OK)
        status = pl_mesh_open(r->world, r->exchange, sizeof(struct message), &s->mesh);
    if (status < 0)
        quorum_destroy(s);
    else
        *out = s;
    return status;
}

size_t pl_sync_quorum_note_bytes(void) { return sizeof(struct message); }

pl_status pl_sync_quorum_create_in(const struct pl_replica *r, struct pl_mesh *mesh, struct pl_sync **out)
{
    struct pl_sync *s = make(r);
    if (!s) {
        pl_mesh_close(mesh, true);
        return PL_ERR_MEMORY;
    }
    s->mesh = mesh;
    pl_status status = prepare(s);
    if (status < 0)
        quorum_destroy(s);
    else
        *out = s;
    return status;
}

/* At the first step or evaluation: only now it is known where the run begins. */
static pl_status start(struct pl_sync *s, int64_t step)
{
    s->options.survives = pl_mesh_survives(s->mesh);
    PL_TRY(pl_quorum_create(&s->options, step, pl_now_ms(), &s->quorum));
    s->now.version = pl_quorum_version(s->quorum, &s->now.last);
    s->now.steps = 1;
    s->last = s->now.last;
    s->before = s->now.last.members;
    memcpy(s->resting, s->replica.state, s->replica.state_bytes);
    pl_status status = pl_thread_start(&s->thread, "quorum", run, s);
    s->threaded = status == PL_OK;
    return status;
}

/* ---- a step -------------------------------------------------------------------------------------------- */

/* The data of this step. */
static bool shares(const struct pl_sync *s) { return pl_ranks_has(&s->now.last.members, s->options.me); }

static pl_status quorum_begin(struct pl_sync *s, int64_t step)
{
    if (s->local)
        pl_averaging_begin(&s->average, step);
    if (!s->quorum)
        PL_TRY(start(s, step));
    return shares(s) ? PL_OK : PL_END;
}

static pl_status quorum_contribute(struct pl_sync *s, const struct pl_contribution *mine)
{
    pthread_mutex_lock(&s->lock);
    memset(s->values, 0, sizeof s->values);
    pl_counts_add(s->values, mine);
    if (s->local)
        pl_averaging_count(&s->average, mine);
    s->stop = mine->stop;
    s->save = mine->save;
    pthread_mutex_unlock(&s->lock);
    return PL_OK;
}

static bool quorum_abandoned(void *arg) { return atomic_load(&((struct pl_sync *)arg)->abandon); }

static pl_status quorum_slice_final(struct pl_sync *s, int64_t a, int64_t b)
{
    (void)b;
    if (quorum_abandoned(s))
        return PL_END;
    if (a == 0)
        s->whole = true; /* the whole gradient */
    return PL_OK;
}

/* Those in a and not in b; NULL: none. */
static const char *without(const struct pl_ranks *a, const struct pl_ranks *b, char *text, size_t bytes)
{
    struct pl_ranks left = *a;
    for (int r = 0; r < PL_QUORUM_RANKS; r++)
        if (pl_ranks_has(b, r))
            pl_ranks_remove(&left, r);
    pl_ranks_list(&left, text, bytes);
    return text[0] ? text : NULL;
}

static void count_dropped(struct pl_sync *s)
{
    for (int r = 0; r < s->options.ranks; r++)
        s->now.dropped[r] += pl_ranks_has(&s->before, r) && !pl_ranks_has(&s->last.group, r);
}

static void fill(struct pl_sync *s, struct pl_agreement *out)
{
    const struct pl_attempt *a = &s->last;
    pl_counts_read(a->values, out);
    out->sum = pl_quorum_sum_of(s, a->round) >= 0 ? s->sum[pl_quorum_sum_of(s, a->round)].sum : NULL;
    out->steps = s->now.steps;
    out->stop = a->stop;
    out->save = a->save;
    out->late = without(&s->before, &a->group, s->late, sizeof s->late);
    out->lost = without(&s->before, &a->members, s->lost, sizeof s->lost);
    out->back = without(&a->members, &s->before, s->back, sizeof s->back);
    out->dealt = out->lost || out->back;
    out->members = pl_ranks_count(&a->members);
    for (int r = 0; r < s->options.me; r++)
        out->place += pl_ranks_has(&a->members, r);
    out->writes = pl_quorum_coordinates(s->quorum);
}

static pl_status say_end(struct pl_sync *s, struct pl_agreement *out)
{
    struct pl_task_now t;
    const char *why = pl_quorum_why(s->quorum);
    pl_quorum_duty(s->quorum, &t);
    out->ended = true;
    out->writes = pl_quorum_coordinates(s->quorum) && !pl_quorum_cut_off(s->quorum);
    if (s->failed < 0)
        return s->failed;
    if (t.code == 0 || t.code == PL_STOPPED)
        return PL_OK;
    return why[0] ? pl_error(-t.code, "sync", "%s", why) : (pl_status)-t.code;
}

/* What this rank has is whole, or is not: waits for what comes of the version that is being made. */
static pl_status await(struct pl_sync *s, bool whole, const double *values, struct pl_agreement *out)
{
    *out = (struct pl_agreement){0};
    double begin = pl_now_ms();
    pthread_mutex_lock(&s->lock);
    if (whole && !quorum_abandoned(s)) {
        s->ready = true;
        pl_quorum_ready(s->quorum, begin, s->now.version, values);
    }
    s->outcome = NONE;
    s->waiting = true;
    s->fetched = false;
    pthread_mutex_unlock(&s->lock);
    wake(s);
    pthread_mutex_lock(&s->lock);
    while (s->outcome == NONE && !s->over)
        pthread_cond_wait(&s->news, &s->lock);
    s->waiting = false;
    pl_status status = PL_OK;
    if (s->outcome == COMMITTED) {
        count_dropped(s);
        fill(s, out);
        s->before = s->last.members;
    } else if (s->outcome == WENT_ON) {
        fill(s, out);
        out->went_on = out->dealt = true;
        out->lost = out->back = NULL;
        out->late = without(&s->now.last.members, &s->now.last.group, s->late, sizeof s->late);
    } else {
        status = say_end(s, out);
    }
    pthread_mutex_unlock(&s->lock);
    out->times.exposed_ms = out->times.busy_ms = pl_now_ms() - begin;
    return status;
}

/* The new version can be had from this rank; what it computes from now on is of use. */
static void hold_version(struct pl_sync *s, int64_t steps)
{
    pthread_mutex_lock(&s->lock);
    s->now.version++;
    s->now.steps = steps;
    s->now.last = s->last;
    atomic_store(&s->abandon, false);
    pthread_mutex_unlock(&s->lock);
}

/* Of steps that are averaged nobody hears, but a rank that has no share of them waits for the next average. */
static pl_status finish_local(struct pl_sync *s, bool whole, struct pl_agreement *out)
{
    struct pl_averaging *v = &s->average;
    if (!shares(s))
        return await(s, false, NULL, out);
    s->missed = s->missed || !whole;
    v->steps++;
    *out = (struct pl_agreement){.sum = s->gradient, .rows = s->missed ? 0 : v->rows};
    pthread_mutex_lock(&s->lock);
    out->writes = pl_quorum_coordinates(s->quorum);
    pthread_mutex_unlock(&s->lock);
    return PL_OK;
}

static pl_status quorum_finish(struct pl_sync *s, struct pl_agreement *out)
{
    bool whole = s->whole;
    s->whole = false;
    return s->local ? finish_local(s, whole, out) : await(s, whole, s->values, out);
}

static pl_status average_locally(struct pl_sync *s, bool last, struct pl_agreement *out)
{
    struct pl_averaging *v = &s->average;
    bool whole = !s->missed;
    int64_t steps = v->steps;
    if (!pl_averaging_due(v, last))
        return PL_OK;
    for (int i = 0; i < v->slabs && whole; i++)
        pl_averaging_weigh(v, v->counts[PL_COUNT_ROWS], i, 0, v->elems, s->gradient + i * v->elems);
    s->missed = false;
    pl_status status = await(s, whole, v->counts, out);
    if (status < 0 || out->ended || out->went_on) { /* the last average, a peer's or this rank's own, is what it has */
        pl_averaging_go_back(v);
        memcpy(s->replica.state, s->resting, s->replica.state_bytes);
        return status;
    }
    pthread_mutex_lock(&s->state);
    s->holds = true; /* until the trainer has noted it */
    pl_averaging_take(v, out->sum, out->rows);
    hold_version(s, steps);
    out->steps = steps;
    return PL_OK;
}

/* After the update. */
static pl_status quorum_average(struct pl_sync *s, bool last, struct pl_agreement *out)
{
    if (s->local)
        return average_locally(s, last, out);
    hold_version(s, 1);
    return PL_OK;
}

/* What is averaged others may be given from its copy at any time but when it becomes another. */
static void hold_average(struct pl_sync *s, bool held)
{
    if (held == s->holds || (held && s->average.steps > 0))
        return;
    s->holds = held;
    if (held) {
        pthread_mutex_lock(&s->state);
    } else {
        memcpy(s->resting, s->replica.state, s->replica.state_bytes);
        pthread_mutex_unlock(&s->state);
    }
}

static void quorum_hold(struct pl_sync *s, bool held)
{
    if (s->local)
        hold_average(s, held);
    else if (held)
        pthread_mutex_lock(&s->state);
    else
        pthread_mutex_unlock(&s->state);
}

/* ---- work in parts ------------------------------------------------------------------------------------- */

static pl_status quorum_share_out(struct pl_sync *s, const struct pl_parts *p, double *sum)
{
    struct pl_part_done done = {.job = p->id, .parts = p->parts, .part = -1};
    double result[PL_QUORUM_VALUES];
    pl_status status = PL_OK;
    if (!s->quorum)
        PL_TRY(start(s, p->step));
    pthread_mutex_lock(&s->lock);
    s->works = true;
    for (bool over = false; status == PL_OK && !over;) {
        int part;
        pl_quorum_work(s->quorum, pl_now_ms(), &done);
        pthread_mutex_unlock(&s->lock);
        wake(s);
        pthread_mutex_lock(&s->lock);
        while (!(over = pl_quorum_part(s->quorum, p->id, &part, result)) && part < 0 && !s->over && !quorum_abandoned(s))
            pthread_cond_wait(&s->news, &s->lock);
        if (!over && part < 0) { /* the run ended, or went on */
            for (int i = 0; i < p->values; i++)
                result[i] = NAN;
            break;
        }
        if (over)
            break;
        pthread_mutex_unlock(&s->lock);
        memset(done.values, 0, sizeof done.values);
        done.part = part;
        status = p->run(p->arg, part, done.values);
        pthread_mutex_lock(&s->lock);
    }
    s->works = false;
    pthread_mutex_unlock(&s->lock);
    if (status == PL_OK)
        memcpy(sum, result, (size_t)p->values * sizeof *sum);
    return status;
}

/* ---- the end ------------------------------------------------------------------------------------------- */

static pl_status quorum_leave(struct pl_sync *s, int code, bool wrote, struct pl_parting *out)
{
    size_t at = 0;
    *out = (struct pl_parting){.clean = true, .dropped = s->dropped_text};
    if (!s->quorum)
        return PL_OK;
    pthread_mutex_lock(&s->lock);
    s->leaving = true;
    s->outcome = NONE;
    s->waiting = true; /* behind once more, it may still be brought up to date */
    if (code == 0)
        pl_quorum_leave(s->quorum, pl_now_ms(), pl_quorum_hash(s));
    else
        pl_quorum_fail(s->quorum, pl_now_ms(), code);
    pthread_mutex_unlock(&s->lock);
    wake(s);
    pthread_mutex_lock(&s->lock);
    while (!s->over && (wrote || code != 0 || !pl_quorum_coordinates(s->quorum)))
        pthread_cond_wait(&s->news, &s->lock);
    bool writes = !s->over;
    out->clean = pl_quorum_clean(s->quorum);
    out->holders = pl_quorum_holders(s->quorum);
    for (int r = 0; r < s->options.ranks && at + 32 < sizeof s->dropped_text; r++)
        if (s->now.dropped[r] > 0)
            at += (size_t)snprintf(s->dropped_text + at, sizeof s->dropped_text - at, "%s%d: %lld", at > 0 ? ", " : "", r, (long long)s->now.dropped[r]);
    pthread_mutex_unlock(&s->lock);
    return writes ? PL_END : PL_OK;
}

static float *quorum_gradient(struct pl_sync *s) { return s->gradient; }

static struct pl_path quorum_path(const struct pl_sync *s)
{
    return (struct pl_path){pl_mesh_transport(s->mesh), pl_mesh_algorithm(s->mesh), pl_mesh_why(s->mesh)};
}

static const struct pl_sync_meshed meshed = {
    .gradient = quorum_gradient,
    .path = quorum_path,
    .abandoned = quorum_abandoned,
    .hold = quorum_hold,
    .share_out = quorum_share_out,
    .leave = quorum_leave,
};

const struct pl_sync_table pl_sync_quorum = {
    .name = "quorum",
    .meshed = &meshed,
    .create = quorum_create,
    .destroy = quorum_destroy,
    .begin = quorum_begin,
    .contribute = quorum_contribute,
    .slice_final = quorum_slice_final,
    .finish = quorum_finish,
    .average = quorum_average,
};
