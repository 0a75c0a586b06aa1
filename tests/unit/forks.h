/* For tests: ranks as forked processes, which set transports up through memory that they share. No MPI, so that
 * ThreadSanitizer sees all there is. */
#ifndef FORKS_H
#define FORKS_H

#include "transport/transport.h"

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FORKS_MOST = 16, FORKS_BYTES = 65536 };

struct forks {
    int members;
    _Atomic int arrived, failures;
    _Atomic unsigned turn;
    unsigned char data[FORKS_MOST][FORKS_BYTES];
};

static int forks_rank[FORKS_MOST] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

static inline void forks_barrier(struct forks *f)
{
    unsigned turn = atomic_load(&f->turn);
    if (atomic_fetch_add(&f->arrived, 1) == f->members - 1) {
        atomic_store(&f->arrived, 0);
        atomic_fetch_add(&f->turn, 1);
    } else {
        while (atomic_load(&f->turn) == turn)
            sched_yield();
    }
}

struct forks_arg { struct forks *forks; int me; };

static inline pl_status forks_allgather(void *arg, const void *mine, size_t bytes, void *all)
{
    struct forks_arg *a = arg;
    if (bytes > FORKS_BYTES)
        abort();
    memcpy(a->forks->data[a->me], mine, bytes);
    forks_barrier(a->forks);
    for (int r = 0; r < a->forks->members; r++)
        memcpy((char *)all + (size_t)r * bytes, a->forks->data[r], bytes);
    forks_barrier(a->forks);
    return PL_OK;
}

/* AddressSanitizer's: a child ends without the check for leaks that is made at exit. Tests whose children leave memory
 * behind with a lost peer, as a process does that is about to end, do without. */
static bool forks_checks_leaks;
extern int __lsan_do_recoverable_leak_check(void) __attribute__((weak));
static inline bool forks_leaks(void) { return __lsan_do_recoverable_leak_check && __lsan_do_recoverable_leak_check() != 0; }

/* A process that ends with its parent, and at once when it goes wrong: cmocka would go on with the next test in it. */
static inline pid_t forks_fork(void)
{
    static const int fatal[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGSYS};
    fflush(NULL);
    pid_t pid = fork();
    if (pid < 0)
        abort();
    for (size_t i = 0; pid == 0 && i < sizeof fatal / sizeof *fatal; i++)
        signal(fatal[i], SIG_DFL);
    if (pid == 0)
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    return pid;
}

/* Runs body in so many processes; returns how many of them failed: body returned false, or a signal. */
static inline int forks_run(int members, bool (*body)(const struct pl_group *g, struct forks *f, void *arg), void *arg)
{
    struct forks *f = mmap(NULL, sizeof *f, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t pid[FORKS_MOST];
    int failures = 0;
    if (f == MAP_FAILED)
        abort();
    f->members = members;
    for (int r = 0; r < members; r++) {
        pid[r] = forks_fork();
        if (pid[r] != 0)
            continue;
        struct forks_arg a = {f, r};
        struct pl_group g = {.me = r, .members = members, .rank = forks_rank, .one_node = true, .allgather = forks_allgather, .arg = &a};
        bool right = body(&g, f, arg);
        if (!right)
            fprintf(stderr, "rank %d of %d failed; its error: %s\n", r, members, pl_error_text() ? pl_error_text() : "none");
        fflush(NULL);
        _exit(right && !(forks_checks_leaks && forks_leaks()) ? 0 : 1);
    }
    for (int r = 0; r < members; r++) {
        int code = 0;
        waitpid(pid[r], &code, 0);
        failures += code != 0;
    }
    munmap(f, sizeof *f);
    return failures;
}

#endif
