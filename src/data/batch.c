/* The memory of a batch: one piece in whole pages, so that it can be pinned as one and copied to a device from there. */
#include "data/data.h"

static size_t line(size_t bytes) { return (bytes + 63) / 64 * 64; }

pl_status pl_batch_make(struct pl_batch *b, int64_t capacity, int64_t elems, size_t label_bytes, const struct pl_pixels *pixels)
{
    size_t n = (size_t)capacity, values = line(n * (size_t)elems * (pixels ? 1 : sizeof(float))), labels = line(n * label_bytes), indices = line(n * sizeof *b->index);
    size_t places = pixels ? line(n * sizeof *pixels->place) : 0, factors = pixels ? line(2 * (size_t)pixels->channels * sizeof *pixels->factor) : 0;
    *b = (struct pl_batch){.capacity = capacity, .memory_bytes = values + labels + indices + places + factors};
    char *at = b->memory = pl_alloc_pages(b->memory_bytes, "a batch");
    if (!at)
        return PL_ERR_MEMORY;
    b->label = at + values;
    b->index = (int64_t *)(void *)(at + values + labels);
    if (!pixels) {
        b->data = (float *)(void *)at;
        return PL_OK;
    }
    b->pixels = &b->own_pixels;
    b->own_pixels = *pixels;
    b->own_pixels.capacity = capacity;
    b->own_pixels.value = (uint8_t *)at;
    b->own_pixels.place = (struct pl_pixel_place *)(void *)(at + values + labels + indices);
    b->own_pixels.factor = (float *)(void *)(at + values + labels + indices + places);
    return PL_OK;
}

void pl_batch_free(struct pl_batch *b)
{
    pl_free(b->memory);
    *b = (struct pl_batch){0};
}
