/* The parts of the tcp transport that need no socket: frames and their reader, the hand-shake, the choice of a
 * network. Every way in which a frame or a hand-shake can be wrong is tried. */
#include "transport/tcp/tcp.h"

#include <arpa/inet.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#ifndef PL_HAVE_CRYPTO
int main(void)
{
    printf("skipped: this build has no libcrypto, so no tcp\n");
    return 77;
}
#else

/* ---- frames ------------------------------------------------------------------------------------------- */

static void frames_go_round(void **state)
{
    (void)state;
    const struct pl_tcp_frame frames[] = {{{0, 0, 0}, 0, 0}, {{1, 2, 3}, 4, 5}, {{UINT64_MAX, 0xfffffffeu, UINT32_MAX}, PL_MESSAGE_BYTES, UINT32_MAX},
                                          {{0x0102030405060708u, PL_CONTROL_BUCKET, 9}, PL_CONTROL_BYTES, 0x01020304}};
    for (size_t i = 0; i < sizeof frames / sizeof *frames; i++) {
        unsigned char bytes[PL_TCP_HEADER_BYTES];
        struct pl_tcp_frame out;
        bool control = pl_tcp_is_control(frames[i].label);
        pl_tcp_frame_encode(&frames[i], bytes);
        assert_null(pl_tcp_frame_decode(bytes, control, &out));
        assert_true(pl_label_same(out.label, frames[i].label) && out.bytes == frames[i].bytes && out.crc == frames[i].crc);
        assert_non_null(pl_tcp_frame_decode(bytes, !control, &out));
    }
    unsigned char bytes[PL_TCP_HEADER_BYTES];
    pl_tcp_frame_encode(&frames[3], bytes);
    assert_memory_equal(bytes + 12, "\x08\x07\x06\x05\x04\x03\x02\x01", 8); /* little-endian on every machine */
}

static void frames_that_are_wrong(void **state)
{
    (void)state;
    unsigned char bytes[PL_TCP_HEADER_BYTES];
    struct pl_tcp_frame f = {{7, 1, 2}, 1000, 99}, out;
    for (int bit = 0; bit < 8 * PL_TCP_HEADER_BYTES; bit++) {
        pl_tcp_frame_encode(&f, bytes);
        bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
        const char *why = pl_tcp_frame_decode(bytes, false, &out);
        assert_non_null(why);
        assert_non_null(strstr(why, bit < 32 ? "no frame" : "checksum of a frame's header"));
    }
    f.bytes = PL_MESSAGE_BYTES + 1;
    pl_tcp_frame_encode(&f, bytes);
    assert_string_equal(pl_tcp_frame_decode(bytes, false, &out), "the frame is larger than any message");
    f.bytes = PL_CONTROL_BYTES + 1;
    f.label.bucket = PL_CONTROL_BUCKET;
    pl_tcp_frame_encode(&f, bytes);
    assert_string_equal(pl_tcp_frame_decode(bytes, true, &out), "the frame is larger than any message");
    const struct { int at; const char *why; } fields[] = {{4, "version"}, {5, "kind"}, {6, "kind"}, {7, "kind"}};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) { /* with a right checksum */
        f = (struct pl_tcp_frame){{7, 1, 2}, 1000, 99};
        pl_tcp_frame_encode(&f, bytes);
        bytes[fields[i].at] ^= 0x10;
        uint32_t crc = pl_crc32(0, bytes, 32);
        for (int b = 0; b < 4; b++)
            bytes[32 + b] = (unsigned char)(crc >> 8 * b);
        const char *why = pl_tcp_frame_decode(bytes, false, &out);
        assert_non_null(why);
        assert_non_null(strstr(why, fields[i].why));
    }
}

/* ---- the reader ----------------------------------------------------------------------------------------- */

enum { STREAM = 700000, MESSAGES = 24 };
struct stream { unsigned char *bytes; size_t used; struct pl_tcp_frame frame[MESSAGES]; size_t payload_at[MESSAGES]; };

static struct stream make_stream(struct pl_rng *r)
{
    struct stream s = {.bytes = malloc(STREAM)};
    for (uint32_t i = 0; i < MESSAGES; i++) {
        uint32_t bytes = i == 5 ? 300000 : i % 4 == 0 ? 0 : (uint32_t)pl_rng_below(r, 20000);
        unsigned char *payload = s.bytes + s.used + PL_TCP_HEADER_BYTES;
        for (uint32_t k = 0; k < bytes; k++)
            payload[k] = (unsigned char)pl_rng_u32(r);
        s.frame[i] = (struct pl_tcp_frame){{1, i, 0}, bytes, bytes ? pl_crc32(0, payload, bytes) : 0};
        s.payload_at[i] = s.used + PL_TCP_HEADER_BYTES;
        pl_tcp_frame_encode(&s.frame[i], s.bytes + s.used);
        s.used += PL_TCP_HEADER_BYTES + bytes;
    }
    return s;
}

/* Feeds the stream in pieces of at most `piece` bytes; returns how many whole messages came out, or -1 - that
 * number after something wrong. */
static int feed(struct pl_tcp_reader *rd, const struct stream *s, size_t piece, struct pl_rng *r)
{
    static unsigned char memory[PL_MESSAGE_BYTES];
    size_t at = 0;
    for (int n = 0;;) {
        struct iovec space[2];
        switch (pl_tcp_reader_next(rd)) {
        case PL_TCP_WRONG: return -1 - n;
        case PL_TCP_PLACE:
            assert_true(n < MESSAGES && pl_label_same(rd->frame.label, s->frame[n].label));
            assert_false(pl_tcp_reader_between(rd));
            pl_tcp_reader_into(rd, rd->frame.bytes ? memory : NULL);
            break;
        case PL_TCP_WHOLE:
            assert_memory_equal(memory, s->bytes + s->payload_at[n], s->frame[n].bytes);
            n++;
            break;
        case PL_TCP_MORE:
            if (at == s->used)
                return n;
            int spaces = pl_tcp_reader_space(rd, space);
            size_t bytes = 1 + (size_t)pl_rng_below(r, piece), taken = 0;
            assert_true(spaces >= 1 && space[0].iov_len > 0);
            for (int i = 0; i < spaces; i++) {
                size_t part = bytes - taken < space[i].iov_len ? bytes - taken : space[i].iov_len;
                part = part < s->used - at ? part : s->used - at;
                memcpy(space[i].iov_base, s->bytes + at, part);
                at += part;
                taken += part;
            }
            pl_tcp_reader_filled(rd, taken);
        }
    }
}

static void the_reader_takes_any_pieces(void **state)
{
    (void)state;
    struct pl_tcp_reader rd;
    struct pl_rng r = pl_rng_make(3, 1, 4, 1);
    struct stream s = make_stream(&r);
    for (size_t piece = 1; piece < 1000000; piece *= 7) {
        pl_tcp_reader_start(&rd, false);
        assert_int_equal(feed(&rd, &s, piece, &r), MESSAGES);
        assert_true(pl_tcp_reader_between(&rd));
    }
    free(s.bytes);
}

static void the_reader_finds_damage(void **state)
{
    (void)state;
    struct pl_tcp_reader rd;
    struct pl_rng r = pl_rng_make(3, 1, 4, 2);
    struct stream s = make_stream(&r);
    for (int trial = 0; trial < 200; trial++) {
        size_t at = pl_rng_below(&r, s.used);
        int hit = 0; /* the message it is in */
        while (hit + 1 < MESSAGES && at >= s.payload_at[hit + 1] - PL_TCP_HEADER_BYTES)
            hit++;
        s.bytes[at] ^= (unsigned char)(1 << pl_rng_below(&r, 8));
        pl_tcp_reader_start(&rd, false);
        int n = feed(&rd, &s, 50000, &r);
        assert_int_equal(n, -1 - hit);
        assert_non_null(rd.wrong);
        assert_int_equal(pl_tcp_reader_next(&rd), PL_TCP_WRONG);
        free(s.bytes);
        s = make_stream(&r);
    }
    size_t whole = s.used;
    s.used -= 3; /* an end in the middle of a message is seen */
    pl_tcp_reader_start(&rd, false);
    assert_true(feed(&rd, &s, 50000, &r) < MESSAGES);
    assert_false(pl_tcp_reader_between(&rd));
    s.used = whole;
    free(s.bytes);
}

/* ---- the hand-shake --------------------------------------------------------------------------------------- */

struct wanted { uint32_t peer, channel; };
static bool expected(void *arg, uint32_t peer, uint32_t channel)
{
    const struct wanted *w = arg;
    return peer == w->peer && channel == w->channel;
}

enum spoilt { NOTHING, SECRET, MEMBERS, CHANNELS, PEER, CHANNEL, NONCE, MAGIC, HELLO_BIT, CHALLENGE_BIT, VERDICT_BIT, REPLAY, REFLECTED };

/* Both sides; what each ends with. bit: of the message that is spoilt. */
static void shake(enum spoilt what, unsigned bit, enum pl_tcp_hand_result *acceptor, enum pl_tcp_hand_result *connector, const char **why)
{
    static unsigned char old_hello[PL_TCP_HELLO_BYTES];
    unsigned char secret[2][PL_SECRET_BYTES] = {{1, 2, 3}, {1, 2, 3}};
    struct wanted w = {3, 1};
    struct pl_tcp_hand a = {.secret = secret[0], .acceptor = true, .members = 5, .channels = 3, .me = 1};
    struct pl_tcp_hand c = {.secret = secret[1], .members = 5, .channels = 3, .me = 3, .peer = 1, .channel = 1};
    const char *ignored;
    secret[1][0] ^= what == SECRET;
    c.members += what == MEMBERS;
    c.channels += what == CHANNELS;
    c.me += what == PEER;
    c.channel += what == CHANNEL;
    *acceptor = pl_tcp_hand_start(&a);
    *connector = pl_tcp_hand_start(&c);
    assert_int_equal(a.out_bytes, c.wants);
    if (what == CHALLENGE_BIT)
        a.out[bit / 8] ^= (unsigned char)(1 << bit % 8);
    *connector = pl_tcp_hand_feed(&c, a.out, NULL, NULL, why);
    if (*connector == PL_TCP_HAND_REFUSED)
        return;
    assert_int_equal(c.out_bytes, a.wants);
    if (what == HELLO_BIT)
        c.out[bit / 8] ^= (unsigned char)(1 << bit % 8);
    if (what == REPLAY)
        memcpy(c.out, old_hello, sizeof old_hello);
    memcpy(old_hello, c.out, sizeof old_hello);
    *acceptor = pl_tcp_hand_feed(&a, c.out, expected, &w, why);
    assert_int_equal(a.out_bytes, c.wants);
    if (what == VERDICT_BIT)
        a.out[bit / 8] ^= (unsigned char)(1 << bit % 8);
    if (what == REFLECTED) /* the connector's own proof is none of the acceptor's */
        memcpy(a.out + 8, c.out + 20 + PL_NONCE_BYTES, PL_PROOF_BYTES);
    *connector = pl_tcp_hand_feed(&c, a.out, NULL, NULL, *acceptor == PL_TCP_HAND_REFUSED ? &ignored : why);
    if (*acceptor == PL_TCP_HAND_DONE)
        assert_true(a.peer == 3 && a.channel == 1);
}

static void hands_are_shaken(void **state)
{
    (void)state;
    enum pl_tcp_hand_result a, c;
    const char *why;
    shake(NOTHING, 0, &a, &c, &why);
    assert_int_equal(a, PL_TCP_HAND_DONE);
    assert_int_equal(c, PL_TCP_HAND_DONE);
    const struct { enum spoilt what; const char *why; } refused[] = {
        {SECRET, "its proof"}, {MEMBERS, "another number of ranks or channels"}, {CHANNELS, "another number of ranks or channels"},
        {PEER, "not expected"}, {CHANNEL, "not expected"}, {REPLAY, "its proof"}};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        shake(refused[i].what, 0, &a, &c, &why);
        assert_int_equal(a, PL_TCP_HAND_REFUSED);
        assert_int_equal(c, PL_TCP_HAND_REFUSED);
        assert_non_null(strstr(why, refused[i].why));
    }
    shake(REFLECTED, 0, &a, &c, &why);
    assert_int_equal(c, PL_TCP_HAND_REFUSED);
}

static void every_bit_counts(void **state)
{
    (void)state;
    enum pl_tcp_hand_result a, c;
    const char *why;
    for (unsigned bit = 0; bit < 8 * PL_TCP_CHALLENGE_BYTES; bit++) {
        shake(CHALLENGE_BIT, bit, &a, &c, &why);
        assert_int_equal(c, PL_TCP_HAND_REFUSED);
    }
    for (unsigned bit = 0; bit < 8 * PL_TCP_HELLO_BYTES; bit++) {
        shake(HELLO_BIT, bit, &a, &c, &why);
        assert_int_equal(a, PL_TCP_HAND_REFUSED);
        assert_int_equal(c, PL_TCP_HAND_REFUSED);
    }
    for (unsigned bit = 0; bit < 8 * PL_TCP_VERDICT_BYTES; bit++) {
        shake(VERDICT_BIT, bit, &a, &c, &why);
        assert_int_equal(c, PL_TCP_HAND_REFUSED);
    }
}

/* ---- the choice of a network ------------------------------------------------------------------------------- */

static void offer(struct pl_tcp_offer *o, const char *name, const char *ip, int prefix, enum pl_tcp_kind kind, int mbps)
{
    struct pl_tcp_address *a = &o->address[o->addresses++];
    a->family = strchr(ip, ':') ? AF_INET6 : AF_INET;
    a->prefix = (uint16_t)prefix;
    a->kind = (uint16_t)kind;
    a->mbps = mbps;
    assert_int_equal(inet_pton(a->family, ip, a->ip), 1);
    snprintf(a->name, sizeof a->name, "%s", name);
}

/* Two hosts with what hosts have: loopback, docker's bridge with the same address on both. */
static struct pl_tcp_offer *two_hosts(void)
{
    struct pl_tcp_offer *o = calloc(2, sizeof *o);
    for (int m = 0; m < 2; m++) {
        o[m].host = 100 + (uint64_t)m;
        offer(&o[m], "lo", "127.0.0.1", 8, PL_TCP_LOOPBACK, 0);
        offer(&o[m], "docker0", "172.17.0.1", 16, PL_TCP_BRIDGE, 0);
    }
    return o;
}

static const char *chosen(const struct pl_tcp_offer *o, int members, bool one_node)
{
    int pick[8];
    if (!pl_tcp_choose(o, members, one_node, pick))
        return "none";
    for (int m = 1; m < members; m++)
        if (strcmp(o[m].address[pick[m]].name, o[0].address[pick[0]].name) != 0)
            return "different ones";
    return o[0].address[pick[0]].name;
}

static void the_network_is_chosen(void **state)
{
    (void)state;
    struct pl_tcp_offer *o = two_hosts();
    assert_string_equal(chosen(o, 2, false), "none");
    assert_string_equal(chosen(o, 2, true), "none"); /* "one node", but two network stacks */
    offer(&o[0], "br-12ab", "172.18.0.1", 16, PL_TCP_BRIDGE, 100000);
    offer(&o[1], "br-12ab", "172.18.0.2", 16, PL_TCP_BRIDGE, 100000);
    assert_string_equal(chosen(o, 2, false), "br-12ab");
    offer(&o[0], "tun0", "10.8.0.1", 24, PL_TCP_VIRTUAL, 10000);
    offer(&o[1], "tun0", "10.8.0.2", 24, PL_TCP_VIRTUAL, 10000);
    assert_string_equal(chosen(o, 2, false), "tun0");
    offer(&o[0], "eth0", "10.9.0.1", 24, PL_TCP_DEVICE, 1000);
    offer(&o[1], "eth0", "10.9.0.2", 24, PL_TCP_DEVICE, 1000);
    assert_string_equal(chosen(o, 2, false), "eth0");
    offer(&o[0], "eth1", "10.10.0.1", 24, PL_TCP_DEVICE, 100000);
    assert_string_equal(chosen(o, 2, false), "eth0"); /* the other host is not in that network */
    offer(&o[1], "eth1", "10.10.1.2", 24, PL_TCP_DEVICE, 100000);
    assert_string_equal(chosen(o, 2, false), "eth0");
    offer(&o[1], "eth2", "10.10.0.2", 24, PL_TCP_DEVICE, 10000);
    assert_string_equal(chosen(o, 2, false), "different ones"); /* of one network, whatever they are called */
    offer(&o[0], "eth6", "fd00::1", 64, PL_TCP_DEVICE, 100000);
    offer(&o[1], "eth6", "fd00::2", 64, PL_TCP_DEVICE, 100000);
    assert_string_equal(chosen(o, 2, false), "eth6");
    free(o);
}

static void one_host_takes_loopback(void **state)
{
    (void)state;
    struct pl_tcp_offer *o = two_hosts();
    o[1].host = o[0].host;
    offer(&o[0], "eth0", "10.9.0.1", 24, PL_TCP_DEVICE, 1000);
    offer(&o[1], "eth0", "10.9.0.1", 24, PL_TCP_DEVICE, 1000);
    assert_string_equal(chosen(o, 2, true), "lo");
    assert_string_equal(chosen(o, 2, false), "eth0");
    free(o);
    o = calloc(2, sizeof *o); /* IPv6 alone */
    offer(&o[0], "lo", "::1", 128, PL_TCP_LOOPBACK, 0);
    offer(&o[1], "lo", "::1", 128, PL_TCP_LOOPBACK, 0);
    assert_string_equal(chosen(o, 2, true), "lo");
    free(o);
}

static void routes_help_where_no_network_is_shared(void **state)
{
    (void)state;
    struct pl_tcp_offer *o = two_hosts();
    struct pl_tcp_address a;
    offer(&o[0], "eth0", "10.9.0.1", 24, PL_TCP_DEVICE, 1000);
    pl_error_clear();
    assert_int_equal(pl_tcp_by_route(o, 2, 0, &a), PL_ERR_PEER);
    assert_non_null(strstr(pl_error_text(), "no network reaches all ranks"));
    pl_error_clear();
    offer(&o[1], "eth0", "10.77.0.1", 24, PL_TCP_DEVICE, 1000);
    assert_int_equal(pl_tcp_by_route(o, 2, 0, &a), PL_OK);
    assert_string_equal(a.name, "eth0");
    assert_int_equal(a.ip[1], 9);
    free(o);
}

static void interfaces_have_kinds_and_filters(void **state)
{
    (void)state;
    assert_int_equal(pl_tcp_kind_of("lo", true, false), PL_TCP_LOOPBACK);
    assert_int_equal(pl_tcp_kind_of("ib0", false, true), PL_TCP_DEVICE);
    assert_int_equal(pl_tcp_kind_of("veth12", false, false), PL_TCP_VIRTUAL);
    const char *const bridges[] = {"docker0", "br-0a1b", "virbr0", "cni0", "flannel.1", "docker_gwbridge"};
    for (size_t i = 0; i < sizeof bridges / sizeof *bridges; i++)
        assert_int_equal(pl_tcp_kind_of(bridges[i], false, true), PL_TCP_BRIDGE);
    struct pl_tcp_offer *o = calloc(1, sizeof *o);
    offer(o, "eth0", "10.9.130.5", 24, PL_TCP_DEVICE, 1000);
    offer(o, "eth1", "fd00:1::5", 64, PL_TCP_DEVICE, 1000);
    const struct { const char *filter; bool v4, v6; } filters[] = {
        {NULL, true, true}, {"eth0", true, false}, {"eth", false, false}, {"10.9.130.5", true, false}, {"10.9.130.6", false, false},
        {"10.9.128.0/22", true, false}, {"10.9.132.0/22", false, false}, {"10.0.0.0/8", true, false}, {"0.0.0.0/0", true, false},
        {"10.9.130.0/33", false, false}, {"10.9.130.0/x", false, false}, {"10.9.130.0/", false, false}, {"fd00:1::/48", false, true},
        {"fd00:1::5", false, true}, {"::/0", false, true}, {"", false, false}, {"10.9.130.0/-1", false, false}};
    for (size_t i = 0; i < sizeof filters / sizeof *filters; i++) {
        assert_int_equal(pl_tcp_fits(&o->address[0], filters[i].filter), filters[i].v4);
        assert_int_equal(pl_tcp_fits(&o->address[1], filters[i].filter), filters[i].v6);
    }
    free(o);
}

static void auto_leaves_one_node_to_others(void **state)
{
    (void)state;
    const struct pl_world one = {.ranks = 4, .nodes = 1};
    const struct pl_transport_options o = {.channels = 2, .timeout_ms = 1000};
    char reason[128];
    assert_false(pl_transport_tcp.probe(&one, &o, false, reason, sizeof reason));
    assert_string_equal(reason, "one node");
    assert_true(pl_transport_tcp.probe(&one, &o, true, reason, sizeof reason));
    assert_non_null(strstr(reason, "2 channels"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frames_go_round),       cmocka_unit_test(frames_that_are_wrong),
        cmocka_unit_test(the_reader_takes_any_pieces), cmocka_unit_test(the_reader_finds_damage),
        cmocka_unit_test(hands_are_shaken),      cmocka_unit_test(every_bit_counts),
        cmocka_unit_test(the_network_is_chosen), cmocka_unit_test(one_host_takes_loopback),
        cmocka_unit_test(routes_help_where_no_network_is_shared), cmocka_unit_test(interfaces_have_kinds_and_filters),
        cmocka_unit_test(auto_leaves_one_node_to_others),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
#endif
