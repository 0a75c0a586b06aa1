/* The grid of emulated.h: blocks one after the other, their threads at once. */
#include "emulated.h"

#include <cstdlib>
#include <pthread.h>
#include <thread>
#include <vector>

thread_local dim3 blockIdx, threadIdx;
dim3 blockDim, gridDim;

static pthread_barrier_t barrier;

void pl_emulated_barrier()
{
    if (blockDim.x > 1)
        pthread_barrier_wait(&barrier);
}

static void run_blocks(unsigned thread, const std::function<void()> &kernel)
{
    threadIdx.x = thread, threadIdx.y = threadIdx.z = 0;
    for (unsigned y = 0; y < gridDim.y; y++)
        for (unsigned x = 0; x < gridDim.x; x++) {
            blockIdx.x = x, blockIdx.y = y, blockIdx.z = 0;
            kernel();
            pl_emulated_barrier();
        }
}

struct pl_recording { std::vector<std::function<void()>> work; };
static pl_recording *recording;

static void do_or_keep(const std::function<void()> &work)
{
    if (recording)
        recording->work.push_back(work);
    else
        work();
}

extern "C" void pl_emulated_do(void (*run)(const void *arg), const void *arg, size_t bytes)
{
    std::vector<char> copy((const char *)arg, (const char *)arg + bytes);
    do_or_keep([run, copy] {
        pl_emulated_enter();
        run(copy.data());
        pl_emulated_leave();
    });
}

extern "C" void pl_emulated_record(bool begin, pl_recording **out)
{
    if (!begin)
        *out = recording;
    recording = begin ? new pl_recording : nullptr;
}

extern "C" bool pl_emulated_records(void) { return recording; }

int pl_emulated_replays;

extern "C" void pl_emulated_replay(const pl_recording *r)
{
    pl_emulated_replays++;
    for (const auto &work : r->work)
        work();
}

extern "C" void pl_emulated_forget(pl_recording *r) { delete r; }

static void run_grid(dim3 blocks, const std::function<void()> &kernel)
{
    const char *threads = std::getenv("PL_EMULATED_THREADS");
    if (blocks.x < 1 || blocks.y < 1 || blocks.y > 65535)
        std::abort(); /* a device refuses them too */
    gridDim = dim3(blocks.x < 2 ? 1 : 2, blocks.y < 2 ? 1 : 2);
    blockDim = dim3(threads ? (unsigned)std::atoi(threads) : 1);
    pl_emulated_enter();
    if (blockDim.x > 1) {
        std::vector<std::thread> team;
        pthread_barrier_init(&barrier, nullptr, blockDim.x);
        for (unsigned t = 1; t < blockDim.x; t++)
            team.emplace_back([t, &kernel] { run_blocks(t, kernel); });
        run_blocks(0, kernel);
        for (std::thread &t : team)
            t.join();
        pthread_barrier_destroy(&barrier);
    } else {
        run_blocks(0, kernel);
    }
    pl_emulated_leave();
}

void pl_emulated_run(dim3 blocks, const std::function<void()> &kernel)
{
    do_or_keep([blocks, kernel] { run_grid(blocks, kernel); });
}
