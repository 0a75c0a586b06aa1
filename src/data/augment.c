/* Which part of a stored image the network sees: a random crop, of the image with zeros around it
 * if padded, and its mirror image half of the time; the centre and never mirrored where not random.
 * The choice is a function of (seed, epoch, sample), so it is the same on any rank and after a
 * restart. Zero is meant in the network's units, after mean and std. */
#include "data/dataset.h"

#include <string.h>

#define AUGMENT_STREAM 0xA06Du

struct pl_augment pl_augment_make(const struct pl_dataset *d, bool random, uint64_t seed)
{
    bool image = d->want.dims == 3, crop = d->set->crop > 0;
    struct pl_augment a = {.channels = image ? d->raw[0] : 1,
                           .height = image ? d->raw[1] : 1,
                           .width = image ? d->raw[2] : d->row_elems,
                           .pad = d->set->pad,
                           .resize = pl_dataset_resize(d),
                           .random = random && crop, /* without a crop there is no choice of place */
                           .flip = random && d->set->flip,
                           .seed = seed};
    a.out_height = crop ? d->set->crop : a.height;
    a.out_width = crop ? d->set->crop : a.width;
    return a;
}

/* Line y of channel c from column `left` on; what lies outside the stored image is zero. */
static void take_line(const struct pl_augment *a, const struct pl_decoder *d, const void *row,
                      int64_t c, int64_t y, int64_t left, bool flip, float *out)
{
    int64_t begin = left < 0 ? -left : 0;
    int64_t end = a->width - left < a->out_width ? a->width - left : a->out_width;
    if (y < 0 || y >= a->height || begin >= end) {
        memset(out, 0, (size_t)a->out_width * sizeof *out);
        return;
    }
    int64_t at = flip ? a->out_width - end : begin, n = end - begin;
    memset(out, 0, (size_t)at * sizeof *out);
    pl_decode(d, row, c, (c * a->height + y) * a->width + left + begin, n, flip, out + at);
    memset(out + at + n, 0, (size_t)(a->out_width - at - n) * sizeof *out);
}

static int64_t offset(const struct pl_augment *a, struct pl_rng *r, int64_t from, int64_t to)
{
    int64_t room = from + 2 * a->pad - to;
    if (!a->random)
        return (from - to) / 2;
    return (room > 0 ? (int64_t)pl_rng_below(r, (uint64_t)room + 1) : 0) - a->pad;
}

struct pl_place pl_augment_place(const struct pl_augment *a, int64_t height, int64_t width,
                                 int64_t epoch, int64_t sample)
{
    struct pl_rng r = pl_rng_make(a->seed, (uint64_t)epoch, (uint64_t)sample, AUGMENT_STREAM);
    struct pl_place p = {.top = offset(a, &r, height, a->out_height)};
    p.left = offset(a, &r, width, a->out_width);
    p.flip = a->flip && (pl_rng_u32(&r) & 1u);
    return p;
}

void pl_augment(const struct pl_augment *a, const struct pl_decoder *d, const void *row,
                int64_t epoch, int64_t sample, float *out)
{
    bool whole = a->out_height == a->height && a->out_width == a->width;
    if (whole && !(a->random && a->pad > 0) && !a->flip) {
        int64_t n = a->height * a->width;
        for (int64_t c = 0; c < a->channels; c++)
            pl_decode(d, row, c, c * n, n, false, out + c * n);
        return;
    }
    struct pl_place p = pl_augment_place(a, a->height, a->width, epoch, sample);
    for (int64_t c = 0; c < a->channels; c++)
        for (int64_t y = 0; y < a->out_height; y++, out += a->out_width)
            take_line(a, d, row, c, p.top + y, p.left, p.flip, out);
}

static int32_t within(int64_t v, int64_t most) { return (int32_t)(v < 0 ? 0 : v > most ? most : v); }

void pl_augment_cut(const struct pl_augment *a, const uint8_t *row, int64_t epoch, int64_t sample, uint8_t *value, struct pl_pixel_place *place)
{
    struct pl_place p = pl_augment_place(a, a->height, a->width, epoch, sample);
    *place = (struct pl_pixel_place){within(-p.top, a->out_height), within(a->height - p.top, a->out_height), within(-p.left, a->out_width),
                                     within(a->width - p.left, a->out_width), p.flip};
    size_t n = place->right > place->left ? (size_t)(place->right - place->left) : 0;
    for (int64_t c = 0; c < a->channels; c++)
        for (int64_t y = place->top; y < place->bottom; y++)
            memcpy(value + (c * a->out_height + y) * a->out_width + place->left, row + (c * a->height + p.top + y) * a->width + p.left + place->left, n);
}
