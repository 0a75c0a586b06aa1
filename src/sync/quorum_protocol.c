/* The rules by which a group, a commit, a coordinator and a membership come about. tick() acts on what was recorded:
 * the coordinator decides (lead), a rank that misses it tries to take over (stand), and everybody follows what the
 * coordinator of its term last said (follow). */
#include "sync/quorum_protocol.h"

#include <math.h>
#include <string.h>

#define ROUNDS_A_TERM (1ll << 24)

struct member {
    struct pl_note note; /* the last heard */
    double heard_ms, lost_ms; /* lost_ms: since when its connection is over; INFINITY: it is not */
    double said_ms, alone_ms; /* alone_ms: since when it has no connection to another member; INFINITY: it has */
    bool news;           /* it has not been told the last change */
    int part;            /* of the job, that it was given; -1: none */
};

struct job {
    int64_t id;
    int parts, left;
    unsigned char *done; /* [PL_QUORUM_PARTS] */
    double (*values)[PL_QUORUM_VALUES];
};

struct pl_quorum {
    struct pl_quorum_options o;
    struct member *member; /* [ranks] */
    struct pl_note mine;   /* as it is told to others, with what this rank decides if it coordinates */
    struct pl_note decree; /* what the coordinator of this term last said */
    struct pl_attempt last; /* that led to mine.version */
    struct pl_attempt proposed; /* of the coordinator, the newest heard of */
    double committed_ms, step_ms; /* step_ms: of late, from commit to commit; without pauses */
    double ticked_ms, stood_ms, enough_ms, too_few_ms, end_ms;
    int coordinator, holders;
    bool behind, cut_off;
    struct job job;
    int64_t result_job; /* that this rank took part in, with its result */
    double result[PL_QUORUM_VALUES];
    char why[512];
};

/* ---- sets ------------------------------------------------------------------------------------------- */

int pl_ranks_count(const struct pl_ranks *s)
{
    int n = 0;
    for (size_t i = 0; i < sizeof s->word / sizeof *s->word; i++)
        n += __builtin_popcountll(s->word[i]);
    return n;
}

bool pl_ranks_same(const struct pl_ranks *a, const struct pl_ranks *b) { return memcmp(a, b, sizeof *a) == 0; }

void pl_ranks_list(const struct pl_ranks *s, char *text, size_t bytes)
{
    size_t at = 0;
    text[0] = '\0';
    for (int r = 0; r < PL_QUORUM_RANKS && at + 16 < bytes; r++)
        if (pl_ranks_has(s, r))
            at += (size_t)snprintf(text + at, bytes - at, "%s%d", at > 0 ? ", " : "", r);
}

/* ---- what is known of others ---------------------------------------------------------------------- */

static void news(struct pl_quorum *q)
{
    for (int r = 0; r < q->o.ranks; r++)
        q->member[r].news = true;
}

static bool lost(const struct pl_quorum *q, int r) { return !isinf(q->member[r].lost_ms); }

static const struct pl_note *note_of(const struct pl_quorum *q, int r) { return r == q->o.me ? &q->mine : &q->member[r].note; }

/* Heard of within so many ms, with a connection. */
static bool near(const struct pl_quorum *q, int r, double now, double ms)
{
    return r == q->o.me || (!lost(q, r) && now - q->member[r].heard_ms <= ms);
}

static bool no_connection(const struct pl_quorum *q, int a, int b)
{
    return pl_ranks_has(&note_of(q, a)->lost, b) || pl_ranks_has(&note_of(q, b)->lost, a);
}

/* Two ranks that both are near and have no connection to each other: the one of the higher number has to go. That the
 * other is there is known once it has spoken since; before, it may just be the one that was lost. */
static bool severed(const struct pl_quorum *q, int r, double now)
{
    double since = q->member[r].alone_ms + q->o.suspect_ms / 2;
    for (int i = 0; i < r; i++)
        if (pl_ranks_has(&q->mine.view.members, i) && no_connection(q, i, r) && near(q, i, now, q->o.suspect_ms) &&
            (i == q->o.me ? now : q->member[i].heard_ms) > since)
            return true;
    return false;
}

/* Since when ranks have no connection to one that seems to be there. */
static void note_severed(struct pl_quorum *q, double now)
{
    for (int r = 0; r < q->o.ranks; r++) {
        bool alone = false;
        for (int i = 0; i < r; i++)
            alone = alone || (pl_ranks_has(&q->mine.view.members, i) && no_connection(q, i, r) && near(q, i, now, q->o.suspect_ms));
        if (!alone)
            q->member[r].alone_ms = INFINITY;
        else if (isinf(q->member[r].alone_ms))
            q->member[r].alone_ms = now;
    }
}

static bool trusted(const struct pl_quorum *q, int r, double now)
{
    return near(q, r, now, q->o.suspect_ms) && (r == q->o.me || !severed(q, r, now));
}

/* It may still come back by itself. */
static bool alive(const struct pl_quorum *q, int r, double now)
{
    return near(q, r, now, q->o.lost_ms) && (r == q->o.me || !severed(q, r, now));
}

static bool follows(const struct pl_quorum *q, int r) { return note_of(q, r)->term == q->mine.term; }

typedef bool (*test)(const struct pl_quorum *q, int r, double now);

static int count(const struct pl_quorum *q, const struct pl_ranks *among, test is, double now)
{
    int n = 0;
    for (int r = 0; r < q->o.ranks; r++)
        n += pl_ranks_has(among, r) && is(q, r, now);
    return n;
}

static bool most(const struct pl_quorum *q, const struct pl_ranks *among, test is, double now)
{
    return 2 * count(q, among, is, now) > pl_ranks_count(among);
}

/* ---- start and end -------------------------------------------------------------------------------- */

pl_status pl_quorum_create(const struct pl_quorum_options *o, int64_t version, double now, struct pl_quorum **out)
{
    struct pl_quorum *q = pl_alloc(sizeof *q, "the state of a quorum");
    if (!q)
        return PL_ERR_MEMORY;
    q->o = *o;
    q->member = pl_alloc((size_t)o->ranks * sizeof *q->member, "the members of a quorum");
    q->job.done = pl_alloc(PL_QUORUM_PARTS, "parts of work");
    q->job.values = pl_alloc(PL_QUORUM_PARTS * sizeof *q->job.values, "parts of work");
    if (!q->member || !q->job.done || !q->job.values) {
        pl_quorum_destroy(q);
        return PL_ERR_MEMORY;
    }
    for (int r = 0; r < o->ranks; r++) {
        q->member[r].heard_ms = q->member[r].said_ms = now;
        q->member[r].lost_ms = q->member[r].alone_ms = INFINITY;
        q->member[r].note = (struct pl_note){.term = -1, .ready = -1};
        q->member[r].part = -1;
        pl_ranks_add(&q->mine.view.members, r);
    }
    q->mine.view.number = 1;
    q->mine.version = q->mine.agreed = version;
    q->mine.ready = -1;
    q->mine.work.part = q->mine.part = -1;
    q->mine.coordinates = o->me == 0;
    q->last.members = q->mine.view.members;
    q->last.step = version - 1;
    q->ticked_ms = q->committed_ms = now;
    q->enough_ms = q->too_few_ms = -1;
    q->decree = q->mine;
    *out = q;
    news(q);
    return PL_OK;
}

void pl_quorum_destroy(struct pl_quorum *q)
{
    if (!q)
        return;
    pl_free(q->member);
    pl_free(q->job.done);
    pl_free(q->job.values);
    pl_free(q);
}

static void finish(struct pl_quorum *q, double now, int code, const char *fmt, ...) __attribute__((format(printf, 4, 5)));
static void finish(struct pl_quorum *q, double now, int code, const char *fmt, ...)
{
    va_list args;
    if (q->mine.end != 0)
        return;
    q->mine.end = code + 1;
    q->end_ms = now;
    va_start(args, fmt);
    vsnprintf(q->why, sizeof q->why, fmt, args);
    va_end(args);
    news(q);
}

/* ---- the coordinator: membership ---------------------------------------------------------------- */

static bool belongs(const struct pl_quorum *q, int r, double now)
{
    bool in = pl_ranks_has(&q->mine.view.members, r);
    return in ? alive(q, r, now) : trusted(q, r, now) && follows(q, r);
}

static bool accepts(const struct pl_quorum *q, int r, double now)
{
    const struct pl_note *n = note_of(q, r);
    (void)now;
    return n->term == q->mine.term && (n->next_view.number >= q->mine.next_view.number || n->view.number >= q->mine.next_view.number);
}

static void change_membership(struct pl_quorum *q, double now)
{
    struct pl_view *view = &q->mine.view, *next = &q->mine.next_view;
    struct pl_ranks wanted = {{0}};
    for (int r = 0; r < q->o.ranks; r++)
        if (belongs(q, r, now))
            pl_ranks_add(&wanted, r);
    const struct pl_ranks *planned = next->number > 0 ? &next->members : &view->members;
    if (!pl_ranks_same(&wanted, planned)) {
        next->number = (next->number > view->number ? next->number : view->number) + 1;
        next->members = wanted;
        news(q);
    }
    if (next->number > 0 && most(q, &view->members, accepts, now) && most(q, &next->members, accepts, now)) {
        *view = *next;
        next->number = 0;
        news(q);
    }
}

/* Too few to go on with, now and for ever. */
static void give_up(struct pl_quorum *q, double now)
{
    const struct pl_ranks *members = &q->mine.view.members;
    char text[256];
    struct pl_ranks gone = {{0}};
    bool stop = false;
    for (int r = 0; r < q->o.ranks; r++) {
        if (!alive(q, r, now))
            pl_ranks_add(&gone, r);
        if (trusted(q, r, now) && note_of(q, r)->failed != 0)
            finish(q, now, note_of(q, r)->failed, "%s", ""); /* it says itself why */
        stop = stop || (trusted(q, r, now) && note_of(q, r)->stop);
    }
    pl_ranks_list(&gone, text, sizeof text);
    if (!q->o.survives && pl_ranks_count(&gone) > 0)
        finish(q, now, 5, "lost rank %s", text);
    if (!most(q, members, alive, now)) {
        q->cut_off = true;
        finish(q, now, 5, "lost rank %s: cut off from most of the %d members", text, pl_ranks_count(members));
    }
    if (pl_ranks_count(members) < q->o.enough && q->mine.version == q->mine.agreed)
        finish(q, now, stop ? 75 : 5, "lost rank %s: %d members are left, sync.backup_workers needs %d", text, pl_ranks_count(members), q->o.enough);
}

/* ---- the coordinator: attempts ---------------------------------------------------------------- */

static bool has_version(const struct pl_quorum *q, int r)
{
    const struct pl_note *n = note_of(q, r);
    return n->version == q->mine.agreed && n->version_round == q->mine.agreed_round;
}

static bool is_ready(const struct pl_quorum *q, int r, double now)
{
    return trusted(q, r, now) && follows(q, r) && has_version(q, r) && note_of(q, r)->ready == q->mine.agreed;
}

static bool has_heard(const struct pl_quorum *q, int r, double now)
{
    (void)now;
    return follows(q, r) && note_of(q, r)->heard >= q->mine.current.round;
}

static bool is_whole(const struct pl_quorum *q, int r, double now)
{
    (void)now;
    return follows(q, r) && note_of(q, r)->whole.round == q->mine.current.round;
}

static void fix_group(struct pl_quorum *q, double now)
{
    struct pl_attempt *a = &q->mine.current;
    int64_t first = q->mine.term * ROUNDS_A_TERM;
    *a = (struct pl_attempt){.step = q->mine.agreed, .members = q->mine.view.members};
    a->round = (q->mine.heard > first ? q->mine.heard : first) + 1;
    for (int r = 0; r < q->o.ranks; r++) {
        if (trusted(q, r, now)) {
            a->stop |= note_of(q, r)->stop;
            a->save |= note_of(q, r)->save;
        }
        if (!pl_ranks_has(&q->mine.view.members, r) || !is_ready(q, r, now))
            continue;
        pl_ranks_add(&a->group, r);
        for (int i = 0; i < PL_QUORUM_VALUES; i++)
            a->values[i] += note_of(q, r)->values[i];
    }
    q->enough_ms = -1;
    news(q);
}

static void commit(struct pl_quorum *q, double now)
{
    double ms = now - q->committed_ms;
    q->committed_ms = now;
    q->step_ms = q->step_ms == 0 || ms < q->step_ms ? ms : q->step_ms + (fmin(ms, 2 * q->step_ms) - q->step_ms) / 8;
    q->mine.agreed++;
    q->mine.agreed_round = q->mine.current.round;
    q->mine.current.round = 0;
    q->enough_ms = q->too_few_ms = -1;
    news(q);
}

static bool gave_up(const struct pl_quorum *q, int r, double now)
{
    (void)now;
    return follows(q, r) && note_of(q, r)->gave_up >= q->mine.current.round;
}

static void go_on_with_attempt(struct pl_quorum *q, double now)
{
    const struct pl_ranks *group = &q->mine.current.group;
    if (count(q, group, is_whole, now) == pl_ranks_count(group)) {
        if (most(q, &q->mine.view.members, has_heard, now))
            commit(q, now);
    } else if (q->o.survives && (count(q, group, trusted, now) < pl_ranks_count(group) || count(q, group, gave_up, now) > 0)) {
        q->mine.current.round = 0; /* of another one, with who is left */
        news(q);
    }
}

static bool has_samples(const struct pl_quorum *q, int r, double now) { return is_ready(q, r, now) && note_of(q, r)->values[0] > 0; }

static void gather(struct pl_quorum *q, double now)
{
    const struct pl_ranks *members = &q->mine.view.members;
    int ready = count(q, members, is_ready, now);
    bool all = ready == count(q, members, trusted, now);
    bool enough = ready >= q->o.enough && (all || count(q, members, has_samples, now) > 0);
    if (enough && q->enough_ms < 0)
        q->enough_ms = now;
    double grace = q->o.grace_ms >= 0 ? q->o.grace_ms : q->step_ms / 20;
    if (enough && (all || now - q->enough_ms >= grace)) {
        fix_group(q, now);
        return;
    }
    if (ready == 0 || enough) {
        q->too_few_ms = -1;
    } else if (q->too_few_ms < 0) {
        q->too_few_ms = now;
    } else if (now - q->too_few_ms > q->o.timeout_ms) {
        char text[256];
        struct pl_ranks missing = *members;
        for (int r = 0; r < q->o.ranks; r++)
            if (is_ready(q, r, now))
                pl_ranks_remove(&missing, r);
        pl_ranks_list(&missing, text, sizeof text);
        finish(q, now, 5, "waited %.0f s for the ranks in step %lld; %d of %d are ready, missing: rank %s", q->o.timeout_ms / 1000,
               (long long)q->mine.agreed, ready, q->o.enough, text);
    }
}

static bool waits_to_leave(const struct pl_quorum *q, int r, double now)
{
    return !trusted(q, r, now) || (note_of(q, r)->leaving && has_version(q, r));
}

/* ---- the coordinator: work in parts ------------------------------------------------------------- */

static void begin_job(struct pl_quorum *q, const struct pl_part_done *w)
{
    q->job.id = q->mine.job = w->job;
    q->job.parts = q->job.left = w->parts;
    q->mine.job_done = 0;
    memset(q->job.done, 0, PL_QUORUM_PARTS);
    for (int r = 0; r < q->o.ranks; r++)
        q->member[r].part = -1;
    news(q);
}

static void take_part(struct pl_quorum *q, const struct pl_part_done *w)
{
    if (w->part < 0 || w->part >= q->job.parts || q->job.done[w->part])
        return;
    q->job.done[w->part] = 1;
    memcpy(q->job.values[w->part], w->values, sizeof w->values);
    if (--q->job.left > 0)
        return;
    memset(q->mine.result, 0, sizeof q->mine.result);
    for (int p = 0; p < q->job.parts; p++)
        for (int i = 0; i < PL_QUORUM_VALUES; i++)
            q->mine.result[i] += q->job.values[p][i];
    q->mine.job_done = 1;
    news(q);
}

/* One that nobody does, or one that only one does. */
static int choose_part(const struct pl_quorum *q, double now)
{
    int second = -1;
    for (int p = 0; p < q->job.parts; p++) {
        int doing = 0;
        if (q->job.done[p])
            continue;
        for (int r = 0; r < q->o.ranks; r++)
            doing += trusted(q, r, now) && q->member[r].part == p;
        if (doing == 0)
            return p;
        if (doing == 1 && second < 0)
            second = p;
    }
    return second;
}

static void hand_out(struct pl_quorum *q, double now)
{
    for (int r = 0; r < q->o.ranks; r++)
        if (trusted(q, r, now) && follows(q, r) && note_of(q, r)->work.job > q->job.id)
            begin_job(q, &note_of(q, r)->work);
    for (int r = 0; r < q->o.ranks; r++)
        if (follows(q, r) && note_of(q, r)->work.job == q->job.id && !q->mine.job_done)
            take_part(q, &note_of(q, r)->work);
    for (int r = 0; r < q->o.ranks && !q->mine.job_done; r++) {
        struct member *m = &q->member[r];
        if (!trusted(q, r, now) || !follows(q, r) || note_of(q, r)->work.job != q->job.id || (m->part >= 0 && !q->job.done[m->part]))
            continue;
        m->part = choose_part(q, now);
        m->news = true;
    }
    q->mine.part = q->member[q->o.me].part;
}

static bool holds_the_same(const struct pl_quorum *q, int r, double now)
{
    return trusted(q, r, now) && note_of(q, r)->leaving && has_version(q, r) && note_of(q, r)->hash == q->mine.hash;
}

static void dismiss(struct pl_quorum *q, double now)
{
    const struct pl_ranks *members = &q->mine.view.members;
    if (!q->mine.leaving || count(q, members, waits_to_leave, now) < pl_ranks_count(members))
        return;
    q->holders = count(q, members, holds_the_same, now);
    for (int r = 0; r < q->o.ranks; r++)
        if (pl_ranks_has(members, r) && trusted(q, r, now) && note_of(q, r)->hash != q->mine.hash)
            finish(q, now, 5, "rank %d ends with other parameters than rank %d", r, q->o.me);
    q->mine.clean = pl_ranks_count(members) == q->o.ranks && count(q, members, trusted, now) == q->o.ranks;
    finish(q, now, 0, "done");
}

static void lead(struct pl_quorum *q, double now)
{
    if (q->mine.end != 0)
        return;
    note_severed(q, now);
    if (q->o.survives)
        change_membership(q, now);
    give_up(q, now);
    if (q->mine.end != 0)
        return;
    if (q->mine.current.round != 0)
        go_on_with_attempt(q, now);
    if (q->mine.current.round == 0)
        gather(q, now);
    hand_out(q, now);
    dismiss(q, now);
}

/* ---- taking over ---------------------------------------------------------------------------------- */

/* The last agreed view that any of those who promised knows, and the last that any of them accepted. */
static void newest_views(const struct pl_quorum *q, struct pl_view *view, struct pl_view *next)
{
    *view = q->mine.view;
    *next = (struct pl_view){0};
    for (int r = 0; r < q->o.ranks; r++)
        if (follows(q, r) && note_of(q, r)->view.number > view->number)
            *view = note_of(q, r)->view;
    for (int r = 0; r < q->o.ranks; r++)
        if (follows(q, r) && note_of(q, r)->next_view.number > view->number && note_of(q, r)->next_view.number > next->number)
            *next = note_of(q, r)->next_view;
}

static bool reachable(const struct pl_quorum *q, int r, double now)
{
    (void)now;
    return !lost(q, r);
}

static bool promises(const struct pl_quorum *q, int r, double now)
{
    (void)now;
    return follows(q, r);
}

/* What has been committed, or may have been: every member of its group held the sum before anybody updated, and of
 * those and of a majority one is in both. */
static void find_newest(struct pl_quorum *q)
{
    int64_t version = -1, round = -1;
    for (int r = 0; r < q->o.ranks; r++) {
        const struct pl_note *n = note_of(q, r);
        if (follows(q, r) && (n->version > version || (n->version == version && n->version_round > round)))
            version = n->version, round = n->version_round;
    }
    q->mine.agreed = version;
    q->mine.agreed_round = round;
    for (int r = 0; r < q->o.ranks; r++) {
        const struct pl_attempt *w = &note_of(q, r)->whole;
        if (follows(q, r) && w->round > q->mine.agreed_round && w->step == version) {
            q->mine.agreed = version + 1;
            q->mine.agreed_round = w->round;
        }
    }
}

static void stand(struct pl_quorum *q, double now)
{
    struct pl_view view, next;
    newest_views(q, &view, &next);
    if (!most(q, &view.members, promises, now) || (next.number > 0 && !most(q, &next.members, promises, now))) {
        if (now - q->stood_ms > q->o.lost_ms || !most(q, &view.members, reachable, now)) {
            q->cut_off = true;
            finish(q, now, 5, "no coordinator, and no answer from most of the %d members", pl_ranks_count(&view.members));
        }
        return;
    }
    q->mine.view = view;
    q->mine.next_view = next;
    find_newest(q);
    for (int r = 0; r < q->o.ranks; r++)
        q->member[r].heard_ms = now; /* until now they spoke to another */
    q->committed_ms = now;
    q->step_ms = 0;
    q->mine.candidate = 0;
    q->mine.coordinates = 1;
    q->mine.leaving = 0; /* it has to write first what was the other's to write */
    q->mine.current = (struct pl_attempt){0};
    q->enough_ms = q->too_few_ms = -1;
    q->job.id = q->mine.job = 0;
    q->mine.job_done = 0;
    q->mine.part = -1;
    news(q);
}

static void promise(struct pl_quorum *q, int64_t term, int to, double now)
{
    q->mine.term = term;
    q->coordinator = to;
    q->mine.candidate = q->mine.coordinates = 0;
    q->mine.heard = 0;
    q->mine.current.round = 0;
    q->decree = (struct pl_note){.term = term, .part = -1, .source = -1};
    q->behind = false;
    q->member[to].heard_ms = now; /* time to answer */
    news(q);
}

/* Those before it in rank have their turn first. */
static void miss_coordinator(struct pl_quorum *q, double now)
{
    const struct member *c = &q->member[q->coordinator];
    double silent = now - (lost(q, q->coordinator) ? c->lost_ms : c->heard_ms + q->o.suspect_ms), turn = 0;
    for (int r = 0; r < q->o.me; r++)
        if (r != q->coordinator && !lost(q, r))
            turn += q->o.suspect_ms / 2;
    if (!q->o.survives) {
        if (!alive(q, q->coordinator, now))
            finish(q, now, 5, "lost rank %d, the coordinator", q->coordinator);
        return;
    }
    if (silent < turn)
        return;
    int64_t term = q->mine.term + 1;
    while (term % q->o.ranks != q->o.me)
        term++;
    promise(q, term, q->o.me, now);
    q->mine.candidate = 1;
    q->stood_ms = now;
}

/* ---- what is said to others ------------------------------------------------------------------------- */

/* Another for each receiver, where it can be. */
static int find_source(const struct pl_quorum *q, int to, double now)
{
    for (int i = 1; i < q->o.ranks; i++) {
        int r = (to + i) % q->o.ranks;
        if (trusted(q, r, now) && follows(q, r) &&
            (has_version(q, r) || (note_of(q, r)->whole.round == q->mine.agreed_round && q->mine.agreed_round > 0)))
            return r;
    }
    return -1;
}

bool pl_quorum_say(struct pl_quorum *q, double now, int to, struct pl_note *out)
{
    struct member *m = &q->member[to];
    if (to == q->o.me || lost(q, to) || (!q->mine.coordinates && !q->mine.candidate && to != q->coordinator))
        return false;
    if (!(m->news && (near(q, to, now, q->o.suspect_ms) || q->mine.candidate)) && now - m->said_ms < q->o.suspect_ms / 8)
        return false;
    q->mine.sequence++;
    *out = q->mine;
    if (q->mine.coordinates) {
        out->part = m->part;
        out->source = find_source(q, to, now);
        if (out->end == 0 && !pl_ranks_has(&q->mine.view.members, to) && severed(q, to, now))
            out->end = 5 + 1;
    }
    m->news = false;
    m->said_ms = now;
    return true;
}

void pl_quorum_unsaid(struct pl_quorum *q, int to) { q->member[to].news = true; }

/* ---- following ------------------------------------------------------------------------------------- */

static void follow(struct pl_quorum *q)
{
    const struct pl_note *d = &q->decree;
    struct pl_note *me = &q->mine;
    if (d->end != 0 && me->ended == 0) {
        me->ended = d->end;
        me->clean = d->clean;
        news(q);
    }
    if (!d->coordinates)
        return;
    if (d->agreed == me->version + 1 && me->whole.round == d->agreed_round && me->whole.step == me->version) {
        me->version++;
        me->version_round = d->agreed_round;
        me->ready = -1;
        q->last = me->whole;
        news(q);
    }
    /* State that was fetched may be newer than what the coordinator was last heard to say. */
    q->behind = d->agreed > me->version || (d->agreed == me->version && me->version_round != d->agreed_round);
    if (d->current.round > me->heard) {
        me->heard = d->current.round;
        q->proposed = d->current;
        news(q);
    }
    if (!q->behind && d->current.round > me->whole.round && me->whole.step == me->version && pl_ranks_has(&d->current.group, q->o.me))
        me->whole.round = 0; /* its sum makes room */
}

void pl_quorum_tick(struct pl_quorum *q, double now)
{
    if (now - q->ticked_ms > q->o.suspect_ms / 2)
        for (int r = 0; r < q->o.ranks; r++) /* it was this rank that slept */
            q->member[r].heard_ms = q->member[r].heard_ms > q->ticked_ms - q->o.suspect_ms ? now : q->member[r].heard_ms;
    q->ticked_ms = now;
    if (q->mine.coordinates)
        lead(q, now);
    else if (q->mine.candidate && q->mine.ended == 0)
        stand(q, now);
    else if (q->mine.ended == 0)
        miss_coordinator(q, now);
    if (q->mine.coordinates || q->mine.end != 0) {
        q->mine.source = find_source(q, q->o.me, now);
        q->decree = q->mine;
    }
    follow(q);
    if (q->decree.job_done && q->decree.job == q->mine.work.job) {
        q->result_job = q->decree.job;
        memcpy(q->result, q->decree.result, sizeof q->result);
    }
}

/* The grace of a step is waited for more finely. */
double pl_quorum_period(const struct pl_quorum *q)
{
    double grace = q->o.grace_ms >= 0 ? q->o.grace_ms : q->step_ms / 20, most = q->o.suspect_ms / 8;
    return q->enough_ms >= 0 && grace > 0.05 && grace < most ? grace : most;
}

/* ---- what happened --------------------------------------------------------------------------------- */

void pl_quorum_hear(struct pl_quorum *q, double now, int from, const struct pl_note *n)
{
    struct member *m = &q->member[from];
    bool missed = lost(q, q->coordinator) || now - q->member[q->coordinator].heard_ms > q->o.suspect_ms / 2;
    if (n->sequence < m->note.sequence)
        return;
    m->heard_ms = now;
    m->note = *n;
    if (n->term > q->mine.term && (n->coordinates || (n->candidate && (missed || q->coordinator == q->o.me || q->coordinator == from))))
        promise(q, n->term, from, now);
    if (n->term != q->mine.term || from != q->coordinator || from == q->o.me)
        return;
    q->decree = *n;
    if (n->coordinates && (n->view.number > q->mine.view.number || n->next_view.number != q->mine.next_view.number)) {
        q->mine.view = n->view;
        q->mine.next_view = n->next_view;
        news(q);
    }
}

void pl_quorum_lost(struct pl_quorum *q, double now, int rank)
{
    if (lost(q, rank))
        return;
    q->member[rank].lost_ms = now;
    pl_ranks_add(&q->mine.lost, rank);
    news(q);
}

void pl_quorum_ready(struct pl_quorum *q, double now, int64_t step, const double values[PL_QUORUM_VALUES])
{
    (void)now;
    q->mine.ready = step;
    memcpy(q->mine.values, values, sizeof q->mine.values);
    news(q);
}

void pl_quorum_ask(struct pl_quorum *q, bool stop, bool save)
{
    if (q->mine.stop != stop || q->mine.save != save)
        news(q);
    q->mine.stop = stop;
    q->mine.save = save;
}

void pl_quorum_whole(struct pl_quorum *q, double now, int64_t round)
{
    (void)now;
    if (q->proposed.round != round || q->proposed.step != q->mine.version)
        return;
    q->mine.whole = q->proposed;
    news(q);
}

void pl_quorum_give_up(struct pl_quorum *q, int64_t round)
{
    if (round > q->mine.gave_up)
        news(q);
    q->mine.gave_up = round > q->mine.gave_up ? round : q->mine.gave_up;
}

void pl_quorum_fetched(struct pl_quorum *q, double now, int64_t version, const struct pl_attempt *last)
{
    (void)now;
    q->mine.version = version;
    q->mine.version_round = last->round;
    q->mine.ready = -1;
    q->mine.whole.round = 0;
    q->last = *last;
    news(q);
}

void pl_quorum_leave(struct pl_quorum *q, double now, uint64_t hash)
{
    (void)now;
    q->mine.hash = hash;
    q->mine.leaving = 1;
    news(q);
}

void pl_quorum_fail(struct pl_quorum *q, double now, int code)
{
    (void)now;
    q->mine.failed = code;
    news(q);
}

void pl_quorum_work(struct pl_quorum *q, double now, const struct pl_part_done *done)
{
    (void)now;
    q->mine.work = *done;
    news(q);
}

/* ---- what is to be done ---------------------------------------------------------------------------- */

static bool takes_part(const struct pl_quorum *q)
{
    const struct pl_attempt *a = &q->decree.current;
    return !q->behind && a->round > q->mine.whole.round && a->round > q->mine.gave_up && a->step == q->mine.version &&
           q->mine.ready == q->mine.version && pl_ranks_has(&a->group, q->o.me);
}

int64_t pl_quorum_first_round(const struct pl_quorum *q)
{
    const struct pl_note *d = &q->decree;
    if (!d->coordinates)
        return 0;
    if (takes_part(q))
        return d->current.round;
    int64_t newest = d->agreed_round > q->mine.heard ? d->agreed_round : q->mine.heard;
    return newest + 1;
}

void pl_quorum_duty(const struct pl_quorum *q, struct pl_task_now *out)
{
    const struct pl_note *d = &q->decree;
    *out = (struct pl_task_now){.duty = PL_DUTY_NONE, .from = -1};
    if (q->mine.ended != 0) {
        out->duty = PL_DUTY_END;
        out->code = q->mine.ended - 1;
    } else if (!d->coordinates) {
        return;
    } else if (q->behind) {
        bool by_sum = d->agreed == q->mine.version + 1 && q->proposed.round == d->agreed_round && q->proposed.step == q->mine.version;
        out->duty = by_sum ? PL_DUTY_SUM : PL_DUTY_FETCH;
        out->attempt = q->proposed;
        out->from = d->source;
        out->version = d->agreed;
    } else if (takes_part(q)) {
        out->duty = PL_DUTY_REDUCE;
        out->attempt = d->current;
    }
}

int64_t pl_quorum_version(const struct pl_quorum *q, struct pl_attempt *last)
{
    *last = q->last;
    return q->mine.version;
}

bool pl_quorum_behind(const struct pl_quorum *q) { return q->behind; }
bool pl_quorum_coordinates(const struct pl_quorum *q) { return q->mine.coordinates; }
bool pl_quorum_clean(const struct pl_quorum *q) { return q->mine.clean; }
int pl_quorum_holders(const struct pl_quorum *q) { return q->holders; }
bool pl_quorum_cut_off(const struct pl_quorum *q) { return q->cut_off; }
const char *pl_quorum_why(const struct pl_quorum *q) { return q->why; }

bool pl_quorum_over(const struct pl_quorum *q, double now)
{
    if (!q->mine.coordinates || q->cut_off)
        return q->mine.end != 0 || (q->mine.ended != 0 && (!q->member[q->coordinator].news || lost(q, q->coordinator)));
    for (int r = 0; r < q->o.ranks; r++)
        if (r != q->o.me && trusted(q, r, now) && note_of(q, r)->ended == 0)
            return now - q->end_ms > q->o.suspect_ms;
    return q->mine.end != 0;
}

bool pl_quorum_part(struct pl_quorum *q, int64_t job, int *part, double result[PL_QUORUM_VALUES])
{
    const struct pl_note *d = &q->decree;
    bool known = q->result_job == job, passed = d->job > job;
    *part = -1;
    if (known || passed) {
        for (int i = 0; i < PL_QUORUM_VALUES; i++)
            result[i] = known ? q->result[i] : NAN;
        q->mine.work = (struct pl_part_done){.part = -1};
        return true;
    }
    if (d->job == job && d->part != q->mine.work.part)
        *part = d->part;
    return false;
}
