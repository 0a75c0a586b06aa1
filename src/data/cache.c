/* Blocks of rows as the file has them: all where the set is to stay in memory, otherwise as many as
 * a shuffle window touches, the least recently used giving way, so that a block is read once a
 * window however its rows are mixed. Values are checked once, when their block is read. All memory
 * is taken at the start, but for images of differing lengths, whose slots grow to what they meet. One
 * thread. */
#include "data/dataset.h"

#include <float.h>
#include <math.h>
#include <string.h>

struct slot {
    int64_t block, used;  /* block -1: empty */
    unsigned char *data;  /* [block_rows] rows as stored */
    size_t capacity, *offset; /* encoded: bytes of data, its own; [block_rows + 1] where each begins */
    unsigned char *label; /* [block_rows] as a batch wants them */
};

struct pl_cache {
    struct pl_dataset *d;
    bool labels_only, encoded;   /* encoded: images of differing lengths are read */
    size_t row_bytes;            /* 0: of those, or labels only */
    int64_t classes, entries;    /* as in the loader's options */
    int64_t slots, clock, released; /* released: blocks used later are still borrowed */
    struct slot *slot;
    int64_t *slot_of;            /* [blocks], -1: not here */
    unsigned char *data, *label; /* behind the slots */
    void *stored_label;          /* [block_rows] labels as stored */
    double read_ms;              /* since pl_cache_cost, as read_bytes */
    int64_t read_bytes;
};

static int64_t slots_needed(const struct pl_dataset *d, bool shuffled)
{
    /* A batch may reach from one window into the next. */
    int64_t n = shuffled ? d->window_blocks + 2 : 2;
    return d->all_in_memory || n > d->blocks ? d->blocks : n;
}

/* With a slot for every block, block b has slot b, with room for its own rows. */
static bool one_each(const struct pl_cache *c) { return c->slots == c->d->blocks; }

static pl_status make_slots(struct pl_cache *c)
{
    struct pl_dataset *d = c->d;
    size_t rows = (size_t)d->samples, row = c->row_bytes, data_bytes, label_bytes;
    int64_t label_elems = pl_input_labels(&d->want);
    if ((!one_each(c) && !pl_mul_size((size_t)c->slots, (size_t)d->block_rows, &rows)) ||
        !pl_mul_size(rows, row, &data_bytes) ||
        !pl_mul_size(rows, d->label_bytes, &label_bytes))
        return pl_error(PL_ERR_MEMORY, "data", "%s: too large for this machine", d->name);
    c->slot = pl_alloc((size_t)c->slots * sizeof *c->slot, "the samples' cache");
    c->slot_of = pl_alloc((size_t)d->blocks * sizeof *c->slot_of, "the samples' cache");
    c->data = pl_alloc(data_bytes, "the samples' cache");
    c->label = pl_alloc(label_bytes, "the labels' cache");
    c->stored_label = pl_alloc((size_t)(d->block_rows * label_elems) * 8, "labels");
    if (!c->slot || !c->slot_of || !c->data || !c->label || !c->stored_label)
        return PL_ERR_MEMORY;
    for (int64_t i = 0; i < d->blocks; i++)
        c->slot_of[i] = -1;
    for (int64_t i = 0; i < c->slots; i++) {
        size_t first = (size_t)(one_each(c) ? d->block_first[i] : i * d->block_rows);
        c->slot[i] = (struct slot){.block = -1,
                                   .data = c->encoded ? NULL : c->data + first * row,
                                   .label = c->label + first * d->label_bytes};
        if (c->encoded)
            c->slot[i].offset = pl_alloc((size_t)(d->block_rows + 1) * sizeof(size_t), "the samples' cache");
        if (c->encoded && !c->slot[i].offset)
            return PL_ERR_MEMORY;
    }
    return PL_OK;
}

pl_status pl_cache_create(struct pl_dataset *d, const struct pl_loader_options *o, struct pl_cache **out)
{
    struct pl_cache *c = pl_alloc(sizeof *c, "a cache");
    if (!c)
        return PL_ERR_MEMORY;
    c->d = d;
    c->encoded = d->encoded && !o->labels_only;
    c->row_bytes = d->encoded || o->labels_only ? 0 : d->row_bytes;
    c->labels_only = o->labels_only;
    c->classes = o->classes;
    c->entries = o->entries;
    c->slots = slots_needed(d, o->shuffle);
    pl_status s = make_slots(c);
    if (s < 0)
        pl_cache_destroy(c);
    else
        *out = c;
    return s;
}

void pl_cache_destroy(struct pl_cache *c)
{
    if (!c)
        return;
    for (int64_t i = 0; c->slot && c->encoded && i < c->slots; i++) {
        pl_free(c->slot[i].data);
        pl_free(c->slot[i].offset);
    }
    pl_free(c->slot);
    pl_free(c->slot_of);
    pl_free(c->data);
    pl_free(c->label);
    pl_free(c->stored_label);
    pl_free(c);
}

static int64_t integer_at(enum pl_dtype t, const void *p, int64_t i)
{
    switch (t) {
    case PL_U8:
        return ((const uint8_t *)p)[i];
    case PL_I8:
        return ((const int8_t *)p)[i];
    case PL_I16:
        return ((const int16_t *)p)[i];
    case PL_U16:
        return ((const uint16_t *)p)[i];
    case PL_I32:
        return ((const int32_t *)p)[i];
    case PL_U32:
        return ((const uint32_t *)p)[i];
    case PL_I64:
        return ((const int64_t *)p)[i];
    case PL_U64: {
        uint64_t v = ((const uint64_t *)p)[i];
        return v > INT64_MAX ? INT64_MAX : (int64_t)v;
    }
    default:
        return -1;
    }
}

static double number_at(enum pl_dtype t, const void *p, int64_t i)
{
    if (t == PL_F32)
        return ((const float *)p)[i];
    return t == PL_F64 ? ((const double *)p)[i] : (double)integer_at(t, p, i);
}

/* One that is no float, or does not fit one. The exponent's bits are all set in NaN and infinity;
 * the loops run without a branch so that they go at the speed of memory. */
static bool any_bad_f32(const float *x, int64_t n)
{
    const uint32_t all = 0x7f800000u;
    uint32_t bad = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bad |= (uint32_t)((bits & all) == all);
    }
    return bad != 0;
}

static bool any_bad_f64(const double *x, int64_t n)
{
    int bad = 0;
    for (int64_t i = 0; i < n; i++)
        bad |= !(fabs(x[i]) <= (double)FLT_MAX);
    return bad != 0;
}

static pl_status name_bad(const char *path, const char *name, enum pl_dtype t, const void *p,
                          int64_t first, int64_t rows, int64_t width)
{
    for (int64_t i = 0; i < rows * width; i++) {
        double x = number_at(t, p, i);
        if (!(fabs(x) <= (double)FLT_MAX))
            return pl_error(PL_ERR_DATA, "data",
                            "%s:/%s: sample %lld has %s at element %lld\n"
                            "find and replace such values before training",
                            path, pl_dataset_plain(name), (long long)(first + i / width),
                            isnan(x)   ? "NaN"
                            : isinf(x) ? "an infinity"
                                       : "a value beyond float32",
                            (long long)(i % width));
    }
    return PL_OK;
}

static pl_status check_numbers(const char *path, const char *name, enum pl_dtype t, const void *p,
                               int64_t first, int64_t rows, int64_t width)
{
    bool bad = (t == PL_F32 && any_bad_f32(p, rows * width)) ||
               (t == PL_F64 && any_bad_f64(p, rows * width));
    return bad ? name_bad(path, name, t, p, first, rows, width) : PL_OK;
}

/* The place of a value among several of its sample; a class of its own so that it can stand in a message. */
struct place {
    char s[40];
};

static struct place place_of(int64_t i, int64_t width)
{
    struct place p = {{0}};
    if (width > 1)
        snprintf(p.s, sizeof p.s, " at element %lld", (long long)(i % width));
    return p;
}

static pl_status take_classes(const struct pl_cache *c, const char *path, enum pl_dtype t,
                              int64_t first, int64_t rows, int32_t *out)
{
    int64_t most = c->classes > 0 ? c->classes - 1 : INT32_MAX, width = pl_input_labels(&c->d->want), least = width > 1 ? -1 : 0;
    for (int64_t i = 0, last = -1; i < rows * width; i++) {
        int64_t v = integer_at(t, c->stored_label, i);
        if (v < least || v > most)
            return pl_error(PL_ERR_DATA, "data",
                            "%s:/%s: sample %lld has label %lld%s, wanted 0..%lld%s"
                            "\nthe model's last layer says how many classes there are",
                            path, pl_dataset_plain(c->d->set->label), (long long)(first + i / width), (long long)v,
                            place_of(i, width).s, (long long)most, least < 0 ? ", or -1 where there is none" : "");
        last = v >= 0 ? i / width : last; /* the last sample with a label */
        if (i % width == width - 1 && last != i / width)
            return pl_error(PL_ERR_DATA, "data", "%s:/%s: sample %lld has no label, -1 at all its positions\nleave it out of the file",
                            path, pl_dataset_plain(c->d->set->label), (long long)(first + i / width));
        out[i] = (int32_t)v;
    }
    return PL_OK;
}

/* Rows of a table of parameters, by their number. */
static pl_status check_entries(const struct pl_cache *c, const char *path, const void *data, int64_t first, int64_t rows)
{
    const struct pl_dataset *d = c->d;
    for (int64_t i = 0; i < rows * d->row_elems; i++) {
        double v = number_at(d->type, data, i);
        if (!(v >= 0 && v < (double)c->entries && v == floor(v)))
            return pl_error(PL_ERR_DATA, "data",
                            "%s:/%s: sample %lld has %.17g%s, wanted an integer of 0..%lld"
                            "\nthe model's embedding says how many entries there are",
                            path, pl_dataset_plain(d->set->data), (long long)(first + i / d->row_elems), v,
                            place_of(i, d->row_elems).s, (long long)(c->entries - 1));
    }
    return PL_OK;
}

/* Labels are read as stored, so that a message shows what the file has. first: in the file. */
static pl_status read_labels(struct pl_cache *c, const struct pl_set_file *p, struct slot *s,
                             int64_t first, int64_t rows)
{
    struct pl_dataset *d = c->d;
    enum pl_dtype t = pl_h5_dataset_info(p->label)->dtype;
    int64_t width = pl_input_labels(&d->want);
    PL_TRY(pl_h5_read_rows(p->label, first, rows, t, c->stored_label));
    if (d->want.label_floats == 0)
        return take_classes(c, p->path, t, first, rows, (int32_t *)(void *)s->label);
    PL_TRY(check_numbers(p->path, d->set->label, t, c->stored_label, first, rows, width));
    float *out = (float *)(void *)s->label;
    for (int64_t i = 0; i < rows * width; i++)
        out[i] = (float)number_at(t, c->stored_label, i);
    return PL_OK;
}

static pl_status read_block(struct pl_cache *c, struct slot *s, int64_t block)
{
    struct pl_dataset *d = c->d;
    const struct pl_set_file *p = pl_dataset_part(d, d->block_first[block]);
    int64_t first = d->block_first[block] - p->first;
    int64_t rows = d->block_first[block + 1] - d->block_first[block];
    if (c->encoded) {
        PL_TRY(pl_h5_read_bytes(p->data, first, rows, &s->data, &s->capacity, s->offset));
        c->read_bytes += (int64_t)s->offset[rows];
    } else if (!c->labels_only) {
        PL_TRY(pl_h5_read_rows(p->data, first, rows, d->type, s->data));
        c->read_bytes += rows * (int64_t)d->row_bytes;
        PL_TRY(check_numbers(p->path, d->set->data, d->type, s->data, first, rows, d->row_elems));
        if (c->entries > 0)
            PL_TRY(check_entries(c, p->path, s->data, first, rows));
    }
    return p->label ? read_labels(c, p, s, first, rows) : PL_OK;
}

static int64_t slot_to_use(const struct pl_cache *c, int64_t block)
{
    int64_t oldest = 0;
    if (one_each(c))
        return block;
    for (int64_t i = 0; i < c->slots; i++) {
        if (c->slot[i].block < 0)
            return i;
        if (c->slot[i].used < c->slot[oldest].used)
            oldest = i;
    }
    return oldest;
}

static pl_status read_timed(struct pl_cache *c, struct slot *s, int64_t block)
{
    double begin = pl_now_ms();
    pl_status status = read_block(c, s, block);
    c->read_ms += pl_now_ms() - begin;
    return status;
}

void pl_cache_cost(struct pl_cache *c, double *ms, int64_t *bytes)
{
    *ms = c->read_ms;
    *bytes = c->read_bytes;
    c->read_ms = 0;
    c->read_bytes = 0;
}

static pl_status find_block(struct pl_cache *c, int64_t block, struct slot **out)
{
    if (c->slot_of[block] < 0) {
        int64_t i = slot_to_use(c, block);
        struct slot *s = &c->slot[i];
        if (s->block >= 0 && s->used > c->released)
            return PL_END;
        if (s->block >= 0)
            c->slot_of[s->block] = -1;
        s->block = -1;
        PL_TRY(read_timed(c, s, block));
        s->block = block;
        c->slot_of[block] = i;
    }
    *out = &c->slot[c->slot_of[block]];
    (*out)->used = ++c->clock;
    return PL_OK;
}

void pl_cache_release(struct pl_cache *c) { c->released = c->clock; }

pl_status pl_cache_row(struct pl_cache *c, int64_t sample, struct pl_row *out)
{
    const struct pl_dataset *d = c->d;
    struct slot *s = NULL;
    int64_t block = pl_dataset_block(d, sample);
    size_t within = (size_t)(sample - d->block_first[block]);
    pl_status status = find_block(c, block, &s);
    if (status != PL_OK)
        return status;
    size_t begin = c->encoded ? s->offset[within] : within * c->row_bytes;
    *out = (struct pl_row){.data = s->data + begin,
                           .bytes = c->encoded ? s->offset[within + 1] - begin : c->row_bytes,
                           .label = s->label + within * d->label_bytes};
    return PL_OK;
}
