/* Raw chunks: read under the lock, then fletcher32, deflate and shuffle undone outside it, so that a
 * loader's inflating holds up nobody. Only where a chunk is a run of whole rows of a native type
 * behind these three filters; everything else goes through H5Dread. Filters were applied first to
 * last when written, a set bit of the chunk's mask says that one was skipped. */
#include "base/h5_internal.h"

#include <string.h>
#ifdef PL_HAVE_LIBDEFLATE
#include <libdeflate.h>
#else
#include <zlib.h>
#endif

#define SLACK 64 /* a checksum may follow the data inside the deflated stream */

#ifdef PL_HAVE_LIBDEFLATE
const char pl_h5_inflater[] = "libdeflate";
#else
const char pl_h5_inflater[] = "zlib";
#endif

static bool whole_rows(const struct pl_h5_info *i)
{
    for (int k = 1; k < i->dims; k++)
        if (i->chunk[k] != i->dim[k])
            return false;
    return true;
}

void pl_h5_look_at_filters(struct pl_h5ds *d, hid_t plist)
{
    struct pl_h5_info *i = &d->info;
    int n = i->chunked ? H5Pget_nfilters(plist) : 0;
    bool known = n <= PL_H5_MAX_FILTERS;
    unsigned options = 0;
    for (int k = 0; known && k < n; k++) {
        unsigned flags, values[8] = {0};
        size_t count = 8;
        char name[1];
        d->filter[k] = H5Pget_filter2(plist, (unsigned)k, &flags, &count, values, sizeof name, name, NULL);
        known = d->filter[k] == H5Z_FILTER_SHUFFLE || d->filter[k] == H5Z_FILTER_DEFLATE || d->filter[k] == H5Z_FILTER_FLETCHER32;
        if (d->filter[k] == H5Z_FILTER_SHUFFLE)
            d->shuffle_bytes = count > 0 && values[0] > 0 ? values[0] : (unsigned)pl_dtype_bytes(i->dtype);
    }
    if (i->chunked && H5Pget_chunk_opts(plist, &options) >= 0 && options != 0)
        known = false; /* edge chunks stored without their filters */
    d->filters = n;
    d->chunk_bytes = i->chunked ? (size_t)i->chunk[0] * d->row_bytes : 0;
    i->raw_chunks = i->chunked && known && i->native && whole_rows(i) && d->row_bytes > 0;
#ifdef H5_HAVE_PARALLEL
    i->raw_chunks = false; /* no H5Dread_chunk there */
#endif
}

/* Fletcher's checksum as HDF5 computes it: over big-endian 16-bit words. */
static uint32_t fletcher32(const unsigned char *p, size_t bytes)
{
    uint32_t a = 0, b = 0;
    for (size_t i = 0; i + 1 < bytes; i += 2) {
        a += (uint32_t)p[i] << 8 | p[i + 1];
        a = (a & 0xffff) + (a >> 16);
        b += a;
        b = (b & 0xffff) + (b >> 16);
    }
    if (bytes % 2) {
        a += (uint32_t)p[bytes - 1] << 8;
        a = (a & 0xffff) + (a >> 16);
        b += a;
        b = (b & 0xffff) + (b >> 16);
    }
    a = (a & 0xffff) + (a >> 16);
    b = (b & 0xffff) + (b >> 16);
    return b << 16 | a;
}

static bool check_sum(const unsigned char *p, size_t *bytes)
{
    if (*bytes < 4)
        return false;
    *bytes -= 4;
    const unsigned char *s = p + *bytes;
    uint32_t stored = (uint32_t)s[0] | (uint32_t)s[1] << 8 | (uint32_t)s[2] << 16 | (uint32_t)s[3] << 24;
    uint32_t sum = fletcher32(p, *bytes);
    /* 0 and 65535 are the same in ones' complement. */
    uint32_t low = (sum & 0xffff) % 65535, high = (sum >> 16) % 65535;
    return (stored & 0xffff) % 65535 == low && (stored >> 16) % 65535 == high;
}

/* libdeflate inflates images at twice the speed of zlib. */
static bool inflate_all(struct pl_h5ds *d, const unsigned char *in, size_t n, unsigned char *out, size_t capacity, size_t *bytes)
{
#ifdef PL_HAVE_LIBDEFLATE
    if (!d->inflater)
        d->inflater = libdeflate_alloc_decompressor();
    return d->inflater && libdeflate_zlib_decompress(d->inflater, in, n, out, capacity, bytes) == LIBDEFLATE_SUCCESS;
#else
    (void)d;
    uLongf got = (uLongf)capacity;
    if (uncompress(out, &got, in, (uLong)n) != Z_OK)
        return false;
    *bytes = got;
    return true;
#endif
}

void pl_h5_free_buffers(struct pl_h5ds *d)
{
#ifdef PL_HAVE_LIBDEFLATE
    if (d->inflater)
        libdeflate_free_decompressor(d->inflater);
#endif
    pl_free(d->kept);
    pl_free(d->decoded);
    pl_free(d->raw);
    pl_free(d->other);
}

static void unshuffle(const unsigned char *in, unsigned char *out, size_t bytes, size_t size)
{
    size_t n = size > 0 ? bytes / size : 0;
    for (size_t byte = 0; byte < size; byte++)
        for (size_t i = 0; i < n; i++)
            out[i * size + byte] = in[byte * n + i];
    memcpy(out + n * size, in + n * size, bytes - n * size);
}

/* Undoes the filters of d->raw[0 .. bytes); the result is whole in out[chunk_bytes], where the last filter
 * puts it if nothing can follow the data there. NULL, or what is wrong. */
static const char *decode(struct pl_h5ds *d, size_t bytes, uint32_t mask, unsigned char *out)
{
    unsigned char *from = d->raw;
    for (int k = d->filters - 1; k >= 0; k--) {
        if (mask & 1u << k)
            continue;
        if (d->filter[k] == H5Z_FILTER_FLETCHER32) {
            if (!check_sum(from, &bytes))
                return "its checksum (fletcher32) does not hold";
            continue;
        }
        unsigned char *to = k == 0 ? out : from == d->decoded ? d->other : d->decoded;
        size_t room = d->chunk_bytes + (k == 0 ? 0 : SLACK);
        if (d->filter[k] == H5Z_FILTER_DEFLATE && !inflate_all(d, from, bytes, to, room, &bytes))
            return "it cannot be inflated";
        if (d->filter[k] == H5Z_FILTER_SHUFFLE) {
            if (bytes > room)
                return "it is too long";
            unshuffle(from, to, bytes, d->shuffle_bytes);
        }
        from = to;
    }
    if (bytes != d->chunk_bytes)
        return "it has not the length of a chunk";
    if (from != out)
        memcpy(out, from, bytes);
    return NULL;
}

static pl_status make_buffers(struct pl_h5ds *d, size_t stored)
{
    if (d->filters > 1 && !d->decoded) {
        d->decoded = pl_alloc(d->chunk_bytes + SLACK, "a chunk");
        d->other = pl_alloc(d->chunk_bytes + SLACK, "a chunk");
        if (!d->decoded || !d->other)
            return PL_ERR_MEMORY;
    }
    if (stored > d->raw_capacity) {
        pl_free(d->raw);
        d->raw_capacity = stored + stored / 4;
        d->raw = pl_alloc(d->raw_capacity, "a stored chunk");
    }
    return d->raw ? PL_OK : PL_ERR_MEMORY;
}

/* A chunk that was never written reads as the fill value. */
static pl_status fill_chunk(struct pl_h5ds *d, unsigned char *out)
{
    unsigned char value[16] = {0};
    size_t size = pl_dtype_bytes(d->info.dtype);
    pl_h5_lock();
    hid_t plist = H5Dget_create_plist(d->id);
    herr_t code = H5Pget_fill_value(plist, pl_h5_type(d->info.dtype), value);
    H5Pclose(plist);
    if (code < 0)
        return pl_h5_failed(d->file, d->name, "its fill value cannot be read");
    pl_h5_unlock();
    for (size_t i = 0; i < d->chunk_bytes; i += size)
        memcpy(out + i, value, size);
    return PL_OK;
}

/* Into out[chunk_bytes]; what is stored without filters is read straight to there. */
static pl_status load_chunk(struct pl_h5ds *d, int64_t chunk, unsigned char *out)
{
    hsize_t offset[PL_MAX_DIMS] = {(hsize_t)(chunk * d->info.chunk[0])}, stored = 0;
    uint32_t mask = 0;
    pl_h5_lock();
    if (H5Dget_chunk_storage_size(d->id, offset, &stored) < 0)
        stored = 0;
    H5Eclear2(H5E_DEFAULT);
    pl_h5_unlock();
    if (stored == 0)
        return fill_chunk(d, out);
    bool plain = d->filters == 0 && stored == d->chunk_bytes;
    if (!plain)
        PL_TRY(make_buffers(d, (size_t)stored));
    pl_h5_lock();
    if (H5Dread_chunk(d->id, H5P_DEFAULT, offset, &mask, plain ? out : d->raw) < 0)
        return pl_h5_failed(d->file, d->name, "a chunk cannot be read");
    pl_h5_unlock();
    const char *wrong = plain ? NULL : decode(d, (size_t)stored, mask, out);
    if (wrong)
        return pl_error(d->file->err, d->file->room, "%s:%s: the chunk of rows %lld to %lld is damaged: %s",
                        d->file->path, d->name, (long long)offset[0],
                        (long long)offset[0] + (long long)d->info.chunk[0] - 1, wrong);
    return PL_OK;
}

/* A chunk of which a part is wanted is kept: the next call most likely wants the rest. */
static pl_status keep_chunk(struct pl_h5ds *d, int64_t chunk)
{
    if (d->cached == chunk)
        return PL_OK;
    d->cached = -1;
    d->kept = d->kept ? d->kept : pl_alloc(d->chunk_bytes, "a chunk");
    if (!d->kept)
        return PL_ERR_MEMORY;
    PL_TRY(load_chunk(d, chunk, d->kept));
    d->cached = chunk;
    return PL_OK;
}

pl_status pl_h5_read_chunks(struct pl_h5ds *d, int64_t first, int64_t rows, unsigned char *out)
{
    int64_t size = d->info.chunk[0];
    while (rows > 0) {
        int64_t chunk = first / size, within = first - chunk * size;
        int64_t n = size - within < rows ? size - within : rows;
        if (n == size && d->cached != chunk) {
            PL_TRY(load_chunk(d, chunk, out));
        } else {
            PL_TRY(keep_chunk(d, chunk));
            memcpy(out, d->kept + (size_t)within * d->row_bytes, (size_t)n * d->row_bytes);
        }
        out += (size_t)n * d->row_bytes;
        first += n;
        rows -= n;
    }
    return PL_OK;
}
