/* Whose directory it is: one line in dir/owner, of the run that began there last. */
#include "checkpoint/files.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define OWNER_FILE "owner"

static void who_am_i(char owner[PL_OWNER_BYTES])
{
    char host[64] = "", when[32];
    struct timespec now;
    struct tm utc;
    const char *job = getenv("SLURM_JOB_ID");
    gethostname(host, sizeof host - 1);
    clock_gettime(CLOCK_REALTIME, &now);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", gmtime_r(&now.tv_sec, &utc));
    snprintf(owner, PL_OWNER_BYTES, "process %d of %s, begun %s.%09ldZ%s%.32s", (int)getpid(), host, when, now.tv_nsec, job ? ", Slurm job " : "", job ? job : "");
}

/* From now on what lies there half done is nobody's. By a rename: who reads it at the same time finds the old one or the new one. */
pl_status pl_checkpoint_own(const char *dir, char owner[PL_OWNER_BYTES])
{
    memset(owner, 0, PL_OWNER_BYTES);
    who_am_i(owner);
    char *to = pl_strdupf("%s/" OWNER_FILE, dir), *from = pl_strdupf("%s/." OWNER_FILE "-%d", dir, (int)getpid()), *line = pl_strdupf("%s\n", owner);
    pl_status s = to && from && line ? pl_checkpoint_write_text(from, line) : PL_ERR_MEMORY;
    if (s == PL_OK && rename(from, to) != 0)
        s = pl_error(PL_ERR_CHECKPOINT, "checkpoint", "%s: cannot be renamed: %s", to, strerror(errno));
    if (s < 0 && from)
        unlink(from);
    if (s == PL_OK)
        pl_checkpoint_remove_old_parts(dir);
    pl_free(to);
    pl_free(from);
    pl_free(line);
    return s;
}

/* As it says of itself; empty: nothing to be read. */
static void read_owner(const char *dir, char owner[PL_OWNER_BYTES])
{
    char *path = pl_strdupf("%s/" OWNER_FILE, dir);
    FILE *f = path ? fopen(path, "r") : NULL;
    if (!f || !fgets(owner, PL_OWNER_BYTES, f))
        owner[0] = '\0';
    owner[strcspn(owner, "\n")] = '\0';
    if (f)
        fclose(f);
    pl_free(path);
}

/* now: who has begun there last, if that can be read. */
static bool is_owner(const char *dir, const char *owner, char now[PL_OWNER_BYTES])
{
    if (!owner || !owner[0])
        return true;
    read_owner(dir, now);
    return !now[0] || strcmp(now, owner) == 0;
}

bool pl_checkpoint_owned(const char *dir, const char *owner)
{
    char now[PL_OWNER_BYTES];
    return is_owner(dir, owner, now);
}

pl_status pl_checkpoint_still_owned(const char *dir, const char *owner)
{
    char now[PL_OWNER_BYTES];
    if (is_owner(dir, owner, now))
        return PL_OK;
    return pl_error(PL_ERR_CHECKPOINT, "checkpoint", "%s: another run has begun here since (%s): this one ends and leaves the directory to it", dir, now);
}
