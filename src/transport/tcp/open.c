/* Opening a group: whether to, the two allgathers that agree on a network and a secret, and taking the connected
 * sockets over. */
#include "transport/tcp/tcp.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

/* The first device of a class that only fast networks have; software emulations are none. */
static bool fast_fabric(char *name, size_t bytes)
{
    static const char *const classes[] = {"/sys/class/infiniband", "/sys/class/cxi", "/sys/class/hfi1"};
    bool found = false;
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++) {
        DIR *d = opendir(classes[i]);
        for (struct dirent *e; d && !found && (e = readdir(d));)
            if (e->d_name[0] != '.' && strncmp(e->d_name, "rxe", 3) != 0 && strncmp(e->d_name, "siw", 3) != 0) {
                snprintf(name, bytes, "%.60s", e->d_name);
                found = true;
            }
        if (d)
            closedir(d);
    }
    return found;
}

bool pl_tcp_probe(const struct pl_world *w, const struct pl_transport_options *o, bool named, char *reason, size_t bytes)
{
    char fabric[64];
    if (!named && w->nodes <= 1) {
        snprintf(reason, bytes, "one node");
        return false;
    }
    if (!named && fast_fabric(fabric, sizeof fabric)) {
        snprintf(reason, bytes, "MPI may reach %s itself", fabric);
        return false;
    }
    snprintf(reason, bytes, "%s, %d channel%s", o->interface ? o->interface : "sockets", o->channels, o->channels == 1 ? "" : "s");
    return true;
}

static pl_status bring(const struct pl_group *g, const struct pl_transport_options *o, struct pl_tcp_offer *mine)
{
    if (o->channels < 1 || o->channels > PL_MOST_CHANNELS)
        return pl_error(PL_ERR_USAGE, PL_TCP_ROOM, "%d channels, from 1 to %d can be had", o->channels, PL_MOST_CHANNELS);
    PL_TRY(pl_tcp_list(o->interface, mine));
    PL_TRY(pl_tcp_enough_files((g->members - 1) * (o->channels + 1)));
    return g->me == 0 ? pl_secret_random(mine->secret, sizeof mine->secret) : PL_OK;
}

/* Where this member listens, of all that were offered. */
static pl_status choose(const struct pl_group *g, const struct pl_tcp_offer *all, struct pl_tcp_address *out)
{
    int *pick = pl_alloc((size_t)g->members * sizeof *pick, "the choice of a network");
    pl_status s = PL_OK;
    if (!pick)
        return PL_ERR_MEMORY;
    if (pl_tcp_choose(all, g->members, g->one_node, pick))
        *out = all[g->me].address[pick[g->me]];
    else
        s = pl_tcp_by_route(all, g->members, g->me, out);
    pl_free(pick);
    return s;
}

struct agreed {
    unsigned char secret[PL_SECRET_BYTES];
    struct pl_tcp_address *place; /* [members] */
    int listener;
};

/* The two allgathers: every member takes part in both of them, or sees the first one's failure of anybody. */
static pl_status meet(const struct pl_group *g, const struct pl_transport_options *o, struct pl_tcp_offer *all, struct agreed *a)
{
    struct pl_tcp_offer mine;
    memset(&mine, 0, sizeof mine);
    PL_TRY(pl_go_round(g, PL_TCP_ROOM, a->place ? bring(g, o, &mine) : PL_ERR_MEMORY, &mine.say, sizeof mine, all));
    memcpy(a->secret, all[0].secret, sizeof a->secret);
    pl_status s = choose(g, all, &mine.address[0]);
    if (s == PL_OK)
        s = pl_tcp_listen(&mine.address[0], &a->listener);
    PL_TRY(pl_go_round(g, PL_TCP_ROOM, s, &mine.say, sizeof mine, all));
    for (int m = 0; m < g->members; m++)
        a->place[m] = all[m].address[0];
    return PL_OK;
}

static pl_status watch(struct pl_transport *t, int fd, uint32_t events, void *what)
{
    struct epoll_event e = {.events = events | EPOLLET, .data.ptr = what};
    if (epoll_ctl(t->epoll, EPOLL_CTL_ADD, fd, &e) != 0)
        return pl_error(PL_ERR_PEER, PL_TCP_ROOM, "no epoll: %s", strerror(errno));
    return PL_OK;
}

/* Takes the connected sockets over; those that it did not get to stay in fd[]. */
static pl_status adopt(struct pl_transport *t, const struct pl_group *g, const struct pl_tcp_address *place, int *fd)
{
    int conns = t->channels + 1;
    PL_TRY(watch(t, t->wake, EPOLLIN, NULL));
    for (int m = 0; m < t->members; m++) {
        struct pl_tcp_peer *p = &t->peer[m];
        p->rank = g->rank[m];
        p->conns = m == t->me ? 0 : conns;
        p->conn = &t->conns[m * conns];
        pl_tcp_print(&place[m], p->where, sizeof p->where);
        for (int i = 0; i < p->conns; i++) {
            struct pl_tcp_conn *c = &p->conn[i];
            c->peer = p;
            c->control = i == 0;
            c->fd = fd[m * conns + i];
            c->writable = true;
            pl_tcp_reader_start(&c->reader, c->control);
            fd[m * conns + i] = -1;
            pl_tcp_set_options(c->fd, t->timeout_ms);
            PL_TRY(watch(t, c->fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP, c));
        }
    }
    return PL_OK;
}

void pl_tcp_destroy(struct pl_transport *t)
{
    if (!t)
        return;
    for (int i = 0; t->conns && i < t->members * (t->channels + 1); i++) {
        if (t->conns[i].fd >= 0)
            close(t->conns[i].fd);
        if (t->conns[i].note)
            pl_tcp_free_note(t, t->conns[i].note);
        pl_tcp_free_rest(&t->conns[i]);
    }
    for (int m = 0; t->peer && m < t->members; m++)
        for (struct pl_tcp_note *n = t->peer[m].first_note, *next; n; n = next) {
            next = n->next;
            pl_free(n);
        }
    for (struct pl_tcp_note *n = t->free_notes, *next; n; n = next) {
        next = n->next;
        pl_free(n);
    }
    if (t->epoll >= 0)
        close(t->epoll);
    if (t->wake >= 0)
        close(t->wake);
    pl_free(t->spoiled);
    pl_free(t->conns);
    pl_free(t->peer);
    pl_free(t);
}

static pl_status create(const struct pl_group *g, const struct pl_transport_options *o, struct pl_transport **out)
{
    struct pl_transport *t = pl_alloc(sizeof *t, "transport");
    size_t conns = (size_t)g->members * (size_t)(o->channels + 1);
    if (!t)
        return PL_ERR_MEMORY;
    *out = t;
    t->me = g->me;
    t->members = g->members;
    t->channels = o->channels;
    t->timeout_ms = o->timeout_ms;
    t->looked_ms = pl_now_ms();
    t->epoll = epoll_create1(EPOLL_CLOEXEC);
    t->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    t->peer = pl_alloc((size_t)g->members * sizeof *t->peer, "peers");
    t->conns = pl_alloc(conns * sizeof *t->conns, "connections");
    for (size_t i = 0; t->conns && i < conns; i++)
        t->conns[i].fd = -1;
    if (!t->peer || !t->conns)
        return PL_ERR_MEMORY;
    if (t->epoll < 0 || t->wake < 0)
        return pl_error(PL_ERR_PEER, PL_TCP_ROOM, "no epoll or eventfd: %s", strerror(errno));
    return PL_OK;
}

static pl_status connect_group(const struct pl_group *g, const struct pl_transport_options *o, const struct agreed *a,
                               struct pl_transport **out)
{
    struct pl_tcp_setup setup = {.group = g, .channels = o->channels + 1, .place = a->place, .secret = a->secret, .timeout_ms = o->timeout_ms};
    int n = g->members * setup.channels, *fd = pl_alloc((size_t)n * sizeof *fd, "connections");
    if (!fd) {
        close(a->listener);
        return PL_ERR_MEMORY;
    }
    pl_status s = pl_tcp_connect(&setup, a->listener, fd);
    if (s == PL_OK) {
        s = create(g, o, out);
        if (s == PL_OK)
            s = adopt(*out, g, a->place, fd);
        for (int i = 0; i < n; i++)
            if (fd[i] >= 0)
                close(fd[i]);
    }
    pl_free(fd);
    if (s < 0) {
        pl_tcp_destroy(*out);
        *out = NULL;
    }
    return s;
}

pl_status pl_tcp_open(const struct pl_group *g, const struct pl_transport_options *o, struct pl_transport **out,
                          char *describe, size_t bytes)
{
    struct agreed a = {.listener = -1, .place = pl_alloc((size_t)g->members * sizeof *a.place, "addresses")};
    struct pl_tcp_offer *all = pl_alloc((size_t)g->members * sizeof *all, "addresses");
    *out = NULL;
    pl_status s = all ? meet(g, o, all, &a) : PL_ERR_MEMORY;
    if (s == PL_OK) {
        s = connect_group(g, o, &a, out);
        snprintf(describe, bytes, "%s, %d channel%s", a.place[g->me].name, o->channels, o->channels == 1 ? "" : "s");
    } else if (a.listener >= 0) {
        close(a.listener);
    }
    if (all)
        explicit_bzero(all, (size_t)g->members * sizeof *all);
    explicit_bzero(a.secret, sizeof a.secret);
    pl_free(all);
    pl_free(a.place);
    return s;
}
