/* What the threads of this process do, when: kept in memory until somebody takes it away, as many as there is room for; what comes
 * beyond is counted. Where nobody asked for it, a question to a flag. */
#include "base/base.h"

#include <string.h>

enum { ROOM = 1 << 15 };

static _Atomic bool on;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards all below */
static struct pl_trace_event *events;
static int taken, threads;
static char thread_name[PL_TRACE_THREADS][16];
static int64_t left_out;
static _Thread_local int mine = -1;

pl_status pl_trace_start(void)
{
    struct pl_trace_event *memory = pl_alloc(ROOM * sizeof *memory, "the timeline");
    if (!memory)
        return PL_ERR_MEMORY;
    pthread_mutex_lock(&lock);
    pl_free(events);
    events = memory;
    taken = 0;
    left_out = 0;
    pthread_mutex_unlock(&lock);
    atomic_store(&on, true);
    return PL_OK;
}

void pl_trace_stop(void)
{
    atomic_store(&on, false);
    pthread_mutex_lock(&lock);
    pl_free(events);
    events = NULL;
    taken = 0;
    pthread_mutex_unlock(&lock);
}

double pl_trace_begin(void) { return atomic_load_explicit(&on, memory_order_relaxed) ? pl_now_ms() : 0; }

/* Under the lock. Threads beyond the last number share it. */
static int thread_of_caller(void)
{
    if (mine >= 0)
        return mine;
    mine = threads < PL_TRACE_THREADS ? threads++ : PL_TRACE_THREADS - 1;
    pthread_getname_np(pthread_self(), thread_name[mine], sizeof thread_name[mine]);
    return mine;
}

static void add(struct pl_trace_event e)
{
    if (e.begin_ms == 0)
        return;
    e.end_ms = pl_now_ms();
    pthread_mutex_lock(&lock);
    e.thread = thread_of_caller();
    if (events && taken < ROOM)
        events[taken++] = e;
    else
        left_out += events != NULL;
    pthread_mutex_unlock(&lock);
}

void pl_trace_end(double begin_ms, const char *what, const char *name, int64_t number)
{
    add((struct pl_trace_event){.what = what, .name = name, .number = number, .begin_ms = begin_ms});
}

void pl_trace_end_beside(double begin_ms, const char *what, const char *name, int64_t number)
{
    add((struct pl_trace_event){.what = what, .name = name, .number = number, .begin_ms = begin_ms, .beside = true});
}

int pl_trace_take(struct pl_trace_event *out, int most, int64_t *missing)
{
    pthread_mutex_lock(&lock);
    int n = taken < most ? taken : most;
    if (n > 0)
        memcpy(out, events, (size_t)n * sizeof *out);
    taken -= n;
    if (taken > 0)
        memmove(events, events + n, (size_t)taken * sizeof *events);
    *missing = left_out;
    left_out = 0;
    pthread_mutex_unlock(&lock);
    return n;
}

const char *pl_trace_thread(int thread) { return thread_name[thread]; }
