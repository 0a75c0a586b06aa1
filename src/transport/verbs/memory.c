/* How much a process may pin. Memory that a device reads and writes stays in place, and counts against RLIMIT_MEMLOCK;
 * batch systems hand on limits of 64 KB, and then ibv_reg_mr says no more than "Cannot allocate memory". */
#include "transport/verbs/verbs.h"

#include <stdlib.h>
#include <sys/resource.h>

#define CAP_IPC_LOCK_BIT 14

/* A number of /proc/self/status. */
static uint64_t status_number(const char *key, int base)
{
    char line[256];
    uint64_t v = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, key, strlen(key)) == 0)
            v = strtoull(line + strlen(key), NULL, base);
    if (f)
        fclose(f);
    return v;
}

pl_status pl_verbs_may_pin(size_t bytes)
{
    struct rlimit l;
    if (getrlimit(RLIMIT_MEMLOCK, &l) != 0)
        return PL_OK;
    if (l.rlim_cur != l.rlim_max) {
        l.rlim_cur = l.rlim_max;
        setrlimit(RLIMIT_MEMLOCK, &l);
    }
    if (l.rlim_max == RLIM_INFINITY || (status_number("CapEff:", 16) >> CAP_IPC_LOCK_BIT & 1))
        return PL_OK;
    size_t pinned = (size_t)status_number("VmPin:", 10) * 1024;
    if (bytes <= l.rlim_max && pinned <= l.rlim_max - bytes)
        return PL_OK;
    return pl_error(PL_ERR_PEER, "transport verbs",
                    "%zu KB of memory must be pinned besides %zu KB, and the limit on locked memory (RLIMIT_MEMLOCK) is %zu KB\n"
                    "ulimit -l unlimited before the start; under Slurm PropagateResourceLimitsExcept=MEMLOCK in slurm.conf and "
                    "LimitMEMLOCK=infinity in slurmd's unit",
                    (bytes + 1023) / 1024, pinned / 1024, (size_t)l.rlim_max / 1024);
}
