/* The exchange thread: starts requests in the order they come, polls those in flight, and watches
 * the clock. It alone calls the transport. While compute runs it sleeps between polls, because a
 * spinning progress thread steals the compute core (horovod#2804); once the main thread waits too,
 * the core is free and it polls, yielding. A wait beyond the timeout ends with a roll-call that
 * names the ranks that are missing. */
#include "exchange/exchange_internal.h"

#include <sched.h>
#include <string.h>

#define POLL_SLEEP_MS 0.05
#define ROLL_CALL_MS 1000.0
#define ROLL_CALL_TAG 77

struct flight {
    struct request what;
    struct pl_request request;
};

static pl_status start(struct pl_exchange *x, struct flight *f)
{
    static const enum pl_reduce op[] = {
        [REQUEST_SUM_F32] = PL_SUM_F32, [REQUEST_SUM_F64] = PL_SUM_F64, [REQUEST_MAX_F64] = PL_MAX_F64};
    if (pl_fault("exchange.start", f->what.step))
        return pl_error(PL_ERR_PEER, "exchange", "debug.fault at exchange.start");
    return x->table->post_allreduce(x->transport, op[f->what.what], f->what.in, f->what.out, f->what.n,
                                    &f->request);
}

/* Everybody who waits tells everybody else the step it is in; who does not answer is missing. */
static void roll_call(struct pl_exchange *x, char *text, size_t bytes)
{
    int ranks = x->world->ranks, me = x->world->rank;
    size_t at = 0;
    int64_t mine = x->ring[x->done % MAX_REQUESTS].step;
    struct pl_request *send = pl_alloc((size_t)ranks * 2 * sizeof *send, "roll-call");
    int64_t *step = pl_alloc((size_t)ranks * sizeof *step, "roll-call");
    text[0] = '\0';
    if (!send || !step)
        return;
    struct pl_request *receive = send + ranks;
    for (int r = 0; r < ranks; r++) {
        if (r == me)
            continue;
        x->table->post_receive(x->transport, r, ROLL_CALL_TAG, &step[r], sizeof step[r], &receive[r]);
        x->table->post_send(x->transport, r, ROLL_CALL_TAG, &mine, sizeof mine, &send[r]);
    }
    for (double end = pl_now_ms() + ROLL_CALL_MS; pl_now_ms() < end; pl_sleep_ms(1)) {
        bool done;
        for (int r = 0; r < ranks; r++) {
            if (receive[r].active)
                x->table->test(x->transport, &receive[r], &done);
            if (send[r].active)
                x->table->test(x->transport, &send[r], &done);
        }
    }
    for (int r = 0; r < ranks && at + 16 < bytes; r++)
        if (r != me && receive[r].active)
            at += (size_t)snprintf(text + at, bytes - at, "%s%d", at ? ", " : "", r);
    /* send and step stay: requests may still be in flight, and the process is about to end. */
}

static pl_status timed_out(struct pl_exchange *x, const struct flight *f)
{
    char missing[256];
    roll_call(x, missing, sizeof missing);
    return pl_error(PL_ERR_PEER, "exchange",
                    "waited %.0f s for the ranks in step %lld; missing: rank %s\n"
                    "see that rank's log; exchange.timeout sets how long is waited",
                    x->options.timeout_ms / 1000, (long long)f->what.step,
                    missing[0] ? missing : "none, all ranks answer (is the network slow?)");
}

/* Tests what is in flight, in order; *some says that anything ended. */
static pl_status poll_flights(struct pl_exchange *x, struct flight *flight, unsigned from, unsigned to,
                              bool *some)
{
    *some = false;
    for (unsigned i = from; i != to; i++) {
        struct flight *f = &flight[i % MAX_REQUESTS];
        bool done = false;
        if (!f->request.active)
            continue;
        PL_TRY(x->table->test(x->transport, &f->request, &done));
        if (done) {
            *some = true;
            x->total_ms += f->what.what == REQUEST_SUM_F32 ? pl_now_ms() - f->what.posted_ms : 0;
        } else if (pl_now_ms() - f->what.posted_ms > x->options.timeout_ms) {
            return timed_out(x, f);
        }
    }
    return PL_OK;
}

/* Takes new requests; true when told to stop. Waits for one only while nothing is in flight. */
static bool take(struct pl_exchange *x, struct flight *flight, unsigned *started, unsigned *to)
{
    pthread_mutex_lock(&x->lock);
    while (x->head == x->tail && x->done == x->tail)
        pthread_cond_wait(&x->to_thread, &x->lock);
    *started = x->head;
    for (; x->head != x->tail; x->head++) {
        flight[x->head % MAX_REQUESTS].what = x->ring[x->head % MAX_REQUESTS];
        flight[x->head % MAX_REQUESTS].request.active = false;
    }
    *to = x->head;
    pthread_mutex_unlock(&x->lock);
    return *started != *to && flight[(*to - 1) % MAX_REQUESTS].what.what == REQUEST_STOP;
}

static void publish(struct pl_exchange *x, struct flight *flight, unsigned to, pl_status failed)
{
    pthread_mutex_lock(&x->lock);
    while (x->done != to && !flight[x->done % MAX_REQUESTS].request.active)
        x->done++;
    x->failed = failed;
    pthread_cond_broadcast(&x->to_main);
    pthread_mutex_unlock(&x->lock);
}

static void *run(void *arg)
{
    struct pl_exchange *x = arg;
    struct flight *flight = x->flight;
    for (;;) {
        unsigned from, to;
        bool some = false;
        pl_status s = PL_OK;
        if (take(x, flight, &from, &to))
            return NULL;
        for (unsigned i = from; s == PL_OK && i != to; i++)
            s = start(x, &flight[i % MAX_REQUESTS]);
        if (s == PL_OK)
            s = poll_flights(x, flight, x->done, to, &some);
        if (s < 0 || some)
            publish(x, flight, to, s);
        if (s < 0)
            return NULL;
        if (!some && atomic_load(&x->main_waits))
            sched_yield();
        else if (!some)
            pl_sleep_ms(POLL_SLEEP_MS);
    }
}

pl_status pl_exchange_thread_start(struct pl_exchange *x)
{
    x->flight = pl_alloc(MAX_REQUESTS * sizeof *x->flight, "exchange requests");
    if (!x->flight)
        return PL_ERR_MEMORY;
    pthread_mutex_init(&x->lock, NULL);
    pthread_cond_init(&x->to_thread, NULL);
    pthread_cond_init(&x->to_main, NULL);
    return pl_thread_start(&x->thread, "exchange", run, x);
}

void pl_exchange_thread_stop(struct pl_exchange *x)
{
    struct request stop = {.what = REQUEST_STOP};
    if (x->failed == PL_OK && pl_exchange_drain(x) == PL_OK)
        pl_exchange_post(x, &stop);
    pthread_join(x->thread, NULL);
    pthread_mutex_destroy(&x->lock);
    pthread_cond_destroy(&x->to_thread);
    pthread_cond_destroy(&x->to_main);
    if (x->failed == PL_OK) /* otherwise requests in flight still point here */
        pl_free(x->flight);
}

pl_status pl_exchange_post(struct pl_exchange *x, const struct request *r)
{
    pthread_mutex_lock(&x->lock);
    while (x->failed == PL_OK && x->tail - x->done >= MAX_REQUESTS)
        pthread_cond_wait(&x->to_main, &x->lock);
    pl_status s = x->failed;
    if (s == PL_OK) {
        struct request *slot = &x->ring[x->tail % MAX_REQUESTS];
        *slot = *r;
        slot->posted_ms = pl_now_ms();
        x->tail++;
        pthread_cond_signal(&x->to_thread);
    }
    pthread_mutex_unlock(&x->lock);
    return s;
}

pl_status pl_exchange_drain(struct pl_exchange *x)
{
    atomic_store(&x->main_waits, true);
    pthread_mutex_lock(&x->lock);
    while (x->failed == PL_OK && x->done != x->tail)
        pthread_cond_wait(&x->to_main, &x->lock);
    pl_status s = x->failed;
    pthread_mutex_unlock(&x->lock);
    atomic_store(&x->main_waits, false);
    return s;
}
