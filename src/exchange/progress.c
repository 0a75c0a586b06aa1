/* Over a network: tasks are carried out in the order they come, several at a time, by a thread that alone calls
 * the transport. While compute runs it sleeps until something can be moved, because a spinning progress
 * thread steals the compute core (horovod#2804); once the main thread waits too, the core is free and it polls
 * for a moment, yielding. Where nothing overlaps, the main thread does the same work itself (direct). A wait in
 * which nothing moves for too long ends with a roll-call that names the ranks that are missing. */
#include "exchange/flight.h"
#include "exchange/node.h"

#include <sched.h>
#include <string.h>

#define YIELD_MS 1.0      /* of polling while the main thread waits, after anything moved */
#define SLEEP_MS 100.0    /* at most */
#define NODE_SLEEP_MS 0.1 /* while waiting for ranks of this node, who cannot wake the transport */
#define ROLL_CALL_MS 1000.0

/* A bucket can hold few elements, but a slab has at most so many in flight; posting waits beyond. */
#define MAX_REQUESTS 256

struct pl_progress {
    struct pl_route route;
    struct pl_memory *memory[2];

    /* `lock` guards the ring and the counts; nothing else is locked while it is held. */
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t to_thread, to_main;
    struct pl_task ring[MAX_REQUESTS];
    unsigned tail;        /* where the next goes */
    unsigned done;        /* requests finished; all of them when done == tail */
    pl_status failed;
    _Atomic bool main_waits; /* the core is ours: poll without sleeping */
    _Atomic bool asleep;     /* in the transport: a new request wakes it */
    bool threaded;
    uint64_t buckets, values; /* posted by the main thread */
    uint64_t sent_before, saved_before;

    /* The thread's own. Flights [done, taken) are under way, [done, begun) of them on the network or beyond. */
    struct pl_flight flight[MAX_REQUESTS];
    unsigned taken, begun;
    double moved_ms;     /* when anything moved last */
    double looked_ms;    /* for lost members */
    char lost[256];      /* why the first of them is */
};

/* ---- waiting too long --------------------------------------------------------------------------- */

struct answer { char here, missing[255]; }; /* whom that rank misses on its node */

/* Everybody who waits tells everybody else, and whom it misses; who does not answer is missing too. */
static void roll_call(struct pl_progress *p, char *text, size_t bytes)
{
    const struct pl_transport_table *t = p->route.network.table;
    const struct pl_label label = {.bucket = PL_CONTROL_BUCKET};
    int members = p->route.network.group.members, me = p->route.network.group.me;
    struct answer *answer = pl_alloc((size_t)members * sizeof *answer, "roll-call");
    struct pl_request *send = pl_alloc((size_t)members * 2 * sizeof *send, "roll-call"), *receive = send + members;
    if (!send || !answer)
        return;
    answer[me].here = 1;
    pl_exchange_append(answer[me].missing, sizeof answer[me].missing, text);
    for (int r = 0; r < members; r++) {
        if (r == me)
            continue;
        t->post_receive(p->route.network.transport, r, label, &answer[r], sizeof answer[r], &receive[r]);
        t->post_send(p->route.network.transport, r, label, &answer[me], sizeof answer[me], &send[r]);
    }
    for (double end = pl_now_ms() + ROLL_CALL_MS; pl_now_ms() < end;) {
        bool done;
        t->progress(p->route.network.transport, 1);
        for (int r = 0; r < members; r++) {
            if (receive[r].active)
                t->test(p->route.network.transport, &receive[r], &done);
            if (send[r].active)
                t->test(p->route.network.transport, &send[r], &done);
        }
    }
    for (int r = 0; r < members; r++) {
        char name[16];
        snprintf(name, sizeof name, "%d", p->route.network.group.rank[r]);
        answer[r].missing[sizeof answer[r].missing - 1] = '\0';
        if (r != me)
            pl_exchange_append(text, bytes, answer[r].here ? answer[r].missing : name);
    }
    /* send and answer stay: requests may still be in flight, and the process is about to end. */
}

static pl_status timed_out(struct pl_progress *p)
{
    char missing[256] = "";
    if (p->route.exchange->shared)
        pl_node_missing(p->route.exchange->shared, missing, sizeof missing);
    if (p->route.network.table)
        roll_call(p, missing, sizeof missing);
    return pl_exchange_timed_out(p->route.exchange->options.timeout_ms, p->flight[p->done % MAX_REQUESTS].what.step, missing);
}

/* ---- who is lost first ---------------------------------------------------------------------------- */

/* That a member ends is an error only where something is wanted of it: it may be through. */
static void look_for_lost(struct pl_progress *p, double now)
{
    const struct pl_network *n = &p->route.network;
    if (p->lost[0] || !n->table || !n->table->lost || now - p->looked_ms < SLEEP_MS)
        return;
    p->looked_ms = now;
    for (int r = 0; r < n->group.members && !p->lost[0]; r++)
        if (r != n->group.me)
            n->table->lost(n->transport, r, p->lost, sizeof p->lost);
}

/* Others end because of a lost member, and a while later are lost as well: the first is the cause. */
static pl_status name_the_first(const struct pl_progress *p, pl_status s)
{
    const char *text = pl_error_text();
    char room[64];
    if (s != PL_ERR_PEER || !p->lost[0] || (text && strncmp(text, "transport", strlen("transport")) != 0))
        return s;
    pl_error_clear();
    snprintf(room, sizeof room, "transport %s", p->route.network.table->name);
    return pl_error(s, room, "%s", p->lost);
}

/* ---- the rounds --------------------------------------------------------------------------------- */

/* Every flight goes on as far as it can; those before it first, since all ranks begin them in one order. */
static pl_status move_flights(struct pl_progress *p, bool *some)
{
    bool moved = false;
    *some = false;
    for (unsigned i = p->begun; i != p->taken; i++) {
        struct pl_flight *f = &p->flight[i % MAX_REQUESTS];
        if (f->stage == PL_POSTED)
            *some |= pl_flight_prepare(&p->route, f);
        if (f->stage == PL_POSTED)
            break;
        if (i == p->begun && f->stage == PL_ON_NODE && f->n == 0)
            f->stage = PL_WHOLE;
        pl_status s = i == p->begun && f->stage < PL_ON_NETWORK ? pl_flight_begin(&p->route, f) : PL_OK;
        if (s < 0)
            return s;
        if (i == p->begun && f->stage >= PL_ON_NETWORK)
            p->begun++, *some = true;
    }
    if (p->route.collectives)
        PL_TRY(pl_collectives_progress(p->route.collectives, &moved));
    for (unsigned i = p->done; i != p->begun; i++)
        if (p->flight[i % MAX_REQUESTS].stage == PL_ON_NETWORK)
            PL_TRY(pl_flight_test(&p->route, &p->flight[i % MAX_REQUESTS]));
    *some |= moved;
    return PL_OK;
}

/* Takes new requests. */
static bool take(struct pl_progress *p, bool wait)
{
    pthread_mutex_lock(&p->lock);
    while (wait && p->taken == p->tail && p->done == p->tail)
        pthread_cond_wait(&p->to_thread, &p->lock);
    if (p->done == p->taken)
        p->moved_ms = pl_now_ms();
    for (; p->taken != p->tail; p->taken++) {
        p->flight[p->taken % MAX_REQUESTS].what = p->ring[p->taken % MAX_REQUESTS];
        p->flight[p->taken % MAX_REQUESTS].stage = PL_POSTED;
        p->flight[p->taken % MAX_REQUESTS].traced = pl_trace_begin();
    }
    pthread_mutex_unlock(&p->lock);
    return p->flight[(p->taken - 1) % MAX_REQUESTS].what.kind == PL_STOP && p->taken != p->done;
}

/* Hands finished flights back, in order. */
static bool publish(struct pl_progress *p, pl_status failed)
{
    unsigned to = p->done;
    while (to != p->begun && p->flight[to % MAX_REQUESTS].stage == PL_WHOLE)
        pl_flight_finish(&p->route, &p->flight[to++ % MAX_REQUESTS]);
    if (to == p->done && failed == PL_OK)
        return false;
    pthread_mutex_lock(&p->lock);
    p->done = to;
    p->failed = failed;
    pthread_cond_broadcast(&p->to_main);
    pthread_mutex_unlock(&p->lock);
    return true;
}

static pl_status sleep_or_poll(struct pl_progress *p)
{
    double now = pl_now_ms(), wait = SLEEP_MS;
    look_for_lost(p, now);
    if (now - p->moved_ms > p->route.exchange->options.timeout_ms)
        return timed_out(p);
    bool poll = !p->threaded || (atomic_load(&p->main_waits) && now - p->moved_ms < YIELD_MS);
    if (poll && now - p->moved_ms > YIELD_MS / 50)
        sched_yield();
    bool node = p->begun != p->taken && p->route.exchange->shared;
    if (!p->route.network.table) {
        if (!poll)
            pl_sleep_ms(NODE_SLEEP_MS);
        return PL_OK;
    }
    if (poll)
        return p->route.network.table->progress(p->route.network.transport, 0);
    if (node)
        wait = NODE_SLEEP_MS;
    atomic_store(&p->asleep, true);
    pthread_mutex_lock(&p->lock);
    bool news = p->taken != p->tail;
    pthread_mutex_unlock(&p->lock);
    pl_status s = p->route.network.table->progress(p->route.network.transport, news ? 0 : wait);
    atomic_store(&p->asleep, false);
    return s;
}

static pl_status round_once(struct pl_progress *p)
{
    bool some = false;
    pl_status s = name_the_first(p, move_flights(p, &some));
    some |= publish(p, s);
    if (s < 0)
        return s;
    if (some) {
        p->moved_ms = pl_now_ms();
        return PL_OK;
    }
    s = sleep_or_poll(p);
    if (s < 0)
        publish(p, s);
    return s;
}

static void *run(void *arg)
{
    struct pl_progress *p = arg;
    do
        if (take(p, true))
            return NULL;
    while (round_once(p) >= 0);
    return NULL;
}

/* ---- the main thread's side --------------------------------------------------------------------- */

/* Until so many requests at most are not done. */
static pl_status wait_for(struct pl_progress *p, unsigned left)
{
    pl_status s = PL_OK;
    if (!p->threaded) {
        s = p->failed;
        while (s >= 0 && p->tail - p->done > left) {
            take(p, false);
            s = round_once(p);
        }
        return s;
    }
    pthread_mutex_lock(&p->lock);
    while (p->failed == PL_OK && p->tail - p->done > left)
        pthread_cond_wait(&p->to_main, &p->lock);
    s = p->failed;
    pthread_mutex_unlock(&p->lock);
    return s;
}

static pl_status post(struct pl_progress *p, struct pl_task r)
{
    PL_TRY(wait_for(p, MAX_REQUESTS - 1));
    pthread_mutex_lock(&p->lock);
    p->ring[p->tail++ % MAX_REQUESTS] = r;
    pthread_cond_signal(&p->to_thread);
    pthread_mutex_unlock(&p->lock);
    if (p->threaded && atomic_load(&p->asleep) && p->route.network.table)
        p->route.network.table->wake(p->route.network.transport);
    return PL_OK;
}

static pl_status drain(struct pl_progress *p)
{
    atomic_store(&p->main_waits, true);
    pl_status s = wait_for(p, 0);
    atomic_store(&p->main_waits, false);
    return s;
}

static pl_status network_post_bucket(struct pl_exchange *x, int64_t a, int64_t b, bool exact)
{
    struct pl_progress *p = x->progress;
    if (x->shared)
        pl_node_post(x->shared);
    return post(p, (struct pl_task){.kind = PL_BUCKET, .exact = exact, .op = PL_SUM_F32, .a = a, .n = b - a, .step = x->step, .number = ++p->buckets});
}

static pl_status network_post_values(struct pl_exchange *x, enum pl_reduce op, double *values, int n)
{
    struct pl_progress *p = x->progress;
    if (n > x->options.values)
        return pl_error(PL_ERR_USAGE, "exchange", "a small sum of %d values", n);
    if (x->shared || p->route.values)
        PL_TRY(p->values > 0 ? wait_for(p, 0) : PL_OK); /* their places are used in turn */
    if (x->shared)
        pl_node_say(x->shared, values, n);
    return post(p, (struct pl_task){.kind = PL_VALUES, .op = op, .values = values, .n = n, .step = x->step, .number = ++p->values});
}

static pl_status network_drain(struct pl_exchange *x)
{
    PL_TRY(drain(x->progress));
    return x->shared ? pl_node_drain(x->shared) : PL_OK;
}

void pl_exchange_network_traffic(struct pl_exchange *x, double *sent_mb, double *saved_mb)
{
    struct pl_progress *p = x->progress;
    uint64_t sent = p->route.collectives ? pl_collectives_sent(p->route.collectives) : 0, saved = atomic_load(&p->route.saved);
    *sent_mb = (double)(sent - p->sent_before) / 1e6;
    *saved_mb = (double)(saved - p->saved_before) / 1e6;
    p->sent_before = sent;
    p->saved_before = saved;
}

/* ---- opening and closing ------------------------------------------------------------------------ */

static pl_status prepare(struct pl_exchange *x)
{
    struct pl_progress *p = x->progress = pl_alloc(sizeof *x->progress, "exchange requests");
    if (!p)
        return PL_ERR_MEMORY;
    p->route.exchange = x;
    p->threaded = !x->options.direct;
    if (x->options.values > PL_EXCHANGE_VALUES && !(p->route.values = pl_alloc(2 * (size_t)x->options.values * sizeof(double), "values"))) {
        pl_free(p);
        x->progress = NULL;
        return PL_ERR_MEMORY;
    }
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->to_thread, NULL);
    pthread_cond_init(&p->to_main, NULL);
    return PL_OK;
}

pl_status pl_exchange_network_open(struct pl_exchange *x, const struct pl_network *network)
{
    struct pl_progress *p;
    PL_TRY(prepare(x));
    p = x->progress;
    x->algorithm = &pl_algorithm_network; /* from here on, close cleans up */
    if (network) {
        size_t in = (size_t)(x->shared ? x->partial_elems : x->elems) * sizeof(float);
        p->route.network = *network;
        PL_TRY(pl_collectives_create(network->table, network->transport, &network->group, &p->route.collectives));
        if (x->codec && x->elems > 0)
            PL_TRY(pl_compressed_create(x->codec, x->options.compress_ratio, network->group.me, network->group.members, &p->route.compressed));
        if (x->elems > 0 && !x->reducer) {
            PL_TRY(network->table->register_memory(network->transport, x->shared ? x->partial : x->gradient, in, &p->memory[0]));
            PL_TRY(network->table->register_memory(network->transport, x->sum, (size_t)x->elems * sizeof(float), &p->memory[1]));
        }
    }
    if (!p->threaded)
        return PL_OK;
    pl_status s = pl_thread_start(&p->thread, "exchange", run, p);
    p->threaded = s == PL_OK;
    return s;
}

/* After an error nothing waits for a peer, and with MPI requests in flight still point here. */
static void network_close(struct pl_exchange *x)
{
    struct pl_progress *p = x->progress;
    bool lost = drain(p) < 0;
    if (p->threaded) {
        if (!lost)
            post(p, (struct pl_task){.kind = PL_STOP});
        pthread_join(p->thread, NULL);
    }
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->to_thread);
    pthread_cond_destroy(&p->to_main);
    if (lost) { /* the process is about to end */
        x->own[0] = x->own[1] = x->own[2] = x->own[3] = NULL;
        return;
    }
    for (int i = 0; i < 2; i++)
        if (p->memory[i])
            p->route.network.table->unregister_memory(p->route.network.transport, p->memory[i]);
    pl_network_close(&p->route.network, false);
    pl_collectives_destroy(p->route.collectives);
    pl_compressed_destroy(p->route.compressed);
    pl_free(p->route.values);
    pl_free(p);
}

const struct pl_algorithm pl_algorithm_network = {
    .post_bucket = network_post_bucket,
    .post_values = network_post_values,
    .drain = network_drain,
    .close = network_close,
};
