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

void pl_emulated_run(void *stream, dim3 blocks, const std::function<void()> &kernel)
{
    pl_emulated_submit(stream, [blocks, kernel] { run_grid(blocks, kernel); });
}
