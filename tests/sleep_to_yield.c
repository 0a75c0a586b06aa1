/* Loaded before libc into every program of a test. Tests run more ranks than there are cores, and MPI's wait by sched_yield() in turns,
 * millions of times a second. Linux 6.18 loses count over that: for two minutes at a time nothing but those who yield is run, not even
 * the kernel's own threads ("rcu_preempt kthread starved" in dmesg), and tests miss their limits. Whoever sleeps gives the core away
 * for sure. */
#define _GNU_SOURCE
#include <sched.h>
#include <time.h>

int sched_yield(void)
{
    struct timespec least = {0, 1}; /* and the timer's slack, 50 us */
    nanosleep(&least, NULL);
    return 0;
}
