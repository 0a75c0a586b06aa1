/* One connection's sending and receiving. Sockets are watched edge-triggered and their readiness is remembered, so
 * that a pass asks the kernel for news once and touches only what can move. Payloads go between the socket and the
 * poster's memory without a copy; control messages, small, by way of a note. */
#include "transport/tcp/tcp.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MESSAGES_AT_ONCE = 16, /* of one sendmsg */
       READS_AT_ONCE = 8 };   /* of one connection, before others have their turn */

void pl_tcp_append(struct pl_tcp_list *l, struct pl_tcp_request *q)
{
    q->next = NULL;
    if (l->first)
        l->last->next = q;
    else
        l->first = q;
    l->last = q;
}

static struct pl_tcp_request *pop(struct pl_tcp_list *l)
{
    struct pl_tcp_request *q = l->first;
    l->first = q->next;
    return q;
}

static struct pl_tcp_request *take_labelled(struct pl_tcp_list *l, struct pl_label label)
{
    struct pl_tcp_request *before = NULL, *q = l->first;
    for (; q && !pl_label_same(q->label, label); q = q->next)
        before = q;
    if (!q)
        return NULL;
    if (before)
        before->next = q->next;
    else
        l->first = q->next;
    if (l->last == q)
        l->last = before;
    return q;
}

void pl_tcp_enlist(struct pl_transport *t, struct pl_tcp_conn *c)
{
    if (c->listed)
        return;
    c->listed = true;
    c->next_listed = NULL;
    if (t->first_listed)
        t->last_listed->next_listed = c;
    else
        t->first_listed = c;
    t->last_listed = c;
}

/* ---- the end of a connection, and of a peer -------------------------------------------------------- */

static void end_request(struct pl_tcp_request *q, int state)
{
    if (q->state == PL_TCP_REST)
        pl_free(q);
    else
        q->state = state;
}

static void fail_list(struct pl_tcp_list *l)
{
    for (struct pl_tcp_request *q = l->first, *next; q; q = next) {
        next = q->next;
        end_request(q, PL_TCP_LOST);
    }
    l->first = l->last = NULL;
}

static void end_connection(struct pl_transport *t, struct pl_tcp_conn *c)
{
    if (c->fd < 0)
        return;
    close(c->fd); /* and out of the epoll with it */
    c->fd = -1;
    c->peer->over++;
    c->parked = false;
    fail_list(&c->out);
    if (c->in)
        c->in->state = PL_TCP_LOST;
    c->in = NULL;
    if (c->note)
        pl_tcp_free_note(t, c->note);
    c->note = NULL;
}

void pl_tcp_lose(struct pl_transport *t, struct pl_tcp_peer *p, const char *fmt, ...)
{
    if (p->lost)
        return;
    if (p->closing)
        t->closing--;
    if (!p->why[0]) { /* the first reason is the cause */
        va_list args;
        va_start(args, fmt);
        vsnprintf(p->why, sizeof p->why, fmt, args);
        va_end(args);
    }
    p->lost = true;
    for (int i = 0; i < p->conns; i++)
        end_connection(t, &p->conn[i]);
    fail_list(&p->receives);
}

void pl_tcp_lose_silent(struct pl_transport *t, struct pl_tcp_peer *p)
{
    pl_tcp_lose(t, p, "lost rank %d (%s): no answer for %.3g s (the link is down?)", p->rank, p->where, t->timeout_ms / 1000);
}

/* One of its connections has ended in order, or is of no use any more. What the others still hold is received. */
static void begin_closing(struct pl_transport *t, struct pl_tcp_peer *p, const char *why)
{
    if (p->closing || p->lost)
        return;
    snprintf(p->why, sizeof p->why, "lost rank %d (%s): %s", p->rank, p->where, why);
    p->closing = true;
    p->closed_ms = p->moved_ms = pl_now_ms();
    t->closing++;
}

/* The kernel says why. True: the stream may still hold messages, or has ended between two of them. */
static bool broken(struct pl_transport *t, struct pl_tcp_conn *c, int code, bool reading)
{
    struct pl_tcp_peer *p = c->peer;
    bool gone = code == EPIPE || code == ECONNRESET;
    if (gone && (!reading || pl_tcp_reader_between(&c->reader)))
        begin_closing(t, p, code == EPIPE ? "connection closed by peer" : "connection reset by peer");
    else if (code == ETIMEDOUT)
        pl_tcp_lose_silent(t, p);
    else
        pl_tcp_lose(t, p, "lost rank %d (%s): %s", p->rank, p->where, code == ECONNRESET ? "connection reset by peer" : strerror(code));
    return !p->lost;
}

/* A connection that is not read at present has ended: what it holds can still be received. */
static void ended_unread(struct pl_transport *t, struct pl_tcp_conn *c)
{
    int code = 0;
    socklen_t bytes = sizeof code;
    if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &code, &bytes) != 0 || code == 0)
        code = EPIPE;
    broken(t, c, code, false);
}

/* ---- sending ------------------------------------------------------------------------------------------ */

static int gather(const struct pl_tcp_conn *c, struct iovec v[2 * MESSAGES_AT_ONCE])
{
    int n = 0, messages = 0;
    for (struct pl_tcp_request *q = c->out.first; q && messages < MESSAGES_AT_ONCE; q = q->next, messages++) {
        uint32_t head = q->moved < PL_TCP_HEADER_BYTES ? q->moved : PL_TCP_HEADER_BYTES, at = q->moved - head;
        if (head < PL_TCP_HEADER_BYTES)
            v[n++] = (struct iovec){q->header + head, PL_TCP_HEADER_BYTES - head};
        if (at < q->bytes)
            v[n++] = (struct iovec){q->memory + at, q->bytes - at};
    }
    return n;
}

static void sent(struct pl_tcp_conn *c, size_t bytes)
{
    c->out_bytes -= bytes;
    while (bytes > 0) {
        struct pl_tcp_request *q = c->out.first;
        size_t rest = PL_TCP_HEADER_BYTES + q->bytes - q->moved;
        if (bytes < rest) {
            q->moved += (uint32_t)bytes;
            return;
        }
        bytes -= rest;
        pop(&c->out);
        end_request(q, PL_TCP_DONE);
    }
}

void pl_tcp_write(struct pl_transport *t, struct pl_tcp_conn *c)
{
    struct iovec v[2 * MESSAGES_AT_ONCE];
    while (c->writable && c->fd >= 0 && c->out.first) {
        struct msghdr m = {.msg_iov = v, .msg_iovlen = (size_t)gather(c, v)};
        ssize_t n = sendmsg(c->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n >= 0) {
            sent(c, (size_t)n);
        } else if (errno == EAGAIN) {
            c->writable = false;
        } else if (errno != EINTR) {
            c->writable = false;
            c->readable = c->hung_up = true; /* what came before the end is still to be read */
            broken(t, c, errno, false);
            fail_list(&c->out);
            c->out_bytes = 0;
            pl_tcp_enlist(t, c);
        }
    }
}

/* ---- control messages ------------------------------------------------------------------------------- */

static struct pl_tcp_note *new_note(struct pl_transport *t)
{
    struct pl_tcp_note *n = t->free_notes;
    if (n)
        t->free_notes = n->next;
    else
        n = pl_alloc(sizeof *n, "a control message");
    return n;
}

void pl_tcp_free_note(struct pl_transport *t, struct pl_tcp_note *n)
{
    n->next = t->free_notes;
    t->free_notes = n;
}

struct pl_tcp_note *pl_tcp_find_note(struct pl_tcp_peer *p, struct pl_label l)
{
    struct pl_tcp_note *before = NULL, *n = p->first_note;
    for (; n && !pl_label_same(n->label, l); n = n->next)
        before = n;
    if (!n)
        return NULL;
    if (before)
        before->next = n->next;
    else
        p->first_note = n->next;
    if (p->last_note == n)
        p->last_note = before;
    p->notes--;
    return n;
}

static void wrong_size(struct pl_transport *t, struct pl_tcp_peer *p, const struct pl_tcp_request *q, uint32_t came)
{
    pl_tcp_lose(t, p, "rank %d (%s) sent %u bytes where %u are expected: step %llu, bucket %u, piece %u", p->rank, p->where, came,
                q->bytes, (unsigned long long)q->label.step, q->label.bucket, q->label.piece);
}

void pl_tcp_deliver_note(struct pl_transport *t, struct pl_tcp_request *q, struct pl_tcp_note *n)
{
    if (n->bytes != q->bytes) {
        q->state = PL_TCP_LOST;
        wrong_size(t, &t->peer[q->peer], q, n->bytes);
    } else {
        if (n->bytes > 0)
            memcpy(q->memory, n->data, n->bytes);
        q->state = PL_TCP_DONE;
    }
    pl_tcp_free_note(t, n);
}

static void keep_note(struct pl_transport *t, struct pl_tcp_conn *c)
{
    struct pl_tcp_peer *p = c->peer;
    struct pl_tcp_note *n = c->note;
    struct pl_tcp_request *q = take_labelled(&p->receives, n->label);
    c->note = NULL;
    if (q) {
        pl_tcp_deliver_note(t, q, n);
        return;
    }
    n->next = NULL;
    if (p->first_note)
        p->last_note->next = n;
    else
        p->first_note = n;
    p->last_note = n;
    p->notes++;
}

/* ---- receiving ---------------------------------------------------------------------------------------- */

/* A whole header is in: finds the place for what follows. False: it has to wait, or the peer is lost. */
static bool place(struct pl_transport *t, struct pl_tcp_conn *c)
{
    const struct pl_tcp_frame *f = &c->reader.frame;
    if (c->control) {
        if (c->peer->notes == PL_TCP_NOTES)
            return false;
        c->note = new_note(t);
        if (!c->note) {
            pl_tcp_lose(t, c->peer, "no memory for a control message of rank %d", c->peer->rank);
        } else {
            c->note->label = f->label;
            c->note->bytes = f->bytes;
            pl_tcp_reader_into(&c->reader, c->note->data);
        }
        return c->note;
    }
    if (pl_tcp_forgotten(c->peer, f->label)) {
        pl_tcp_reader_into(&c->reader, NULL);
        return true;
    }
    struct pl_tcp_request *q = take_labelled(&c->peer->receives, f->label);
    if (q && q->bytes != f->bytes) {
        q->state = PL_TCP_LOST;
        wrong_size(t, c->peer, q, f->bytes);
        return false;
    }
    c->in = q;
    if (q)
        pl_tcp_reader_into(&c->reader, q->memory);
    return q;
}

static void whole(struct pl_transport *t, struct pl_tcp_conn *c)
{
    if (c->peer->closing)
        c->peer->moved_ms = pl_now_ms();
    if (c->control) {
        keep_note(t, c);
    } else if (c->in) {
        c->in->state = PL_TCP_DONE;
        c->in = NULL;
    }
}

static void stream_ended(struct pl_transport *t, struct pl_tcp_conn *c)
{
    struct pl_tcp_peer *p = c->peer;
    if (!pl_tcp_reader_between(&c->reader)) {
        pl_tcp_lose(t, p, "lost rank %d (%s): connection closed by peer in the middle of a message", p->rank, p->where);
        return;
    }
    begin_closing(t, p, "connection closed by peer");
    end_connection(t, c);
    if (p->over == p->conns)
        pl_tcp_lose(t, p, "%s", p->why);
}

static void fill(struct pl_transport *t, struct pl_tcp_conn *c)
{
    struct iovec space[2];
    struct msghdr m = {.msg_iov = space, .msg_iovlen = (size_t)pl_tcp_reader_space(&c->reader, space)};
    size_t room = space[0].iov_len + (m.msg_iovlen > 1 ? space[1].iov_len : 0);
    ssize_t n = recvmsg(c->fd, &m, MSG_DONTWAIT);
    if (n > 0) {
        pl_tcp_reader_filled(&c->reader, (size_t)n);
        c->readable = (size_t)n == room || c->hung_up; /* less than asked for: there is no more, unless the end */
    } else if (n == 0) {
        stream_ended(t, c);
    } else if (errno == EAGAIN) {
        c->readable = false;
    } else if (errno != EINTR && broken(t, c, errno, true)) {
        stream_ended(t, c);
    }
}

static void wrong_frame(struct pl_transport *t, struct pl_tcp_conn *c)
{
    const struct pl_tcp_frame *f = &c->reader.frame;
    struct pl_tcp_peer *p = c->peer;
    if (c->reader.state == PL_TCP_AT_PAYLOAD)
        pl_tcp_lose(t, p, "rank %d (%s): %s: step %llu, bucket %u, piece %u, %u bytes\nthe network, or the memory of a host, damages data",
                    p->rank, p->where, c->reader.wrong, (unsigned long long)f->label.step, f->label.bucket, f->label.piece, f->bytes);
    else
        pl_tcp_lose(t, p, "rank %d (%s): %s, after step %llu, bucket %u, piece %u", p->rank, p->where, c->reader.wrong,
                    (unsigned long long)f->label.step, f->label.bucket, f->label.piece);
}

static void read_some(struct pl_transport *t, struct pl_tcp_conn *c)
{
    for (int reads = 0; c->fd >= 0;) {
        switch (pl_tcp_reader_next(&c->reader)) {
        case PL_TCP_WRONG:
            wrong_frame(t, c);
            return;
        case PL_TCP_WHOLE:
            whole(t, c);
            break;
        case PL_TCP_PLACE:
            if (!place(t, c)) {
                c->parked = !c->peer->lost;
                return;
            }
            break;
        case PL_TCP_MORE:
            if (!c->readable || reads++ == READS_AT_ONCE)
                return;
            fill(t, c);
        }
    }
}

bool pl_tcp_serve(struct pl_transport *t, struct pl_tcp_conn *c)
{
    pl_tcp_write(t, c);
    if (c->fd >= 0 && !c->parked)
        read_some(t, c);
    if (c->fd >= 0 && c->parked && c->hung_up)
        ended_unread(t, c);
    return c->fd >= 0 && ((c->readable && !c->parked) || (c->writable && c->out.first));
}
