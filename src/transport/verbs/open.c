/* What the open transport stands on: devices, one slab of registered memory (rings that peers write into, headers and
 * bounce slots that are sent from), and the queue pairs. Gives all of it back too. */
#include "transport/verbs/verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    MOST_BOUNCES = 128,
    BOUNCES_A_QUEUE = 4,
    PAGE = 4096,
    RETRIES = 6 /* of at most 7, which soft-RoCE takes for "without end" */
};

/* ---- devices and memory ----------------------------------------------------------------------------- */

static pl_status open_context(struct pl_verbs_device *d)
{
    const char *name = d->port.device;
    int n = 0;
    struct ibv_device **list = NULL;
    PL_VERBS_MAKE(name, list, pl_verbs.get_device_list(&n));
    errno = ENODEV;
    for (int i = 0; i < n && !d->context; i++)
        if (strcmp(pl_verbs.get_device_name(list[i]), name) == 0)
            d->context = pl_verbs.open_device(list[i]);
    int error = errno;
    pl_verbs.free_device_list(list);
    return d->context ? PL_OK : pl_verbs_failed(error, name, "pl_verbs.open_device(");
}

static pl_status open_device(struct pl_transport *t, struct pl_verbs_device *d)
{
    const char *name = d->port.device;
    int depth = d->queues * (pl_verbs_send_depth(PL_VERBS_SLOTS) + pl_verbs_receive_depth(PL_VERBS_SLOTS));
    PL_TRY(open_context(d));
    PL_VERBS_MAKE(name, d->pd, pl_verbs.alloc_pd(d->context));
    PL_VERBS_MAKE(name, d->events, pl_verbs.create_comp_channel(d->context));
    PL_VERBS_CHECK(name, fcntl(d->events->fd, F_SETFL, O_NONBLOCK) < 0 ? errno : 0);
    PL_VERBS_MAKE(name, d->cq, pl_verbs.create_cq(d->context, depth > 0 ? depth : 1, d, d->events, 0));
    /* Peers may write into the rings and nowhere else. */
    PL_VERBS_MAKE(name, d->rings, pl_verbs.reg_mr(d->pd, t->slab, t->ring_bytes, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE));
    PL_VERBS_MAKE(name, d->pool, pl_verbs.reg_mr(d->pd, t->slab + t->ring_bytes, t->slab_bytes - t->ring_bytes, IBV_ACCESS_LOCAL_WRITE));
    return PL_OK;
}

/* The same on all members. */
static int ring_slots(const struct pl_transport *t) { return pl_verbs_ring_slots((int64_t)(t->members - 1) * t->channels); }

static size_t ring_stride(bool control) { return sizeof(struct pl_verbs_frame) + (control ? (size_t)PL_CONTROL_BYTES : (size_t)PL_VERBS_PAYLOAD); }

/* Where in its rings a member keeps that for frames of another. */
static size_t ring_offset(const struct pl_transport *t, int owner, int from, int channel, int slots)
{
    size_t data = (size_t)slots * ring_stride(false), control = PL_VERBS_SLOTS * ring_stride(true);
    return (size_t)(from < owner ? from : from - 1) * ((size_t)t->channels * data + control) + (size_t)channel * data;
}

/* Rings, pools and bounce slots in one piece of memory of whole pages: a fork leaves its pages out of the child. */
static pl_status make_slab(struct pl_transport *t, int slots)
{
    int peers = t->members - 1, data_queues = peers * t->channels;
    size_t pool = (size_t)peers * ((size_t)t->channels * (size_t)slots * pl_verbs_pool_stride(false) + PL_VERBS_SLOTS * (size_t)pl_verbs_pool_stride(true));
    t->bounces = data_queues * BOUNCES_A_QUEUE < MOST_BOUNCES ? data_queues * BOUNCES_A_QUEUE : MOST_BOUNCES;
    t->ring_bytes = (ring_offset(t, 0, t->members, 0, slots) + PAGE - 1) / PAGE * PAGE + (peers == 0 ? PAGE : 0);
    t->slab_bytes = t->ring_bytes + (pool + PAGE) / PAGE * PAGE + (size_t)t->bounces * PL_VERBS_PAYLOAD;
    PL_TRY(pl_verbs_may_pin(t->slab_bytes * (size_t)t->rails));
    t->slab = mmap(NULL, t->slab_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (t->slab == MAP_FAILED) {
        t->slab = NULL;
        return pl_error(PL_ERR_MEMORY, "transport verbs", "no %zu bytes for the rings of %d peers", t->slab_bytes, peers);
    }
    t->bounce = t->slab + t->slab_bytes - (size_t)t->bounces * PL_VERBS_PAYLOAD;
    t->bounce_free = pl_alloc((size_t)(t->bounces + 1) * sizeof *t->bounce_free, "bounce slots");
    if (!t->bounce_free)
        return PL_ERR_MEMORY;
    for (int i = 0; i < t->bounces; i++)
        t->bounce_free[t->bounce_free_count++] = i;
    return PL_OK;
}

/* ---- queue pairs ------------------------------------------------------------------------------------ */

static pl_status make_queue_pair(struct pl_verbs_queue *q)
{
    struct pl_verbs_device *d = q->device;
    struct ibv_qp_init_attr a = {
        .send_cq = d->cq,
        .recv_cq = d->cq,
        .qp_type = IBV_QPT_RC,
        .cap = {.max_send_wr = (uint32_t)pl_verbs_send_depth(q->slots), .max_recv_wr = (uint32_t)pl_verbs_receive_depth(q->slots),
                .max_send_sge = 2, .max_recv_sge = 1, .max_inline_data = PL_VERBS_INLINE},
    };
    struct ibv_qp_attr init = {.qp_state = IBV_QPS_INIT, .port_num = (uint8_t)d->port.port, .qp_access_flags = IBV_ACCESS_REMOTE_WRITE};
    q->qp = pl_verbs.create_qp(d->pd, &a);
    if (!q->qp) {
        a.cap.max_inline_data = 0; /* not every device has so much */
        PL_VERBS_MAKE(d->port.device, q->qp, pl_verbs.create_qp(d->pd, &a));
    }
    q->inline_bytes = a.cap.max_inline_data;
    PL_VERBS_CHECK(d->port.device, pl_verbs.modify_qp(q->qp, &init, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS));
    return pl_verbs_fill_receives(q);
}

static void lay_out(struct pl_transport *t, int slots)
{
    unsigned char *pool = t->slab + t->ring_bytes;
    for (int m = 0; m < t->members; m++)
        for (int c = 0; m != t->me && c < t->queues; c++) {
            struct pl_verbs_queue *q = &t->queue[m * t->queues + c];
            q->control = c == t->channels;
            q->slots = q->control ? PL_VERBS_SLOTS : slots;
            q->payload = q->control ? PL_CONTROL_BYTES : PL_VERBS_PAYLOAD;
            q->stride = (uint32_t)ring_stride(q->control);
            q->room = pl_verbs_send_depth(q->slots);
            q->ring = t->slab + ring_offset(t, t->me, m, c, slots);
            q->pool = pool;
            pool += (size_t)q->slots * pl_verbs_pool_stride(q->control);
            for (int i = 0; i < PL_VERBS_SLOTS; i++)
                q->flight[i].bounce = -1;
        }
}

/* Queues and peers, and which rail each queue takes: those of a pair spread over them, the same on both sides. */
static pl_status make_peers(struct pl_transport *t, const int *rank)
{
    t->peer = pl_alloc((size_t)t->members * sizeof *t->peer, "peers");
    t->queue = pl_alloc((size_t)t->members * (size_t)t->queues * sizeof *t->queue, "queue pairs");
    if (!t->peer || !t->queue)
        return PL_ERR_MEMORY;
    for (int m = 0; m < t->members; m++) {
        struct pl_verbs_peer *p = &t->peer[m];
        *p = (struct pl_verbs_peer){.member = m, .rank = rank[m], .queue = &t->queue[m * t->queues]};
        for (int c = 0; c < t->queues; c++) {
            p->queue[c].peer = p;
            p->queue[c].channel = c;
            p->queue[c].index = (uint32_t)(m * t->queues + c);
            p->queue[c].device = &t->device[(t->me + m + c) % t->rails];
            p->queue[c].device->queues += m != t->me;
        }
    }
    return PL_OK;
}

pl_status pl_verbs_make(struct pl_transport *t, const int *rank)
{
    int slots = ring_slots(t);
    PL_TRY(make_peers(t, rank));
    PL_TRY(make_slab(t, slots));
    lay_out(t, slots);
    t->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (t->wake_fd < 0)
        return pl_error(PL_ERR_PEER, "transport verbs", "eventfd: %s", strerror(errno));
    for (int r = 0; r < t->rails; r++)
        PL_TRY(open_device(t, &t->device[r]));
    for (int i = 0; i < t->members * t->queues; i++)
        if (t->queue[i].peer->member != t->me)
            PL_TRY(make_queue_pair(&t->queue[i]));
    return PL_OK;
}

/* The exponent of the time after which a packet is sent again, 4.096 us x 2^n, such that all retries together take
 * about the timeout. */
static uint8_t retry_exponent(double timeout_ms)
{
    uint8_t n = 8;
    while (n < 22 && 0.004096 * (double)(2u << n) * (RETRIES + 1) <= timeout_ms)
        n++;
    return n;
}

pl_status pl_verbs_make_ready(struct pl_transport *t, struct pl_verbs_queue *q, const struct pl_verbs_remote *remote)
{
    const struct pl_verbs_device *d = q->device;
    const struct pl_verbs_port *port = &remote->port;
    struct ibv_qp_attr a = {
        .qp_state = IBV_QPS_RTR,
        .path_mtu = (enum ibv_mtu)(port->mtu < d->port.mtu ? port->mtu : d->port.mtu),
        .dest_qp_num = remote->queue_pair,
        .rq_psn = remote->first_packet,
        .sq_psn = remote->my_first_packet,
        .max_dest_rd_atomic = 1,
        .max_rd_atomic = 1,
        .min_rnr_timer = 12,
        .timeout = retry_exponent(t->timeout_ms),
        .retry_cnt = RETRIES,
        .rnr_retry = RETRIES, /* never needed: entries for what may come are there */
        .ah_attr = {.port_num = (uint8_t)d->port.port, .dlid = (uint16_t)port->lid, .is_global = !d->port.infiniband},
    };
    memcpy(a.ah_attr.grh.dgid.raw, port->gid.raw, 16);
    a.ah_attr.grh.sgid_index = (uint8_t)d->port.gid.index;
    a.ah_attr.grh.hop_limit = 64;
    q->remote_ring = remote->rings + ring_offset(t, q->peer->member, t->me, q->channel, ring_slots(t));
    q->remote_key = remote->key;
    PL_VERBS_CHECK(d->port.device, pl_verbs.modify_qp(q->qp, &a, IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                                                                     IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER));
    a.qp_state = IBV_QPS_RTS;
    PL_VERBS_CHECK(d->port.device, pl_verbs.modify_qp(q->qp, &a, IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                                                                     IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC));
    return PL_OK;
}

/* ---- the end ---------------------------------------------------------------------------------------- */

static void close_device(struct pl_verbs_device *d)
{
    if (d->cq)
        pl_verbs.destroy_cq(d->cq);
    if (d->events)
        pl_verbs.destroy_comp_channel(d->events);
    if (d->rings)
        pl_verbs.dereg_mr(d->rings);
    if (d->pool)
        pl_verbs.dereg_mr(d->pool);
    if (d->pd)
        pl_verbs.dealloc_pd(d->pd);
    if (d->context)
        pl_verbs.close_device(d->context);
}

void pl_verbs_destroy(struct pl_transport *t)
{
    for (int i = 0; t->queue && i < t->members * t->queues; i++)
        if (t->queue[i].qp)
            pl_verbs.destroy_qp(t->queue[i].qp);
    for (int r = 0; r < t->rails; r++)
        close_device(&t->device[r]);
    if (t->slab)
        munmap(t->slab, t->slab_bytes);
    if (t->wake_fd >= 0)
        close(t->wake_fd);
    for (int m = 0; t->peer && m < t->members; m++)
        while (t->peer[m].stored) {
            struct pl_verbs_stored *s = t->peer[m].stored;
            t->peer[m].stored = s->next;
            pl_free(s);
        }
    while (t->stored_free) {
        struct pl_verbs_stored *s = t->stored_free;
        t->stored_free = s->next;
        pl_free(s);
    }
    pl_free(t->bounce_free);
    pl_free(t->queue);
    pl_free(t->peer);
    pl_free(t);
}
