/* A set from the caller's memory, as an HDF5 file that is there only: what is known of sets in files holds for it. */
#include "data/dataset.h"

#include <string.h>

static pl_status put(struct pl_memory_set *m, const char *name, const struct pl_array *a)
{
    struct pl_h5ds *d;
    size_t bytes = pl_dtype_bytes(a->type);
    for (int k = 0; k < a->dims; k++)
        if (a->dim[k] < 0 || !pl_mul_size(bytes, (size_t)a->dim[k], &bytes))
            return pl_error(PL_ERR_DATA, "data", "%s: %s: a dimension is negative, or there are more bytes than can be counted", m->name, name);
    if (bytes > 0 && !a->values)
        return pl_error(PL_ERR_DATA, "data", "%s: %s: no values", m->name, name);
    const size_t tail = bytes % 8;
    const int32_t kind[] = {(int32_t)a->type, a->dims};
    m->hash = pl_hash(m->hash, kind, sizeof kind);
    m->hash = pl_hash(m->hash, a->dim, (size_t)a->dims * sizeof *a->dim);
    m->hash = pl_hash_words(m->hash, a->values, bytes - tail);
    m->hash = pl_hash(m->hash, (const char *)a->values + bytes - tail, tail);
    PL_TRY(pl_h5_make_dataset(m->file, name, a->type, a->dims, a->dim, 0, 0, &d));
    pl_status s = pl_h5_write_rows(d, 0, a->dim[0], a->type, a->values);
    pl_h5_dataset_close(d);
    return s;
}

static pl_status fill(struct pl_memory_set *m, const char *name, const struct pl_array *data, const struct pl_array *label)
{
    m->name = pl_strdup(name);
    if (!m->name)
        return PL_ERR_MEMORY;
    PL_TRY(pl_h5_create_in_memory(name, "data", PL_ERR_DATA, &m->file));
    PL_TRY(put(m, "data", data));
    return label ? put(m, "label", label) : PL_OK;
}

pl_status pl_memory_set_create(const char *name, const struct pl_array *data, const struct pl_array *label, struct pl_memory_set **out)
{
    struct pl_memory_set *m = pl_alloc(sizeof *m, "a data set in memory");
    if (!m)
        return PL_ERR_MEMORY;
    m->hash = PL_HASH_START;
    pl_status s = fill(m, name, data, label);
    if (s < 0)
        pl_memory_set_destroy(m);
    else
        *out = m;
    return s;
}

void pl_memory_set_destroy(struct pl_memory_set *m)
{
    if (!m)
        return;
    pl_h5_close(m->file);
    pl_free(m->name);
    pl_free(m);
}
