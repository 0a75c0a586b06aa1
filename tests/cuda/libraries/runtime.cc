/* The CUDA runtime: streams, events, memory, graphs. See device.h. */
#include "device.h"

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <sys/mman.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace {

struct Stream;

struct Event {
    bool timing;
    uint64_t recorded = 0, done = 0; /* versions: one a record */
    std::map<uint64_t, Stream *> where; /* those that are not done */
    double at_ms = 0;
};

struct Work {
    std::function<void()> run;
    std::function<bool()> until; /* in its place */
    double takes_ms = 0;
    const char *host = nullptr; /* a copy from or to it */
    size_t host_bytes = 0;
    std::shared_ptr<Event> marks, waits;
    uint64_t version = 0;
};

struct Graph { std::vector<Work> work; };

struct Stream {
    std::deque<Work> queue;
    int device = 0;
    double clock_ms = 0;
    bool capturing = false, spoilt = false;
    std::thread::id captor;
    std::shared_ptr<Graph> graph;
};

struct Block { char *map; size_t mapped, bytes; bool open; };
struct Pinned { size_t bytes; bool ours; };

std::recursive_mutex lock;
std::map<char *, Block> blocks; /* by address */
std::map<const char *, Pinned> pinned;
std::vector<Stream *> streams;
std::map<cudaEvent_t, std::shared_ptr<Event>> events;
size_t taken;
int inside, pageable; /* pageable: copies from or to such memory */
thread_local cudaError_t last = cudaSuccess;
thread_local int current; /* device */

using Guard = std::lock_guard<std::recursive_mutex>;

cudaError_t fail(cudaError_t e)
{
    if (e != cudaSuccess)
        last = e;
    return e;
}

/* What ends something does so, and may then tell what failed before. */
#define ENDED(function) return pl_fake_fails(#function) ? fail(cudaErrorUnknown) : cudaSuccess
#define FAKE(function)                        \
    Guard guard(lock);                        \
    if (pl_fake_fails(#function))             \
        return fail(cudaErrorUnknown)

size_t rounded(size_t bytes) { return (bytes + 63) / 64 * 64; } /* on a device to 256; the less, the sooner an overrun is seen */
size_t page() { return (size_t)sysconf(_SC_PAGESIZE); }

/* ---- memory ------------------------------------------------------------------------------------- */

void let_all(bool open)
{
    for (auto &at : blocks) {
        Block &b = at.second;
        if (b.open != open && mprotect(b.map, b.mapped, open ? PROT_READ | PROT_WRITE : PROT_NONE) != 0)
            abort();
        b.open = open;
    }
}

void enter()
{
    if (inside++ == 0)
        let_all(true);
}

/* The host finds it closed after every 32nd time, as closing takes long, and new memory at once. */
void leave()
{
    static int times;
    if (--inside == 0 && ++times % 32 == 0)
        let_all(false);
}

/* 0: not at all; 1: in part, which no copy may be; 2: whole. */
int is_pinned(const void *p, size_t bytes)
{
    const char *from = (const char *)p, *to = from + bytes;
    int how = 0;
    for (auto &m : pinned)
        if (from < m.first + m.second.bytes && m.first < to)
            how = from >= m.first && to <= m.first + m.second.bytes ? 2 : 1;
    return how;
}

size_t memory_bytes()
{
    const char *given = getenv("PL_FAKE_MEMORY_MB");
    return (given ? (size_t)atoll(given) : 4096) << 20;
}

/* ---- the order of work -------------------------------------------------------------------------- */

bool is_done(const Event &e, uint64_t version) { return e.done >= version; }

bool runnable(const Stream &s) { return !s.queue.empty() && (!s.queue.front().waits || is_done(*s.queue.front().waits, s.queue.front().version)); }

/* False: it needs other processes, which are not there yet. */
bool run_one(Stream &s)
{
    if (s.queue.front().until) {
        enter();
        bool done = s.queue.front().until();
        leave();
        if (!done)
            return false;
    }
    Work w = std::move(s.queue.front());
    s.queue.pop_front();
    if (w.waits && w.waits->at_ms > s.clock_ms)
        s.clock_ms = w.waits->at_ms;
    if (w.run) {
        enter();
        w.run();
        leave();
    }
    s.clock_ms += w.takes_ms;
    if (w.marks) {
        w.marks->done = w.version > w.marks->done ? w.version : w.marks->done;
        w.marks->where.erase(w.version);
        w.marks->at_ms = s.clock_ms;
    }
    return true;
}

/* One piece of work of this stream, or of what it waits for. */
bool step(Stream &s, int depth)
{
    if (runnable(s))
        return run_one(s);
    auto at = s.queue.empty() ? decltype(Event::where)::iterator() : s.queue.front().waits->where.find(s.queue.front().version);
    if (s.queue.empty() || depth > 100 || at == s.queue.front().waits->where.end())
        pl_fake_wrong("a wait", "for what never ends");
    return step(*at->second, depth + 1);
}

/* In which order streams go where they are free to: only what is waited for, all others' work before, or as it is drawn. */
enum class Order { LAST, FIRST, DRAWN };

Order order_of_streams()
{
    const char *given = getenv("PL_FAKE_ORDER"), *seed = getenv("PL_TEST_SEED");
    if (given)
        return strcmp(given, "first") == 0 ? Order::FIRST : strcmp(given, "drawn") == 0 ? Order::DRAWN : Order::LAST;
    return seed ? (Order)(atoi(seed) % 3) : Order::LAST;
}

void run_until(Stream &s, const std::function<bool()> &enough)
{
    static const Order order = order_of_streams();
    static std::mt19937 draw(getenv("PL_TEST_SEED") ? (unsigned)atoi(getenv("PL_TEST_SEED")) : 0);
    bool first = order == Order::FIRST, drawn = order == Order::DRAWN;
    enter(); /* once for all of it */
    if (first)
        for (Stream *other : streams)
            while (other != &s && runnable(*other) && run_one(*other))
                ;
    while (!enough()) {
        Stream *other = drawn ? streams[draw() % streams.size()] : nullptr;
        if (other && runnable(*other))
            run_one(*other);
        else if (!step(s, 0))
            usleep(100);
    }
    leave();
}

void drain(Stream &s)
{
    run_until(s, [&] { return s.queue.empty(); });
}

Stream *find(cudaStream_t stream)
{
    for (Stream *s : streams)
        if ((cudaStream_t)s == stream)
            return s;
    return nullptr;
}

/* Whether this thread records, and so may not do what waits or takes memory. */
Stream *recording()
{
    for (Stream *s : streams)
        if (s->capturing && s->captor == std::this_thread::get_id())
            return s;
    return nullptr;
}

bool unsafe()
{
    Stream *s = recording();
    if (s)
        s->spoilt = true;
    return s;
}

/* Host memory that is unpinned while a copy is on its way. */
void check_idle(const char *call, const char *p, size_t bytes)
{
    for (Stream *s : streams)
        for (const Work &w : s->queue)
            if (w.host && w.host < p + bytes && p < w.host + w.host_bytes)
                pl_fake_wrong(call, "of memory that a copy is on its way from or to");
}

#define NOT_WHILE_RECORDING() \
    if (unsafe())             \
    return fail(cudaErrorStreamCaptureUnsupported)

void append(Stream &s, Work w)
{
    if (s.capturing)
        s.graph->work.push_back(std::move(w));
    else
        s.queue.push_back(std::move(w));
}

struct { std::string function; int calls; } to_fail;

} // namespace

bool pl_fake_submit_until(cudaStream_t stream, const std::function<bool()> &done)
{
    Guard guard(lock);
    Stream *s = find(stream);
    if (!s || s->device != current || recording())
        return false;
    Work w;
    w.until = done;
    s->queue.push_back(w);
    return true;
}

bool pl_fake_fails(const char *function)
{
    static bool asked;
    if (!asked) {
        const char *given = getenv("PL_FAKE_FAIL"), *colon = given ? strchr(given, ':') : nullptr;
        if (colon)
            to_fail = {std::string(given, colon), atoi(colon + 1)};
        asked = true;
    }
    return to_fail.calls > 0 && to_fail.function == function && --to_fail.calls == 0;
}

void pl_fake_wrong(const char *call, const char *what)
{
    fprintf(stderr, "%s: %s\n", call, what);
    abort();
}

void pl_fake_spoil(void *p, size_t bytes) { memset(p, 0xff, bytes); /* no numbers, in float and bf16 */ }

bool pl_fake_far(const void *p, size_t bytes)
{
    Guard guard(lock);
    auto next = blocks.upper_bound((char *)(uintptr_t)p);
    if (next == blocks.begin())
        return false;
    --next;
    return (const char *)p + bytes <= next->first + next->second.bytes;
}

static bool submit(cudaStream_t stream, Work w)
{
    Stream *s = find(stream);
    if (!s || (recording() && recording() != s)) /* work for another stream while one is recorded: never meant */
        return false;
    append(*s, std::move(w));
    return true;
}

/* Of kernels and libraries: the device that is current has to be the stream's. */
bool pl_fake_submit(cudaStream_t stream, double takes_ms, const std::function<void()> &work)
{
    Guard guard(lock);
    Work w;
    w.run = work;
    w.takes_ms = takes_ms;
    return find(stream) && find(stream)->device == current && submit(stream, w);
}

int pl_emulated_moves, pl_emulated_replays;

int pl_emulated_waiting(void)
{
    Guard guard(lock);
    size_t waiting = 0;
    for (Stream *s : streams)
        waiting += s->queue.size();
    return (int)waiting;
}

static void __attribute__((destructor)) tell(void)
{
    if (getenv("PL_FAKE_TELL"))
        fprintf(stderr, "stand-ins: %d copies within a device, %d of pageable memory; left: %d in device memory, %d pinned\n", pl_emulated_moves, pageable, (int)blocks.size(),
                (int)pinned.size());
}

/* ---- kernels ------------------------------------------------------------------------------------ */

extern "C" {

void pl_emulated_enter(void) { lock.lock(), enter(); }
void pl_emulated_leave(void) { leave(), lock.unlock(); }

void pl_emulated_check(const void *p)
{
    if (p && !pl_fake_far(p, 1))
        pl_fake_wrong("a kernel", "was given what is not device memory");
}
}

void pl_emulated_submit(void *stream, const std::function<void()> &work)
{
    if (pl_fake_fails("kernel"))
        last = cudaErrorInvalidConfiguration;
    else if (!pl_fake_submit((cudaStream_t)stream, 0.01, work))
        last = cudaErrorInvalidResourceHandle;
}

/* ---- the runtime's functions -------------------------------------------------------------------- */

extern "C" {

cudaError_t cudaGetLastError(void)
{
    cudaError_t e = last;
    last = cudaSuccess;
    return e;
}

cudaError_t cudaPeekAtLastError(void) { return last; }
const char *cudaGetErrorString(cudaError_t e) { return e == cudaErrorMemoryAllocation ? "out of memory" : e == cudaErrorUnknown ? "unknown error" : "an error"; }
const char *cudaGetErrorName(cudaError_t e) { return e == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : e == cudaErrorUnknown ? "cudaErrorUnknown" : "cudaError"; }

cudaError_t cudaDriverGetVersion(int *version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { return *version = CUDART_VERSION, cudaSuccess; }

cudaError_t cudaGetDeviceCount(int *count)
{
    const char *given = getenv("PL_FAKE_DEVICES");
    *count = given ? atoi(given) : 1;
    FAKE(cudaGetDeviceCount);
    return fail(*count > 0 ? cudaSuccess : cudaErrorNoDevice);
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device)
{
    FAKE(cudaGetDeviceProperties);
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "a device of the host's %d", device);
    p->major = 9;
    p->totalGlobalMem = memory_bytes();
    return cudaSuccess;
}

static cudaError_t is_device(int device)
{
    int devices = 0;
    cudaGetDeviceCount(&devices);
    return fail(device >= 0 && device < devices ? cudaSuccess : cudaErrorInvalidDevice);
}

cudaError_t cudaSetDevice(int device)
{
    cudaError_t e = is_device(device);
    if (e == cudaSuccess)
        current = device;
    return e;
}

cudaError_t cudaInitDevice(int device, unsigned deviceFlags, unsigned flags)
{
    FAKE(cudaInitDevice);
    (void)deviceFlags;
    return flags > cudaInitDeviceFlagsAreValid ? fail(cudaErrorInvalidValue) : is_device(device);
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { return *least = 0, *greatest = -5, cudaSuccess; }

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    FAKE(cudaMemGetInfo);
    *total = memory_bytes();
    *free_bytes = *total - taken;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **out, size_t bytes)
{
    FAKE(cudaMalloc);
    NOT_WHILE_RECORDING();
    size_t room = rounded(bytes), pages = (room + page() - 1) / page() * page();
    *out = nullptr;
    if (bytes == 0)
        return cudaSuccess; /* and no memory */
    if (taken + room > memory_bytes())
        return fail(cudaErrorMemoryAllocation);
    char *map = (char *)mmap(nullptr, pages + page(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        return fail(cudaErrorMemoryAllocation);
    pl_fake_spoil(map, pages);
    if (mprotect(map + pages, page(), PROT_NONE) != 0 || (!inside && mprotect(map, pages, PROT_NONE) != 0))
        abort();
    blocks[map + pages - room] = {map, pages, bytes, inside > 0};
    taken += room;
    *out = map + pages - room;
    return cudaSuccess;
}

/* Without a wait: work that still uses it finds nothing there. */
cudaError_t cudaFree(void *p)
{
    Guard guard(lock);
    NOT_WHILE_RECORDING();
    auto at = blocks.find((char *)p);
    if (!p)
        return cudaSuccess;
    if (at == blocks.end())
        return fail(cudaErrorInvalidValue);
    taken -= rounded(at->second.bytes);
    munmap(at->second.map, at->second.mapped + page());
    blocks.erase(at);
    ENDED(cudaFree);
}

cudaError_t cudaHostAlloc(void **out, size_t bytes, unsigned flags)
{
    FAKE(cudaHostAlloc);
    NOT_WHILE_RECORDING();
    (void)flags;
    if (posix_memalign(out, page(), (bytes + page() - 1) / page() * page()) != 0)
        return fail(cudaErrorMemoryAllocation);
    pinned[(const char *)*out] = {bytes, true};
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *p)
{
    Guard guard(lock);
    auto at = pinned.find((const char *)p);
    if (at == pinned.end() || !at->second.ours)
        return fail(cudaErrorInvalidValue);
    check_idle("cudaFreeHost", at->first, at->second.bytes);
    pinned.erase(at);
    free(p);
    ENDED(cudaFreeHost);
}

cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned flags)
{
    FAKE(cudaHostRegister);
    (void)flags;
    uintptr_t from = (uintptr_t)p / page(), to = ((uintptr_t)p + bytes + page() - 1) / page();
    if (!p || bytes == 0)
        return fail(cudaErrorInvalidValue);
    for (auto &other : pinned) {
        uintptr_t a = (uintptr_t)other.first / page(), b = ((uintptr_t)other.first + other.second.bytes + page() - 1) / page();
        if (from < b && a < to)
            return fail(cudaErrorHostMemoryAlreadyRegistered);
    }
    pinned[(const char *)p] = {bytes, false};
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *p)
{
    FAKE(cudaHostUnregister);
    auto at = pinned.find((const char *)p);
    if (at == pinned.end() || at->second.ours)
        return fail(cudaErrorHostMemoryNotRegistered);
    check_idle("cudaHostUnregister", at->first, at->second.bytes);
    pinned.erase(at);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *p, int byte, size_t bytes, cudaStream_t stream)
{
    FAKE(cudaMemsetAsync);
    if (!pl_fake_far(p, bytes))
        return fail(cudaErrorInvalidValue);
    Work w;
    w.run = [=] { memset(p, byte, bytes); };
    return fail(submit(stream, w) ? cudaSuccess : cudaErrorInvalidResourceHandle);
}

/* Pageable memory of the host is copied before the call returns: to the device by way of a copy, to the host when all before it is done. */
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    FAKE(cudaMemcpyAsync);
    bool to_far = kind != cudaMemcpyDeviceToHost, from_far = kind != cudaMemcpyHostToDevice;
    Stream *s = find(stream);
    if (!s || kind == cudaMemcpyHostToHost || kind == cudaMemcpyDefault)
        return fail(cudaErrorInvalidValue);
    if (pl_fake_far(to, bytes) != to_far || pl_fake_far(from, bytes) != from_far)
        return fail(cudaErrorInvalidValue);
    pl_emulated_moves += to_far && from_far;
    int how = to_far && from_far ? 2 : is_pinned(to_far ? from : to, bytes);
    if (how == 1)
        return fail(cudaErrorInvalidValue);
    if (how == 0)
        NOT_WHILE_RECORDING();
    pageable += how == 0;
    Work w;
    w.run = [=] { memcpy(to, from, bytes); };
    if (how == 0 && to_far) {
        std::vector<char> copy((const char *)from, (const char *)from + bytes);
        w.run = [=] { memcpy(to, copy.data(), copy.size()); };
    } else if (!(to_far && from_far)) {
        w.host = (const char *)(to_far ? from : to);
        w.host_bytes = bytes;
    }
    if (!submit(stream, w))
        return fail(cudaErrorInvalidResourceHandle);
    if (how == 0 && !to_far)
        drain(*s);
    return cudaSuccess;
}

/* ---- streams and events ------------------------------------------------------------------------- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags)
{
    FAKE(cudaStreamCreateWithFlags);
    if (flags != cudaStreamNonBlocking) /* others wait for the stream that nobody here means to use */
        return fail(cudaErrorInvalidValue);
    streams.push_back(new Stream);
    streams.back()->device = current;
    *out = (cudaStream_t)streams.back();
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned flags, int priority)
{
    (void)priority;
    return cudaStreamCreateWithFlags(out, flags);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    Guard guard(lock);
    Stream *s = find(stream);
    if (!s)
        return fail(cudaErrorInvalidResourceHandle);
    drain(*s); /* on a device it goes when its work is done */
    for (size_t i = 0; i < streams.size(); i++)
        if (streams[i] == s)
            streams.erase(streams.begin() + (long)i);
    delete s;
    ENDED(cudaStreamDestroy);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    Guard guard(lock);
    Stream *s = find(stream);
    NOT_WHILE_RECORDING();
    if (!s)
        return fail(cudaErrorInvalidResourceHandle);
    drain(*s);
    return pl_fake_fails("cudaStreamSynchronize") ? fail(cudaErrorUnknown) : cudaSuccess; /* what failed is the work */
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags)
{
    FAKE(cudaEventCreateWithFlags);
    std::shared_ptr<Event> e(new Event);
    e->timing = !(flags & cudaEventDisableTiming);
    *out = (cudaEvent_t)e.get();
    events[*out] = e;
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *out) { return cudaEventCreateWithFlags(out, cudaEventDefault); }

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    Guard guard(lock);
    if (!events.erase(event))
        return fail(cudaErrorInvalidResourceHandle);
    ENDED(cudaEventDestroy);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    FAKE(cudaEventRecord);
    Stream *s = find(stream);
    if (!events.count(event) || !s)
        return fail(cudaErrorInvalidResourceHandle);
    NOT_WHILE_RECORDING(); /* it would be of the recording alone: not modelled */
    Event &e = *events[event];
    Work w;
    w.marks = events[event];
    w.version = ++e.recorded;
    e.where[w.version] = s;
    append(*s, w);
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    FAKE(cudaStreamWaitEvent);
    Stream *s = find(stream);
    if (!events.count(event) || !s || flags != 0)
        return fail(cudaErrorInvalidResourceHandle);
    NOT_WHILE_RECORDING();
    Work w;
    w.waits = events[event];
    w.version = w.waits->recorded; /* 0: never recorded, nothing to wait for */
    append(*s, w);
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    Guard guard(lock);
    if (!events.count(event))
        return fail(cudaErrorInvalidResourceHandle);
    NOT_WHILE_RECORDING();
    Event &e = *events[event];
    uint64_t version = e.recorded;
    if (!is_done(e, version))
        run_until(*e.where[version], [&] { return is_done(e, version); });
    return pl_fake_fails("cudaEventSynchronize") ? fail(cudaErrorUnknown) : cudaSuccess;
}

/* Never at the first question; that it is not yet done stays as the thread's last error. */
cudaError_t cudaEventQuery(cudaEvent_t event)
{
    FAKE(cudaEventQuery);
    if (!events.count(event))
        return fail(cudaErrorInvalidResourceHandle);
    NOT_WHILE_RECORDING();
    Event &e = *events[event];
    if (is_done(e, e.recorded))
        return cudaSuccess;
    step(*e.where[e.recorded], 0);
    return fail(cudaErrorNotReady);
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t begin, cudaEvent_t end)
{
    FAKE(cudaEventElapsedTime);
    if (!events.count(begin) || !events.count(end) || !events[begin]->timing || !events[end]->timing || !events[begin]->recorded || !events[end]->recorded)
        return fail(cudaErrorInvalidResourceHandle);
    if (!is_done(*events[begin], events[begin]->recorded) || !is_done(*events[end], events[end]->recorded))
        return fail(cudaErrorNotReady);
    *ms = (float)(events[end]->at_ms - events[begin]->at_ms);
    return cudaSuccess;
}

/* ---- graphs ------------------------------------------------------------------------------------- */

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    FAKE(cudaStreamBeginCapture);
    Stream *s = find(stream);
    if (!s || s->capturing || mode != cudaStreamCaptureModeThreadLocal)
        return fail(cudaErrorIllegalState);
    s->capturing = true;
    s->spoilt = false;
    s->captor = std::this_thread::get_id();
    s->graph = std::make_shared<Graph>();
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out)
{
    Guard guard(lock);
    Stream *s = find(stream);
    *out = nullptr;
    if (!s || !s->capturing || s->captor != std::this_thread::get_id())
        return fail(cudaErrorIllegalState);
    s->capturing = false;
    std::shared_ptr<Graph> graph = s->graph;
    s->graph.reset();
    if (s->spoilt || pl_fake_fails("cudaStreamEndCapture"))
        return fail(cudaErrorStreamCaptureInvalidated);
    *out = (cudaGraph_t) new std::shared_ptr<Graph>(graph);
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long flags)
{
    FAKE(cudaGraphInstantiate);
    if (!graph || flags != 0)
        return fail(cudaErrorInvalidValue);
    *out = (cudaGraphExec_t) new std::shared_ptr<Graph>(*(std::shared_ptr<Graph> *)graph);
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete (std::shared_ptr<Graph> *)graph, cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return delete (std::shared_ptr<Graph> *)graph, cudaSuccess; }

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream)
{
    FAKE(cudaGraphLaunch);
    Stream *s = find(stream);
    if (!s || !graph)
        return fail(cudaErrorInvalidResourceHandle);
    NOT_WHILE_RECORDING();
    pl_emulated_replays++;
    for (const Work &w : (*(std::shared_ptr<Graph> *)graph)->work)
        append(*s, w);
    return cudaSuccess;
}
}
