/* Internal to base/'s HDF5 wrappers (h5.c, h5_write.c, h5_chunk.c, h5_virtual.c). */
#ifndef PL_BASE_H5_INTERNAL_H
#define PL_BASE_H5_INTERNAL_H

#include "base/base.h"

#include <hdf5.h>

struct pl_h5 {
    hid_t id;
    char *path, *real; /* real: links followed, so that what it shows is looked for beside it */
    const char *room;
    pl_status err;
    bool writing, abandoned;
};

#define PL_H5_MAX_FILTERS 8
struct pl_h5ds {
    struct pl_h5 *file;
    hid_t id;
    char *name;
    struct pl_h5_info info;
    int filters;
    H5Z_filter_t filter[PL_H5_MAX_FILTERS];
    unsigned shuffle_bytes; /* element size of the shuffle filter */
    size_t chunk_bytes, row_bytes;
    int64_t cached;         /* chunk in `kept`; -1: none */
    unsigned char *kept;    /* [chunk_bytes] */
    unsigned char *raw, *decoded, *other; /* as stored; between two filters, [chunk_bytes + slack] */
    size_t raw_capacity;
    struct libdeflate_decompressor *inflater;
};

/* One mutex around every HDF5 call, whatever the build; also silences HDF5's own printing. */
void pl_h5_lock(void);
void pl_h5_unlock(void);
/* Takes HDF5's text of the failed call (lock held), unlocks, records "path:/name: what: text". */
pl_status pl_h5_failed(struct pl_h5 *f, const char *name, const char *what);
/* After a failed write (a full disk, a quota): what else HDF5 has to write goes to memory, lock held.
 * pl_h5_close gives the error. */
void pl_h5_abandon(struct pl_h5 *f);
hid_t pl_h5_type(enum pl_dtype t);
pl_status pl_h5_transfer(struct pl_h5ds *d, int64_t first, int64_t rows, enum pl_dtype t, void *p, bool write);
extern const char pl_h5_inflater[]; /* "zlib", "libdeflate" */
/* Rows [first, first + rows) by raw chunks. */
pl_status pl_h5_read_chunks(struct pl_h5ds *d, int64_t first, int64_t rows, unsigned char *out);
void pl_h5_free_buffers(struct pl_h5ds *d);
/* Whether all is there that a virtual data set, with this creation list, shows; missing: what is not. Lock held. */
bool pl_h5_finds_shown(const struct pl_h5ds *d, hid_t plist, char *missing, size_t bytes);
void pl_h5_look_at_filters(struct pl_h5ds *d, hid_t plist); /* lock held */

#endif
