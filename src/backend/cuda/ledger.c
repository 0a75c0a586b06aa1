/* ledger: what this process has allocated on its device, so that it asks for no more than device.memory_limit. */
#include "backend/cuda/cuda.h"

#include <pthread.h>

struct entry { void *p; size_t bytes; };

struct pl_cuda_ledger {
    pthread_mutex_t lock;
    double limit; /* bytes; 0: none */
    struct entry *entry;
    size_t entries, room;
    double held;
};

pl_status pl_cuda_ledger_create(double limit, struct pl_cuda_ledger **out)
{
    struct pl_cuda_ledger *l = *out = pl_alloc(sizeof *l, "a device's ledger");
    if (!l)
        return PL_ERR_MEMORY;
    pthread_mutex_init(&l->lock, NULL);
    l->limit = limit;
    return PL_OK;
}

void pl_cuda_ledger_destroy(struct pl_cuda_ledger *l)
{
    if (!l)
        return;
    pthread_mutex_destroy(&l->lock);
    pl_free(l->entry);
    pl_free(l);
}

double pl_cuda_ledger_limit(const struct pl_cuda_ledger *l) { return l->limit; }

static pl_status make_room(struct pl_cuda_ledger *l)
{
    if (l->entries < l->room)
        return PL_OK;
    size_t room = l->room > 0 ? 2 * l->room : 256;
    struct entry *e = pl_realloc(l->entry, l->room * sizeof *e, room * sizeof *e, "a device's ledger");
    if (!e)
        return PL_ERR_MEMORY;
    l->entry = e;
    l->room = room;
    return PL_OK;
}

pl_status pl_cuda_ledger_ask(struct pl_cuda_ledger *l, size_t bytes, const char *what)
{
    pthread_mutex_lock(&l->lock);
    double held = l->held;
    pthread_mutex_unlock(&l->lock);
    if (l->limit > 0 && held + (double)bytes > l->limit)
        return pl_error(PL_ERR_MEMORY, "device", "no %.1f MB for %s, after %.1f MB on the device: device.memory_limit gives a rank %.1f MB\n"
                                                 "a smaller train.batch needs less (train.accumulate keeps the batch of a step)",
                        (double)bytes / 1e6, what, held / 1e6, l->limit / 1e6);
    return PL_OK;
}

pl_status pl_cuda_ledger_enter(struct pl_cuda_ledger *l, void *p, size_t bytes)
{
    pthread_mutex_lock(&l->lock);
    pl_status s = make_room(l);
    if (s == PL_OK) {
        l->entry[l->entries++] = (struct entry){.p = p, .bytes = bytes};
        l->held += (double)bytes;
    }
    pthread_mutex_unlock(&l->lock);
    return s;
}

/* What was entered last is mostly the first to go. */
void pl_cuda_ledger_strike(struct pl_cuda_ledger *l, const void *p)
{
    pthread_mutex_lock(&l->lock);
    for (size_t i = l->entries; i-- > 0;)
        if (l->entry[i].p == p) {
            l->held -= (double)l->entry[i].bytes;
            l->entry[i] = l->entry[--l->entries];
            break;
        }
    pthread_mutex_unlock(&l->lock);
}
