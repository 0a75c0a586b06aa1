/* The way in of a queue pair: what arrives lies in the ring until its receive is posted, is copied there, and its slot
 * given back. Control messages without a receive make room for others by moving out of the ring. */
#include "transport/verbs/verbs.h"

#include <endian.h>

#define DOUBT_MS 5000.0 /* from a damaged frame to the word of its sender that it was given up */

static const struct pl_verbs_frame *slot_of(const struct pl_verbs_queue *q, uint32_t count)
{
    return (const void *)(q->ring + (size_t)(count % (uint32_t)q->slots) * q->stride);
}

const struct pl_verbs_frame *pl_verbs_first_frame(const struct pl_verbs_queue *q)
{
    return q->arrived == q->consumed ? NULL : slot_of(q, q->consumed);
}

static void damaged(struct pl_transport *t, struct pl_verbs_queue *q, const struct pl_verbs_frame *f)
{
    pl_verbs_lose(t, q->peer, "a frame of rank %d was damaged on its way (%s port %d, step %llu, bucket %d, piece %u): wrong checksum", q->peer->rank,
                  q->device->port.device, q->device->port.port, (unsigned long long)f->label.step, (int)f->label.bucket, f->label.piece);
}

/* Among those of which the peer says that it gave some up: what was lent may have changed, and parts may be missing. */
static bool declared_void(const struct pl_verbs_queue *q, const struct pl_verbs_frame *f)
{
    return q->void_before - 1 - f->sequence < (uint32_t)q->slots;
}

/* Part of the message into its receive. NOT_YET: damaged, unless the word that it is void is still to come. */
static enum taken { TAKEN, NOT_YET, NEVER /* the peer is lost for it */ }
take_frame(struct pl_transport *t, struct pl_verbs_queue *q, struct pl_verbs_request *r, const struct pl_verbs_frame *f, const void *payload)
{
    bool gap = f->total == r->bytes && f->offset > r->moved && declared_void(q, f); /* after a part that was void */
    if ((f->kind != PL_VERBS_DATA && f->kind != PL_VERBS_LENT) || f->total != r->bytes || (f->offset != r->moved && !gap)) {
        pl_verbs_lose(t, q->peer, "rank %d sent %u bytes from byte %u of step %llu, bucket %d, piece %u, where %u bytes from byte %u were due",
                      q->peer->rank, f->total, f->offset, (unsigned long long)f->label.step, (int)f->label.bucket, f->label.piece, r->bytes, r->moved);
        return NEVER;
    }
    if (gap)
        return TAKEN;
    if (pl_verbs_copy_payload(f, payload, r->p + r->moved)) {
        r->moved += f->bytes;
        return TAKEN;
    }
    if (f->kind == PL_VERBS_LENT)
        return declared_void(q, f) ? TAKEN /* the message stays as incomplete as it is */ : NOT_YET;
    damaged(t, q, f);
    return NEVER;
}

/* A control message without a receive makes room for those behind it. False: there is no room, so it stays. */
static bool store(struct pl_transport *t, struct pl_verbs_peer *p, const struct pl_verbs_frame *f)
{
    struct pl_verbs_stored *s = t->stored_free;
    if (p->stored_count == PL_VERBS_STORED)
        return false;
    if (s)
        t->stored_free = s->next;
    else if (!(s = pl_alloc(sizeof *s, "control messages that wait")))
        return false;
    s->frame = *f;
    memcpy(s->payload, f + 1, f->bytes);
    s->next = NULL;
    if (p->stored)
        p->stored_last->next = s;
    else
        p->stored = s;
    p->stored_last = s;
    p->stored_count++;
    return true;
}

/* The stored message of that label, the oldest, taken out. */
static struct pl_verbs_stored *take_stored(struct pl_verbs_peer *p, const struct pl_label *l)
{
    struct pl_verbs_stored *before = NULL, *s = p->stored;
    while (s && !pl_label_same(s->frame.label, *l)) {
        before = s;
        s = s->next;
    }
    if (!s)
        return NULL;
    if (before)
        before->next = s->next;
    else
        p->stored = s->next;
    if (p->stored_last == s)
        p->stored_last = before;
    p->stored_count--;
    return s;
}

static void begin_doubt(struct pl_transport *t, struct pl_verbs_queue *q)
{
    if (q->doubt_ms == 0)
        q->doubt_ms = pl_now_ms();
    t->doubts = true;
}

/* To its receive, or where it can wait, or away where it is forgotten. False: it stays in the ring. */
static bool hand_over(struct pl_transport *t, struct pl_verbs_queue *q, const struct pl_verbs_frame *f)
{
    struct pl_verbs_request *r = q->receives.head;
    if (pl_verbs_forgotten(q->peer, f->label))
        return true;
    while (r && !pl_label_same(f->label, r->label))
        r = r->next;
    if (!r)
        return q->control && store(t, q->peer, f);
    enum taken taken = take_frame(t, q, r, f, f + 1);
    if (taken == NOT_YET)
        begin_doubt(t, q);
    if (taken == TAKEN && r->moved == r->bytes) {
        pl_verbs_take_out(&q->receives, r);
        pl_verbs_finish(t, r, PL_OK);
    }
    return taken == TAKEN;
}

void pl_verbs_drain(struct pl_transport *t, struct pl_verbs_queue *q)
{
    const struct pl_verbs_frame *f;
    if (!q->proved)
        return; /* the first frame is for the hand-shake */
    while (!q->peer->lost && (f = pl_verbs_first_frame(q)) && hand_over(t, q, f)) {
        q->consumed++;
        q->doubt_ms = 0;
    }
    pl_verbs_give_credits(t, q);
}

void pl_verbs_end_doubts(struct pl_transport *t)
{
    double now_ms = pl_now_ms();
    bool doubts = false;
    for (int i = 0; t->doubts && i < t->members * t->queues; i++) {
        struct pl_verbs_queue *q = &t->queue[i];
        if (q->doubt_ms == 0 || q->peer->lost)
            continue;
        if (now_ms - q->doubt_ms > DOUBT_MS)
            damaged(t, q, pl_verbs_first_frame(q));
        else
            doubts = true;
    }
    t->doubts = doubts;
}

void pl_verbs_await(struct pl_transport *t, struct pl_verbs_request *r)
{
    struct pl_verbs_queue *q = r->queue;
    struct pl_verbs_stored *s = q->control ? take_stored(q->peer, &r->label) : NULL;
    if (!s) {
        pl_verbs_append(&q->receives, r);
        pl_verbs_drain(t, q);
        return;
    }
    bool fits = take_frame(t, q, r, &s->frame, s->payload) == TAKEN;
    s->next = t->stored_free;
    t->stored_free = s;
    pl_verbs_finish(t, r, fits ? PL_OK : PL_ERR_PEER);
    pl_verbs_drain(t, q); /* one that was held up has room now */
}

static bool post_receive(struct pl_verbs_queue *q, int *error)
{
    struct ibv_recv_wr w = {.wr_id = (uint64_t)PL_VERBS_WORK_RECEIVE << 32 | q->index}, *bad; /* no memory: it goes into the ring */
    *error = ibv_post_recv(q->qp, &w, &bad);
    return *error == 0;
}

pl_status pl_verbs_fill_receives(struct pl_verbs_queue *q)
{
    for (int i = 0, error; i < pl_verbs_receive_depth(q->slots); i++)
        if (!post_receive(q, &error))
            return pl_verbs_failed(error, q->device->port.device, "post_recv(");
    return PL_OK;
}

/* ---- what the device tells ---------------------------------------------------------------------- */

static bool take_credit(struct pl_transport *t, struct pl_verbs_queue *q, uint32_t told)
{
    if (pl_verbs_credit(q->sent, told, &q->acked))
        return true;
    pl_verbs_lose_by(t, q, "it acknowledges what was not sent");
    return false;
}

static void frame_arrived(struct pl_transport *t, struct pl_verbs_queue *q, uint32_t bytes)
{
    const struct pl_verbs_frame *f = slot_of(q, q->arrived);
    const char *wrong = q->arrived - q->consumed < (uint32_t)q->slots ? pl_verbs_frame_wrong(f, q->arrived, bytes, q->payload) : "more frames than slots";
    if (wrong) {
        pl_verbs_lose(t, q->peer, "a frame of rank %d is damaged (%s port %d): %s", q->peer->rank, q->device->port.device, q->device->port.port, wrong);
        return;
    }
    q->arrived++;
    if (take_credit(t, q, f->consumed))
        pl_verbs_drain(t, q);
}

static void void_declared(struct pl_transport *t, struct pl_verbs_queue *q, uint32_t before)
{
    q->void_before = before;
    pl_verbs_drain(t, q);
}

void pl_verbs_received(struct pl_transport *t, struct pl_verbs_queue *q, const struct ibv_wc *c)
{
    uint32_t immediate = be32toh(c->imm_data);
    int error;
    if (!post_receive(q, &error)) {
        pl_verbs_lose_by(t, q, strerror(error));
        return;
    }
    switch (pl_verbs_immediate_news(immediate)) {
    case PL_VERBS_NEWS_FRAME: frame_arrived(t, q, c->byte_len); break;
    case PL_VERBS_NEWS_CREDIT: take_credit(t, q, pl_verbs_immediate_count(immediate, q->acked)); break;
    case PL_VERBS_NEWS_CLOSED: q->peer->closed = true; break;
    case PL_VERBS_NEWS_VOID: void_declared(t, q, pl_verbs_immediate_count(immediate, q->arrived)); break;
    }
}
