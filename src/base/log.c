/* Messages for people, on stderr, each in one write so that lines of several ranks do not mix. */
#include "base/base.h"

#include <string.h>
#include <unistd.h>

static int my_rank, my_ranks = 1;
static char my_host[64];
static _Atomic int64_t my_step = -1;

void pl_log_identity(int rank, int ranks, const char *host)
{
    my_rank = rank;
    my_ranks = ranks;
    snprintf(my_host, sizeof my_host, "%s", host);
}

void pl_log_step(int64_t step) { atomic_store(&my_step, step); }

static void put(char *line, size_t n, size_t bytes)
{
    if (n > bytes - 2)
        n = bytes - 2;
    line[n] = '\n';
    while (n + 1 > 0 && write(STDERR_FILENO, line, n + 1) < 0 && n > 0)
        break; /* nobody to tell */
}

void pl_log(const char *fmt, ...)
{
    char line[4608];
    int64_t step = atomic_load(&my_step);
    if (!*my_host)
        gethostname(my_host, sizeof my_host - 1);
    int n = snprintf(line, sizeof line, "[rank %d/%d %s", my_rank, my_ranks, my_host);
    if (step >= 0)
        n += snprintf(line + n, sizeof line - (size_t)n, " step %lld", (long long)step);
    n += snprintf(line + n, sizeof line - (size_t)n, "] ");
    va_list args;
    va_start(args, fmt);
    n += vsnprintf(line + n, sizeof line - (size_t)n, fmt, args);
    va_end(args);
    put(line, (size_t)n, sizeof line);
}

void pl_log_root(const char *fmt, ...)
{
    char line[4608];
    if (my_rank != 0)
        return;
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    put(line, (size_t)n, sizeof line);
}
