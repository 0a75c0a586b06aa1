/* Internal to data/: an open set and its cache of blocks (runs of rows, decoded once). */
#ifndef PL_DATA_DATASET_H
#define PL_DATA_DATASET_H

#include "data/data.h"

struct pl_dataset {
    const struct pl_job_set *set;
    struct pl_job_input want;
    struct pl_h5 *file;
    struct pl_h5ds *data, *label;
    int64_t samples;
    enum pl_dtype type;      /* as kept in memory: PL_U8 or PL_F32 */
    int64_t raw[3];          /* channels, height, width as stored (1 where there are fewer) */
    int64_t row_elems;       /* as stored */
    size_t row_bytes, label_bytes;
    int64_t block_rows, blocks, window_rows;
    bool all_in_memory;
};

/* One sample as it is kept: its inputs and its label. Valid until the next call. */
struct pl_cache;
pl_status pl_cache_create(struct pl_dataset *d, int64_t classes, struct pl_cache **out);
void pl_cache_destroy(struct pl_cache *c);
pl_status pl_cache_row(struct pl_cache *c, int64_t sample, const void **data, const void **label);

/* decode.c: from a stored row to what the network takes. */
struct pl_decoder {
    int64_t channels, height, width;        /* stored */
    int64_t out_height, out_width, pad;
    bool crop, flip, random;
    enum pl_dtype type;
    float *table;                           /* uint8: [channels][256] */
    float *scale, *shift;                   /* x * scale[c] + shift[c] */
    uint64_t seed;
};
pl_status pl_decoder_create(const struct pl_dataset *d, bool random, uint64_t seed, struct pl_decoder **out);
void pl_decoder_destroy(struct pl_decoder *d);
/* out: [C, out_height, out_width]. */
void pl_decode(const struct pl_decoder *d, const void *row, int64_t epoch, int64_t sample, float *out);

#endif
