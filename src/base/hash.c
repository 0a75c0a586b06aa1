/* FNV-1a for telling things apart, CRC-32 (that of zlib and Ethernet) for finding damage. */
#include "base/base.h"

#include <string.h>
#include <zlib.h>
#ifdef PL_HAVE_LIBDEFLATE
#include <libdeflate.h>
#endif

uint64_t pl_hash(uint64_t h, const void *data, size_t bytes)
{
    const unsigned char *p = data;
    for (size_t i = 0; i < bytes; i++)
        h = (h ^ p[i]) * 0x100000001b3ull;
    return h;
}

uint64_t pl_hash_words(uint64_t h, const void *data, size_t bytes)
{
    const char *p = data;
    for (size_t i = 0; i + 8 <= bytes; i += 8) {
        uint64_t word;
        memcpy(&word, p + i, sizeof word);
        h = (h ^ word) * 0x100000001b3ull;
        h ^= h >> 32; /* a product carries upwards only */
    }
    return h;
}

uint32_t pl_crc32(uint32_t crc, const void *data, size_t bytes)
{
#ifdef PL_HAVE_LIBDEFLATE
    return libdeflate_crc32(crc, data, bytes); /* by carry-less products, ten times as fast */
#else
    return (uint32_t)crc32_z(crc, data, bytes);
#endif
}
