/* Schedules of all-reduces. Each pattern is written as the steps of one member in their order; what has to
 * wait for what follows from the ranges: a send out of `out` waits for the last receive that wrote there, a
 * receive into `out` for the last send from there. */
#include "exchange/schedule.h"

#define LINE_ELEMS 16 /* floats of a cache line */

struct builder {
    struct pl_schedule *s;
    int64_t most;
    int send_room, receive_room;
    bool failed;
};

int64_t pl_part(int64_t n, int r, int parts)
{
    int64_t lines = (n + LINE_ELEMS - 1) / LINE_ELEMS, at = lines * r / parts * LINE_ELEMS;
    return at < n ? at : n;
}

static bool meets(const struct pl_move *m, int64_t a, int64_t n) { return m->a < a + n && a < m->a + m->n; }

static struct pl_move *append(struct builder *b, struct pl_move **list, int *count, int *room)
{
    if (*count == *room) {
        int more = *room ? *room * 2 : 64;
        struct pl_move *bigger = pl_realloc(*list, (size_t)*room * sizeof *bigger, (size_t)more * sizeof *bigger, "a schedule");
        if (!bigger) {
            b->failed = true;
            return NULL;
        }
        *list = bigger;
        *room = more;
    }
    return &(*list)[(*count)++];
}

static uint32_t next_piece(const struct pl_move *list, int count, int peer)
{
    for (int i = count - 1; i >= 0; i--)
        if (list[i].peer == peer)
            return list[i].piece + 1;
    return 0;
}

static void send_one(struct builder *b, int peer, int64_t a, int64_t n, enum pl_how how)
{
    struct pl_schedule *s = b->s;
    uint32_t piece = next_piece(s->send, s->sends, peer);
    struct pl_move *m = append(b, &s->send, &s->sends, &b->send_room);
    int after = how == PL_FROM_OUT ? s->receives : 0;
    while (after > 0 && !meets(&s->receive[after - 1], a, n))
        after--;
    if (m)
        *m = (struct pl_move){.a = a, .n = n, .peer = peer, .after = after, .piece = piece, .how = how};
}

static void receive_one(struct builder *b, int peer, int64_t a, int64_t n, enum pl_how how)
{
    struct pl_schedule *s = b->s;
    uint32_t piece = next_piece(s->receive, s->receives, peer);
    struct pl_move *m = append(b, &s->receive, &s->receives, &b->receive_room);
    int after = s->sends;
    while (after > 0 && !(s->send[after - 1].how == PL_FROM_OUT && meets(&s->send[after - 1], a, n)))
        after--;
    if (m)
        *m = (struct pl_move){.a = a, .n = n, .peer = peer, .after = after, .piece = piece, .how = how};
}

typedef void one(struct builder *b, int peer, int64_t a, int64_t n, enum pl_how how);

/* A range in messages of at most b->most. */
static void in_pieces(one *f, struct builder *b, int peer, int64_t a, int64_t n, enum pl_how how)
{
    for (int64_t at = 0; at < n && !b->failed; at += b->most)
        f(b, peer, a + at, n - at < b->most ? n - at : b->most, how);
}
static void send(struct builder *b, int peer, int64_t a, int64_t n, enum pl_how how) { in_pieces(send_one, b, peer, a, n, how); }
static void receive(struct builder *b, int peer, int64_t a, int64_t n, enum pl_how how) { in_pieces(receive_one, b, peer, a, n, how); }

/* ---- ring: p parts go round, each gathering what every member adds, then each goes round again ---------- */

static void ring(struct builder *b, int me, int p, int64_t elems)
{
    int right = (me + 1) % p, left = (me + p - 1) % p;
    for (int phase = 0; phase < 2; phase++)
        for (int k = 0; k < p - 1; k++) {
            int out = (me + phase - k + 2 * p) % p, in = (out + p - 1) % p;
            int64_t a = pl_part(elems, out, p), c = pl_part(elems, in, p);
            send(b, right, a, pl_part(elems, out + 1, p) - a, phase == 0 && k == 0 ? PL_FROM_IN : PL_FROM_OUT);
            receive(b, left, c, pl_part(elems, in + 1, p) - c, phase == 0 ? PL_ADD_IN : PL_COPY);
        }
}

/* ---- halving and doubling: partners swap halves of what they still hold ------------------------------------ */

struct range { int64_t a, n; };

/* The half of a range that stays with the partner whose bit is 0, or 1. */
static struct range half(struct range r, int bit)
{
    int64_t middle = pl_part(r.n, 1, 2);
    return bit ? (struct range){r.a + middle, r.n - middle} : (struct range){r.a, middle};
}

/* Beyond the largest power of two, `extra` members hand theirs to a neighbour before and get the sum after:
 * members 0, 2, 4 .. 2 extra - 2 stand for themselves and the next one. */
static int member_of(int place, int extra) { return place < extra ? 2 * place : place + extra; }

static void halving_doubling(struct builder *b, int me, int p, int64_t elems)
{
    int power = 1, rounds = 0;
    struct range held[32] = {{0, elems}};
    for (; power * 2 <= p; power *= 2)
        rounds++;
    int extra = p - power;
    bool folded = me < 2 * extra;
    if (folded && me % 2 == 1) {
        send(b, me - 1, 0, elems, PL_FROM_IN);
        receive(b, me - 1, 0, elems, PL_COPY);
        return;
    }
    if (folded)
        receive(b, me + 1, 0, elems, PL_ADD_IN);
    int place = folded ? me / 2 : me - extra;
    for (int k = 0; k < rounds; k++) {
        int bit = place >> k & 1, partner = member_of(place ^ 1 << k, extra);
        struct range theirs = half(held[k], !bit);
        bool first = k == 0 && !folded;
        held[k + 1] = half(held[k], bit);
        send(b, partner, theirs.a, theirs.n, first ? PL_FROM_IN : PL_FROM_OUT);
        receive(b, partner, held[k + 1].a, held[k + 1].n, first ? PL_ADD_IN : PL_ADD_OUT);
    }
    for (int k = rounds - 1; k >= 0; k--) {
        int bit = place >> k & 1, partner = member_of(place ^ 1 << k, extra);
        struct range theirs = half(held[k], !bit);
        send(b, partner, held[k + 1].a, held[k + 1].n, PL_FROM_OUT);
        receive(b, partner, theirs.a, theirs.n, PL_COPY);
    }
    if (folded)
        send(b, me + 1, 0, elems, PL_FROM_OUT);
}

/* ---- tree ---------------------------------------------------------------------------------------------------- */

static void tree(struct builder *b, int me, int p, int64_t elems)
{
    enum pl_how add = PL_ADD_IN, from = PL_FROM_IN;
    int bit = 1;
    for (; bit < p && !(me & bit); bit *= 2)
        if (me + bit < p) {
            receive(b, me + bit, 0, elems, add);
            add = PL_ADD_OUT;
            from = PL_FROM_OUT;
        }
    if (me > 0) {
        send(b, me - bit, 0, elems, from);
        receive(b, me - bit, 0, elems, PL_COPY);
    }
    for (bit /= 2; bit > 0; bit /= 2)
        if (me + bit < p)
            send(b, me + bit, 0, elems, PL_FROM_OUT);
}

/* ---- slots: at each step everybody sends to one and receives from another --------------------------------- */

static void scatter(struct builder *b, int me, int p, int64_t elems)
{
    int64_t slot = elems / p;
    for (int k = 1; k < p; k++) {
        int to = (me + k) % p, from = (me + p - k) % p;
        send(b, to, to * slot, slot, PL_FROM_IN);
        receive(b, from, from * slot, slot, PL_COPY);
    }
}

static void gather(struct builder *b, int me, int p, int64_t elems)
{
    int64_t slot = elems / p;
    for (int k = 1; k < p; k++) {
        int from = (me + p - k) % p;
        send(b, (me + k) % p, me * slot, slot, PL_FROM_IN);
        receive(b, from, from * slot, slot, PL_COPY);
    }
}

/* ---- all ------------------------------------------------------------------------------------------------------ */

static const struct {
    const char *name;
    void (*steps)(struct builder *b, int me, int members, int64_t elems);
} patterns[] = {
    [PL_RING] = {"ring", ring}, [PL_HALVING_DOUBLING] = {"halving_doubling", halving_doubling}, [PL_TREE] = {"tree", tree},
    [PL_SCATTER] = {"scatter", scatter}, [PL_GATHER] = {"gather", gather}};

const char *pl_pattern_name(enum pl_pattern p) { return patterns[p].name; }

pl_status pl_schedule_make(enum pl_pattern p, int me, int members, int64_t elems, int64_t most, struct pl_schedule *out)
{
    struct builder b = {.s = out, .most = most};
    *out = (struct pl_schedule){.pattern = p, .elems = elems};
    patterns[p].steps(&b, me, members, elems);
    if (!b.failed)
        return PL_OK;
    pl_schedule_free(out);
    return PL_ERR_MEMORY;
}

void pl_schedule_free(struct pl_schedule *s)
{
    pl_free(s->send);
    pl_free(s->receive);
    s->send = s->receive = NULL;
}
