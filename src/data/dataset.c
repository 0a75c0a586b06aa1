/* Opens a set and holds it against what the network wants: shapes, types, lengths. What the values
 * are (labels in range, no NaN) is checked block by block as they are read. */
#include "data/dataset.h"

#include <string.h>
#include <unistd.h>

#define IN_MEMORY_BYTES (1LL << 30)
#define WINDOW_BYTES (256LL << 20)

static const char *shape_text(const int64_t *dim, int dims, bool rows, char *text, size_t bytes)
{
    size_t at = (size_t)snprintf(text, bytes, rows ? "[N" : "[");
    for (int k = 0; k < dims && at < bytes; k++)
        at += (size_t)snprintf(text + at, bytes - at, "%s%lld", k || rows ? ", " : "", (long long)dim[k]);
    snprintf(text + (at < bytes ? at : bytes - 1), at < bytes ? bytes - at : 1, "]");
    return text;
}

static pl_status bad_shape(const struct pl_dataset *d, const char *name, const struct pl_h5_info *i, const int64_t *want, int dims)
{
    char wanted[160], found[160];
    return pl_error(PL_ERR_DATA, "data", "%s:/%s: wanted %s, found %s\nthe model's input says what is wanted", d->set->file, name,
                    shape_text(want, dims, true, wanted, sizeof wanted), shape_text(i->dim, i->dims, false, found, sizeof found));
}

static pl_status check_inputs(struct pl_dataset *d)
{
    const struct pl_h5_info *i = pl_h5_dataset_info(d->data);
    const struct pl_job_input *w = &d->want;
    int64_t crop = d->set->crop;
    bool fits = i->dims == w->dims + 1;
    for (int k = 0; fits && k < w->dims; k++)
        fits = i->dim[k + 1] == w->dim[k] || (crop > 0 && k > 0);
    if (i->dtype == PL_OTHER)
        return pl_error(PL_ERR_DATA, "data", "%s:/%s: neither integers nor floats", d->set->file, d->set->data);
    if (!fits)
        return bad_shape(d, d->set->data, i, w->dim, w->dims);
    for (int k = 0; k < 3; k++)
        d->raw[k] = k + 1 < i->dims ? i->dim[k + 1] : 1;
    d->row_elems = 1;
    for (int k = 1; k < i->dims; k++)
        d->row_elems *= i->dim[k];
    if ((crop > 0 || d->set->flip || d->set->pad > 0) && w->dims != 3)
        return pl_error(PL_ERR_DATA, "data", "augment needs images [channels, height, width], the input has %d dimensions", w->dims);
    if (crop > 0 && (w->dim[1] != crop || w->dim[2] != crop || crop > d->raw[1] + 2 * d->set->pad || crop > d->raw[2] + 2 * d->set->pad))
        return pl_error(PL_ERR_DATA, "data", "%s:/%s: a crop of %lld from %lldx%lld with %lld of padding does not give the model's input of %lldx%lld",
                        d->set->file, d->set->data, (long long)crop, (long long)d->raw[1], (long long)d->raw[2],
                        (long long)d->set->pad, (long long)w->dim[1], (long long)w->dim[2]);
    if (d->set->pad > 0 && crop == 0)
        return pl_error(PL_ERR_DATA, "data", "augment.pad without augment.crop would change the image's size");
    return PL_OK;
}

static pl_status check_labels(struct pl_dataset *d)
{
    const struct pl_h5_info *i = pl_h5_dataset_info(d->label);
    int64_t k = d->want.label_floats;
    bool integer = i->dtype != PL_F32 && i->dtype != PL_F64 && i->dtype != PL_OTHER;
    if (k == 0 && !integer)
        return pl_error(PL_ERR_DATA, "data", "%s:/%s: wanted integers (classes), found %s", d->set->file, d->set->label, pl_dtype_name(i->dtype));
    bool one = i->dims == 1 || (i->dims == 2 && i->dim[1] == 1);
    if (k <= 1 ? !one : (i->dims != 2 || i->dim[1] != k))
        return bad_shape(d, d->set->label, i, &k, k > 1 ? 1 : 0);
    if (i->dim[0] != pl_h5_dataset_info(d->data)->dim[0])
        return pl_error(PL_ERR_DATA, "data", "%s: /%s has %lld rows, /%s %lld", d->set->file, d->set->data,
                        (long long)pl_h5_dataset_info(d->data)->dim[0], d->set->label, (long long)i->dim[0]);
    d->label_bytes = k == 0 ? sizeof(int32_t) : (size_t)k * sizeof(float);
    return PL_OK;
}

/* Blocks are whole chunks, or runs of up to 512 rows; the window of the shuffle is the whole set where
 * that is small. Both are functions of the data set alone, as the order must be. */
static void plan_blocks(struct pl_dataset *d)
{
    const struct pl_h5_info *i = pl_h5_dataset_info(d->data);
    int64_t rows = (int64_t)((4u << 20) / d->row_bytes);
    rows = rows < 1 ? 1 : rows > 512 ? 512 : rows;
    if (i->chunked)
        rows = i->chunk[0] * (i->chunk[0] < 32 ? (31 + i->chunk[0]) / i->chunk[0] : 1);
    if (rows > d->samples)
        rows = d->samples;
    d->block_rows = rows;
    d->blocks = (d->samples + rows - 1) / rows;
    int64_t total = d->samples * (int64_t)d->row_bytes, pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    d->window_rows = total <= IN_MEMORY_BYTES ? d->samples : WINDOW_BYTES / (int64_t)d->row_bytes;
    if (d->window_rows < 4 * rows)
        d->window_rows = 4 * rows;
    bool small = total <= IN_MEMORY_BYTES && total <= pages * page / 8;
    d->all_in_memory = d->set->cache == 1 || (d->set->cache == 0 && small);
}

static pl_status open_parts(struct pl_dataset *d)
{
    PL_TRY(pl_h5_open(d->set->file, "data", PL_ERR_DATA, &d->file));
    PL_TRY(pl_h5_dataset(d->file, d->set->data, &d->data));
    PL_TRY(pl_h5_dataset(d->file, d->set->label, &d->label));
    PL_TRY(check_inputs(d));
    PL_TRY(check_labels(d));
    const struct pl_h5_info *i = pl_h5_dataset_info(d->data);
    d->type = i->dtype == PL_U8 ? PL_U8 : PL_F32;
    d->row_bytes = (size_t)d->row_elems * pl_dtype_bytes(d->type);
    d->samples = d->set->limit > 0 && d->set->limit < i->dim[0] ? d->set->limit : i->dim[0];
    if (d->samples < 1)
        return pl_error(PL_ERR_DATA, "data", "%s:/%s: no samples", d->set->file, d->set->data);
    int64_t channels = d->want.dims == 3 ? d->want.dim[0] : 1;
    const int given[] = {d->set->mean.n, d->set->std.n};
    for (int k = 0; k < 2; k++)
        if (given[k] > 1 && given[k] != channels)
            return pl_error(PL_ERR_DATA, "data", "%s: %d values of %s for %lld channel%s", d->set->file, given[k],
                            k ? "std" : "mean", (long long)channels, channels == 1 ? "" : "s");
    plan_blocks(d);
    return PL_OK;
}

pl_status pl_dataset_open(const struct pl_job_set *set, const struct pl_job_input *want, struct pl_dataset **out)
{
    struct pl_dataset *d = pl_alloc(sizeof *d, "a data set");
    if (!d)
        return PL_ERR_MEMORY;
    d->set = set;
    d->want = *want;
    pl_status s = open_parts(d);
    if (s < 0)
        pl_dataset_close(d);
    else
        *out = d;
    return s;
}

void pl_dataset_close(struct pl_dataset *d)
{
    if (!d)
        return;
    pl_h5_dataset_close(d->data);
    pl_h5_dataset_close(d->label);
    pl_h5_close(d->file);
    pl_free(d);
}

int64_t pl_dataset_samples(const struct pl_dataset *d) { return d->samples; }
