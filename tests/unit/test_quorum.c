/* The quorum protocol over a made-up network: random schedules of who is late, stopped, killed or cut off, and when.
 * A rank's parameters are a hash that every update folds in, so a stale gradient, a sum of other members than agreed or
 * a second history shows as another number. PL_QUORUM_SCHEDULES sets how many are tried, PL_QUORUM_SEED one of them. */
#include "sync/quorum_protocol.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MOST = 7, QUEUE = 256, STEPS = 40, END_MS = 60000 };
static const double suspect_ms = 100, lost_ms = 1000;

struct mail { double due; struct pl_note note; };
struct line { struct mail mail[QUEUE]; unsigned from, to; bool cut; double told_ms; }; /* told_ms: the receiver learns of the cut */

struct rank {
    struct pl_quorum *q;
    bool dead, over, slept; /* slept: for so long that it may have been struck off */
    double stopped_until, ticked;
    int64_t version, round; /* of its parameters */
    uint64_t params, gradient, gradient_of; /* gradient_of: the parameters that it was computed at */
    struct pl_attempt last;
    bool computing, fetching, leaving;
    double compute_until, fetch_until, whole_at;
    int fetch_from;
    int64_t reducing, asked_sum, no_sum; /* rounds, 0: none */
    double sum_at;
    uint64_t sum;
    int code;
    double slow;            /* factor on its compute */
};

struct collective { int64_t round; struct pl_ranks group; uint64_t sum; bool whole; };

/* At the end of an epoch, every fifth step here, few ranks have any. */
static double samples_of(int64_t step, int rank) { return step % 5 != 4 || rank == step / 5 % 3; }

struct sim {
    struct pl_rng rng;
    int ranks, enough;
    double now;
    struct rank rank[MOST];
    struct line line[MOST][MOST];
    struct collective collective[64];
    int64_t history[STEPS + 1];
    uint64_t params[STEPS + 1];
    int64_t seed;
    bool links;  /* between live ranks were cut */
};

static double uniform(struct sim *s, double a, double b) { return a + (b - a) * pl_rng_uniform(&s->rng); }
static bool chance(struct sim *s, double p) { return pl_rng_uniform(&s->rng) < p; }
static uint64_t mix(uint64_t a, uint64_t b) { uint64_t v[2] = {a, b}; return pl_hash(PL_HASH_START, v, sizeof v); }

static int failures;
#define CHECK(s, what)                                                                                              \
    do {                                                                                                            \
        if (!(what) && failures++ < 10)                                                                             \
            fprintf(stderr, "schedule %lld at %.0f ms, rank %d: %s\n", (long long)(s)->seed, (s)->now, r, #what);   \
    } while (0)

static bool awake(const struct sim *s, int r) { return !s->rank[r].dead && s->now >= s->rank[r].stopped_until; }

/* ---- the network ------------------------------------------------------------------------------------ */

static void deliver(struct sim *s, int r)
{
    for (int from = 0; from < s->ranks; from++) {
        struct line *l = &s->line[from][r];
        for (; l->from != l->to && l->mail[l->from % QUEUE].due <= s->now; l->from++)
            pl_quorum_hear(s->rank[r].q, s->now, from, &l->mail[l->from % QUEUE].note);
        if (l->cut && l->told_ms <= s->now)
            pl_quorum_lost(s->rank[r].q, s->now, from);
    }
}

static void speak(struct sim *s, int r)
{
    struct pl_note n;
    for (int to = 0; to < s->ranks; to++) {
        struct line *l = &s->line[r][to];
        if (to == r || !pl_quorum_say(s->rank[r].q, s->now, to, &n) || l->cut || s->rank[to].dead || l->to - l->from == QUEUE)
            continue;
        double due = s->now + uniform(s, 0, chance(s, 0.05) ? 8 : 1);
        if (l->to != l->from && due < l->mail[(l->to - 1) % QUEUE].due)
            due = l->mail[(l->to - 1) % QUEUE].due;
        l->mail[l->to++ % QUEUE] = (struct mail){due, n};
    }
}

static void cut(struct sim *s, int a, int b, bool noticed)
{
    struct line *l[2] = {&s->line[a][b], &s->line[b][a]};
    for (int i = 0; i < 2; i++) {
        if (l[i]->cut)
            continue;
        l[i]->cut = true;
        if (noticed)
            l[i]->from = chance(s, 0.5) ? l[i]->from : l[i]->to;
        l[i]->told_ms = s->now + (noticed ? uniform(s, 0, 20) : uniform(s, 300, 1500)); /* no answer for the timeout */
    }
}

/* ---- the sum of a group ----------------------------------------------------------------------------- */

static struct collective *find(struct sim *s, const struct pl_attempt *a)
{
    struct collective *c = &s->collective[a->round % 64];
    if (c->round != a->round)
        *c = (struct collective){.round = a->round, .group = a->group};
    return c;
}

static bool severed(const struct sim *s, const struct pl_ranks *group)
{
    for (int a = 0; a < s->ranks; a++)
        for (int b = 0; b < a; b++)
            if (pl_ranks_has(group, a) && pl_ranks_has(group, b) && s->line[a][b].cut)
                return true;
    return false;
}

static void join(struct sim *s, int r, const struct pl_attempt *a)
{
    struct collective *c = find(s, a);
    struct rank *me = &s->rank[r];
    CHECK(s, pl_ranks_same(&c->group, &a->group));
    CHECK(s, me->gradient_of == me->params && me->version == a->step);
    me->reducing = a->round;
    me->whole_at = INFINITY;
    for (int i = 0; i < s->ranks; i++)
        if (pl_ranks_has(&c->group, i) && s->rank[i].reducing != a->round)
            return;
    if (severed(s, &c->group))
        return;
    c->whole = true;
    c->sum = 0;
    for (int i = 0; i < s->ranks; i++)
        if (pl_ranks_has(&c->group, i)) {
            CHECK(s, s->rank[i].gradient_of == me->params); /* nobody's gradient is stale */
            c->sum += s->rank[i].gradient;
        }
    for (int i = 0; i < s->ranks; i++)
        if (pl_ranks_has(&c->group, i) && s->rank[i].reducing == a->round)
            s->rank[i].whole_at = s->now + uniform(s, 0, 3);
}

/* A member that stops or dies in the middle holds up those who still need something from it. */
static void hold_up(struct sim *s, int r)
{
    int64_t round = s->rank[r].reducing;
    if (round == 0 || !s->collective[round % 64].whole)
        return;
    for (int i = 0; i < s->ranks; i++)
        if (i != r && s->rank[i].reducing == round && chance(s, 0.5))
            s->rank[i].whole_at = s->rank[r].dead ? INFINITY : s->rank[i].whole_at + s->rank[r].stopped_until - s->now;
}

/* ---- a rank ----------------------------------------------------------------------------------------- */

static void compute(struct sim *s, int r)
{
    struct rank *me = &s->rank[r];
    if (me->version == STEPS) {
        me->leaving = true;
        pl_quorum_leave(me->q, s->now, me->params);
        return;
    }
    if (!pl_ranks_has(&me->last.members, r) && me->version > 0)
        return; /* not a member: it waits for the step that has it in again */
    me->computing = true;
    me->compute_until = s->now + uniform(s, 5, 10) * me->slow * (chance(s, 0.02) ? 20 : 1);
}

static void record(struct sim *s, int r)
{
    struct rank *me = &s->rank[r];
    if (s->history[me->version] == 0) {
        s->history[me->version] = me->round;
        s->params[me->version] = me->params;
    }
    CHECK(s, s->history[me->version] == me->round);
    CHECK(s, s->params[me->version] == me->params);
}

static double samples_of_group(const struct sim *s, const struct pl_attempt *a)
{
    double n = 0;
    for (int r = 0; r < s->ranks; r++)
        n += pl_ranks_has(&a->group, r) ? samples_of(a->step, r) : 0;
    return n;
}

static void update(struct sim *s, int r)
{
    struct rank *me = &s->rank[r];
    struct pl_attempt last;
    int64_t version = pl_quorum_version(me->q, &last);
    if (version == me->version || me->fetching)
        return;
    CHECK(s, version == me->version + 1 && last.step == me->version && (pl_ranks_has(&last.group, r) || me->asked_sum == last.round));
    CHECK(s, pl_ranks_count(&last.group) >= s->enough);
    CHECK(s, last.values[0] == samples_of_group(s, &last));
    me->params = mix(me->params, me->sum);
    me->version = version;
    me->round = last.round;
    me->last = last;
    record(s, r);
    compute(s, r);
}

static void fetch(struct sim *s, int r, const struct pl_task_now *t)
{
    struct rank *me = &s->rank[r];
    if (!me->fetching && t->from < 0)
        return; /* nobody has it yet */
    if (!me->fetching || (s->line[me->fetch_from][r].cut && me->fetch_from != t->from && t->from >= 0)) {
        me->fetching = true;
        me->computing = false;
        me->fetch_from = t->from;
        me->fetch_until = s->now + uniform(s, 1, 10);
    }
    const struct rank *from = &s->rank[me->fetch_from];
    if (s->now < me->fetch_until || !awake(s, me->fetch_from) || s->line[me->fetch_from][r].cut || from->version < t->version || from->fetching)
        return;
    me->fetching = false;
    me->params = from->params;
    me->version = from->version;
    me->round = from->round;
    me->last = from->last;
    me->leaving = false;
    pl_quorum_fetched(me->q, s->now, me->version, &me->last);
    CHECK(s, me->round == me->last.round);
    record(s, r);
    compute(s, r);
}

/* From one of the group, as long as it holds it; sometimes it is gone. */
static void take_sum(struct sim *s, int r, const struct pl_task_now *t)
{
    struct rank *me = &s->rank[r];
    if (me->asked_sum != t->attempt.round) {
        me->asked_sum = t->attempt.round;
        me->sum_at = chance(s, 0.2) ? INFINITY : s->now + uniform(s, 0, 5);
        me->no_sum = isinf(me->sum_at) ? t->attempt.round : 0;
    }
    if (me->sum_at > s->now || me->no_sum == t->attempt.round)
        return;
    me->computing = false;
    me->sum = find(s, &t->attempt)->sum;
    pl_quorum_whole(me->q, s->now, t->attempt.round);
}

static void act(struct sim *s, int r)
{
    struct rank *me = &s->rank[r];
    struct pl_task_now t;
    pl_quorum_duty(me->q, &t);
    if (me->reducing && (t.duty != PL_DUTY_REDUCE || t.attempt.round != me->reducing)) {
        pl_quorum_give_up(me->q, me->reducing);
        me->reducing = 0;
    }
    if (t.duty == PL_DUTY_REDUCE && me->reducing == 0)
        join(s, r, &t.attempt);
    if (me->reducing && me->whole_at <= s->now) {
        me->sum = find(s, &t.attempt)->sum;
        me->reducing = 0;
        pl_quorum_whole(me->q, s->now, t.attempt.round);
    }
    if (t.duty == PL_DUTY_SUM)
        take_sum(s, r, &t);
    if (t.duty == PL_DUTY_FETCH || (t.duty == PL_DUTY_SUM && me->no_sum == t.attempt.round && t.from >= 0))
        fetch(s, r, &t);
    else if (!pl_quorum_behind(me->q))
        me->fetching = false;
    if (me->computing && me->compute_until <= s->now) {
        const double values[PL_QUORUM_VALUES] = {samples_of(me->version, r)};
        me->computing = false;
        me->gradient_of = me->params;
        me->gradient = mix(me->params, (uint64_t)r);
        pl_quorum_ready(me->q, s->now, me->version, values);
    }
    if (me->leaving && pl_quorum_coordinates(me->q))
        pl_quorum_leave(me->q, s->now, me->params); /* it took over at the end, and has written what there was to write */
    if (t.duty == PL_DUTY_END && pl_quorum_over(me->q, s->now)) {
        me->over = true;
        me->code = t.code;
    }
}

static void turn(struct sim *s, int r)
{
    struct rank *me = &s->rank[r];
    deliver(s, r);
    for (int i = 0; i < 3; i++) {
        pl_quorum_tick(me->q, s->now);
        update(s, r);
        act(s, r);
    }
    pl_quorum_tick(me->q, s->now);
    speak(s, r);
    if (me->over)
        for (int i = 0; i < s->ranks; i++)
            if (i != r)
                s->line[r][i].cut = true, s->line[r][i].told_ms = s->now + uniform(s, 1, 10); /* after what it said */
}

/* ---- a schedule ------------------------------------------------------------------------------------- */

static void start(struct sim *s, int64_t seed)
{
    memset(s, 0, sizeof *s);
    s->seed = seed;
    s->rng = pl_rng_make((uint64_t)seed, 1, 2, 3);
    s->ranks = 2 + (int)pl_rng_below(&s->rng, MOST - 1);
    s->enough = s->ranks - (int)pl_rng_below(&s->rng, (uint64_t)(s->ranks + 1) / 2);
    for (int r = 0; r < s->ranks; r++) {
        struct pl_quorum_options o = {.me = r, .ranks = s->ranks, .enough = s->enough, .grace_ms = 0.5, .suspect_ms = suspect_ms,
                                      .lost_ms = lost_ms, .timeout_ms = 20000, .survives = true};
        struct rank *me = &s->rank[r];
        assert_int_equal(pl_quorum_create(&o, 0, 0, &me->q), PL_OK);
        for (int i = 0; i < s->ranks; i++)
            pl_ranks_add(&me->last.members, i);
        me->params = 4711;
        me->slow = chance(s, 0.1) ? 10 : 1;
        for (int i = 0; i < s->ranks; i++)
            s->line[i][r].told_ms = INFINITY;
        compute(s, r);
    }
}

static void trouble(struct sim *s, double rate)
{
    int r = (int)pl_rng_below(&s->rng, (uint64_t)s->ranks);
    double kind = pl_rng_uniform(&s->rng);
    if (!chance(s, rate) || !awake(s, r) || s->rank[r].over)
        return;
    if (kind < 0.05) {
        int other = (int)pl_rng_below(&s->rng, (uint64_t)s->ranks);
        s->links = true;
        if (other != r)
            cut(s, r, other, chance(s, 0.5));
    } else if (kind < 0.6) {
        s->rank[r].stopped_until = s->now + uniform(s, 1, chance(s, 0.3) ? 3 * lost_ms : 3 * suspect_ms);
        s->rank[r].slept = s->rank[r].slept || s->rank[r].stopped_until - s->now > 0.8 * lost_ms;
        hold_up(s, r);
    } else if (kind < 0.85) {
        bool noticed = chance(s, 0.8);
        s->rank[r].dead = true;
        hold_up(s, r);
        for (int i = 0; i < s->ranks; i++)
            if (i != r)
                cut(s, r, i, noticed);
    } else {
        bool noticed = chance(s, 0.5);
        s->links = true;
        uint64_t side = pl_rng_below(&s->rng, 1ull << s->ranks);
        for (int a = 0; a < s->ranks; a++)
            for (int b = 0; b < a; b++)
                if ((side >> a & 1) != (side >> b & 1))
                    cut(s, a, b, noticed);
    }
    for (int a = 0; a < s->ranks; a++)
        if (s->rank[a].reducing && severed(s, &s->collective[s->rank[a].reducing % 64].group))
            s->rank[a].whole_at = INFINITY;
}

/* Enough for a step and for a majority were always there. */
static bool must_succeed(const struct sim *s)
{
    int live = 0;
    for (int a = 0; a < s->ranks; a++)
        live += !s->rank[a].dead && !s->rank[a].slept;
    return !s->links && live >= s->enough && 2 * live > s->ranks;
}

static void run(int64_t seed, double rate)
{
    static struct sim s;
    bool fine = false;
    int left;
    start(&s, seed);
    for (left = s.ranks; left > 0 && s.now < END_MS; s.now += 1) {
        if (s.now < 2000)
            trouble(&s, rate);
        left = 0;
        for (int r = 0; r < s.ranks; r++) {
            if (s.rank[r].dead || s.rank[r].over)
                continue;
            left++;
            if (awake(&s, r))
                turn(&s, r);
        }
        for (int r = 0; r < s.ranks; r++)
            fine = fine || (s.rank[r].over && s.rank[r].code == 0);
        if (left > 0 && !fine && s.now + 1 >= END_MS)
            break;
        if (left == s.ranks)
            fine = must_succeed(&s) && fine;
    }
    int sides = 0, done = 0;
    for (int r = 0; r < s.ranks; r++) {
        const struct rank *me = &s.rank[r];
        CHECK(&s, me->dead || me->over); /* nobody waits for ever */
        sides += me->over && me->code == 0;
        done += me->over && me->code == 0 && me->version == STEPS;
        pl_quorum_destroy(s.rank[r].q);
    }
    for (int r = 0; r < 1; r++) {
        CHECK(&s, sides == 0 || done > 0); /* one that slept through the end is told that it was one */
        if (must_succeed(&s))
            CHECK(&s, done > 0);
    }
}

static int64_t number(const char *name, int64_t otherwise) { return getenv(name) ? atoll(getenv(name)) : otherwise; }

static void test_random_schedules(void **state)
{
    (void)state;
    int64_t one = number("PL_QUORUM_SEED", -1), n = number("PL_QUORUM_SCHEDULES", 1500);
    for (int64_t seed = one >= 0 ? one : 0; seed < (one >= 0 ? one + 1 : n); seed++)
        run(seed, seed % 4 == 0 ? 0 : seed % 4 == 1 ? 0.002 : 0.01);
    assert_int_equal(failures, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_random_schedules)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
