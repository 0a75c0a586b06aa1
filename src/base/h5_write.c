/* HDF5, write side: new files, datasets in pieces of at most 4 MB with the lock let go between them,
 * attributes, and a walk through what a file holds. */
#include "base/h5_internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PIECE_BYTES (4u << 20)

/* HDF5 (seen in 1.10.8) frees what it could not flush when a close fails, and crashes on it later. So a
 * failure is looked for by a flush before each close, and from then on its descriptor leads to memory,
 * where everything can be written and then be forgotten. The file on disk is left as it is. */
void pl_h5_abandon(struct pl_h5 *f)
{
    int *descriptor = NULL;
    if (f->abandoned)
        return;
    f->abandoned = true;
    int memory = memfd_create("paceline-abandoned", MFD_CLOEXEC);
    if (memory >= 0 && H5Fget_vfd_handle(f->id, H5P_DEFAULT, (void **)&descriptor) >= 0 && descriptor)
        dup2(memory, *descriptor);
    if (memory >= 0)
        close(memory);
}

/* Unlocks. */
static pl_status made(struct pl_h5 *f, const char *otherwise, struct pl_h5 **out)
{
    if (f->id < 0) {
        f->writing = false;
        pl_status s = pl_h5_failed(f, NULL, otherwise);
        pl_free(f->path);
        pl_free(f);
        return s;
    }
    pl_h5_unlock();
    *out = f;
    return PL_OK;
}

pl_status pl_h5_create(const char *path, const char *room, pl_status err, struct pl_h5 **out)
{
    struct pl_h5 *f = pl_alloc(sizeof *f, "an HDF5 file");
    if (!f)
        return PL_ERR_MEMORY;
    *f = (struct pl_h5){.path = pl_strdup(path), .room = room, .err = err, .writing = true};
    setenv("HDF5_USE_FILE_LOCKING", "FALSE", 0);
    pl_h5_lock();
    f->id = H5Fcreate(path, H5F_ACC_EXCL, H5P_DEFAULT, H5P_DEFAULT);
    return made(f, "cannot be made (it must not exist yet)", out);
}

pl_status pl_h5_create_in_memory(const char *name, const char *room, pl_status err, struct pl_h5 **out)
{
    struct pl_h5 *f = pl_alloc(sizeof *f, "a data set in memory");
    if (!f)
        return PL_ERR_MEMORY;
    static unsigned so_far; /* HDF5 refuses the name of one that is there */
    char unique[64];
    *f = (struct pl_h5){.path = pl_strdup(name), .room = room, .err = err};
    pl_h5_lock();
    snprintf(unique, sizeof unique, "paceline-in-memory-%u", so_far++);
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_fapl_core(access, PIECE_BYTES, false);
    f->id = H5Fcreate(unique, H5F_ACC_TRUNC, H5P_DEFAULT, access);
    H5Pclose(access);
    return made(f, "cannot be made in memory", out);
}

pl_status pl_h5_make_dataset(struct pl_h5 *f, const char *name, enum pl_dtype t, int dims, const int64_t *dim,
                             int64_t chunk_rows, int deflate, struct pl_h5ds **out)
{
    hsize_t extent[PL_MAX_DIMS], chunk[PL_MAX_DIMS];
    for (int k = 0; k < dims; k++) {
        extent[k] = (hsize_t)dim[k];
        chunk[k] = k == 0 ? (hsize_t)chunk_rows : (hsize_t)dim[k];
    }
    pl_h5_lock();
    hid_t space = H5Screate_simple(dims, extent, NULL), plist = H5Pcreate(H5P_DATASET_CREATE);
    hid_t links = H5Pcreate(H5P_LINK_CREATE);
    H5Pset_create_intermediate_group(links, 1);
    if (chunk_rows > 0)
        H5Pset_chunk(plist, dims, chunk);
    if (chunk_rows > 0 && deflate > 0) {
        H5Pset_shuffle(plist);
        H5Pset_deflate(plist, (unsigned)deflate);
    }
    hid_t id = H5Dcreate2(f->id, name, pl_h5_type(t), space, links, plist, H5P_DEFAULT);
    pl_status s = PL_OK;
    if (id < 0)
        s = pl_h5_failed(f, name, "cannot be made");
    else
        pl_h5_unlock();
    pl_h5_lock();
    H5Sclose(space);
    H5Pclose(plist);
    H5Pclose(links);
    if (id >= 0)
        H5Dclose(id);
    pl_h5_unlock();
    PL_TRY(s);
    return pl_h5_dataset(f, name, out);
}

pl_status pl_h5_write_rows(struct pl_h5ds *d, int64_t first, int64_t rows, enum pl_dtype from, const void *data)
{
    size_t row = d->row_bytes / pl_dtype_bytes(d->info.dtype) * pl_dtype_bytes(from);
    int64_t most = row < PIECE_BYTES && row > 0 ? (int64_t)(PIECE_BYTES / row) : 1;
    const char *p = data;
    if (pl_fault("h5.write", -1))
        return pl_error(d->file->err, d->file->room, "%s:%s: cannot be written: debug.fault", d->file->path, d->name);
    while (rows > 0 && row > 0) {
        int64_t n = rows < most ? rows : most;
        PL_TRY(pl_h5_transfer(d, first, n, from, (void *)p, true));
        first += n;
        rows -= n;
        p += (size_t)n * row;
    }
    return PL_OK;
}

/* Opens the object an attribute belongs to; on write a missing group is made. Lock held. */
static hid_t open_object(struct pl_h5 *f, const char *name, bool make)
{
    hid_t id = H5Oopen(f->id, name, H5P_DEFAULT);
    if (id < 0 && make) {
        hid_t links = H5Pcreate(H5P_LINK_CREATE);
        H5Pset_create_intermediate_group(links, 1);
        id = H5Gcreate2(f->id, name, links, H5P_DEFAULT, H5P_DEFAULT);
        H5Pclose(links);
    }
    return id;
}

static pl_status set_attribute(struct pl_h5 *f, const char *name, const char *attr, hid_t type, const void *value)
{
    pl_h5_lock();
    hid_t object = open_object(f, name, true), space = H5Screate(H5S_SCALAR);
    if (object >= 0 && H5Aexists(object, attr) > 0)
        H5Adelete(object, attr);
    hid_t a = object >= 0 ? H5Acreate2(object, attr, type, space, H5P_DEFAULT, H5P_DEFAULT) : -1;
    herr_t code = a >= 0 ? H5Awrite(a, type, value) : -1;
    pl_status s = code < 0 ? pl_h5_failed(f, attr, "attribute cannot be written") : PL_OK;
    if (s < 0)
        pl_h5_lock();
    if (a >= 0)
        H5Aclose(a);
    if (object >= 0)
        H5Oclose(object);
    H5Sclose(space);
    pl_h5_unlock();
    return s;
}

pl_status pl_h5_set_int(struct pl_h5 *f, const char *name, const char *attr, int64_t v)
{
    return set_attribute(f, name, attr, H5T_NATIVE_INT64, &v);
}

pl_status pl_h5_set_double(struct pl_h5 *f, const char *name, const char *attr, double v)
{
    return set_attribute(f, name, attr, H5T_NATIVE_DOUBLE, &v);
}

static hid_t text_type(void)
{
    hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, H5T_VARIABLE);
    H5Tset_cset(type, H5T_CSET_UTF8);
    return type;
}

pl_status pl_h5_set_text(struct pl_h5 *f, const char *name, const char *attr, const char *v)
{
    pl_h5_lock();
    hid_t type = text_type();
    pl_h5_unlock();
    pl_status s = set_attribute(f, name, attr, type, &v);
    pl_h5_lock();
    H5Tclose(type);
    pl_h5_unlock();
    return s;
}

static pl_status get_attribute(struct pl_h5 *f, const char *name, const char *attr, hid_t type, void *value)
{
    pl_h5_lock();
    hid_t object = open_object(f, name, false);
    hid_t a = object >= 0 ? H5Aopen(object, attr, H5P_DEFAULT) : -1;
    herr_t code = a >= 0 ? H5Aread(a, type, value) : -1;
    pl_status s = code < 0 ? pl_h5_failed(f, attr, "no such attribute") : PL_OK;
    if (s < 0)
        pl_h5_lock();
    if (a >= 0)
        H5Aclose(a);
    if (object >= 0)
        H5Oclose(object);
    pl_h5_unlock();
    return s;
}

pl_status pl_h5_get_int(struct pl_h5 *f, const char *name, const char *attr, int64_t *v)
{
    return get_attribute(f, name, attr, H5T_NATIVE_INT64, v);
}

pl_status pl_h5_get_double(struct pl_h5 *f, const char *name, const char *attr, double *v)
{
    return get_attribute(f, name, attr, H5T_NATIVE_DOUBLE, v);
}

/* Texts of variable length, as they are written here and by h5py, and of a fixed one. */
pl_status pl_h5_get_text(struct pl_h5 *f, const char *name, const char *attr, char **v)
{
    pl_h5_lock();
    hid_t object = open_object(f, name, false), a = object >= 0 ? H5Aopen(object, attr, H5P_DEFAULT) : -1;
    hid_t type = a >= 0 ? H5Aget_type(a) : -1;
    bool fixed = type >= 0 && H5Tget_class(type) == H5T_STRING && H5Tis_variable_str(type) == 0;
    size_t bytes = fixed ? H5Tget_size(type) : 0;
    H5Eclear2(H5E_DEFAULT);
    if (object >= 0)
        H5Oclose(object);
    if (a >= 0)
        H5Aclose(a);
    if (type >= 0 && !fixed)
        H5Tclose(type);
    if (!fixed)
        type = text_type();
    pl_h5_unlock();
    char *text = fixed ? pl_alloc(bytes + 1, "a text") : NULL;
    pl_status s = fixed && !text ? PL_ERR_MEMORY : get_attribute(f, name, attr, type, fixed ? (void *)text : &text);
    pl_h5_lock();
    H5Tclose(type);
    if (s == PL_OK)
        *v = pl_strdup(text);
    if (fixed)
        pl_free(text);
    else if (s == PL_OK)
        H5free_memory(text);
    pl_h5_unlock();
    return s < 0 ? s : *v ? PL_OK : PL_ERR_MEMORY;
}

struct found { char **path; bool *dataset; int n, capacity; };

static herr_t note(hid_t file, const char *name, const H5O_info_t *info, void *arg)
{
    struct found *f = arg;
    (void)file;
    if (strcmp(name, ".") == 0)
        return 0;
    if (f->n == f->capacity) {
        size_t old = (size_t)f->capacity, cap = old ? 2 * old : 64;
        f->path = pl_realloc(f->path, old * sizeof *f->path, cap * sizeof *f->path, "names");
        f->dataset = pl_realloc(f->dataset, old * sizeof *f->dataset, cap * sizeof *f->dataset, "names");
        f->capacity = (int)cap;
    }
    if (!f->path || !f->dataset)
        return -1;
    f->path[f->n] = pl_strdup(name);
    f->dataset[f->n++] = info->type == H5O_TYPE_DATASET;
    return 0;
}

pl_status pl_h5_walk(struct pl_h5 *f, const char *name, void (*visit)(void *arg, const char *path, bool is_dataset),
                     void *arg)
{
    struct found found = {0};
    const char *slash = strcmp(name, "/") == 0 ? "" : name;
    pl_h5_lock();
    if (H5Ovisit_by_name(f->id, name, H5_INDEX_NAME, H5_ITER_INC, note, &found, H5P_DEFAULT) < 0)
        return pl_h5_failed(f, name, "cannot be listed");
    pl_h5_unlock();
    for (int i = 0; i < found.n; i++) { /* outside the lock: visit may call us */
        char *path = pl_strdupf("%s/%s", slash, found.path[i]);
        visit(arg, path, found.dataset[i]);
        pl_free(path);
        pl_free(found.path[i]);
    }
    pl_free(found.path);
    pl_free(found.dataset);
    return PL_OK;
}
