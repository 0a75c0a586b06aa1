/* What the stand-in of runtime.c does with work: runs it at once, or while a pass is recorded keeps it for replays. */
#include "emulated.h"

#include <vector>

struct pl_recording { std::vector<std::function<void()>> work; };
static pl_recording *recording;

void pl_emulated_submit(void *, const std::function<void()> &work)
{
    if (recording)
        recording->work.push_back(work);
    else
        work();
}

extern "C" void pl_emulated_do(void (*run)(const void *arg), const void *arg, size_t bytes)
{
    std::vector<char> copy((const char *)arg, (const char *)arg + bytes);
    pl_emulated_submit(nullptr, [run, copy] {
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
