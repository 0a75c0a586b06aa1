/* The tcp transport among forked processes on this host: messages in any order over any number of channels arrive
 * as they were sent, once; whoever is lost, damaged or a stranger is named and disturbs nobody else. */
#include "tcp_group.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <cmocka.h>

#ifndef PL_HAVE_CRYPTO
int main(void)
{
    printf("skipped: this build has no libcrypto, so no tcp\n");
    return 77;
}
#else

/* ---- random messages ------------------------------------------------------------------------------- */

struct traffic { int channels, messages, rounds; unsigned seed; bool large; };
struct message { int peer; struct pl_label label; bool out; size_t bytes; unsigned char *memory; struct pl_request request; };

static uint64_t mix(uint64_t a, uint64_t b) { return pl_hash_words(pl_hash_words(PL_HASH_START, &a, 8), &b, 8); }

static size_t size_of(int from, int to, struct pl_label l, bool large)
{
    uint64_t h = mix(mix((uint64_t)from * 64 + (uint64_t)to, l.step), (uint64_t)l.bucket << 32 | l.piece);
    if (l.bucket == PL_CONTROL_BUCKET)
        return h % (PL_CONTROL_BYTES + 1);
    switch (h >> 20 & 7) {
    case 0: return 0;
    case 1: return large ? PL_MESSAGE_BYTES : 1;
    case 2: case 3: return h % (large ? PL_MESSAGE_BYTES : 70000);
    default: return h % 5000;
    }
}

static int make_messages(const struct pl_group *g, const struct traffic *tr, int round, struct message *m)
{
    int n = 0;
    for (int peer = 0; peer < g->members; peer++)
        for (int i = 0; peer != g->me && i < 2 * tr->messages; i++) {
            bool out = i % 2, control = i / 2 % 7 == 3;
            struct pl_label l = {(uint64_t)round, control ? PL_CONTROL_BUCKET : (uint32_t)(i / 2 % 3), (uint32_t)(i / 2)};
            size_t bytes = out ? size_of(g->me, peer, l, tr->large) : size_of(peer, g->me, l, tr->large);
            m[n] = (struct message){.peer = peer, .label = l, .out = out, .bytes = bytes, .memory = malloc(bytes + 8)};
            memset(m[n].memory, 0xAA, bytes + 8);
            if (out)
                fill(m[n].memory, bytes, g->me, peer, l);
            n++;
        }
    return n;
}

static void shuffle(struct message *m, int n, struct pl_rng *r)
{
    for (int i = n - 1; i > 0; i--) {
        int k = (int)pl_rng_below(r, (uint64_t)i + 1);
        struct message keep = m[i];
        m[i] = m[k];
        m[k] = keep;
    }
}

static bool post(struct pl_transport *t, struct message *m)
{
    pl_status s = m->out ? TCP.post_send(t, m->peer, m->label, m->memory, m->bytes, &m->request)
                         : TCP.post_receive(t, m->peer, m->label, m->memory, m->bytes, &m->request);
    return s == PL_OK && m->request.active;
}

static bool check_message(const struct pl_group *g, const struct message *m)
{
    unsigned char *wanted = malloc(m->bytes + 8);
    memset(wanted, 0xAA, m->bytes + 8);
    if (m->out)
        fill(wanted, m->bytes, g->me, m->peer, m->label);
    else
        fill(wanted, m->bytes, m->peer, g->me, m->label);
    bool same = memcmp(wanted, m->memory, m->bytes + 8) == 0;
    if (!same)
        fprintf(stderr, "from %d to %d, piece %u of %zu bytes differs\n",
                m->out ? g->me : m->peer, m->out ? m->peer : g->me, m->label.piece, m->bytes);
    free(wanted);
    return same;
}

static bool one_round(const struct pl_group *g, struct pl_transport *t, const struct traffic *tr, int round, struct message *m)
{
    struct pl_rng r = pl_rng_make(tr->seed, (uint64_t)g->me, (uint64_t)round, 5);
    int n = make_messages(g, tr, round, m);
    bool right = true;
    shuffle(m, n, &r);
    for (int i = 0; i < n; i++) {
        right = post(t, &m[i]) && right;
        if (pl_rng_below(&r, 4) == 0)
            right = TCP.progress(t, 0) == PL_OK && right;
    }
    for (int i = 0; right && i < n; i++)
        right = finish(t, &m[i].request) == PL_OK && !m[i].request.active && check_message(g, &m[i]);
    for (int i = 0; right && i < n; i++)
        free(m[i].memory);
    return right;
}

static bool exchange_messages(const struct pl_group *g, struct forks *f, void *arg)
{
    const struct traffic *tr = arg;
    struct pl_transport *t;
    struct message *m = malloc((size_t)g->members * 2 * (size_t)tr->messages * sizeof *m);
    bool right = open_group(g, tr->channels, 20000, &t);
    for (int round = 0; right && round < tr->rounds; round++)
        right = one_round(g, t, tr, round, m);
    if (right)
        forks_barrier(f);
    TCP.close(t, false);
    free(m);
    return right;
}

static void messages_arrive(void **state)
{
    (void)state;
    const char *seed = getenv("PL_TEST_SEED");
    for (int members = 2; members <= 5; members++)
        for (int channels = 1; channels <= 4; channels *= 2) {
            struct traffic tr = {channels, members == 2 ? 40 : 15, 3, seed ? (unsigned)atoi(seed) : 7, members < 4};
            assert_int_equal(forks_run(members, exchange_messages, &tr), 0);
        }
}

/* ---- order ------------------------------------------------------------------------------------------ */

static bool control_overtakes(const struct pl_group *g, struct forks *f, void *arg)
{
    (void)arg;
    struct pl_transport *t;
    static unsigned char big[6][PL_MESSAGE_BYTES];
    struct pl_request data[6], word;
    const struct pl_label control = {9, PL_CONTROL_BUCKET, 1};
    uint32_t value = g->me == 0 ? 4711 : 0;
    bool right = open_group(g, 2, 20000, &t);
    if (right && g->me == 0) {
        for (uint32_t i = 0; i < 6; i++)
            right = TCP.post_send(t, 1, (struct pl_label){1, 0, i}, big[i], sizeof big[i], &data[i]) == PL_OK && right;
        right = right && TCP.post_send(t, 1, control, &value, sizeof value, &word) == PL_OK && finish(t, &word) == PL_OK;
    } else if (right) {
        for (double end = pl_now_ms() + 300; pl_now_ms() < end;) /* the data parks; the control message arrives without its receive */
            TCP.progress(t, 10);
        right = TCP.post_receive(t, 0, control, &value, sizeof value, &word) == PL_OK && finish(t, &word) == PL_OK && value == 4711;
        for (uint32_t i = 0; i < 6; i++)
            right = TCP.post_receive(t, 0, (struct pl_label){1, 0, i}, big[i], sizeof big[i], &data[i]) == PL_OK && right;
    }
    for (int i = 0; right && i < 6; i++)
        right = finish(t, &data[i]) == PL_OK;
    if (right)
        forks_barrier(f);
    TCP.close(t, false);
    return right;
}

static void control_messages_overtake(void **state)
{
    (void)state;
    assert_int_equal(forks_run(2, control_overtakes, NULL), 0);
}

/* More control messages than are kept: the rest waits, and nothing is lost. */
static bool many_notes(const struct pl_group *g, struct forks *f, void *arg)
{
    (void)arg;
    enum { N = 3 * PL_TCP_NOTES };
    struct pl_transport *t;
    static uint32_t value[N];
    static struct pl_request r[N];
    bool right = open_group(g, 1, 20000, &t);
    uint64_t before = pl_alloc_count();
    for (uint32_t i = 0; right && i < N; i++) {
        const struct pl_label l = {i, PL_CONTROL_BUCKET, 0};
        value[i] = g->me == 0 ? i * 3 : 0;
        if (g->me == 0)
            right = TCP.post_send(t, 1, l, &value[i], sizeof value[i], &r[i]) == PL_OK;
    }
    if (g->me == 1)
        for (double end = pl_now_ms() + 200; pl_now_ms() < end;)
            TCP.progress(t, 10);
    right = right && pl_alloc_count() - before <= PL_TCP_NOTES;
    for (uint32_t i = 0; right && i < N; i++) {
        if (g->me == 1)
            right = TCP.post_receive(t, 0, (struct pl_label){i, PL_CONTROL_BUCKET, 0}, &value[i], sizeof value[i], &r[i]) == PL_OK;
        right = right && finish(t, &r[i]) == PL_OK && value[i] == i * 3;
    }
    if (right)
        forks_barrier(f);
    TCP.close(t, false);
    return right;
}

static void control_messages_wait(void **state)
{
    (void)state;
    assert_int_equal(forks_run(2, many_notes, NULL), 0);
}

static void *wake_later(void *arg)
{
    pl_sleep_ms(100);
    TCP.wake(arg);
    return NULL;
}

static bool woken(const struct pl_group *g, struct forks *f, void *arg)
{
    (void)arg;
    struct pl_transport *t;
    pthread_t thread;
    bool right = open_group(g, 1, 20000, &t) && pl_thread_start(&thread, "waker", wake_later, t) == PL_OK;
    if (right) {
        for (int i = 0; i < 3; i++)
            TCP.progress(t, 0);
        TCP.progress(t, 0); /* a wake between polls and a sleep is not forgotten */
        double begun = pl_now_ms();
        TCP.progress(t, 20000);
        TCP.progress(t, 0);
        right = pl_now_ms() - begun < 10000;
        pthread_join(thread, NULL);
        TCP.wake(t);
        TCP.progress(t, 0);
        begun = pl_now_ms();
        TCP.progress(t, 20000);
        right = right && pl_now_ms() - begun < 10000;
        begun = pl_now_ms();
        TCP.progress(t, 30);
        right = right && pl_now_ms() - begun > 25;
        forks_barrier(f);
    }
    TCP.close(t, false);
    return right;
}

static void wake_ends_a_wait(void **state)
{
    (void)state;
    assert_int_equal(forks_run(2, woken, NULL), 0);
}

static bool alone(const struct pl_group *g, struct forks *f, void *arg)
{
    (void)arg, (void)f;
    struct pl_transport *t;
    struct pl_request r;
    bool right = open_group(g, 1, 1000, &t) && TCP.progress(t, 1) == PL_OK;
    right = right && TCP.post_send(t, 0, (struct pl_label){0}, "", 1, &r) == PL_ERR_USAGE;
    TCP.close(t, false);
    return right;
}

static void a_group_of_one(void **state)
{
    (void)state;
    struct forks f = {.members = 1};
    struct forks_arg a = {&f, 0};
    const struct pl_group g = {.members = 1, .rank = forks_rank, .one_node = true, .allgather = forks_allgather, .arg = &a};
    assert_true(alone(&g, &f, NULL)); /* in this process, so that a leak is seen */
    pl_error_clear();
}

/* ---- the loss of a peer ------------------------------------------------------------------------------ */

/* Member 2 kills itself in mid-transfer; 0 and 1 go on with each other. */
static bool killed(const struct pl_group *g, struct forks *f, void *arg)
{
    (void)f, (void)arg;
    struct pl_transport *t;
    static unsigned char big[4][PL_MESSAGE_BYTES], other[4][PL_MESSAGE_BYTES];
    struct pl_request from_lost[4], to_lost[4], r;
    bool right = open_group(g, 2, 20000, &t);
    if (right && g->me == 2) {
        for (uint32_t i = 0; i < 4; i++)
            TCP.post_send(t, 0, (struct pl_label){1, 0, i}, big[i], sizeof big[i], &r);
        for (int i = 0; i < 3; i++)
            TCP.progress(t, 1);
        kill(getpid(), SIGKILL);
    }
    for (uint32_t i = 0; right && g->me == 0 && i < 4; i++) {
        right = TCP.post_receive(t, 2, (struct pl_label){1, 0, i + 1}, big[i], sizeof big[i], &from_lost[i]) == PL_OK;
        if (TCP.post_send(t, 2, (struct pl_label){2, 0, i}, other[i], sizeof other[i], &to_lost[i]) < 0)
            to_lost[i].active = false;
    }
    int lost = 0;
    for (int i = 0; right && g->me == 0 && i < 4; i++)
        lost += finish(t, &from_lost[i]) == PL_ERR_PEER;
    if (right && g->me == 0) {
        right = lost >= 1 && said("lost rank 2 (127.0.0.1:");
        pl_error_clear();
        right = right && TCP.progress(t, 0) == PL_OK && TCP.post_receive(t, 2, (struct pl_label){3, 0, 0}, big[0], 9, &r) == PL_ERR_PEER &&
                TCP.post_send(t, 2, (struct pl_label){3, 0, 0}, big[0], 9, &r) == PL_ERR_PEER && said("lost rank 2");
    }
    if (right && g->me < 2) { /* the others have no loss */
        uint32_t mine = 17 + (uint32_t)g->me, theirs = 0;
        struct pl_request in, out;
        const struct pl_label l = {4, 0, 0};
        right = TCP.post_receive(t, 1 - g->me, l, &theirs, 4, &in) == PL_OK && TCP.post_send(t, 1 - g->me, l, &mine, 4, &out) == PL_OK &&
                finish(t, &in) == PL_OK && finish(t, &out) == PL_OK && theirs == 18 - (uint32_t)g->me;
    }
    TCP.close(t, true);
    return right;
}

static void a_killed_peer_is_named(void **state)
{
    (void)state;
    for (int i = 0; i < 5; i++)
        assert_int_equal(forks_run(3, killed, NULL), 1);
}

/* Member 1 sends what is asked for and closes at once, with messages that it never received; 0 receives it later, and
 * only then misses more. */
static bool leaves(const struct pl_group *g, struct forks *f, void *arg)
{
    (void)arg;
    struct pl_transport *t;
    static unsigned char big[4][200000];
    uint32_t word = 5;
    struct pl_request data[4], control, more, unread[2];
    bool right = open_group(g, 2, 20000, &t);
    for (uint32_t i = 0; right && g->me == 0 && i < 2; i++)
        right = TCP.post_send(t, 1, (struct pl_label){9, 0, i}, big[i], 5000, &unread[i]) == PL_OK && finish(t, &unread[i]) == PL_OK;
    forks_barrier(f);
    if (right && g->me == 1) {
        for (uint32_t i = 0; right && i < 4; i++) {
            fill(big[i], sizeof big[i], 1, 0, (struct pl_label){1, 0, i});
            right = TCP.post_send(t, 0, (struct pl_label){1, 0, i}, big[i], sizeof big[i], &data[i]) == PL_OK;
        }
        right = right && TCP.post_send(t, 0, (struct pl_label){1, PL_CONTROL_BUCKET, 0}, &word, 4, &control) == PL_OK;
        TCP.close(t, false);
        forks_barrier(f);
        return right;
    }
    if (right)
        forks_barrier(f);
    for (int i = 0; i < 20; i++) /* the end of the control connection is seen long before the data is asked for */
        TCP.progress(t, 5);
    right = right && TCP.post_send(t, 1, (struct pl_label){9, 0, 2}, big[0], 9, &more) == PL_ERR_PEER && said("connection closed by peer");
    pl_error_clear();
    for (uint32_t i = 0; right && i < 4; i++) {
        unsigned char *wanted = malloc(sizeof big[i]);
        fill(wanted, sizeof big[i], 1, 0, (struct pl_label){1, 0, i});
        right = TCP.post_receive(t, 1, (struct pl_label){1, 0, i}, big[i], sizeof big[i], &data[i]) == PL_OK && finish(t, &data[i]) == PL_OK &&
                memcmp(wanted, big[i], sizeof big[i]) == 0;
        free(wanted);
    }
    word = 0;
    right = right && TCP.post_receive(t, 1, (struct pl_label){1, PL_CONTROL_BUCKET, 0}, &word, 4, &control) == PL_OK &&
            finish(t, &control) == PL_OK && word == 5 && !pl_error_text();
    if (right && TCP.post_receive(t, 1, (struct pl_label){1, 0, 4}, big[0], 9, &more) == PL_OK)
        right = finish(t, &more) == PL_ERR_PEER;
    right = right && said("connection closed by peer");
    TCP.close(t, true);
    return right;
}

static void a_peer_may_leave_in_order(void **state)
{
    (void)state;
    for (int i = 0; i < 5; i++)
        assert_int_equal(forks_run(2, leaves, NULL), 0);
}

/* Member 1 does not receive for longer than the timeout, but is well: nobody is lost. */
static bool receives_late(const struct pl_group *g, struct forks *f, void *arg)
{
    (void)arg;
    enum { N = 16 };
    struct pl_transport *t;
    static unsigned char a[N][PL_MESSAGE_BYTES];
    struct pl_request r[N];
    bool right = open_group(g, 1, 700, &t);
    for (double end = pl_now_ms() + 2500; right && g->me == 1 && pl_now_ms() < end;)
        right = TCP.progress(t, 50) == PL_OK;
    for (uint32_t i = 0; right && i < N; i++) {
        const struct pl_label l = {1, 0, i};
        right = (g->me ? TCP.post_receive(t, 0, l, a[i], sizeof a[i], &r[i]) : TCP.post_send(t, 1, l, a[i], sizeof a[i], &r[i])) == PL_OK;
    }
    for (int i = 0; right && i < N; i++)
        right = finish(t, &r[i]) == PL_OK;
    if (right)
        forks_barrier(f);
    TCP.close(t, false);
    return right;
}

static void a_late_receiver_is_not_lost(void **state)
{
    (void)state;
    assert_int_equal(forks_run(2, receives_late, NULL), 0);
}

/* ---- damage ------------------------------------------------------------------------------------------- */

static bool corrupted(const struct pl_group *g, struct forks *f, void *arg)
{
    size_t bytes = *(size_t *)arg;
    struct pl_transport *t;
    static unsigned char a[PL_MESSAGE_BYTES], b[PL_MESSAGE_BYTES];
    struct pl_request r[2];
    const struct pl_label l[2] = {{6, 3, 0}, {7, 3, 1}};
    pl_fault_configure("tcp.corrupt@rank=1@step=7:fail", g->me);
    bool right = open_group(g, 1, 20000, &t);
    if (right && g->me == 1)
        right = TCP.post_send(t, 0, l[0], a, bytes, &r[0]) == PL_OK && TCP.post_send(t, 0, l[1], b, bytes, &r[1]) == PL_OK;
    else if (right)
        right = TCP.post_receive(t, 1, l[0], a, bytes, &r[0]) == PL_OK && TCP.post_receive(t, 1, l[1], b, bytes, &r[1]) == PL_OK;
    right = right && finish(t, &r[0]) == PL_OK;
    if (right && g->me == 0)
        right = finish(t, &r[1]) == PL_ERR_PEER && said("rank 1 (127.0.0.1:") &&
                said("the checksum of a payload is wrong: step 7, bucket 3, piece 1");
    else if (right)
        finish(t, &r[1]);
    if (right)
        forks_barrier(f);
    TCP.close(t, true);
    return right;
}

static void a_damaged_payload_is_refused(void **state)
{
    (void)state;
    for (size_t bytes = 1; bytes <= PL_MESSAGE_BYTES; bytes *= 1024)
        assert_int_equal(forks_run(2, corrupted, &bytes), 0);
}

static bool other_size(const struct pl_group *g, struct forks *f, void *arg)
{
    uint32_t bucket = *(uint32_t *)arg;
    struct pl_transport *t;
    char a[64] = "";
    struct pl_request r;
    const struct pl_label l = {6, bucket, 2};
    bool right = open_group(g, 1, 20000, &t);
    if (right && g->me == 1)
        right = TCP.post_send(t, 0, l, a, 60, &r) == PL_OK && finish(t, &r) == PL_OK;
    else if (right)
        right = TCP.post_receive(t, 1, l, a, 64, &r) == PL_OK && finish(t, &r) == PL_ERR_PEER &&
                said("sent 60 bytes where 64 are expected: step 6");
    if (right)
        forks_barrier(f);
    TCP.close(t, true);
    return right;
}

static void another_size_is_refused(void **state)
{
    (void)state;
    for (uint32_t bucket = 0; bucket <= 1; bucket++) {
        uint32_t b = bucket ? PL_CONTROL_BUCKET : 0;
        assert_int_equal(forks_run(2, other_size, &b), 0);
    }
}

/* ---- set-up -------------------------------------------------------------------------------------------- */

/* The port of the only listener of this process, before it is told to the others. */
static int own_listener_port(void)
{
    for (int fd = 3; fd < 256; fd++) {
        int on = 0;
        socklen_t bytes = sizeof on;
        struct sockaddr_in a;
        socklen_t a_bytes = sizeof a;
        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &on, &bytes) == 0 && on && getsockname(fd, (struct sockaddr *)&a, &a_bytes) == 0)
            return ntohs(a.sin_port);
    }
    return -1;
}

static _Atomic int *port_of_0; /* shared */

static double strangers_ahead_ms;

/* The ports go round in the second allgather: member 1, which connects, lets strangers go first. */
static pl_status allgather_with_strangers(void *arg, const void *mine, size_t bytes, void *all)
{
    struct forks_arg *a = arg;
    int port = own_listener_port();
    if (a->me == 0 && port > 0)
        atomic_store(port_of_0, port);
    pl_status s = forks_allgather(arg, mine, bytes, all);
    if (a->me == 1 && port > 0)
        pl_sleep_ms(strangers_ahead_ms);
    return s;
}

static int connect_to(int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&a, sizeof a) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Says nothing, speaks HTTP, sends a long stream of garbage, connects and goes, opens many at once. Runs beside the group. */
static void bother(int strangers)
{
    char garbage[500];
    int port, fd[200], n = 0;
    signal(SIGPIPE, SIG_IGN);
    memset(garbage, 'x', sizeof garbage);
    while ((port = atomic_load(port_of_0)) == 0)
        pl_sleep_ms(1);
    for (int i = 0; i < strangers; i++) {
        int c = connect_to(port);
        if (c < 0)
            break;
        if (i % 4 == 1 && write(c, "GET / HTTP/1.0\r\n\r\n", 18) < 0)
            break;
        if (i % 4 == 2)
            for (int k = 0; k < 3 && write(c, garbage, sizeof garbage) > 0; k++)
                ;
        if (i % 4 == 3)
            close(c);
        else
            fd[n++] = c;
    }
    pl_sleep_ms(20000);
    while (n > 0)
        close(fd[--n]);
}

static bool with_strangers(const struct pl_group *given, struct forks *f, void *arg)
{
    struct pl_group g = *given;
    g.allgather = allgather_with_strangers;
    return exchange_messages(&g, f, arg);
}

static void strangers_are_refused(void **state)
{
    (void)state;
    struct traffic tr = {2, 10, 2, 3, false};
    for (int many = 0; many <= 1; many++) {
        strangers_ahead_ms = many ? 500 : 5500; /* the few that say nothing are thrown out, of the many not all are let in */
        port_of_0 = mmap(NULL, sizeof *port_of_0, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        fflush(NULL);
        pid_t stranger = fork();
        if (stranger == 0) {
            bother(many ? 180 : 7);
            _exit(0);
        }
        assert_int_equal(forks_run(3, with_strangers, &tr), 0);
        assert_true(atomic_load(port_of_0) > 0);
        kill(stranger, SIGKILL);
        waitpid(stranger, NULL, 0);
        munmap(port_of_0, sizeof *port_of_0);
    }
}

static bool wrong_secret(const struct pl_group *g, struct forks *f, void *arg)
{
    (void)f;
    struct pl_transport *t;
    bool acceptor = strstr(arg, "rank=0") != NULL;
    pl_fault_configure(arg, g->me);
    bool open = open_group(g, 2, 1500, &t);
    if (open)
        TCP.close(t, true);
    if (g->me == 0 && acceptor) /* it learns of it by the loss of its peer */
        return open || said("rank 1 to connect");
    return !open && (g->me == 0 ? said("rank 1 to connect (rank 1 at 127.0.0.1:") :
                     said("no hand-shake with rank 0 (127.0.0.1:") &&
                     said(acceptor ? "): its proof of the run's secret is wrong" : "it refused us: our proof"));
}

static void a_wrong_secret_is_refused(void **state)
{
    (void)state;
    char connector[] = "tcp.secret@rank=1:fail", acceptor[] = "tcp.secret@rank=0:fail";
    assert_int_equal(forks_run(2, wrong_secret, connector), 0);
    assert_int_equal(forks_run(2, wrong_secret, acceptor), 0);
}

/* Member 2 never connects: it leaves after the second allgather. */
static pl_status allgather_and_leave(void *arg, const void *mine, size_t bytes, void *all)
{
    int port = own_listener_port();
    pl_status s = forks_allgather(arg, mine, bytes, all);
    if (((struct forks_arg *)arg)->me == 2 && port > 0)
        _exit(0);
    return s;
}

static bool missing_member(const struct pl_group *given, struct forks *f, void *arg)
{
    (void)f, (void)arg;
    struct pl_group g = *given;
    struct pl_transport *t;
    g.allgather = allgather_and_leave;
    return !open_group(&g, 1, 700, &t) && said("waited 0.7 s for rank 2 to connect (rank 2 at 127.0.0.1:") && said("exchange.interface");
}

static void a_missing_member_is_named(void **state)
{
    (void)state;
    assert_int_equal(forks_run(3, missing_member, NULL), 0);
}

/* Who knows the secret may connect once: member 1 does it on its own before it opens. */
static pl_status allgather_and_connect(void *arg, const void *mine, size_t bytes, void *all)
{
    static unsigned char secret[PL_SECRET_BYTES];
    const struct pl_tcp_offer *offers = all;
    bool listens = own_listener_port() > 0;
    pl_status s = forks_allgather(arg, mine, bytes, all);
    if (!listens)
        memcpy(secret, offers[0].secret, sizeof secret);
    if (!listens || ((struct forks_arg *)arg)->me == 0)
        return s;
    struct pl_tcp_hand h = {.secret = secret, .members = 2, .channels = 2, .me = 1, .peer = 0, .channel = 1};
    enum pl_tcp_hand_result r = pl_tcp_hand_start(&h);
    const char *why;
    for (int fd = connect_to(offers[0].address[0].port); r == PL_TCP_HAND_ON;) { /* fd stays open */
        unsigned char in[PL_TCP_HAND_BYTES];
        if (recv(fd, in, h.wants, MSG_WAITALL) != (ssize_t)h.wants)
            return PL_ERR_DATA;
        r = pl_tcp_hand_feed(&h, in, NULL, NULL, &why);
        if (h.out_bytes > 0 && write(fd, h.out, h.out_bytes) < 0)
            return PL_ERR_DATA;
    }
    return r == PL_TCP_HAND_DONE ? PL_OK : PL_ERR_DATA;
}

static bool twice(const struct pl_group *given, struct forks *f, void *arg)
{
    (void)f, (void)arg;
    struct pl_group g = *given;
    struct pl_transport *t;
    g.allgather = allgather_and_connect;
    bool open = open_group(&g, 1, 3000, &t);
    if (g.me == 0) {
        TCP.close(t, true);
        return true; /* what it makes of the loss of member 1 is all the same */
    }
    return !open && said("rank 0"); /* refused, or too late: member 0 has all it waits for */
}

static void nobody_connects_twice(void **state)
{
    (void)state;
    assert_int_equal(forks_run(2, twice, NULL), 0);
}

static bool by_interface(const struct pl_group *g, struct forks *f, void *arg)
{
    const char *interface = arg;
    struct pl_transport_options o = options(1, 5000);
    struct pl_transport *t;
    char how[64] = "";
    o.interface = interface;
    pl_status s = TCP.open(g, &o, &t, how, sizeof how);
    if (strcmp(interface, "nosuch0") == 0)
        return s == PL_ERR_PEER && !t && said("exchange.interface: nosuch0 fits no running interface; there is ") && said("lo 127.0.0.1/8");
    if (s == PL_OK)
        forks_barrier(f);
    TCP.close(t, false);
    return s == PL_OK && strcmp(how, "lo, 1 channel") == 0;
}

static void interfaces_are_found(void **state)
{
    (void)state;
    const char *const names[] = {"lo", "127.0.0.1", "127.0.0.0/8", "127.0.0.1/32", "nosuch0"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        assert_int_equal(forks_run(2, by_interface, (void *)(uintptr_t)names[i]), 0);
}

/* One member alone is told a name that it does not have: all learn of it at once. */
static bool one_fails(const struct pl_group *g, struct forks *f, void *arg)
{
    (void)f, (void)arg;
    struct pl_transport_options o = options(1, 60000);
    struct pl_transport *t;
    char how[64];
    double begun = pl_now_ms();
    o.interface = g->me == 1 ? "nosuch0" : NULL;
    pl_status s = TCP.open(g, &o, &t, how, sizeof how);
    return s == PL_ERR_PEER && pl_now_ms() - begun < 10000 &&
           said(g->me == 1 ? "transport tcp: exchange.interface: nosuch0" : "transport tcp: rank 1: exchange.interface: nosuch0");
}

static void one_failure_is_everybodys(void **state)
{
    (void)state;
    assert_int_equal(forks_run(3, one_fails, NULL), 0);
}

/* After a warm-up nothing is allocated. */
static bool steady(const struct pl_group *g, struct forks *f, void *arg)
{
    (void)arg;
    struct pl_transport *t;
    static unsigned char a[300000], b[300000];
    uint64_t before = 0;
    bool right = open_group(g, 2, 20000, &t);
    for (uint64_t step = 0; right && step < 50; step++) {
        struct pl_request r[4];
        const struct pl_label data = {step, 0, 0}, control = {step, PL_CONTROL_BUCKET, 0};
        if (step == 10)
            before = pl_alloc_count();
        right = TCP.post_send(t, 1 - g->me, control, a, 100, &r[0]) == PL_OK && TCP.post_send(t, 1 - g->me, data, a, sizeof a, &r[1]) == PL_OK &&
                TCP.post_receive(t, 1 - g->me, control, b, 100, &r[2]) == PL_OK && TCP.post_receive(t, 1 - g->me, data, b, sizeof b, &r[3]) == PL_OK;
        for (int i = 0; right && i < 4; i++)
            right = finish(t, &r[i]) == PL_OK;
    }
    right = right && pl_alloc_count() == before;
    if (right)
        forks_barrier(f);
    TCP.close(t, false);
    return right;
}

static void a_step_allocates_nothing(void **state)
{
    (void)state;
    assert_int_equal(forks_run(2, steady, NULL), 0);
}

/* The soft limit is raised where it can be; where it cannot, all learn of it. */
static bool limited(const struct pl_group *g, struct forks *f, void *arg)
{
    struct pl_transport *t;
    struct rlimit limit;
    bool hard = arg != NULL;
    getrlimit(RLIMIT_NOFILE, &limit);
    if (!hard || g->me == 1) {
        limit.rlim_cur = 60;
        limit.rlim_max = hard ? 60 : limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    bool open = open_group(g, PL_MOST_CHANNELS, 20000, &t);
    if (hard)
        return !open && said(g->me == 1 ? "transport tcp: 51 connections need" : "rank 1: 51 connections need") && said("the limit is 60\nraise it");
    if (open)
        forks_barrier(f);
    TCP.close(t, false);
    return open;
}

static void few_files(void **state)
{
    (void)state;
    int hard = 1;
    assert_int_equal(forks_run(4, limited, NULL), 0);
    assert_int_equal(forks_run(4, limited, &hard), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(messages_arrive),        cmocka_unit_test(control_messages_overtake), cmocka_unit_test(control_messages_wait),
        cmocka_unit_test(wake_ends_a_wait),       cmocka_unit_test(a_group_of_one),            cmocka_unit_test(a_killed_peer_is_named),
        cmocka_unit_test(a_peer_may_leave_in_order), cmocka_unit_test(a_damaged_payload_is_refused), cmocka_unit_test(another_size_is_refused),
        cmocka_unit_test(strangers_are_refused),  cmocka_unit_test(a_wrong_secret_is_refused), cmocka_unit_test(a_missing_member_is_named),
        cmocka_unit_test(interfaces_are_found),   cmocka_unit_test(one_failure_is_everybodys), cmocka_unit_test(a_step_allocates_nothing),
        cmocka_unit_test(a_late_receiver_is_not_lost), cmocka_unit_test(few_files),
        cmocka_unit_test(nobody_connects_twice),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
#endif
