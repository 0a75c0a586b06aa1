/* A pool for our own loops. The partition of a loop depends on its length, its grain and the number
 * of threads alone, so results have the same bits in every run. Workers sleep between loops. */
#include "base/base.h"

#define MAX_WORKERS 255

typedef void body_fn(void *arg, int64_t begin, int64_t end);

static struct {
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t work, idle;
    pthread_t thread[MAX_WORKERS];
    int workers, parts, busy;
    uint64_t round;
    bool stop;
    int64_t n;
    body_fn *body;
    void *arg;
    pl_pool_run *elsewhere; /* main thread only, as starts */
    int starts;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .work = PTHREAD_COND_INITIALIZER, .idle = PTHREAD_COND_INITIALIZER};

static void run_part(body_fn *body, void *arg, int64_t n, int parts, int part)
{
    int64_t begin = n / parts * part + (part < n % parts ? part : n % parts);
    int64_t end = begin + n / parts + (part < n % parts ? 1 : 0);
    if (begin < end)
        body(arg, begin, end);
}

static void *worker(void *index)
{
    int part = (int)(intptr_t)index + 1;
    uint64_t seen = 0;
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        while (!pool.stop && pool.round == seen)
            pthread_cond_wait(&pool.work, &pool.lock);
        if (pool.stop)
            break;
        seen = pool.round;
        if (part < pool.parts) {
            pthread_mutex_unlock(&pool.lock);
            run_part(pool.body, pool.arg, pool.n, pool.parts, part);
            pthread_mutex_lock(&pool.lock);
        }
        if (--pool.busy == 0)
            pthread_cond_signal(&pool.idle);
    }
    pthread_mutex_unlock(&pool.lock);
    return NULL;
}

pl_status pl_pool_start(int threads)
{
    int workers = threads - 1 < MAX_WORKERS ? threads - 1 : MAX_WORKERS;
    if (pool.starts > 0 && workers != pool.workers)
        return pl_error(PL_ERR_USAGE, "train", "%d compute threads, but this process computes with %d already\ngive both jobs as many by train.threads", threads, pool.workers + 1);
    if (pool.starts++ > 0)
        return PL_OK;
    pool.stop = false;
    pool.round = 0;
    for (pool.workers = 0; pool.workers < workers; pool.workers++) {
        pl_status s = pl_thread_start(&pool.thread[pool.workers], "pool", worker, (void *)(intptr_t)pool.workers);
        if (s < 0) {
            pl_pool_stop();
            return s;
        }
    }
    return PL_OK;
}

void pl_pool_stop(void)
{
    if (pool.starts == 0 || --pool.starts > 0)
        return;
    pthread_mutex_lock(&pool.lock);
    pool.stop = true;
    pthread_cond_broadcast(&pool.work);
    pthread_mutex_unlock(&pool.lock);
    for (int i = 0; i < pool.workers; i++)
        pthread_join(pool.thread[i], NULL);
    pool.workers = 0;
    pool.elsewhere = NULL;
}

int pl_pool_threads(void) { return pool.workers + 1; }

void pl_pool_delegate(pl_pool_run *run) { pool.elsewhere = run; }

struct loop { body_fn *body; void *arg; int64_t n; int parts; };

static void run_elsewhere(void *arg, int i)
{
    const struct loop *l = arg;
    run_part(l->body, l->arg, l->n, l->parts, i);
}

void pl_parallel_for(int64_t n, int64_t grain, body_fn *body, void *arg)
{
    int64_t most = grain > 0 ? n / grain : n;
    int parts = most < pool.workers + 1 ? (int)most : pool.workers + 1;
    if (parts <= 1) {
        if (n > 0)
            body(arg, 0, n);
        return;
    }
    if (pool.elsewhere) {
        pool.elsewhere(pool.workers + 1, parts, run_elsewhere, &(struct loop){body, arg, n, parts});
        return;
    }
    pthread_mutex_lock(&pool.lock);
    pool.n = n;
    pool.parts = parts;
    pool.body = body;
    pool.arg = arg;
    pool.busy = pool.workers;
    pool.round++;
    pthread_cond_broadcast(&pool.work);
    pthread_mutex_unlock(&pool.lock);
    run_part(body, arg, n, parts, 0);
    pthread_mutex_lock(&pool.lock);
    while (pool.busy > 0)
        pthread_cond_wait(&pool.idle, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
}
