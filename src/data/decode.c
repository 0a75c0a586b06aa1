/* From stored values to what the network takes: (x * scale - mean) / std, per channel. uint8, which
 * most images are, goes through a table of 256 values a channel; every other type is one
 * multiplication and one addition in float. */
#include "data/dataset.h"

static double value_of(const struct pl_doubles *list, int64_t c, double otherwise)
{
    return list->n == 0 ? otherwise : list->v[list->n == 1 ? 0 : c];
}

static void fill_tables(struct pl_decoder *d, const struct pl_job_set *set)
{
    for (int64_t c = 0; c < d->channels; c++) {
        double mean = value_of(&set->mean, c, 0), std = value_of(&set->std, c, 1);
        d->scale[c] = (float)(set->scale / std);
        d->shift[c] = (float)(-mean / std);
        for (int v = 0; v < 256; v++)
            d->table[c * 256 + v] = (float)((v * set->scale - mean) / std);
    }
}

pl_status pl_decoder_create(const struct pl_dataset *s, struct pl_decoder **out)
{
    struct pl_decoder *d = pl_alloc(sizeof *d, "a decoder");
    if (!d)
        return PL_ERR_MEMORY;
    d->type = s->type;
    d->channels = s->want.dims == 3 ? s->raw[0] : 1;
    size_t bytes = (size_t)d->channels * sizeof(float);
    d->table = pl_alloc(256 * bytes, "a decoder");
    d->scale = pl_alloc(bytes, "a decoder");
    d->shift = pl_alloc(bytes, "a decoder");
    if (!d->table || !d->scale || !d->shift) {
        pl_decoder_destroy(d);
        return PL_ERR_MEMORY;
    }
    fill_tables(d, s->set);
    *out = d;
    return PL_OK;
}

void pl_decoder_destroy(struct pl_decoder *d)
{
    if (!d)
        return;
    pl_free(d->table);
    pl_free(d->scale);
    pl_free(d->shift);
    pl_free(d);
}

#define SCALED(name, T)                                                                            \
    static void name(const void *row, int64_t from, int64_t n, float scale, float shift,           \
                     float *restrict out)                                                          \
    {                                                                                              \
        const T *restrict x = (const T *)row + from;                                               \
        for (int64_t i = 0; i < n; i++)                                                            \
            out[i] = (float)x[i] * scale + shift;                                                  \
    }
SCALED(from_i8, int8_t)
SCALED(from_i16, int16_t)
SCALED(from_u16, uint16_t)
SCALED(from_i32, int32_t)
SCALED(from_u32, uint32_t)
SCALED(from_i64, int64_t)
SCALED(from_u64, uint64_t)
SCALED(from_f32, float)
SCALED(from_f64, double)

static void from_table(const uint8_t *restrict x, int64_t n, const float *restrict table,
                       float *restrict out)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = table[x[i]];
}

void pl_decode(const struct pl_decoder *d, const void *row, int64_t c, int64_t from, int64_t n,
               float *out)
{
    float a = d->scale[c], b = d->shift[c];
    switch (d->type) {
    case PL_U8:
        from_table((const uint8_t *)row + from, n, d->table + c * 256, out);
        break;
    case PL_I8:
        from_i8(row, from, n, a, b, out);
        break;
    case PL_I16:
        from_i16(row, from, n, a, b, out);
        break;
    case PL_U16:
        from_u16(row, from, n, a, b, out);
        break;
    case PL_I32:
        from_i32(row, from, n, a, b, out);
        break;
    case PL_U32:
        from_u32(row, from, n, a, b, out);
        break;
    case PL_I64:
        from_i64(row, from, n, a, b, out);
        break;
    case PL_U64:
        from_u64(row, from, n, a, b, out);
        break;
    case PL_F32:
        from_f32(row, from, n, a, b, out);
        break;
    case PL_F64:
        from_f64(row, from, n, a, b, out);
        break;
    case PL_OTHER:
        break; /* refused when the set was opened */
    }
}
