/* libFuzzer: both sides of the hand-shake. Whoever does not know the secret gets nowhere whatever it says, and of a
 * true hand-shake no changed bit goes unnoticed. */
#include "transport/tcp/tcp.h"

#include <stdlib.h>
#include <string.h>

static const unsigned char secret[PL_SECRET_BYTES] = {7, 7, 7};

static bool any(void *arg, uint32_t peer, uint32_t channel) { return arg || peer || channel || true; }

static void check(bool right)
{
    if (!right)
        abort();
}

static void start(struct pl_tcp_hand *a, struct pl_tcp_hand *c)
{
    *a = (struct pl_tcp_hand){.secret = secret, .acceptor = true, .members = 4, .channels = 3, .me = 1};
    *c = (struct pl_tcp_hand){.secret = secret, .members = 4, .channels = 3, .me = 2, .peer = 1, .channel = 1};
    check(pl_tcp_hand_start(a) == PL_TCP_HAND_ON && pl_tcp_hand_start(c) == PL_TCP_HAND_ON);
}

/* The next bytes of the input, zeros after its end, in memory that has just their size. */
static unsigned char *next(const uint8_t **data, size_t *size, size_t bytes)
{
    unsigned char *p = calloc(1, bytes);
    size_t part = bytes < *size ? bytes : *size;
    memcpy(p, *data, part);
    *data += part;
    *size -= part;
    return p;
}

static void a_stranger(const uint8_t *data, size_t size)
{
    struct pl_tcp_hand a, c;
    const char *why = NULL;
    start(&a, &c);
    for (bool to_acceptor = true;; to_acceptor = false) {
        struct pl_tcp_hand *h = to_acceptor ? &a : &c;
        for (enum pl_tcp_hand_result r = PL_TCP_HAND_ON; r == PL_TCP_HAND_ON;) {
            unsigned char *in = next(&data, &size, h->wants);
            r = pl_tcp_hand_feed(h, in, any, NULL, &why);
            free(in);
            check(r != PL_TCP_HAND_DONE && why && h->out_bytes <= sizeof h->out && h->wants <= sizeof h->out);
        }
        if (!to_acceptor)
            return;
    }
}

/* Feeds h with what the other side sent, changed by the input; true if anything was. */
static bool change(struct pl_tcp_hand *from, const uint8_t **data, size_t *size)
{
    unsigned char *mask = next(data, size, from->out_bytes);
    bool changed = false;
    for (uint32_t i = 0; i < from->out_bytes; i++) {
        from->out[i] ^= mask[i];
        changed = changed || mask[i];
    }
    free(mask);
    return changed;
}

static void changed_on_the_way(const uint8_t *data, size_t size)
{
    struct pl_tcp_hand a, c;
    const char *why;
    start(&a, &c);
    bool changed = change(&a, &data, &size);
    if (pl_tcp_hand_feed(&c, a.out, NULL, NULL, &why) != PL_TCP_HAND_ON) {
        check(changed);
        return;
    }
    changed = change(&c, &data, &size) || changed;
    enum pl_tcp_hand_result acceptor = pl_tcp_hand_feed(&a, c.out, any, NULL, &why);
    check((acceptor == PL_TCP_HAND_DONE) == !changed);
    changed = change(&a, &data, &size) || changed;
    check((pl_tcp_hand_feed(&c, a.out, NULL, NULL, &why) == PL_TCP_HAND_DONE) == !changed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > 0 && data[0] & 1)
        a_stranger(data + 1, size - 1);
    else if (size > 0)
        changed_on_the_way(data + 1, size - 1);
    return 0;
}
