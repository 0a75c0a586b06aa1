/* Time: a monotonic clock in milliseconds, sleeping, deadlines. */
#include "base/base.h"

#include <errno.h>
#include <time.h>

double pl_now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

void pl_sleep_ms(double ms)
{
    struct timespec t = {.tv_sec = (time_t)(ms / 1e3)};
    t.tv_nsec = (long)((ms - (double)t.tv_sec * 1e3) * 1e6);
    while (nanosleep(&t, &t) != 0 && errno == EINTR)
        ;
}

void pl_sleep_until_ms(double when_ms)
{
    struct timespec t = {.tv_sec = (time_t)(when_ms / 1e3)};
    t.tv_nsec = (long)((when_ms - (double)t.tv_sec * 1e3) * 1e6);
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
        ;
}

void pl_deadline(double ms, struct timespec *out)
{
    clock_gettime(CLOCK_REALTIME, out);
    out->tv_sec += (time_t)(ms / 1e3);
    out->tv_nsec += (long)((ms - (double)(time_t)(ms / 1e3) * 1e3) * 1e6);
    if (out->tv_nsec >= 1000000000) {
        out->tv_sec++;
        out->tv_nsec -= 1000000000;
    }
}
