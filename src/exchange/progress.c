/* MPI's own all-reduce, driven by a thread: it starts requests in the order they come, polls those in
 * flight, and watches the clock. It alone calls the transport. While compute runs it sleeps between polls,
 * because a spinning progress thread steals the compute core (horovod#2804); once the main thread waits too,
 * the core is free and it polls, yielding. A wait beyond the timeout ends with a roll-call that
 * names the ranks that are missing. */
#include "exchange/exchange_internal.h"
#include "exchange/group.h"

#include <sched.h>
#include <string.h>

#define POLL_SLEEP_MS 0.05
#define ROLL_CALL_MS 1000.0

/* A bucket can hold few elements, but a slab has at most so many in flight; posting waits beyond. */
#define MAX_REQUESTS 256

struct request {
    enum pl_reduce op;
    bool stop; /* the last one */
    const void *in;
    void *out;
    int64_t n, step;
    double posted_ms;
};

struct flight {
    struct request what;
    struct pl_request request;
};

struct pl_native {
    struct pl_exchange *exchange;
    const struct pl_transport_table *table;
    struct pl_transport *transport;
    struct pl_network network;

    /* `lock` guards the ring and the counts; nothing else is locked while it is held. */
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t to_thread, to_main;
    struct request ring[MAX_REQUESTS];
    unsigned head, tail; /* ring[head % MAX] is next to be started; tail is where the next goes */
    unsigned done;       /* requests finished; all of them when done == tail */
    pl_status failed;
    _Atomic bool main_waits; /* the core is ours: poll without sleeping */
    struct flight flight[MAX_REQUESTS]; /* the thread's own */
};

static pl_status start(struct pl_native *n, struct flight *f)
{
    if (pl_fault("exchange.start", f->what.step))
        return pl_error(PL_ERR_PEER, "exchange", "debug.fault at exchange.start");
    return n->table->post_allreduce(n->transport, f->what.op, f->what.in, f->what.out, f->what.n, &f->request);
}

/* Everybody who waits tells everybody else the step it is in; who does not answer is missing. */
static void roll_call(struct pl_native *n, char *text, size_t bytes)
{
    int ranks = n->exchange->world->ranks, me = n->exchange->world->rank;
    size_t at = 0;
    int64_t mine = n->ring[n->done % MAX_REQUESTS].step;
    struct pl_request *send = pl_alloc((size_t)ranks * 2 * sizeof *send, "roll-call");
    int64_t *step = pl_alloc((size_t)ranks * sizeof *step, "roll-call");
    text[0] = '\0';
    if (!send || !step)
        return;
    struct pl_request *receive = send + ranks;
    const struct pl_label label = {.bucket = PL_CONTROL_BUCKET};
    for (int r = 0; r < ranks; r++) {
        if (r == me)
            continue;
        n->table->post_receive(n->transport, r, label, &step[r], sizeof step[r], &receive[r]);
        n->table->post_send(n->transport, r, label, &mine, sizeof mine, &send[r]);
    }
    for (double end = pl_now_ms() + ROLL_CALL_MS; pl_now_ms() < end; pl_sleep_ms(1)) {
        bool done;
        for (int r = 0; r < ranks; r++) {
            if (receive[r].active)
                n->table->test(n->transport, &receive[r], &done);
            if (send[r].active)
                n->table->test(n->transport, &send[r], &done);
        }
    }
    for (int r = 0; r < ranks && at + 16 < bytes; r++)
        if (r != me && receive[r].active)
            at += (size_t)snprintf(text + at, bytes - at, "%s%d", at ? ", " : "", r);
    /* send and step stay: requests may still be in flight, and the process is about to end. */
}

static pl_status timed_out(struct pl_native *n, const struct flight *f)
{
    char missing[256];
    roll_call(n, missing, sizeof missing);
    return pl_exchange_timed_out(n->exchange, f->what.step, missing);
}

/* Tests what is in flight, in order; *some says that anything ended. */
static pl_status poll_flights(struct pl_native *n, struct flight *flight, unsigned from, unsigned to,
                              bool *some)
{
    *some = false;
    for (unsigned i = from; i != to; i++) {
        struct flight *f = &flight[i % MAX_REQUESTS];
        bool done = false;
        if (!f->request.active)
            continue;
        PL_TRY(n->table->test(n->transport, &f->request, &done));
        if (done)
            *some = true;
        else if (pl_now_ms() - f->what.posted_ms > n->exchange->options.timeout_ms)
            return timed_out(n, f);
    }
    return PL_OK;
}

/* Takes new requests; true when told to stop. Waits for one only while nothing is in flight. */
static bool take(struct pl_native *n, struct flight *flight, unsigned *started, unsigned *to)
{
    pthread_mutex_lock(&n->lock);
    while (n->head == n->tail && n->done == n->tail)
        pthread_cond_wait(&n->to_thread, &n->lock);
    *started = n->head;
    for (; n->head != n->tail; n->head++) {
        flight[n->head % MAX_REQUESTS].what = n->ring[n->head % MAX_REQUESTS];
        flight[n->head % MAX_REQUESTS].request.active = false;
    }
    *to = n->head;
    pthread_mutex_unlock(&n->lock);
    return *started != *to && flight[(*to - 1) % MAX_REQUESTS].what.stop;
}

static void publish(struct pl_native *n, struct flight *flight, unsigned to, pl_status failed)
{
    pthread_mutex_lock(&n->lock);
    while (n->done != to && !flight[n->done % MAX_REQUESTS].request.active)
        n->done++;
    n->failed = failed;
    pthread_cond_broadcast(&n->to_main);
    pthread_mutex_unlock(&n->lock);
}

static void *run(void *arg)
{
    struct pl_native *n = arg;
    struct flight *flight = n->flight;
    for (;;) {
        unsigned from, to;
        bool some = false;
        pl_status s = PL_OK;
        if (take(n, flight, &from, &to))
            return NULL;
        for (unsigned i = from; s == PL_OK && i != to; i++)
            s = start(n, &flight[i % MAX_REQUESTS]);
        if (s == PL_OK)
            s = poll_flights(n, flight, n->done, to, &some);
        if (s < 0 || some)
            publish(n, flight, to, s);
        if (s < 0)
            return NULL;
        if (!some && atomic_load(&n->main_waits))
            sched_yield();
        else if (!some)
            pl_sleep_ms(POLL_SLEEP_MS);
    }
}

static pl_status post(struct pl_native *n, const struct request *r)
{
    pthread_mutex_lock(&n->lock);
    while (n->failed == PL_OK && n->tail - n->done >= MAX_REQUESTS)
        pthread_cond_wait(&n->to_main, &n->lock);
    pl_status s = n->failed;
    if (s == PL_OK) {
        struct request *slot = &n->ring[n->tail % MAX_REQUESTS];
        *slot = *r;
        slot->posted_ms = pl_now_ms();
        n->tail++;
        pthread_cond_signal(&n->to_thread);
    }
    pthread_mutex_unlock(&n->lock);
    return s;
}

static pl_status drain(struct pl_native *n)
{
    atomic_store(&n->main_waits, true);
    pthread_mutex_lock(&n->lock);
    while (n->failed == PL_OK && n->done != n->tail)
        pthread_cond_wait(&n->to_main, &n->lock);
    pl_status s = n->failed;
    pthread_mutex_unlock(&n->lock);
    atomic_store(&n->main_waits, false);
    return s;
}

static pl_status native_post_bucket(struct pl_exchange *x, int64_t a, int64_t b)
{
    struct request r = {.op = PL_SUM_F32, .in = x->gradient + a, .out = x->sum + a, .n = b - a, .step = x->step};
    return post(x->native, &r);
}

static pl_status native_post_values(struct pl_exchange *x, enum pl_reduce op, double *values, int n)
{
    struct request r = {.op = op, .in = values, .out = values, .n = n, .step = x->step};
    return post(x->native, &r);
}

static pl_status native_drain(struct pl_exchange *x) { return drain(x->native); }

static pl_status start_thread(struct pl_native *n)
{
    pthread_mutex_init(&n->lock, NULL);
    pthread_cond_init(&n->to_thread, NULL);
    pthread_cond_init(&n->to_main, NULL);
    return pl_thread_start(&n->thread, "exchange", run, n);
}

/* Everything that one rank alone can fail at comes before the collective open. */
static pl_status prepare(struct pl_exchange *x)
{
    size_t bytes = (size_t)x->elems * sizeof(float);
    x->native = pl_alloc(sizeof *x->native, "exchange requests");
    x->gradient = x->own[0] = pl_alloc(bytes, "gradients");
    x->sum = x->own[1] = pl_alloc(bytes, "the agreed gradient");
    if (!x->native || !x->gradient || !x->sum)
        return PL_ERR_MEMORY;
    x->native->exchange = x;
    return PL_OK;
}

static pl_status open_all(struct pl_exchange *x)
{
    struct pl_native *n = x->native;
    const struct pl_transport_options o = {.channels = 1, .timeout_ms = x->options.timeout_ms};
    char why[sizeof x->why], reason[sizeof x->why];
    int rank[4096];
    for (int i = 0; i < x->world->ranks; i++)
        rank[i] = i;
    PL_TRY(pl_network_find(x->world, x->options.transport, &o, &n->network, why, sizeof why));
    memcpy(reason, x->why, sizeof reason);
    snprintf(x->why, sizeof x->why, "%.120s; %.130s", why, reason);
    PL_TRY(pl_network_open(x->world, &o, rank, x->world->ranks, x->world->nodes == 1, &n->network));
    n->table = n->network.table;
    n->transport = n->network.transport;
    x->transport = n->table->name;
    return PL_OK;
}

pl_status pl_exchange_native_open(struct pl_exchange *x)
{
    pl_status s = pl_world_agree(x->world, prepare(x));
    struct pl_native *n = x->native;
    if (s < 0) {
        pl_free(n);
        return s;
    }
    s = open_all(x);
    if (s == PL_OK)
        s = start_thread(n);
    if (s == PL_OK) {
        x->algorithm = &pl_algorithm_native;
    } else {
        pl_network_close(&n->network, false);
        pl_free(n);
    }
    return pl_world_agree(x->world, s);
}

/* After an error a collective close could wait for a dead peer, and requests in flight still point here. */
static void native_close(struct pl_exchange *x)
{
    struct pl_native *n = x->native;
    struct request stop = {.stop = true};
    if (drain(n) == PL_OK)
        post(n, &stop);
    pthread_join(n->thread, NULL);
    pthread_mutex_destroy(&n->lock);
    pthread_cond_destroy(&n->to_thread);
    pthread_cond_destroy(&n->to_main);
    if (n->failed == PL_OK) {
        pl_network_close(&n->network, false);
        pl_free(n);
    } else {
        x->own[0] = x->own[1] = NULL;
    }
}

const struct pl_algorithm pl_algorithm_native = {
    .name = "native",
    .post_bucket = native_post_bucket,
    .post_values = native_post_values,
    .drain = native_drain,
    .close = native_close,
};
