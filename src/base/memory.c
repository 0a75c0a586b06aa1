/* Zeroed memory aligned to a cache line, counted, and size arithmetic that refuses to wrap. */
#include "base/base.h"

#include <limits.h>
#include <malloc.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ALIGNMENT 64

#define MUCH ((size_t)64 << 20) /* from here on it is compared with what the node has */

static _Atomic uint64_t allocations;
static _Atomic int sharers = 1;
static _Atomic uint64_t held; /* bytes */
static _Atomic uint64_t own_limit; /* bytes; 0: none */
static const char *own_limit_name;

void pl_alloc_sharers(int processes) { atomic_store(&sharers, processes > 1 ? processes : 1); }

double pl_memory_info(const char *name)
{
    char line[128];
    unsigned long long kb;
    double bytes = HUGE_VAL;
    FILE *f = fopen("/proc/meminfo", "r");
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, name, strlen(name)) == 0 && sscanf(line + strlen(name), ": %llu kB", &kb) == 1)
            bytes = (double)kb * 1024;
    if (f)
        fclose(f);
    return bytes;
}

static double read_limit(const char *path)
{
    unsigned long long bytes;
    FILE *f = fopen(path, "r");
    bool known = f && fscanf(f, "%llu", &bytes) == 1; /* or "max" */
    if (f)
        fclose(f);
    return known ? (double)bytes : HUGE_VAL;
}

/* The least limit of this process's cgroup and those above it: Slurm and containers set one. */
static double cgroup_limit(void)
{
    char line[1024], path[1200];
    double least = HUGE_VAL;
    FILE *f = fopen("/proc/self/cgroup", "r");
    while (f && fgets(line, sizeof line, f)) {
        char *at = strncmp(line, "0::", 3) == 0 ? line + 3 : strstr(line, ":memory:"), *end;
        bool second = at == line + 3; /* version 2 */
        if (!at)
            continue;
        at += second ? 0 : (int)strlen(":memory:");
        at[strcspn(at, "\n")] = '\0';
        for (; *at; *end = '\0') {
            snprintf(path, sizeof path, second ? "/sys/fs/cgroup%s/memory.max" : "/sys/fs/cgroup/memory%s/memory.limit_in_bytes", at);
            double limit = read_limit(path);
            least = limit < least ? limit : least;
            if (!(end = strrchr(at, '/')))
                break;
        }
    }
    if (f)
        fclose(f);
    return least;
}

/* What all sharers together may have of this machine. */
static double most_memory(void)
{
    double swap = pl_memory_info("SwapTotal"), machine = pl_memory_info("MemTotal") + (isfinite(swap) ? swap : 0), group = cgroup_limit();
    return group < machine ? group : machine;
}

void pl_memory_limit(double bytes, const char *name)
{
    own_limit_name = name;
    atomic_store(&own_limit, (uint64_t)bytes);
}

double pl_memory_left(void)
{
    double limit = (double)atomic_load(&own_limit), left = limit - (double)atomic_load(&held);
    return limit == 0 ? HUGE_VAL : left > 0 ? left : 0;
}

static void too_much(size_t bytes, const char *what, int n, double most)
{
    double before = (double)atomic_load(&held) / 1e6;
    if ((double)bytes > pl_memory_left())
        pl_error(PL_ERR_MEMORY, "memory", "no %.1f MB for %s, after %.1f MB: %s gives a rank %.1f MB", (double)bytes / 1e6, what, before,
                 own_limit_name, (double)atomic_load(&own_limit) / 1e6);
    else if (n > 1)
        pl_error(PL_ERR_MEMORY, "memory", "no %.1f MB for %s, after %.1f MB, on each of %d ranks: this node has %.1f MB for all", (double)bytes / 1e6, what, before, n, most / 1e6);
    else
        pl_error(PL_ERR_MEMORY, "memory", "no %.1f MB for %s, after %.1f MB: this node has %.1f MB", (double)bytes / 1e6, what, before, most / 1e6);
}

static bool fits(size_t bytes, int ranks, double *most)
{
    *most = HUGE_VAL;
    if ((double)bytes > pl_memory_left())
        return false;
    if (bytes >= MUCH)
        *most = most_memory();
    return ((double)atomic_load(&held) + (double)bytes) * ranks <= *most;
}

bool pl_memory_hold(size_t bytes)
{
    double most;
    if (!fits(bytes, atomic_load(&sharers), &most))
        return false;
    atomic_fetch_add(&held, bytes);
    return true;
}

void pl_memory_release(size_t bytes) { atomic_fetch_sub(&held, bytes); }

/* In whole units, of which each begins at a multiple of itself. */
static void *take(size_t bytes, size_t unit, const char *what, int ranks)
{
    void *p = NULL;
    size_t rounded = (bytes + unit - 1) / unit * unit;
    double most = 0;
    atomic_fetch_add(&allocations, 1);
    if (!fits(rounded, ranks, &most)) {
        too_much(rounded, what, ranks, most);
        return NULL;
    }
    if (rounded < bytes || posix_memalign(&p, unit, rounded ? rounded : unit) != 0) {
        pl_error(PL_ERR_MEMORY, "memory", "no %.1f MB left for %s", (double)bytes / 1e6, what);
        return NULL;
    }
    atomic_fetch_add(&held, malloc_usable_size(p)); /* as pl_free takes it off */
    memset(p, 0, rounded ? rounded : unit);
    return p;
}

void *pl_alloc(size_t bytes, const char *what) { return take(bytes, ALIGNMENT, what, atomic_load(&sharers)); }
void *pl_alloc_alone(size_t bytes, const char *what) { return take(bytes, ALIGNMENT, what, 1); }
void *pl_alloc_pages(size_t bytes, const char *what) { return take(bytes, (size_t)sysconf(_SC_PAGESIZE), what, atomic_load(&sharers)); }

void *pl_realloc(void *p, size_t old_bytes, size_t new_bytes, const char *what)
{
    void *q = pl_alloc(new_bytes, what);
    if (q && p) {
        memcpy(q, p, old_bytes < new_bytes ? old_bytes : new_bytes);
        pl_free(p);
    }
    return q;
}

void pl_free(void *p)
{
    atomic_fetch_sub(&held, p ? malloc_usable_size(p) : 0);
    free(p);
}

char *pl_strdup(const char *s)
{
    size_t bytes = strlen(s) + 1;
    char *copy = pl_alloc(bytes, "a string");
    return copy ? memcpy(copy, s, bytes) : NULL;
}

__attribute__((noinline)) /* gcc 12 with sanitizers takes an inlined format for NULL */
char *pl_strdupf(const char *fmt, ...)
{
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, args);
    char *s = pl_alloc((size_t)n + 1, "a string");
    if (s)
        vsnprintf(s, (size_t)n + 1, fmt, again);
    va_end(again);
    va_end(args);
    return s;
}

uint64_t pl_alloc_count(void) { return atomic_load(&allocations); }

bool pl_mul_size(size_t a, size_t b, size_t *out) { return !__builtin_mul_overflow(a, b, out); }

pl_status pl_narrow_int(int64_t n, const char *what, int *out)
{
    if (n < 0 || n > INT_MAX)
        return pl_error(PL_ERR_USAGE, "memory", "%s of %lld does not fit an int", what, (long long)n);
    *out = (int)n;
    return PL_OK;
}
