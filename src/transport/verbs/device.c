/* Which ports of which RDMA devices serve, and by which GID: InfiniBand by LID, RoCE by the GID that stands for an
 * address of its network interface. Types and interfaces of GIDs are read from sysfs, where every kernel has them. */
#include "transport/verbs/verbs.h"

#include <dirent.h>
#include <errno.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <stdlib.h>

/* ---- the GID ------------------------------------------------------------------------------------ */

static bool is_mapped(const unsigned char *gid) /* ::ffff:a.b.c.d */
{
    static const unsigned char prefix[12] = {[10] = 0xff, [11] = 0xff};
    return memcmp(gid, prefix, sizeof prefix) == 0;
}

bool pl_verbs_gid_is_loopback(const struct pl_verbs_gid *g)
{
    static const unsigned char one[16] = {[15] = 1};
    return (is_mapped(g->raw) && g->raw[12] == 127) || memcmp(g->raw, one, 16) == 0 || strcmp(g->netdev, "lo") == 0;
}

static bool gid_fits(const struct pl_verbs_gid *g, const char *interface)
{
    return !interface || strcmp(g->netdev, interface) == 0 || pl_address_fits(g->raw, interface);
}

int pl_verbs_choose_gid(const struct pl_verbs_gid *gids, int n, const char *interface)
{
    int best = -1, best_worth = -1;
    for (int i = 0; i < n; i++) {
        const struct pl_verbs_gid *g = &gids[i];
        bool link_local = g->raw[0] == 0xfe && (g->raw[1] & 0xc0) == 0x80;
        int worth = (g->type == PL_VERBS_GID_ROCE1 ? 0 : 8) + (is_mapped(g->raw) ? 4 : link_local ? 0 : 2) +
                    (pl_verbs_gid_is_loopback(g) ? 0 : 1);
        if (worth > best_worth && gid_fits(g, interface)) {
            best = i;
            best_worth = worth;
        }
    }
    return best;
}

/* ---- a port ------------------------------------------------------------------------------------- */

static bool read_line(const char *path, char *out, size_t bytes)
{
    FILE *f = fopen(path, "r");
    out[0] = '\0';
    if (!f)
        return false;
    bool read = fgets(out, (int)bytes, f) != NULL;
    fclose(f); /* an entry that is not in use gives an error on reading */
    out[strcspn(out, "\n")] = '\0';
    return read;
}

static int read_gids(struct ibv_context *context, const char *device, int port, int length, struct pl_verbs_gid *out)
{
    static const unsigned char zero[16];
    char path[256], text[64];
    int n = 0;
    for (int i = 0; i < length && n < PL_VERBS_GIDS; i++) {
        struct pl_verbs_gid *g = &out[n];
        union ibv_gid gid;
        if (pl_verbs.query_gid(context, (uint8_t)port, i, &gid) != 0 || memcmp(gid.raw, zero, 16) == 0)
            continue;
        snprintf(path, sizeof path, "/sys/class/infiniband/%s/ports/%d/gid_attrs/types/%d", device, port, i);
        bool typed = read_line(path, text, sizeof text);
        *g = (struct pl_verbs_gid){.index = i, .type = typed && strcmp(text, "RoCE v2") == 0 ? PL_VERBS_GID_ROCE2 : PL_VERBS_GID_ROCE1};
        memcpy(g->raw, gid.raw, 16);
        snprintf(path, sizeof path, "/sys/class/infiniband/%s/ports/%d/gid_attrs/ndevs/%d", device, port, i);
        if (read_line(path, text, sizeof text))
            snprintf(g->netdev, sizeof g->netdev, "%.15s", text);
        n++;
    }
    return n;
}

/* InfiniBand: the addresses of its interface (ib0), each as a GID, so that one code looks for them. */
static int interface_addresses(const char *device, int port, struct pl_verbs_gid *out)
{
    struct ifaddrs *all = NULL;
    char path[320], text[32];
    int n = 0;
    if (getifaddrs(&all) != 0)
        return 0;
    for (struct ifaddrs *a = all; a && n < PL_VERBS_GIDS; a = a->ifa_next) {
        snprintf(path, sizeof path, "/sys/class/net/%s/device/infiniband/%s", a->ifa_name, device);
        DIR *belongs = a->ifa_addr && (a->ifa_addr->sa_family == AF_INET || a->ifa_addr->sa_family == AF_INET6) ? opendir(path) : NULL;
        if (!belongs)
            continue;
        closedir(belongs);
        snprintf(path, sizeof path, "/sys/class/net/%s/dev_port", a->ifa_name);
        if (read_line(path, text, sizeof text) && atoi(text) + 1 != port)
            continue;
        struct pl_verbs_gid *g = &out[n++];
        *g = (struct pl_verbs_gid){.type = PL_VERBS_GID_IB, .raw = {[10] = 0xff, [11] = 0xff}};
        snprintf(g->netdev, sizeof g->netdev, "%.15s", a->ifa_name);
        if (a->ifa_addr->sa_family == AF_INET)
            memcpy(g->raw + 12, &((struct sockaddr_in *)a->ifa_addr)->sin_addr, 4);
        else
            memcpy(g->raw, &((struct sockaddr_in6 *)a->ifa_addr)->sin6_addr, 16);
    }
    freeifaddrs(all);
    return n;
}

static uint32_t rate_of(const struct ibv_port_attr *a)
{
    static const struct { int code, rate; } speeds[] = {{1, 25}, {2, 50}, {4, 100}, {8, 100}, {16, 140}, {32, 250}, {64, 500}, {128, 1000}};
    static const struct { int code, lanes; } widths[] = {{1, 1}, {2, 4}, {4, 8}, {8, 12}, {16, 2}};
    uint32_t rate = 25, lanes = 1;
    for (size_t i = 0; i < sizeof speeds / sizeof *speeds; i++)
        rate = a->active_speed == speeds[i].code ? (uint32_t)speeds[i].rate : rate;
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++)
        lanes = a->active_width == widths[i].code ? (uint32_t)widths[i].lanes : lanes;
    return rate * lanes;
}

/* Each queue pair has its share of a completion queue that can hold all its entries. */
static uint32_t most_queues(const struct ibv_device_attr *a)
{
    int send = pl_verbs_send_depth(PL_VERBS_SLOTS), receive = pl_verbs_receive_depth(PL_VERBS_SLOTS);
    int by_entries = a->max_cqe / (send + receive);
    if (a->max_qp_wr < send || a->max_qp_wr < receive || a->max_sge < 2)
        return 0;
    return (uint32_t)(a->max_qp < by_entries ? a->max_qp : by_entries);
}

/* "mlx5_0" or "mlx5_0:1" */
static bool names_port(const char *interface, const char *device, int port)
{
    char text[96];
    snprintf(text, sizeof text, "%s:%d", device, port);
    return strcmp(interface, device) == 0 || strcmp(interface, text) == 0;
}

/* 0: the port serves; otherwise what is against it: 1 it is down, 2 it does not fit. */
static int look_at_port(struct ibv_context *context, const char *device, int port, const char *interface, struct pl_verbs_port *out, char *why,
                        size_t bytes)
{
    struct pl_verbs_gid gids[PL_VERBS_GIDS], of_interface[PL_VERBS_GIDS];
    struct ibv_port_attr a;
    *out = (struct pl_verbs_port){.port = port};
    snprintf(out->device, sizeof out->device, "%s", device);
    if (pl_verbs_query_port(context, port, &a) != 0 || a.state != IBV_PORT_ACTIVE) {
        snprintf(why, bytes, "%s: port %d is down", device, port);
        return 1;
    }
    const char *wanted = interface && !names_port(interface, device, port) ? interface : NULL;
    out->infiniband = a.link_layer != IBV_LINK_LAYER_ETHERNET;
    out->lid = a.lid;
    out->mtu = a.active_mtu;
    out->rate = rate_of(&a);
    int n = read_gids(context, device, port, a.gid_tbl_len, gids), chosen = out->infiniband ? 0 : pl_verbs_choose_gid(gids, n, wanted);
    if (out->infiniband && wanted) {
        int m = interface_addresses(device, port, of_interface), found = pl_verbs_choose_gid(of_interface, m, wanted);
        chosen = found < 0 ? -1 : 0;
        snprintf(out->netdev, sizeof out->netdev, "%s", found < 0 ? "" : of_interface[found].netdev);
    }
    if (chosen < 0 || n == 0) {
        snprintf(why, bytes, "%s port %d%s%s", device, port, n ? ", " : " without a GID", n ? gids[0].netdev : "");
        return 2;
    }
    out->gid = gids[chosen];
    if (!out->infiniband) {
        memcpy(out->netdev, out->gid.netdev, sizeof out->netdev);
        out->loopback = pl_verbs_gid_is_loopback(&out->gid);
    }
    return 0;
}

void pl_verbs_describe_port(const struct pl_verbs_port *p, char *out, size_t bytes)
{
    const char *kind = p->infiniband ? "InfiniBand" : p->gid.type == PL_VERBS_GID_ROCE2 ? "RoCE v2" : "RoCE v1";
    snprintf(out, bytes, "%s port %d, %s, %u B MTU", p->device, p->port, kind, 128u << p->mtu);
}

/* ---- all ports ---------------------------------------------------------------------------------- */

struct survey {
    struct pl_verbs_port port[PL_VERBS_PORTS];
    int ports, unfit;
    struct pl_text down, there; /* in words */
};

static void look_at_device(struct survey *s, struct ibv_device *d, const char *interface)
{
    const char *name = pl_verbs.get_device_name(d);
    struct ibv_device_attr attr;
    char why[128];
    errno = 0;
    struct ibv_context *context = pl_verbs.open_device(d);
    if (!context || pl_verbs.query_device(context, &attr) != 0) {
        pl_text_add(&s->down, "%s%s cannot be opened: %s", s->down.s ? ", " : "", name, strerror(errno));
        attr.phys_port_cnt = 0;
    }
    for (int port = 1; port <= attr.phys_port_cnt && s->ports < PL_VERBS_PORTS; port++) {
        int against = look_at_port(context, name, port, interface, &s->port[s->ports], why, sizeof why);
        s->port[s->ports].most_queues = most_queues(&attr);
        struct pl_text *text = against == 1 ? &s->down : &s->there;
        s->ports += against == 0;
        s->unfit += against == 2;
        if (against)
            pl_text_add(text, "%s%s", text->s ? ", " : "", why);
    }
    if (context)
        pl_verbs.close_device(context);
}

static int by_name(const void *a, const void *b)
{
    const struct pl_verbs_port *p = a, *q = b;
    int order = strverscmp(p->device, q->device);
    return order ? order : p->port - q->port;
}

/* Of those that serve the ones to use: InfiniBand before RoCE, a loopback only where there is nothing else, nothing
 * much slower than the fastest (a management port beside the fabric's). */
static int keep_best(struct pl_verbs_port *port, int n, bool one_node, struct pl_verbs_port *out)
{
    bool infiniband = false, real = false;
    uint32_t fastest = 0;
    int kept = 0;
    for (int i = 0; i < n; i++) {
        infiniband |= port[i].infiniband;
        real |= !port[i].loopback;
    }
    for (int i = 0; i < n; i++)
        if (port[i].infiniband == infiniband && port[i].rate > fastest)
            fastest = port[i].rate;
    qsort(port, (size_t)n, sizeof *port, by_name);
    for (int i = 0; i < n && kept < PL_VERBS_RAILS; i++)
        if (port[i].infiniband == infiniband && port[i].rate * 2 >= fastest && (port[i].loopback ? !real && one_node : true))
            out[kept++] = port[i];
    return kept;
}

int pl_verbs_find_ports(const char *interface, bool one_node, struct pl_verbs_port ports[PL_VERBS_RAILS], char *reason, size_t bytes)
{
    struct survey s = {.ports = 0};
    int devices = 0, n = 0;
    if (!pl_verbs_load(reason, bytes))
        return 0;
    struct ibv_device **list = pl_verbs.get_device_list(&devices);
    for (int i = 0; list && i < devices; i++)
        look_at_device(&s, list[i], interface);
    if (list)
        pl_verbs.free_device_list(list);
    if (devices == 0)
        snprintf(reason, bytes, "no RDMA device");
    else if (s.ports > 0 && (n = keep_best(s.port, s.ports, one_node, ports)) == 0)
        snprintf(reason, bytes, "%s port %d serves this node alone", s.port[0].device, s.port[0].port);
    else if (s.ports == 0 && s.unfit > 0)
        snprintf(reason, bytes, "no RDMA port has %s: there is %s", interface ? interface : "a GID", s.there.s);
    else if (s.ports == 0)
        snprintf(reason, bytes, "%s", s.down.s ? s.down.s : "no RDMA port");
    else
        pl_verbs_describe_port(&ports[0], reason, bytes);
    pl_text_free(&s.down);
    pl_text_free(&s.there);
    return n;
}

/* ---- rails -------------------------------------------------------------------------------------- */

/* Rail r of one member reaches rail r of another: where hosts have several ports they are wired alike, in order. */
static bool reaches(const struct pl_verbs_port *a, const struct pl_verbs_port *b)
{
    if (a->infiniband != b->infiniband || a->loopback != b->loopback)
        return false;
    if (a->infiniband)
        return memcmp(a->gid.raw, b->gid.raw, 8) == 0; /* the subnet */
    return a->gid.type == b->gid.type && is_mapped(a->gid.raw) == is_mapped(b->gid.raw);
}

int pl_verbs_match_rails(const struct pl_verbs_port *const *all, const int *ports, const int *rank, int members, int rails[PL_VERBS_RAILS],
                         char *reason, size_t bytes)
{
    int fewest = PL_VERBS_RAILS, n = 0, apart = 0;
    for (int m = 0; m < members; m++)
        fewest = ports[m] < fewest ? ports[m] : fewest;
    for (int r = 0; r < fewest; r++) {
        int m = 1;
        while (m < members && reaches(&all[0][r], &all[m][r]))
            m++;
        if (m == members)
            rails[n++] = r;
        else if (apart == 0)
            apart = m;
    }
    if (n == 0) {
        char a[96], b[96];
        pl_verbs_describe_port(&all[0][0], a, sizeof a);
        pl_verbs_describe_port(&all[apart][0], b, sizeof b);
        snprintf(reason, bytes, "ranks %d (%s) and %d (%s) are not on one fabric", rank[0], a, rank[apart], b);
    }
    return n;
}
