/* HDF5's virtual data sets: a data set that shows the whole of one, or of several, in other files, named by paths from the folder of the file
 * that shows them, so that both may move together (H5Pset_virtual; HDF5 looks there first). Where the other file or
 * data set is missing HDF5 reads a fill value: so they are looked for when one is opened. */
#include "base/h5_internal.h"

#include <math.h>
#include <string.h>
#include <unistd.h>

enum { MOST_PATH = 4096 };

static herr_t show_rows(hid_t plist, hid_t whole, hid_t one, const hsize_t *extent, const char *file, const char *name, int place)
{
    hsize_t start[PL_MAX_DIMS] = {(hsize_t)place * extent[0]};
    if (H5Sselect_hyperslab(whole, H5S_SELECT_SET, start, NULL, extent, NULL) < 0)
        return -1;
    return H5Pset_virtual(plist, whole, file, name, one);
}

pl_status pl_h5_make_virtual(struct pl_h5 *f, const char *name, const struct pl_h5_info *like, const char *const *file, int files)
{
    hsize_t extent[PL_MAX_DIMS], all[PL_MAX_DIMS];
    herr_t code = 0;
    for (int k = 0; k < like->dims; k++)
        all[k] = extent[k] = (hsize_t)like->dim[k];
    all[0] *= (hsize_t)files;
    pl_h5_lock();
    hid_t one = H5Screate_simple(like->dims, extent, NULL), space = H5Screate_simple(like->dims, all, NULL);
    hid_t plist = H5Pcreate(H5P_DATASET_CREATE), links = H5Pcreate(H5P_LINK_CREATE);
    H5Pset_create_intermediate_group(links, 1);
    const float nothing = NAN; /* what readers without that care find where it is missing */
    H5Pset_fill_value(plist, H5T_NATIVE_FLOAT, &nothing);
    for (int i = 0; i < files && code >= 0; i++)
        code = show_rows(plist, space, one, extent, file[i], name, i);
    H5Sselect_all(space);
    hid_t id = code < 0 ? -1 : H5Dcreate2(f->id, name, pl_h5_type(like->dtype), space, links, plist, H5P_DEFAULT);
    pl_status s = id < 0 ? pl_h5_failed(f, name, "cannot be made to show another") : PL_OK;
    if (s < 0)
        pl_h5_lock();
    if (id >= 0)
        H5Dclose(id);
    H5Sclose(one);
    H5Sclose(space);
    H5Pclose(plist);
    H5Pclose(links);
    pl_h5_unlock();
    return s;
}

/* The path of what is shown, from the folder of the file that shows it. */
static void beside(const struct pl_h5 *f, const char *file, char path[MOST_PATH])
{
    const char *shows = f->real ? f->real : f->path, *slash = strrchr(shows, '/');
    int folder = file[0] == '/' || !slash ? 0 : (int)(slash - shows) + 1;
    snprintf(path, MOST_PATH, "%.*s%s", folder, shows, file);
}

static bool has_dataset(const char *path, const char *name)
{
    hid_t other = access(path, R_OK) == 0 ? H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT) : -1;
    hid_t id = other >= 0 ? H5Dopen2(other, name, H5P_DEFAULT) : -1;
    if (id >= 0)
        H5Dclose(id);
    if (other >= 0)
        H5Fclose(other);
    H5Eclear2(H5E_DEFAULT);
    return id >= 0;
}

bool pl_h5_finds_shown(const struct pl_h5ds *d, hid_t plist, char *missing, size_t bytes)
{
    size_t shown = 0;
    if (H5Pget_layout(plist) != H5D_VIRTUAL)
        return true;
    if (H5Pget_virtual_count(plist, &shown) < 0)
        return false;
    for (size_t i = 0; i < shown; i++) {
        char file[1024] = "", name[1024] = "", path[MOST_PATH];
        H5Pget_virtual_filename(plist, i, file, sizeof file);
        H5Pget_virtual_dsetname(plist, i, name, sizeof name);
        beside(d->file, file, path);
        if (strcmp(file, ".") == 0 || has_dataset(path, name))
            continue;
        snprintf(missing, bytes, "shows %.900s:%.900s, which cannot be read", path, name);
        return false;
    }
    return true;
}

pl_status pl_h5_copy(struct pl_h5 *from, const char *name, struct pl_h5 *to)
{
    pl_h5_lock();
    if (H5Ocopy(from->id, name, to->id, name, H5P_DEFAULT, H5P_DEFAULT) < 0)
        return pl_h5_failed(to, name, "cannot be copied");
    pl_h5_unlock();
    return PL_OK;
}
