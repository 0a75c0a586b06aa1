/* From stored values to what the network takes: (x * scale - mean) / std, per channel, as one
 * multiplication and one addition in float, forwards or mirrored. The loops are compiled for several
 * instruction sets; products and sums are rounded apart, so all of them give the same bits. */
#include "data/dataset.h"

static double value_of(const struct pl_doubles *list, int64_t c, double otherwise)
{
    return list->n == 0 ? otherwise : list->v[list->n == 1 ? 0 : c];
}

#define SCALED(T, name)                                                                            \
    PL_CLONES static void name(const void *from, int64_t n, float scale, float shift, float *out)  \
    {                                                                                              \
        const T *x = from;                                                                         \
        float *restrict y = out;                                                                   \
        for (int64_t i = 0; i < n; i++)                                                            \
            y[i] = (float)x[i] * scale + shift;                                                    \
    }                                                                                              \
    PL_CLONES static void name##_mirrored(const void *from, int64_t n, float scale, float shift,   \
                                          float *out)                                              \
    {                                                                                              \
        const T *x = from;                                                                         \
        float *restrict y = out;                                                                   \
        for (int64_t i = 0; i < n; i++)                                                            \
            y[i] = (float)x[n - 1 - i] * scale + shift;                                            \
    }
SCALED(float, from_f32)
SCALED(double, from_f64)
SCALED(uint8_t, from_u8)
SCALED(int8_t, from_i8)
SCALED(int16_t, from_i16)
SCALED(uint16_t, from_u16)
SCALED(int32_t, from_i32)
SCALED(uint32_t, from_u32)
SCALED(int64_t, from_i64)
SCALED(uint64_t, from_u64)

typedef void scale_fn(const void *from, int64_t n, float scale, float shift, float *out);

static scale_fn *const scalers[PL_OTHER][2] = {
    [PL_F32] = {from_f32, from_f32_mirrored}, [PL_F64] = {from_f64, from_f64_mirrored},
    [PL_U8] = {from_u8, from_u8_mirrored},    [PL_I8] = {from_i8, from_i8_mirrored},
    [PL_I16] = {from_i16, from_i16_mirrored}, [PL_U16] = {from_u16, from_u16_mirrored},
    [PL_I32] = {from_i32, from_i32_mirrored}, [PL_U32] = {from_u32, from_u32_mirrored},
    [PL_I64] = {from_i64, from_i64_mirrored}, [PL_U64] = {from_u64, from_u64_mirrored}};

struct pl_decoder {
    enum pl_dtype type;
    struct { float scale, shift; } channel[];
};

pl_status pl_decoder_create(const struct pl_dataset *s, struct pl_decoder **out)
{
    const struct pl_job_set *set = s->set;
    int64_t channels = s->want.dims == 3 ? s->raw[0] : 1;
    struct pl_decoder *d = pl_alloc(sizeof *d + (size_t)channels * sizeof *d->channel, "a decoder");
    if (!d)
        return PL_ERR_MEMORY;
    d->type = s->type;
    for (int64_t c = 0; c < channels; c++) {
        double std = value_of(&set->std, c, 1);
        d->channel[c].scale = (float)(set->scale / std);
        d->channel[c].shift = (float)(-value_of(&set->mean, c, 0) / std);
    }
    *out = d;
    return PL_OK;
}

void pl_decoder_destroy(struct pl_decoder *d) { pl_free(d); }

void pl_decoder_values(const struct pl_decoder *d, int64_t c, float *scale, float *shift)
{
    *scale = d->channel[c].scale;
    *shift = d->channel[c].shift;
}

void pl_decode(const struct pl_decoder *d, const void *row, int64_t c, int64_t from, int64_t n,
               bool mirrored, float *out)
{
    const char *x = (const char *)row + (size_t)from * pl_dtype_bytes(d->type);
    scalers[d->type][mirrored](x, n, d->channel[c].scale, d->channel[c].shift, out);
}
