/* Connects a group: everybody listens, and of each pair the higher index connects to the lower, all at once, until
 * the time is over. Strangers are refused one by one and disturb nobody else. */
#include "transport/tcp/tcp.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define SILENCE_MS 5000.0    /* of who connected to us and does not prove itself */
#define ATTEMPT_MS 20000.0   /* of whom we connect to: it may still be busy elsewhere */
#define RETRY_MS 100.0
#define LOOK_MS 100          /* between looks at the clocks */
#define GUESTS 64            /* strangers at once, beside those that we wait for */
#define LINES 8              /* about refused connections */
#define SPARE_FILES 64
#define LISTENER UINT32_MAX  /* in epoll's data, instead of a link's number */

struct link {
    enum { FREE, WAITING, CONNECTING, SHAKING } state;
    int fd;
    bool ours; /* we connect */
    double at_ms; /* WAITING: when to begin; otherwise when to give up */
    uint32_t have;
    char where[64];
    struct pl_tcp_hand hand;
    unsigned char in[PL_TCP_HAND_BYTES];
};

struct setup {
    const struct pl_tcp_setup *o;
    int me, members, channels, listener, epoll;
    int missing; /* connections */
    int *fd;
    struct link *link; /* [links], the first `ours` of them connect */
    uint32_t links, ours;
    int lines;
    double begun_ms;
    int last_error; /* of connect, for the message */
};

static int open_files(void)
{
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    while (d && readdir(d))
        n++;
    if (d)
        closedir(d);
    return n;
}

pl_status pl_tcp_enough_files(int connections)
{
    struct rlimit limit;
    rlim_t needed = (rlim_t)(connections + open_files() + GUESTS + SPARE_FILES);
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= needed)
        return PL_OK;
    if (limit.rlim_max < needed)
        return pl_error(PL_ERR_PEER, PL_TCP_ROOM,
                        "%d connections need %llu open files, the limit is %llu\nraise it with ulimit -n, or take fewer exchange.channels",
                        connections, (unsigned long long)needed, (unsigned long long)limit.rlim_max);
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
        return pl_error(PL_ERR_PEER, PL_TCP_ROOM, "the limit of open files cannot be raised to %llu: %s",
                        (unsigned long long)limit.rlim_max, strerror(errno));
    return PL_OK;
}

pl_status pl_tcp_listen(struct pl_tcp_address *a, int *listener)
{
    struct sockaddr_storage sa;
    char text[64];
    const int on = 1;
    a->port = 0;
    socklen_t bytes = pl_tcp_sockaddr(a, &sa);
    *listener = socket(a->family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (*listener >= 0 && a->family == AF_INET6)
        setsockopt(*listener, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    if (*listener < 0 || bind(*listener, (struct sockaddr *)&sa, bytes) != 0 || listen(*listener, 4096) != 0 ||
        getsockname(*listener, (struct sockaddr *)&sa, &bytes) != 0) {
        int code = errno;
        pl_tcp_print(a, text, sizeof text);
        if (*listener >= 0)
            close(*listener);
        *listener = -1;
        return pl_error(PL_ERR_PEER, PL_TCP_ROOM, "cannot listen on %s %s: %s", a->name, text, strerror(code));
    }
    a->port = ntohs(a->family == AF_INET ? ((struct sockaddr_in *)&sa)->sin_port : ((struct sockaddr_in6 *)&sa)->sin6_port);
    return PL_OK;
}

static void watch(struct setup *s, uint32_t i, uint32_t events)
{
    struct epoll_event e = {.events = events, .data.u32 = i};
    if (epoll_ctl(s->epoll, EPOLL_CTL_ADD, s->link[i].fd, &e) != 0)
        epoll_ctl(s->epoll, EPOLL_CTL_MOD, s->link[i].fd, &e);
}

static void drop(struct link *l)
{
    if (l->fd >= 0)
        close(l->fd);
    l->fd = -1;
    l->state = FREE;
}

static void again(struct link *l)
{
    drop(l);
    l->state = WAITING;
    l->at_ms = pl_now_ms() + RETRY_MS;
}

static void refuse(struct setup *s, struct link *l, const char *why)
{
    if (s->lines++ < LINES)
        pl_log(PL_TCP_ROOM ": refused a connection from %s: %s%s", l->where, why, s->lines == LINES ? " (no more such lines)" : "");
    drop(l);
}

static bool expected(void *arg, uint32_t peer, uint32_t channel)
{
    const struct setup *s = arg;
    return peer > (uint32_t)s->me && peer < (uint32_t)s->members && channel < (uint32_t)s->channels &&
           s->fd[peer * (uint32_t)s->channels + channel] < 0;
}

static pl_status begin_hand(struct setup *s, uint32_t i)
{
    struct link *l = &s->link[i];
    l->state = SHAKING;
    l->have = 0;
    l->hand.secret = s->o->secret;
    l->hand.acceptor = !l->ours;
    l->hand.members = (uint32_t)s->members;
    l->hand.channels = (uint32_t)s->channels;
    l->hand.me = (uint32_t)s->me;
    watch(s, i, EPOLLIN);
    return pl_tcp_hand_start(&l->hand) == PL_TCP_HAND_FAILED ? PL_ERR_PEER : PL_OK;
}

static pl_status begin_connect(struct setup *s, uint32_t i)
{
    struct link *l = &s->link[i];
    struct sockaddr_storage to, from;
    struct pl_tcp_address mine = s->o->place[s->me];
    const int on = 1;
    mine.port = 0;
    socklen_t from_bytes = pl_tcp_sockaddr(&mine, &from), to_bytes = pl_tcp_sockaddr(&s->o->place[l->hand.peer], &to);
    l->fd = socket(mine.family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (l->fd < 0)
        return pl_error(PL_ERR_PEER, PL_TCP_ROOM, "no socket: %s", strerror(errno));
    setsockopt(l->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    if (bind(l->fd, (struct sockaddr *)&from, from_bytes) != 0)
        return pl_error(PL_ERR_PEER, PL_TCP_ROOM, "cannot send from %s: %s", mine.name, strerror(errno));
    l->state = CONNECTING;
    l->at_ms = pl_now_ms() + ATTEMPT_MS;
    if (connect(l->fd, (struct sockaddr *)&to, to_bytes) != 0 && errno != EINPROGRESS) {
        s->last_error = errno;
        again(l);
    } else {
        watch(s, i, EPOLLOUT);
    }
    return PL_OK;
}

static pl_status connected(struct setup *s, uint32_t i)
{
    struct link *l = &s->link[i];
    int code = 0;
    socklen_t bytes = sizeof code;
    getsockopt(l->fd, SOL_SOCKET, SO_ERROR, &code, &bytes);
    if (code == 0)
        return begin_hand(s, i);
    s->last_error = code;
    again(l);
    return PL_OK;
}

static void accept_all(struct setup *s)
{
    for (;;) {
        struct sockaddr_storage from;
        socklen_t bytes = sizeof from;
        struct link spare = {.fd = accept4(s->listener, (struct sockaddr *)&from, &bytes, SOCK_CLOEXEC | SOCK_NONBLOCK)}, *l = &spare;
        uint32_t i = s->ours;
        char host[48] = "?", port[8] = "?";
        if (spare.fd < 0)
            return; /* nobody, or one that is gone already; without files to spare it is tried again */
        while (i < s->links && s->link[i].state != FREE)
            i++;
        if (i < s->links) {
            l = &s->link[i];
            l->fd = spare.fd;
        }
        getnameinfo((struct sockaddr *)&from, bytes, host, sizeof host, port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV);
        snprintf(l->where, sizeof l->where, "%s:%s", host, port);
        l->at_ms = pl_now_ms() + SILENCE_MS;
        if (i == s->links)
            refuse(s, l, "too many at once");
        else if (begin_hand(s, i) < 0 || send(l->fd, l->hand.out, l->hand.out_bytes, MSG_NOSIGNAL) != (ssize_t)l->hand.out_bytes)
            refuse(s, l, "it is gone already");
    }
}

static void done(struct setup *s, struct link *l)
{
    epoll_ctl(s->epoll, EPOLL_CTL_DEL, l->fd, NULL);
    s->fd[l->hand.peer * (uint32_t)s->channels + l->hand.channel] = l->fd;
    s->missing--;
    l->state = FREE;
    l->fd = -1;
}

static pl_status refused_us(struct setup *s, struct link *l, const char *why)
{
    char where[64];
    pl_tcp_print(&s->o->place[l->hand.peer], where, sizeof where);
    return pl_error(PL_ERR_PEER, PL_TCP_ROOM, "no hand-shake with rank %d (%s): %s", s->o->group->rank[l->hand.peer], where, why);
}

/* A whole message of the hand-shake is in. */
static pl_status shake(struct setup *s, struct link *l)
{
    const char *why;
    enum pl_tcp_hand_result r = pl_tcp_hand_feed(&l->hand, l->in, expected, s, &why);
    l->have = 0;
    bool sent = r == PL_TCP_HAND_FAILED || l->hand.out_bytes == 0 ||
                send(l->fd, l->hand.out, l->hand.out_bytes, MSG_NOSIGNAL) == (ssize_t)l->hand.out_bytes;
    if (r == PL_TCP_HAND_FAILED)
        return PL_ERR_PEER;
    if (r == PL_TCP_HAND_REFUSED && l->ours)
        return refused_us(s, l, why);
    if (r == PL_TCP_HAND_REFUSED)
        refuse(s, l, why);
    else if (!sent && l->ours)
        again(l);
    else if (!sent)
        refuse(s, l, "it is gone already");
    else if (r == PL_TCP_HAND_DONE)
        done(s, l);
    return PL_OK;
}

static pl_status advance(struct setup *s, uint32_t i)
{
    struct link *l = &s->link[i];
    if (l->state == CONNECTING)
        return connected(s, i);
    while (l->state == SHAKING) {
        ssize_t n = recv(l->fd, l->in + l->have, l->hand.wants - l->have, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return PL_OK;
        if (n <= 0 && l->ours)
            again(l);
        else if (n <= 0)
            refuse(s, l, "it closed before its hand-shake");
        else if ((l->have += (uint32_t)n) == l->hand.wants)
            PL_TRY(shake(s, l));
    }
    return PL_OK;
}

static pl_status look_at_clocks(struct setup *s)
{
    double now = pl_now_ms();
    for (uint32_t i = 0; i < s->links; i++) {
        struct link *l = &s->link[i];
        if (l->state == FREE || now < l->at_ms)
            continue;
        if (l->state == WAITING)
            PL_TRY(begin_connect(s, i));
        else if (l->ours)
            again(l);
        else
            refuse(s, l, "no hand-shake within 5 s");
    }
    return PL_OK;
}

static pl_status timed_out(const struct setup *s)
{
    struct pl_text ranks = {0}, where = {0};
    int named = 0;
    for (int m = 0; m < s->members; m++) {
        bool missing = false;
        char text[64];
        for (int c = 0; c < s->channels; c++)
            missing = missing || (m != s->me && s->fd[m * s->channels + c] < 0);
        if (!missing)
            continue;
        int rank = s->o->group->rank[m];
        pl_tcp_print(&s->o->place[m], text, sizeof text);
        pl_text_add(&ranks, "%s%d", named ? ", " : "", rank);
        if (named++ < 8)
            pl_text_add(&where, "%srank %d at %s", where.s ? ", " : "", rank, text);
    }
    pl_error(PL_ERR_PEER, PL_TCP_ROOM,
             "waited %.3g s for rank%s %s to connect (%s)%s%s\nlook for an error of theirs, or a firewall between the hosts; "
             "exchange.interface chooses another network than that of %s",
             s->o->timeout_ms / 1000, named == 1 ? "" : "s", ranks.s ? ranks.s : "?", where.s ? where.s : "?",
             s->last_error ? ", the last attempt: " : "", s->last_error ? strerror(s->last_error) : "", s->o->place[s->me].name);
    pl_text_free(&ranks);
    pl_text_free(&where);
    return PL_ERR_PEER;
}

static pl_status run(struct setup *s)
{
    struct epoll_event events[64], e = {.events = EPOLLIN, .data.u32 = LISTENER};
    epoll_ctl(s->epoll, EPOLL_CTL_ADD, s->listener, &e);
    for (;;) {
        PL_TRY(look_at_clocks(s));
        if (s->missing == 0)
            return PL_OK;
        if (pl_now_ms() - s->begun_ms > s->o->timeout_ms)
            return timed_out(s);
        int n = epoll_wait(s->epoll, events, 64, LOOK_MS);
        for (int i = 0; i < n; i++) {
            if (events[i].data.u32 == LISTENER)
                accept_all(s);
            else
                PL_TRY(advance(s, events[i].data.u32));
        }
    }
}

static pl_status prepare(struct setup *s)
{
    s->ours = (uint32_t)(s->me * s->channels);
    s->missing = (s->members - 1) * s->channels;
    s->links = (uint32_t)s->missing + GUESTS;
    s->link = pl_alloc(s->links * sizeof *s->link, "connections");
    if (!s->link)
        return PL_ERR_MEMORY;
    for (uint32_t i = 0; i < s->links; i++) {
        struct link *l = &s->link[i];
        l->fd = -1;
        l->ours = i < s->ours;
        l->state = l->ours ? WAITING : FREE;
        l->hand.peer = i / (uint32_t)s->channels;
        l->hand.channel = i % (uint32_t)s->channels;
    }
    s->epoll = epoll_create1(EPOLL_CLOEXEC);
    return s->epoll >= 0 ? PL_OK : pl_error(PL_ERR_PEER, PL_TCP_ROOM, "no epoll: %s", strerror(errno));
}

pl_status pl_tcp_connect(const struct pl_tcp_setup *o, int listener, int *fd)
{
    struct setup s = {.o = o, .me = o->group->me, .members = o->group->members, .channels = o->channels,
                      .listener = listener, .epoll = -1, .fd = fd, .begun_ms = pl_now_ms()};
    for (int i = 0; i < s.members * s.channels; i++)
        fd[i] = -1;
    pl_status status = prepare(&s);
    if (status == PL_OK)
        status = run(&s);
    for (uint32_t i = 0; s.link && i < s.links; i++)
        drop(&s.link[i]);
    for (int i = 0; status < 0 && i < s.members * s.channels; i++)
        if (fd[i] >= 0) {
            close(fd[i]);
            fd[i] = -1;
        }
    if (s.epoll >= 0)
        close(s.epoll);
    close(listener);
    pl_free(s.link);
    return status;
}
