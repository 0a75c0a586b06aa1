/* Internal to exchange/: the requests between the main thread and the exchange thread. */
#ifndef PL_EXCHANGE_INTERNAL_H
#define PL_EXCHANGE_INTERNAL_H

#include "exchange/exchange.h"

enum request_kind { REQUEST_SUM_F32, REQUEST_SUM_F64, REQUEST_MAX_F64, REQUEST_STOP };
struct request {
    enum request_kind what;
    const void *in;
    void *out;
    int64_t n, step;
    double posted_ms;
};

/* A bucket can hold few elements, but a slab has at most so many in flight; posting waits beyond. */
#define MAX_REQUESTS 256

struct flight;

struct pl_exchange {
    struct pl_world *world;
    struct pl_exchange_options options;
    const struct pl_transport_table *table; /* NULL with one rank */
    struct pl_transport *transport;
    char why[256];

    /* main thread */
    const float *mine;
    float *sum;
    int64_t bucket_end, ready_from, step;
    double first_post_ms;

    /* `lock` guards the ring and the counts; nothing else is locked while it is held. */
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t to_thread, to_main;
    struct request ring[MAX_REQUESTS];
    unsigned head, tail;   /* ring[head % MAX] is next to be started; tail is where the next goes */
    unsigned done;         /* requests finished; all of them when done == tail */
    double total_ms;
    struct flight *flight;  /* the thread's own: [MAX_REQUESTS] */
    pl_status failed;
    _Atomic bool main_waits; /* the core is ours: poll without sleeping */
};

pl_status pl_exchange_thread_start(struct pl_exchange *x);
void pl_exchange_thread_stop(struct pl_exchange *x);
pl_status pl_exchange_post(struct pl_exchange *x, const struct request *r);
pl_status pl_exchange_drain(struct pl_exchange *x); /* until every posted request is done */

#endif
