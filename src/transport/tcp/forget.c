/* Requests taken back, of messages that nobody wants any more. The streams stay whole: a message half written is ended
 * from a copy, one half read is read on and thrown away. */
#include "transport/tcp/tcp.h"

#include <string.h>

bool pl_tcp_forgotten(const struct pl_tcp_peer *p, struct pl_label l)
{
    return !pl_tcp_is_control(l) && l.step < p->forgotten[pl_step_kind(l.step)];
}

static void give_back(struct pl_tcp_request *q) { ((struct pl_request *)(void *)q)->active = false; }

/* Those of a list that are forgotten and have not begun; the bytes that are not sent because of it. */
static size_t take_back(const struct pl_tcp_peer *p, struct pl_tcp_list *l)
{
    struct pl_tcp_list kept = {NULL, NULL};
    size_t bytes = 0;
    for (struct pl_tcp_request *q = l->first, *next; q; q = next) {
        next = q->next;
        if (q->moved == 0 && pl_tcp_forgotten(p, q->label)) {
            bytes += PL_TCP_HEADER_BYTES + q->bytes;
            give_back(q);
        } else {
            pl_tcp_append(&kept, q);
        }
    }
    *l = kept;
    return bytes;
}

static struct pl_tcp_rest *copy_rest(const struct pl_tcp_request *q)
{
    uint32_t head = q->moved < PL_TCP_HEADER_BYTES ? PL_TCP_HEADER_BYTES - q->moved : 0;
    uint32_t left = PL_TCP_HEADER_BYTES + q->bytes - q->moved, body = left - head;
    struct pl_tcp_rest *r = pl_fault("tcp.rest", (int64_t)q->label.step) ? NULL : pl_alloc(sizeof *r + left, "the rest of a message");
    if (!r)
        return NULL;
    memcpy(r->data, q->header + PL_TCP_HEADER_BYTES - head, head);
    if (body > 0)
        memcpy(r->data + head, q->memory + q->bytes - body, body);
    r->request = (struct pl_tcp_request){.next = q->next, .memory = r->data, .bytes = left, .moved = PL_TCP_HEADER_BYTES,
                                         .peer = q->peer, .state = PL_TCP_REST, .label = q->label};
    return r;
}

/* The first of the queue, where it is half written, goes on from a copy. */
static void copy_half_written(struct pl_transport *t, struct pl_tcp_conn *c)
{
    struct pl_tcp_request *q = c->out.first;
    if (!q || q->state == PL_TCP_REST || !pl_tcp_forgotten(c->peer, q->label))
        return;
    struct pl_tcp_rest *r = copy_rest(q);
    give_back(q);
    if (!r) {
        pl_tcp_lose(t, c->peer, "lost rank %d (%s): no memory for the rest of a message to it", c->peer->rank, c->peer->where);
        return;
    }
    c->out.first = &r->request;
    if (c->out.last == q)
        c->out.last = &r->request;
}

void pl_tcp_free_rest(struct pl_tcp_conn *c)
{
    struct pl_tcp_request *q = c->out.first;
    if (!q || q->state != PL_TCP_REST)
        return;
    c->out.first = q->next;
    pl_free(q);
}

static void forget_on(struct pl_transport *t, struct pl_tcp_conn *c)
{
    c->out_bytes -= take_back(c->peer, &c->out);
    if (c->in && pl_tcp_forgotten(c->peer, c->in->label)) {
        give_back(c->in);
        c->in = NULL;
        pl_tcp_reader_drop(&c->reader);
    }
    if (c->parked && pl_tcp_forgotten(c->peer, c->reader.frame.label)) {
        c->parked = false;
        pl_tcp_enlist(t, c);
    }
}

void pl_tcp_forget(struct pl_transport *t, int peer, uint64_t before)
{
    struct pl_tcp_peer *p = &t->peer[peer];
    uint64_t *bound = &p->forgotten[pl_step_kind(before)];
    if (before <= *bound)
        return;
    *bound = before;
    take_back(p, &p->receives);
    for (int i = 0; i < p->conns; i++)
        forget_on(t, &p->conn[i]);
    for (int i = 0; i < p->conns; i++)
        copy_half_written(t, &p->conn[i]);
}
