/* reduce: sums of gradients over ranks by NCCL, in the device's memory, on a stream of their own. The library is looked for when
 * it is asked for: the module also opens where there is none. Ranks that share a device cannot use it. */
#include "backend/cuda/cuda.h"

#include <dlfcn.h>
#include <string.h>

#ifdef PL_HAVE_NCCL
#include <nccl.h>
#include <sched.h>

#define LIBRARY "libnccl.so.2"
#define FUNCTIONS(X)                                                                                              \
    X(ncclGetVersion) X(ncclGetUniqueId) X(ncclCommInitRankConfig) X(ncclCommFinalize) X(ncclCommDestroy)         \
    X(ncclCommAbort) X(ncclCommGetAsyncError) X(ncclAllReduce) X(ncclGetErrorString) X(ncclGetLastError)
#define CLOSE_MS 5000.0
#define YIELD_MS 2.0 /* of polling before naps */
#define NAP_MS 0.1

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
#define X(name)                                                                  \
    if (!missing[0] && !(nccl.name = (__typeof__(name) *)dlsym(library, #name))) \
        snprintf(missing, sizeof missing, LIBRARY " has no " #name ": it is too old");
    FUNCTIONS(X)
#undef X
}

struct pl_reducer {
    struct pl_backend *backend;
    ncclComm_t comm; /* its calls do not wait: what they began may still be in progress */
    cudaStream_t stream;
    cudaEvent_t given, done;
    double timeout_ms;
    bool busy; /* since the last sums that were there, more were started, or some rank may not have joined */
};

static pl_status failed(const struct pl_reducer *r, ncclResult_t e, const char *call)
{
    const char *more = nccl.ncclGetLastError(r->comm);
    return pl_error(PL_ERR_PEER, "transport nccl", "%s failed: %s%s%s", call, nccl.ncclGetErrorString(e), more && *more ? ": " : "", more ? more : "");
}

#define CUDA(r, call)                                                          \
    do {                                                                       \
        cudaError_t e_ = (call);                                               \
        if (e_ != cudaSuccess)                                                 \
            return pl_cuda_failed((r)->backend->device, (int)e_, #call);       \
    } while (0)

/* Until the call is through, which may need the others. */
static pl_status settle(const struct pl_reducer *r, ncclResult_t e, const char *call, double limit_ms)
{
    double begin = pl_now_ms(), waited = 0;
    while (e == ncclInProgress && waited <= limit_ms) {
        if (waited > YIELD_MS)
            pl_sleep_ms(NAP_MS);
        else
            sched_yield();
        ncclResult_t asked = nccl.ncclCommGetAsyncError(r->comm, &e);
        if (asked != ncclSuccess)
            e = asked;
        waited = pl_now_ms() - begin;
    }
    if (e == ncclInProgress)
        return pl_error(PL_ERR_PEER, "transport nccl", "%s: waited %g s for the other ranks\nNCCL_DEBUG=INFO tells what it does; exchange.timeout sets how long is waited", call, limit_ms / 1000);
    return e == ncclSuccess ? PL_OK : failed(r, e, call);
}

_Static_assert(sizeof(ncclUniqueId) == PL_REDUCER_ID_BYTES, "an id fits");

/* Sums are in the way of the next step: they go before kernels. */
static pl_status open_stream(struct pl_reducer *r)
{
    int least, most;
    CUDA(r, cudaDeviceGetStreamPriorityRange(&least, &most));
    CUDA(r, cudaStreamCreateWithPriority(&r->stream, cudaStreamNonBlocking, most));
    CUDA(r, cudaEventCreateWithFlags(&r->given, cudaEventDisableTiming));
    CUDA(r, cudaEventCreateWithFlags(&r->done, cudaEventDisableTiming));
    return PL_OK;
}

pl_status pl_cuda_reducer_open(struct pl_backend *b, double timeout_ms, struct pl_reducer **out)
{
    *out = NULL;
    pthread_once(&once, open_library);
    if (missing[0])
        return pl_error(PL_ERR_PEER, "transport nccl", "%s\nexchange.transport=mpi needs no NCCL", missing);
    struct pl_reducer *r = pl_alloc(sizeof *r, "NCCL");
    if (!r)
        return PL_ERR_MEMORY;
    r->backend = b;
    r->timeout_ms = timeout_ms;
    pl_status s = open_stream(r);
    if (s < 0)
        pl_cuda_reducer_close(r);
    else
        *out = r;
    return s;
}

pl_status pl_cuda_reducer_id(struct pl_reducer *r, void *id)
{
    ncclResult_t e = nccl.ncclGetUniqueId(id);
    return e == ncclSuccess ? PL_OK : failed(r, e, "ncclGetUniqueId");
}

pl_status pl_cuda_reducer_join(struct pl_reducer *r, const void *id, int rank, int ranks)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclUniqueId name;
    memcpy(&name, id, sizeof name);
    config.blocking = 0;
    r->busy = true;
    return settle(r, nccl.ncclCommInitRankConfig(&r->comm, ranks, name, rank, &config), "ncclCommInitRankConfig", r->timeout_ms);
}

void pl_cuda_reducer_describe(const struct pl_reducer *r, char *text, size_t bytes)
{
    (void)r;
    pl_cuda_nccl_describe(text, bytes);
}

/* The first sums connect the ranks, and then wait for them. */
pl_status pl_cuda_reduce(struct pl_reducer *r, float *v, int64_t n)
{
    CUDA(r, cudaEventRecord(r->given, (cudaStream_t)r->backend->stream));
    CUDA(r, cudaStreamWaitEvent(r->stream, r->given, 0));
    r->busy = true;
    PL_TRY(settle(r, nccl.ncclAllReduce(v, v, (size_t)n, ncclFloat, ncclSum, r->comm, r->stream), "ncclAllReduce", r->timeout_ms));
    CUDA(r, cudaEventRecord(r->done, r->stream));
    return PL_OK;
}

pl_status pl_cuda_reduced(struct pl_reducer *r, bool *done)
{
    ncclResult_t of_others = ncclSuccess;
    cudaError_t e = r->busy ? cudaEventQuery(r->done) : cudaSuccess;
    *done = e == cudaSuccess;
    r->busy = !*done;
    if (*done)
        return PL_OK;
    if (e != cudaErrorNotReady)
        return pl_cuda_failed(r->backend->device, (int)e, "an all-reduce");
    cudaGetLastError(); /* the next start of a kernel would find it */
    ncclResult_t asked = nccl.ncclCommGetAsyncError(r->comm, &of_others);
    if (asked != ncclSuccess || (of_others != ncclSuccess && of_others != ncclInProgress))
        return failed(r, asked != ncclSuccess ? asked : of_others, "ncclAllReduce");
    return PL_OK;
}

/* Sums that are not there may never be; who has all of his still says so to those on his node. */
static void close_comm(struct pl_reducer *r)
{
    bool ended = !r->busy && settle(r, nccl.ncclCommFinalize(r->comm), "ncclCommFinalize", CLOSE_MS) == PL_OK;
    if (ended)
        nccl.ncclCommDestroy(r->comm);
    else
        nccl.ncclCommAbort(r->comm);
}

void pl_cuda_reducer_close(struct pl_reducer *r)
{
    if (!r)
        return;
    if (r->comm)
        close_comm(r);
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

pl_status pl_cuda_reducer_open(struct pl_backend *b, double timeout_ms, struct pl_reducer **out)
{
    (void)b, (void)timeout_ms;
    *out = NULL;
    return none();
}
pl_status pl_cuda_reducer_id(struct pl_reducer *r, void *id) { (void)r, (void)id; return none(); }
pl_status pl_cuda_reducer_join(struct pl_reducer *r, const void *id, int rank, int ranks) { (void)r, (void)id, (void)rank, (void)ranks; return none(); }
void pl_cuda_reducer_describe(const struct pl_reducer *r, char *text, size_t bytes) { (void)r; pl_cuda_nccl_describe(text, bytes); }
pl_status pl_cuda_reduce(struct pl_reducer *r, float *v, int64_t n) { (void)r, (void)v, (void)n; return none(); }
pl_status pl_cuda_reduced(struct pl_reducer *r, bool *done) { (void)r; *done = false; return none(); }
void pl_cuda_reducer_close(struct pl_reducer *r) { (void)r; }
void pl_cuda_nccl_describe(char *text, size_t bytes) { snprintf(text, bytes, "no NCCL (this build is without it)"); }

#endif
