/* A peer that answers nothing, not even by its kernel: a cut link, a dead host. Of an idle connection the kernel finds
 * out by probes (RFC 1122, 4.2.3.6). Of one that owes us an acknowledgement we look ourselves: TCP_USER_TIMEOUT would
 * also take a peer for lost that is well and only does not receive at present. */
#include "transport/tcp/tcp.h"

#include <netinet/tcp.h>
#include <sys/socket.h>

static int seconds(double ms, int most)
{
    return ms < 1000 ? 1 : ms > 1000.0 * most ? most : (int)(ms / 1000);
}

void pl_tcp_set_options(int fd, double timeout_ms)
{
    const int on = 1, idle_s = seconds(timeout_ms / 2, 3600), interval_s = seconds(timeout_ms / 8, 900);
    int probes = (int)((timeout_ms / 1000 - idle_s) / interval_s);
    probes = probes < 1 ? 1 : probes > 100 ? 100 : probes;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
}

/* Nothing came since the last look, though data or the second probe of a closed window is out? */
static bool owes_an_answer(const struct pl_tcp_conn *c, double since_ms)
{
    struct tcp_info info = {0};
    socklen_t bytes = sizeof info;
    if (getsockopt(c->fd, IPPROTO_TCP, TCP_INFO, &info, &bytes) != 0)
        return false;
    return (info.tcpi_unacked > 0 || info.tcpi_probes > 1) && info.tcpi_last_ack_recv >= since_ms;
}

double pl_tcp_look_period(const struct pl_transport *t)
{
    double period = t->timeout_ms / 8;
    return period < 20 ? 20 : period > 5000 ? 5000 : period;
}

void pl_tcp_look_for_silence(struct pl_transport *t)
{
    double now = pl_now_ms(), since = now - t->looked_ms;
    if (since < pl_tcp_look_period(t))
        return;
    t->looked_ms = now;
    for (int i = 0; i < t->members * (t->channels + 1); i++) {
        struct pl_tcp_conn *c = &t->conns[i];
        if (c->fd < 0 || !owes_an_answer(c, since))
            c->silent_ms = 0;
        else if (c->silent_ms == 0)
            c->silent_ms = now;
        else if (now - c->silent_ms >= t->timeout_ms)
            pl_tcp_lose_silent(t, c->peer);
    }
}
