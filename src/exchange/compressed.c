/* What is computed in a compressed all-reduce; progress.c moves the codes. */
#include "exchange/compressed.h"
#include "exchange/schedule.h"

#include <string.h>

struct pl_compressed {
    const struct pl_codec *codec;
    double ratio;
    int me, members;
    unsigned char *sent, *received, *scratch;
    size_t room, scratch_room, slot;
};

pl_status pl_compressed_create(const struct pl_codec *codec, double ratio, int me, int members, struct pl_compressed **out)
{
    struct pl_compressed *c = pl_alloc(sizeof *c, "compression");
    if (!c)
        return PL_ERR_MEMORY;
    *c = (struct pl_compressed){.codec = codec, .ratio = ratio, .me = me, .members = members};
    *out = c;
    return PL_OK;
}

void pl_compressed_destroy(struct pl_compressed *c)
{
    if (!c)
        return;
    pl_free(c->sent);
    pl_free(c->received);
    pl_free(c->scratch);
    pl_free(c);
}

size_t pl_compressed_slot(const struct pl_compressed *c) { return c->slot; }
unsigned char *pl_compressed_sent(struct pl_compressed *c) { return c->sent; }
unsigned char *pl_compressed_received(struct pl_compressed *c) { return c->received; }

static int64_t begin_of(const struct pl_compressed *c, int64_t n, int member) { return pl_part(n, member, c->members); }
static int64_t length_of(const struct pl_compressed *c, int64_t n, int member) { return begin_of(c, n, member + 1) - begin_of(c, n, member); }

static int64_t longest_part(const struct pl_compressed *c, int64_t n)
{
    int64_t most = 0;
    for (int r = 0; r < c->members; r++)
        most = length_of(c, n, r) > most ? length_of(c, n, r) : most;
    return most;
}

/* Grows in the first steps only: buckets have the same few lengths in all. */
static pl_status make_room(struct pl_compressed *c, int64_t n)
{
    int64_t part = longest_part(c, n);
    size_t scratch = c->codec->scratch_bytes(part, c->ratio);
    c->slot = c->codec->bytes(part, c->ratio);
    size_t bytes = c->slot * (size_t)c->members;
    if (bytes > c->room) {
        pl_free(c->sent);
        pl_free(c->received);
        c->sent = pl_alloc(bytes, "compressed gradients");
        c->received = pl_alloc(bytes, "compressed gradients");
        c->room = c->sent && c->received ? bytes : 0;
    }
    if (scratch > c->scratch_room) {
        pl_free(c->scratch);
        c->scratch = pl_alloc(scratch, "compression");
        c->scratch_room = c->scratch ? scratch : 0;
    }
    return c->room >= bytes && c->scratch_room >= scratch ? PL_OK : PL_ERR_MEMORY;
}

pl_status pl_compressed_pack(struct pl_compressed *c, const float *in, float *residual, int64_t n, size_t *slot)
{
    PL_TRY(make_room(c, n));
    *slot = c->slot;
    for (int r = 0; r < c->members; r++) {
        int64_t a = begin_of(c, n, r);
        if (r != c->me)
            c->codec->encode(in + a, residual + a, length_of(c, n, r), c->ratio, c->sent + (size_t)r * c->slot, c->scratch);
    }
    return PL_OK;
}

static pl_status malformed(int member) { return pl_error(PL_ERR_PEER, "exchange", "a compressed gradient from member %d cannot be decoded", member); }

pl_status pl_compressed_sum(struct pl_compressed *c, const float *in, float *residual, int64_t n, float *out)
{
    int64_t a = begin_of(c, n, c->me), m = length_of(c, n, c->me);
    memset(out + a, 0, (size_t)m * sizeof *out);
    for (int r = 0; r < c->members; r++) {
        if (r == c->me)
            for (int64_t i = a; i < a + m; i++)
                out[i] += in[i];
        else if (!c->codec->decode(c->received + (size_t)r * c->slot, m, c->ratio, true, out + a))
            return malformed(r);
    }
    unsigned char *own = c->sent + (size_t)c->me * c->slot;
    c->codec->encode(out + a, residual + a, m, c->ratio, own, c->scratch);
    return c->codec->decode(own, m, c->ratio, false, out + a) ? PL_OK : malformed(c->me);
}

pl_status pl_compressed_unpack(struct pl_compressed *c, int64_t n, float *out)
{
    for (int r = 0; r < c->members; r++)
        if (r != c->me && !c->codec->decode(c->received + (size_t)r * c->slot, length_of(c, n, r), c->ratio, false, out + begin_of(c, n, r)))
            return malformed(r);
    return PL_OK;
}
