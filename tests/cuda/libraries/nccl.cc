/* NCCL: sums over the processes of this machine through a file in memory, in the order of the ranks, by calls that do not wait: what
 * needs the others is in progress until they are there. */
#include "device.h"

#include <atomic>
#include <cstdio>
#include <fcntl.h>
#include <memory>
#include <nccl.h>
#include <sys/mman.h>
#include <unistd.h>

namespace {

enum { RANKS = 16, PIECE = 4096 };

struct Meeting {
    std::atomic<int> joined;
    std::atomic<uint64_t> wrote[RANKS], read[RANKS]; /* pieces */
    float piece[RANKS][PIECE];
};

struct Comm {
    Meeting *meeting;
    int rank, ranks;
    bool in_progress = true, aborted = false;
    uint64_t pieces = 0;
};

bool all_have(const Comm &c, const std::atomic<uint64_t> *count, uint64_t least)
{
    for (int k = 0; k < c.ranks; k++)
        if (count[k] < least)
            return false;
    return true;
}

struct Sum {
    std::shared_ptr<Comm> comm;
    float *v;
    size_t n, at = 0;
    bool written = false;

    size_t now() const { return n - at < PIECE ? n - at : PIECE; }

    bool go_on()
    {
        Comm &c = *comm;
        Meeting &m = *c.meeting;
        while (at < n && !c.aborted) {
            if (!written) {
                if (!all_have(c, m.read, c.pieces))
                    return false;
                memcpy(m.piece[c.rank], v + at, now() * sizeof(float));
                written = true;
                m.wrote[c.rank] = c.pieces + 1;
            }
            if (!all_have(c, m.wrote, c.pieces + 1))
                return false;
            for (size_t i = 0; i < now(); i++) {
                float sum = 0;
                for (int k = 0; k < c.ranks; k++)
                    sum += m.piece[k][i];
                v[at + i] = sum;
            }
            m.read[c.rank] = ++c.pieces;
            at += now();
            written = false;
        }
        return true;
    }
};

std::shared_ptr<Comm> &of(ncclComm_t c) { return *(std::shared_ptr<Comm> *)c; }

} // namespace

extern "C" {

ncclResult_t ncclGetVersion(int *version) { return *version = NCCL_VERSION_CODE, ncclSuccess; }
const char *ncclGetErrorString(ncclResult_t e) { return e == ncclInvalidUsage ? "invalid usage" : "an error"; }
const char *ncclGetLastError(ncclComm_t) { return ""; }

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    if (pl_fake_fails("ncclGetUniqueId"))
        return ncclSystemError;
    static int made;
    snprintf(id->internal, sizeof id->internal, "/dev/shm/paceline-stand-in-%d-%d", (int)getpid(), made++);
    return ncclSuccess;
}

/* Ranks that share a device are refused. */
ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int ranks, ncclUniqueId id, int rank, ncclConfig_t *config)
{
    *out = nullptr;
    if (pl_fake_fails("ncclCommInitRankConfig"))
        return ncclSystemError;
    int devices = 0;
    cudaGetDeviceCount(&devices);
    if (ranks > RANKS || rank < 0 || rank >= ranks || config->blocking != 0 || ranks > devices)
        return ncclInvalidUsage;
    int fd = open(id.internal, O_RDWR | O_CREAT, 0600);
    void *memory = fd >= 0 && ftruncate(fd, sizeof(Meeting)) == 0 ? mmap(nullptr, sizeof(Meeting), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    if (fd >= 0)
        close(fd);
    if (memory == MAP_FAILED)
        return ncclSystemError;
    std::shared_ptr<Comm> c(new Comm);
    c->meeting = (Meeting *)memory;
    c->rank = rank;
    c->ranks = ranks;
    if (++c->meeting->joined == ranks)
        unlink(id.internal);
    *out = (ncclComm_t) new std::shared_ptr<Comm>(c);
    return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *e)
{
    Comm &c = *of(comm);
    if (c.in_progress && c.meeting->joined >= c.ranks)
        c.in_progress = false;
    *e = pl_fake_fails("ncclCommGetAsyncError") ? ncclRemoteError : c.in_progress ? ncclInProgress : ncclSuccess;
    return ncclSuccess;
}

ncclResult_t ncclAllReduce(const void *from, void *to, size_t n, ncclDataType_t type, ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream)
{
    std::shared_ptr<Comm> c = of(comm);
    if (pl_fake_fails("ncclAllReduce"))
        return ncclUnhandledCudaError;
    if (c->in_progress || from != to || type != ncclFloat || op != ncclSum)
        return ncclInvalidUsage;
    if (!pl_fake_far(to, n * sizeof(float)))
        pl_fake_wrong("ncclAllReduce", "memory that is not the device's, or too little of it");
    auto sum = std::make_shared<Sum>(Sum{c, (float *)to, n});
    if (!pl_fake_submit_until(stream, [sum] { return sum->go_on(); }))
        return ncclUnhandledCudaError;
    c->in_progress = true; /* until it is asked */
    return ncclInProgress;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) { return of(comm)->in_progress = true, ncclInProgress; }
ncclResult_t ncclCommDestroy(ncclComm_t comm) { return delete &of(comm), ncclSuccess; }

ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    of(comm)->aborted = true;
    return ncclCommDestroy(comm);
}
}
