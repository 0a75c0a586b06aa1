/* runtime: the device of this rank, its memory, streams and copies, over the CUDA runtime. Pageable host memory goes through
 * pinned pieces, so that the copy of one piece runs beside the transfer of another; copies to the host have a stream of their
 * own, which waits for what the main one had been given so far; so have copies of what is not needed yet, which wait for what
 * still reads what was there before. Waits sleep: cores are for compute. Every error is
 * PL_ERR_MEMORY and says which call failed, on which device. */
#include "backend/cuda/cuda.h"

#include <cuda_runtime.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PIECES = 4, SAMPLES = 7, FETCHES = 64 };
#define PIECE_BYTES ((size_t)4 << 20)
#define ENOUGH_MS 50.0                 /* of measuring one piece of work */

/* Pinned memory in pieces that are used in turn; free[i]: the last transfer of piece i is done. */
struct staging {
    char *memory;
    cudaEvent_t free[PIECES];
    int next;
};

struct pl_cuda_device {
    int ordinal, visible;
    char name[96];
    int capability; /* 90: of compute capability 9.0 */
    size_t memory_bytes;
    cudaStream_t stream, home, early;  /* for all work; for copies to the host; for copies ahead */
    cudaEvent_t given, done;           /* what stream was given before a copy to the host; the end of a wait */
    cudaEvent_t taken, arrived;        /* what stream was given before copies ahead may begin; their end */
    cudaEvent_t begin, end;            /* of pl_cuda_time */
    struct staging there, back;
    cudaEvent_t fetched[FETCHES];      /* of the last so many copies to the host that go on by themselves */
    uint64_t fetches;
    pthread_mutex_t copying;           /* guards there, back, given */
    pid_t process;                     /* a child of fork must not touch the device */
    struct pl_cuda_ledger *ledger;
};

/* ---- errors ------------------------------------------------------------------------------------- */

static bool lost(cudaError_t e)
{
    return e == cudaErrorIllegalAddress || e == cudaErrorLaunchFailure || e == cudaErrorLaunchTimeout || e == cudaErrorHardwareStackError ||
           e == cudaErrorIllegalInstruction || e == cudaErrorMisalignedAddress || e == cudaErrorInvalidAddressSpace || e == cudaErrorInvalidPc ||
#if CUDART_VERSION >= 13000
           e == cudaErrorContained ||
#endif
           e == cudaErrorAssert || e == cudaErrorECCUncorrectable || e == cudaErrorNvlinkUncorrectable || e == cudaErrorUnknown;
}

static bool no_code(cudaError_t e)
{
    return e == cudaErrorNoKernelImageForDevice || e == cudaErrorInvalidKernelImage || e == cudaErrorUnsupportedPtxVersion || e == cudaErrorInvalidPtx;
}

static pl_status failed(const struct pl_cuda_device *d, cudaError_t e, const char *call, const char *what)
{
    char advice[256] = "";
    if (no_code(e))
        snprintf(advice, sizeof advice, "\nthis build has code for " PL_CUDA_ARCHITECTURES "; the device wants -DCMAKE_CUDA_ARCHITECTURES=%d", d->capability);
    else if (lost(e))
        snprintf(advice, sizeof advice, "\nwhat was in the device's memory is lost: run again, it continues from the newest checkpoint; "
                                        "`dmesg | grep Xid` may tell the cause");
    cudaGetLastError(); /* what can be cleared is not reported again */
    return pl_error(PL_ERR_MEMORY, "device", "cuda device %d (%s): %.*s%s%s failed: %s (%s)%s", d->ordinal, d->name, (int)strcspn(call, "("), call,
                    what ? " for " : "", what ? what : "", cudaGetErrorString(e), cudaGetErrorName(e), advice);
}

#define CUDA(d, call)                          \
    do {                                       \
        cudaError_t e_ = (call);               \
        if (e_ != cudaSuccess)                 \
            return failed(d, e_, #call, NULL); \
    } while (0)

/* Whether there are devices at all; why not, as a message. */
static cudaError_t count_devices(int *devices, char *why, size_t bytes)
{
    int driver = 0, runtime = 0;
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    *devices = 0;
    cudaError_t e = cudaGetDeviceCount(devices);
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (e == cudaSuccess && *devices > 0)
        return e;
    if (driver == 0)
        snprintf(why, bytes, "no NVIDIA driver on this machine (no libcuda.so.1)");
    else if (e == cudaErrorInsufficientDriver)
        snprintf(why, bytes, "the NVIDIA driver is too old: it supports CUDA %d.%d, this build uses CUDA %d.%d", driver / 1000, driver % 1000 / 10,
                 runtime / 1000, runtime % 1000 / 10);
    else if (e == cudaSuccess || e == cudaErrorNoDevice)
        snprintf(why, bytes, "no NVIDIA device is visible%s%s%s", visible ? " (CUDA_VISIBLE_DEVICES=" : "", visible ? visible : "", visible ? ")" : "");
    else
        snprintf(why, bytes, "the NVIDIA driver does not work: %s (%s)", cudaGetErrorString(e), cudaGetErrorName(e));
    cudaGetLastError();
    return e == cudaSuccess ? cudaErrorNoDevice : e;
}

/* ---- open and close ----------------------------------------------------------------------------- */

static void describe_device(int ordinal, struct pl_cuda_device *d)
{
    struct cudaDeviceProp *p = pl_alloc(sizeof *p, "a device's properties");
    d->ordinal = ordinal;
    snprintf(d->name, sizeof d->name, "unknown");
    if (p && cudaGetDeviceProperties(p, ordinal) == cudaSuccess) {
        snprintf(d->name, sizeof d->name, "%.*s", (int)sizeof d->name - 1, p->name);
        d->capability = p->major * 10 + p->minor;
        d->memory_bytes = p->totalGlobalMem;
    }
    pl_free(p);
}

static pl_status open_streams(struct pl_cuda_device *d)
{
    CUDA(d, cudaInitDevice(d->ordinal, cudaDeviceScheduleBlockingSync, cudaInitDeviceFlagsAreValid));
    CUDA(d, cudaSetDevice(d->ordinal));
    CUDA(d, cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking));
    CUDA(d, cudaStreamCreateWithFlags(&d->home, cudaStreamNonBlocking));
    CUDA(d, cudaStreamCreateWithFlags(&d->early, cudaStreamNonBlocking));
    CUDA(d, cudaEventCreateWithFlags(&d->given, cudaEventDisableTiming));
    CUDA(d, cudaEventCreateWithFlags(&d->taken, cudaEventDisableTiming));
    CUDA(d, cudaEventCreateWithFlags(&d->arrived, cudaEventDisableTiming | cudaEventBlockingSync));
    CUDA(d, cudaEventCreateWithFlags(&d->done, cudaEventDisableTiming | cudaEventBlockingSync));
    CUDA(d, cudaEventCreate(&d->begin));
    CUDA(d, cudaEventCreate(&d->end));
    return PL_OK;
}

static void say_shared(const struct pl_device_options *o, int devices)
{
    if (o->local_rank != 0 || o->local_ranks <= devices)
        return;
    if (devices == 1) /* each may have been given one of its own, by Slurm or a wrapper */
        pl_log("note: each of the %d ranks of this node sees one GPU; if it is the same one, they share it and wait for each other", o->local_ranks);
    else
        pl_log("note: the %d ranks of this node share %d GPUs and wait for each other", o->local_ranks, devices);
}

pl_status pl_cuda_device_open(const struct pl_device_options *o, struct pl_cuda_device **out, pl_cuda_stream *stream)
{
    char why[512];
    int devices;
    *out = NULL;
    if (count_devices(&devices, why, sizeof why) != cudaSuccess)
        return pl_error(PL_ERR_MEMORY, "device", "cuda cannot be used: %s\n`paceline doctor` shows what this build and machine have; device.kind=cpu needs no GPU", why);
    struct pl_cuda_device *d = pl_alloc(sizeof *d, "a cuda device");
    if (!d)
        return PL_ERR_MEMORY;
    pthread_mutex_init(&d->copying, NULL);
    d->process = getpid();
    d->visible = devices;
    describe_device((o->local_rank > 0 ? o->local_rank : 0) % devices, d);
    pl_status s = o->bf16 && d->capability < 80 ? pl_error(PL_ERR_USAGE, "device", "train.precision bf16 needs a GPU of compute capability 8.0 or later: device %d, %s, has %d.%d",
                                                           d->ordinal, d->name, d->capability / 10, d->capability % 10)
                                                : open_streams(d);
    if (s == PL_OK)
        s = pl_cuda_ledger_create(o->memory_limit, &d->ledger);
    if (s < 0) {
        pl_cuda_device_close(d);
        return s;
    }
    say_shared(o, devices);
    *stream = (pl_cuda_stream)d->stream;
    *out = d;
    return PL_OK;
}

static void close_event(cudaEvent_t e)
{
    if (e)
        cudaEventDestroy(e);
}

static void close_staging(struct staging *s)
{
    for (int i = 0; i < PIECES; i++)
        close_event(s->free[i]);
    if (s->memory)
        cudaFreeHost(s->memory);
}

void pl_cuda_device_close(struct pl_cuda_device *d)
{
    if (!d)
        return;
    if (d->process == getpid()) {
        if (d->stream)
            cudaStreamSynchronize(d->stream);
        if (d->home)
            cudaStreamSynchronize(d->home);
        if (d->early)
            cudaStreamSynchronize(d->early);
        close_staging(&d->there);
        close_staging(&d->back);
        for (int i = 0; i < FETCHES; i++)
            close_event(d->fetched[i]);
        close_event(d->given);
        close_event(d->done);
        close_event(d->taken);
        close_event(d->arrived);
        close_event(d->begin);
        close_event(d->end);
        if (d->early)
            cudaStreamDestroy(d->early);
        if (d->home)
            cudaStreamDestroy(d->home);
        if (d->stream)
            cudaStreamDestroy(d->stream);
        cudaGetLastError();
    }
    pthread_mutex_destroy(&d->copying);
    pl_cuda_ledger_destroy(d->ledger);
    pl_free(d);
}

void pl_cuda_device_describe(const struct pl_cuda_device *d, char *text, size_t bytes)
{
    snprintf(text, bytes, "device %d of %d, %s, %.1f GB, compute capability %d.%d", d->ordinal, d->visible, d->name, (double)d->memory_bytes / 1e9,
             d->capability / 10, d->capability % 10);
}

void pl_cuda_devices_describe(char *text, size_t bytes)
{
    struct pl_cuda_device d = {0};
    int devices, driver = 0;
    if (count_devices(&devices, text, bytes) != cudaSuccess)
        return;
    cudaDriverGetVersion(&driver);
    int n = snprintf(text, bytes, "driver for CUDA %d.%d", driver / 1000, driver % 1000 / 10);
    for (int i = 0; i < devices && n >= 0 && (size_t)n < bytes; i++) {
        describe_device(i, &d);
        n += snprintf(text + n, bytes - (size_t)n, "; device %d: %s, %.1f GB, compute capability %d.%d", i, d.name, (double)d.memory_bytes / 1e9,
                      d.capability / 10, d.capability % 10);
    }
}

int pl_cuda_toolkit_version(void) { return CUDART_VERSION; }

/* ---- memory ------------------------------------------------------------------------------------- */

static pl_status no_memory(const struct pl_cuda_device *d, size_t bytes, const char *what)
{
    size_t free_bytes = 0, all = 0;
    cudaGetLastError();
    cudaMemGetInfo(&free_bytes, &all);
    return pl_error(PL_ERR_MEMORY, "device", "cuda device %d (%s): out of memory: %.1f MB asked for %s, %.1f MB of %.1f MB are free\n"
                                             "a smaller train.batch needs less (train.accumulate keeps the batch of a step)",
                    d->ordinal, d->name, (double)bytes / 1e6, what, (double)free_bytes / 1e6, (double)all / 1e6);
}

void *pl_cuda_alloc(struct pl_cuda_device *d, size_t bytes, const char *what)
{
    void *p = NULL;
    size_t take = bytes > 0 ? bytes : 1;
    if (pl_cuda_ledger_ask(d->ledger, take, what) < 0)
        return NULL;
    cudaSetDevice(d->ordinal); /* threads other than that of open start with device 0 */
    cudaError_t e = cudaMalloc(&p, take);
    if (e == cudaErrorMemoryAllocation) {
        no_memory(d, bytes, what);
        return NULL;
    }
    if (e == cudaSuccess)
        e = cudaMemsetAsync(p, 0, take, d->stream);
    if (e == cudaSuccess && pl_cuda_ledger_enter(d->ledger, p, take) == PL_OK)
        return p;
    if (e != cudaSuccess)
        failed(d, e, "cudaMalloc", what);
    pl_cuda_free(d, p);
    return NULL;
}

void pl_cuda_free(struct pl_cuda_device *d, void *p)
{
    if (!p || d->process != getpid())
        return;
    cudaSetDevice(d->ordinal);
    cudaStreamSynchronize(d->stream); /* what uses it; that cudaFree waits is not promised */
    pl_cuda_ledger_strike(d->ledger, p); /* before another may be given the same */
    cudaFree(p);
    cudaGetLastError();
}

pl_status pl_cuda_fill(struct pl_cuda_device *d, void *p, int byte, size_t bytes)
{
    CUDA(d, cudaMemsetAsync(p, byte, bytes, d->stream));
    return PL_OK;
}

size_t pl_cuda_memory_bytes(const struct pl_cuda_device *d)
{
    double limit = pl_cuda_ledger_limit(d->ledger);
    return limit > 0 && limit < (double)d->memory_bytes ? (size_t)limit : d->memory_bytes;
}

/* ---- copies ------------------------------------------------------------------------------------- */

static pl_status open_staging(struct pl_cuda_device *d, struct staging *s)
{
    if (s->memory)
        return PL_OK;
    for (int i = 0; i < PIECES; i++)
        if (!s->free[i])
            CUDA(d, cudaEventCreateWithFlags(&s->free[i], cudaEventDisableTiming | cudaEventBlockingSync));
    CUDA(d, cudaHostAlloc((void **)&s->memory, PIECES * PIECE_BYTES, cudaHostAllocDefault));
    return PL_OK;
}

static size_t piece_of(size_t bytes, size_t at) { return bytes - at < PIECE_BYTES ? bytes - at : PIECE_BYTES; }

static pl_status upload_pieces(struct pl_cuda_device *d, char *far, const char *host, size_t bytes)
{
    struct staging *s = &d->there;
    PL_TRY(open_staging(d, s));
    for (size_t at = 0; at < bytes; at += PIECE_BYTES) {
        char *piece = s->memory + (size_t)s->next * PIECE_BYTES;
        size_t n = piece_of(bytes, at);
        CUDA(d, cudaEventSynchronize(s->free[s->next])); /* never recorded: done */
        memcpy(piece, host + at, n);
        CUDA(d, cudaMemcpyAsync(far + at, piece, n, cudaMemcpyHostToDevice, d->stream));
        CUDA(d, cudaEventRecord(s->free[s->next], d->stream));
        s->next = (s->next + 1) % PIECES;
    }
    return PL_OK;
}

pl_status pl_cuda_upload(struct pl_cuda_device *d, void *far, const void *host, size_t bytes)
{
    if (bytes == 0)
        return PL_OK;
    CUDA(d, cudaSetDevice(d->ordinal));
    pthread_mutex_lock(&d->copying);
    pl_status s = upload_pieces(d, far, host, bytes);
    pthread_mutex_unlock(&d->copying);
    return s;
}

/* Piece i is on its way while the pieces before it are copied out of the pinned memory. */
static pl_status download_pieces(struct pl_cuda_device *d, char *host, const char *far, size_t bytes)
{
    struct staging *s = &d->back;
    size_t pieces = (bytes + PIECE_BYTES - 1) / PIECE_BYTES;
    PL_TRY(open_staging(d, s));
    CUDA(d, cudaEventRecord(d->given, d->stream));
    CUDA(d, cudaStreamWaitEvent(d->home, d->given, 0));
    for (size_t i = 0; i < pieces + PIECES - 1; i++) {
        if (i < pieces) {
            CUDA(d, cudaMemcpyAsync(s->memory + i % PIECES * PIECE_BYTES, far + i * PIECE_BYTES, piece_of(bytes, i * PIECE_BYTES),
                                    cudaMemcpyDeviceToHost, d->home));
            CUDA(d, cudaEventRecord(s->free[i % PIECES], d->home));
        }
        if (i + 1 < PIECES || i + 1 - PIECES >= pieces)
            continue;
        size_t k = i + 1 - PIECES;
        CUDA(d, cudaEventSynchronize(s->free[k % PIECES]));
        memcpy(host + k * PIECE_BYTES, s->memory + k % PIECES * PIECE_BYTES, piece_of(bytes, k * PIECE_BYTES));
    }
    return PL_OK;
}

pl_status pl_cuda_download(struct pl_cuda_device *d, void *host, const void *far, size_t bytes)
{
    if (bytes == 0)
        return PL_OK;
    CUDA(d, cudaSetDevice(d->ordinal));
    pthread_mutex_lock(&d->copying);
    pl_status s = download_pieces(d, host, far, bytes);
    pthread_mutex_unlock(&d->copying);
    return s;
}

/* ---- copies to the host that go on by themselves -------------------------------------------------- */

pl_status pl_cuda_fetch(struct pl_cuda_device *d, void *host, const void *far, size_t bytes, uint64_t *ticket)
{
    cudaEvent_t *done = &d->fetched[(d->fetches + 1) % FETCHES];
    CUDA(d, cudaSetDevice(d->ordinal));
    if (!*done)
        CUDA(d, cudaEventCreateWithFlags(done, cudaEventDisableTiming | cudaEventBlockingSync));
    CUDA(d, cudaEventRecord(d->given, d->stream));
    CUDA(d, cudaStreamWaitEvent(d->home, d->given, 0));
    CUDA(d, cudaMemcpyAsync(host, far, bytes, cudaMemcpyDeviceToHost, d->home));
    CUDA(d, cudaEventRecord(*done, d->home));
    *ticket = ++d->fetches;
    return PL_OK;
}

/* The event of one that is long ago is that of a later one by now, which ends after it. */
pl_status pl_cuda_fetched(struct pl_cuda_device *d, uint64_t ticket, bool wait, bool *done)
{
    cudaEvent_t e = d->fetched[ticket % FETCHES];
    cudaError_t is = wait ? cudaEventSynchronize(e) : cudaEventQuery(e);
    *done = is == cudaSuccess;
    if (is == cudaErrorNotReady && !wait) {
        cudaGetLastError(); /* the next start of a kernel would find it */
        return PL_OK;
    }
    return *done ? PL_OK : failed(d, is, "a copy to the host", NULL);
}

/* ---- copies to the device that go ahead ----------------------------------------------------------- */

pl_status pl_cuda_ahead(struct pl_cuda_device *d, void *far, const void *host, size_t bytes)
{
    CUDA(d, cudaSetDevice(d->ordinal));
    CUDA(d, cudaStreamWaitEvent(d->early, d->taken, 0)); /* never recorded: nothing to wait for */
    CUDA(d, cudaMemcpyAsync(far, host, bytes, cudaMemcpyHostToDevice, d->early));
    return PL_OK;
}

pl_status pl_cuda_ahead_wait(struct pl_cuda_device *d)
{
    CUDA(d, cudaEventRecord(d->arrived, d->early));
    CUDA(d, cudaEventSynchronize(d->arrived));
    return PL_OK;
}

pl_status pl_cuda_ahead_taken(struct pl_cuda_device *d)
{
    CUDA(d, cudaEventRecord(d->taken, d->stream));
    return PL_OK;
}

pl_status pl_cuda_duplicate(struct pl_cuda_device *d, void *to, const void *from, size_t bytes)
{
    CUDA(d, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, d->stream));
    return PL_OK;
}

/* ---- pinned memory ---------------------------------------------------------------------------------- */

/* Memory that cannot be pinned (a limit, another's mapping) is copied to more slowly. */
void pl_cuda_pin(struct pl_cuda_device *d, void *host, size_t bytes)
{
    cudaSetDevice(d->ordinal);
    if (cudaHostRegister(host, bytes, cudaHostRegisterDefault) != cudaSuccess)
        cudaGetLastError();
}

void pl_cuda_unpin(struct pl_cuda_device *d, void *host)
{
    if (d->process != getpid())
        return;
    cudaSetDevice(d->ordinal);
    if (cudaHostUnregister(host) != cudaSuccess)
        cudaGetLastError();
}

/* ---- recordings --------------------------------------------------------------------------------- */

struct pl_recording { cudaGraphExec_t graph; };

pl_status pl_cuda_record(struct pl_cuda_device *d, pl_status (*work)(void *arg), void *arg, struct pl_recording **out)
{
    struct pl_recording *r = pl_alloc(sizeof *r, "a recorded pass");
    cudaGraph_t graph = NULL;
    cudaError_t e = cudaErrorUnknown;
    *out = NULL;
    if (!r)
        return PL_ERR_MEMORY;
    pl_status s = PL_OK;
    if ((e = cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal)) == cudaSuccess) {
        s = work(arg);
        e = cudaStreamEndCapture(d->stream, &graph); /* also after an error: the stream is of use again */
    }
    if (s == PL_OK && e == cudaSuccess)
        e = cudaGraphInstantiate(&r->graph, graph, 0);
    if (graph)
        cudaGraphDestroy(graph);
    if (s == PL_OK && e != cudaSuccess)
        s = failed(d, e, "the recording of a pass", NULL);
    if (s != PL_OK)
        cudaGetLastError(); /* the end of what cannot be recorded is an error, too */
    if (s == PL_OK)
        *out = r;
    else
        pl_free(r);
    return s;
}

pl_status pl_cuda_replay(struct pl_cuda_device *d, struct pl_recording *r)
{
    CUDA(d, cudaGraphLaunch(r->graph, d->stream));
    return PL_OK;
}

void pl_cuda_recording_destroy(struct pl_cuda_device *d, struct pl_recording *r)
{
    if (r && d->process == getpid()) {
        cudaStreamSynchronize(d->stream);
        cudaGraphExecDestroy(r->graph);
        cudaGetLastError();
    }
    pl_free(r);
}

pl_status pl_cuda_failed(const struct pl_cuda_device *d, int error, const char *call) { return failed(d, (cudaError_t)error, call, NULL); }

/* ---- waits and measurements --------------------------------------------------------------------- */

pl_status pl_cuda_finish(struct pl_cuda_device *d)
{
    CUDA(d, cudaSetDevice(d->ordinal));
    CUDA(d, cudaEventRecord(d->done, d->stream));
    CUDA(d, cudaEventSynchronize(d->done));
    return PL_OK;
}

pl_status pl_cuda_launched(struct pl_cuda_device *d, const char *what)
{
    cudaError_t e = cudaPeekAtLastError();
    return e == cudaSuccess ? PL_OK : failed(d, e, "the start of a kernel", what);
}

static int by_time(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static pl_status sample(struct pl_cuda_device *d, int times, pl_status (*work)(void *arg), void *arg, double *ms)
{
    float took = 0;
    CUDA(d, cudaEventRecord(d->begin, d->stream));
    pl_status s = PL_OK;
    for (int i = 0; i < times && s == PL_OK; i++)
        s = work(arg);
    if (s != PL_OK)
        return s;
    CUDA(d, cudaEventRecord(d->end, d->stream));
    CUDA(d, cudaEventSynchronize(d->end));
    CUDA(d, cudaEventElapsedTime(&took, d->begin, d->end));
    *ms = took / times;
    return PL_OK;
}

/* The first run, which may load code, does not count. Short work is measured many times over, or it would be the host's time to
 * start it. */
pl_status pl_cuda_time(struct pl_cuda_device *d, pl_status (*work)(void *arg), void *arg, double *ms)
{
    double took[SAMPLES], all = 0;
    int n = 0;
    pl_status s = sample(d, 1, work, arg, &took[0]);
    if (s == PL_OK)
        s = sample(d, 1, work, arg, &took[0]);
    int times = s == PL_OK && took[0] < 1 ? 1 + (int)(1 / (took[0] + 0.02)) : 1;
    while (s == PL_OK && n < SAMPLES && (n < 3 || all < ENOUGH_MS))
        if ((s = sample(d, times, work, arg, &took[n])) == PL_OK)
            all += times * took[n++];
    if (s == PL_END)
        cudaGetLastError(); /* of what did not run */
    if (s != PL_OK)
        return s;
    qsort(took, (size_t)n, sizeof *took, by_time);
    *ms = took[n / 2];
    return PL_OK;
}
