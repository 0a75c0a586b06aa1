/* Threads that decode the rows of a batch beside the loader's own. Which of them takes a row is left to
 * chance; what comes of it is not, for rows do not depend on each other. They sleep between batches. */
#include "data/dataset.h"

struct pl_team {
    pthread_mutex_t lock; /* guards all below but next */
    pthread_cond_t work, idle;
    int helpers, started, busy;
    uint64_t round;
    bool stop;
    pl_team_body *body;
    void *arg;
    int64_t n;
    _Atomic int64_t next;
    pthread_t thread[];
};

static void take_items(struct pl_team *t, int worker)
{
    for (int64_t i; (i = atomic_fetch_add(&t->next, 1)) < t->n;)
        t->body(t->arg, worker, i);
}

static void *help(void *arg)
{
    struct pl_team *t = arg;
    uint64_t seen = 0;
    pthread_mutex_lock(&t->lock);
    int worker = ++t->started;
    for (;;) {
        while (!t->stop && t->round == seen)
            pthread_cond_wait(&t->work, &t->lock);
        if (t->stop)
            break;
        seen = t->round;
        pthread_mutex_unlock(&t->lock);
        take_items(t, worker);
        pthread_mutex_lock(&t->lock);
        if (--t->busy == 0)
            pthread_cond_signal(&t->idle);
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

pl_status pl_team_create(int threads, struct pl_team **out)
{
    struct pl_team *t = pl_alloc(sizeof *t + (size_t)threads * sizeof *t->thread, "decoding threads");
    if (!t)
        return PL_ERR_MEMORY;
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->work, NULL);
    pthread_cond_init(&t->idle, NULL);
    pl_status s = PL_OK;
    while (s == PL_OK && t->helpers < threads - 1) {
        s = pl_thread_start(&t->thread[t->helpers], "decoder", help, t);
        t->helpers += s == PL_OK;
    }
    if (s < 0)
        pl_team_destroy(t);
    else
        *out = t;
    return s;
}

void pl_team_destroy(struct pl_team *t)
{
    if (!t)
        return;
    pthread_mutex_lock(&t->lock);
    t->stop = true;
    pthread_cond_broadcast(&t->work);
    pthread_mutex_unlock(&t->lock);
    for (int i = 0; i < t->helpers; i++)
        pthread_join(t->thread[i], NULL);
    pthread_mutex_destroy(&t->lock);
    pthread_cond_destroy(&t->work);
    pthread_cond_destroy(&t->idle);
    pl_free(t);
}

void pl_team_run(struct pl_team *t, int64_t n, pl_team_body *body, void *arg)
{
    if (t->helpers == 0 || n < 2) {
        for (int64_t i = 0; i < n; i++)
            body(arg, 0, i);
        return;
    }
    pthread_mutex_lock(&t->lock);
    t->body = body;
    t->arg = arg;
    t->n = n;
    atomic_store(&t->next, 0);
    t->busy = t->helpers;
    t->round++;
    pthread_cond_broadcast(&t->work);
    pthread_mutex_unlock(&t->lock);
    take_items(t, 0);
    pthread_mutex_lock(&t->lock);
    while (t->busy > 0)
        pthread_cond_wait(&t->idle, &t->lock);
    pthread_mutex_unlock(&t->lock);
}
