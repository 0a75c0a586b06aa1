/* The thread that reads ahead: it fills batches with this rank's share of the global batches, in
 * order, and hands them over through a queue; the main thread hands them back empty. It reads alone and
 * decodes with the team's help. Its errors come out where the batch was awaited. */
#include "data/dataset.h"

#include <string.h>

struct asked { int64_t epoch, first, rows; };

struct pl_loader {
    struct pl_team *team;
    struct pl_jpeg **jpeg; /* [threads]; NULL: the set is not encoded */
    struct pl_row *row;    /* [capacity], read and not decoded yet: those from `decoded` on */
    int64_t decoded;
    struct { pthread_mutex_t lock; int64_t row; char text[256]; } bad; /* the first row that cannot be decoded; -1: none */
    struct pl_dataset *d;
    struct pl_loader_options o;
    struct pl_sampler *sampler;
    struct pl_decoder *decoder;
    struct pl_augment augment;
    struct pl_cache *cache;
    int64_t capacity, out_elems;
    size_t label_bytes;
    bool pixels;                   /* batches are of pixels */
    int batches;                   /* depth, and one for the caller */
    struct pl_batch *batch;        /* [batches] */
    bool *lent;                    /* [batches], between next and release; the caller's thread */
    struct pl_queue *empty, *full; /* hold all batches: putting never waits */
    bool fed;                      /* it reads what is asked for */
    struct asked *ask;             /* [batches] */
    struct pl_queue *free, *asked;
    pthread_t thread;
    bool running, once;
    int64_t epoch, position; /* where the thread starts */
    _Atomic bool stop;
    _Atomic int error;
};

static pl_status make_batch(const struct pl_loader *l, struct pl_batch *b)
{
    const struct pl_augment *a = &l->augment;
    const struct pl_pixels sizes = {.channels = a->channels, .height = a->out_height, .width = a->out_width};
    PL_TRY(pl_batch_make(b, l->capacity, l->out_elems, l->label_bytes, l->pixels ? &sizes : NULL));
    for (int64_t c = 0; l->pixels && c < a->channels; c++)
        pl_decoder_values(l->decoder, c, &b->pixels->factor[c], &b->pixels->factor[a->channels + c]);
    return PL_OK;
}

static pl_status make_batches(struct pl_loader *l)
{
    l->batches = (l->o.depth < 1 ? 1 : l->o.depth) + 1;
    l->batch = pl_alloc((size_t)l->batches * sizeof *l->batch, "batches");
    l->lent = pl_alloc((size_t)l->batches * sizeof *l->lent, "batches");
    l->ask = pl_alloc((size_t)l->batches * sizeof *l->ask, "batches");
    if (!l->batch || !l->lent || !l->ask)
        return PL_ERR_MEMORY;
    for (int i = 0; i < l->batches; i++)
        PL_TRY(make_batch(l, &l->batch[i]));
    return PL_OK;
}

static pl_status make_team(struct pl_loader *l)
{
    if (l->o.threads < 1)
        l->o.threads = 1;
    l->row = pl_alloc((size_t)l->capacity * sizeof *l->row, "rows of a batch");
    if (!l->row)
        return PL_ERR_MEMORY;
    if (l->d->encoded && !l->o.labels_only) {
        l->jpeg = pl_alloc((size_t)l->o.threads * sizeof *l->jpeg, "decoders");
        if (!l->jpeg)
            return PL_ERR_MEMORY;
        for (int i = 0; i < l->o.threads; i++)
            PL_TRY(pl_jpeg_create(&l->jpeg[i]));
    }
    return pl_team_create(l->o.threads, &l->team);
}

static int64_t rows_a_rank(int64_t global_batch, int ranks) { return (global_batch + ranks - 1) / ranks; }

/* What names entries of a table is taken as it is. */
static pl_status check_plain(const struct pl_dataset *d, const struct pl_loader_options *o)
{
    const struct pl_job_set *s = d->set;
    bool plain = s->scale == 1 && s->mean.n == 0 && s->std.n == 0 && s->crop == 0 && !s->flip && s->pad == 0 && !d->encoded;
    if (o->entries == 0 || o->labels_only || plain)
        return PL_OK;
    return pl_error(PL_ERR_DATA, "data", "%s: the model's embedding takes what is stored as numbers of entries\nleave out scale, mean, std and augment",
                    pl_dataset_name(d));
}

static pl_status create(struct pl_loader *l)
{
    struct pl_dataset *d = l->d;
    PL_TRY(check_plain(d, &l->o));
    l->capacity = rows_a_rank(l->o.global_batch, l->o.ranks);
    l->label_bytes = d->label_bytes;
    l->sampler =
        pl_sampler_create(d->blocks, d->block_first, d->window_blocks, l->o.shuffle, l->o.seed);
    if (!l->sampler)
        return PL_ERR_MEMORY;
    PL_TRY(pl_decoder_create(d, &l->decoder));
    l->augment = pl_augment_make(d, l->o.augment, l->o.seed);
    l->pixels = l->o.pixels && d->type == PL_U8 && !d->encoded && !l->o.labels_only;
    l->out_elems = l->o.labels_only ? 0 : l->augment.channels * l->augment.out_height * l->augment.out_width;
    PL_TRY(pl_cache_create(d, &l->o, &l->cache));
    PL_TRY(make_team(l));
    return make_batches(l);
}

pl_status pl_loader_create(struct pl_dataset *d, const struct pl_loader_options *o,
                           struct pl_loader **out)
{
    struct pl_loader *l = pl_alloc(sizeof *l, "a loader");
    if (!l)
        return PL_ERR_MEMORY;
    l->d = d;
    l->o = *o;
    pthread_mutex_init(&l->bad.lock, NULL);
    pl_status s = create(l);
    if (s < 0)
        pl_loader_destroy(l);
    else
        *out = l;
    return s;
}

static void stop_thread(struct pl_loader *l)
{
    if (l->running) {
        atomic_store(&l->stop, true);
        pl_queue_close(l->empty);
        pl_queue_close(l->full);
        if (l->fed) {
            pl_queue_close(l->free);
            pl_queue_close(l->asked);
        }
        pthread_join(l->thread, NULL);
        l->running = false;
    }
    pl_queue_destroy(l->empty);
    pl_queue_destroy(l->full);
    pl_queue_destroy(l->free);
    pl_queue_destroy(l->asked);
    l->empty = l->full = l->free = l->asked = NULL;
}

void pl_loader_destroy(struct pl_loader *l)
{
    if (!l)
        return;
    stop_thread(l);
    for (int i = 0; l->batch && i < l->batches; i++)
        pl_batch_free(&l->batch[i]);
    pl_free(l->batch);
    pl_free(l->lent);
    pl_free(l->ask);
    pl_free(l->row);
    pl_team_destroy(l->team);
    for (int i = 0; l->jpeg && i < l->o.threads; i++)
        pl_jpeg_destroy(l->jpeg[i]);
    pl_free(l->jpeg);
    pthread_mutex_destroy(&l->bad.lock);
    pl_cache_destroy(l->cache);
    pl_decoder_destroy(l->decoder);
    pl_sampler_destroy(l->sampler);
    pl_free(l);
}

int64_t pl_loader_samples(const struct pl_loader *l) { return l->d->samples; }
int64_t pl_loader_capacity(const struct pl_loader *l) { return l->capacity; }

struct decoding {
    struct pl_loader *l;
    struct pl_batch *b;
};

static void note_bad(struct pl_loader *l, int64_t row, const char *text)
{
    pthread_mutex_lock(&l->bad.lock);
    if (l->bad.row < 0 || row < l->bad.row) {
        l->bad.row = row;
        snprintf(l->bad.text, sizeof l->bad.text, "%s", text);
    }
    pthread_mutex_unlock(&l->bad.lock);
}

static void decode_row(void *arg, int worker, int64_t i)
{
    const struct decoding *w = arg;
    struct pl_loader *l = w->l;
    int64_t row = l->decoded + i, sample = w->b->index[row];
    if (l->pixels) {
        const struct pl_pixels *p = w->b->pixels;
        pl_augment_cut(&l->augment, l->row[row].data, w->b->epoch, sample, p->value + row * l->out_elems, &p->place[row]);
        return;
    }
    float *out = w->b->data + row * l->out_elems;
    if (!l->jpeg) {
        pl_augment(&l->augment, l->decoder, l->row[row].data, w->b->epoch, sample, out);
        return;
    }
    const char *wrong = pl_jpeg_decode(l->jpeg[worker], &l->augment, l->decoder, &l->row[row], w->b->epoch, sample, out);
    if (wrong)
        note_bad(l, row, wrong);
}

/* Rows up to `end` of the batch; the cache may have theirs back. */
static pl_status decode_until(struct pl_loader *l, struct pl_batch *b, int64_t end)
{
    struct decoding w = {l, b};
    l->bad.row = -1;
    if (!l->o.labels_only)
        pl_team_run(l->team, end - l->decoded, decode_row, &w);
    l->decoded = end;
    pl_cache_release(l->cache);
    if (l->bad.row < 0)
        return PL_OK;
    int64_t sample = b->index[l->bad.row];
    const struct pl_set_file *p = pl_dataset_part(l->d, sample);
    return pl_error(PL_ERR_DATA, "data", "%s:/%s: sample %lld cannot be decoded: %s\nreplace the image, or write the set without it",
                    p->path, pl_dataset_plain(l->d->set->data), (long long)(sample - p->first), l->bad.text);
}

static pl_status read_rows(struct pl_loader *l, struct pl_batch *b)
{
    l->decoded = 0;
    for (int64_t i = 0; i < b->rows; i++) {
        pl_status s = pl_cache_row(l->cache, b->index[i], &l->row[i]);
        if (s == PL_END) {
            PL_TRY(decode_until(l, b, i));
            s = pl_cache_row(l->cache, b->index[i], &l->row[i]);
        }
        PL_TRY(s);
        memcpy((char *)b->label + (size_t)i * l->label_bytes, l->row[i].label, l->label_bytes);
    }
    return decode_until(l, b, b->rows);
}

/* Of the batches since the first epoch, as this division counts them. */
static pl_status injected_fault(const struct pl_loader *l, const struct pl_batch *b)
{
    int64_t global = l->o.global_batch, batch = b->epoch * pl_sampler_steps(l->d->samples, global) + b->begin / global;
    if (!pl_fault("loader.read", batch))
        return PL_OK;
    return pl_error(PL_ERR_DATA, "data", "%s: samples %lld to %lld of epoch %lld: debug.fault at loader.read", pl_dataset_name(l->d),
                    (long long)b->begin, (long long)b->end, (long long)b->epoch);
}

/* With positions [first, first + rows) of the order. */
static pl_status fill_rows(struct pl_loader *l, struct pl_batch *b, int64_t epoch, int64_t first)
{
    double begin = pl_now_ms(), traced = pl_trace_begin();
    PL_TRY(injected_fault(l, b));
    PL_TRY(pl_sampler_order(l->sampler, epoch, first, b->rows, b->index));
    PL_TRY(read_rows(l, b));
    int64_t rest = b->capacity - b->rows;
    if (l->pixels)
        memset(b->pixels->place + b->rows, 0, (size_t)rest * sizeof *b->pixels->place);
    else
        memset(b->data + b->rows * l->out_elems, 0, (size_t)(rest * l->out_elems) * sizeof(float));
    memset((char *)b->label + (size_t)b->rows * l->label_bytes, 0, (size_t)rest * l->label_bytes);
    for (int64_t i = b->rows; i < b->capacity; i++)
        b->index[i] = -1;
    pl_cache_cost(l->cache, &b->read_ms, &b->read_bytes);
    b->decode_ms = pl_now_ms() - begin - b->read_ms;
    pl_trace_end(traced, "data", "read a batch", b->begin);
    return PL_OK;
}

/* With this rank's share of the global batch that begins at `position`. */
static pl_status fill(struct pl_loader *l, struct pl_batch *b, int64_t epoch, int64_t position)
{
    int64_t first, left = l->d->samples - position;
    b->epoch = epoch;
    b->begin = position;
    b->end = position + (l->o.global_batch < left ? l->o.global_batch : left);
    pl_sampler_share(l->d->samples, l->o.global_batch, position, l->o.rank, l->o.ranks, &first, &b->rows);
    return fill_rows(l, b, epoch, first);
}

static pl_status fill_asked(struct pl_loader *l, struct pl_batch *b, const struct asked *a)
{
    b->epoch = a->epoch;
    b->begin = a->first;
    b->end = a->first + a->rows;
    b->rows = a->rows;
    return fill_rows(l, b, a->epoch, a->first);
}

static void *run_fed(void *arg)
{
    struct pl_loader *l = arg;
    void *asked, *batch;
    while (!atomic_load(&l->stop) && pl_queue_get(l->asked, -1, &asked) == PL_OK && pl_queue_get(l->empty, -1, &batch) == PL_OK) {
        pl_status s = fill_asked(l, batch, asked);
        if (s < 0)
            atomic_store(&l->error, s);
        if (s < 0 || pl_queue_put(l->full, batch) != PL_OK || pl_queue_put(l->free, asked) != PL_OK)
            break;
    }
    pl_queue_close(l->full);
    pl_queue_close(l->free); /* who asks is not to wait for it */
    return NULL;
}

static void *run(void *arg)
{
    struct pl_loader *l = arg;
    int64_t epoch = l->epoch, position = l->position;
    void *item;
    while (!atomic_load(&l->stop)) {
        if (position >= l->d->samples) {
            if (l->once)
                break;
            epoch++;
            position = 0;
        }
        if (pl_queue_get(l->empty, -1, &item) != PL_OK)
            break;
        pl_status s = fill(l, item, epoch, position);
        if (s < 0) {
            atomic_store(&l->error, s);
            break;
        }
        position = ((const struct pl_batch *)item)->end;
        if (pl_queue_put(l->full, item) != PL_OK)
            break;
    }
    pl_queue_close(l->full);
    return NULL;
}

pl_status pl_loader_deal(struct pl_loader *l, int64_t global_batch, int rank, int ranks)
{
    int64_t rows = rows_a_rank(global_batch, ranks);
    if (rows > l->capacity)
        return pl_error(PL_ERR_USAGE, "data", "a global batch of %lld on %d ranks is %lld samples a rank: the loader has room for %lld",
                        (long long)global_batch, ranks, (long long)rows, (long long)l->capacity);
    stop_thread(l);
    l->o.global_batch = global_batch;
    l->o.rank = rank;
    l->o.ranks = ranks;
    return PL_OK;
}

static pl_status start(struct pl_loader *l, void *(*body)(void *))
{
    l->empty = pl_queue_create(l->batches);
    l->full = pl_queue_create(l->batches);
    if (!l->empty || !l->full) {
        stop_thread(l);
        return PL_ERR_MEMORY;
    }
    for (int i = 0; i < l->batches; i++) /* what is still lent comes back by its release */
        if (!l->lent[i])
            pl_queue_put(l->empty, &l->batch[i]);
    atomic_store(&l->stop, false);
    atomic_store(&l->error, PL_OK);
    pl_status s = pl_thread_start(&l->thread, "loader", body, l);
    l->running = s == PL_OK;
    if (s < 0)
        stop_thread(l);
    return s;
}

pl_status pl_loader_start(struct pl_loader *l, int64_t epoch, int64_t position, bool once)
{
    stop_thread(l);
    l->epoch = epoch;
    l->position = position;
    l->once = once;
    l->fed = false;
    return start(l, run);
}

pl_status pl_loader_feed(struct pl_loader *l)
{
    stop_thread(l);
    l->free = pl_queue_create(l->batches);
    l->asked = pl_queue_create(l->batches);
    if (!l->free || !l->asked) {
        stop_thread(l);
        return PL_ERR_MEMORY;
    }
    for (int i = 0; i < l->batches; i++)
        pl_queue_put(l->free, &l->ask[i]);
    l->fed = true;
    return start(l, run_fed);
}

pl_status pl_loader_ask(struct pl_loader *l, int64_t epoch, int64_t first, int64_t rows)
{
    void *item;
    if (rows < 1 || rows > l->capacity)
        return pl_error(PL_ERR_USAGE, "data", "%lld samples asked for, the loader has room for %lld", (long long)rows, (long long)l->capacity);
    if (pl_queue_get(l->free, -1, &item) != PL_OK)
        return PL_END;
    *(struct asked *)item = (struct asked){epoch, first, rows};
    return pl_queue_put(l->asked, item);
}

/* With every batch lent the thread could never fill another. */
static bool all_lent(const struct pl_loader *l)
{
    int n = 0;
    for (int i = 0; i < l->batches; i++)
        n += l->lent[i];
    return n == l->batches;
}

static pl_status next(struct pl_loader *l, double wait_ms, struct pl_batch **out)
{
    void *item = NULL;
    *out = NULL;
    if (!l->running)
        return pl_error(PL_ERR_USAGE, "data", "the loader of %s was not started", pl_dataset_name(l->d));
    if (all_lent(l))
        return pl_error(PL_ERR_USAGE, "data", "all %d batches are lent: release one first",
                        l->batches);
    pl_status s = pl_queue_get(l->full, wait_ms, &item);
    if (s == PL_OK) {
        *out = item;
        l->lent[*out - l->batch] = true;
        return PL_OK;
    }
    int error = atomic_load(&l->error);
    return error < 0 ? error : s;
}

pl_status pl_loader_next(struct pl_loader *l, struct pl_batch **out) { return next(l, -1, out); }

/* An error comes out where the batch is waited for. */
pl_status pl_loader_next_ready(struct pl_loader *l, struct pl_batch **out)
{
    *out = NULL;
    if (all_lent(l))
        return PL_OK;
    pl_status s = next(l, 0, out);
    return l->running ? PL_OK : s;
}

int pl_loader_batches(const struct pl_loader *l, const struct pl_batch **out)
{
    *out = l->batch;
    return l->batches;
}

void pl_loader_release(struct pl_loader *l, struct pl_batch *b)
{
    if (!b || !l->lent[b - l->batch])
        return;
    l->lent[b - l->batch] = false;
    if (l->empty)
        pl_queue_put(l->empty, b);
}
