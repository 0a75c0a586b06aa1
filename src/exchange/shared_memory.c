/* Memory that the ranks of one node share: a file without a name (memfd_create), which the others open
 * through /proc while its maker still holds it. Unlike a file in /dev/shm it leaves nothing behind however
 * the run ends, and containers do not limit it to 64 MB. Every rank reserves its own part, so that the pages
 * lie near it and that too little memory is known now, not by a SIGBUS later. */
#include "exchange/exchange_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* What the first rank tells the others. The token also stands in the memory: a process of the same number in
 * another container has other files. */
struct offer { int pid, fd, code; uint64_t token; };

static struct offer make(size_t bytes)
{
    struct offer o = {.pid = (int)getpid(), .code = 0};
    double now = pl_now_ms();
    o.token = pl_hash(pl_hash(PL_HASH_START, &now, sizeof now), &o.pid, sizeof o.pid);
    o.fd = memfd_create("paceline", MFD_CLOEXEC);
    if (o.fd < 0 || ftruncate(o.fd, (off_t)bytes) != 0 || pwrite(o.fd, &o.token, sizeof o.token, 0) != sizeof o.token)
        o.code = errno;
    return o;
}

static int reserve(int fd, const struct pl_extent own[PL_OWN_EXTENTS])
{
    for (int i = 0; i < PL_OWN_EXTENTS; i++) {
        int code = 0;
        do /* a signal interrupts it */
            code = own[i].bytes > 0 ? posix_fallocate(fd, (off_t)own[i].offset, (off_t)own[i].bytes) : 0;
        while (code == EINTR);
        if (code != 0)
            return code;
    }
    return 0;
}

/* Returns an errno, 0 for success. */
static int attach(const struct offer *o, size_t bytes, int ranks, const struct pl_extent own[PL_OWN_EXTENTS], void **out)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", o->pid, o->fd);
    if (pl_fault("exchange.shared", -1))
        return ENOSPC;
    if (!pl_memory_hold(bytes / (size_t)ranks)) /* posix_fallocate takes all there is */
        return ENOMEM;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        int code = errno;
        pl_memory_release(bytes / (size_t)ranks);
        return code;
    }
    int code = 0;
    uint64_t token = 0;
    if (pread(fd, &token, sizeof token, 0) != sizeof token || token != o->token)
        code = ENXIO;
    if (code == 0)
        code = reserve(fd, own);
    void *p = code == 0 ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : NULL;
    if (p == MAP_FAILED)
        code = errno;
    else
        *out = p;
    if (code != 0)
        pl_memory_release(bytes / (size_t)ranks);
    close(fd);
    return code;
}

/* The first rank's offer, on all ranks of the node. */
static pl_status hear(struct pl_world *w, const int *node, int ranks, struct offer *o)
{
    struct offer *all = pl_alloc((size_t)ranks * sizeof *all, "the offer of shared memory");
    PL_TRY(pl_world_agree(w, all ? PL_OK : PL_ERR_MEMORY));
    pl_status s = pl_world_allgather_among(w, node, ranks, o, sizeof *o, all);
    *o = all[0];
    pl_free(all);
    return s;
}

pl_status pl_exchange_map(struct pl_world *w, const int *node, int ranks, size_t bytes, const struct pl_extent own[PL_OWN_EXTENTS],
                          void **out, char *why, size_t why_bytes)
{
    struct offer o = {.fd = -1};
    *out = NULL;
    if (w->rank == node[0])
        o = make(bytes);
    int mine = o.fd;
    PL_TRY(hear(w, node, ranks, &o));
    int code = o.code != 0 ? o.code : attach(&o, bytes, ranks, own, out), rank;
    PL_TRY(pl_world_first(w, code, &rank, &code));
    if (mine >= 0)
        close(mine);
    if (rank < 0)
        return PL_OK;
    pl_exchange_unmap(*out, bytes, ranks);
    snprintf(why, why_bytes, "no shared memory: rank %d cannot have %.1f MB: %s", pl_world_run_rank(w, rank), (double)bytes / 1e6, strerror(code));
    return PL_END;
}

void pl_exchange_unmap(void *memory, size_t bytes, int ranks)
{
    if (!memory)
        return;
    munmap(memory, bytes);
    pl_memory_release(bytes / (size_t)ranks);
}
