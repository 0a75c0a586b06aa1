/* The way out of a queue pair: frames are written into the peer's ring by RDMA WRITE WITH IMMEDIATE (InfiniBand
 * Architecture Specification, volume 1, 9.4.4 and 11.4.1.1), header and payload from two places, while there are credits. */
#include "transport/verbs/verbs.h"

#include <endian.h>

enum { MOST_BOUNCES = 4 }; /* of one queue: a dead peer must not hold all of them */

uint32_t pl_verbs_pool_stride(bool control) { return (uint32_t)sizeof(struct pl_verbs_frame) + (control ? PL_CONTROL_BYTES : 64); }

static bool post(struct pl_transport *t, struct pl_verbs_queue *q, enum pl_verbs_work what, struct ibv_send_wr *w)
{
    struct ibv_send_wr *bad;
    w->wr_id = (uint64_t)what << 32 | q->index;
    w->send_flags |= IBV_SEND_SIGNALED;
    w->wr.rdma.rkey = q->remote_key;
    int error = ibv_post_send(q->qp, w, &bad);
    if (error != 0) {
        pl_verbs_lose_by(t, q, strerror(error));
        return false;
    }
    q->room--;
    return true;
}

/* A frame whose header and label are filled; the payload is at `payload`, in memory of `key`. */
static bool post_frame(struct pl_transport *t, struct pl_verbs_queue *q, struct pl_verbs_frame *f, const void *payload, uint32_t key)
{
    uint32_t slot = q->sent % (uint32_t)q->slots;
    f->sequence = q->sent;
    f->consumed = q->consumed;
    f->payload_crc = f->bytes ? pl_crc32(0, payload, f->bytes) : 0;
    if (pl_fault("verbs.corrupt", (int64_t)f->label.step))
        f->payload_crc ^= 1; /* as if a bit of the payload had flipped: the memory itself is not ours to change */
    pl_verbs_seal(f);
    struct ibv_sge parts[2] = {{(uintptr_t)f, sizeof *f, q->device->pool->lkey}, {(uintptr_t)payload, f->bytes, key}};
    struct ibv_send_wr w = {
        .sg_list = parts,
        .num_sge = f->bytes ? 2 : 1,
        .opcode = IBV_WR_RDMA_WRITE_WITH_IMM,
        .send_flags = sizeof *f + f->bytes <= q->inline_bytes ? IBV_SEND_INLINE : 0,
        .imm_data = htobe32(pl_verbs_immediate(PL_VERBS_NEWS_FRAME, q->sent)),
        .wr.rdma.remote_addr = q->remote_ring + (uint64_t)slot * q->stride,
    };
    if (!post(t, q, PL_VERBS_WORK_FRAME, &w))
        return false;
    q->sent++;
    q->told = q->consumed;
    return true;
}

static bool may_send(const struct pl_verbs_queue *q)
{
    uint32_t slots = (uint32_t)q->slots;
    return q->sent - q->acked < slots && q->sent - q->completed < slots && q->room > PL_VERBS_SPARE;
}

static int take_bounce(struct pl_transport *t, struct pl_verbs_queue *q)
{
    if (q->bounces >= MOST_BOUNCES)
        return -1;
    if (t->bounce_free_count == 0) {
        t->starved = true;
        return -1;
    }
    q->bounces++;
    return t->bounce_free[--t->bounce_free_count];
}

void pl_verbs_give_back_bounce(struct pl_transport *t, struct pl_verbs_queue *q, int bounce)
{
    if (bounce < 0)
        return;
    t->bounce_free[t->bounce_free_count++] = bounce;
    q->bounces--;
}

static struct pl_verbs_frame *next_header(struct pl_verbs_queue *q, uint32_t kind)
{
    uint32_t slot = q->sent % (uint32_t)q->slots;
    struct pl_verbs_frame *f = (void *)(q->pool + (size_t)slot * pl_verbs_pool_stride(q->control));
    *f = (struct pl_verbs_frame){.kind = kind};
    q->flight[slot].request = NULL;
    q->flight[slot].lent = NULL;
    q->flight[slot].bounce = -1;
    return f;
}

/* The next frame of the request; false: not now. */
static bool send_next(struct pl_transport *t, struct pl_verbs_queue *q, struct pl_verbs_request *r)
{
    uint32_t n = r->bytes - r->moved < q->payload ? r->bytes - r->moved : q->payload, slot = q->sent % (uint32_t)q->slots;
    const unsigned char *payload = r->p + r->moved;
    uint32_t key = q->device->pool->lkey;
    int bounce = -1;
    if (!may_send(q))
        return false;
    bool within = sizeof(struct pl_verbs_frame) + n <= q->inline_bytes;
    if (!q->control && !within && !r->memory && (bounce = take_bounce(t, q)) < 0)
        return false;
    struct pl_verbs_frame *f = next_header(q, PL_VERBS_DATA);
    if (q->control || bounce >= 0) {
        unsigned char *copy = q->control ? (unsigned char *)(f + 1) : t->bounce + (size_t)bounce * PL_VERBS_PAYLOAD;
        if (n > 0)
            memcpy(copy, payload, n);
        payload = copy;
    } else if (r->memory && !within) {
        key = r->memory->mr[q->device->index]->lkey;
        f->kind = PL_VERBS_LENT;
        q->flight[slot].lent = r->memory;
    }
    f->label = r->label;
    f->total = r->bytes;
    f->offset = r->moved;
    f->bytes = n;
    q->flight[slot].request = r;
    q->flight[slot].bounce = bounce;
    r->flying++;
    r->moved += n;
    if (post_frame(t, q, f, payload, key))
        return true;
    pl_verbs_give_back_bounce(t, q, bounce);
    return false;
}

void pl_verbs_push(struct pl_transport *t, struct pl_verbs_queue *q)
{
    struct pl_verbs_request *r;
    while ((r = q->sends.head) && !q->peer->closed && send_next(t, q, r))
        if (r->moved == r->bytes)
            pl_verbs_take_out(&q->sends, r);
}

void pl_verbs_offer(struct pl_transport *t, struct pl_verbs_request *r)
{
    pl_verbs_append(&r->queue->sends, r);
    pl_verbs_push(t, r->queue);
}

void pl_verbs_send_hello(struct pl_transport *t, struct pl_verbs_queue *q, const unsigned char *proof)
{
    struct pl_verbs_frame *f = next_header(q, PL_VERBS_HELLO);
    f->total = f->bytes = PL_PROOF_BYTES;
    memcpy(f + 1, proof, PL_PROOF_BYTES);
    post_frame(t, q, f, f + 1, q->device->pool->lkey);
}

bool pl_verbs_signal(struct pl_transport *t, struct pl_verbs_queue *q, enum pl_verbs_signal s)
{
    static const enum pl_verbs_work work[] = {[PL_VERBS_ASK] = PL_VERBS_WORK_ASK, [PL_VERBS_CLOSE] = PL_VERBS_WORK_CLOSING, [PL_VERBS_VOID] = PL_VERBS_WORK_VOID};
    uint32_t news = s == PL_VERBS_VOID ? pl_verbs_immediate(PL_VERBS_NEWS_VOID, q->voided) : pl_verbs_immediate(PL_VERBS_NEWS_CLOSED, 0);
    struct ibv_send_wr w = {.opcode = s == PL_VERBS_ASK ? IBV_WR_RDMA_WRITE : IBV_WR_RDMA_WRITE_WITH_IMM,
                            .imm_data = htobe32(news),
                            .wr.rdma.remote_addr = q->remote_ring};
    return q->room > 0 && post(t, q, work[s], &w);
}

/* Slots are given back by the quarter: the peer never runs dry, and it costs few messages. */
void pl_verbs_give_credits(struct pl_transport *t, struct pl_verbs_queue *q)
{
    if (q->consumed - q->told < (uint32_t)q->slots / 4 || q->room <= PL_VERBS_SPARE || q->peer->lost || q->peer->closed)
        return;
    struct ibv_send_wr w = {.opcode = IBV_WR_RDMA_WRITE_WITH_IMM,
                            .imm_data = htobe32(pl_verbs_immediate(PL_VERBS_NEWS_CREDIT, q->consumed)),
                            .wr.rdma.remote_addr = q->remote_ring};
    if (post(t, q, PL_VERBS_WORK_CREDIT, &w))
        q->told = q->consumed;
}
