/* What happens on queue pairs: completions, by which requests end, and the loss of a peer, by which they fail.
 * Nothing can overrun: at most `slots` frames are without credit, a message of credit frees at least one of them, and one
 * that declares frames void is about at least one that is new, so a peer that does not poll is sent at most 3 x slots
 * messages, for which both sides have entries. */
#include "transport/verbs/verbs.h"

int pl_verbs_send_depth(int slots) { return 3 * slots + 2 * PL_VERBS_SPARE; }
int pl_verbs_receive_depth(int slots) { return 3 * slots + 2; }

/* ---- requests ----------------------------------------------------------------------------------- */

void pl_verbs_append(struct pl_verbs_list *l, struct pl_verbs_request *r)
{
    r->next = NULL;
    if (l->head)
        l->last->next = r;
    else
        l->head = r;
    l->last = r;
}

void pl_verbs_take_out(struct pl_verbs_list *l, struct pl_verbs_request *r)
{
    struct pl_verbs_request *before = NULL;
    for (struct pl_verbs_request *i = l->head; i != r; i = i->next)
        before = i;
    if (before)
        before->next = r->next;
    else
        l->head = r->next;
    if (l->last == r)
        l->last = before;
}

/* The owner may use the request's memory anew as soon as it has seen this. */
void pl_verbs_finish(struct pl_transport *t, struct pl_verbs_request *r, pl_status s)
{
    r->status = s;
    r->done = true;
    t->news = true;
}

static void fail_list(struct pl_transport *t, struct pl_verbs_list *l)
{
    for (struct pl_verbs_request *r = l->head, *next; r; r = next) {
        next = r->next;
        if (!r->done)
            pl_verbs_finish(t, r, PL_ERR_PEER);
    }
    l->head = NULL;
}

/* Wherever it stands. */
static void fail_send(struct pl_transport *t, struct pl_verbs_queue *q, struct pl_verbs_request *r)
{
    for (int i = 0; i < q->slots; i++)
        if (q->flight[i].request == r)
            q->flight[i].request = NULL;
    if (q->sends.head == r)
        pl_verbs_take_out(&q->sends, r);
    pl_verbs_finish(t, r, PL_ERR_PEER);
}

/* ---- a peer that is gone ------------------------------------------------------------------------ */

void pl_verbs_lose(struct pl_transport *t, struct pl_verbs_peer *p, const char *fmt, ...)
{
    struct ibv_qp_attr stop = {.qp_state = IBV_QPS_ERR};
    va_list args;
    if (p->lost)
        return;
    p->lost = true;
    va_start(args, fmt);
    vsnprintf(p->why, sizeof p->why, fmt, args);
    va_end(args);
    for (int i = 0; i < t->queues; i++) {
        struct pl_verbs_queue *q = &p->queue[i];
        if (q->qp)
            pl_verbs.modify_qp(q->qp, &stop, IBV_QP_STATE); /* from here on the device leaves the requests' memory alone */
        for (int k = 0; k < q->slots; k++) {
            struct pl_verbs_request *r = q->flight[k].request;
            q->flight[k].request = NULL;
            if (r && !r->done)
                pl_verbs_finish(t, r, PL_ERR_PEER);
        }
        fail_list(t, &q->sends);
        fail_list(t, &q->receives);
    }
}

void pl_verbs_settle(struct pl_transport *t, struct pl_verbs_peer *p)
{
    if (!p->why[0])
        snprintf(p->why, sizeof p->why, "rank %d has closed its connections", p->rank);
    for (int i = 0; i < t->queues; i++) {
        struct pl_verbs_queue *q = &p->queue[i];
        while (q->sends.head)
            fail_send(t, q, q->sends.head);
        if (q->arrived != q->consumed)
            continue; /* what arrived before can still be received */
        fail_list(t, &q->receives);
    }
}

void pl_verbs_lose_by(struct pl_transport *t, struct pl_verbs_queue *q, const char *how)
{
    const struct pl_verbs_port *port = &q->device->port;
    pl_verbs_lose(t, q->peer, "lost rank %d (%s port %d): %s", q->peer->rank, port->device, port->port, how);
}

/* ---- completions -------------------------------------------------------------------------------- */

static void frame_sent(struct pl_transport *t, struct pl_verbs_queue *q, bool well)
{
    uint32_t slot = q->completed++ % (uint32_t)q->slots;
    struct pl_verbs_request *r = q->flight[slot].request;
    pl_verbs_give_back_bounce(t, q, q->flight[slot].bounce);
    q->flight[slot].request = NULL;
    q->flight[slot].lent = NULL;
    q->flight[slot].bounce = -1;
    if (!r)
        return;
    r->flying--;
    if (!well)
        fail_send(t, q, r);
    else if (r->moved == r->bytes && r->flying == 0)
        pl_verbs_finish(t, r, PL_OK);
}

static void complete(struct pl_transport *t, const struct ibv_wc *c, double now_ms)
{
    struct pl_verbs_queue *q = &t->queue[(uint32_t)c->wr_id];
    enum pl_verbs_work what = (enum pl_verbs_work)(c->wr_id >> 32);
    bool well = c->status == IBV_WC_SUCCESS;
    q->room += what != PL_VERBS_WORK_RECEIVE;
    if (what == PL_VERBS_WORK_ASK)
        q->peer->asked = false;
    if (!well && !q->peer->closed)
        pl_verbs_lose_by(t, q, pl_verbs.wc_status_str(c->status));
    if (what == PL_VERBS_WORK_FRAME)
        frame_sent(t, q, well);
    if (!well || q->peer->lost)
        return;
    q->peer->heard_ms = now_ms;
    if (what == PL_VERBS_WORK_RECEIVE)
        pl_verbs_received(t, q, c);
    if (q->peer->lost)
        return;
    pl_verbs_push(t, q);
    pl_verbs_give_credits(t, q);
}

static bool poll_device(struct pl_transport *t, struct pl_verbs_device *d, double now_ms)
{
    struct ibv_wc c[32];
    bool any = false;
    int n;
    while ((n = ibv_poll_cq(d->cq, 32, c)) > 0) {
        for (int i = 0; i < n; i++)
            complete(t, &c[i], now_ms);
        any = true;
    }
    for (int i = 0; n < 0 && i < t->members * t->queues; i++)
        if (t->queue[i].qp && t->queue[i].device == d)
            pl_verbs_lose_by(t, &t->queue[i], "its device gives no completions any more");
    return any;
}

bool pl_verbs_poll(struct pl_transport *t)
{
    bool any = false, some;
    double now_ms = pl_now_ms();
    do { /* until nothing comes: what a peer sent before it closed may be in another device's queue */
        some = false;
        for (int d = 0; d < t->rails; d++)
            some |= poll_device(t, &t->device[d], now_ms);
        any |= some;
    } while (some && t->rails > 1);
    if (t->starved && t->bounce_free_count > 0) {
        t->starved = false;
        for (int i = 0; i < t->members * t->queues; i++)
            if (t->queue[i].qp && !t->queue[i].peer->lost)
                pl_verbs_push(t, &t->queue[i]);
    }
    for (int m = 0; any && m < t->members; m++)
        if (t->peer[m].closed && !t->peer[m].lost)
            pl_verbs_settle(t, &t->peer[m]);
    return any;
}
