/* A backend whose memory is far, for tests: plans of `reference`, over memory that the host can touch only while one of
 * them runs or a copy is made. Whoever takes one for the other faults. */
#ifndef FAR_H
#define FAR_H

#include "backend/backend.h"

#include <assert.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { FAR_BLOCKS = 4096 };
static struct { void *at; size_t bytes; } far_block[FAR_BLOCKS];
static int far_blocks, far_copies;
static const struct pl_backend_table *far_on;

static void far_open_up(bool open)
{
    for (int i = 0; i < far_blocks; i++)
        if (far_block[i].at)
            mprotect(far_block[i].at, far_block[i].bytes, open ? PROT_READ | PROT_WRITE : PROT_NONE);
}

static pl_status far_open(const struct pl_device_options *o, struct pl_backend **out) { return far_on->open(o, out); }
static void far_close(struct pl_backend *b) { far_on->close(b); }
static void far_describe(struct pl_backend *b, char *text, size_t bytes) { far_on->describe(b, text, bytes); }

static void *far_alloc(struct pl_backend *b, size_t bytes, const char *what)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = (bytes + page - 1) / page * page + page;
    void *at = mmap(NULL, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    (void)b, (void)what;
    assert(at != MAP_FAILED && far_blocks < FAR_BLOCKS);
    far_block[far_blocks].at = at;
    far_block[far_blocks++].bytes = whole;
    return at;
}

static void far_free(struct pl_backend *b, void *p)
{
    (void)b;
    for (int i = 0; i < far_blocks; i++)
        if (far_block[i].at == p) {
            munmap(p, far_block[i].bytes);
            far_block[i] = far_block[--far_blocks];
            return;
        }
    assert(!"freed what is not far");
}

static pl_status far_copy(struct pl_backend *b, void *to, const void *from, size_t bytes)
{
    (void)b;
    far_open_up(true);
    memcpy(to, from, bytes);
    far_open_up(false);
    return PL_OK;
}

/* Made when it is asked after for the second time, or waited for: from memory as it is then. Nothing writes a part of the
 * gradient after it is final. */
static struct { void *host; const void *far; size_t bytes; int asked; } far_ticket[64];

static pl_status far_fetch(struct pl_backend *b, void *host, const void *far, size_t bytes, uint64_t *ticket)
{
    (void)b;
    *ticket = (uint64_t)++far_copies;
    far_ticket[*ticket % 64].host = host;
    far_ticket[*ticket % 64].far = far;
    far_ticket[*ticket % 64].bytes = bytes;
    far_ticket[*ticket % 64].asked = 0;
    return PL_OK;
}

static pl_status far_fetched(struct pl_backend *b, uint64_t ticket, bool wait, bool *done)
{
    *done = wait || ++far_ticket[ticket % 64].asked > 1;
    return *done ? far_copy(b, far_ticket[ticket % 64].host, far_ticket[ticket % 64].far, far_ticket[ticket % 64].bytes) : PL_OK;
}

static pl_status far_finish(struct pl_backend *b) { return far_on->finish(b); }
static pl_status far_plan(struct pl_backend *b, const struct pl_op *op, struct pl_plan **out) { return far_on->plan(b, op, out); }
static void far_plan_destroy(struct pl_plan *p) { far_on->plan_destroy(p); }

static pl_status far_forward(struct pl_plan *p, const struct pl_io *io)
{
    far_open_up(true);
    pl_status s = far_on->forward(p, io);
    far_open_up(false);
    return s;
}

static pl_status far_backward(struct pl_plan *p, const struct pl_io *io)
{
    far_open_up(true);
    pl_status s = far_on->backward(p, io);
    far_open_up(false);
    return s;
}

static const struct pl_backend_table far_table = {
    .name = "far", .far = true, .open = far_open, .close = far_close, .describe = far_describe, .alloc = far_alloc, .free = far_free,
    .upload = far_copy, .download = far_copy, .finish = far_finish, .fetch = far_fetch, .fetched = far_fetched, .plan = far_plan,
    .plan_destroy = far_plan_destroy, .forward = far_forward, .backward = far_backward};

/* By name; "far" lies over `reference`. */
static const struct pl_backend_table *find_backend(const char *name)
{
    far_on = pl_backend_find("reference");
    return strcmp(name, "far") == 0 ? &far_table : pl_backend_find(name);
}

#endif
