/* From a stored row to what the network takes: (x * scale - mean) / std, a crop and a mirror image.
 * uint8 goes through a table of 256 values a channel. Which crop and whether mirrored is a function of
 * (seed, epoch, sample), the same on every rank. */
#include "data/dataset.h"

#include <string.h>

#define AUGMENT_STREAM 0xA06Du

static double channel_value(const struct pl_doubles *list, int64_t c, double otherwise)
{
    return list->n == 0 ? otherwise : list->v[list->n == 1 ? 0 : c];
}

static void fill_tables(struct pl_decoder *d, const struct pl_job_set *set)
{
    for (int64_t c = 0; c < d->channels; c++) {
        double mean = channel_value(&set->mean, c, 0), std = channel_value(&set->std, c, 1);
        d->scale[c] = (float)(set->scale / std);
        d->shift[c] = (float)(-mean / std);
        for (int v = 0; v < 256; v++)
            d->table[c * 256 + v] = (float)((v * set->scale - mean) / std);
    }
}

pl_status pl_decoder_create(const struct pl_dataset *s, bool random, uint64_t seed, struct pl_decoder **out)
{
    struct pl_decoder *d = pl_alloc(sizeof *d, "a decoder");
    if (!d)
        return PL_ERR_MEMORY;
    bool image = s->want.dims == 3;
    *d = (struct pl_decoder){.channels = image ? s->raw[0] : 1, .height = image ? s->raw[1] : 1,
                             .width = image ? s->raw[2] : s->row_elems, .pad = s->set->pad, .crop = s->set->crop > 0,
                             .flip = s->set->flip, .random = random, .type = s->type, .seed = seed};
    d->out_height = d->crop ? s->set->crop : d->height;
    d->out_width = d->crop ? s->set->crop : d->width;
    size_t n = (size_t)d->channels * sizeof(float);
    d->table = pl_alloc(256 * n, "a decoder");
    d->scale = pl_alloc(n, "a decoder");
    d->shift = pl_alloc(n, "a decoder");
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

static void decode_run(const struct pl_decoder *d, const void *row, int64_t c, int64_t from, int64_t n, float *out)
{
    if (d->type == PL_U8) {
        const uint8_t *x = (const uint8_t *)row + from;
        const float *table = d->table + c * 256;
        for (int64_t i = 0; i < n; i++)
            out[i] = table[x[i]];
        return;
    }
    const float *x = (const float *)row + from, scale = d->scale[c], shift = d->shift[c];
    for (int64_t i = 0; i < n; i++)
        out[i] = x[i] * scale + shift;
}

static void mirror(float *x, int64_t n)
{
    for (int64_t i = 0; i < n / 2; i++) {
        float t = x[i];
        x[i] = x[n - 1 - i];
        x[n - 1 - i] = t;
    }
}

/* One line of the output: what lies outside the stored image is zero. */
static void decode_line(const struct pl_decoder *d, const void *row, int64_t c, int64_t y, int64_t left, float *out)
{
    int64_t begin = left < 0 ? -left : 0, end = d->width - left < d->out_width ? d->width - left : d->out_width;
    if (y < 0 || y >= d->height || begin >= end) {
        memset(out, 0, (size_t)d->out_width * sizeof *out);
        return;
    }
    memset(out, 0, (size_t)begin * sizeof *out);
    decode_run(d, row, c, (c * d->height + y) * d->width + left + begin, end - begin, out + begin);
    memset(out + end, 0, (size_t)(d->out_width - end) * sizeof *out);
}

void pl_decode(const struct pl_decoder *d, const void *row, int64_t epoch, int64_t sample, float *out)
{
    if (!d->crop && !(d->flip && d->random)) {
        for (int64_t c = 0; c < d->channels; c++)
            decode_run(d, row, c, c * d->height * d->width, d->height * d->width, out + c * d->height * d->width);
        return;
    }
    struct pl_rng r = pl_rng_make(d->seed, (uint64_t)epoch, (uint64_t)sample, AUGMENT_STREAM);
    int64_t top = (d->height - d->out_height) / 2, left = (d->width - d->out_width) / 2;
    if (d->random && d->crop) {
        top = (int64_t)pl_rng_below(&r, (uint64_t)(d->height + 2 * d->pad - d->out_height + 1)) - d->pad;
        left = (int64_t)pl_rng_below(&r, (uint64_t)(d->width + 2 * d->pad - d->out_width + 1)) - d->pad;
    }
    bool flip = d->random && d->flip && pl_rng_u32(&r) & 1u;
    for (int64_t c = 0; c < d->channels; c++)
        for (int64_t y = 0; y < d->out_height; y++, out += d->out_width) {
            decode_line(d, row, c, top + y, left, out);
            if (flip)
                mirror(out, d->out_width);
        }
}
