/* The thread between stages. It alone uses the mesh; what the main thread posts it takes over under the lock, and what has
 * crossed it says there. Values go as notes to all stages; a stage is never more than one round of them ahead of another,
 * as it has heard that one's in the round before. */
#include "split/carrier.h"

#include <string.h>

#define SLEEP_MS 100.0 /* at most, so that the timeout is seen */

struct note { uint64_t round; double v[PL_EXCHANGE_VALUES]; };

struct pl_carrier {
    struct pl_world *row;
    const struct pl_carrier_words *words;
    struct pl_mesh *mesh;
    double timeout_ms, waited_ms;
    pthread_t thread;
    bool threaded;

    pthread_mutex_t lock; /* guards what follows; while it is held a message or a span may be recorded, which have locks of their own */
    pthread_cond_t to_thread, to_main;
    struct pl_crossing *posted, **last; /* in order */
    bool stop;
    pl_status failed;
    uint64_t round, rounds;   /* of values: said by the main thread; heard from all */
    struct note said;
    double waits_since;       /* the main thread waits; 0: it does not */
    int waits_for;            /* a stage, -1: values of any */
    _Atomic bool asleep;      /* in the mesh: what is posted wakes it */

    /* The thread's own. */
    struct pl_crossing *moving;
    uint64_t *id[2];          /* [stages] of what crossed from, and to, each */
    uint64_t told;            /* rounds of which this stage's values have been said to all */
    int told_to;              /* of the round after it: stages before this have them */
    struct note *heard[2];    /* [stages] by round, odd and even */
    double *all;              /* [stages * PL_EXCHANGE_VALUES] */
};

/* ---- the thread ------------------------------------------------------------------------------------ */

static pl_status lost(const struct pl_carrier *c, int stage)
{
    const char *why;
    if (!pl_mesh_lost(c->mesh, stage, &why))
        why = "its connection is over";
    return pl_error(PL_ERR_PEER, "split", "%s\nit has %s %d of this replica's layers", why, c->words->one, stage);
}

static pl_status begin(struct pl_carrier *c, struct pl_crossing *x)
{
    uint64_t id = ++c->id[x->sends][x->stage];
    x->next = c->moving;
    x->traced = pl_trace_begin();
    c->moving = x;
    return x->sends ? pl_mesh_send(c->mesh, &x->transfer, x->stage, id, x->memory, x->bytes)
                    : pl_mesh_receive(c->mesh, &x->transfer, x->stage, id, x->memory, x->bytes);
}

static pl_status say_values(struct pl_carrier *c, const struct note *note)
{
    for (; c->told < note->round && c->told_to < c->row->ranks; c->told_to++) {
        pl_status s = c->told_to == c->row->rank ? PL_OK : pl_mesh_say(c->mesh, c->told_to, note);
        if (s != PL_OK)
            return s < 0 ? s : PL_OK; /* no room yet, or it is lost */
    }
    if (c->told_to == c->row->ranks) {
        c->told = note->round;
        c->told_to = 0;
    }
    return PL_OK;
}

static bool heard_all(struct pl_carrier *c, const struct note *mine)
{
    struct note note;
    int stage, missing = 0;
    while (pl_mesh_hear(c->mesh, &stage, &note))
        c->heard[note.round % 2][stage] = note;
    c->heard[mine->round % 2][c->row->rank] = *mine;
    for (int s = 0; s < c->row->ranks; s++)
        missing += c->heard[mine->round % 2][s].round != mine->round;
    for (int s = 0; s < c->row->ranks && missing == 0; s++)
        memcpy(c->all + s * PL_EXCHANGE_VALUES, c->heard[mine->round % 2][s].v, sizeof mine->v);
    return missing == 0;
}

/* Those that have crossed leave the list. Under the lock. */
static pl_status take_crossed(struct pl_carrier *c, bool *some)
{
    for (struct pl_crossing **at = &c->moving; *at;) {
        struct pl_crossing *x = *at;
        if (x->transfer.active) {
            at = &x->next;
            continue;
        }
        if (x->transfer.failed)
            return lost(c, x->stage);
        *at = x->next;
        pl_trace_end_beside(x->traced, c->words->all, x->sends ? c->words->to : c->words->from, x->stage);
        x->under_way = false;
        *some = true;
    }
    return PL_OK;
}

/* Is something still to come from it, or to go there? One that has said all may have ended. */
static bool is_needed(struct pl_carrier *c, int stage, const struct note *mine)
{
    for (const struct pl_crossing *x = c->moving; x; x = x->next)
        if (x->stage == stage && x->transfer.active)
            return true;
    return mine->round > 0 && !heard_all(c, mine) && c->heard[mine->round % 2][stage].round != mine->round;
}

static pl_status check_members(struct pl_carrier *c, const struct note *mine)
{
    const char *why;
    for (int s = 0; s < c->row->ranks; s++)
        if (s != c->row->rank && pl_mesh_lost(c->mesh, s, &why) && is_needed(c, s, mine))
            return lost(c, s);
    return PL_OK;
}

static pl_status late_values(const struct pl_carrier *c)
{
    struct pl_text missing = {0};
    for (int s = 0; s < c->row->ranks; s++)
        if (s != c->row->rank && c->heard[c->round % 2][s].round != c->round)
            pl_text_add(&missing, "%s%d", missing.s ? ", " : "", pl_world_run_rank(c->row, s));
    pl_status s = pl_error(PL_ERR_PEER, "split", "waited %g s for the other %s of this replica; missing: rank %s\nsee that rank's log; exchange.timeout sets how long is waited",
                           c->timeout_ms / 1000, c->words->all, missing.s ? missing.s : "?");
    pl_text_free(&missing);
    return s;
}

/* Under the lock. Who waits is the main thread. */
static pl_status check_time(const struct pl_carrier *c)
{
    if (c->waits_since == 0 || pl_now_ms() - c->waits_since < c->timeout_ms)
        return PL_OK;
    if (c->waits_for < 0)
        return late_values(c);
    return pl_error(PL_ERR_PEER, "split", "waited %g s for rank %d, %s %d of this replica\nsee that rank's log; exchange.timeout sets how long is waited",
                    c->timeout_ms / 1000, pl_world_run_rank(c->row, c->waits_for), c->words->one, c->waits_for);
}

static pl_status publish(struct pl_carrier *c, bool all_said)
{
    bool some = all_said;
    pthread_mutex_lock(&c->lock);
    pl_status s = take_crossed(c, &some);
    if (all_said)
        c->rounds++;
    if (s == PL_OK)
        s = check_time(c);
    c->failed = s;
    if (some || s < 0)
        pthread_cond_broadcast(&c->to_main);
    pthread_mutex_unlock(&c->lock);
    return s;
}

/* Waits for something to carry. false: there will be nothing more. */
static bool take(struct pl_carrier *c, struct pl_crossing **posted, struct note *mine)
{
    pthread_mutex_lock(&c->lock);
    while (!c->stop && !c->posted && !c->moving && c->rounds == c->round)
        pthread_cond_wait(&c->to_thread, &c->lock);
    *posted = c->posted;
    c->posted = NULL;
    c->last = &c->posted;
    *mine = c->said;
    mine->round = c->rounds < c->round ? c->round : 0; /* 0: nothing is to be said */
    bool go_on = !c->stop;
    pthread_mutex_unlock(&c->lock);
    return go_on;
}

static bool any_crossed(const struct pl_carrier *c)
{
    const struct pl_crossing *x = c->moving;
    while (x && x->transfer.active)
        x = x->next;
    return x != NULL;
}

static pl_status round_once(struct pl_carrier *c, struct pl_crossing *posted, const struct note *mine, bool *all_said)
{
    pl_status s = PL_OK;
    for (struct pl_crossing *next; posted && s == PL_OK; posted = next) {
        next = posted->next;
        s = begin(c, posted);
    }
    if (s == PL_OK)
        s = say_values(c, mine);
    *all_said = s == PL_OK && mine->round > 0 && c->told == mine->round && heard_all(c, mine);
    atomic_store(&c->asleep, true);
    pthread_mutex_lock(&c->lock);
    bool news = c->posted || c->stop || (mine->round == 0 && c->rounds != c->round);
    pthread_mutex_unlock(&c->lock);
    if (s == PL_OK)
        s = pl_mesh_progress(c->mesh, news || *all_said || any_crossed(c) ? 0 : SLEEP_MS);
    atomic_store(&c->asleep, false);
    if (s == PL_OK && !*all_said)
        s = check_members(c, mine);
    return s;
}

static void *run(void *arg)
{
    struct pl_carrier *c = arg;
    struct pl_crossing *posted;
    struct note mine;
    while (take(c, &posted, &mine)) {
        bool all_said;
        pl_status s = round_once(c, posted, &mine, &all_said);
        if (s == PL_OK) {
            s = publish(c, all_said);
        } else {
            pthread_mutex_lock(&c->lock);
            c->failed = s;
            pthread_cond_broadcast(&c->to_main);
            pthread_mutex_unlock(&c->lock);
        }
        if (s < 0)
            break;
    }
    return NULL;
}

/* ---- the main thread ------------------------------------------------------------------------------- */

static void wake(struct pl_carrier *c)
{
    pthread_cond_signal(&c->to_thread);
    if (atomic_load(&c->asleep))
        pl_mesh_wake(c->mesh);
}

void pl_carrier_post(struct pl_carrier *c, struct pl_crossing *x)
{
    pthread_mutex_lock(&c->lock);
    x->under_way = true;
    x->next = NULL;
    *c->last = x;
    c->last = &x->next;
    pthread_mutex_unlock(&c->lock);
    wake(c);
}

/* Under the lock. stage -1: for values. */
static pl_status wait_until(struct pl_carrier *c, int stage, const struct pl_crossing *x)
{
    double begin = pl_now_ms(), traced = pl_trace_begin();
    if (x && !x->under_way)
        return c->failed;
    c->waits_for = stage;
    c->waits_since = begin;
    while (c->failed == PL_OK && (x ? x->under_way : c->rounds != c->round))
        pthread_cond_wait(&c->to_main, &c->lock);
    c->waits_since = 0;
    c->waited_ms += pl_now_ms() - begin;
    pl_trace_end(traced, c->words->all, stage < 0 ? "wait for values" : c->words->wait, stage);
    return c->failed;
}

pl_status pl_carrier_wait(struct pl_carrier *c, const struct pl_crossing *x)
{
    pthread_mutex_lock(&c->lock);
    pl_status s = wait_until(c, x->stage, x);
    pthread_mutex_unlock(&c->lock);
    return s;
}

pl_status pl_carrier_gather(struct pl_carrier *c, const double *mine, int n, const double **all)
{
    pthread_mutex_lock(&c->lock);
    memset(&c->said, 0, sizeof c->said);
    memcpy(c->said.v, mine, (size_t)n * sizeof *mine);
    c->said.round = ++c->round;
    pthread_mutex_unlock(&c->lock);
    wake(c);
    pthread_mutex_lock(&c->lock);
    pl_status s = wait_until(c, -1, NULL);
    pthread_mutex_unlock(&c->lock);
    *all = c->all;
    return s;
}

static pl_status combine(struct pl_carrier *c, double *v, int n, bool sum)
{
    const double *all;
    PL_TRY(pl_carrier_gather(c, v, n, &all));
    memcpy(v, all, (size_t)n * sizeof *v);
    for (int s = 1; s < c->row->ranks; s++)
        for (int i = 0; i < n; i++) {
            double other = all[s * PL_EXCHANGE_VALUES + i];
            v[i] = sum ? v[i] + other : v[i] > other ? v[i] : other;
        }
    return PL_OK;
}

pl_status pl_carrier_sum(struct pl_carrier *c, double *v, int n) { return combine(c, v, n, true); }
pl_status pl_carrier_max(struct pl_carrier *c, double *v, int n) { return combine(c, v, n, false); }

double pl_carrier_waited_ms(struct pl_carrier *c)
{
    double ms = c->waited_ms;
    c->waited_ms = 0;
    return ms;
}

const char *pl_carrier_why(const struct pl_carrier *c) { return pl_mesh_why(c->mesh); }

/* ---- opening and closing --------------------------------------------------------------------------- */

static pl_status make(struct pl_world *row, const struct pl_carrier_words *words, const struct pl_exchange_options *o, struct pl_carrier **out)
{
    struct pl_carrier *c = *out = pl_alloc(sizeof *c, "the carrier between stages");
    if (!c)
        return PL_ERR_MEMORY;
    size_t stages = (size_t)row->ranks;
    c->row = row;
    c->words = words;
    c->timeout_ms = o->timeout_ms;
    c->last = &c->posted;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->to_thread, NULL);
    pthread_cond_init(&c->to_main, NULL);
    c->all = pl_alloc(stages * PL_EXCHANGE_VALUES * sizeof *c->all, "values of stages");
    for (int i = 0; i < 2; i++) {
        c->id[i] = pl_alloc(stages * sizeof *c->id[i], "what crosses");
        c->heard[i] = pl_alloc(stages * sizeof *c->heard[i], "values of stages");
    }
    return c->all && c->id[0] && c->id[1] && c->heard[0] && c->heard[1] ? PL_OK : PL_ERR_MEMORY;
}

pl_status pl_carrier_open(struct pl_world *row, const struct pl_carrier_words *words, const struct pl_exchange_options *o, struct pl_carrier **out)
{
    struct pl_exchange_options mine = *o;
    struct pl_carrier *c;
    mine.algorithm = NULL; /* nothing is added up here */
    mine.table = NULL;
    pl_status s = pl_world_agree(row, make(row, words, o, &c));
    if (s == PL_OK)
        s = pl_mesh_open(row, &mine, sizeof(struct note), &c->mesh);
    if (s == PL_OK) {
        s = pl_thread_start(&c->thread, "stages", run, c);
        c->threaded = s == PL_OK;
        s = pl_world_agree(row, s);
    }
    if (s < 0)
        pl_carrier_close(c, true);
    else
        *out = c;
    return s;
}

static bool stop_thread(struct pl_carrier *c)
{
    pthread_mutex_lock(&c->lock);
    c->stop = true;
    pthread_mutex_unlock(&c->lock);
    wake(c);
    pthread_join(c->thread, NULL);
    return c->failed == PL_OK;
}

/* Who waits for another's last values is not to see that a third has closed. */
static bool all_through(struct pl_carrier *c)
{
    int rank, code;
    return pl_world_first(c->row, 0, &rank, &code) == PL_OK && rank < 0;
}

void pl_carrier_close(struct pl_carrier *c, bool lost)
{
    if (!c)
        return;
    if (c->threaded && !stop_thread(c))
        lost = true;
    if (c->threaded && !lost)
        lost = !all_through(c);
    pl_mesh_close(c->mesh, lost || c->moving || c->posted);
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->to_thread);
    pthread_cond_destroy(&c->to_main);
    for (int i = 0; i < 2; i++) {
        pl_free(c->id[i]);
        pl_free(c->heard[i]);
    }
    pl_free(c->all);
    pl_free(c);
}
