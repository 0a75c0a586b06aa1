/* libFuzzer: the reader of frames, fed in arbitrary pieces, against a plain parser of the whole stream. The input is a
 * recipe of frames, right ones and wrong ones, so that checksums are no wall. */
#include "transport/tcp/tcp.h"

#include <stdlib.h>
#include <string.h>

struct input { const uint8_t *p; size_t n; };

static uint32_t take(struct input *in, int bytes)
{
    uint32_t v = 0;
    for (; bytes > 0; bytes--, in->p += in->n > 0, in->n -= in->n > 0)
        v = v << 8 | (in->n > 0 ? *in->p : 0);
    return v;
}

enum { RAW, WHOLE, ANY_LENGTH, DAMAGED, KINDS };

/* One part of the stream: returns its bytes. */
static size_t cook(struct input *in, bool control, unsigned char *out)
{
    unsigned kind = take(in, 1) % KINDS;
    size_t payload = take(in, 2) % 20000;
    if (payload > in->n)
        payload = in->n;
    if (kind == RAW) {
        memcpy(out, in->p, payload);
        in->p += payload;
        in->n -= payload;
        return payload;
    }
    struct pl_tcp_frame f = {.label = {take(in, 1), control ? PL_CONTROL_BUCKET : take(in, 1), take(in, 1)}};
    if (control && payload > PL_CONTROL_BYTES)
        payload = PL_CONTROL_BYTES;
    payload = payload < in->n ? payload : in->n;
    if (kind == ANY_LENGTH)
        f.bytes = take(in, 4);
    payload = payload < in->n ? payload : in->n;
    if (payload > 0)
        memcpy(out + PL_TCP_HEADER_BYTES, in->p, payload);
    in->p += payload;
    in->n -= payload;
    if (kind != ANY_LENGTH)
        f.bytes = (uint32_t)payload;
    f.crc = (payload ? pl_crc32(0, out + PL_TCP_HEADER_BYTES, payload) : 0) ^ (kind == DAMAGED);
    pl_tcp_frame_encode(&f, out);
    return PL_TCP_HEADER_BYTES + payload;
}

/* Whole messages at the start of the stream; *wrong: what follows them is none. */
static int parse(const unsigned char *p, size_t n, bool control, bool *wrong, size_t at[])
{
    int messages = 0;
    struct pl_tcp_frame f;
    *wrong = false;
    for (size_t i = 0; n - i >= PL_TCP_HEADER_BYTES; i += PL_TCP_HEADER_BYTES + f.bytes) {
        *wrong = pl_tcp_frame_decode(p + i, control, &f) != NULL;
        if (*wrong || n - i - PL_TCP_HEADER_BYTES < f.bytes)
            break;
        *wrong = (f.bytes ? pl_crc32(0, p + i + PL_TCP_HEADER_BYTES, f.bytes) : 0) != f.crc;
        if (*wrong)
            break;
        at[messages++] = i + PL_TCP_HEADER_BYTES;
    }
    return messages;
}

static void give(struct pl_tcp_reader *r, const unsigned char **p, size_t *n, size_t bytes)
{
    struct iovec space[2];
    size_t given = 0;
    int spaces = pl_tcp_reader_space(r, space);
    for (int i = 0; i < spaces; i++) {
        size_t part = bytes - given < space[i].iov_len ? bytes - given : space[i].iov_len;
        part = part < *n ? part : *n;
        memcpy(space[i].iov_base, *p, part);
        *p += part;
        *n -= part;
        given += part;
    }
    if (given == 0)
        abort();
    pl_tcp_reader_filled(r, given);
}

static void check(bool right)
{
    if (!right)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    bool control = take(&in, 1) & 1, wrong, ended_wrong = false;
    uint32_t seed = take(&in, 2), most = 1 + take(&in, 2);
    unsigned char *stream = malloc(size * (PL_TCP_HEADER_BYTES + 1) + PL_TCP_HEADER_BYTES), *memory = NULL;
    size_t *at = malloc((size + 1) * sizeof *at), n = 0;
    struct pl_tcp_reader *r = malloc(sizeof *r);
    while (in.n > 0)
        n += cook(&in, control, stream + n);
    int messages = parse(stream, n, control, &wrong, at), got = 0;
    const unsigned char *p = stream;
    pl_tcp_reader_start(r, control);
    for (bool on = true; on;) {
        switch (pl_tcp_reader_next(r)) {
        case PL_TCP_PLACE:
            free(memory);
            memory = malloc(r->frame.bytes);
            pl_tcp_reader_into(r, memory);
            break;
        case PL_TCP_WHOLE:
            check(got < messages && memcmp(memory, stream + at[got], r->frame.bytes) == 0);
            got++;
            break;
        case PL_TCP_WRONG:
            ended_wrong = true;
            on = false;
            break;
        case PL_TCP_MORE:
            seed = seed * 1103515245u + 12345u;
            on = n > 0;
            if (on)
                give(r, &p, &n, 1 + (seed >> 8) % most);
        }
    }
    check(got == messages && ended_wrong == wrong);
    free(memory);
    free(stream);
    free(at);
    free(r);
    return 0;
}
