/* For tests that train on the ranks they are started with: a trainer whose batches the test makes up, in the place of a
 * data set. A test fills in samples, epochs and fill, opens, steps as it likes, and closes. */
#ifndef PL_TEST_MADE_UP_H
#define PL_TEST_MADE_UP_H

#include "train/train.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MADE_UP_ASKED = 8 }; /* micro-batches that a sync may ask for ahead */

struct made_up_asked { int64_t epoch, first, rows; };

struct made_up {
    int64_t samples, epochs;          /* of the set that is made up; epochs 0: it never ends */
    /* Makes m->batch: of the samples that a sync asked for; asked is NULL where it does not ask. */
    void (*fill)(struct made_up *m, const struct made_up_asked *asked);
    struct pl_trainer t;
    struct pl_job *job;
    struct pl_batch batch;
    int64_t width;                    /* elements of a sample */
    float *seen;                      /* [epochs, samples]: how often each was asked for */
    struct pl_queue *asked;
    struct made_up_asked ring[MADE_UP_ASKED];
    int next;
};

static inline pl_status made_up_feed(void *arg)
{
    struct made_up *m = arg;
    m->asked = m->asked ? m->asked : pl_queue_create(MADE_UP_ASKED);
    return PL_OK;
}

static inline pl_status made_up_ask(void *arg, int64_t epoch, int64_t first, int64_t rows)
{
    struct made_up *m = arg;
    struct made_up_asked *a = &m->ring[m->next++ % MADE_UP_ASKED];
    if (epoch >= m->epochs)
        return pl_error(PL_ERR_DATA, "test", "epoch %lld was asked for", (long long)epoch);
    *a = (struct made_up_asked){epoch, first, rows};
    for (int64_t i = first; i < first + rows; i++)
        m->seen[epoch * m->samples + i]++;
    return pl_queue_put(m->asked, a);
}

static inline pl_status made_up_next(void *arg, struct pl_batch **out)
{
    struct made_up *m = arg;
    void *item = NULL;
    if (m->asked && pl_queue_get(m->asked, 60000, &item) != PL_OK)
        return pl_error(PL_ERR_DATA, "test", "nothing was asked for");
    m->fill(m, item);
    *out = &m->batch;
    return PL_OK;
}

static inline void made_up_release(void *arg, struct pl_batch *b) { (void)arg, (void)b; }
static inline pl_status made_up_deal(void *arg, int64_t global, int rank, int ranks, int64_t epoch, int64_t position)
{
    (void)arg, (void)global, (void)rank, (void)ranks, (void)epoch, (void)position;
    return PL_OK;
}

/* A batch for the trainer's graph; the width of a sample is returned. */
static inline int64_t made_up_batch(const struct pl_trainer *t, struct pl_batch *b)
{
    int64_t width = 1;
    for (int d = 0; d < t->job->input.dims; d++)
        width *= t->job->input.dim[d];
    *b = (struct pl_batch){.capacity = t->batch};
    b->data = pl_alloc((size_t)(t->batch * width) * sizeof(float), "test");
    b->label = pl_alloc((size_t)t->batch * sizeof(int32_t), "test");
    b->index = pl_alloc((size_t)t->batch * sizeof(int64_t), "test");
    return width;
}

static inline void made_up_free_batch(struct pl_batch *b)
{
    pl_free(b->data);
    pl_free(b->label);
    pl_free(b->index);
}

/* So many random samples, of ten classes. */
static inline void made_up_noise(struct made_up *m, struct pl_rng r, int64_t rows)
{
    m->batch.rows = rows;
    memset(m->batch.data, 0, (size_t)(m->batch.capacity * m->width) * sizeof(float));
    pl_rng_normals(&r, m->batch.data, rows * m->width);
    for (int64_t i = 0; i < m->batch.capacity; i++)
        ((int32_t *)m->batch.label)[i] = (int32_t)pl_rng_below(&r, 10);
}

static inline void made_up_end_on(pl_status s, const char *how)
{
    if (s == PL_OK)
        return;
    fprintf(stderr, "%s: %s\n", how, pl_error_text());
    exit(1);
}

/* The trainer of a job, which is the made-up set's from now on: ready for its first step. how: for messages. */
static inline void made_up_open(struct made_up *m, struct pl_world *w, struct pl_job *job, const char *how)
{
    m->job = job;
    made_up_end_on(pl_trainer_open(&m->t, w, job, true), how);
    m->width = made_up_batch(&m->t, &m->batch);
    m->seen = pl_alloc((size_t)(m->epochs * m->samples + 1) * sizeof *m->seen, "test");
    m->t.source = (struct pl_source){.deal = made_up_deal, .next = made_up_next, .release = made_up_release, .feed = made_up_feed,
                                     .ask = made_up_ask, .arg = m, .epoch_samples = m->epochs > 0 ? m->samples : INT64_MAX};
    pl_graph_init(m->t.graph, 1);
    made_up_end_on(pl_trainer_deal(&m->t, w->rank, w->ranks), how);
}

/* The job of models/MODEL.yaml with these keys. */
static inline struct pl_job *made_up_job(const char *model, int keys, char *const *key)
{
    struct pl_job *job;
    char *path = pl_strdupf("%s/models/%s.yaml", getenv("PL_SOURCE_DIR"), model);
    made_up_end_on(pl_job_read(path, keys, key, &job), path);
    pl_free(path);
    return job;
}

/* One step; what is wrong ends all ranks. */
static inline void made_up_step(struct made_up *m, struct pl_step_result *r)
{
    pl_status s = pl_trainer_step(&m->t, r);
    if (s < 0)
        pl_world_abort(m->t.world, s);
}

static inline void made_up_close(struct made_up *m)
{
    pl_queue_destroy(m->asked);
    made_up_free_batch(&m->batch);
    pl_free(m->seen);
    pl_trainer_close(&m->t);
    pl_job_destroy(m->job);
}

#endif
