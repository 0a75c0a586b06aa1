/* Zeroed memory aligned to a cache line, counted, and size arithmetic that refuses to wrap. */
#include "base/base.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ALIGNMENT 64

static _Atomic uint64_t allocations;

/* In whole units, of which each begins at a multiple of itself. */
static void *take(size_t bytes, size_t unit, const char *what)
{
    void *p = NULL;
    size_t rounded = (bytes + unit - 1) / unit * unit;
    atomic_fetch_add(&allocations, 1);
    if (rounded < bytes || posix_memalign(&p, unit, rounded ? rounded : unit) != 0) {
        pl_error(PL_ERR_MEMORY, "memory", "no %.1f MB left for %s", (double)bytes / 1e6, what);
        return NULL;
    }
    memset(p, 0, rounded ? rounded : unit);
    return p;
}

void *pl_alloc(size_t bytes, const char *what) { return take(bytes, ALIGNMENT, what); }
void *pl_alloc_pages(size_t bytes, const char *what) { return take(bytes, (size_t)sysconf(_SC_PAGESIZE), what); }

void *pl_realloc(void *p, size_t old_bytes, size_t new_bytes, const char *what)
{
    void *q = pl_alloc(new_bytes, what);
    if (q && p) {
        memcpy(q, p, old_bytes < new_bytes ? old_bytes : new_bytes);
        free(p);
    }
    return q;
}

void pl_free(void *p) { free(p); }

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
