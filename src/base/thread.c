/* Threads and a bounded queue that hands ownership over. */
#include "base/base.h"

#include <errno.h>
#include <string.h>
#include <time.h>

struct pl_queue {
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t not_full, not_empty;
    int capacity, head, count;
    bool closed;
    void *item[];
};

struct pl_queue *pl_queue_create(int capacity)
{
    struct pl_queue *q = pl_alloc(sizeof *q + (size_t)capacity * sizeof(void *), "a queue");
    if (!q)
        return NULL;
    q->capacity = capacity;
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->not_full, NULL);
    pthread_cond_init(&q->not_empty, NULL);
    return q;
}

void pl_queue_destroy(struct pl_queue *q)
{
    if (!q)
        return;
    pthread_mutex_destroy(&q->lock);
    pthread_cond_destroy(&q->not_full);
    pthread_cond_destroy(&q->not_empty);
    pl_free(q);
}

pl_status pl_queue_put(struct pl_queue *q, void *item)
{
    pthread_mutex_lock(&q->lock);
    while (!q->closed && q->count == q->capacity)
        pthread_cond_wait(&q->not_full, &q->lock);
    pl_status s = q->closed ? PL_END : PL_OK;
    if (s == PL_OK) {
        q->item[(q->head + q->count++) % q->capacity] = item;
        pthread_cond_signal(&q->not_empty);
    }
    pthread_mutex_unlock(&q->lock);
    return s;
}

pl_status pl_queue_get(struct pl_queue *q, double timeout_ms, void **item)
{
    struct timespec until;
    int rc = 0;
    *item = NULL;
    if (timeout_ms >= 0)
        pl_deadline(timeout_ms, &until);
    pthread_mutex_lock(&q->lock);
    while (!q->closed && q->count == 0 && rc != ETIMEDOUT)
        rc = timeout_ms < 0 ? pthread_cond_wait(&q->not_empty, &q->lock)
                            : pthread_cond_timedwait(&q->not_empty, &q->lock, &until);
    pl_status s = q->count > 0 ? PL_OK : PL_END;
    if (s == PL_OK) {
        *item = q->item[q->head];
        q->head = (q->head + 1) % q->capacity;
        q->count--;
        pthread_cond_signal(&q->not_full);
    }
    pthread_mutex_unlock(&q->lock);
    return s;
}

void pl_queue_close(struct pl_queue *q)
{
    pthread_mutex_lock(&q->lock);
    q->closed = true;
    pthread_cond_broadcast(&q->not_full);
    pthread_cond_broadcast(&q->not_empty);
    pthread_mutex_unlock(&q->lock);
}

pl_status pl_thread_start(pthread_t *t, const char *name, void *(*run)(void *), void *arg)
{
    int code = pthread_create(t, NULL, run, arg);
    if (code != 0)
        return pl_error(PL_ERR_MEMORY, "thread", "cannot start the %s thread: %s", name, strerror(code));
    pthread_setname_np(*t, name);
    return PL_OK;
}
