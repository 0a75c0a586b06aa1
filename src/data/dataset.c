/* Opens the files of a set and holds them against what the network wants: shapes, types, lengths. What
 * the values are (labels in range, no NaN) is checked block by block as they are read. */
#include "data/dataset.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
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
static pl_status bad_shape(const struct pl_set_file *p, const char *name, const struct pl_h5_info *i,
                           const int64_t *dim, int dims, const char *advice)
{
    char wanted[200], found[200];
    return pl_error(PL_ERR_DATA, "data", "%s:/%s: wanted %s, found %s\n%s", p->path,
                    pl_dataset_plain(name), shape_text(dim, dims, true, wanted, sizeof wanted),
                    shape_text(i->dim, i->dims, false, found, sizeof found), advice);
}

static pl_status bad_type(const struct pl_set_file *p, const char *name, const char *wanted,
                          enum pl_dtype found)
{
    return pl_error(PL_ERR_DATA, "data", "%s:/%s: wanted %s, found %s\nwrite it in such a type",
                    p->path, pl_dataset_plain(name), wanted,
                    found == PL_OTHER ? "another type" : pl_dtype_name(found));
}

static pl_status check_augment(const struct pl_dataset *d)
{
    const struct pl_job_set *s = d->set;
    const char *path = d->part[0].path;
    const int64_t *out = d->want.dim;
    int64_t height = d->raw[1] + 2 * s->pad, width = d->raw[2] + 2 * s->pad;
    int64_t resize = pl_dataset_resize(d);
    if (s->resize > 0 && !d->encoded)
        return pl_error(PL_ERR_DATA, "data",
                        "%s: augment.resize is for JPEG images, /%s holds pixels\nleave it out", path,
                        pl_dataset_plain(s->data));
    if (d->encoded)
        height = width = resize + 2 * s->pad;
    if (d->encoded && (out[1] > height || out[2] > width))
        return pl_error(PL_ERR_DATA, "data",
                        "%s: augment.resize is %lld, the model's input %lldx%lld\nraise it", path,
                        (long long)resize, (long long)out[1], (long long)out[2]);
    if (s->crop == 0 && !s->flip && s->pad == 0)
        return PL_OK;
    if (d->want.dims != 3)
        return pl_error(PL_ERR_DATA, "data",
                        "%s: augment is for images [channels, height, width], "
                        "the model's input has %d dimension%s\nleave augment out",
                        path, d->want.dims, d->want.dims == 1 ? "" : "s");
    if (s->pad > 0 && s->crop == 0)
        return pl_error(PL_ERR_DATA, "data",
                        "%s: augment.pad without augment.crop would change the "
                        "image's size\nset augment.crop to the model's side of %lld",
                        path, (long long)out[1]);
    if (s->crop > 0 && (out[1] != s->crop || out[2] != s->crop))
        return pl_error(PL_ERR_DATA, "data",
                        "%s: augment.crop is %lld, the model's input %lldx%lld"
                        "\nmake them equal",
                        path, (long long)s->crop, (long long)out[1], (long long)out[2]);
    if (s->crop > height || s->crop > width)
        return pl_error(PL_ERR_DATA, "data",
                        "%s:/%s: no crop of %lld fits into %lldx%lld with %lld "
                        "of padding\nlower augment.crop or raise augment.pad",
                        path, pl_dataset_plain(s->data), (long long)s->crop,
                        (long long)d->raw[1], (long long)d->raw[2], (long long)s->pad);
    return PL_OK;
}

static bool says_jpeg(const struct pl_dataset *d, const struct pl_set_file *p)
{
    char *text = NULL;
    bool yes = pl_h5_get_text(p->file, d->set->data, "encoding", &text) == PL_OK && strcmp(text, "jpeg") == 0;
    pl_error_clear(); /* no such attribute */
    pl_free(text);
    return yes;
}

/* Bytes of images whose sizes are seen one by one as they are decoded. */
static pl_status check_encoded(const struct pl_dataset *d, const struct pl_set_file *p)
{
    const struct pl_h5_info *i = pl_h5_dataset_info(p->data);
    const struct pl_job_input *w = &d->want;
    const char *name = pl_dataset_plain(d->set->data);
    if (i->dims != 1 || !says_jpeg(d, p))
        return pl_error(PL_ERR_DATA, "data",
                        "%s:/%s: variable-length bytes are taken for images where they are [N] and the "
                        "attribute encoding is \"jpeg\"\nwrite it so",
                        p->path, name);
    if (!pl_jpeg_available())
        return pl_error(PL_ERR_DATA, "data",
                        "%s:/%s: JPEG images, which this build cannot decode\n"
                        "build it with TurboJPEG (libturbojpeg0-dev), or store pixels",
                        p->path, name);
    if (w->dims != 3 || (w->dim[0] != 1 && w->dim[0] != 3))
        return pl_error(PL_ERR_DATA, "data",
                        "%s:/%s: JPEG images have 1 or 3 channels, the model's input is not [1 or 3, "
                        "height, width]\nchange the model's input.data",
                        p->path, name);
    if (i->dim[0] == 0)
        return pl_error(PL_ERR_DATA, "data", "%s:/%s: has no samples", p->path, name);
    return PL_OK;
}

/* Without a word of it: 256 for a crop of 224, as images_to_hdf5.py stores, and in proportion. */
int64_t pl_dataset_resize(const struct pl_dataset *d)
{
    const int64_t *out = d->want.dim;
    if (!d->encoded || d->set->resize > 0)
        return d->encoded ? d->set->resize : 0;
    return d->set->crop > 0 ? (16 * d->set->crop + 7) / 14 : out[1] > out[2] ? out[1] : out[2];
}

static pl_status check_inputs(struct pl_dataset *d, const struct pl_set_file *p)
{
    const struct pl_h5_info *i = pl_h5_dataset_info(p->data);
    const struct pl_job_input *w = &d->want;
    int64_t elems = 1;
    if (i->bytes_each)
        return check_encoded(d, p);
    for (int k = 1; k < i->dims; k++)
        elems *= i->dim[k];
    bool fits = i->dims == w->dims + 1;
    for (int k = 0; fits && k < w->dims; k++)
        fits = i->dim[k + 1] == w->dim[k] || (d->set->crop > 0 && k > 0);
    if (i->dtype == PL_OTHER)
        return bad_type(p, d->set->data, "integers or floats", i->dtype);
    if (!fits)
        return bad_shape(p, d->set->data, i, w->dim, w->dims,
                         "change the model's input.data, or write the data set in this shape");
    if (i->dim[0] == 0 || elems == 0)
        return pl_error(PL_ERR_DATA, "data", "%s:/%s: has no samples", p->path,
                        pl_dataset_plain(d->set->data));
    return PL_OK;
}

static pl_status check_labels(const struct pl_dataset *d, const struct pl_set_file *p)
{
    const struct pl_h5_info *i = pl_h5_dataset_info(p->label), *x = pl_h5_dataset_info(p->data);
    int64_t k = pl_input_labels(&d->want);
    bool classes = d->want.label_floats == 0, integer = i->dtype != PL_F32 && i->dtype != PL_F64;
    if (i->dtype == PL_OTHER || (classes && !integer))
        return bad_type(p, d->set->label, classes ? "integers (classes)" : "floats", i->dtype);
    bool one = i->dims == 1 || (i->dims == 2 && i->dim[1] == 1);
    if (k == 1 ? !one : (i->dims != 2 || i->dim[1] != k))
        return bad_shape(p, d->set->label, i, &k, k > 1 ? 1 : 0,
                         "change the model's input.label, or write the labels in this shape");
    if (i->dim[0] != x->dim[0])
        return pl_error(PL_ERR_DATA, "data",
                        "%s: /%s has %lld samples, /%s has %lld\n"
                        "every sample needs one label: write the file again",
                        p->path, pl_dataset_plain(d->set->data), (long long)x->dim[0],
                        pl_dataset_plain(d->set->label), (long long)i->dim[0]);
    return PL_OK;
}

/* Every file has what the first one has, but for the number of samples. */
static pl_status check_alike(const struct pl_set_file *p, const struct pl_h5ds *mine,
                             const struct pl_set_file *first, const struct pl_h5ds *others,
                             const char *name)
{
    const struct pl_h5_info *i = pl_h5_dataset_info(mine), *o = pl_h5_dataset_info(others);
    char here[200], there[200];
    bool alike = i->dtype == o->dtype && i->bytes_each == o->bytes_each && i->dims == o->dims;
    for (int k = 1; alike && k < i->dims; k++)
        alike = i->dim[k] == o->dim[k];
    if (alike)
        return PL_OK;
    return pl_error(PL_ERR_DATA, "data",
                    "%s:/%s: is %s %s, in %s it is %s %s\nthe files of a set must have the same "
                    "shapes and types",
                    p->path, pl_dataset_plain(name), pl_dtype_name(i->dtype),
                    shape_text(i->dim + 1, i->dims - 1, true, here, sizeof here), first->path,
                    pl_dtype_name(o->dtype),
                    shape_text(o->dim + 1, o->dims - 1, true, there, sizeof there));
}

static pl_status check_values(const struct pl_dataset *d, const char *key,
                              const struct pl_doubles *v)
{
    int64_t channels = d->want.dims == 3 ? d->want.dim[0] : 1;
    if (v->n > 1 && v->n != channels)
        return pl_error(PL_ERR_DATA, "data",
                        "%s: %d values of %s for %lld channel%s\n"
                        "give one, or one for each channel",
                        d->part[0].path, v->n, key, (long long)channels, channels == 1 ? "" : "s");
    for (int k = 0; v == &d->set->std && k < v->n; k++)
        if (v->v[k] == 0)
            return pl_error(PL_ERR_DATA, "data",
                            "%s: a std of 0 would divide by zero\n"
                            "leave std out, or give what was measured",
                            d->part[0].path);
    return PL_OK;
}

static bool fits_memory(int64_t total_bytes)
{
    int64_t ram = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
    return total_bytes <= IN_MEMORY_BYTES && total_bytes <= ram / 8 && (double)total_bytes <= pl_memory_left() / 2;
}

/* ---- blocks ------------------------------------------------------------------------------------- */

/* Whole chunks, or runs of up to 512 rows. */
static int64_t rows_of_block(const struct pl_dataset *d, const struct pl_set_file *p)
{
    const struct pl_h5_info *i = pl_h5_dataset_info(p->data);
    int64_t rows = BLOCK_BYTES / (int64_t)d->row_bytes;
    rows = rows < 1 ? 1 : rows > 512 ? 512 : rows;
    if (i->chunked && !d->encoded)
        rows = i->chunk[0] < 32 ? i->chunk[0] * ((31 + i->chunk[0]) / i->chunk[0]) : i->chunk[0];
    return rows < p->samples || p->samples == 0 ? rows : p->samples;
}

/* The window of the shuffle is the whole set where that is small. Where files are shorter than a block
 * there are more blocks to a window, but not so many that those of the longest take more than twice
 * its memory. */
static void plan_window(struct pl_dataset *d)
{
    int64_t window = WINDOW_BYTES / (int64_t)d->row_bytes, least = 4 * d->block_rows;
    window = window < least ? least : window;
    int64_t mean = d->parts > 1 ? (d->samples + d->blocks - 1) / d->blocks : d->block_rows;
    int64_t most = 2 * window / d->block_rows;
    d->window_blocks = ((window < d->samples ? window : d->samples) + mean - 1) / mean;
    if (d->parts > 1 && d->window_blocks > most)
        d->window_blocks = most;
}

/* Blocks and window depend on the files alone, never on the machine or the cache, as the order does. */
static pl_status plan_blocks(struct pl_dataset *d)
{
    for (int i = 0; i < d->parts; i++) {
        struct pl_set_file *p = &d->part[i];
        p->block_rows = rows_of_block(d, p);
        p->first_block = d->blocks;
        d->blocks += (p->samples + p->block_rows - 1) / p->block_rows;
        if (p->samples > 0 && p->block_rows > d->block_rows)
            d->block_rows = p->block_rows;
    }
    d->block_first = pl_alloc((size_t)(d->blocks + 1) * sizeof *d->block_first, "a data set");
    if (!d->block_first)
        return PL_ERR_MEMORY;
    for (int i = 0; i < d->parts; i++) {
        const struct pl_set_file *p = &d->part[i];
        for (int64_t row = 0, b = p->first_block; row < p->samples; row += p->block_rows)
            d->block_first[b++] = p->first + row;
    }
    d->block_first[d->blocks] = d->samples;
    plan_window(d);
    d->all_in_memory = d->set->cache == 1 ||
                       (d->set->cache == 0 && fits_memory(d->samples * (int64_t)d->row_bytes));
    return PL_OK;
}

struct pl_set_file *pl_dataset_part(const struct pl_dataset *d, int64_t sample)
{
    int low = 0, high = d->parts; /* part[low].first <= sample < part[high].first */
    while (high - low > 1) {
        int middle = low + (high - low) / 2;
        if (d->part[middle].first <= sample)
            low = middle;
        else
            high = middle;
    }
    return &d->part[low];
}

int64_t pl_dataset_block(const struct pl_dataset *d, int64_t sample)
{
    const struct pl_set_file *p = pl_dataset_part(d, sample);
    return p->first_block + (sample - p->first) / p->block_rows;
}

/* ---- opening ------------------------------------------------------------------------------------ */

static void add_name(void *arg, const char *path, bool is_dataset)
{
    struct pl_text *t = arg;
    if (is_dataset && t->len < 300)
        pl_text_add(t, "%s%s", t->len ? ", " : "", path);
}

static pl_status find_dataset(const struct pl_set_file *p, const char *name, const char *key,
                              struct pl_h5ds **out)
{
    if (pl_h5_exists(p->file, name))
        return pl_h5_dataset(p->file, name, out);
    struct pl_text has = {0};
    PL_TRY(pl_h5_walk(p->file, "/", add_name, &has));
    pl_error(PL_ERR_DATA, "data",
             "%s:/%s: no such dataset, the file has %s\n"
             "name the right one by the set's key `%s`",
             p->path, pl_dataset_plain(name), has.s ? has.s : "none", key);
    pl_text_free(&has);
    return PL_ERR_DATA;
}

static pl_status open_part(struct pl_dataset *d, struct pl_set_file *p, bool labels)
{
    const struct pl_set_file *first = &d->part[0];
    const struct pl_memory_set *memory = d->set->memory;
    if (memory) {
        p->file = memory->file;
    } else if (access(p->path, R_OK) != 0) {
        return pl_error(PL_ERR_DATA, "data",
                        "%s: %s\ncheck the set's key `file`: a relative path "
                        "counts from the folder of the job file, on the command line from the working directory",
                        p->path, strerror(errno));
    } else {
        PL_TRY(pl_h5_open(p->path, "data", PL_ERR_DATA, &p->file));
    }
    PL_TRY(find_dataset(p, memory ? "data" : d->set->data, "data", &p->data));
    PL_TRY(check_inputs(d, p));
    PL_TRY(check_alike(p, p->data, first, first->data, d->set->data));
    if (!labels)
        return PL_OK;
    PL_TRY(find_dataset(p, memory ? "label" : d->set->label, "label", &p->label));
    PL_TRY(check_labels(d, p));
    return check_alike(p, p->label, first, first->label, d->set->label);
}

static pl_status open_parts(struct pl_dataset *d, const struct pl_files *files, bool labels)
{
    d->part = pl_alloc((size_t)files->n * sizeof *d->part, "a data set");
    if (!d->part)
        return PL_ERR_MEMORY;
    for (d->parts = 0; d->parts < files->n;) {
        struct pl_set_file *p = &d->part[d->parts++];
        const char *path = files->path[d->parts - 1], *stage = d->set->memory ? NULL : d->set->stage;
        p->path = stage ? pl_stage_path(stage, path) : pl_strdup(path);
        PL_TRY(p->path ? open_part(d, p, labels) : PL_ERR_MEMORY);
    }
    return PL_OK;
}

static pl_status take_mean_bytes(struct pl_dataset *d)
{
    int64_t bytes = 0, rows = 0;
    for (int i = 0; i < d->parts; i++) {
        struct stat st;
        if (stat(d->part[i].path, &st) != 0)
            return pl_error(PL_ERR_DATA, "data", "%s: %s", d->part[i].path, strerror(errno));
        bytes += (int64_t)st.st_size;
        rows += pl_h5_dataset_info(d->part[i].data)->dim[0];
    }
    d->row_bytes = bytes > rows ? (size_t)(bytes / rows) : 1;
    return PL_OK;
}

static pl_status take_shape(struct pl_dataset *d)
{
    const struct pl_h5_info *i = pl_h5_dataset_info(d->part[0].data);
    const int64_t *dim = i->dim + 1;
    int dims = i->dims - 1;
    d->encoded = i->bytes_each;
    if (d->encoded)
        dim = d->want.dim, dims = 3;
    d->row_elems = 1;
    for (int k = 0; k < dims; k++)
        d->row_elems *= dim[k];
    for (int k = 0; k < 3; k++)
        d->raw[k] = k < dims ? dim[k] : 1;
    d->type = d->encoded ? PL_U8 : i->dtype;
    d->row_bytes = (size_t)d->row_elems * pl_dtype_bytes(d->type);
    return d->encoded ? take_mean_bytes(d) : PL_OK;
}

static void share_samples(struct pl_dataset *d)
{
    for (int i = 0; i < d->parts; i++) {
        struct pl_set_file *p = &d->part[i];
        int64_t rows = pl_h5_dataset_info(p->data)->dim[0], limit = d->set->limit;
        p->first = d->samples;
        p->samples = limit > 0 && limit - d->samples < rows ? limit - d->samples : rows;
        d->samples += p->samples;
    }
}

/* Staged or not, whatever the folder: by names and lengths. */
static pl_status take_name(struct pl_dataset *d, const struct pl_files *files)
{
    uint64_t h = d->set->memory ? d->set->memory->hash : PL_HASH_START;
    for (int i = 0; i < d->parts; i++) {
        const char *slash = strrchr(files->path[i], '/'), *name = slash ? slash + 1 : files->path[i];
        h = pl_hash(h, name, strlen(name) + 1);
        h = pl_hash(h, &pl_h5_dataset_info(d->part[i].data)->dim[0], sizeof(int64_t));
    }
    d->identity = h;
    if (d->set->memory) /* a run does not go on with other samples */
        d->name = pl_strdupf("%s [%016llx]", files->path[0], (unsigned long long)h);
    else
        d->name = d->parts == 1 ? pl_strdup(files->path[0])
                            : pl_strdupf("%s and %d more file%s [%016llx]", files->path[0], d->parts - 1,
                                         d->parts == 2 ? "" : "s", (unsigned long long)h);
    return d->name ? PL_OK : PL_ERR_MEMORY;
}

static pl_status open_set(struct pl_dataset *d, const struct pl_files *files, bool labels)
{
    PL_TRY(open_parts(d, files, labels));
    PL_TRY(take_shape(d));
    PL_TRY(check_augment(d));
    PL_TRY(check_values(d, "mean", &d->set->mean));
    PL_TRY(check_values(d, "std", &d->set->std));
    share_samples(d);
    PL_TRY(take_name(d, files));
    return plan_blocks(d);
}

pl_status pl_dataset_open(const struct pl_job_set *set, const struct pl_job_input *want, bool labels,
                          struct pl_dataset **out)
{
    struct pl_files files;
    PL_TRY(pl_files_find(set, &files));
    struct pl_dataset *d = pl_alloc(sizeof *d, "a data set");
    pl_status s = d ? PL_OK : PL_ERR_MEMORY;
    if (d) {
        d->set = set;
        d->want = *want;
        d->label_bytes = (size_t)pl_input_labels(want) * sizeof(int32_t); /* floats are as long */
        s = open_set(d, &files, labels);
    }
    pl_files_free(&files);
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
    for (int i = 0; i < d->parts; i++) {
        pl_h5_dataset_close(d->part[i].data);
        pl_h5_dataset_close(d->part[i].label);
        if (!d->set->memory)
            pl_h5_close(d->part[i].file);
        pl_free(d->part[i].path);
    }
    pl_free(d->part);
    pl_free(d->block_first);
    pl_free(d->name);
    pl_free(d);
}

int64_t pl_dataset_samples(const struct pl_dataset *d) { return d->samples; }
const char *pl_dataset_name(const struct pl_dataset *d) { return d->name; }
bool pl_dataset_in_memory(const struct pl_dataset *d) { return d->set->memory != NULL; }
uint64_t pl_dataset_identity(const struct pl_dataset *d) { return d->identity; }
