/* Stands in for backend/cuda/reduce.c: sums over the ranks of this machine through a file in memory, in the order of the ranks.
 * They are made when they are asked for, piece by piece, and never at the first question. */
#include "backend/cuda/cuda.h"
#include "emulated.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { RANKS = 16, PIECE = 4096, QUEUE = 512 };

struct meeting {
    _Atomic uint64_t wrote[RANKS], read[RANKS]; /* pieces */
    float piece[RANKS][PIECE];
};

struct pl_reducer {
    struct pl_cuda_device *device;
    struct meeting *meeting;
    int rank, ranks;
    double timeout_ms;
    struct { float *v; int64_t n; } sum[QUEUE];
    int sums, next;   /* those before next are made */
    int64_t at;       /* of the next one's elements */
    uint64_t pieces;  /* that are read */
    bool written, asked;
};

pl_status pl_cuda_reducer_id(struct pl_reducer *r, void *id)
{
    (void)r;
    snprintf(id, PL_REDUCER_ID_BYTES, "/dev/shm/paceline-emulated-%d-%.0f", (int)getpid(), pl_now_ms() * 1000);
    return PL_OK;
}

static bool all_have(const struct pl_reducer *r, const _Atomic uint64_t *count, uint64_t least)
{
    for (int k = 0; k < r->ranks; k++)
        if (atomic_load(&count[k]) < least)
            return false;
    return true;
}

/* All of them have it open when this returns, and nobody can find it any more. */
static pl_status meet(struct pl_reducer *r, const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    void *memory = fd >= 0 && ftruncate(fd, sizeof *r->meeting) == 0 ? mmap(NULL, sizeof *r->meeting, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    if (fd >= 0)
        close(fd);
    if (memory == MAP_FAILED)
        return pl_error(PL_ERR_PEER, "transport nccl", "%s: no memory to emulate it in", path);
    r->meeting = memory;
    atomic_store(&r->meeting->wrote[r->rank], 1);
    for (double end = pl_now_ms() + r->timeout_ms; !all_have(r, r->meeting->wrote, 1) && pl_now_ms() < end;)
        pl_sleep_ms(0.1);
    unlink(path);
    return all_have(r, r->meeting->wrote, 1) ? PL_OK : pl_error(PL_ERR_PEER, "transport nccl", "waited %.0f s for the other ranks", r->timeout_ms / 1000);
}

pl_status pl_cuda_reducer_open(struct pl_backend *b, double timeout_ms, struct pl_reducer **out)
{
    struct pl_reducer *r = *out = pl_alloc(sizeof *r, "an emulated NCCL");
    if (!r)
        return PL_ERR_MEMORY;
    *r = (struct pl_reducer){.device = b->device, .timeout_ms = timeout_ms, .pieces = 1};
    return PL_OK;
}

pl_status pl_cuda_reducer_join(struct pl_reducer *r, const void *id, int rank, int ranks)
{
    if (ranks > RANKS)
        return pl_error(PL_ERR_PEER, "transport nccl", "%d ranks: the emulation has room for %d", ranks, RANKS);
    r->rank = rank;
    r->ranks = ranks;
    return meet(r, id);
}

void pl_cuda_reducer_describe(const struct pl_reducer *r, char *text, size_t bytes)
{
    (void)r;
    pl_cuda_nccl_describe(text, bytes);
}

pl_status pl_cuda_reduce(struct pl_reducer *r, float *v, int64_t n)
{
    if (r->next == r->sums)
        r->next = r->sums = 0;
    if (r->sums == QUEUE)
        return pl_error(PL_ERR_PEER, "transport nccl", "more than %d sums under way", QUEUE);
    r->sum[r->sums].v = v;
    r->sum[r->sums++].n = n;
    r->asked = false;
    return PL_OK;
}

/* false: others come first. */
static bool move_piece(struct pl_reducer *r)
{
    struct meeting *m = r->meeting;
    float sum[PIECE] = {0}, *v = r->sum[r->next].v + r->at;
    int64_t left = r->sum[r->next].n - r->at, n = left < PIECE ? left : PIECE;
    size_t bytes = (size_t)n * sizeof *sum;
    if (!r->written) {
        if (!all_have(r, m->read, r->pieces - 1) || pl_cuda_download(r->device, m->piece[r->rank], v, bytes) < 0)
            return false;
        atomic_store(&m->wrote[r->rank], r->pieces + 1);
        r->written = true;
    }
    if (!all_have(r, m->wrote, r->pieces + 1))
        return false;
    for (int k = 0; k < r->ranks; k++)
        for (int64_t i = 0; i < n; i++)
            sum[i] += m->piece[k][i];
    if (pl_cuda_upload(r->device, v, sum, bytes) < 0)
        return false;
    atomic_store(&m->read[r->rank], r->pieces++);
    r->written = false;
    r->at += n;
    if (r->at == r->sum[r->next].n) {
        r->next++;
        r->at = 0;
    }
    return true;
}

pl_status pl_cuda_reduced(struct pl_reducer *r, bool *done)
{
    while (r->asked && r->next < r->sums && move_piece(r))
        ;
    r->asked = true;
    *done = r->next == r->sums;
    return PL_OK;
}

void pl_cuda_reducer_close(struct pl_reducer *r)
{
    if (r && r->meeting)
        munmap(r->meeting, sizeof *r->meeting);
    pl_free(r);
}

void pl_cuda_nccl_describe(char *text, size_t bytes) { snprintf(text, bytes, "an emulated NCCL"); }
