/* The tcp transport over links of its own: each forked process in a network namespace, joined by veth pairs. Which
 * network is taken, and what a link that is cut looks like. Needs root and iproute2. */
#include "tcp_group.h"

#include <sched.h>
#include <setjmp.h>
#include <cmocka.h>

#ifndef PL_HAVE_CRYPTO
int main(void)
{
    printf("skipped: this build has no libcrypto, so no tcp\n");
    return 77;
}
#else

static bool sh(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static bool sh(const char *fmt, ...)
{
    char command[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(command, sizeof command, fmt, args);
    va_end(args);
    bool right = system(command) == 0;
    if (!right)
        fprintf(stderr, "failed: %s\n", command);
    return right;
}

enum network { COMMON, IPV6, ROUTED, CUT_SENDER, CUT_RECEIVER, NETWORKS };

/* eth0 joins the two; docker0 is there on both, with the same address, as it is on real hosts. */
static bool make_network(int me, struct forks *f, enum network what)
{
    pid_t pid = getpid();
    bool right = unshare(CLONE_NEWNET) == 0;
    memcpy(f->data[me], &pid, sizeof pid);
    forks_barrier(f);
    memcpy(&pid, f->data[1], sizeof pid);
    right = right && (me == 1 || sh("ip link add eth0 type veth peer name eth0 netns %d", (int)pid));
    forks_barrier(f);
    right = right && sh("ip link set lo up && "
                        "ip link add docker0 type veth peer name inside && ip addr add 172.17.0.1/16 dev docker0 && "
                        "ip link set docker0 up && ip link set inside up");
    if (what == IPV6)
        right = right && sh("ip addr add fd00:9::%d/64 dev eth0 nodad", me + 1);
    else if (what == ROUTED)
        right = right && sh("ip addr add 10.%d.0.1/24 dev eth0", me + 1);
    else
        right = right && sh("ip addr add 10.9.0.%d/24 dev eth0", me + 1);
    right = right && sh("ip link set eth0 up");
    forks_barrier(f);
    right = right && sh("until ip link show eth0 | grep -q 'state UP'; do sleep 0.02; done");
    forks_barrier(f);
    if (what == ROUTED)
        right = right && sh("ip route add 10.%d.0.0/24 dev eth0", 2 - me);
    forks_barrier(f);
    return right;
}

static bool talk(const struct pl_group *g, struct pl_transport *t)
{
    static unsigned char a[PL_MESSAGE_BYTES], b[PL_MESSAGE_BYTES];
    struct pl_request out[8], in[8];
    bool right = true;
    memset(a, 7, sizeof a);
    for (uint32_t i = 0; i < 8; i++)
        right = TCP.post_send(t, 1 - g->me, (struct pl_label){1, 0, i}, a, sizeof a, &out[i]) == PL_OK &&
                TCP.post_receive(t, 1 - g->me, (struct pl_label){1, 0, i}, b, sizeof b, &in[i]) == PL_OK && right;
    for (int i = 0; right && i < 8; i++)
        right = finish(t, &out[i]) == PL_OK && finish(t, &in[i]) == PL_OK && memcmp(a, b, sizeof a) == 0;
    return right;
}

/* The link goes while member 1 only waits. With data of member 0 under way or without any: both sides end. */
static bool cut(const struct pl_group *g, struct forks *f, struct pl_transport *t, enum network what)
{
    static unsigned char a[PL_MESSAGE_BYTES];
    struct pl_request r[16];
    int n = 0;
    double begun = pl_now_ms();
    bool right = true;
    forks_barrier(f);
    if (what == CUT_SENDER && g->me == 1) /* what 0 sends goes out, and is not answered */
        right = sh("ip addr flush dev eth0");
    if (what == CUT_RECEIVER && g->me == 0)
        right = sh("ip link set eth0 down");
    forks_barrier(f);
    if (g->me == 0 && what == CUT_SENDER)
        for (uint32_t i = 0; right && i < 16; i++)
            right = TCP.post_send(t, 1, (struct pl_label){2, 0, i}, a, sizeof a, &r[n++]) == PL_OK;
    else
        right = right && TCP.post_receive(t, 1 - g->me, (struct pl_label){2, 0, 0}, a, sizeof a, &r[n++]) == PL_OK;
    bool lost = false;
    for (int i = 0; right && i < n; i++)
        lost = finish(t, &r[i]) == PL_ERR_PEER || lost;
    fprintf(stderr, "member %d: %s after %.1f s\n", g->me, pl_error_text() ? pl_error_text() : "nothing", (pl_now_ms() - begun) / 1000);
    right = right && lost && said(g->me ? "lost rank 0 (10.9.0.1:" : "lost rank 1 (10.9.0.2:") && pl_now_ms() - begun < 15000;
    forks_barrier(f);
    return right;
}

static bool on_links(const struct pl_group *g, struct forks *f, void *arg)
{
    enum network what = *(enum network *)arg;
    struct pl_transport_options o = options(2, 3000);
    struct pl_transport *t = NULL;
    char how[64] = "";
    bool right = make_network(g->me, f, what);
    o.interface = what == IPV6 ? "fd00:9::/64" : NULL;
    right = right && TCP.open(g, &o, &t, how, sizeof how) == PL_OK && strcmp(how, "eth0, 2 channels") == 0 && talk(g, t);
    if (right && what >= CUT_SENDER)
        right = cut(g, f, t, what);
    else if (right)
        forks_barrier(f);
    TCP.close(t, what >= CUT_SENDER);
    return right;
}

static void links_of_their_own(void **state)
{
    (void)state;
    for (int what = 0; what < NETWORKS; what++) {
        enum network w = (enum network)what;
        assert_int_equal(forks_run(2, on_links, &w), 0);
    }
}

/* In a child, because it cannot be undone. */
static bool may_make_networks(void)
{
    int code = 1;
    pid_t pid = fork();
    if (pid == 0)
        _exit(unshare(CLONE_NEWNET) != 0 || system("ip link add t0 type veth peer name t1 2>/dev/null") != 0);
    waitpid(pid, &code, 0);
    return code == 0;
}

int main(void)
{
    if (!may_make_networks()) {
        printf("skipped: no network namespaces of our own (root, iproute2, veth)\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(links_of_their_own)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
#endif
