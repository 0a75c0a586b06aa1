/* transport tcp: sockets of our own. One thread moves all data of an open group, woken by the sockets or by others.
 * A lost peer is the trouble of those requests that wait for it, and of no others. */
#include "transport/tcp/tcp.h"

#include <errno.h>
#include <linux/sockios.h>
#include <math.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define EVENTS_AT_ONCE 64
#define CLOSING_MS 1000.0 /* a peer that closed, and of which nothing more comes, for so long */
#define LINGER_MS 1000.0  /* close waits so long for what was sent to arrive */

/* ---- close ------------------------------------------------------------------------------------------- */

/* Nothing of ours is under way to the peer any more. What it still sends is thrown away: closing over unread data
 * would reset the connection and with it what it has not yet got from us. */
static bool drained(struct pl_transport *t, struct pl_tcp_conn *c)
{
    char away[16384];
    int under_way = 0;
    if (c->fd < 0)
        return true;
    c->writable = true;
    pl_tcp_write(t, c);
    while (c->fd >= 0) {
        ssize_t n = recv(c->fd, away, sizeof away, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
            return true; /* it has closed as well */
        if (n < 0)
            break;
    }
    return c->fd < 0 || (!c->out.first && (ioctl(c->fd, SIOCOUTQ, &under_way) != 0 || under_way == 0));
}

static void tcp_close(struct pl_transport *t, bool lost)
{
    (void)lost;
    if (!t)
        return;
    for (double end = pl_now_ms() + LINGER_MS; pl_now_ms() < end; pl_sleep_ms(0.2)) {
        bool all = true;
        for (int i = 0; i < t->members * (t->channels + 1); i++)
            all = drained(t, &t->conns[i]) && all;
        if (all)
            break;
    }
    pl_tcp_destroy(t);
}

/* ---- messages ------------------------------------------------------------------------------------------ */

static pl_status tcp_register(struct pl_transport *t, void *p, size_t bytes, struct pl_memory **out)
{
    (void)t, (void)p, (void)bytes;
    *out = NULL; /* sockets know no registered memory */
    return PL_OK;
}

static void tcp_unregister(struct pl_transport *t, struct pl_memory *m) { (void)t, (void)m; }

static pl_status begin(struct pl_transport *t, int peer, struct pl_label l, const void *p, size_t bytes, struct pl_request *r)
{
    struct pl_tcp_request *q = (struct pl_tcp_request *)r->bytes;
    r->active = false;
    if (peer < 0 || peer >= t->members || peer == t->me || bytes > (pl_tcp_is_control(l) ? PL_CONTROL_BYTES : PL_MESSAGE_BYTES))
        return pl_error(PL_ERR_USAGE, PL_TCP_ROOM, "a message of %zu bytes for member %d cannot be", bytes, peer);
    if (pl_tcp_forgotten(&t->peer[peer], l))
        return pl_error(PL_ERR_USAGE, PL_TCP_ROOM, "a message of step %llu for member %d, of which the steps below %llu are forgotten",
                        (unsigned long long)l.step, peer, (unsigned long long)t->peer[peer].forgotten[pl_step_kind(l.step)]);
    q->next = NULL;
    q->memory = (unsigned char *)(uintptr_t)p; /* of a send it is only read */
    q->bytes = (uint32_t)bytes;
    q->moved = 0;
    q->peer = peer;
    q->state = PL_TCP_POSTED;
    q->label = l;
    return PL_OK;
}

static pl_status lost(const struct pl_tcp_peer *p) { return pl_error(PL_ERR_PEER, PL_TCP_ROOM, "%s", p->why); }

/* The one with the least to send; among equals in turn. */
static struct pl_tcp_conn *channel_for(const struct pl_transport *t, struct pl_tcp_peer *p)
{
    struct pl_tcp_conn *best = NULL;
    for (int i = 0; i < t->channels; i++) {
        struct pl_tcp_conn *c = &p->conn[1 + (p->next_channel + (unsigned)i) % (unsigned)t->channels];
        if (!best || c->out_bytes < best->out_bytes)
            best = c;
    }
    p->next_channel = (unsigned)(best - p->conn) % (unsigned)t->channels;
    return best;
}

/* tcp.corrupt: the network damages a payload. */
static void spoil(struct pl_transport *t, struct pl_tcp_request *q)
{
    if (q->bytes == 0 || t->spoiled || !(t->spoiled = pl_alloc(q->bytes, "tcp.corrupt")))
        return;
    memcpy(t->spoiled, q->memory, q->bytes);
    t->spoiled[q->bytes / 2] ^= 4;
    q->memory = t->spoiled;
}

static pl_status tcp_send(struct pl_transport *t, int peer, struct pl_label l, const void *p, size_t bytes, struct pl_request *r)
{
    struct pl_tcp_request *q = (struct pl_tcp_request *)r->bytes;
    PL_TRY(begin(t, peer, l, p, bytes, r));
    struct pl_tcp_peer *to = &t->peer[peer];
    if (to->lost || to->closing)
        return lost(to);
    const struct pl_tcp_frame f = {l, q->bytes, bytes > 0 ? pl_crc32(0, p, bytes) : 0};
    pl_tcp_frame_encode(&f, q->header);
    if (pl_fault("tcp.corrupt", (int64_t)l.step))
        spoil(t, q);
    struct pl_tcp_conn *c = pl_tcp_is_control(l) ? &to->conn[0] : channel_for(t, to);
    bool idle = !c->out.first;
    c->out_bytes += PL_TCP_HEADER_BYTES + bytes;
    pl_tcp_append(&c->out, q);
    r->active = true;
    if (idle)
        pl_tcp_write(t, c);
    return PL_OK;
}

static pl_status tcp_receive(struct pl_transport *t, int peer, struct pl_label l, void *p, size_t bytes, struct pl_request *r)
{
    struct pl_tcp_request *q = (struct pl_tcp_request *)r->bytes;
    PL_TRY(begin(t, peer, l, p, bytes, r));
    struct pl_tcp_peer *from = &t->peer[peer];
    struct pl_tcp_note *n = pl_tcp_is_control(l) ? pl_tcp_find_note(from, l) : NULL;
    if (!n && from->lost)
        return lost(from);
    r->active = true;
    if (n)
        pl_tcp_deliver_note(t, q, n);
    else
        pl_tcp_append(&from->receives, q);
    if (from->closing)
        from->moved_ms = pl_now_ms();
    for (int i = 0; i < from->conns; i++) {
        struct pl_tcp_conn *c = &from->conn[i];
        if (c->parked && (c->control ? from->notes < PL_TCP_NOTES : pl_label_same(c->reader.frame.label, l))) {
            c->parked = false;
            pl_tcp_enlist(t, c);
        }
    }
    return PL_OK;
}

static pl_status tcp_test(struct pl_transport *t, struct pl_request *r, bool *done)
{
    const struct pl_tcp_request *q = (const struct pl_tcp_request *)r->bytes;
    *done = q->state == PL_TCP_DONE;
    if (q->state == PL_TCP_POSTED)
        return PL_OK;
    r->active = false;
    return *done ? PL_OK : lost(&t->peer[q->peer]);
}

static bool tcp_lost(struct pl_transport *t, int peer, char *why, size_t bytes)
{
    const struct pl_tcp_peer *p = &t->peer[peer];
    bool over = p->lost || (p->closing && pl_now_ms() - p->closed_ms > CLOSING_MS);
    snprintf(why, bytes, "%s", over ? p->why : "");
    return over;
}

/* ---- progress ------------------------------------------------------------------------------------------- */

static int wait_for_events(int epoll, struct epoll_event *events, double wait_ms)
{
#ifdef SYS_epoll_pwait2
    static _Atomic bool missing;
    if (wait_ms > 0 && !atomic_load_explicit(&missing, memory_order_relaxed)) {
        struct timespec ts = {(time_t)(wait_ms / 1000), (long)(fmod(wait_ms, 1000) * 1e6)};
        long n = syscall(SYS_epoll_pwait2, epoll, events, EVENTS_AT_ONCE, &ts, NULL, (size_t)0);
        if (n >= 0 || errno == EINTR)
            return (int)n;
        atomic_store_explicit(&missing, true, memory_order_relaxed); /* kernels before 5.11 */
    }
#endif
    return epoll_wait(epoll, events, EVENTS_AT_ONCE, wait_ms > 0 ? (int)ceil(wait_ms < 1e9 ? wait_ms : 1e9) : 0);
}

static void take_events(struct pl_transport *t, const struct epoll_event *events, int n)
{
    for (int i = 0; i < n; i++) {
        struct pl_tcp_conn *c = events[i].data.ptr;
        if (!c) {
            t->woken = true;
            continue;
        }
        const uint32_t e = events[i].events;
        if (e & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
            c->hung_up = c->readable = true;
        if (e & EPOLLIN)
            c->readable = true;
        if (e & (EPOLLOUT | EPOLLHUP | EPOLLERR))
            c->writable = true;
        if ((c->readable && !c->parked) || (c->hung_up && c->parked) || c->out.first)
            pl_tcp_enlist(t, c);
    }
}

static bool waited_for(const struct pl_tcp_peer *p)
{
    bool some = p->receives.first;
    for (int i = 0; i < p->conns; i++)
        some = some || p->conn[i].in || p->conn[i].out.first;
    return some;
}

/* Of peers that closed, and have sent all that they will. */
static void give_up_closed(struct pl_transport *t)
{
    double now = pl_now_ms();
    for (int m = 0; m < t->members; m++) {
        struct pl_tcp_peer *p = &t->peer[m];
        if (p->closing && !p->lost && now - p->moved_ms > CLOSING_MS && waited_for(p))
            pl_tcp_lose(t, p, "%s", p->why);
    }
}

static pl_status tcp_progress(struct pl_transport *t, double wait_ms)
{
    struct epoll_event events[EVENTS_AT_ONCE];
    bool sleeps = wait_ms > 0 && !t->woken && !t->first_listed;
    if (sleeps && t->closing > 0 && wait_ms > CLOSING_MS / 4)
        wait_ms = CLOSING_MS / 4;
    if (sleeps && wait_ms > pl_tcp_look_period(t))
        wait_ms = pl_tcp_look_period(t);
    take_events(t, events, wait_for_events(t->epoll, events, sleeps ? wait_ms : 0));
    if (wait_ms > 0)
        t->woken = false; /* it has woken this call */
    struct pl_tcp_conn *c = t->first_listed;
    t->first_listed = t->last_listed = NULL;
    for (struct pl_tcp_conn *next; c; c = next) {
        next = c->next_listed;
        c->listed = false;
        if (c->fd >= 0 && pl_tcp_serve(t, c))
            pl_tcp_enlist(t, c);
    }
    if (t->closing > 0)
        give_up_closed(t);
    pl_tcp_look_for_silence(t);
    return PL_OK;
}

static void tcp_wake(struct pl_transport *t)
{
    const uint64_t one = 1;
    if (write(t->wake, &one, sizeof one) < 0)
        return; /* it is full of wakes already */
}

static pl_status no_allreduce(struct pl_transport *t, enum pl_reduce op, const void *in, void *out, int64_t n, struct pl_request *r)
{
    (void)t, (void)op, (void)in, (void)out, (void)n, (void)r;
    return pl_error(PL_ERR_USAGE, PL_TCP_ROOM, "no all-reduce of its own");
}

const struct pl_transport_table pl_transport_tcp = {
    .name = "tcp",
    .probe = pl_tcp_probe,
    .open = pl_tcp_open,
    .close = tcp_close,
    .register_memory = tcp_register,
    .unregister_memory = tcp_unregister,
    .post_send = tcp_send,
    .post_receive = tcp_receive,
    .test = tcp_test,
    .forget = pl_tcp_forget,
    .lost = tcp_lost,
    .progress = tcp_progress,
    .wake = tcp_wake,
    .post_allreduce = no_allreduce,
};
