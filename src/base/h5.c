/* HDF5, read side: files, datasets, types, rows. Builds of HDF5 differ in thread safety, so every
 * call is made under one mutex of our own and nobody holds it long. Files are opened read-only
 * without HDF5's file locks, which parallel file systems refuse (h5py#1101). */
#include "base/h5_internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* innermost: nothing is locked under it */

void pl_h5_lock(void)
{
    static bool started;
    pthread_mutex_lock(&lock);
    if (!started)
        unsetenv("HDF5_VDS_PREFIX"); /* HDF5 would look there before it looks beside a file for what that shows */
    if (!started)
        H5dont_atexit(); /* a file that cannot be closed is not to be tried again behind main's back */
    started = true;
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL); /* per thread in some builds */
}

void pl_h5_unlock(void) { pthread_mutex_unlock(&lock); }

static herr_t keep_description(unsigned n, const H5E_error2_t *e, void *text)
{
    (void)n;
    char *t = text;
    const char *system = e->desc ? strstr(e->desc, "error message = '") : NULL;
    if (system) {
        system = strchr(system, '\'') + 1;
        snprintf(t, 256, "%.*s", (int)strcspn(system, "'"), system);
        return 1; /* what the operating system said is all there is to know */
    }
    if (e->desc && strlen(e->desc) > strlen(t))
        snprintf(t, 256, "%s", e->desc); /* the longest is the one with the facts */
    return 0;
}

pl_status pl_h5_failed(struct pl_h5 *f, const char *name, const char *what)
{
    char text[256] = "";
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_DOWNWARD, keep_description, text);
    H5Eclear2(H5E_DEFAULT);
    if (f->writing)
        pl_h5_abandon(f);
    pl_h5_unlock();
    return pl_error(f->err, f->room, "%s%s%s: %s%s%s", f->path, name ? ":" : "", name ? name : "", what,
                    text[0] ? ": " : "", text);
}

size_t pl_dtype_bytes(enum pl_dtype t)
{
    static const size_t bytes[] = {[PL_F32] = 4, [PL_F64] = 8, [PL_U8] = 1, [PL_I8] = 1, [PL_I16] = 2, [PL_U16] = 2,
                                   [PL_I32] = 4, [PL_U32] = 4, [PL_I64] = 8, [PL_U64] = 8, [PL_OTHER] = 0};
    return bytes[t];
}

const char *pl_dtype_name(enum pl_dtype t)
{
    static const char *const names[] = {[PL_F32] = "float32", [PL_F64] = "float64", [PL_U8] = "uint8", [PL_I8] = "int8",
                                        [PL_I16] = "int16", [PL_U16] = "uint16", [PL_I32] = "int32", [PL_U32] = "uint32",
                                        [PL_I64] = "int64", [PL_U64] = "uint64", [PL_OTHER] = "other"};
    return names[t];
}

hid_t pl_h5_type(enum pl_dtype t)
{
    switch (t) {
    case PL_F32: return H5T_NATIVE_FLOAT;
    case PL_F64: return H5T_NATIVE_DOUBLE;
    case PL_U8: return H5T_NATIVE_UINT8;
    case PL_I8: return H5T_NATIVE_INT8;
    case PL_I16: return H5T_NATIVE_INT16;
    case PL_U16: return H5T_NATIVE_UINT16;
    case PL_I32: return H5T_NATIVE_INT32;
    case PL_U32: return H5T_NATIVE_UINT32;
    case PL_I64: return H5T_NATIVE_INT64;
    case PL_U64: return H5T_NATIVE_UINT64;
    case PL_OTHER: break;
    }
    return -1;
}

/* The memory type nearest to a stored one: same class, sign and at least its size. */
static enum pl_dtype nearest_type(hid_t type)
{
    size_t n = H5Tget_size(type);
    if (H5Tget_class(type) == H5T_FLOAT)
        return n <= 4 ? PL_F32 : PL_F64;
    if (H5Tget_class(type) != H5T_INTEGER)
        return PL_OTHER;
    bool sign = H5Tget_sign(type) == H5T_SGN_2;
    if (n == 1)
        return sign ? PL_I8 : PL_U8;
    if (n == 2)
        return sign ? PL_I16 : PL_U16;
    if (n <= 4)
        return sign ? PL_I32 : PL_U32;
    return sign ? PL_I64 : PL_U64;
}

static bool is_bytes_each(hid_t type)
{
    if (H5Tget_class(type) != H5T_VLEN)
        return false;
    hid_t of = H5Tget_super(type);
    bool yes = H5Tget_class(of) == H5T_INTEGER && H5Tget_size(of) == 1 && H5Tget_sign(of) == H5T_SGN_NONE;
    H5Tclose(of);
    return yes;
}

pl_status pl_h5_open(const char *path, const char *room, pl_status err, struct pl_h5 **out)
{
    struct pl_h5 *f = pl_alloc(sizeof *f, "an HDF5 file");
    if (!f)
        return PL_ERR_MEMORY;
    *f = (struct pl_h5){.path = pl_strdup(path), .room = room, .err = err};
    struct stat st;
    bool special = stat(path, &st) == 0 && !S_ISREG(st.st_mode); /* a pipe would wait for ever */
    FILE *probe = special ? NULL : fopen(path, "rb");
    pl_status s = PL_OK;
    if (special)
        s = pl_error(err, room, "%s: not a regular file", path);
    else if (!probe)
        s = pl_error(err, room, "%s: no such file, or it cannot be read", path);
    else
        fclose(probe);
    if (s == PL_OK) {
        setenv("HDF5_USE_FILE_LOCKING", "FALSE", 0);
        pl_h5_lock();
        bool hdf5 = H5Fis_hdf5(path) != 0; /* asked first: a later call would clear the text of a failure */
        f->real = hdf5 ? realpath(path, NULL) : NULL;
        f->id = f->real ? H5Fopen(f->real, H5F_ACC_RDONLY, H5P_DEFAULT) : -1;
        if (f->id >= 0)
            pl_h5_unlock();
        else
            s = pl_h5_failed(f, NULL, hdf5 ? "cannot be opened" : "not an HDF5 file");
    }
    if (s < 0) {
        free(f->real);
        pl_free(f->path);
        pl_free(f);
        return s;
    }
    *out = f;
    return PL_OK;
}

pl_status pl_h5_close(struct pl_h5 *f)
{
    pl_status s = PL_OK;
    if (!f)
        return PL_OK;
    pl_h5_lock();
    if (f->writing && !f->abandoned && H5Fflush(f->id, H5F_SCOPE_GLOBAL) < 0) {
        s = pl_h5_failed(f, NULL, "cannot be written");
        pl_h5_lock();
    }
    if (H5Fclose(f->id) < 0)
        s = pl_h5_failed(f, NULL, "cannot be closed");
    else
        pl_h5_unlock();
    if (f->abandoned)
        s = f->err;
    free(f->real);
    pl_free(f->path);
    pl_free(f);
    return s;
}

/* H5Lexists needs every group on the way to exist. Lock held. */
static bool exists_locked(hid_t file, const char *name)
{
    char path[1024];
    snprintf(path, sizeof path, "%s", name);
    for (char *p = path + 1; path[0] && path[1]; p++) {
        char c = *p;
        if (c != '/' && c != '\0')
            continue;
        *p = '\0';
        if (H5Lexists(file, path, H5P_DEFAULT) <= 0)
            return false;
        *p = c;
        if (c == '\0')
            break;
    }
    return true;
}

bool pl_h5_exists(struct pl_h5 *f, const char *name)
{
    pl_h5_lock();
    bool yes = exists_locked(f->id, name);
    H5Eclear2(H5E_DEFAULT);
    pl_h5_unlock();
    return yes;
}

/* Fills d->info. Lock held. wrong: what is, where not the shape. */
static bool look(struct pl_h5ds *d, char *wrong, size_t bytes)
{
    hid_t space = H5Dget_space(d->id), type = H5Dget_type(d->id), plist = H5Dget_create_plist(d->id);
    struct pl_h5_info *i = &d->info;
    hsize_t dim[H5S_MAX_RANK] = {0}, chunk[H5S_MAX_RANK] = {0};
    i->dims = H5Sget_simple_extent_ndims(space);
    bool fine = i->dims >= 1 && i->dims <= PL_MAX_DIMS && H5Sget_simple_extent_dims(space, dim, NULL) >= 0;
    i->dtype = nearest_type(type);
    i->bytes_each = is_bytes_each(type);
    i->native = i->dtype != PL_OTHER && H5Tequal(type, pl_h5_type(i->dtype)) > 0;
    i->chunked = H5Pget_layout(plist) == H5D_CHUNKED;
    i->elsewhere = H5Pget_layout(plist) == H5D_VIRTUAL;
    if (fine && i->chunked)
        fine = H5Pget_chunk(plist, i->dims, chunk) >= 0;
    d->row_bytes = pl_dtype_bytes(i->dtype);
    for (int k = 0; fine && k < i->dims; k++) {
        i->dim[k] = (int64_t)dim[k];
        i->chunk[k] = (int64_t)chunk[k];
        d->row_bytes *= k > 0 ? (size_t)dim[k] : 1;
    }
    i->bytes_stored = (int64_t)H5Dget_storage_size(d->id);
    pl_h5_look_at_filters(d, plist);
    fine = fine && pl_h5_finds_shown(d, plist, wrong, bytes);
    H5Sclose(space);
    H5Tclose(type);
    H5Pclose(plist);
    return fine;
}

pl_status pl_h5_dataset(struct pl_h5 *f, const char *name, struct pl_h5ds **out)
{
    char full[1024];
    snprintf(full, sizeof full, "%s%s", name[0] == '/' ? "" : "/", name);
    pl_h5_lock();
    if (!exists_locked(f->id, full))
        return pl_h5_failed(f, full, "no such dataset");
    hid_t id = H5Dopen2(f->id, full, H5P_DEFAULT);
    if (id < 0)
        return pl_h5_failed(f, full, "is no dataset");
    pl_h5_unlock();
    struct pl_h5ds *d = pl_alloc(sizeof *d, "a dataset");
    if (!d)
        return PL_ERR_MEMORY;
    d->file = f;
    d->id = id;
    d->name = pl_strdup(full);
    d->cached = -1;
    char wrong[2048] = "has no shape that can be read (1 to 8 dimensions)";
    pl_h5_lock();
    if (!look(d, wrong, sizeof wrong)) {
        pl_status s = pl_h5_failed(f, full, wrong);
        pl_h5_dataset_close(d);
        return s;
    }
    pl_h5_unlock();
    *out = d;
    return PL_OK;
}

void pl_h5_dataset_close(struct pl_h5ds *d)
{
    if (!d)
        return;
    pl_h5_lock();
    if (d->file->writing && !d->file->abandoned && H5Dflush(d->id) < 0) {
        pl_h5_failed(d->file, d->name, "cannot be written");
        pl_h5_lock();
    }
    H5Dclose(d->id);
    pl_h5_unlock();
    pl_free(d->name);
    pl_h5_free_buffers(d);
    pl_free(d);
}

const struct pl_h5_info *pl_h5_dataset_info(const struct pl_h5ds *d) { return &d->info; }

/* One hyperslab of whole rows. */
pl_status pl_h5_transfer(struct pl_h5ds *d, int64_t first, int64_t rows, enum pl_dtype t, void *p, bool write)
{
    hsize_t start[PL_MAX_DIMS] = {(hsize_t)first}, count[PL_MAX_DIMS];
    for (int k = 0; k < d->info.dims; k++)
        count[k] = k == 0 ? (hsize_t)rows : (hsize_t)d->info.dim[k];
    pl_h5_lock();
    hid_t file = H5Dget_space(d->id), memory = H5Screate_simple(d->info.dims, count, NULL);
    herr_t code = H5Sselect_hyperslab(file, H5S_SELECT_SET, start, NULL, count, NULL);
    if (code >= 0)
        code = write ? H5Dwrite(d->id, pl_h5_type(t), memory, file, H5P_DEFAULT, p)
                     : H5Dread(d->id, pl_h5_type(t), memory, file, H5P_DEFAULT, p);
    pl_status s = PL_OK;
    if (code < 0)
        s = pl_h5_failed(d->file, d->name, write ? "cannot be written" : "cannot be read");
    else
        pl_h5_unlock();
    pl_h5_lock();
    H5Sclose(file);
    H5Sclose(memory);
    pl_h5_unlock();
    return s;
}

pl_status pl_h5_read_rows(struct pl_h5ds *d, int64_t first, int64_t rows, enum pl_dtype to, void *out)
{
    if (first < 0 || rows < 0 || first + rows > d->info.dim[0])
        return pl_error(d->file->err, d->file->room, "%s:%s: rows %lld to %lld of %lld", d->file->path, d->name,
                        (long long)first, (long long)(first + rows), (long long)d->info.dim[0]);
    if (d->info.dtype == PL_OTHER)
        return pl_error(d->file->err, d->file->room, "%s:%s: neither integers nor floats", d->file->path, d->name);
    if (rows == 0 || d->row_bytes == 0)
        return PL_OK;
    if (d->info.raw_chunks && to == d->info.dtype)
        return pl_h5_read_chunks(d, first, rows, out);
    return pl_h5_transfer(d, first, rows, to, out, false);
}

/* HDF5 gives every element memory of its own: taken over and freed. Lock held. */
static bool gather(const hvl_t *element, int64_t rows, unsigned char **out, size_t *capacity, size_t *offset)
{
    offset[0] = 0;
    for (int64_t i = 0; i < rows; i++)
        offset[i + 1] = offset[i] + element[i].len;
    if (offset[rows] > *capacity) {
        pl_free(*out);
        *capacity = offset[rows] + offset[rows] / 4;
        *out = pl_alloc(*capacity, "stored bytes");
        if (!*out)
            *capacity = 0;
    }
    for (int64_t i = 0; *out && i < rows; i++)
        if (element[i].len > 0)
            memcpy(*out + offset[i], element[i].p, element[i].len);
    return *out || offset[rows] == 0;
}

pl_status pl_h5_read_bytes(struct pl_h5ds *d, int64_t first, int64_t rows, unsigned char **out, size_t *capacity, size_t *offset)
{
    hsize_t start = (hsize_t)first, count = (hsize_t)rows;
    hvl_t *element = pl_alloc((size_t)rows * sizeof *element, "stored bytes");
    if (!element)
        return PL_ERR_MEMORY;
    pl_h5_lock();
    hid_t type = H5Tvlen_create(H5T_NATIVE_UINT8), file = H5Dget_space(d->id), memory = H5Screate_simple(1, &count, NULL);
    herr_t code = H5Sselect_hyperslab(file, H5S_SELECT_SET, &start, NULL, &count, NULL);
    if (code >= 0)
        code = H5Dread(d->id, type, memory, file, H5P_DEFAULT, element);
    pl_status s = code < 0 ? pl_h5_failed(d->file, d->name, "cannot be read") : PL_OK;
    if (s < 0)
        pl_h5_lock();
    else if (!gather(element, rows, out, capacity, offset))
        s = PL_ERR_MEMORY;
    H5Dvlen_reclaim(type, memory, H5P_DEFAULT, element); /* what a failed read left too: the rest is zero */
    H5Tclose(type);
    H5Sclose(file);
    H5Sclose(memory);
    pl_h5_unlock();
    pl_free(element);
    return s;
}

const char *pl_h5_version(void)
{
    static char text[64];
    unsigned a, b, c;
    pl_h5_lock();
    H5get_libversion(&a, &b, &c);
    pl_h5_unlock();
#ifdef H5_HAVE_PARALLEL
    const char *kind = "parallel";
#else
    const char *kind = "serial";
#endif
    snprintf(text, sizeof text, "%u.%u.%u, %s; %s", a, b, c, kind, pl_h5_inflater);
    return text;
}
