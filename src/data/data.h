/* data: HDF5 data sets, the order of samples, and the thread that reads ahead. */
#ifndef PL_DATA_H
#define PL_DATA_H

#include "job/job.h"
#include "world/world.h"

/* ---- stage.c ------------------------------------------------------------------------------------ */

/* Copies the files of the sets to `dir` on each node, unless they are there already (data.stage; NULL: does
 * nothing), after which pl_dataset_open reads the copies. They stay for the next run. Collective: ranks
 * agree inside. PL_ERR_DATA naming the file; room is checked before. */
pl_status pl_stage(struct pl_world *w, const char *dir, const struct pl_job_set *const *set, int sets);

/* ---- memory.c ----------------------------------------------------------------------------------- */

/* A set that the caller has in memory: data [N, ...] and label [N] or [N, K], in row order, as they would lie in a file. They are
 * copied. name is what messages call it. The same on every rank: a hash of it all is compared. PL_ERR_DATA, PL_ERR_MEMORY. */
struct pl_array { enum pl_dtype type; int dims; int64_t dim[PL_MAX_DIMS]; const void *values; };
pl_status pl_memory_set_create(const char *name, const struct pl_array *data, const struct pl_array *label /* or NULL */, struct pl_memory_set **out);
void pl_memory_set_destroy(struct pl_memory_set *m); /* after all that reads it; NULL is fine */

/* ---- dataset.c ---------------------------------------------------------------------------------- */

struct pl_dataset;
/* Opens and checks a set, all its files, against the model's input: shapes, types, lengths of data and label. want is
 * one sample as the network takes it (after crop). PL_ERR_DATA naming file, dataset, index. `set` must
 * outlive the set. One loader at a time reads it. labels false: the file needs none, batches have 0. */
pl_status pl_dataset_open(const struct pl_job_set *set, const struct pl_job_input *want, bool labels,
                          struct pl_dataset **out);
void pl_dataset_close(struct pl_dataset *d);
/* What it is called in a message and told by when a run goes on: the file's path, or for several files
 * "FIRST and 11 more files [HASH of their names and lengths]". */
const char *pl_dataset_name(const struct pl_dataset *d);
bool pl_dataset_in_memory(const struct pl_dataset *d);
uint64_t pl_dataset_identity(const struct pl_dataset *d); /* the hash, of one file too: ranks compare it */
int64_t pl_dataset_samples(const struct pl_dataset *d); /* limit applied */

/* ---- jpeg.c: whether sets of JPEG images can be read -------------------------------------------- */
bool pl_jpeg_available(void);

/* ---- sampler.c: who reads what, when ----------------------------------------------------------- */

/* The order of an epoch is a pure function of (seed, epoch) and the data set, the same on any number
 * of ranks: chunks are permuted, then samples within windows of window_chunks. Chunk i is samples
 * [first[i], first[i + 1]). What comes next depends on the position in the order alone, a number of samples: the
 * global batch at `begin` is [begin, begin + G) of it, or what is left of the epoch; rank r takes the sub-range
 * [r * B, (r + 1) * B), B = ceil(G / ranks), the last ranks of a short batch down to none. So at any position
 * the rest of an epoch can be dealt out to other ranks. */
struct pl_sampler;
struct pl_sampler *pl_sampler_create(int64_t chunks, const int64_t *first /* [chunks + 1] */,
                                     int64_t window_chunks, bool shuffle, uint64_t seed);
void pl_sampler_destroy(struct pl_sampler *s);
/* Writes the sample indices of positions [first, first + n) of the epoch's order. */
pl_status pl_sampler_order(struct pl_sampler *s, int64_t epoch, int64_t first, int64_t n, int64_t *index);
int64_t pl_sampler_steps(int64_t samples, int64_t global_batch); /* global batches in so many samples, the short one too */
/* Range of positions of rank in the global batch at `begin`. */
void pl_sampler_share(int64_t samples, int64_t global_batch, int64_t begin, int rank, int ranks,
                      int64_t *first, int64_t *rows);

/* ---- loader.c ------------------------------------------------------------------------------------- */

/* Images of uint8 as they are stored, cut out but not yet mirrored and scaled, for a device that does the rest. Value v of
 * channel c becomes v * factor[c] + factor[channels + c], rounded after each of the two, within a sample's place; outside, in the
 * padding and in padding rows, it is 0. Then the sample is mirrored from left to right if it says so. */
struct pl_pixel_place { int32_t top, bottom, left, right, mirrored; }; /* rows [top, bottom), columns [left, right) */
struct pl_pixels {
    int64_t capacity, channels, height, width;
    uint8_t *value;               /* [capacity, channels, height, width]; outside of a place: anything */
    struct pl_pixel_place *place; /* [capacity] */
    float *factor;                /* [2, channels] */
};

struct pl_batch {
    int64_t epoch, begin, end; /* what all ranks share in it: positions [begin, end) of the epoch's order; of what was asked for, that */
    int64_t rows, capacity;  /* real rows; the rest is zero */
    float *data;             /* [capacity, ...] scaled, normalised, augmented; NULL where it comes as pixels */
    struct pl_pixels *pixels; /* or NULL */
    void *label;             /* int32_t[capacity, K] or float[capacity, K] */
    int64_t *index;          /* [capacity] sample index, -1 for padding */
    double read_ms, decode_ms; /* what the thread spent on it: blocks read and inflated; values, crops, copies */
    int64_t read_bytes;      /* of those blocks, inflated */
    void *memory;            /* data, label, index and what pixels points to: in pages of its own, which can be pinned */
    size_t memory_bytes;
    struct pl_pixels own_pixels;
};

/* batch.c: an empty batch of so many samples of so many elements each; pixels: it comes so, with these sizes. The batch must stay
 * where it is. PL_ERR_MEMORY; free it then, too. */
pl_status pl_batch_make(struct pl_batch *b, int64_t capacity, int64_t elems, size_t label_bytes, const struct pl_pixels *pixels);
void pl_batch_free(struct pl_batch *b);

struct pl_loader_options {
    int64_t global_batch;    /* samples of one batch over all ranks; of a step that accumulates, a micro-batch */
    int rank, ranks;
    uint64_t seed;
    bool shuffle, augment;   /* random crop and flip; otherwise the centre crop */
    int64_t classes;         /* labels must be below this; 0: floats */
    int64_t entries;         /* data must be integers below this, and are taken as they are; 0: any numbers */
    bool labels_only;        /* the samples themselves are neither read nor in the batches */
    bool pixels;             /* sets of uint8, but of JPEG images, come as pixels */
    int depth;               /* batches read ahead */
    int threads;             /* that decode, the loader's own included (1) */
};

/* Order and bits of the batches are the same with any number of threads. Starts the thread. The set must outlive the loader. */
struct pl_loader;
pl_status pl_loader_create(struct pl_dataset *d, const struct pl_loader_options *o, struct pl_loader **out);
void pl_loader_destroy(struct pl_loader *l);
int64_t pl_loader_samples(const struct pl_loader *l);    /* of the set */
int64_t pl_loader_capacity(const struct pl_loader *l);   /* rows of a batch on this rank */
/* Reads as `rank` of `ranks`, and other global batches, from the next start on; until then it reads nothing.
 * Rows of a rank: at most the capacity, otherwise PL_ERR_USAGE and nothing is changed. */
pl_status pl_loader_deal(struct pl_loader *l, int64_t global_batch, int rank, int ranks);
/* Goes to sample `position` of the order of `epoch` and reads on from there: on through the epochs, or to the
 * end of this one only (once), after which next gives PL_END. */
pl_status pl_loader_start(struct pl_loader *l, int64_t epoch, int64_t position, bool once);
/* From here on, until the next start, reads what is asked for, in that order. */
pl_status pl_loader_feed(struct pl_loader *l);
/* Positions [first, first + rows) of the order of `epoch` as the next batch; rows: the capacity at most. As many at once
 * as batches are read ahead; more wait. Any one thread. PL_END once the loader has stopped. */
pl_status pl_loader_ask(struct pl_loader *l, int64_t epoch, int64_t first, int64_t rows);
/* The next batch, waiting for it; errors of the thread come out here. Borrowed until release, beyond a
 * restart too; up to depth + 1 at once. deal, start, next and release belong to one thread. */
pl_status pl_loader_next(struct pl_loader *l, struct pl_batch **out);
/* The same where it need not be waited for; otherwise NULL, and PL_OK. */
pl_status pl_loader_next_ready(struct pl_loader *l, struct pl_batch **out);
/* The batches that it fills in turn, [depth + 1], for who pins their memory until the loader is destroyed. */
int pl_loader_batches(const struct pl_loader *l, const struct pl_batch **out);
void pl_loader_release(struct pl_loader *l, struct pl_batch *b);

#endif
