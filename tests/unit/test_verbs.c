/* transport verbs: what needs no device everywhere; the rest where there is one (tests/rdma has one in a guest). */
#include "transport/transport.h"

#include "forks.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#ifndef PL_HAVE_VERBS

static void test_absent(void **state)
{
    (void)state;
    print_message("this build is without verbs\n");
    skip();
}
int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_absent)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else
#include "transport/verbs/verbs.h"

#include <linux/capability.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>

extern const struct pl_transport_table pl_transport_verbs;
static const struct pl_transport_table *const verbs = &pl_transport_verbs;

enum { PATIENCE_MS = 120000 }; /* emulated machines are slow */

/* ---- without a device ----------------------------------------------------------------------------- */

static void test_frame(void **state)
{
    (void)state;
    unsigned char payload[50000], copy[50000];
    for (size_t i = 0; i < sizeof payload; i++)
        payload[i] = (unsigned char)(i * 7);
    struct pl_verbs_frame f = {.kind = PL_VERBS_DATA, .label = {.step = 9, .bucket = 2, .piece = 3}, .total = 60000, .offset = 10000, .bytes = 50000, .sequence = 5};
    f.payload_crc = pl_crc32(0, payload, sizeof payload);
    pl_verbs_seal(&f);
    assert_null(pl_verbs_frame_wrong(&f, 5, 50064, PL_VERBS_PAYLOAD));
    assert_non_null(pl_verbs_frame_wrong(&f, 6, 50064, PL_VERBS_PAYLOAD));
    assert_non_null(pl_verbs_frame_wrong(&f, 5, 50063, PL_VERBS_PAYLOAD));
    assert_non_null(pl_verbs_frame_wrong(&f, 5, 50064, 49999));
    assert_non_null(pl_verbs_frame_wrong(&f, 5, 63, PL_VERBS_PAYLOAD));
    for (size_t bit = 0; bit < 8 * sizeof f; bit++) { /* any one flipped is noticed */
        struct pl_verbs_frame g = f;
        ((unsigned char *)&g)[bit / 8] ^= (unsigned char)(1 << bit % 8);
        assert_non_null(pl_verbs_frame_wrong(&g, 5, 50064, PL_VERBS_PAYLOAD));
    }
    assert_true(pl_verbs_copy_payload(&f, payload, copy));
    assert_memory_equal(payload, copy, sizeof copy);
    payload[49999] ^= 4;
    assert_false(pl_verbs_copy_payload(&f, payload, copy));
    f.offset = 20000; /* beyond the end of the message */
    pl_verbs_seal(&f);
    assert_non_null(pl_verbs_frame_wrong(&f, 5, 50064, PL_VERBS_PAYLOAD));
}

static void test_credit(void **state)
{
    (void)state;
    uint32_t acked = 0xfffffff8u;
    assert_true(pl_verbs_credit(4, 0xfffffffcu, &acked)); /* across the end of the counter */
    assert_int_equal(acked, 0xfffffffcu);
    assert_true(pl_verbs_credit(4, 4, &acked));
    assert_int_equal(acked, 4);
    assert_true(pl_verbs_credit(4, 2, &acked)); /* older than what is known */
    assert_int_equal(acked, 4);
    assert_false(pl_verbs_credit(4, 5, &acked)); /* never sent */
    for (uint32_t near = 0x3ffffff0u; near < 0x40000010u; near++)
        for (uint32_t ahead = 0; ahead < 17; ahead++) {
            uint32_t word = pl_verbs_immediate(PL_VERBS_NEWS_CREDIT, near + ahead);
            assert_int_equal(pl_verbs_immediate_news(word), PL_VERBS_NEWS_CREDIT);
            assert_int_equal(pl_verbs_immediate_count(word, near), near + ahead);
            assert_int_equal(pl_verbs_immediate_count(word, near + 2 * ahead), near + ahead); /* it lies behind */
        }
    assert_int_equal(pl_verbs_ring_slots(0), PL_VERBS_SLOTS);
    assert_int_equal(pl_verbs_ring_slots(14), PL_VERBS_SLOTS);
    assert_int_equal(pl_verbs_ring_slots(100000), PL_VERBS_FEWEST_SLOTS);
    assert_in_range(pl_verbs_ring_slots(500), PL_VERBS_FEWEST_SLOTS, PL_VERBS_SLOTS - 1);
}

static void test_choose_gid(void **state)
{
    (void)state;
    const struct pl_verbs_gid g[] = {
        {.raw = {0xfe, 0x80, [15] = 1}, .index = 0, .type = PL_VERBS_GID_ROCE1, .netdev = "eth0"},
        {.raw = {0xfe, 0x80, [15] = 1}, .index = 1, .type = PL_VERBS_GID_ROCE2, .netdev = "eth0"},
        {.raw = {[10] = 0xff, 0xff, 10, 1, 2, 3}, .index = 2, .type = PL_VERBS_GID_ROCE1, .netdev = "eth0"},
        {.raw = {0x20, 1, [15] = 9}, .index = 3, .type = PL_VERBS_GID_ROCE2, .netdev = "eth0"},
        {.raw = {[10] = 0xff, 0xff, 10, 1, 2, 3}, .index = 4, .type = PL_VERBS_GID_ROCE2, .netdev = "eth0"},
        {.raw = {[10] = 0xff, 0xff, 10, 7, 2, 3}, .index = 5, .type = PL_VERBS_GID_ROCE2, .netdev = "eth0.7"},
        {.raw = {[10] = 0xff, 0xff, 127, 0, 0, 1}, .index = 6, .type = PL_VERBS_GID_ROCE2, .netdev = "lo"},
    };
    const int n = sizeof g / sizeof *g;
    assert_int_equal(pl_verbs_choose_gid(g, n, NULL), 4);
    assert_int_equal(pl_verbs_choose_gid(g, 4, NULL), 3); /* IPv6 of v2 rather than v1 */
    assert_int_equal(pl_verbs_choose_gid(g, 2, NULL), 1);
    assert_int_equal(pl_verbs_choose_gid(g, 0, NULL), -1);
    assert_int_equal(pl_verbs_choose_gid(g, n, "eth0.7"), 5);
    assert_int_equal(pl_verbs_choose_gid(g, n, "10.7.0.0/16"), 5);
    assert_int_equal(pl_verbs_choose_gid(g, n, "10.0.0.0/8"), 4);
    assert_int_equal(pl_verbs_choose_gid(g, n, "10.1.2.3"), 4);
    assert_int_equal(pl_verbs_choose_gid(g, n, "2001::/16"), 3);
    assert_int_equal(pl_verbs_choose_gid(g, n, "fe80::/10"), 1);
    assert_int_equal(pl_verbs_choose_gid(g, n, "lo"), 6);
    assert_int_equal(pl_verbs_choose_gid(g, n, "10.1.2.4"), -1);
    assert_int_equal(pl_verbs_choose_gid(g, n, "10.0.0.0/99"), -1);
    assert_int_equal(pl_verbs_choose_gid(g, n, "eth1"), -1);
    assert_true(pl_verbs_gid_is_loopback(&g[6]));
    assert_false(pl_verbs_gid_is_loopback(&g[4]));
}

static void test_rails(void **state)
{
    (void)state;
    struct pl_verbs_port a[3] = {{.device = "m0", .infiniband = true}, {.device = "m1", .infiniband = true}, {.device = "m2", .infiniband = true}}, b[3];
    for (int i = 0; i < 3; i++)
        a[i].gid.raw[7] = (unsigned char)i; /* subnets */
    memcpy(b, a, sizeof b);
    const struct pl_verbs_port *all[] = {a, b, a};
    int rails[PL_VERBS_RAILS], rank[] = {4, 5, 6}, three[] = {3, 3, 3}, two[] = {3, 2, 3};
    char reason[320];
    assert_int_equal(pl_verbs_match_rails(all, three, rank, 3, rails, reason, sizeof reason), 3);
    assert_int_equal(pl_verbs_match_rails(all, two, rank, 3, rails, reason, sizeof reason), 2);
    b[0].gid.raw[7] = 9; /* another fabric */
    assert_int_equal(pl_verbs_match_rails(all, three, rank, 3, rails, reason, sizeof reason), 2);
    assert_int_equal(rails[0], 1);
    for (int i = 0; i < 3; i++)
        b[i].infiniband = false;
    assert_int_equal(pl_verbs_match_rails(all, three, rank, 3, rails, reason, sizeof reason), 0);
    assert_non_null(strstr(reason, "ranks 4 (m0 port 0, InfiniBand"));
}

/* 64 KB, as batch systems hand it on, and no right to go beyond. */
static void little_memlock(void)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct caps[2];
    const struct rlimit l = {65536, 65536};
    if (syscall(SYS_capget, &head, caps) != 0)
        abort();
    for (int i = 0; i < 2; i++)
        caps[i].effective &= ~(i == 0 ? 1u << CAP_IPC_LOCK : 0);
    if (setrlimit(RLIMIT_MEMLOCK, &l) != 0 || syscall(SYS_capset, &head, caps) != 0)
        abort();
}

static bool body_memlock(const struct pl_group *g, struct forks *f, void *arg)
{
    (void)g, (void)f, (void)arg;
    little_memlock();
    if (pl_verbs_may_pin(10000) != PL_OK || pl_verbs_may_pin(1 << 20) != PL_ERR_PEER)
        return false;
    return strstr(pl_error_text(), "1024 KB") && strstr(pl_error_text(), "is 64 KB\nulimit -l unlimited") != NULL;
}

static void test_memlock(void **state)
{
    (void)state;
    assert_int_equal(forks_run(1, body_memlock, NULL), 0);
}

static bool probe(const char *interface, bool named, int nodes, char reason[256])
{
    const struct pl_world w = {.ranks = 2, .nodes = nodes};
    const struct pl_transport_options o = {.channels = 2, .interface = interface, .timeout_ms = 1000};
    reason[0] = '\0';
    return verbs->probe(&w, &o, named, reason, 256);
}

static void test_probe(void **state)
{
    (void)state;
    char reason[256], again[256];
    bool there = probe(NULL, true, 1, reason);
    print_message("probe: %s, %s\n", there ? "yes" : "no", reason);
    assert_string_not_equal(reason, "");
    assert_false(probe("nowhere7", true, 1, again));
    assert_string_not_equal(again, "");
    assert_null(pl_error_text());
    if (!there)
        return;
    assert_non_null(strstr(reason, "B MTU"));
    assert_non_null(strstr(again, "no RDMA port has nowhere7: there is"));
    assert_false(probe(NULL, false, 1, again)); /* shared memory is better */
}

/* ---- with one --------------------------------------------------------------------------------------- */

static char device[128]; /* the one that tests use; "" where there is none */

static bool needs_device(void)
{
    char reason[256];
    if (device[0])
        return true;
    probe(NULL, true, 1, reason);
    print_message("skipped: %s\n", reason);
    return false;
}
#define NEEDS_DEVICE()       \
    do {                     \
        (void)state;         \
        if (!needs_device()) \
            skip();          \
    } while (0)

static struct pl_transport *open_with(const struct pl_group *g, int channels, double timeout_ms, pl_status *s)
{
    const struct pl_transport_options o = {.channels = channels, .timeout_ms = timeout_ms};
    struct pl_transport *t = NULL;
    char how[256] = "";
    *s = verbs->open(g, &o, &t, how, sizeof how);
    return *s == PL_OK && strstr(how, "channel") ? t : NULL;
}

static struct pl_transport *open_plain(const struct pl_group *g)
{
    pl_status s;
    return open_with(g, 2, 60000, &s);
}

/* Until it is done, or patience is over; how it ended. */
static pl_status ended(struct pl_transport *t, struct pl_request *r)
{
    for (double end = pl_now_ms() + PATIENCE_MS; pl_now_ms() < end;) {
        bool done = false;
        pl_status s = verbs->test(t, r, &done);
        if (s < 0 || done)
            return s;
        PL_TRY(verbs->progress(t, 5));
    }
    return PL_ERR_USAGE;
}

static unsigned char value(int from, struct pl_label l, size_t i) { return (unsigned char)(from * 31 + (int)l.bucket * 7 + (int)l.piece * 3 + (int)(i * 13 + i / 251)); }

static void fill(unsigned char *p, size_t n, int from, struct pl_label l)
{
    for (size_t i = 0; i < n; i++)
        p[i] = value(from, l, i);
}

static bool right(const unsigned char *p, size_t n, int from, struct pl_label l)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] != value(from, l, i)) {
            fprintf(stderr, "byte %zu of bucket %d piece %u: %d, not %d\n", i, (int)l.bucket, l.piece, p[i], value(from, l, i));
            return false;
        }
    return true;
}

static const size_t sizes[] = {0, 1, 100, 156, 157, 4096, 65535, 65536, 65537, 300000, PL_MESSAGE_BYTES};
enum { SIZES = sizeof sizes / sizeof *sizes };

/* All sizes to all others and from them at once; the receives in the other order. */
static bool everything_once(struct pl_transport *t, const struct pl_group *g, unsigned char *memory, uint64_t step)
{
    static struct pl_request send[FORKS_MOST][SIZES], receive[FORKS_MOST][SIZES];
    unsigned char *at = memory;
    for (int m = 0; m < g->members; m++)
        for (int i = 0; m != g->me && i < SIZES; i++) {
            struct pl_label l = {step, 5, (uint32_t)i};
            fill(at, sizes[i], g->me, l);
            if (verbs->post_send(t, m, l, at, sizes[i], &send[m][i]) < 0)
                return false;
            at += sizes[i];
        }
    unsigned char *incoming = at;
    for (int m = 0; m < g->members; m++)
        for (int i = SIZES - 1; m != g->me && i >= 0; i--) {
            if (verbs->post_receive(t, m, (struct pl_label){step, 5, (uint32_t)i}, at, sizes[i], &receive[m][i]) < 0)
                return false;
            at += sizes[i];
        }
    at = incoming;
    for (int m = 0; m < g->members; m++)
        for (int i = SIZES - 1; m != g->me && i >= 0; i--) {
            if (ended(t, &receive[m][i]) < 0 || !right(at, sizes[i], m, (struct pl_label){step, 5, (uint32_t)i}))
                return false;
            at += sizes[i];
        }
    for (int m = 0; m < g->members; m++)
        for (int i = 0; m != g->me && i < SIZES; i++)
            if (ended(t, &send[m][i]) < 0)
                return false;
    return true;
}

static bool body_everything(const struct pl_group *g, struct forks *f, void *arg)
{
    (void)f, (void)arg;
    size_t bytes = 0;
    for (int i = 0; i < SIZES; i++)
        bytes += 2 * sizes[i] * (size_t)(g->members - 1);
    unsigned char *memory = pl_alloc(bytes + 64, "messages");
    struct pl_transport *t = open_plain(g);
    struct pl_memory *m;
    if (!memory || !t || !everything_once(t, g, memory, 1) || verbs->register_memory(t, memory, bytes, &m) < 0)
        return false;
    uint64_t allocations = pl_alloc_count();
    double start = pl_now_ms();
    if (!everything_once(t, g, memory, 2) || pl_alloc_count() != allocations)
        return false;
    if (g->me == 0)
        print_message("%d members: %.1f MB each way at %.1f MB/s\n", g->members, (double)bytes / 2e6, (double)bytes / 2e3 / (pl_now_ms() - start));
    verbs->unregister_memory(t, m);
    if (!everything_once(t, g, memory, 3))
        return false;
    verbs->close(t, false);
    pl_free(memory);
    return true;
}

static void test_two(void **state)
{
    NEEDS_DEVICE();
    assert_int_equal(forks_run(2, body_everything, NULL), 0);
}

static void test_three(void **state)
{
    NEEDS_DEVICE();
    assert_int_equal(forks_run(3, body_everything, NULL), 0);
}

static bool body_alone(const struct pl_group *g, struct forks *f, void *arg)
{
    (void)f, (void)arg;
    struct pl_transport *t = open_plain(g);
    bool well = t && verbs->progress(t, 5) == PL_OK;
    verbs->close(t, false);
    return well;
}

static void test_alone(void **state)
{
    NEEDS_DEVICE();
    assert_int_equal(forks_run(1, body_alone, NULL), 0);
}

/* Many messages the one way, more than a ring holds, for which receives come late and in blocks. */
static bool body_held(const struct pl_group *g, struct forks *f, void *arg)
{
    (void)f, (void)arg;
    enum { MESSAGES = 60, BYTES = 20000 };
    static struct pl_request r[MESSAGES];
    static unsigned char memory[MESSAGES][BYTES];
    struct pl_transport *t = open_plain(g);
    struct pl_request c;
    char word[16] = "through";
    const struct pl_label control = {3, PL_CONTROL_BUCKET, 0};
    if (!t)
        return false;
    if (g->me == 0) {
        for (uint32_t i = 0; i < MESSAGES; i++) {
            fill(memory[i], BYTES, 0, (struct pl_label){3, i, 0});
            if (verbs->post_send(t, 1, (struct pl_label){3, i, 0}, memory[i], BYTES, &r[i]) < 0)
                return false;
        }
        for (double end = pl_now_ms() + 1000; pl_now_ms() < end;) /* as many go out as are let out */
            verbs->progress(t, 10);
        if (verbs->post_send(t, 1, control, word, sizeof word, &c) < 0 || ended(t, &c) < 0)
            return false;
    } else {
        word[0] = '\0';
        if (verbs->post_receive(t, 0, control, word, sizeof word, &c) < 0 || ended(t, &c) < 0 || strcmp(word, "through") != 0)
            return false; /* it passed what is held up */
        for (uint32_t i = 0; i < MESSAGES; i++)
            if (verbs->post_receive(t, 0, (struct pl_label){3, i, 0}, memory[i], BYTES, &r[i]) < 0)
                return false;
    }
    for (uint32_t i = 0; i < MESSAGES; i++)
        if (ended(t, &r[i]) < 0 || !right(memory[i], BYTES, 0, (struct pl_label){3, i, 0}))
            return false;
    verbs->close(t, false);
    return true;
}

static void test_held(void **state)
{
    NEEDS_DEVICE();
    assert_int_equal(forks_run(2, body_held, NULL), 0);
}

/* Control messages wait for their receives in any order, as many as there may be, and more of them hold up nobody
 * but themselves. */
static bool body_control(const struct pl_group *g, struct forks *f, void *arg)
{
    (void)f, (void)arg;
    enum { MESSAGES = PL_VERBS_STORED + PL_VERBS_SLOTS + 9 };
    static struct pl_request r[MESSAGES], d;
    static unsigned char memory[MESSAGES][PL_CONTROL_BYTES], data[1000];
    struct pl_transport *t = open_plain(g);
    const struct pl_label last = {8, 1, 1};
    if (!t)
        return false;
    for (uint32_t i = 0; g->me == 0 && i < MESSAGES; i++) {
        struct pl_label l = {4, PL_CONTROL_BUCKET, i};
        fill(memory[i], PL_CONTROL_BYTES - i, 0, l);
        if (verbs->post_send(t, 1, l, memory[i], PL_CONTROL_BYTES - i, &r[i]) < 0)
            return false;
    }
    if (g->me == 0 ? verbs->post_send(t, 1, last, data, sizeof data, &d) < 0 : verbs->post_receive(t, 0, last, data, sizeof data, &d) < 0)
        return false;
    if (ended(t, &d) < 0)
        return false;
    for (uint32_t i = 0; g->me == 1 && i < MESSAGES; i++) { /* those that are held up must not be waited for first */
        uint32_t k = i < PL_VERBS_STORED ? PL_VERBS_STORED - 1 - i : i;
        struct pl_label l = {4, PL_CONTROL_BUCKET, k};
        if (verbs->post_receive(t, 0, l, memory[k], PL_CONTROL_BYTES - k, &r[k]) < 0 || ended(t, &r[k]) < 0 ||
            !right(memory[k], PL_CONTROL_BYTES - k, 0, l))
            return false;
    }
    for (uint32_t i = 0; g->me == 0 && i < MESSAGES; i++)
        if (ended(t, &r[i]) < 0)
            return false;
    verbs->close(t, false);
    return true;
}

static void test_control(void **state)
{
    NEEDS_DEVICE();
    assert_int_equal(forks_run(2, body_control, NULL), 0);
}

static void *wake_soon(void *arg)
{
    pl_sleep_ms(300);
    verbs->wake(arg);
    return NULL;
}

/* Rank 1 sleeps until a message comes, again and again; the time of a sleep is long beside what a message takes. */
static bool sleeps_until_message(struct pl_transport *t, int me)
{
    enum { TIMES = 4, SLEEP_MS = 30000 };
    double start = pl_now_ms();
    for (int i = 1; i <= TIMES; i++) {
        const struct pl_label l = {(uint64_t)i, 2, 3};
        struct pl_request r;
        int word = me == 0 ? i : 0;
        if (me == 0) {
            pl_sleep_ms(300);
            if (verbs->post_send(t, 1, l, &word, sizeof word, &r) < 0 || ended(t, &r) < 0)
                return false;
        } else {
            bool done = false;
            if (verbs->post_receive(t, 0, l, &word, sizeof word, &r) < 0)
                return false;
            for (int rounds = 0; !done; rounds++)
                if (verbs->progress(t, SLEEP_MS) < 0 || verbs->test(t, &r, &done) < 0 || rounds > 20) /* it does not spin */
                    return false;
            if (word != i)
                return false;
        }
    }
    return pl_now_ms() - start < SLEEP_MS;
}

/* progress sleeps until it is woken, and until a message comes. */
static bool body_wake(const struct pl_group *g, struct forks *f, void *arg)
{
    (void)f, (void)arg;
    pl_status s;
    struct pl_transport *t = open_with(g, 2, 600000, &s);
    pthread_t thread;
    if (!t)
        return false;
    verbs->progress(t, 0);
    if (pl_thread_start(&thread, "wake", wake_soon, t) < 0)
        return false;
    double start = pl_now_ms();
    verbs->progress(t, 30000);
    double slept = pl_now_ms() - start;
    pthread_join(thread, NULL);
    bool well = slept > 250 && slept < 30000 && sleeps_until_message(t, g->me);
    verbs->close(t, false);
    return well;
}

static void test_wake(void **state)
{
    NEEDS_DEVICE();
    assert_int_equal(forks_run(2, body_wake, NULL), 0);
}

/* Whoever sends and closes at once still gets it through; afterwards the other is told that nobody is there. */
static bool body_close(const struct pl_group *g, struct forks *f, void *arg)
{
    (void)arg;
    static unsigned char memory[PL_MESSAGE_BYTES];
    struct pl_transport *t = open_plain(g);
    struct pl_request r, more, forgotten;
    const struct pl_label l = {6, 0, 0}, never = {7, 0, 0};
    bool well = t != NULL;
    if (!well)
        return false;
    if (g->me == 0) {
        fill(memory, sizeof memory, 0, l);
        well = verbs->post_send(t, 1, l, memory, sizeof memory, &r) == PL_OK;
        well &= verbs->post_receive(t, 1, never, &forgotten, 4, &forgotten) == PL_OK;
        verbs->close(t, false);
        forks_barrier(f);
        return well;
    }
    pl_sleep_ms(300);
    well = verbs->post_receive(t, 0, l, memory, sizeof memory, &r) == PL_OK && ended(t, &r) == PL_OK && right(memory, sizeof memory, 0, l);
    well &= verbs->post_receive(t, 0, never, memory, 4, &more) == PL_OK && ended(t, &more) == PL_ERR_PEER;
    well &= pl_error_text() && strstr(pl_error_text(), "rank 0 has closed its connections") != NULL;
    verbs->close(t, true);
    forks_barrier(f);
    return well;
}

static void test_close(void **state)
{
    NEEDS_DEVICE();
    assert_int_equal(forks_run(2, body_close, NULL), 0);
}

/* ---- what goes wrong ---------------------------------------------------------------------------------- */

static bool said(const char *text)
{
    if (pl_error_text() && strstr(pl_error_text(), text))
        return true;
    fprintf(stderr, "wanted: %s; got: %s\n", text, pl_error_text() ? pl_error_text() : "no message");
    return false;
}

static bool body_secret(const struct pl_group *g, struct forks *f, void *arg)
{
    (void)f, (void)arg;
    pl_status s;
    pl_fault_configure("verbs.secret@rank=1:fail", g->me);
    return !open_with(g, 2, 60000, &s) && s == PL_ERR_PEER && said("does not know the secret of this run");
}

static void test_secret(void **state)
{
    NEEDS_DEVICE();
    assert_int_equal(forks_run(3, body_secret, NULL), 0);
}

static bool body_silent(const struct pl_group *g, struct forks *f, void *arg)
{
    (void)f, (void)arg;
    pl_status s;
    pl_fault_configure("verbs.secret@rank=1:delay=9000", g->me); /* its hand-shake comes late */
    return !open_with(g, 1, 3000, &s) && s == PL_ERR_PEER && said("no hand-shake within 3000 ms from rank 1");
}

static void test_silent(void **state)
{
    NEEDS_DEVICE();
    assert_int_equal(forks_run(2, body_silent, NULL), 0);
}

static bool body_interface(const struct pl_group *g, struct forks *f, void *arg)
{
    (void)f;
    const struct pl_transport_options o = {.channels = 1, .interface = g->me == 1 ? "nowhere7" : arg, .timeout_ms = 60000};
    struct pl_transport *t = NULL;
    char how[256];
    pl_status s = verbs->open(g, &o, &t, how, sizeof how);
    return !t && s == PL_ERR_PEER && said(g->me == 1 ? "transport verbs: no RDMA port has nowhere7" : "rank 1: no RDMA port has nowhere7");
}

static void test_interface(void **state)
{
    NEEDS_DEVICE();
    char reason[256], name[80], port[96];
    snprintf(name, sizeof name, "%.79s", device);
    *strchr(name, ' ') = '\0';
    snprintf(port, sizeof port, "%s:1", name);
    assert_true(probe(name, true, 1, reason));
    assert_true(probe(port, true, 1, reason));
    if (strcmp(name, "rxe0") == 0) { /* that of the guest */
        assert_true(probe("lo", true, 1, reason));
        assert_true(probe("127.0.0.1", true, 1, reason));
        assert_true(probe("127.0.0.0/8", true, 1, reason));
        assert_false(probe("10.0.0.0/8", true, 1, reason));
        assert_false(probe(NULL, true, 2, reason)); /* two nodes: not by the loopback */
        assert_non_null(strstr(reason, "serves this node alone"));
    }
    assert_int_equal(forks_run(2, body_interface, name), 0);
}

static bool body_memlock_open(const struct pl_group *g, struct forks *f, void *arg)
{
    (void)f, (void)arg;
    pl_status s;
    if (g->me == 1)
        little_memlock();
    return !open_with(g, 2, 60000, &s) && s == PL_ERR_PEER && said(g->me == 1 ? "the limit on locked memory" : "rank 1: ") && said("ulimit -l unlimited");
}

static void test_memlock_open(void **state)
{
    NEEDS_DEVICE();
    assert_int_equal(forks_run(2, body_memlock_open, NULL), 0);
}

/* Rank 0 damages a frame for rank 1; what rank 2 has to do with either goes on. */
static bool body_corrupt(const struct pl_group *g, struct forks *f, void *arg)
{
    (void)f;
    static unsigned char out[3][70000], in[3][70000];
    struct pl_request send[3], receive[3];
    struct pl_transport *t = open_plain(g);
    struct pl_memory *m = NULL;
    bool well = t != NULL;
    if (!well || (arg && verbs->register_memory(t, out, sizeof out, &m) < 0))
        return false;
    pl_fault_configure("verbs.corrupt@rank=0@step=7@count=1:fail", g->me);
    for (int p = 0; p < 3; p++) {
        const struct pl_label l = {(uint64_t)(7 + (g->me + p != 1)), 1, 1}; /* step 7 between 0 and 1 */
        if (p == g->me)
            continue;
        fill(out[p], sizeof out[p], g->me, l);
        well &= verbs->post_receive(t, p, l, in[p], sizeof in[p], &receive[p]) == PL_OK;
        well &= verbs->post_send(t, p, l, out[p], sizeof out[p], &send[p]) == PL_OK;
    }
    for (int p = 0; p < 3; p++) {
        const struct pl_label l = {(uint64_t)(7 + (g->me + p != 1)), 1, 1};
        if (p == g->me)
            continue;
        pl_status s = ended(t, &receive[p]), sent = ended(t, &send[p]);
        if (g->me == 1 && p == 0)
            well &= s == PL_ERR_PEER && said("a frame of rank 0 was damaged on its way");
        else if (g->me + p != 1)
            well &= s == PL_OK && sent == PL_OK && right(in[p], sizeof in[p], p, l);
    }
    if (g->me == 1) /* later ones too */
        well &= verbs->post_send(t, 0, (struct pl_label){9, 1, 1}, out[0], 10, &send[0]) == PL_ERR_PEER;
    verbs->close(t, false);
    return well;
}

static void test_corrupt(void **state)
{
    NEEDS_DEVICE();
    assert_int_equal(forks_run(3, body_corrupt, NULL), 0);
    assert_int_equal(forks_run(3, body_corrupt, "registered"), 0);
}

/* Rank 2 is killed: rank 0 sends to it, rank 1 only waits for it; both are told, and go on among themselves. */
static bool body_killed(const struct pl_group *g, struct forks *f, void *arg)
{
    (void)arg;
    static unsigned char memory[70000], other[70000];
    struct pl_request r, between;
    pl_status s;
    struct pl_transport *t = open_with(g, 2, 12000, &s);
    const struct pl_label l = {1, 1, 1};
    bool well = t != NULL;
    forks_barrier(f);
    if (g->me == 2)
        kill(getpid(), SIGKILL);
    if (!well)
        return false;
    pl_sleep_ms(500);
    double start = pl_now_ms();
    well &= (g->me == 0 ? verbs->post_send(t, 2, l, memory, sizeof memory, &r) : verbs->post_receive(t, 2, l, memory, sizeof memory, &r)) == PL_OK;
    well &= ended(t, &r) == PL_ERR_PEER && said("lost rank 2 (") && said("port 1): transport retry counter exceeded");
    print_message("rank %d: %s, after %.1f s of 12\n", g->me, pl_error_text() ? pl_error_text() : "-", (pl_now_ms() - start) / 1e3);
    well &= verbs->post_receive(t, 2, l, memory, sizeof memory, &r) == PL_ERR_PEER;
    if (g->me == 0)
        fill(other, sizeof other, 0, l);
    well &= (g->me == 0 ? verbs->post_send(t, 1, l, other, sizeof other, &between) : verbs->post_receive(t, 0, l, other, sizeof other, &between)) == PL_OK;
    well &= ended(t, &between) == PL_OK && right(other, sizeof other, 0, l);
    verbs->close(t, true);
    return well;
}

static void test_killed(void **state)
{
    NEEDS_DEVICE();
    assert_int_equal(forks_run(3, body_killed, NULL), 1); /* the one that was killed */
}

/* Both sides must mean the same by a label. */
static bool body_lengths(const struct pl_group *g, struct forks *f, void *arg)
{
    (void)f, (void)arg;
    static unsigned char memory[5000];
    struct pl_request r;
    struct pl_transport *t = open_plain(g);
    const struct pl_label l = {2, 1, 1};
    bool well = t != NULL;
    if (well && g->me == 0)
        well = verbs->post_send(t, 1, l, memory, 4000, &r) == PL_OK && ended(t, &r) == PL_OK;
    if (well && g->me == 1)
        well = verbs->post_receive(t, 0, l, memory, 5000, &r) == PL_OK && ended(t, &r) == PL_ERR_PEER && said("rank 0 sent 4000 bytes from byte 0 of step 2");
    verbs->close(t, false);
    return well;
}

static void test_lengths(void **state)
{
    NEEDS_DEVICE();
    assert_int_equal(forks_run(2, body_lengths, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_frame),
        cmocka_unit_test(test_credit),
        cmocka_unit_test(test_choose_gid),
        cmocka_unit_test(test_rails),
        cmocka_unit_test(test_memlock),
        cmocka_unit_test(test_probe),
        cmocka_unit_test(test_alone),
        cmocka_unit_test(test_two),
        cmocka_unit_test(test_three),
        cmocka_unit_test(test_held),
        cmocka_unit_test(test_control),
        cmocka_unit_test(test_wake),
        cmocka_unit_test(test_close),
        cmocka_unit_test(test_secret),
        cmocka_unit_test(test_silent),
        cmocka_unit_test(test_interface),
        cmocka_unit_test(test_memlock_open),
        cmocka_unit_test(test_corrupt),
        cmocka_unit_test(test_killed),
        cmocka_unit_test(test_lengths),
    };
    char reason[256];
    if (probe(NULL, true, 1, reason))
        snprintf(device, sizeof device, "%.127s", reason);
    const char *only = getenv("PL_TEST_ONLY");
    if (only)
        cmocka_set_test_filter(only);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
#endif
