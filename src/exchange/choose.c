/* The choice of an algorithm by size. A table, as `paceline bench allreduce --tune=FILE` writes it, has lines of
 *     TRANSPORT MEMBERS BYTES ALGORITHM
 * : up to BYTES (or "-": without limit) ALGORITHM was the fastest. Lines for the nearest number of members of
 * the same transport hold. '#' starts a comment. */
#include "exchange/choose.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

static bool pattern_by_name(const char *name, int *out)
{
    for (*out = 0; *out < PL_PATTERNS; ++*out)
        if (strcmp(name, pl_pattern_name(*out)) == 0)
            return true;
    return strcmp(name, "native") == 0; /* *out is PL_NATIVE */
}

static void only(struct pl_choice *c, int pattern)
{
    *c = (struct pl_choice){.rows = 1};
    c->row[0].most_bytes = SIZE_MAX;
    c->row[0].pattern = pattern;
}

/* Without measurements: few bytes cost their rounds, many cost their bytes. Halving and doubling sends as few
 * bytes as a ring in 2 log2 rounds, but only where the members are a power of two. */
static void our_own(struct pl_choice *c, const char *transport, int members)
{
    bool power = (members & (members - 1)) == 0;
    if (strcmp(transport, "mpi") == 0) {
        only(c, PL_NATIVE);
        return;
    }
    *c = (struct pl_choice){.rows = 3};
    c->row[0].most_bytes = 4096;
    c->row[0].pattern = power ? PL_HALVING_DOUBLING : PL_TREE;
    c->row[1].most_bytes = (size_t)members << 15;
    c->row[1].pattern = power ? PL_HALVING_DOUBLING : PL_RING;
    c->row[2].most_bytes = SIZE_MAX;
    c->row[2].pattern = PL_RING;
}

struct line { char transport[16], limit[32], algorithm[32]; int members, pattern; size_t bytes; };

static pl_status read_line(const char *text, const char *path, int number, struct line *l)
{
    char *end = "", rest[2];
    int n = sscanf(text, "%15s %d %31s %31s %1s", l->transport, &l->members, l->limit, l->algorithm, rest);
    bool unlimited = n == 4 && strcmp(l->limit, "-") == 0;
    l->bytes = unlimited ? SIZE_MAX : n == 4 ? strtoull(l->limit, &end, 10) : 0;
    if (n != 4 || l->members < 2 || (!unlimited && !(l->limit[0] >= '0' && l->limit[0] <= '9')) || *end || l->bytes == 0 || !pattern_by_name(l->algorithm, &l->pattern))
        return pl_error(PL_ERR_USAGE, "exchange", "%s:%d: wanted TRANSPORT MEMBERS BYTES|- ALGORITHM, found: %.60s\n"
                        "paceline bench allreduce --tune=FILE writes such a table", path, number, text);
    if (l->pattern == PL_NATIVE && strcmp(l->transport, "mpi") != 0)
        return pl_error(PL_ERR_USAGE, "exchange", "%s:%d: %s has no all-reduce of its own", path, number, l->transport);
    return PL_OK;
}

static int distance(int a, int b) { return a > b ? a - b : b - a; }

/* *rows 0: the table has nothing for this transport. */
static pl_status read_table(const char *path, const char *transport, int members, struct pl_choice *out)
{
    char *text;
    int number = 0, nearest = INT_MAX;
    out->rows = 0;
    PL_TRY(pl_read_file(path, "exchange", PL_ERR_USAGE, &text, NULL));
    pl_status s = PL_OK;
    for (char *line = text, *next; s == PL_OK && *line; line = next) {
        struct line l;
        size_t length = strcspn(line, "\n");
        next = line + length + (line[length] == '\n');
        line[length] = '\0';
        number++;
        if (line[strspn(line, " \t\r")] == '\0' || line[strspn(line, " \t")] == '#')
            continue;
        s = read_line(line, path, number, &l);
        if (s < 0 || strcmp(l.transport, transport) != 0 || distance(l.members, members) > distance(nearest, members))
            continue;
        if (l.members != nearest)
            out->rows = 0;
        nearest = l.members;
        if (out->rows == PL_MOST_CHOICES || (out->rows > 0 && out->row[out->rows - 1].most_bytes >= l.bytes))
            s = pl_error(PL_ERR_USAGE, "exchange", "%s:%d: sizes of one transport and number of members must rise, %d lines at most", path, number, PL_MOST_CHOICES);
        else {
            out->row[out->rows].most_bytes = l.bytes;
            out->row[out->rows++].pattern = l.pattern;
        }
    }
    pl_free(text);
    if (s == PL_OK && out->rows > 0)
        out->row[out->rows - 1].most_bytes = SIZE_MAX;
    return s;
}

pl_status pl_choose(const char *algorithm, const char *table, const char *transport, int members, struct pl_choice *out)
{
    int pattern;
    if (strcmp(algorithm, "auto") == 0) {
        if (table)
            PL_TRY(read_table(table, transport, members, out));
        if (!table || out->rows == 0)
            our_own(out, transport, members);
        return PL_OK;
    }
    if (!pattern_by_name(algorithm, &pattern))
        return pl_error(PL_ERR_USAGE, "exchange", "no algorithm %s", algorithm);
    if (pattern == PL_NATIVE && strcmp(transport, "mpi") != 0)
        return pl_error(PL_ERR_USAGE, "exchange", "exchange.algorithm native is MPI's own; transport %s has none\n"
                        "take ring, halving_doubling, tree or auto, or exchange.transport=mpi", transport);
    only(out, pattern);
    return PL_OK;
}

bool pl_choose_pattern(const struct pl_choice *c, size_t bytes, enum pl_pattern *out)
{
    int i = 0;
    while (i < c->rows - 1 && bytes > c->row[i].most_bytes)
        i++;
    *out = (enum pl_pattern)c->row[i].pattern;
    return c->row[i].pattern != PL_NATIVE;
}

static const char *name_of(int pattern) { return pattern == PL_NATIVE ? "native" : pl_pattern_name((enum pl_pattern)pattern); }

void pl_choose_describe(const struct pl_choice *c, char *text, size_t bytes)
{
    size_t at = 0;
    text[0] = '\0';
    for (int i = 0; i < c->rows && at < bytes; i++) {
        if (i + 1 < c->rows && c->row[i].pattern == c->row[i + 1].pattern)
            continue;
        at += (size_t)snprintf(text + at, bytes - at, "%s%s", at ? ", " : "", name_of(c->row[i].pattern));
        if (i + 1 < c->rows && at < bytes)
            at += (size_t)snprintf(text + at, bytes - at, " to %zu KB", c->row[i].most_bytes >> 10);
    }
}
