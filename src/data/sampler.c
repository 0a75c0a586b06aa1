/* The order of an epoch: chunks permuted, then samples shuffled within windows of whole chunks, so
 * that reading stays near chunks while samples mix. A function of (seed, epoch) and the data set;
 * the ranks only cut it. */
#include "data/data.h"

#include <string.h>

#define CHUNK_STREAM 0xC4A6u
#define WINDOW_STREAM 0x817Du

struct pl_sampler {
    int64_t samples, chunks, window_chunks;
    int64_t *first; /* [chunks + 1], where each begins */
    bool shuffle;
    uint64_t seed;
    int64_t epoch;  /* of chunk[]; -1: none */
    int64_t window; /* in order[]; -1: none */
    int64_t window_first, window_n;
    int64_t *chunk; /* [chunks], permuted */
    int64_t *order; /* samples of the window */
};

/* Of any window, whichever chunks are in it. */
static int64_t most_rows(const struct pl_sampler *s)
{
    int64_t most = 0;
    for (int64_t i = 0; i < s->chunks; i++)
        if (s->first[i + 1] - s->first[i] > most)
            most = s->first[i + 1] - s->first[i];
    return most * s->window_chunks < s->samples ? most * s->window_chunks : s->samples;
}

struct pl_sampler *pl_sampler_create(int64_t chunks, const int64_t *first, int64_t window_chunks,
                                     bool shuffle, uint64_t seed)
{
    struct pl_sampler *s = pl_alloc(sizeof *s, "a sampler");
    if (!s)
        return NULL;
    *s = (struct pl_sampler){.samples = first[chunks],
                             .chunks = chunks,
                             .window_chunks = window_chunks < chunks ? window_chunks : chunks,
                             .shuffle = shuffle,
                             .seed = seed,
                             .epoch = -1,
                             .window = -1};
    s->chunk = pl_alloc((size_t)chunks * sizeof *s->chunk, "a sampler");
    s->first = pl_alloc((size_t)(chunks + 1) * sizeof *s->first, "a sampler");
    if (s->first) {
        memcpy(s->first, first, (size_t)(chunks + 1) * sizeof *first);
        s->order = pl_alloc((size_t)most_rows(s) * sizeof *s->order, "a sampler");
    }
    if (!s->chunk || !s->order) {
        pl_sampler_destroy(s);
        return NULL;
    }
    return s;
}

void pl_sampler_destroy(struct pl_sampler *s)
{
    if (!s)
        return;
    pl_free(s->chunk);
    pl_free(s->first);
    pl_free(s->order);
    pl_free(s);
}

/* Fisher and Yates. */
static void permute(int64_t *v, int64_t n, struct pl_rng r)
{
    for (int64_t i = n - 1; i > 0; i--) {
        int64_t j = (int64_t)pl_rng_below(&r, (uint64_t)i + 1), t = v[i];
        v[i] = v[j];
        v[j] = t;
    }
}

static void set_epoch(struct pl_sampler *s, int64_t epoch)
{
    for (int64_t i = 0; i < s->chunks; i++)
        s->chunk[i] = i;
    permute(s->chunk, s->chunks, pl_rng_make(s->seed, (uint64_t)epoch + 1, 0, CHUNK_STREAM));
    s->epoch = epoch;
    s->window = -1;
}

/* A short chunk may stand anywhere in the order. */
static int64_t rows_of(const struct pl_sampler *s, int64_t chunk)
{
    return s->first[chunk + 1] - s->first[chunk];
}

static int64_t window_rows(const struct pl_sampler *s, int64_t window)
{
    int64_t n = 0, end = (window + 1) * s->window_chunks;
    for (int64_t i = window * s->window_chunks; i < end && i < s->chunks; i++)
        n += rows_of(s, s->chunk[i]);
    return n;
}

static void set_window(struct pl_sampler *s, int64_t window, int64_t first)
{
    int64_t n = 0, end = (window + 1) * s->window_chunks;
    for (int64_t i = window * s->window_chunks; i < end && i < s->chunks; i++)
        for (int64_t row = 0; row < rows_of(s, s->chunk[i]); row++)
            s->order[n++] = s->first[s->chunk[i]] + row;
    permute(s->order, n,
            pl_rng_make(s->seed, (uint64_t)s->epoch + 1, (uint64_t)window, WINDOW_STREAM));
    s->window = window;
    s->window_first = first;
    s->window_n = n;
}

static void find_window(struct pl_sampler *s, int64_t position)
{
    int64_t window = 0, first = 0;
    if (s->window >= 0 && position >= s->window_first) {
        window = s->window;
        first = s->window_first;
    }
    for (int64_t n; position >= first + (n = window_rows(s, window)); window++)
        first += n;
    if (window != s->window)
        set_window(s, window, first);
}

pl_status pl_sampler_order(struct pl_sampler *s, int64_t epoch, int64_t first, int64_t n,
                           int64_t *index)
{
    if (first < 0 || n < 0 || first + n > s->samples)
        return pl_error(PL_ERR_DATA, "data", "positions %lld to %lld of %lld", (long long)first,
                        (long long)(first + n), (long long)s->samples);
    if (s->shuffle && s->epoch != epoch)
        set_epoch(s, epoch);
    for (int64_t i = 0; i < n; i++) {
        int64_t position = first + i;
        if (!s->shuffle) {
            index[i] = position;
            continue;
        }
        if (s->window < 0 || position < s->window_first ||
            position >= s->window_first + s->window_n)
            find_window(s, position);
        index[i] = s->order[position - s->window_first];
    }
    return PL_OK;
}

int64_t pl_sampler_steps(int64_t samples, int64_t global_batch)
{
    return samples / global_batch + (samples % global_batch != 0);
}

void pl_sampler_share(int64_t samples, int64_t global_batch, int64_t begin, int rank, int ranks,
                      int64_t *first, int64_t *rows)
{
    int64_t end = begin + global_batch < samples ? begin + global_batch : samples;
    int64_t each = (global_batch + ranks - 1) / ranks, mine = begin + rank * each;
    *first = mine < end ? mine : end;
    *rows = end - *first < each ? end - *first : each;
}
