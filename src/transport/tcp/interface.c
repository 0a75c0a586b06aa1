/* The choice of a network. Every member lists its addresses, sees the lists of all, and picks by the same rules, so
 * that all pick alike: a network that everybody has an address in, of real devices before virtual ones before the
 * bridges of containers, the faster first. A network like docker's, which is the same on every host and leads
 * nowhere, gives itself away by two hosts with one address. */
#include "transport/tcp/tcp.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static int ip_bytes(int family) { return family == AF_INET ? 4 : 16; }

socklen_t pl_tcp_sockaddr(const struct pl_tcp_address *a, struct sockaddr_storage *out)
{
    memset(out, 0, sizeof *out);
    if (a->family == AF_INET) {
        struct sockaddr_in *in = (struct sockaddr_in *)out;
        in->sin_family = AF_INET;
        in->sin_port = htons(a->port);
        memcpy(&in->sin_addr, a->ip, 4);
        return sizeof *in;
    }
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)out;
    in6->sin6_family = AF_INET6;
    in6->sin6_port = htons(a->port);
    memcpy(&in6->sin6_addr, a->ip, 16);
    return sizeof *in6;
}

void pl_tcp_print(const struct pl_tcp_address *a, char *text, size_t bytes)
{
    char ip[INET6_ADDRSTRLEN] = "?";
    inet_ntop(a->family, a->ip, ip, sizeof ip);
    if (a->port == 0)
        snprintf(text, bytes, "%s", ip);
    else
        snprintf(text, bytes, a->family == AF_INET ? "%s:%u" : "[%s]:%u", ip, a->port);
}

bool pl_tcp_fits(const struct pl_tcp_address *a, const char *filter)
{
    unsigned char address[16];
    if (!filter || strcmp(a->name, filter) == 0)
        return true;
    if ((strchr(filter, ':') != NULL) != (a->family == AF_INET6))
        return false; /* ::/0 is IPv6 alone */
    pl_address_map(a->family, a->ip, address);
    return pl_address_fits(address, filter);
}

enum pl_tcp_kind pl_tcp_kind_of(const char *name, bool loopback, bool device)
{
    static const char *const bridges[] = {"docker", "br-", "virbr", "cni", "flannel", "podman", "lxcbr", "lxdbr", "cali", "kube-"};
    if (loopback)
        return PL_TCP_LOOPBACK;
    for (size_t i = 0; i < sizeof bridges / sizeof *bridges; i++)
        if (strncmp(name, bridges[i], strlen(bridges[i])) == 0)
            return PL_TCP_BRIDGE;
    return device ? PL_TCP_DEVICE : PL_TCP_VIRTUAL;
}

/* A device of its own, or below it: bonds, VLANs, a bridge over a network card. */
static bool has_device(const char *name, int depth)
{
    char path[320];
    snprintf(path, sizeof path, "/sys/class/net/%s/device", name);
    if (access(path, F_OK) == 0)
        return true;
    snprintf(path, sizeof path, "/sys/class/net/%s", name);
    DIR *d = depth < 3 ? opendir(path) : NULL;
    bool found = false;
    for (struct dirent *e; d && !found && (e = readdir(d));)
        found = strncmp(e->d_name, "lower_", 6) == 0 && has_device(e->d_name + 6, depth + 1);
    if (d)
        closedir(d);
    return found;
}

static int32_t speed_of(const char *name)
{
    char path[64];
    int speed = 0;
    snprintf(path, sizeof path, "/sys/class/net/%s/speed", name);
    FILE *f = fopen(path, "re");
    if (f) {
        if (fscanf(f, "%d", &speed) != 1 || speed < 0)
            speed = 0;
        fclose(f);
    }
    return speed;
}

/* Two processes with the same number share a network stack: the machine's boot and the network namespace. */
static uint64_t host_number(void)
{
    char boot[64] = "";
    struct stat st = {0};
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (f) {
        if (!fgets(boot, sizeof boot, f))
            boot[0] = '\0';
        fclose(f);
    }
    if (!boot[0])
        gethostname(boot, sizeof boot - 1);
    if (stat("/proc/self/ns/net", &st) != 0)
        st.st_ino = 0;
    return pl_hash(pl_hash(PL_HASH_START, boot, strlen(boot)), &st.st_ino, sizeof st.st_ino);
}

static bool describe_address(const struct ifaddrs *i, struct pl_tcp_address *a)
{
    if (!i->ifa_addr || !i->ifa_netmask || (i->ifa_flags & (IFF_UP | IFF_RUNNING)) != (IFF_UP | IFF_RUNNING))
        return false;
    memset(a, 0, sizeof *a);
    a->family = i->ifa_addr->sa_family;
    const unsigned char *mask;
    if (a->family == AF_INET) {
        memcpy(a->ip, &((struct sockaddr_in *)i->ifa_addr)->sin_addr, 4);
        mask = (unsigned char *)&((struct sockaddr_in *)i->ifa_netmask)->sin_addr;
    } else if (a->family == AF_INET6 && !IN6_IS_ADDR_LINKLOCAL(&((struct sockaddr_in6 *)i->ifa_addr)->sin6_addr)) {
        memcpy(a->ip, &((struct sockaddr_in6 *)i->ifa_addr)->sin6_addr, 16);
        mask = (unsigned char *)&((struct sockaddr_in6 *)i->ifa_netmask)->sin6_addr;
    } else {
        return false;
    }
    for (int b = 0; b < ip_bytes(a->family); b++)
        a->prefix = (uint16_t)(a->prefix + __builtin_popcount(mask[b]));
    snprintf(a->name, sizeof a->name, "%.16s", i->ifa_name);
    a->kind = (uint16_t)pl_tcp_kind_of(a->name, i->ifa_flags & IFF_LOOPBACK, has_device(a->name, 0));
    a->mbps = speed_of(a->name);
    return true;
}

static bool better(const struct pl_tcp_address *a, const struct pl_tcp_address *b)
{
    if (a->kind != b->kind)
        return a->kind < b->kind;
    if (a->mbps != b->mbps)
        return a->mbps > b->mbps;
    return a->family == AF_INET && b->family != AF_INET;
}

/* Where there are more than fit, the better ones stay. */
static void add(struct pl_tcp_offer *o, const struct pl_tcp_address *a)
{
    if (o->addresses < PL_TCP_ADDRESSES) {
        o->address[o->addresses++] = *a;
        return;
    }
    int worst = 0;
    for (int i = 1; i < PL_TCP_ADDRESSES; i++)
        if (better(&o->address[worst], &o->address[i]))
            worst = i;
    if (better(a, &o->address[worst]))
        o->address[worst] = *a;
}

pl_status pl_tcp_list(const char *filter, struct pl_tcp_offer *o)
{
    struct ifaddrs *all;
    struct pl_tcp_address a;
    struct pl_text there = {0};
    o->addresses = 0;
    o->host = host_number();
    if (getifaddrs(&all) != 0)
        return pl_error(PL_ERR_PEER, PL_TCP_ROOM, "no list of network interfaces: %s", strerror(errno));
    for (struct ifaddrs *i = all; i; i = i->ifa_next) {
        char text[64];
        if (!describe_address(i, &a))
            continue;
        if (pl_tcp_fits(&a, filter))
            add(o, &a);
        pl_tcp_print(&a, text, sizeof text);
        pl_text_add(&there, "%s%s %s/%u", there.s ? ", " : "", a.name, text, a.prefix);
    }
    freeifaddrs(all);
    pl_status s = PL_OK;
    if (o->addresses == 0 && filter)
        s = pl_error(PL_ERR_PEER, PL_TCP_ROOM,
                     "exchange.interface: %s fits no running interface; there is %.200s\nwrite a name or a CIDR such as 10.9.0.0/24 (an address is one host's alone)",
                     filter, there.s ? there.s : "none");
    else if (o->addresses == 0)
        s = pl_error(PL_ERR_PEER, PL_TCP_ROOM, "no network interface is up");
    pl_text_free(&there);
    return s;
}

static bool one_host(const struct pl_tcp_offer *o, int members)
{
    for (int m = 1; m < members; m++)
        if (o[m].host != o[0].host)
            return false;
    return true;
}

/* Each member's best address in the network of `net`; *worst: the least good of them. */
static bool pick_in(const struct pl_tcp_offer *o, int members, const struct pl_tcp_address *net, int *pick, struct pl_tcp_address *worst)
{
    for (int m = 0; m < members; m++) {
        pick[m] = -1;
        for (int i = 0; i < o[m].addresses; i++) {
            const struct pl_tcp_address *a = &o[m].address[i];
            if (a->prefix == net->prefix && a->family == net->family && pl_same_bits(a->ip, net->ip, net->prefix) &&
                (pick[m] < 0 || better(a, &o[m].address[pick[m]])))
                pick[m] = i;
        }
        if (pick[m] < 0)
            return false;
        const struct pl_tcp_address *mine = &o[m].address[pick[m]];
        if (m == 0 || better(worst, mine))
            *worst = *mine;
        for (int k = 0; k < m; k++)
            if (o[k].host != o[m].host && memcmp(mine->ip, o[k].address[pick[k]].ip, sizeof mine->ip) == 0)
                return false;
    }
    return true;
}

bool pl_tcp_choose(const struct pl_tcp_offer *o, int members, bool one_node, int *pick)
{
    bool local = one_node && one_host(o, members), found = false;
    struct pl_tcp_address worst, best = {0};
    int *trial = pl_alloc((size_t)members * sizeof *trial, "the choice of a network");
    for (int i = 0; trial && i < o[0].addresses; i++) {
        const struct pl_tcp_address *net = &o[0].address[i];
        if ((net->kind == PL_TCP_LOOPBACK && !local) || !pick_in(o, members, net, trial, &worst))
            continue;
        bool home = net->kind == PL_TCP_LOOPBACK; /* on one host the shortest way */
        if (!found || (home && (best.kind != PL_TCP_LOOPBACK || better(&worst, &best))) ||
            (best.kind != PL_TCP_LOOPBACK && !home && better(&worst, &best))) {
            memcpy(pick, trial, (size_t)members * sizeof *pick);
            best = worst;
            found = true;
        }
    }
    pl_free(trial);
    return found;
}

/* The address that the kernel would send from. */
static bool source_towards(const struct pl_tcp_address *peer, struct pl_tcp_address *source)
{
    struct sockaddr_storage to, from;
    struct pl_tcp_address target = *peer;
    target.port = 9;
    socklen_t bytes = pl_tcp_sockaddr(&target, &to), from_bytes = sizeof from;
    int fd = socket(peer->family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool found = fd >= 0 && connect(fd, (struct sockaddr *)&to, bytes) == 0 && getsockname(fd, (struct sockaddr *)&from, &from_bytes) == 0;
    if (fd >= 0)
        close(fd);
    memset(source, 0, sizeof *source);
    source->family = peer->family;
    if (found && peer->family == AF_INET)
        memcpy(source->ip, &((struct sockaddr_in *)&from)->sin_addr, 4);
    else if (found)
        memcpy(source->ip, &((struct sockaddr_in6 *)&from)->sin6_addr, 16);
    return found;
}

/* An address that another host has too leads nowhere: loopback's, docker's. */
static bool leads_nowhere(const struct pl_tcp_offer *o, int members, uint64_t host, const struct pl_tcp_address *a)
{
    for (int m = 0; m < members; m++)
        for (int i = 0; o[m].host != host && i < o[m].addresses; i++)
            if (o[m].address[i].family == a->family && memcmp(o[m].address[i].ip, a->ip, sizeof a->ip) == 0)
                return true;
    return a->kind == PL_TCP_LOOPBACK;
}

static const struct pl_tcp_address *best_of(const struct pl_tcp_offer *o, int members, int m, int family)
{
    const struct pl_tcp_address *best = NULL;
    for (int i = 0; i < o[m].addresses; i++) {
        const struct pl_tcp_address *a = &o[m].address[i];
        if (a->family == family && (!best || better(a, best)) && !leads_nowhere(o, members, o[m].host, a))
            best = a;
    }
    return best;
}

/* All take the same family: IPv4 if every member has it. */
static int common_family(const struct pl_tcp_offer *o, int members)
{
    for (int m = 0; m < members; m++)
        if (!best_of(o, members, m, AF_INET))
            return AF_INET6;
    return AF_INET;
}

pl_status pl_tcp_by_route(const struct pl_tcp_offer *o, int members, int me, struct pl_tcp_address *out)
{
    struct pl_tcp_address source;
    int family = common_family(o, members), other = 0;
    while (other < members && o[other].host == o[me].host)
        other++;
    const struct pl_tcp_address *peer = other < members ? best_of(o, members, other, family) : NULL, *mine = best_of(o, members, me, family);
    if (!peer || !mine)
        return pl_error(PL_ERR_PEER, PL_TCP_ROOM,
                        "no network reaches all ranks: %s has none but loopback's among the addresses it may use\nlook at exchange.interface, and at what is up",
                        mine ? "another" : "this one");
    bool routed = source_towards(peer, &source);
    for (int i = 0; routed && i < o[me].addresses; i++)
        if (o[me].address[i].family == family && memcmp(o[me].address[i].ip, source.ip, sizeof source.ip) == 0 &&
            !leads_nowhere(o, members, o[me].host, &o[me].address[i])) {
            *out = o[me].address[i];
            return PL_OK;
        }
    *out = *mine; /* the route leads another way than exchange.interface asks for */
    return PL_OK;
}
