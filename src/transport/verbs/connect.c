/* Set-up of the verbs transport. Four times something goes round: what each member has, the numbers of its queue pairs,
 * that they are ready, that their peers are whom they should be. A status goes with it each time, so that all members
 * end at the same place if one fails. The first frame on each queue pair proves the run's secret: HMAC over who speaks
 * to whom on which channel, and the nonces of both. */
#include "transport/verbs/verbs.h"

struct intro {
    struct pl_say say;
    unsigned char secret[PL_SECRET_BYTES]; /* member 0's is the run's */
    unsigned char nonce[PL_NONCE_BYTES];
    uint32_t sequence; /* packets start there */
    int channels, ports;
    struct pl_verbs_port port[PL_VERBS_RAILS];
};

struct numbers {
    struct pl_say say;
    uint64_t rings;
    uint32_t key[PL_VERBS_RAILS];
    uint32_t queue_pair[]; /* [members * queues] */
};

struct set_up {
    const struct pl_group *group;
    const struct pl_transport_options *options;
    struct pl_transport *transport;
    struct intro mine, *all;                /* [members] */
    struct numbers *mine_numbers, *numbers; /* [members], each numbers_bytes */
    size_t numbers_bytes;
    struct pl_say *says;               /* [members] */
    int *ports;                        /* [members] */
    const struct pl_verbs_port **port; /* [members] */
    int rails[PL_VERBS_RAILS];
    char describe[128];
};

/* ---- what goes round ------------------------------------------------------------------------------ */

static pl_status agree(struct set_up *u, pl_status s)
{
    struct pl_say mine = {0};
    return pl_go_round(u->group, "transport verbs", s, &mine, sizeof mine, u->says);
}

/* ---- what each member has --------------------------------------------------------------------------- */

static pl_status introduce(struct set_up *u)
{
    struct intro *i = &u->mine;
    int peers = u->group->members - 1;
    uint32_t room = UINT32_MAX;
    char reason[256] = "";
    i->ports = pl_verbs_find_ports(u->options->interface, u->group->one_node, i->port, reason, sizeof reason);
    if (i->ports == 0)
        return pl_error(PL_ERR_PEER, "transport verbs", "%s", reason);
    for (int p = 0; p < i->ports; p++)
        room = i->port[p].most_queues < room ? i->port[p].most_queues : room;
    i->channels = u->options->channels < 1 ? 1 : u->options->channels > PL_MOST_CHANNELS ? PL_MOST_CHANNELS : u->options->channels;
    if (peers > 0 && room / (uint32_t)peers < (uint32_t)i->channels + 1)
        i->channels = (int)(room / (uint32_t)peers) - 1;
    if (i->channels < 1)
        return pl_error(PL_ERR_PEER, "transport verbs", "%s has room for %u queue pairs, too few for %d peers", i->port[0].device, room, peers);
    if (u->group->me == 0)
        PL_TRY(pl_secret_random(i->secret, sizeof i->secret));
    PL_TRY(pl_secret_random(i->nonce, sizeof i->nonce));
    return pl_secret_random(&i->sequence, sizeof i->sequence);
}

/* The same ports, channels and slots on all members, or the same error. */
static pl_status choose(struct set_up *u)
{
    struct pl_transport *t = u->transport;
    char reason[320] = "";
    t->channels = PL_MOST_CHANNELS;
    for (int m = 0; m < t->members; m++) {
        u->ports[m] = u->all[m].ports;
        u->port[m] = u->all[m].port;
        t->channels = u->all[m].channels < t->channels ? u->all[m].channels : t->channels;
    }
    t->queues = t->channels + 1;
    t->rails = pl_verbs_match_rails(u->port, u->ports, u->group->rank, t->members, u->rails, reason, sizeof reason);
    if (t->rails == 0)
        return pl_error(PL_ERR_PEER, "transport verbs", "%s", reason);
    for (int r = 0; r < t->rails; r++) {
        t->device[r].index = r;
        t->device[r].port = u->mine.port[u->rails[r]];
    }
    return PL_OK;
}

static void describe(struct set_up *u)
{
    const struct pl_transport *t = u->transport;
    char port[128];
    pl_verbs_describe_port(&t->device[0].port, port, sizeof port);
    size_t n = (size_t)snprintf(u->describe, sizeof u->describe, "%s", port);
    if (t->rails > 1 && n < sizeof u->describe)
        n += (size_t)snprintf(u->describe + n, sizeof u->describe - n, " and %d more", t->rails - 1);
    if (n < sizeof u->describe)
        n += (size_t)snprintf(u->describe + n, sizeof u->describe - n, ", %d channel%s", t->channels, t->channels == 1 ? "" : "s");
    if (t->channels < u->options->channels && n < sizeof u->describe)
        snprintf(u->describe + n, sizeof u->describe - n, " (of %d: the device has no room for more)", u->options->channels);
}

/* ---- the numbers of queue pairs -------------------------------------------------------------------- */

static size_t numbers_bytes(int members, int queues)
{
    return (sizeof(struct numbers) + (size_t)members * (size_t)queues * sizeof(uint32_t) + 7) / 8 * 8;
}

/* What each member made goes round. */
static pl_status tell_numbers(struct set_up *u, pl_status s)
{
    struct pl_transport *t = u->transport;
    int members = u->group->members;
    struct numbers *mine = u->mine_numbers;
    u->numbers_bytes = numbers_bytes(members, t->queues);
    mine->rings = (uintptr_t)t->slab;
    for (int r = 0; s == PL_OK && r < t->rails; r++)
        mine->key[r] = t->device[r].rings->rkey;
    for (int i = 0; s == PL_OK && i < members * t->queues; i++)
        mine->queue_pair[i] = t->queue[i].qp ? t->queue[i].qp->qp_num : 0;
    return pl_go_round(u->group, "transport verbs", s, &mine->say, u->numbers_bytes, u->numbers);
}

static uint32_t first_packet(const struct set_up *u, int from, int to, int channel)
{
    return (u->all[from].sequence + 7919u * (uint32_t)to + 104729u * (uint32_t)channel) & 0xffffff;
}

static pl_status connect_all(struct set_up *u)
{
    struct pl_transport *t = u->transport;
    for (int i = 0; i < t->members * t->queues; i++) {
        struct pl_verbs_queue *q = &t->queue[i];
        int m = q->peer->member, rail = q->device->index;
        const struct numbers *theirs = (const void *)((const char *)u->numbers + (size_t)m * u->numbers_bytes);
        const struct pl_verbs_remote remote = {
            .port = u->all[m].port[u->rails[rail]],
            .queue_pair = theirs->queue_pair[t->me * t->queues + q->channel],
            .first_packet = first_packet(u, m, t->me, q->channel),
            .my_first_packet = first_packet(u, t->me, m, q->channel),
            .key = theirs->key[rail],
            .rings = theirs->rings,
        };
        if (q->qp)
            PL_TRY(pl_verbs_make_ready(t, q, &remote));
    }
    return PL_OK;
}

/* ---- the hand-shake --------------------------------------------------------------------------------- */

static pl_status prove(const struct set_up *u, const unsigned char *secret, int from, int to, int channel, unsigned char *proof)
{
    struct { char role[8]; int32_t from, to, channel, first; unsigned char nonce[2][PL_NONCE_BYTES]; } words = {
        .role = "verbs", .from = from, .to = to, .channel = channel, .first = from < to};
    memcpy(words.nonce[0], u->all[from].nonce, PL_NONCE_BYTES);
    memcpy(words.nonce[1], u->all[to].nonce, PL_NONCE_BYTES);
    return pl_secret_prove(secret, &words, sizeof words, proof);
}

static pl_status check_proof(struct set_up *u, const unsigned char *secret, struct pl_verbs_queue *q)
{
    const struct pl_verbs_frame *f = pl_verbs_first_frame(q);
    unsigned char proof[PL_PROOF_BYTES];
    PL_TRY(prove(u, secret, q->peer->member, u->group->me, q->channel, proof));
    if (f->kind != PL_VERBS_HELLO || f->bytes != PL_PROOF_BYTES || !pl_secret_same_proof(proof, (const unsigned char *)(f + 1)))
        return pl_error(PL_ERR_PEER, "transport verbs", "who connects as rank %d does not know the secret of this run (%s port %d)", q->peer->rank,
                        q->device->port.device, q->device->port.port);
    q->consumed++;
    q->proved = true;
    return PL_OK;
}

/* Names those that did not answer. */
static pl_status silent(const struct set_up *u)
{
    const struct pl_transport *t = u->transport;
    struct pl_text ranks = {0};
    for (int m = 0; m < t->members; m++) {
        bool proved = true;
        for (int c = 0; m != t->me && c < t->queues; c++)
            proved &= t->peer[m].queue[c].proved;
        if (!proved)
            pl_text_add(&ranks, "%s%d", ranks.s ? ", " : "", t->peer[m].rank);
    }
    pl_status s = pl_error(PL_ERR_PEER, "transport verbs", "no hand-shake within %.0f ms from rank %s (%s)", t->timeout_ms, ranks.s, u->describe);
    pl_text_free(&ranks);
    return s;
}

static pl_status shake_hands(struct set_up *u)
{
    struct pl_transport *t = u->transport;
    int open = (t->members - 1) * t->queues;
    unsigned char secret[PL_SECRET_BYTES], proof[PL_PROOF_BYTES];
    memcpy(secret, u->all[0].secret, sizeof secret);
    if (pl_fault("verbs.secret", -1))
        secret[0] ^= 1;
    for (int i = 0; i < t->members * t->queues; i++) {
        struct pl_verbs_queue *q = &t->queue[i];
        if (!q->qp)
            continue;
        PL_TRY(prove(u, secret, t->me, q->peer->member, q->channel, proof));
        pl_verbs_send_hello(t, q, proof);
    }
    for (double end = pl_now_ms() + t->timeout_ms; open > 0; pl_sleep_ms(0.2)) {
        pl_verbs_poll(t);
        for (int i = 0; i < t->members * t->queues; i++) {
            struct pl_verbs_queue *q = &t->queue[i];
            if (!q->qp || q->proved)
                continue;
            if (q->peer->lost)
                return pl_error(PL_ERR_PEER, "transport verbs", "%s, in the hand-shake", q->peer->why);
            if (pl_verbs_first_frame(q)) {
                PL_TRY(check_proof(u, secret, q));
                open--;
            }
        }
        if (open > 0 && pl_now_ms() > end)
            return silent(u);
    }
    return PL_OK;
}

/* ---- in order --------------------------------------------------------------------------------------- */

static pl_status connect_in_order(struct set_up *u)
{
    const struct pl_group *g = u->group;
    PL_TRY(pl_go_round(g, "transport verbs", introduce(u), &u->mine.say, sizeof u->mine, u->all));
    PL_TRY(choose(u));
    pl_status s = pl_verbs_make(u->transport, g->rank);
    describe(u);
    PL_TRY(tell_numbers(u, s));
    PL_TRY(agree(u, connect_all(u))); /* nobody speaks before all can hear */
    return agree(u, shake_hands(u));
}

/* All that the rounds need, so that no member can fail between them without saying so. */
static bool prepare(struct set_up *u)
{
    size_t members = (size_t)u->group->members, most = numbers_bytes(u->group->members, PL_MOST_CHANNELS + 1);
    u->all = pl_alloc(members * sizeof *u->all, "set-up of transport verbs");
    u->says = pl_alloc(members * sizeof *u->says, "set-up of transport verbs");
    u->mine_numbers = pl_alloc(most, "numbers of queue pairs");
    u->numbers = pl_alloc(members * most, "numbers of queue pairs");
    u->ports = pl_alloc(members * sizeof *u->ports, "ports of members");
    u->port = pl_alloc(members * sizeof *u->port, "ports of members");
    return u->all && u->says && u->mine_numbers && u->numbers && u->ports && u->port;
}

pl_status pl_verbs_connect(const struct pl_group *g, const struct pl_transport_options *o, struct pl_transport *t, char *describe, size_t bytes)
{
    struct set_up *u = pl_alloc(sizeof *u, "set-up of transport verbs");
    if (!u)
        return PL_ERR_MEMORY;
    *u = (struct set_up){.group = g, .options = o, .transport = t};
    t->me = g->me;
    t->members = g->members;
    t->timeout_ms = o->timeout_ms;
    pl_status s = prepare(u) ? connect_in_order(u) : PL_ERR_MEMORY;
    snprintf(describe, bytes, "%s", u->describe);
    pl_free(u->port);
    pl_free(u->ports);
    pl_free(u->numbers);
    pl_free(u->mine_numbers);
    pl_free(u->says);
    pl_free(u->all);
    pl_free(u);
    return s;
}
