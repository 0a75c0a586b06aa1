/* How members meet: failures go round with what each brings, and addresses are told apart. */
#include "transport/meet.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

static void say(struct pl_say *mine, const char *room, pl_status s)
{
    const char *text = s < 0 ? pl_error_text() : NULL;
    size_t n = strlen(room);
    if (text && strncmp(text, room, n) == 0 && strncmp(text + n, ": ", 2) == 0)
        text += n + 2;
    mine->status = s < 0 ? s : PL_OK;
    snprintf(mine->text, sizeof mine->text, "%s", text ? text : "failed");
}

pl_status pl_go_round(const struct pl_group *g, const char *room, pl_status s, struct pl_say *mine, size_t bytes, void *all)
{
    say(mine, room, s);
    pl_status went = g->allgather(g->arg, mine, bytes, all);
    if (s < 0)
        return s;
    PL_TRY(went);
    for (int m = 0; m < g->members; m++) {
        struct pl_say theirs;
        memcpy(&theirs, (const char *)all + (size_t)m * bytes, sizeof theirs);
        theirs.text[sizeof theirs.text - 1] = '\0';
        if (theirs.status < 0)
            return pl_error(theirs.status, room, "rank %d: %s", g->rank[m], theirs.text);
    }
    return PL_OK;
}

bool pl_same_bits(const unsigned char *a, const unsigned char *b, int bits)
{
    int whole = bits / 8, rest = bits % 8;
    if (memcmp(a, b, (size_t)whole) != 0)
        return false;
    return rest == 0 || (a[whole] ^ b[whole]) >> (8 - rest) == 0;
}

void pl_address_map(int family, const unsigned char *ip, unsigned char address[16])
{
    memset(address, 0, 16);
    if (family != AF_INET) {
        memcpy(address, ip, 16);
        return;
    }
    address[10] = address[11] = 0xff;
    memcpy(address + 12, ip, 4);
}

/* "10.1.2.3", "10.1.0.0/16", "fe80::1" as a mapped address and the number of leading bits that count. */
static bool parse(const char *text, unsigned char address[16], int *bits)
{
    char host[INET6_ADDRSTRLEN + 1], *end;
    unsigned char ip[16];
    const char *slash = strchr(text, '/');
    size_t n = slash ? (size_t)(slash - text) : strlen(text);
    if (n >= sizeof host)
        return false;
    memcpy(host, text, n);
    host[n] = '\0';
    int family = inet_pton(AF_INET, host, ip) == 1 ? AF_INET : AF_INET6, most = family == AF_INET ? 32 : 128;
    if (family == AF_INET6 && inet_pton(AF_INET6, host, ip) != 1)
        return false;
    long v = slash ? strtol(slash + 1, &end, 10) : most;
    if (slash && (end == slash + 1 || *end || v < 0 || v > most))
        return false;
    pl_address_map(family, ip, address);
    *bits = (int)v + 128 - most;
    return true;
}

bool pl_address_fits(const unsigned char address[16], const char *text)
{
    unsigned char wanted[16];
    int bits;
    return parse(text, wanted, &bits) && pl_same_bits(address, wanted, bits);
}
