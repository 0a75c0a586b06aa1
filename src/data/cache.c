/* Blocks of rows as they were read: all of them where the set fits into memory, otherwise as many as a
 * shuffle window touches, the least recently used giving way. Values are checked once, when a block
 * is read. One thread. */
#include "data/dataset.h"

#include <math.h>
#include <string.h>

struct slot { int64_t block, used; unsigned char *data, *label; };
struct pl_cache {
    struct pl_dataset *d;
    int64_t classes, slots, clock;
    struct slot *slot;
    int32_t *slot_of; /* [blocks], -1: not here */
};

pl_status pl_cache_create(struct pl_dataset *d, int64_t classes, struct pl_cache **out)
{
    struct pl_cache *c = pl_alloc(sizeof *c, "a cache");
    if (!c)
        return PL_ERR_MEMORY;
    int64_t window = d->window_rows / d->block_rows + 3;
    c->d = d;
    c->classes = classes;
    c->slots = d->all_in_memory || window > d->blocks ? d->blocks : window;
    c->slot = pl_alloc((size_t)c->slots * sizeof *c->slot, "a cache");
    c->slot_of = pl_alloc((size_t)d->blocks * sizeof *c->slot_of, "a cache");
    if (!c->slot || !c->slot_of) {
        pl_cache_destroy(c);
        return PL_ERR_MEMORY;
    }
    memset(c->slot_of, -1, (size_t)d->blocks * sizeof *c->slot_of);
    for (int64_t i = 0; i < c->slots; i++)
        c->slot[i].block = -1;
    *out = c;
    return PL_OK;
}

void pl_cache_destroy(struct pl_cache *c)
{
    if (!c)
        return;
    for (int64_t i = 0; c->slot && i < c->slots; i++) {
        pl_free(c->slot[i].data);
        pl_free(c->slot[i].label);
    }
    pl_free(c->slot);
    pl_free(c->slot_of);
    pl_free(c);
}

static pl_status check_floats(const struct pl_dataset *d, const char *name, const float *x, int64_t first, int64_t rows, int64_t width)
{
    for (int64_t i = 0; i < rows * width; i++)
        if (!isfinite(x[i]))
            return pl_error(PL_ERR_DATA, "data", "%s:/%s: sample %lld holds %s at element %lld", d->set->file, name,
                            (long long)(first + i / width), isnan(x[i]) ? "NaN" : "an infinity", (long long)(i % width));
    return PL_OK;
}

static pl_status check_classes(const struct pl_cache *c, const int32_t *label, int64_t first, int64_t rows)
{
    for (int64_t i = 0; i < rows; i++)
        if (label[i] < 0 || (c->classes > 0 && label[i] >= c->classes))
            return pl_error(PL_ERR_DATA, "data", "%s:/%s: sample %lld has label %d, wanted 0 to %lld", c->d->set->file,
                            c->d->set->label, (long long)(first + i), label[i], (long long)c->classes - 1);
    return PL_OK;
}

static pl_status read_block(struct pl_cache *c, struct slot *s, int64_t block)
{
    struct pl_dataset *d = c->d;
    int64_t first = block * d->block_rows, rows = d->block_rows;
    if (first + rows > d->samples)
        rows = d->samples - first;
    if (!s->data) {
        s->data = pl_alloc((size_t)d->block_rows * d->row_bytes, "cached samples");
        s->label = pl_alloc((size_t)d->block_rows * d->label_bytes, "cached labels");
        if (!s->data || !s->label)
            return PL_ERR_MEMORY;
    }
    PL_TRY(pl_h5_read_rows(d->data, first, rows, d->type, s->data));
    PL_TRY(pl_h5_read_rows(d->label, first, rows, d->want.label_floats ? PL_F32 : PL_I32, s->label));
    if (d->type == PL_F32)
        PL_TRY(check_floats(d, d->set->data, (const float *)s->data, first, rows, d->row_elems));
    if (d->want.label_floats)
        return check_floats(d, d->set->label, (const float *)s->label, first, rows, d->want.label_floats);
    return check_classes(c, (const int32_t *)s->label, first, rows);
}

static pl_status find_block(struct pl_cache *c, int64_t block, struct slot **out)
{
    if (c->slot_of[block] < 0) {
        int64_t oldest = 0;
        for (int64_t i = 1; i < c->slots && c->slot[oldest].block >= 0; i++)
            if (c->slot[i].block < 0 || c->slot[i].used < c->slot[oldest].used)
                oldest = i;
        struct slot *s = &c->slot[oldest];
        if (s->block >= 0)
            c->slot_of[s->block] = -1;
        s->block = -1;
        PL_TRY(read_block(c, s, block));
        s->block = block;
        c->slot_of[block] = (int32_t)oldest;
    }
    *out = &c->slot[c->slot_of[block]];
    (*out)->used = ++c->clock;
    return PL_OK;
}

pl_status pl_cache_row(struct pl_cache *c, int64_t sample, const void **data, const void **label)
{
    struct slot *s;
    int64_t within = sample % c->d->block_rows;
    PL_TRY(find_block(c, sample / c->d->block_rows, &s));
    *data = s->data + (size_t)within * c->d->row_bytes;
    *label = s->label + (size_t)within * c->d->label_bytes;
    return PL_OK;
}
