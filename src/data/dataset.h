/* Internal to data/: an open set, the cache of its blocks (runs of rows, read once a window), and
 * the way from a stored row to what the network takes. A row is either as many values as any other, or
 * the bytes of a JPEG image (encoded). */
#ifndef PL_DATA_DATASET_H
#define PL_DATA_DATASET_H

#include "data/data.h"

struct pl_set_file { /* one file of a set */
    char *path;
    struct pl_h5 *file;
    struct pl_h5ds *data, *label; /* label NULL: not asked for */
    int64_t first, samples;       /* of the set's; what a limit leaves */
    int64_t first_block, block_rows;
};

struct pl_dataset {
    const struct pl_job_set *set; /* borrowed */
    struct pl_job_input want;
    char *name;
    uint64_t identity;
    int parts;
    struct pl_set_file *part;
    int64_t samples;
    bool encoded;       /* JPEG images */
    enum pl_dtype type; /* of data, in the files and in the cache; of an image's values */
    int64_t raw[3];     /* channels, height, width as stored (1 where there are fewer); encoded: as wanted */
    int64_t row_elems;  /* as stored */
    size_t row_bytes;   /* encoded: the mean of the files */
    size_t label_bytes; /* of one sample's label in a batch: int32_t[K] or float[K] */
    /* What is read at once: runs of rows of one file, whole chunks where there are chunks. */
    int64_t blocks, *block_first; /* [blocks + 1] */
    int64_t block_rows;           /* of the longest */
    int64_t window_blocks;        /* within which samples are shuffled */
    bool all_in_memory;
};
int64_t pl_dataset_resize(const struct pl_dataset *d); /* of JPEG images, their shorter side; 0: pixels */
struct pl_set_file *pl_dataset_part(const struct pl_dataset *d, int64_t sample);
int64_t pl_dataset_block(const struct pl_dataset *d, int64_t sample);
/* A dataset's name for "FILE:/NAME", which may have been given with the slash. */
const char *pl_dataset_plain(const char *name);

/* files.c: the paths that a set names, patterns expanded; owner: the caller, pl_files_free. */
struct pl_files {
    int n;
    char **path;
};
pl_status pl_files_find(const struct pl_job_set *set, struct pl_files *out);
pl_status pl_files_join(struct pl_files *f, const struct pl_files *more); /* what is in both once */
void pl_files_free(struct pl_files *f);

struct pl_memory_set { /* datasets /data and /label */
    char *name;
    struct pl_h5 *file;
    uint64_t hash;
};

/* stage.c: where the copy of a file is; owner: the caller. */
char *pl_stage_path(const char *dir, const char *path);

/* cache.c. Of the loader's options: shuffle says whether rows come window by window or one after the other; with labels_only rows
 * are of no bytes. One thread. */
struct pl_cache;
pl_status pl_cache_create(struct pl_dataset *d, const struct pl_loader_options *o, struct pl_cache **out);
void pl_cache_destroy(struct pl_cache *c);
/* What reading cost since the last call: time, and bytes when inflated. */
void pl_cache_cost(struct pl_cache *c, double *ms, int64_t *bytes);
struct pl_row {
    const void *data; /* as stored */
    size_t bytes;
    const void *label; /* as a batch wants it */
};
/* A row, checked. Valid until pl_cache_release: where it would have to give way to another's block, that
 * is PL_END. */
pl_status pl_cache_row(struct pl_cache *c, int64_t sample, struct pl_row *out);
void pl_cache_release(struct pl_cache *c);

/* decode.c: values. (x * scale - mean[c]) / std[c]. */
struct pl_decoder;
pl_status pl_decoder_create(const struct pl_dataset *d, struct pl_decoder **out);
void pl_decoder_destroy(struct pl_decoder *d);
/* Elements [from, from + n) of a stored row, all of channel c; mirrored: the last one first. */
void pl_decode(const struct pl_decoder *d, const void *row, int64_t c, int64_t from, int64_t n,
               bool mirrored, float *out);

/* What a stored value of channel c becomes: x * scale + shift. */
void pl_decoder_values(const struct pl_decoder *d, int64_t c, float *scale, float *shift);

/* augment.c: places. Which part of the stored image is taken, and whether it is mirrored. */
struct pl_augment {
    int64_t channels, height, width; /* stored; a sample that is no image is one long line */
    int64_t out_height, out_width, pad;
    int64_t resize; /* encoded: the shorter side before the crop */
    bool random, flip;
    uint64_t seed;
};
struct pl_place {
    int64_t top, left; /* of the part, negative in the padding */
    bool flip;
};
struct pl_augment pl_augment_make(const struct pl_dataset *d, bool random, uint64_t seed);
/* In an image of height x width. */
struct pl_place pl_augment_place(const struct pl_augment *a, int64_t height, int64_t width,
                                 int64_t epoch, int64_t sample);
/* out: [channels, out_height, out_width] */
void pl_augment(const struct pl_augment *a, const struct pl_decoder *d, const void *row,
                int64_t epoch, int64_t sample, float *out);

/* The part that a sample takes of a stored row of uint8, for pl_pixels: value [channels, out_height, out_width]. */
void pl_augment_cut(const struct pl_augment *a, const uint8_t *row, int64_t epoch, int64_t sample, uint8_t *value, struct pl_pixel_place *place);

/* jpeg.c: the same from the bytes of a JPEG image. One thread at a time has a pl_jpeg. */
struct pl_jpeg;
pl_status pl_jpeg_create(struct pl_jpeg **out); /* PL_ERR_DATA where it is not built in */
void pl_jpeg_destroy(struct pl_jpeg *j);
/* NULL, or what is wrong with the image; the text is j's. */
const char *pl_jpeg_decode(struct pl_jpeg *j, const struct pl_augment *a, const struct pl_decoder *d,
                           const struct pl_row *row, int64_t epoch, int64_t sample, float *out);

/* team.c: body(arg, worker, i) for every i of [0, n) on `threads` threads, the caller's included, as
 * worker 0 .. threads - 1. One caller. */
struct pl_team;
typedef void pl_team_body(void *arg, int worker, int64_t i);
pl_status pl_team_create(int threads, struct pl_team **out);
void pl_team_destroy(struct pl_team *t);
void pl_team_run(struct pl_team *t, int64_t n, pl_team_body *body, void *arg);

#endif
