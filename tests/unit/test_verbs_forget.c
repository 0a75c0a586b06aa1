/* Messages that are given up half-way, over verbs: two members in this process on a device of this test's own, which moves
 * what was posted when it is told to, reads memory only then, and counts that nothing overruns. */
#include "transport/transport.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#ifndef PL_HAVE_VERBS
int main(void)
{
    printf("skipped: this build is without verbs\n");
    return 77;
}
#else
#include "transport/verbs/verbs.h"

#include <endian.h>
#include <unistd.h>

extern const struct pl_transport_table pl_transport_verbs;
static const struct pl_transport_table *const verbs = &pl_transport_verbs;

#define TOP ((uint64_t)1 << 63)
enum { CHANNELS = 2, QUEUES = CHANNELS + 1, MOST_WORK = 256, MOST_EVENTS = 4096 };

/* ---- the device --------------------------------------------------------------------------------------- */

struct work { struct ibv_send_wr wr; struct ibv_sge part[2]; unsigned char within[PL_VERBS_INLINE]; };
struct queue_pair {
    struct ibv_qp qp; /* first */
    struct queue_pair *other;
    struct work work[MOST_WORK];
    unsigned first, posted, most_posted; /* work[first, posted) is not done */
    uint64_t receive_id;
    int receives; /* entries for what comes */
    bool stopped;
};
struct events { struct ibv_cq cq; struct ibv_wc wc[MOST_EVENTS]; unsigned first, last; };

static struct ibv_device *the_device[2] = {(void *)the_device, NULL};
static struct ibv_context context;
static struct ibv_pd domain;
static struct pl_rng *chance; /* with it each poll moves some; without, only `deliver` does */
static struct queue_pair *pair[2][QUEUES];
static int overruns, too_early; /* entries missing; memory unregistered that was still to be read */

static struct ibv_device **get_devices(int *n) { *n = 1; return the_device; }
static void free_devices(struct ibv_device **list) { (void)list; }
static const char *name_of(struct ibv_device *d) { (void)d; return "fake0"; }
static struct ibv_context *open_context(struct ibv_device *d) { (void)d; return &context; }
static int close_context(struct ibv_context *c) { (void)c; return 0; }
static struct ibv_pd *make_domain(struct ibv_context *c) { (void)c; return &domain; }
static int end_domain(struct ibv_pd *d) { (void)d; return 0; }

static struct ibv_comp_channel *make_channel(struct ibv_context *c)
{
    struct ibv_comp_channel *channel = calloc(1, sizeof *channel);
    channel->context = c;
    channel->fd = dup(0);
    return channel;
}

static int end_channel(struct ibv_comp_channel *c)
{
    close(c->fd);
    free(c);
    return 0;
}

static struct ibv_mr *register_fake(struct ibv_pd *d, void *p, size_t bytes, int access)
{
    (void)access;
    struct ibv_mr *m = calloc(1, sizeof *m);
    *m = (struct ibv_mr){.context = &context, .pd = d, .addr = p, .length = bytes};
    return m;
}

static bool reads(const struct work *k, const struct ibv_mr *m)
{
    for (int i = 0; i < k->wr.num_sge; i++)
        if (k->part[i].addr - (uintptr_t)m->addr < m->length)
            return true;
    return false;
}

static int unregister_fake(struct ibv_mr *m)
{
    for (int s = 0; s < 2; s++)
        for (int c = 0; c < QUEUES; c++)
            for (unsigned i = pair[s][c] ? pair[s][c]->first : 0; pair[s][c] && !pair[s][c]->stopped && i != pair[s][c]->posted; i++)
                too_early += reads(&pair[s][c]->work[i % MOST_WORK], m);
    free(m);
    return 0;
}

static struct ibv_cq *make_events(struct ibv_context *c, int depth, void *arg, struct ibv_comp_channel *channel, int vector)
{
    (void)depth, (void)vector;
    struct events *e = calloc(1, sizeof *e);
    e->cq = (struct ibv_cq){.context = c, .channel = channel, .cq_context = arg};
    return &e->cq;
}

static int end_events(struct ibv_cq *cq)
{
    free(cq);
    return 0;
}

static struct ibv_qp *make_pair(struct ibv_pd *d, struct ibv_qp_init_attr *a)
{
    struct queue_pair *q = calloc(1, sizeof *q);
    q->qp = (struct ibv_qp){.context = &context, .pd = d, .send_cq = a->send_cq, .recv_cq = a->recv_cq};
    return &q->qp;
}

static int modify_pair(struct ibv_qp *qp, struct ibv_qp_attr *a, int mask)
{
    (void)mask;
    ((struct queue_pair *)qp)->stopped = a->qp_state == IBV_QPS_ERR;
    return 0;
}

static int end_pair(struct ibv_qp *qp)
{
    struct queue_pair *q = (void *)qp;
    if (q->other)
        q->other->other = NULL;
    for (int m = 0; m < 2; m++)
        for (int c = 0; c < QUEUES; c++)
            if (pair[m][c] == q)
                pair[m][c] = NULL;
    free(qp);
    return 0;
}

static const char *status_text(enum ibv_wc_status s) { (void)s; return "the device failed"; }
static int no_event(struct ibv_comp_channel *c, struct ibv_cq **cq, void **arg) { (void)c, (void)cq, (void)arg; return -1; }
static void acknowledge(struct ibv_cq *cq, unsigned n) { (void)cq, (void)n; }

static int post_receive(struct ibv_qp *qp, struct ibv_recv_wr *w, struct ibv_recv_wr **bad)
{
    struct queue_pair *q = (void *)qp;
    (void)bad;
    q->receives++;
    q->receive_id = w->wr_id;
    return 0;
}

static int post_send(struct ibv_qp *qp, struct ibv_send_wr *w, struct ibv_send_wr **bad)
{
    struct queue_pair *q = (void *)qp;
    struct work *k = &q->work[q->posted++ % MOST_WORK];
    size_t at = 0;
    (void)bad;
    k->wr = *w;
    for (int i = 0; i < w->num_sge; i++) {
        k->part[i] = w->sg_list[i];
        if (w->send_flags & IBV_SEND_INLINE) {
            memcpy(k->within + at, (void *)(uintptr_t)k->part[i].addr, k->part[i].length);
            k->part[i].addr = (uintptr_t)k->within + at;
            at += k->part[i].length;
        }
    }
    unsigned depth = q->posted - q->first;
    q->most_posted = depth > q->most_posted ? depth : q->most_posted;
    return 0;
}

static void event(struct ibv_cq *cq, struct ibv_wc wc)
{
    struct events *e = (void *)cq;
    assert_true(e->last - e->first < MOST_EVENTS);
    e->wc[e->last++ % MOST_EVENTS] = wc;
}

/* The oldest of a queue pair arrives. False: there is none. */
static bool deliver(struct queue_pair *q)
{
    if (!q || !q->other || q->first == q->posted || q->stopped || q->other->stopped)
        return false;
    struct work *k = &q->work[q->first++ % MOST_WORK];
    unsigned char *to = (unsigned char *)(uintptr_t)k->wr.wr.rdma.remote_addr;
    uint32_t bytes = 0;
    for (int i = 0; i < k->wr.num_sge; i++) {
        memcpy(to + bytes, (void *)(uintptr_t)k->part[i].addr, k->part[i].length);
        bytes += k->part[i].length;
    }
    if (k->wr.opcode == IBV_WR_RDMA_WRITE_WITH_IMM) {
        overruns += q->other->receives-- == 0;
        event(q->other->qp.recv_cq, (struct ibv_wc){.wr_id = q->other->receive_id, .status = IBV_WC_SUCCESS, .byte_len = bytes, .imm_data = k->wr.imm_data});
    }
    event(q->qp.send_cq, (struct ibv_wc){.wr_id = k->wr.wr_id, .status = IBV_WC_SUCCESS});
    return true;
}

static bool deliver_all(void)
{
    bool some = false;
    for (int m = 0; m < 2; m++)
        for (int c = 0; c < QUEUES; c++)
            while (deliver(pair[m][c]))
                some = true;
    return some;
}

static int poll_events(struct ibv_cq *cq, int n, struct ibv_wc *out)
{
    struct events *e = (void *)cq;
    int i = 0;
    for (uint64_t moves = chance ? pl_rng_below(chance, 6) : 0; moves > 0; moves--)
        deliver(pair[pl_rng_below(chance, 2)][pl_rng_below(chance, QUEUES)]);
    for (; i < n && e->first != e->last; i++)
        out[i] = e->wc[e->first++ % MOST_EVENTS];
    return i;
}

static int no_notice(struct ibv_cq *cq, int solicited) { (void)cq, (void)solicited; return 0; }

static void use_fake(void)
{
    context.ops.poll_cq = poll_events;
    context.ops.post_send = post_send;
    context.ops.post_recv = post_receive;
    context.ops.req_notify_cq = no_notice;
    pl_verbs = (struct pl_verbs_api){
        .get_device_list = get_devices, .free_device_list = free_devices, .get_device_name = name_of, .open_device = open_context,
        .close_device = close_context, .alloc_pd = make_domain, .dealloc_pd = end_domain, .reg_mr = register_fake, .dereg_mr = unregister_fake,
        .create_comp_channel = make_channel, .destroy_comp_channel = end_channel, .create_cq = make_events, .destroy_cq = end_events,
        .get_cq_event = no_event, .ack_cq_events = acknowledge, .create_qp = make_pair, .modify_qp = modify_pair, .destroy_qp = end_pair,
        .wc_status_str = status_text,
    };
}

/* ---- two members ------------------------------------------------------------------------------------------ */

static struct pl_transport *t[2];

static struct pl_transport *make_member(int me)
{
    static const int rank[2] = {0, 1};
    struct pl_transport *m = pl_alloc(sizeof *m, "transport");
    *m = (struct pl_transport){.me = me, .members = 2, .channels = CHANNELS, .queues = QUEUES, .timeout_ms = 60000, .rails = 1};
    snprintf(m->device[0].port.device, sizeof m->device[0].port.device, "fake0");
    m->device[0].port.port = 1;
    assert_int_equal(pl_verbs_make(m, rank), PL_OK);
    return m;
}

static int open_both(void **state)
{
    (void)state;
    use_fake();
    overruns = too_early = 0;
    for (int m = 0; m < 2; m++)
        t[m] = make_member(m);
    for (int m = 0; m < 2; m++)
        for (int c = 0; c < QUEUES; c++) {
            struct pl_verbs_queue *q = &t[m]->peer[1 - m].queue[c];
            const struct pl_verbs_remote remote = {.port = t[1 - m]->device[0].port, .rings = (uintptr_t)t[1 - m]->slab};
            assert_int_equal(pl_verbs_make_ready(t[m], q, &remote), PL_OK);
            q->proved = true;
            q->peer->heard_ms = pl_now_ms();
            pair[m][c] = (struct queue_pair *)q->qp;
        }
    for (int c = 0; c < QUEUES; c++) {
        pair[0][c]->other = pair[1][c];
        pair[1][c]->other = pair[0][c];
    }
    return 0;
}

static void settle(void)
{
    do {
        verbs->progress(t[0], 0);
        verbs->progress(t[1], 0);
    } while (deliver_all());
}

static int close_both(void **state)
{
    (void)state;
    struct pl_rng r = pl_rng_make(1, 1, 1, 1);
    chance = &r; /* what is still posted moves while they wait for it */
    verbs->close(t[0], false);
    verbs->close(t[1], false);
    chance = NULL;
    pl_error_clear();
    assert_int_equal(overruns + too_early, 0);
    return 0;
}

/* ---- messages ---------------------------------------------------------------------------------------------- */

struct message { int from; struct pl_label label; size_t bytes; unsigned char *memory[2]; struct pl_memory *lent; struct pl_request *request[2]; bool scribbled[2]; };

static unsigned char value(const struct message *m, size_t i)
{
    return (unsigned char)(m->from * 91 + (int)m->label.step * 17 + (int)m->label.piece * 5 + (int)(i * 13 + i / 251));
}

static struct message make(int from, uint64_t step, uint32_t piece, size_t bytes, bool lend)
{
    struct message m = {.from = from, .label = {step, 0, piece}, .bytes = bytes};
    for (int s = 0; s < 2; s++) {
        m.memory[s] = calloc(1, bytes + 1);
        m.request[s] = calloc(1, sizeof *m.request[s]);
    }
    for (size_t i = 0; i < bytes; i++)
        m.memory[0][i] = value(&m, i);
    if (lend)
        assert_int_equal(verbs->register_memory(t[from], m.memory[0], bytes, &m.lent), PL_OK);
    return m;
}

static void post(struct message *m, bool receive)
{
    pl_status s = receive ? verbs->post_receive(t[1 - m->from], m->from, m->label, m->memory[1], m->bytes, m->request[1]) :
                            verbs->post_send(t[m->from], 1 - m->from, m->label, m->memory[0], m->bytes, m->request[0]);
    assert_int_equal(s, PL_OK);
}

/* The owner uses the memory for something else; what is lent stays valid memory until it is unregistered. */
static void scribble(struct message *m, bool receiver)
{
    memset(m->memory[receiver], 0xEE, m->bytes);
    memset(m->request[receiver], 0xEE, sizeof *m->request[receiver]);
    m->scribbled[receiver] = true;
    if (receiver || !m->lent) {
        free(m->memory[receiver]);
        m->memory[receiver] = NULL;
    }
}

static void drop(struct message *m)
{
    if (m->lent)
        verbs->unregister_memory(t[m->from], m->lent);
    for (int s = 0; s < 2; s++) {
        for (size_t i = 0; m->scribbled[s] && i < sizeof *m->request[s]; i++)
            assert_int_equal(((unsigned char *)m->request[s])[i], 0xEE); /* nobody else uses it */
        free(m->memory[s]);
        free(m->request[s]);
    }
}

static bool done(struct message *m, bool receiver)
{
    bool is = false;
    pl_status s = verbs->test(t[receiver ? 1 - m->from : m->from], m->request[receiver], &is);
    if (s < 0)
        print_message("%s\n", pl_error_text());
    assert_int_equal(s, PL_OK);
    for (size_t i = 0; is && receiver && i < m->bytes; i++)
        if (m->memory[1][i] != value(m, i))
            fail_msg("byte %zu of piece %u, step %llx", i, m->label.piece, (unsigned long long)m->label.step);
    return is;
}

static bool is_lost(int member)
{
    char why[256];
    bool is = verbs->lost(t[member], 1 - member, why, sizeof why);
    if (is)
        print_message("%s\n", why);
    return is;
}

/* Messages of a step in both directions, on all channels, lent and not. */
static void pass(uint64_t step)
{
    struct message m[12];
    for (uint32_t i = 0; i < 12; i++) {
        m[i] = make((int)(i % 2), step, i / 2, i % 5 ? 1000 * i : PL_MESSAGE_BYTES, i % 3 == 0 && i > 0);
        post(&m[i], false);
        post(&m[i], true);
    }
    settle();
    for (int i = 0; i < 12; i++) {
        assert_true(done(&m[i], false));
        assert_true(done(&m[i], true));
        drop(&m[i]);
    }
}

/* ---- tests ---------------------------------------------------------------------------------------------------- */

/* Half a message is with the device when it is forgotten and its memory is used for other things. The receiver, which
 * waits for it, loses nobody, and what comes behind arrives. */
static void half_sent(bool lend, int delivered)
{
    struct message m = make(0, 5, 0, PL_MESSAGE_BYTES - 100, lend), tail = make(0, 5, 2, 3 * PL_VERBS_PAYLOAD + 20, lend);
    post(&m, true);
    post(&tail, true);
    post(&tail, false); /* its last part is small, and so not lent */
    post(&m, false);
    while (delivered-- > 0)
        assert_true(deliver(pair[0][0]));
    verbs->forget(t[0], 1, 6);
    assert_false(m.request[0]->active || tail.request[0]->active);
    scribble(&m, false);
    scribble(&tail, false);
    settle();
    assert_false(is_lost(0) || is_lost(1));
    assert_false(done(&m, true) || done(&tail, true));
    pass(6);
    verbs->forget(t[1], 0, 6);
    assert_false(m.request[1]->active);
    scribble(&m, true);
    scribble(&tail, true);
    pass(7);
    drop(&m);
    drop(&tail);
}

static void test_half_sent(void **state)
{
    (void)state;
    half_sent(true, 0);
}

static void test_half_arrived(void **state)
{
    (void)state;
    half_sent(true, 2);
}

/* Of memory that is not lent all that was begun arrives as it was. */
static void test_bounced(void **state)
{
    (void)state;
    struct message m = make(0, 5, 0, 2 * PL_VERBS_PAYLOAD, false);
    post(&m, true);
    post(&m, false);
    verbs->forget(t[0], 1, 6);
    assert_false(m.request[0]->active);
    scribble(&m, false);
    settle();
    assert_true(done(&m, true));
    pass(6);
    drop(&m);
}

/* Memory that changes without a word of its owner is damage, found after a while. */
static void test_damage(void **state)
{
    (void)state;
    struct message m = make(0, 5, 0, 2 * PL_VERBS_PAYLOAD, true);
    char why[256];
    bool is;
    post(&m, true);
    post(&m, false);
    memset(m.memory[0], 0xEE, m.bytes);
    settle();
    assert_false(is_lost(1)); /* the word may still come */
    for (double end = pl_now_ms() + 30000; pl_now_ms() < end && !verbs->lost(t[1], 0, why, sizeof why);)
        verbs->progress(t[1], 20);
    assert_non_null(strstr(why, "a frame of rank 0 was damaged on its way (fake0 port 1, step 5"));
    assert_int_equal(verbs->test(t[1], m.request[1], &is), PL_ERR_PEER);
    verbs->forget(t[1], 0, 7);
    drop(&m);
}

/* Rings full of what nobody wants are emptied by forget, and what still comes does not fill them. */
static void test_stale(void **state)
{
    (void)state;
    for (uint64_t step = 2; step < 6; step++) {
        enum { STALE = 40 };
        struct message stale[STALE], fresh = make(0, 2 * step + 1, 0, 100000, step % 2);
        for (uint32_t i = 0; i < STALE; i++) {
            stale[i] = make(0, 2 * step, i, 50000 * (i % 3), step % 2 && i % 3);
            post(&stale[i], false);
        }
        post(&fresh, false);
        post(&fresh, true);
        settle();
        assert_false(done(&fresh, true));
        verbs->forget(t[1], 0, 2 * step + 1);
        settle();
        assert_true(done(&fresh, true));
        for (int i = 0; i < STALE; i++) {
            assert_true(done(&stale[i], false));
            drop(&stale[i]);
        }
        drop(&fresh);
    }
    pass(50);
}

static void refused(struct pl_label l, pl_status wanted)
{
    struct pl_request r = {.active = false};
    char byte = 0;
    assert_int_equal(verbs->post_send(t[0], 1, l, &byte, 0, &r), wanted);
    assert_int_equal(verbs->post_receive(t[0], 1, l, &byte, 0, &r), wanted);
    if (wanted < 0)
        assert_non_null(strstr(pl_error_text(), "are forgotten"));
}

static void test_bounds(void **state)
{
    (void)state;
    struct message at = make(1, 10, 0, 100, false), upper = make(1, TOP | 3, 0, 100, false), old = make(1, 9, 0, 100, false);
    post(&at, true);
    post(&upper, true);
    post(&old, true);
    verbs->forget(t[0], 1, 10);
    verbs->forget(t[0], 1, 5);
    assert_true(at.request[1]->active && upper.request[1]->active && !old.request[1]->active);
    refused((struct pl_label){9, 1, 1}, PL_ERR_USAGE);
    verbs->forget(t[0], 1, TOP | 3);
    assert_true(at.request[1]->active && upper.request[1]->active);
    refused((struct pl_label){TOP | 2, 1, 1}, PL_ERR_USAGE);
    static struct pl_request r[2];
    static unsigned char word[2][9] = {"control"};
    const struct pl_label control = {2, PL_CONTROL_BUCKET, 0};
    assert_int_equal(verbs->post_send(t[0], 1, control, word[0], 9, &r[0]), PL_OK);
    assert_int_equal(verbs->post_receive(t[1], 0, control, word[1], 9, &r[1]), PL_OK);
    post(&old, false);
    post(&at, false);
    post(&upper, false);
    settle();
    assert_true(done(&at, true) && done(&upper, true));
    assert_string_equal((char *)word[1], "control");
    verbs->forget(t[0], 1, TOP | 4);
    refused((struct pl_label){TOP | 3, 1, 1}, PL_ERR_USAGE);
    drop(&at);
    drop(&upper);
    drop(&old);
}

/* A peer that does not poll is not overrun by words of what is void, and gets them all. */
static void test_many_words(void **state)
{
    (void)state;
    struct message back[PL_VERBS_SLOTS];
    for (int i = 0; i < PL_VERBS_SLOTS; i++) { /* it gets credits too */
        back[i] = make(1, 500, 2 * (uint32_t)i, 10, false);
        post(&back[i], false);
    }
    deliver_all();
    for (uint64_t step = 0; step < 200; step++) {
        struct message m = make(0, step, 0, PL_VERBS_PAYLOAD, true);
        post(&m, false);
        verbs->forget(t[0], 1, step + 1);
        scribble(&m, false);
        deliver_all();
        verbs->progress(t[0], 0); /* member 1 sleeps */
        drop(&m);
    }
    for (int i = 0; i < PL_VERBS_SLOTS; i++) {
        post(&back[i], true);
        assert_true(done(&back[i], true));
    }
    deliver_all();
    assert_int_equal(overruns, 0);
    verbs->forget(t[1], 0, 200);
    settle();
    for (int i = 0; i < PL_VERBS_SLOTS; i++)
        drop(&back[i]);
    pass(200);
    for (uint64_t step = 201; step < 400; step++) { /* the device does nothing at all */
        struct message m = make(0, step, 0, PL_VERBS_PAYLOAD, false);
        post(&m, false);
        verbs->forget(t[0], 1, step + 1);
        drop(&m);
    }
    assert_true(pair[0][0]->most_posted <= (unsigned)pl_verbs_send_depth(PL_VERBS_SLOTS));
    settle();
    verbs->forget(t[1], 0, 400);
    pass(400);
}

/* Most rounds are given up at a moment of its own by each; the others are exchanged whole. */
static void test_random(void **state)
{
    (void)state;
    const char *seed = getenv("PL_TEST_SEED");
    struct pl_rng r = pl_rng_make(seed ? (uint64_t)atoi(seed) : 1, 2, 3, 4);
    int doubts = 0; /* polls that left one */
    chance = &r;
    for (uint64_t round = 0; round < 1500; round++) {
        enum { MOST = 10 };
        struct message m[MOST];
        bool keep = pl_rng_below(&r, 4) == 0 || round == 1499, forgot[2] = {false, false};
        uint64_t step = round | (pl_rng_below(&r, 3) == 0 ? TOP : 0);
        for (uint32_t i = 0; i < MOST; i++)
            m[i] = make((int)pl_rng_below(&r, 2), step, i, 1 + pl_rng_below(&r, pl_rng_below(&r, 4) ? 3000 : 200000), pl_rng_below(&r, 2));
        for (int i = 0; i < 2 * MOST; i++) {
            int one = keep ? i / 2 : (int)pl_rng_below(&r, MOST), receive = keep ? i % 2 : (int)pl_rng_below(&r, 2);
            int member = receive ? 1 - m[one].from : m[one].from;
            if (!forgot[member] && !m[one].request[receive]->active)
                post(&m[one], receive);
            int polled = (int)pl_rng_below(&r, 2);
            verbs->progress(t[polled], 0);
            doubts += t[polled]->doubts;
            if (!keep && pl_rng_below(&r, 12) == 0)
                forgot[member] = true, verbs->forget(t[member], 1 - member, step + 1);
            for (int k = 0; forgot[member] && k < MOST; k++) /* at once, while it is on its way */
                if (m[k].from == member)
                    memset(m[k].memory[0], 0xEE, m[k].bytes);
        }
        for (double end = pl_now_ms() + 20000; keep;) {
            bool all = true;
            for (int i = 0; i < MOST; i++)
                all = done(&m[i], false) && done(&m[i], true) && all;
            if (all)
                break;
            verbs->progress(t[pl_rng_below(&r, 2)], 0);
            assert_true(pl_now_ms() < end);
        }
        for (int s = 0; s < 2 && !keep; s++)
            verbs->forget(t[s], 1 - s, step + 1);
        for (int i = 0; i < MOST; i++)
            drop(&m[i]);
        assert_false(is_lost(0) || is_lost(1));
    }
    chance = NULL;
    settle();
    print_message("%d doubts\n", doubts);
    assert_true(doubts > 0);
    assert_int_equal(overruns, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_half_sent, open_both, close_both), cmocka_unit_test_setup_teardown(test_half_arrived, open_both, close_both),
        cmocka_unit_test_setup_teardown(test_bounced, open_both, close_both),   cmocka_unit_test_setup_teardown(test_damage, open_both, close_both),
        cmocka_unit_test_setup_teardown(test_stale, open_both, close_both),     cmocka_unit_test_setup_teardown(test_bounds, open_both, close_both),
        cmocka_unit_test_setup_teardown(test_many_words, open_both, close_both), cmocka_unit_test_setup_teardown(test_random, open_both, close_both),
    };
    const char *only = getenv("PL_TEST_ONLY");
    if (only)
        cmocka_set_test_filter(only);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
#endif
