/* Stands in for backend/cuda/runtime.c: a device whose memory is the host's, but mapped such that nobody can touch it except
 * while a kernel, a product or a copy runs. Each allocation ends at the end of a page, with a page behind it that nobody
 * can touch at all. */
#include "backend/cuda/cuda.h"
#include "emulated.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct block { char *map, *at; size_t map_bytes, bytes; bool is_new; struct block *next; }; /* is_new: a device might still be zeroing it */

struct pl_cuda_device { struct pl_cuda_ledger *ledger; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards what follows */
static struct block *blocks;
static int inside; /* enters without a leave */
int pl_emulated_moves;

static void protect(const struct block *b, int how)
{
    if (mprotect(b->map, b->map_bytes, how) != 0)
        abort();
}

void pl_emulated_enter(void)
{
    pthread_mutex_lock(&lock);
    for (struct block *b = inside == 0 ? blocks : NULL; b; b = b->next)
        protect(b, PROT_READ | PROT_WRITE);
    inside++;
    pthread_mutex_unlock(&lock);
}

void pl_emulated_leave(void)
{
    pthread_mutex_lock(&lock);
    inside--;
    for (struct block *b = inside == 0 ? blocks : NULL; b; b = b->next)
        protect(b, PROT_NONE);
    pthread_mutex_unlock(&lock);
}

/* Whether [p, p + bytes) lies in one allocation */
static bool is_far(const void *p, size_t bytes)
{
    bool found = false;
    pthread_mutex_lock(&lock);
    for (struct block *b = blocks; b && !found; b = b->next)
        found = (const char *)p >= b->at && (const char *)p + bytes <= b->at + b->bytes;
    pthread_mutex_unlock(&lock);
    return found;
}

void pl_emulated_check(const void *p)
{
    if (p && !is_far(p, 1)) {
        fprintf(stderr, "a kernel was given %p, which is not device memory\n", p);
        abort();
    }
}

pl_status pl_cuda_device_open(const struct pl_device_options *o, struct pl_cuda_device **out, pl_cuda_stream *stream)
{
    *stream = NULL;
    *out = pl_alloc(sizeof **out, "an emulated device");
    return *out ? pl_cuda_ledger_create(o->memory_limit, &(*out)->ledger) : PL_ERR_MEMORY;
}

void pl_cuda_device_close(struct pl_cuda_device *d)
{
    if (getenv("PL_EMULATED_PINNED"))
        fprintf(stderr, "emulated device: %d moves of what came ahead\n", pl_emulated_moves);
    if (d)
        pl_cuda_ledger_destroy(d->ledger);
    pl_free(d);
}

void pl_cuda_device_describe(const struct pl_cuda_device *d, char *text, size_t bytes)
{
    (void)d;
    snprintf(text, bytes, "cuda, emulated on the host, for checking");
}

void *pl_cuda_alloc(struct pl_cuda_device *d, size_t bytes, const char *what)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (bytes + 15) / 16 * 16, pages = (room + page - 1) / page * page;
    if (pl_cuda_ledger_ask(d->ledger, bytes, what) < 0)
        return NULL;
    struct block *b = malloc(sizeof *b);
    char *map = mmap(NULL, pages + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!b || map == MAP_FAILED) {
        free(b);
        pl_error(PL_ERR_MEMORY, "backend", "no %zu bytes of emulated device memory for %s", bytes, what);
        return NULL;
    }
    pthread_mutex_lock(&lock);
    *b = (struct block){.map = map, .at = map + pages - room, .map_bytes = pages, .bytes = room, .is_new = true, .next = blocks};
    blocks = b;
    if (inside)
        protect(b, PROT_READ | PROT_WRITE);
    pthread_mutex_unlock(&lock);
    if (pl_cuda_ledger_enter(d->ledger, b->at, bytes) < 0)
        abort();
    return b->at;
}

pl_status pl_cuda_fill(struct pl_cuda_device *d, void *p, int byte, size_t bytes)
{
    (void)d;
    pl_emulated_enter();
    memset(p, byte, bytes);
    pl_emulated_leave();
    return PL_OK;
}

size_t pl_cuda_memory_bytes(const struct pl_cuda_device *d) { (void)d; return (size_t)1 << 30; }

void pl_cuda_free(struct pl_cuda_device *d, void *p)
{
    if (!p)
        return;
    pl_cuda_ledger_strike(d->ledger, p);
    pthread_mutex_lock(&lock);
    struct block **at = &blocks, *b;
    while (*at && (*at)->at != (char *)p)
        at = &(*at)->next;
    b = *at;
    if (!b)
        abort(); /* not of pl_cuda_alloc, or freed before */
    *at = b->next;
    pthread_mutex_unlock(&lock);
    munmap(b->map, b->map_bytes + (size_t)sysconf(_SC_PAGESIZE));
    free(b);
}

static pl_status copy(const void *far, size_t bytes, void *to, const void *from)
{
    if (pl_emulated_records()) {
        fprintf(stderr, "a copy between host and device while a pass is recorded\n");
        abort();
    }
    if (bytes && !is_far(far, bytes))
        return pl_error(PL_ERR_MEMORY, "backend", "a copy of %zu bytes leaves the emulated device memory", bytes);
    pl_emulated_enter();
    if (bytes)
        memcpy(to, from, bytes);
    pl_emulated_leave();
    return PL_OK;
}

pl_status pl_cuda_upload(struct pl_cuda_device *d, void *far, const void *host, size_t bytes)
{
    (void)d;
    return copy(far, bytes, far, host);
}

pl_status pl_cuda_download(struct pl_cuda_device *d, void *host, const void *far, size_t bytes)
{
    (void)d;
    return copy(far, bytes, host, far);
}

/* A copy is made when it is waited for, or asked after for the second time. */
enum { FETCHES = 64 };
static struct { void *host; const void *far; size_t bytes; int asked; } fetched[FETCHES];
static uint64_t fetches;

pl_status pl_cuda_fetch(struct pl_cuda_device *d, void *host, const void *far, size_t bytes, uint64_t *ticket)
{
    (void)d;
    *ticket = ++fetches;
    fetched[fetches % FETCHES].host = host;
    fetched[fetches % FETCHES].far = far;
    fetched[fetches % FETCHES].bytes = bytes;
    fetched[fetches % FETCHES].asked = 0;
    return PL_OK;
}

pl_status pl_cuda_fetched(struct pl_cuda_device *d, uint64_t ticket, bool wait, bool *done)
{
    uint64_t i = ticket % FETCHES;
    *done = wait || ++fetched[i].asked > 1;
    return *done ? pl_cuda_download(d, fetched[i].host, fetched[i].far, fetched[i].bytes) : PL_OK;
}

/* Copies ahead are made when they are waited for. One that could overwrite what is still to be read, or be overwritten, ends the
 * program, as one from memory that is not pinned does where PL_EMULATED_PINNED is set. */
enum { AHEAD = 32, PINNED = 64 };
static struct { void *far; const void *host; size_t bytes; } ahead[AHEAD];
static struct { const char *host; size_t bytes; } pinned[PINNED];
static int aheads;
static bool not_taken;

static bool is_pinned(const char *host, size_t bytes)
{
    for (int i = 0; i < PINNED; i++)
        if (pinned[i].host && host >= pinned[i].host && host + bytes <= pinned[i].host + pinned[i].bytes)
            return true;
    return false;
}

static bool is_new(const void *far)
{
    bool found = false;
    pthread_mutex_lock(&lock);
    for (struct block *b = blocks; b && !found; b = b->next)
        found = b->is_new && (const char *)far >= b->at && (const char *)far < b->at + b->bytes;
    pthread_mutex_unlock(&lock);
    return found;
}

pl_status pl_cuda_ahead(struct pl_cuda_device *d, void *far, const void *host, size_t bytes)
{
    const char *wrong = not_taken ? "to where something is still to be taken" : aheads == AHEAD ? "that nobody waits for" : is_new(far) ? "to memory that may not be zeroed yet" :
                        getenv("PL_EMULATED_PINNED") && !is_pinned(host, bytes) ? "from memory that is not pinned" : NULL;
    (void)d;
    if (wrong) {
        fprintf(stderr, "a copy ahead %s\n", wrong);
        abort();
    }
    ahead[aheads].far = far;
    ahead[aheads].host = host;
    ahead[aheads++].bytes = bytes;
    return PL_OK;
}

pl_status pl_cuda_ahead_wait(struct pl_cuda_device *d)
{
    pl_status s = PL_OK;
    not_taken = not_taken || aheads > 0;
    for (int i = 0; i < aheads && s == PL_OK; i++)
        s = pl_cuda_upload(d, ahead[i].far, ahead[i].host, ahead[i].bytes);
    aheads = 0;
    return s;
}

pl_status pl_cuda_ahead_taken(struct pl_cuda_device *d)
{
    (void)d;
    not_taken = false;
    pthread_mutex_lock(&lock);
    for (struct block *b = blocks; b; b = b->next)
        b->is_new = false;
    pthread_mutex_unlock(&lock);
    return PL_OK;
}

pl_status pl_cuda_duplicate(struct pl_cuda_device *d, void *to, const void *from, size_t bytes)
{
    if (bytes && !is_far(from, bytes))
        return pl_error(PL_ERR_MEMORY, "backend", "a copy of %zu bytes from what is not emulated device memory", bytes);
    pl_emulated_moves++;
    return pl_cuda_upload(d, to, from, bytes);
}

void pl_cuda_pin(struct pl_cuda_device *d, void *host, size_t bytes)
{
    (void)d;
    for (int i = 0; i < PINNED; i++)
        if (!pinned[i].host) {
            pinned[i].host = host;
            pinned[i].bytes = bytes;
            return;
        }
}

void pl_cuda_unpin(struct pl_cuda_device *d, void *host)
{
    (void)d;
    for (int i = 0; i < PINNED; i++)
        if (pinned[i].host == host)
            pinned[i].host = NULL;
}

pl_status pl_cuda_record(struct pl_cuda_device *d, pl_status (*work)(void *arg), void *arg, struct pl_recording **out)
{
    (void)d;
    pl_emulated_record(true, NULL);
    pl_status s = work(arg);
    pl_emulated_record(false, out);
    return s;
}

pl_status pl_cuda_replay(struct pl_cuda_device *d, struct pl_recording *r)
{
    (void)d;
    pl_emulated_replay(r);
    return PL_OK;
}

void pl_cuda_recording_destroy(struct pl_cuda_device *d, struct pl_recording *r)
{
    (void)d;
    pl_emulated_forget(r);
}

pl_status pl_cuda_finish(struct pl_cuda_device *d) { (void)d; return PL_OK; }
pl_status pl_cuda_launched(struct pl_cuda_device *d, const char *what) { (void)d, (void)what; return PL_OK; }

pl_status pl_cuda_time(struct pl_cuda_device *d, pl_status (*work)(void *arg), void *arg, double *ms)
{
    double begin = pl_now_ms();
    (void)d;
    pl_status s = work(arg);
    *ms = pl_now_ms() - begin;
    return s;
}

/* For export.c */
void pl_cuda_devices_describe(char *text, size_t bytes) { snprintf(text, bytes, "device 0: emulated on the host, for checking"); }
int pl_cuda_toolkit_version(void) { return 0; }
int pl_cuda_blas_version(void) { return 0; }
int pl_cuda_dnn_version(void) { return 0; }
