/* transport verbs: RDMA over InfiniBand or RoCE. Each pair of members has some reliable queue pairs for data and one
 * for control messages. Memory that is registered is sent from where it lies; what arrives is copied once, out of a
 * registered ring. A bucket's pieces are spread over the channels by their label, the same on both sides. */
#include "transport/verbs/verbs.h"

#include <errno.h>
#include <poll.h>
#include <unistd.h>

enum { LINGER_MS = 1000,  /* close: for the word that we close to get through */
       PEER_LINGER_MS = 50, /* the same, where the peer closes too */
       DOUBTFUL_NAP_MS = 250 };

static bool verbs_probe(const struct pl_world *w, const struct pl_transport_options *o, bool named, char *reason, size_t bytes)
{
    struct pl_verbs_port ports[PL_VERBS_RAILS];
    if (pl_verbs_find_ports(o->interface, w->nodes == 1, ports, reason, bytes) == 0)
        return false;
    if (!named && w->nodes == 1) {
        snprintf(reason, bytes, "all ranks are on one node, which needs no network");
        return false;
    }
    return true;
}

static pl_status verbs_open(const struct pl_group *g, const struct pl_transport_options *o, struct pl_transport **out, char *describe, size_t bytes)
{
    struct pl_transport *t = pl_alloc(sizeof *t, "transport verbs");
    if (!t)
        return PL_ERR_MEMORY;
    t->wake_fd = -1;
    pl_status s = pl_verbs_connect(g, o, t, describe, bytes);
    if (s < 0) {
        pl_verbs_destroy(t);
        return s;
    }
    for (int m = 0; m < t->members; m++)
        t->peer[m].heard_ms = pl_now_ms();
    *out = t;
    return PL_OK;
}

/* ---- memory ------------------------------------------------------------------------------------- */

static void release(struct pl_memory *m)
{
    for (int r = 0; r < PL_VERBS_RAILS; r++)
        if (m->mr[r])
            pl_verbs.dereg_mr(m->mr[r]);
    pl_free(m);
}

static pl_status register_on(const struct pl_verbs_device *d, struct pl_memory *m)
{
    PL_VERBS_MAKE(d->port.device, m->mr[d->index], pl_verbs.reg_mr(d->pd, m->p, m->bytes, IBV_ACCESS_LOCAL_WRITE));
    return PL_OK;
}

static pl_status verbs_register(struct pl_transport *t, void *p, size_t bytes, struct pl_memory **out)
{
    *out = NULL;
    if (bytes == 0)
        return PL_OK;
    PL_TRY(pl_verbs_may_pin(bytes * (size_t)t->rails));
    struct pl_memory *m = pl_alloc(sizeof *m, "registered memory");
    if (!m)
        return PL_ERR_MEMORY;
    m->p = p;
    m->bytes = bytes;
    for (int r = 0; r < t->rails; r++)
        if (register_on(&t->device[r], m) < 0) {
            release(m);
            return PL_ERR_PEER;
        }
    m->next = t->memory;
    t->memory = m;
    *out = m;
    return PL_OK;
}

static void drop_memory(struct pl_transport *t, struct pl_memory *m)
{
    for (struct pl_memory **at = &t->memory; m && *at; at = &(*at)->next)
        if (*at == m) {
            *at = m->next;
            release(m);
            return;
        }
}

static const struct pl_memory *memory_of(const struct pl_transport *t, const unsigned char *p, size_t bytes)
{
    for (const struct pl_memory *m = t->memory; m; m = m->next)
        if (p >= m->p && bytes <= m->bytes && (size_t)(p - m->p) <= m->bytes - bytes)
            return m;
    return NULL;
}

/* ---- requests ----------------------------------------------------------------------------------- */

static pl_status peer_error(const struct pl_verbs_peer *p) { return pl_error(PL_ERR_PEER, "transport verbs", "%s", p->why); }

/* Common to sends and receives; a request with a peer that is lost fails here. */
static pl_status start(struct pl_transport *t, int peer, struct pl_label l, void *p, size_t bytes, struct pl_request *request)
{
    struct pl_verbs_request *r = (void *)request->bytes;
    bool control = l.bucket == PL_CONTROL_BUCKET;
    if (peer < 0 || peer >= t->members || peer == t->me)
        return pl_error(PL_ERR_USAGE, "transport verbs", "no member %d to talk to", peer);
    if (bytes > (control ? (size_t)PL_CONTROL_BYTES : (size_t)PL_MESSAGE_BYTES))
        return pl_error(PL_ERR_USAGE, "transport verbs", "a message of %zu bytes is too long", bytes);
    if (pl_verbs_forgotten(&t->peer[peer], l))
        return pl_error(PL_ERR_USAGE, "transport verbs", "a message of step %llu for member %d, of which the steps below %llu are forgotten",
                        (unsigned long long)l.step, peer, (unsigned long long)t->peer[peer].forgotten[pl_step_kind(l.step)]);
    if (t->peer[peer].lost)
        return peer_error(&t->peer[peer]);
    int channel = control ? t->channels : (int)((l.bucket + l.piece) % (uint32_t)t->channels);
    *r = (struct pl_verbs_request){.queue = &t->peer[peer].queue[channel], .label = l, .p = p, .bytes = (uint32_t)bytes};
    request->active = true;
    return PL_OK;
}

static pl_status verbs_send(struct pl_transport *t, int peer, struct pl_label l, const void *p, size_t bytes, struct pl_request *request)
{
    struct pl_verbs_request *r = (void *)request->bytes;
    PL_TRY(start(t, peer, l, (void *)(uintptr_t)p, bytes, request));
    r->memory = memory_of(t, p, bytes);
    pl_verbs_offer(t, r);
    if (t->peer[peer].closed)
        pl_verbs_settle(t, &t->peer[peer]);
    return PL_OK;
}

static pl_status verbs_receive(struct pl_transport *t, int peer, struct pl_label l, void *p, size_t bytes, struct pl_request *request)
{
    PL_TRY(start(t, peer, l, p, bytes, request));
    pl_verbs_await(t, (void *)request->bytes);
    if (t->peer[peer].closed)
        pl_verbs_settle(t, &t->peer[peer]);
    return PL_OK;
}

static pl_status verbs_test(struct pl_transport *t, struct pl_request *request, bool *done)
{
    const struct pl_verbs_request *r = (const void *)request->bytes;
    (void)t;
    *done = r->done;
    if (!r->done)
        return PL_OK;
    request->active = false;
    return r->status < 0 ? peer_error(r->queue->peer) : PL_OK;
}

static bool verbs_lost(struct pl_transport *t, int peer, char *why, size_t bytes)
{
    const struct pl_verbs_peer *p = &t->peer[peer];
    bool over = p->lost || p->closed; /* what came before it closed is here already */
    snprintf(why, bytes, "%s", over ? p->why : "");
    return over;
}

/* ---- progress ----------------------------------------------------------------------------------- */

static double ask_every_ms(const struct pl_transport *t) { return t->timeout_ms / 4; }

/* Whoever we have not heard of for a while is asked for a sign of life: only what is sent finds out that a peer
 * is gone. Its device answers, so a peer that is merely slow is not lost. */
static void ask_the_silent(struct pl_transport *t)
{
    double now_ms = pl_now_ms(), every_ms = ask_every_ms(t);
    if (now_ms - t->asked_ms < every_ms / 2)
        return;
    t->asked_ms = now_ms;
    for (int m = 0; m < t->members; m++) {
        struct pl_verbs_peer *p = &t->peer[m];
        if (m != t->me && !p->asked && !p->lost && !p->closed && now_ms - p->heard_ms > every_ms)
            p->asked = pl_verbs_signal(t, &p->queue[t->channels], PL_VERBS_ASK);
    }
}

/* Every completion from now on makes its device's channel readable. */
static pl_status arm(struct pl_transport *t)
{
    for (int r = 0; r < t->rails; r++) {
        struct pl_verbs_device *d = &t->device[r];
        if (!d->armed)
            PL_VERBS_CHECK(d->port.device, ibv_req_notify_cq(d->cq, 0));
        d->armed = true;
    }
    return PL_OK;
}

static void take_events(struct pl_verbs_device *d)
{
    struct ibv_cq *cq;
    void *context;
    while (pl_verbs.get_cq_event(d->events, &cq, &context) == 0) {
        pl_verbs.ack_cq_events(cq, 1);
        d->armed = false;
    }
}

static void sleep_until_news(struct pl_transport *t, double wait_ms)
{
    struct pollfd fd[PL_VERBS_RAILS + 1];
    uint64_t count;
    double ask_ms = ask_every_ms(t) / 2;
    if (wait_ms > ask_ms)
        wait_ms = ask_ms;
    if (t->doubts && wait_ms > DOUBTFUL_NAP_MS)
        wait_ms = DOUBTFUL_NAP_MS;
    struct timespec limit = {.tv_sec = (time_t)(wait_ms / 1e3)};
    limit.tv_nsec = (long)((wait_ms - 1e3 * (double)limit.tv_sec) * 1e6);
    for (int r = 0; r < t->rails; r++)
        fd[r] = (struct pollfd){t->device[r].events->fd, POLLIN, 0};
    fd[t->rails] = (struct pollfd){t->wake_fd, POLLIN, 0};
    if (ppoll(fd, (nfds_t)t->rails + 1, &limit, NULL) <= 0)
        return;
    for (int r = 0; r < t->rails; r++)
        if (fd[r].revents)
            take_events(&t->device[r]);
    if (fd[t->rails].revents && read(t->wake_fd, &count, sizeof count) < 0)
        return; /* another wake is fine too */
}

static pl_status verbs_progress(struct pl_transport *t, double wait_ms)
{
    bool moved = pl_verbs_poll(t) || t->news;
    if (!moved && wait_ms > 0) {
        PL_TRY(arm(t));
        if (!pl_verbs_poll(t)) { /* what came before it was armed makes no event */
            sleep_until_news(t, wait_ms);
            pl_verbs_poll(t);
        }
    }
    t->news = false;
    pl_verbs_end_doubts(t);
    ask_the_silent(t);
    return PL_OK;
}

static void verbs_wake(struct pl_transport *t)
{
    uint64_t one = 1;
    if (write(t->wake_fd, &one, sizeof one) < 0)
        return; /* it is full of wakes */
}

static pl_status verbs_allreduce(struct pl_transport *t, enum pl_reduce op, const void *in, void *out, int64_t n, struct pl_request *r)
{
    (void)t, (void)op, (void)in, (void)out, (void)n, (void)r;
    return pl_error(PL_ERR_USAGE, "transport verbs", "no all-reduce of its own");
}

/* What was forgotten may still be with the device. */
static bool lent_out(const struct pl_transport *t, const struct pl_memory *m)
{
    for (int i = 0; i < t->members * t->queues; i++)
        for (int k = 0; k < PL_VERBS_SLOTS; k++)
            if (t->queue[i].flight[k].lent == m && !t->queue[i].peer->lost)
                return true;
    return false;
}

static void verbs_unregister(struct pl_transport *t, struct pl_memory *m)
{
    for (double end = pl_now_ms() + LINGER_MS; m && lent_out(t, m) && pl_now_ms() < end;)
        if (verbs_progress(t, 1) < 0)
            break;
    drop_memory(t, m);
}

/* ---- close -------------------------------------------------------------------------------------- */

static bool gone(const struct pl_verbs_peer *p) { return p->lost || p->closed; }

/* All that was posted to the peer has arrived there. */
static bool sent_all(const struct pl_transport *t, const struct pl_verbs_peer *p)
{
    for (int c = 0; c < t->queues; c++)
        if (p->queue[c].sends.head || p->queue[c].sent != p->queue[c].completed)
            return false;
    return true;
}

/* Waits for `ended` of every peer, at most so long. */
static void wait_for(struct pl_transport *t, bool (*ended)(const struct pl_transport *, const struct pl_verbs_peer *), double most_ms)
{
    for (double end = pl_now_ms() + most_ms; pl_now_ms() < end;) {
        bool all = true;
        for (int m = 0; m < t->members; m++)
            all &= m == t->me || t->peer[m].lost || ended(t, &t->peer[m]);
        if (all)
            return;
        t->news = false;
        if (verbs_progress(t, 1) < 0)
            return;
    }
}

static bool sent_or_gone(const struct pl_transport *t, const struct pl_verbs_peer *p) { return gone(p) || sent_all(t, p); }

/* Everything that was posted on the control queue is acknowledged, the word that we close the last. */
static bool told(const struct pl_transport *t, const struct pl_verbs_peer *p)
{
    const struct pl_verbs_queue *q = &p->queue[t->channels];
    return q->room == pl_verbs_send_depth(q->slots);
}

static bool told_or_gone(const struct pl_transport *t, const struct pl_verbs_peer *p) { return gone(p) || told(t, p); }

static void verbs_close(struct pl_transport *t, bool lost)
{
    if (!t)
        return;
    (void)lost; /* waits for no lost peer anyway */
    wait_for(t, sent_or_gone, t->timeout_ms);
    for (int m = 0; m < t->members; m++)
        if (m != t->me && !t->peer[m].lost)
            pl_verbs_signal(t, &t->peer[m].queue[t->channels], PL_VERBS_CLOSE);
    wait_for(t, told_or_gone, LINGER_MS);
    wait_for(t, told, PEER_LINGER_MS);
    while (t->memory)
        drop_memory(t, t->memory);
    pl_verbs_destroy(t);
}

const struct pl_transport_table pl_transport_verbs = {
    .name = "verbs",
    .probe = verbs_probe,
    .open = verbs_open,
    .close = verbs_close,
    .register_memory = verbs_register,
    .unregister_memory = verbs_unregister,
    .post_send = verbs_send,
    .post_receive = verbs_receive,
    .test = verbs_test,
    .forget = pl_verbs_forget,
    .lost = verbs_lost,
    .progress = verbs_progress,
    .wake = verbs_wake,
    .post_allreduce = verbs_allreduce,
};
