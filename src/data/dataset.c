/* Opens a set and holds it against what the network wants: shapes, types, lengths. What the values
 * are (labels in range, no NaN) is checked block by block as they are read. */
#include "data/dataset.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define IN_MEMORY_BYTES (1LL << 30)
#define WINDOW_BYTES (256LL << 20)
#define BLOCK_BYTES (4LL << 20)

const char *pl_dataset_plain(const char *name) { return name[0] == '/' ? name + 1 : name; }

static const char *shape_text(const int64_t *dim, int dims, bool rows, char *text, size_t bytes)
{
    size_t at = (size_t)snprintf(text, bytes, rows ? "[N" : "[");
    for (int k = 0; k < dims && at < bytes; k++)
        at += (size_t)snprintf(text + at, bytes - at, "%s%lld", k || rows ? ", " : "",
                               (long long)dim[k]);
    if (at < bytes)
        snprintf(text + at, bytes - at, "]");
    return text;
}

/* dim: of one sample as the network takes it; a crop leaves the sides open. */
static pl_status bad_shape(const struct pl_dataset *d, const char *name, const struct pl_h5_info *i,
                           const int64_t *dim, int dims, const char *advice)
{
    char wanted[200], found[200];
    return pl_error(PL_ERR_DATA, "data", "%s:/%s: wanted %s, found %s\n%s", d->set->file,
                    pl_dataset_plain(name), shape_text(dim, dims, true, wanted, sizeof wanted),
                    shape_text(i->dim, i->dims, false, found, sizeof found), advice);
}

static pl_status bad_type(const struct pl_dataset *d, const char *name, const char *wanted,
                          enum pl_dtype found)
{
    return pl_error(PL_ERR_DATA, "data", "%s:/%s: wanted %s, found %s\nwrite it in such a type",
                    d->set->file, pl_dataset_plain(name), wanted,
                    found == PL_OTHER ? "another type" : pl_dtype_name(found));
}

static pl_status check_augment(const struct pl_dataset *d)
{
    const struct pl_job_set *s = d->set;
    const int64_t *out = d->want.dim;
    int64_t height = d->raw[1] + 2 * s->pad, width = d->raw[2] + 2 * s->pad;
    if (s->crop == 0 && !s->flip && s->pad == 0)
        return PL_OK;
    if (d->want.dims != 3)
        return pl_error(PL_ERR_DATA, "data",
                        "%s: augment is for images [channels, height, width], "
                        "the model's input has %d dimension%s\nleave augment out",
                        s->file, d->want.dims, d->want.dims == 1 ? "" : "s");
    if (s->pad > 0 && s->crop == 0)
        return pl_error(PL_ERR_DATA, "data",
                        "%s: augment.pad without augment.crop would change the "
                        "image's size\nset augment.crop to the model's side of %lld",
                        s->file, (long long)out[1]);
    if (s->crop > 0 && (out[1] != s->crop || out[2] != s->crop))
        return pl_error(PL_ERR_DATA, "data",
                        "%s: augment.crop is %lld, the model's input %lldx%lld"
                        "\nmake them equal",
                        s->file, (long long)s->crop, (long long)out[1], (long long)out[2]);
    if (s->crop > height || s->crop > width)
        return pl_error(PL_ERR_DATA, "data",
                        "%s:/%s: no crop of %lld fits into %lldx%lld with %lld "
                        "of padding\nlower augment.crop or raise augment.pad",
                        s->file, pl_dataset_plain(s->data), (long long)s->crop,
                        (long long)d->raw[1], (long long)d->raw[2], (long long)s->pad);
    return PL_OK;
}

static pl_status check_inputs(struct pl_dataset *d)
{
    const struct pl_h5_info *i = pl_h5_dataset_info(d->data);
    const struct pl_job_input *w = &d->want;
    bool fits = i->dims == w->dims + 1;
    for (int k = 0; fits && k < w->dims; k++)
        fits = i->dim[k + 1] == w->dim[k] || (d->set->crop > 0 && k > 0);
    if (i->dtype == PL_OTHER)
        return bad_type(d, d->set->data, "integers or floats", i->dtype);
    if (!fits)
        return bad_shape(d, d->set->data, i, w->dim, w->dims,
                         "change the model's input.data, or write the data set in this shape");
    d->row_elems = 1;
    for (int k = 1; k < i->dims; k++)
        d->row_elems *= i->dim[k];
    for (int k = 0; k < 3; k++)
        d->raw[k] = k + 1 < i->dims ? i->dim[k + 1] : 1;
    d->type = i->dtype;
    d->row_bytes = (size_t)d->row_elems * pl_dtype_bytes(d->type);
    if (d->row_bytes == 0 || i->dim[0] == 0)
        return pl_error(PL_ERR_DATA, "data", "%s:/%s: has no samples", d->set->file,
                        pl_dataset_plain(d->set->data));
    return check_augment(d);
}

static pl_status check_labels(struct pl_dataset *d)
{
    const struct pl_h5_info *i = pl_h5_dataset_info(d->label), *x = pl_h5_dataset_info(d->data);
    int64_t k = d->want.label_floats;
    bool integer = i->dtype != PL_F32 && i->dtype != PL_F64;
    if (i->dtype == PL_OTHER || (k == 0 && !integer))
        return bad_type(d, d->set->label, k ? "floats" : "integers (classes)", i->dtype);
    bool one = i->dims == 1 || (i->dims == 2 && i->dim[1] == 1);
    if (k <= 1 ? !one : (i->dims != 2 || i->dim[1] != k))
        return bad_shape(d, d->set->label, i, &k, k > 1 ? 1 : 0,
                         "change the model's input.label, or write the labels in this shape");
    if (i->dim[0] != x->dim[0])
        return pl_error(PL_ERR_DATA, "data",
                        "%s: /%s has %lld samples, /%s has %lld\n"
                        "every sample needs one label: write the file again",
                        d->set->file, pl_dataset_plain(d->set->data), (long long)x->dim[0],
                        pl_dataset_plain(d->set->label), (long long)i->dim[0]);
    return PL_OK;
}

static pl_status check_values(const struct pl_dataset *d, const char *key,
                              const struct pl_doubles *v)
{
    int64_t channels = d->want.dims == 3 ? d->want.dim[0] : 1;
    if (v->n > 1 && v->n != channels)
        return pl_error(PL_ERR_DATA, "data",
                        "%s: %d values of %s for %lld channel%s\n"
                        "give one, or one for each channel",
                        d->set->file, v->n, key, (long long)channels, channels == 1 ? "" : "s");
    for (int k = 0; v == &d->set->std && k < v->n; k++)
        if (v->v[k] == 0)
            return pl_error(PL_ERR_DATA, "data",
                            "%s: a std of 0 would divide by zero\n"
                            "leave std out, or give what was measured",
                            d->set->file);
    return PL_OK;
}

static bool fits_memory(int64_t total_bytes)
{
    int64_t ram = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
    return total_bytes <= IN_MEMORY_BYTES && total_bytes <= ram / 8;
}

/* Blocks are whole chunks, or runs of up to 512 rows. The window of the shuffle is the whole set
 * where that is small. Both depend on the file alone, never on the machine or the cache, as the
 * order does. */
static void plan_blocks(struct pl_dataset *d)
{
    const struct pl_h5_info *i = pl_h5_dataset_info(d->data);
    int64_t row = (int64_t)d->row_bytes, rows = BLOCK_BYTES / row;
    rows = rows < 1 ? 1 : rows > 512 ? 512 : rows;
    if (i->chunked)
        rows = i->chunk[0] < 32 ? i->chunk[0] * ((31 + i->chunk[0]) / i->chunk[0]) : i->chunk[0];
    d->block_rows = rows < d->samples ? rows : d->samples;
    d->blocks = (d->samples + d->block_rows - 1) / d->block_rows;
    int64_t window = WINDOW_BYTES / row, least = 4 * d->block_rows;
    window = window < least ? least : window;
    d->window_rows = window < d->samples ? window : d->samples;
    d->all_in_memory = d->set->cache == 1 || (d->set->cache == 0 && fits_memory(d->samples * row));
}

static void add_name(void *arg, const char *path, bool is_dataset)
{
    struct pl_text *t = arg;
    if (is_dataset && t->len < 300)
        pl_text_add(t, "%s%s", t->len ? ", " : "", path);
}

static pl_status open_part(struct pl_dataset *d, const char *name, const char *key,
                           struct pl_h5ds **out)
{
    if (pl_h5_exists(d->file, name))
        return pl_h5_dataset(d->file, name, out);
    struct pl_text has = {0};
    PL_TRY(pl_h5_walk(d->file, "/", add_name, &has));
    pl_error(PL_ERR_DATA, "data",
             "%s:/%s: no such dataset, the file has %s\n"
             "name the right one by the set's key `%s`",
             d->set->file, pl_dataset_plain(name), has.s ? has.s : "none", key);
    pl_text_free(&has);
    return PL_ERR_DATA;
}

static pl_status open_parts(struct pl_dataset *d, bool labels)
{
    if (access(d->set->file, R_OK) != 0)
        return pl_error(PL_ERR_DATA, "data",
                        "%s: %s\ncheck the set's key `file`: a relative path "
                        "counts from the folder of the job file",
                        d->set->file, strerror(errno));
    PL_TRY(pl_h5_open(d->set->file, "data", PL_ERR_DATA, &d->file));
    PL_TRY(open_part(d, d->set->data, "data", &d->data));
    PL_TRY(check_inputs(d));
    if (labels) {
        PL_TRY(open_part(d, d->set->label, "label", &d->label));
        PL_TRY(check_labels(d));
    }
    PL_TRY(check_values(d, "mean", &d->set->mean));
    PL_TRY(check_values(d, "std", &d->set->std));
    int64_t rows = pl_h5_dataset_info(d->data)->dim[0];
    d->samples = d->set->limit > 0 && d->set->limit < rows ? d->set->limit : rows;
    plan_blocks(d);
    return PL_OK;
}

pl_status pl_dataset_open(const struct pl_job_set *set, const struct pl_job_input *want, bool labels,
                          struct pl_dataset **out)
{
    struct pl_dataset *d = pl_alloc(sizeof *d, "a data set");
    if (!d)
        return PL_ERR_MEMORY;
    d->set = set;
    d->want = *want;
    d->label_bytes = want->label_floats == 0 ? sizeof(int32_t) : (size_t)want->label_floats * sizeof(float);
    pl_status s = open_parts(d, labels);
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
