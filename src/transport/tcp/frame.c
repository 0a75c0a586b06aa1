/* Frames: a header that says what follows and proves itself by a checksum, then the payload. The reader takes
 * bytes as they come, in any pieces, and hands a message out only when its checksum is right. */
#include "transport/tcp/tcp.h"

#include <string.h>

static const unsigned char magic[5] = {'P', 'L', 't', 'f', 1}; /* the last one is the version */
enum { KIND_DATA = 1, KIND_CONTROL = 2 };

static void put32(unsigned char *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (unsigned char)(v >> 8 * i);
}

static uint32_t get32(const unsigned char *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

void pl_tcp_frame_encode(const struct pl_tcp_frame *f, unsigned char out[PL_TCP_HEADER_BYTES])
{
    memcpy(out, magic, sizeof magic);
    out[5] = pl_tcp_is_control(f->label) ? KIND_CONTROL : KIND_DATA;
    out[6] = out[7] = 0;
    put32(out + 8, f->bytes);
    put32(out + 12, (uint32_t)f->label.step);
    put32(out + 16, (uint32_t)(f->label.step >> 32));
    put32(out + 20, f->label.bucket);
    put32(out + 24, f->label.piece);
    put32(out + 28, f->crc);
    put32(out + 32, pl_crc32(0, out, 32));
}

const char *pl_tcp_frame_decode(const unsigned char in[PL_TCP_HEADER_BYTES], bool control, struct pl_tcp_frame *f)
{
    if (memcmp(in, magic, 4) != 0)
        return "what came is no frame";
    if (get32(in + 32) != pl_crc32(0, in, 32))
        return "the checksum of a frame's header is wrong";
    if (in[4] != magic[4])
        return "the frame is of another version";
    f->bytes = get32(in + 8);
    f->label.step = (uint64_t)get32(in + 12) | (uint64_t)get32(in + 16) << 32;
    f->label.bucket = get32(in + 20);
    f->label.piece = get32(in + 24);
    f->crc = get32(in + 28);
    if (in[5] != (control ? KIND_CONTROL : KIND_DATA) || control != pl_tcp_is_control(f->label) || in[6] || in[7])
        return "the frame is of another kind than its connection";
    if (f->bytes > (control ? PL_CONTROL_BYTES : PL_MESSAGE_BYTES))
        return "the frame is larger than any message";
    return NULL;
}

void pl_tcp_reader_start(struct pl_tcp_reader *r, bool control)
{
    memset(r, 0, offsetof(struct pl_tcp_reader, ahead));
    r->control = control;
}

void pl_tcp_reader_into(struct pl_tcp_reader *r, void *payload)
{
    r->payload = payload;
    r->got = r->crc = 0;
    r->state = PL_TCP_AT_PAYLOAD;
}

void pl_tcp_reader_drop(struct pl_tcp_reader *r) { r->payload = NULL; }

static enum pl_tcp_event wrong(struct pl_tcp_reader *r, const char *what)
{
    r->wrong = what;
    return PL_TCP_WRONG;
}

static void take_payload(struct pl_tcp_reader *r, const unsigned char *from, uint32_t bytes)
{
    if (bytes == 0)
        return;
    if (from && r->payload)
        memcpy(r->payload + r->got, from, bytes);
    r->crc = pl_crc32(r->crc, r->payload ? r->payload + r->got : from, bytes);
    r->got += bytes;
}

enum pl_tcp_event pl_tcp_reader_next(struct pl_tcp_reader *r)
{
    if (r->wrong)
        return PL_TCP_WRONG;
    if (r->state == PL_TCP_AT_HEADER) {
        if (r->to - r->from < PL_TCP_HEADER_BYTES)
            return PL_TCP_MORE;
        const char *bad = pl_tcp_frame_decode(r->ahead + r->from, r->control, &r->frame);
        if (bad)
            return wrong(r, bad);
        r->from += PL_TCP_HEADER_BYTES;
        r->state = PL_TCP_AT_PLACE;
    }
    if (r->state == PL_TCP_AT_PLACE)
        return PL_TCP_PLACE;
    uint32_t rest = r->frame.bytes - r->got, staged = r->to - r->from, take = rest < staged ? rest : staged;
    take_payload(r, r->ahead + r->from, take);
    r->from += take;
    if (r->got < r->frame.bytes)
        return PL_TCP_MORE;
    if (r->crc != r->frame.crc)
        return wrong(r, "the checksum of a payload is wrong");
    r->state = PL_TCP_AT_HEADER;
    return PL_TCP_WHOLE;
}

/* What may be read to its place; what is thrown away goes by way of ahead. */
static uint32_t direct_bytes(const struct pl_tcp_reader *r)
{
    return r->state == PL_TCP_AT_PAYLOAD && r->payload ? r->frame.bytes - r->got : 0;
}

int pl_tcp_reader_space(struct pl_tcp_reader *r, struct iovec space[2])
{
    int n = 0;
    uint32_t rest = direct_bytes(r);
    memmove(r->ahead, r->ahead + r->from, r->to - r->from); /* less than a header */
    r->to -= r->from;
    r->from = 0;
    if (rest > PL_TCP_READ_BYTES)
        rest = PL_TCP_READ_BYTES;
    if (rest > 0)
        space[n++] = (struct iovec){r->payload + r->got, rest};
    if (rest < PL_TCP_READ_BYTES)
        space[n++] = (struct iovec){r->ahead + r->to, sizeof r->ahead - r->to};
    return n;
}

void pl_tcp_reader_filled(struct pl_tcp_reader *r, size_t bytes)
{
    uint32_t rest = direct_bytes(r), direct = bytes < rest ? (uint32_t)bytes : rest;
    take_payload(r, NULL, direct);
    r->to += (uint32_t)bytes - direct;
}

bool pl_tcp_reader_between(const struct pl_tcp_reader *r)
{
    return r->state == PL_TCP_AT_HEADER && r->from == r->to && !r->wrong;
}
