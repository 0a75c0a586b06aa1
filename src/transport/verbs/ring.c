/* What goes into the slots of a peer's ring, and the arithmetic of credits. Counters of frames run from 0 modulo
 * 2^32; a slot is the counter modulo the slots. No verbs in here. */
#include "transport/verbs/verbs.h"

#define MAGIC 0x31764c50u /* "PLv1"; differs where the byte order does */
#define COUNT_BITS 30
#define RING_MEMORY ((int64_t)256 << 20) /* of all rings together, as far as the fewest slots allow */
#define COPY_BYTES 16384                 /* so much is copied and summed while it is in the cache */

static uint32_t header_crc(const struct pl_verbs_frame *f)
{
    struct pl_verbs_frame copy = *f;
    copy.header_crc = 0;
    return pl_crc32(0, &copy, sizeof copy);
}

void pl_verbs_seal(struct pl_verbs_frame *f)
{
    f->magic = MAGIC;
    memset(f->zero, 0, sizeof f->zero);
    f->header_crc = header_crc(f);
}

const char *pl_verbs_frame_wrong(const struct pl_verbs_frame *f, uint32_t sequence, uint32_t arrived_bytes, uint32_t most_payload)
{
    if (arrived_bytes < sizeof *f || f->magic != MAGIC)
        return "not a frame of this program";
    if (f->header_crc != header_crc(f))
        return "wrong checksum of the header";
    if (f->bytes > most_payload || arrived_bytes != sizeof *f + f->bytes || f->offset > f->total || f->bytes > f->total - f->offset)
        return "wrong length";
    if (f->sequence != sequence)
        return "out of sequence";
    return NULL;
}

bool pl_verbs_copy_payload(const struct pl_verbs_frame *f, const void *payload, void *to)
{
    uint32_t crc = 0;
    for (uint32_t at = 0; at < f->bytes; at += COPY_BYTES) {
        uint32_t n = f->bytes - at < COPY_BYTES ? f->bytes - at : COPY_BYTES;
        memcpy((char *)to + at, (const char *)payload + at, n);
        crc = pl_crc32(crc, (const char *)payload + at, n);
    }
    return crc == f->payload_crc;
}

uint32_t pl_verbs_immediate(enum pl_verbs_news n, uint32_t count)
{
    return (uint32_t)n << COUNT_BITS | (count & ((1u << COUNT_BITS) - 1));
}

enum pl_verbs_news pl_verbs_immediate_news(uint32_t immediate) { return (enum pl_verbs_news)(immediate >> COUNT_BITS); }

uint32_t pl_verbs_immediate_count(uint32_t immediate, uint32_t near)
{
    uint32_t ahead = (immediate - near) & ((1u << COUNT_BITS) - 1);
    return near + ahead - (ahead >> (COUNT_BITS - 1) << COUNT_BITS); /* the upper half stands for what lies behind */
}

bool pl_verbs_credit(uint32_t sent, uint32_t told, uint32_t *acked)
{
    if (sent - told > sent - *acked) /* more than is out, or less than was known: an older word that was overtaken */
        return *acked - told <= PL_VERBS_SLOTS;
    *acked = told;
    return true;
}

int pl_verbs_ring_slots(int64_t rings)
{
    int64_t slots = rings > 0 ? RING_MEMORY / (rings * (PL_VERBS_PAYLOAD + (int64_t)sizeof(struct pl_verbs_frame))) : PL_VERBS_SLOTS;
    return slots > PL_VERBS_SLOTS ? PL_VERBS_SLOTS : slots < PL_VERBS_FEWEST_SLOTS ? PL_VERBS_FEWEST_SLOTS : (int)slots;
}
