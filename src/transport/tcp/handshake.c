/* The hand-shake of a connection: mutual proof of the run's secret by HMAC-SHA256 over a text that differs by
 * role, both nonces and who talks to whom on which channel. A proof is good for this one connection. */
#include "transport/tcp/tcp.h"

#include <string.h>

static const char magic[8] = {'P', 'L', 't', 'c', 'p', 0, 0, 1}; /* the last one is the version */
static const char *const role_text[2] = {"paceline tcp 1 acceptor", "paceline tcp 1 connector"};
enum { ROLE_BYTES = 24 };

enum verdict { GOOD, NOT_PACELINE, OTHER_RUN, NOT_EXPECTED, WRONG_PROOF };
static const char *const reason[] = {
    [GOOD] = "", [NOT_PACELINE] = "it does not speak paceline's protocol",
    [OTHER_RUN] = "it has another number of ranks or channels: another run?",
    [NOT_EXPECTED] = "this rank or channel is not expected, or connected already",
    [WRONG_PROOF] = "its proof of the run's secret is wrong"};
static const char *const reason_given[] = { /* the same, as the one hears it who is refused */
    [GOOD] = "", [NOT_PACELINE] = "it refused us: we do not speak its protocol",
    [OTHER_RUN] = "it refused us: it has another number of ranks or channels: another run?",
    [NOT_EXPECTED] = "it refused us: it does not expect this rank or channel, or has it already",
    [WRONG_PROOF] = "it refused us: our proof of the run's secret is wrong to it"};

static void put32(unsigned char *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (unsigned char)(v >> 8 * i);
}

static uint32_t get32(const unsigned char *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static enum pl_tcp_hand_result prove(const struct pl_tcp_hand *h, bool acceptor, unsigned char proof[PL_PROOF_BYTES])
{
    unsigned char text[ROLE_BYTES + 2 * PL_NONCE_BYTES + 20] = {0}, secret[PL_SECRET_BYTES], *p = text + ROLE_BYTES;
    memcpy(secret, h->secret, sizeof secret);
    if (acceptor == h->acceptor && pl_fault("tcp.secret", -1))
        secret[0] ^= 1;
    memcpy(text, role_text[acceptor ? 0 : 1], strlen(role_text[acceptor ? 0 : 1]));
    memcpy(p, h->nonce, sizeof h->nonce);
    p += sizeof h->nonce;
    put32(p, h->acceptor ? h->me : h->peer);
    put32(p + 4, h->acceptor ? h->peer : h->me);
    put32(p + 8, h->channel);
    put32(p + 12, h->members);
    put32(p + 16, h->channels);
    pl_status s = pl_secret_prove(secret, text, sizeof text, proof);
    explicit_bzero(secret, sizeof secret);
    return s == PL_OK ? PL_TCP_HAND_ON : PL_TCP_HAND_FAILED;
}

enum pl_tcp_hand_result pl_tcp_hand_start(struct pl_tcp_hand *h)
{
    h->stage = 0;
    h->out_bytes = 0;
    h->wants = h->acceptor ? PL_TCP_HELLO_BYTES : PL_TCP_CHALLENGE_BYTES;
    if (pl_secret_random(h->nonce[h->acceptor ? 0 : 1], PL_NONCE_BYTES) < 0)
        return PL_TCP_HAND_FAILED;
    if (h->acceptor) {
        memcpy(h->out, magic, sizeof magic);
        memcpy(h->out + 8, h->nonce[0], PL_NONCE_BYTES);
        h->out_bytes = PL_TCP_CHALLENGE_BYTES;
    }
    return PL_TCP_HAND_ON;
}

static enum pl_tcp_hand_result say_hello(struct pl_tcp_hand *h, const unsigned char *in, const char **why)
{
    if (memcmp(in, magic, sizeof magic) != 0) {
        *why = reason[NOT_PACELINE];
        return PL_TCP_HAND_REFUSED;
    }
    memcpy(h->nonce[0], in + 8, PL_NONCE_BYTES);
    memcpy(h->out, magic, sizeof magic);
    put32(h->out + 8, h->me);
    put32(h->out + 12, h->channel);
    h->out[16] = (unsigned char)h->channels;
    h->out[17] = (unsigned char)h->members;
    h->out[18] = (unsigned char)(h->members >> 8);
    h->out[19] = (unsigned char)(h->members >> 16);
    memcpy(h->out + 20, h->nonce[1], PL_NONCE_BYTES);
    h->out_bytes = PL_TCP_HELLO_BYTES;
    h->wants = PL_TCP_VERDICT_BYTES;
    h->stage = 1;
    return prove(h, false, h->out + 20 + PL_NONCE_BYTES);
}

static enum verdict judge(struct pl_tcp_hand *h, const unsigned char *in, pl_tcp_expected expected, void *arg, enum pl_tcp_hand_result *result)
{
    unsigned char proof[PL_PROOF_BYTES] = {0};
    if (memcmp(in, magic, sizeof magic) != 0)
        return NOT_PACELINE;
    h->peer = get32(in + 8);
    h->channel = get32(in + 12);
    if (in[16] != h->channels || (get32(in + 16) >> 8) != h->members)
        return OTHER_RUN;
    memcpy(h->nonce[1], in + 20, PL_NONCE_BYTES);
    *result = prove(h, false, proof);
    if (!pl_secret_same_proof(proof, in + 20 + PL_NONCE_BYTES))
        return WRONG_PROOF;
    /* Last, so that only who knows the secret learns whom we wait for. */
    return expected(arg, h->peer, h->channel) ? GOOD : NOT_EXPECTED;
}

static enum pl_tcp_hand_result answer(struct pl_tcp_hand *h, const unsigned char *in, pl_tcp_expected expected, void *arg, const char **why)
{
    enum pl_tcp_hand_result result = PL_TCP_HAND_ON;
    enum verdict v = judge(h, in, expected, arg, &result);
    if (result == PL_TCP_HAND_FAILED)
        return result;
    memset(h->out, 0, sizeof h->out);
    memcpy(h->out, magic, 4);
    h->out[4] = (unsigned char)v;
    h->out_bytes = PL_TCP_VERDICT_BYTES;
    h->wants = 0;
    *why = reason[v];
    if (v != GOOD)
        return PL_TCP_HAND_REFUSED;
    return prove(h, true, h->out + 8) == PL_TCP_HAND_FAILED ? PL_TCP_HAND_FAILED : PL_TCP_HAND_DONE;
}

static enum pl_tcp_hand_result hear_verdict(struct pl_tcp_hand *h, const unsigned char *in, const char **why)
{
    unsigned char proof[PL_PROOF_BYTES] = {0};
    h->out_bytes = h->wants = 0;
    bool known = memcmp(in, magic, 4) == 0 && memcmp(in + 5, "\0\0\0", 3) == 0 && in[4] < sizeof reason_given / sizeof *reason_given;
    if (!known || in[4] != GOOD) {
        *why = known ? reason_given[in[4]] : reason[NOT_PACELINE];
        return PL_TCP_HAND_REFUSED;
    }
    if (prove(h, true, proof) == PL_TCP_HAND_FAILED)
        return PL_TCP_HAND_FAILED;
    *why = reason[WRONG_PROOF];
    return pl_secret_same_proof(proof, in + 8) ? PL_TCP_HAND_DONE : PL_TCP_HAND_REFUSED;
}

enum pl_tcp_hand_result pl_tcp_hand_feed(struct pl_tcp_hand *h, const unsigned char *in, pl_tcp_expected expected, void *arg, const char **why)
{
    *why = "";
    if (h->acceptor)
        return answer(h, in, expected, arg, why);
    return h->stage == 0 ? say_hello(h, in, why) : hear_verdict(h, in, why);
}
