/* reduce: sums of gradients over ranks by NCCL, in the device's memory, on a stream of their own. The library is looked for when
 * it is asked for: the module also opens where there is none. Ranks that share a device cannot use it. */
#include "backend/cuda/cuda.h"

#include <dlfcn.h>
#include <string.h>

#ifdef PL_HAVE_NCCL
#include <nccl.h>

#define LIBRARY "libnccl.so.2"
#define FUNCTIONS(X)                                                                                              \
    X(ncclGetVersion) X(ncclGetUniqueId) X(ncclCommInitRank) X(ncclCommDestroy) X(ncclCommAbort)                  \
    X(ncclCommGetAsyncError) X(ncclAllReduce) X(ncclGetErrorString) X(ncclGetLastError)

/* Its functions by their names. */
static struct {
#define X(name) __typeof__(name) *name;
    FUNCTIONS(X)
#undef X
} nccl;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static char missing[192];

static void open_library(void)
{
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!library) {
        snprintf(missing, sizeof missing, "%.180s", dlerror());
        return;
    }
#define X(name)                                                          \
    if (!missing[0] && !(nccl.name = (__typeof__(name) *)dlsym(library, #name))) \
        snprintf(missing, sizeof missing, LIBRARY " has no " #name ": it is too old");
    FUNCTIONS(X)
#undef X
}

static pl_status need_library(void)
{
    pthread_once(&once, open_library);
    return !missing[0] ? PL_OK : pl_error(PL_ERR_PEER, "transport nccl", "%s\nexchange.transport=mpi needs no NCCL", missing);
}

struct pl_reducer {
    struct pl_backend *backend;
    ncclComm_t comm;
    cudaStream_t stream;
    cudaEvent_t given, done;
    bool busy; /* since the last sums that were there, more were started */
};

static pl_status failed(const struct pl_reducer *r, ncclResult_t e, const char *call)
{
    const char *more = nccl.ncclGetLastError(r ? r->comm : NULL);
    return pl_error(PL_ERR_PEER, "transport nccl", "%.*s failed: %s%s%s", (int)strcspn(call, "("), strncmp(call, "nccl.", 5) == 0 ? call + 5 : call,
                    nccl.ncclGetErrorString(e), more && *more ? ": " : "", more ? more : "");
}
#define NCCL(r, call)                     \
    do {                                  \
        ncclResult_t e_ = (call);         \
        if (e_ != ncclSuccess)            \
            return failed(r, e_, #call);  \
    } while (0)
#define CUDA(call)                                                                                                                          \
    do {                                                                                                                                    \
        cudaError_t e_ = (call);                                                                                                            \
        if (e_ != cudaSuccess)                                                                                                              \
            return pl_error(PL_ERR_MEMORY, "device", "cuda: %.*s failed: %s", (int)strcspn(#call, "("), #call, cudaGetErrorString(e_));     \
    } while (0)

_Static_assert(sizeof(ncclUniqueId) == PL_REDUCER_ID_BYTES, "an id fits");

pl_status pl_cuda_reducer_id(struct pl_backend *b, void *id)
{
    (void)b;
    PL_TRY(need_library());
    NCCL(NULL, nccl.ncclGetUniqueId(id));
    return PL_OK;
}

/* Sums are in the way of the next step: they go before kernels. */
static pl_status open_stream(struct pl_reducer *r)
{
    int least, most;
    CUDA(cudaDeviceGetStreamPriorityRange(&least, &most));
    CUDA(cudaStreamCreateWithPriority(&r->stream, cudaStreamNonBlocking, most));
    CUDA(cudaEventCreateWithFlags(&r->given, cudaEventDisableTiming));
    CUDA(cudaEventCreateWithFlags(&r->done, cudaEventDisableTiming));
    return PL_OK;
}

static pl_status join(struct pl_reducer *r, const void *id, int rank, int ranks)
{
    ncclUniqueId name;
    memcpy(&name, id, sizeof name);
    NCCL(r, nccl.ncclCommInitRank(&r->comm, ranks, name, rank));
    return PL_OK;
}

pl_status pl_cuda_reducer_open(struct pl_backend *b, const void *id, int rank, int ranks, struct pl_reducer **out)
{
    *out = NULL;
    PL_TRY(need_library());
    struct pl_reducer *r = pl_alloc(sizeof *r, "NCCL");
    if (!r)
        return PL_ERR_MEMORY;
    r->backend = b;
    pl_status s = open_stream(r);
    if (s == PL_OK)
        s = join(r, id, rank, ranks);
    if (s < 0)
        pl_cuda_reducer_close(r);
    else
        *out = r;
    return s;
}

void pl_cuda_reducer_describe(const struct pl_reducer *r, char *text, size_t bytes)
{
    (void)r;
    pl_cuda_nccl_describe(text, bytes);
}

pl_status pl_cuda_reduce(struct pl_reducer *r, float *v, int64_t n)
{
    cudaStream_t main_stream = (cudaStream_t)r->backend->stream;
    CUDA(cudaEventRecord(r->given, main_stream));
    CUDA(cudaStreamWaitEvent(r->stream, r->given, 0));
    r->busy = true;
    NCCL(r, nccl.ncclAllReduce(v, v, (size_t)n, ncclFloat, ncclSum, r->comm, r->stream));
    CUDA(cudaEventRecord(r->done, r->stream));
    return PL_OK;
}

pl_status pl_cuda_reduced(struct pl_reducer *r, bool *done)
{
    ncclResult_t of_others = ncclSuccess;
    *done = true;
    if (!r->busy)
        return PL_OK;
    cudaError_t e = cudaEventQuery(r->done);
    *done = e == cudaSuccess;
    r->busy = !*done;
    if (*done)
        return PL_OK;
    if (e != cudaErrorNotReady)
        CUDA(e);
    NCCL(r, nccl.ncclCommGetAsyncError(r->comm, &of_others));
    return of_others == ncclSuccess || of_others == ncclInProgress ? PL_OK : failed(r, of_others, "an all-reduce");
}

/* Sums that are not there may never be. */
void pl_cuda_reducer_close(struct pl_reducer *r)
{
    if (!r)
        return;
    if (r->comm && r->busy)
        nccl.ncclCommAbort(r->comm);
    else if (r->comm)
        nccl.ncclCommDestroy(r->comm);
    if (r->given)
        cudaEventDestroy(r->given);
    if (r->done)
        cudaEventDestroy(r->done);
    if (r->stream)
        cudaStreamDestroy(r->stream);
    cudaGetLastError();
    pl_free(r);
}

void pl_cuda_nccl_describe(char *text, size_t bytes)
{
    int version = 0;
    pthread_once(&once, open_library);
    if (missing[0] || nccl.ncclGetVersion(&version) != ncclSuccess)
        snprintf(text, bytes, "no NCCL (%s)", missing[0] ? missing : "it does not tell its version");
    else
        snprintf(text, bytes, "NCCL %d.%d.%d", version / 10000, version % 10000 / 100, version % 100);
}

#else /* without its header */

static pl_status none(void)
{
    return pl_error(PL_ERR_PEER, "transport nccl", "this build is without NCCL: nccl.h was not found when it was made\nexchange.transport=mpi needs none");
}

pl_status pl_cuda_reducer_id(struct pl_backend *b, void *id) { (void)b, (void)id; return none(); }
pl_status pl_cuda_reducer_open(struct pl_backend *b, const void *id, int rank, int ranks, struct pl_reducer **out)
{
    (void)b, (void)id, (void)rank, (void)ranks;
    *out = NULL;
    return none();
}
void pl_cuda_reducer_describe(const struct pl_reducer *r, char *text, size_t bytes) { (void)r; pl_cuda_nccl_describe(text, bytes); }
pl_status pl_cuda_reduce(struct pl_reducer *r, float *v, int64_t n) { (void)r, (void)v, (void)n; return none(); }
pl_status pl_cuda_reduced(struct pl_reducer *r, bool *done) { (void)r; *done = false; return none(); }
void pl_cuda_reducer_close(struct pl_reducer *r) { (void)r; }
void pl_cuda_nccl_describe(char *text, size_t bytes) { snprintf(text, bytes, "no NCCL (this build is without it)"); }

#endif
