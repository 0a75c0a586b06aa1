/* Staging: the files of the sets are copied to a directory on the node's own disk before they are read.
 * The ranks of a node share the files out, each is copied by one of them. A copy is written under another
 * name and renamed when whole, with the time of what it was copied from: one of the same length and time
 * is used as it is, by this run or the next. Two jobs that copy the same file at the same time each write
 * their own, and the last to rename wins with the same content. */
#include "data/dataset.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define PIECE_BYTES (4u << 20)
#define PREFIX ".staging-"

/* The name tells files of one name in different folders apart. */
char *pl_stage_path(const char *dir, const char *path)
{
    char *real = realpath(path, NULL);
    const char *whole = real ? real : path, *slash = strrchr(path, '/');
    uint64_t h = pl_hash(PL_HASH_START, whole, strlen(whole));
    free(real);
    return pl_strdupf("%s/%08x-%s", dir, (unsigned)(h ^ h >> 32), slash ? slash + 1 : path);
}

struct staging {
    struct pl_world *world;
    const char *dir;
    struct pl_files files;
    struct { double copied, reused, bytes; } done; /* by this rank */
    double begin_ms, said_ms;
    unsigned char *piece; /* [PIECE_BYTES] */
};

static pl_status failed(const char *path, const char *what, int code)
{
    return pl_error(PL_ERR_DATA, "data", "%s: %s: %s", path, what, strerror(code));
}

static bool same_file(const struct stat *a, const struct stat *b)
{
    return a->st_size == b->st_size && a->st_mtim.tv_sec == b->st_mtim.tv_sec &&
           a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

/* ---- before copying ------------------------------------------------------------------------------ */

/* What a killed job left: nobody holds its lock. */
static void remove_leftovers(const char *dir)
{
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));) {
        if (strncmp(e->d_name, PREFIX, strlen(PREFIX)) != 0)
            continue;
        char *path = pl_strdupf("%s/%s", dir, e->d_name);
        int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0)
            unlink(path);
        if (fd >= 0)
            close(fd);
        pl_free(path);
    }
    if (d)
        closedir(d);
}

/* True where the copy is there already. */
static pl_status look(const char *from, const char *to, struct stat *source, bool *there)
{
    struct stat copy;
    if (stat(from, source) != 0)
        return failed(from, "cannot be read", errno);
    if (!S_ISREG(source->st_mode))
        return pl_error(PL_ERR_DATA, "data", "%s: not a regular file", from);
    *there = stat(to, &copy) == 0 && same_file(source, &copy);
    return PL_OK;
}

static pl_status missing_bytes(const struct staging *s, int64_t *bytes)
{
    *bytes = 0;
    for (int i = 0; i < s->files.n; i++) {
        struct stat source;
        bool there;
        char *to = pl_stage_path(s->dir, s->files.path[i]);
        pl_status status = to ? look(s->files.path[i], to, &source, &there) : PL_ERR_MEMORY;
        pl_free(to);
        PL_TRY(status);
        *bytes += there ? 0 : (int64_t)source.st_size;
    }
    return PL_OK;
}

static pl_status check_space(const struct staging *s)
{
    int64_t bytes;
    struct statvfs v;
    if (pl_make_dirs(s->dir, "data") < 0)
        return PL_ERR_DATA;
    remove_leftovers(s->dir);
    PL_TRY(missing_bytes(s, &bytes));
    if (statvfs(s->dir, &v) != 0)
        return failed(s->dir, "cannot be looked at", errno);
    double room = (double)v.f_bavail * (double)v.f_frsize;
    if (room < (double)bytes)
        return pl_error(PL_ERR_DATA, "data",
                        "%s: %.3f MB are to be staged, %.3f MB are free: %.3f MB are missing\n"
                        "free them, or give another data.stage, or none to read the files where they are",
                        s->dir, (double)bytes / 1e6, room / 1e6, ((double)bytes - room) / 1e6);
    return PL_OK;
}

/* ---- copying ------------------------------------------------------------------------------------- */

static void show_progress(struct staging *s)
{
    double now = pl_now_ms(), every = isatty(STDERR_FILENO) ? 1000 : 10000;
    if (now - s->said_ms < every)
        return;
    s->said_ms = now;
    pl_log_root("staging to %s: %.2f GB copied by this rank, %.0f MB/s", s->dir, s->done.bytes / 1e9,
                s->done.bytes / (now - s->begin_ms) / 1e3);
}

static pl_status copy_bytes(struct staging *s, const char *from, int in, const char *to, int out)
{
    for (;;) {
        ssize_t n = read(in, s->piece, PIECE_BYTES);
        if (n < 0)
            return failed(from, "cannot be read", errno);
        if (n == 0)
            return PL_OK;
        for (ssize_t at = 0; at < n;) {
            ssize_t put = write(out, s->piece + at, (size_t)(n - at));
            if (put < 0)
                return failed(to, "cannot be written", errno);
            at += put;
        }
        s->done.bytes += (double)n;
        show_progress(s);
    }
}

/* All that makes `out` a whole copy but its name. */
static pl_status fill(struct staging *s, const char *from, int in, const char *to, int out)
{
    struct stat before, after, copy;
    if (fstat(in, &before) != 0)
        return failed(from, "cannot be read", errno);
    if (pl_fault("stage.copy", 0))
        return pl_error(PL_ERR_DATA, "data", "%s: debug.fault at stage.copy", from);
    PL_TRY(copy_bytes(s, from, in, to, out));
    if (fstat(in, &after) != 0 || fstat(out, &copy) != 0 || !same_file(&before, &after) || copy.st_size != after.st_size)
        return pl_error(PL_ERR_DATA, "data", "%s: changed while it was staged", from);
    const struct timespec times[2] = {after.st_mtim, after.st_mtim};
    if (fsync(out) != 0 || futimens(out, times) != 0)
        return failed(to, "cannot be written", errno);
    return PL_OK;
}

/* A new file, locked. Another job that tidies up can take it for a leftover before it is locked: then the next one. */
static pl_status make_temporary(const char *dir, char **name, int *fd)
{
    char host[64] = "";
    gethostname(host, sizeof host - 1);
    for (int tries = 0; tries < 100; tries++) {
        struct stat st;
        *name = pl_strdupf("%s/" PREFIX "%d-%s-XXXXXX", dir, (int)getpid(), host);
        *fd = *name ? mkostemp(*name, O_CLOEXEC) : -1;
        if (!*name)
            return PL_ERR_MEMORY;
        if (*fd < 0 || fchmod(*fd, 0644) != 0)
            return failed(dir, "no file can be made there", errno);
        pl_fault("stage.lock", 0);
        if (flock(*fd, LOCK_EX | LOCK_NB) == 0 && fstat(*fd, &st) == 0 && st.st_nlink > 0)
            return PL_OK;
        unlink(*name);
        close(*fd);
        pl_free(*name);
        *name = NULL;
        *fd = -1;
    }
    return pl_error(PL_ERR_DATA, "data", "%s: other jobs take every new file for a leftover, or it knows no locks", dir);
}

static pl_status copy_file(struct staging *s, const char *from, const char *to)
{
    char *temporary = NULL;
    int in = open(from, O_RDONLY | O_CLOEXEC), out = -1;
    if (in < 0)
        return failed(from, "cannot be read", errno);
    pl_status status = make_temporary(s->dir, &temporary, &out);
    if (status == PL_OK)
        status = fill(s, from, in, to, out);
    if (status == PL_OK && rename(temporary, to) != 0)
        status = failed(to, "cannot be renamed to", errno);
    if (status < 0 && out >= 0)
        unlink(temporary);
    if (out >= 0)
        close(out); /* it gives the lock back after the renaming */
    close(in);
    pl_free(temporary);
    return status;
}

static pl_status copy_share(struct staging *s)
{
    s->begin_ms = s->said_ms = pl_now_ms();
    s->piece = pl_alloc(PIECE_BYTES, "staging");
    if (!s->piece)
        return PL_ERR_MEMORY;
    for (int i = s->world->local_rank; i < s->files.n; i += s->world->local_ranks) {
        struct stat source;
        bool there = false;
        char *to = pl_stage_path(s->dir, s->files.path[i]);
        pl_status status = to ? look(s->files.path[i], to, &source, &there) : PL_ERR_MEMORY;
        if (status == PL_OK && !there)
            status = copy_file(s, s->files.path[i], to);
        pl_free(to);
        PL_TRY(status);
        s->done.copied += !there;
        s->done.reused += there;
    }
    return PL_OK;
}

/* ---- the whole ----------------------------------------------------------------------------------- */

static pl_status list_files(struct staging *s, const struct pl_job_set *const *set, int sets)
{
    for (int k = 0; k < sets; k++) {
        struct pl_files more;
        if (set[k]->memory)
            continue;
        PL_TRY(pl_files_find(set[k], &more));
        pl_status status = pl_files_join(&s->files, &more);
        pl_files_free(&more);
        PL_TRY(status);
    }
    return PL_OK;
}

static pl_status say_outcome(const struct staging *s)
{
    struct pl_world *w = s->world;
    double sum[3] = {0}, (*all)[3] = pl_alloc((size_t)w->ranks * sizeof *all, "staging");
    PL_TRY(pl_world_agree(w, all ? PL_OK : PL_ERR_MEMORY));
    pl_status status = pl_world_allgather(w, &s->done, sizeof s->done, all);
    for (int r = 0; status == PL_OK && r < w->ranks; r++)
        for (int i = 0; i < 3; i++)
            sum[i] += all[r][i];
    pl_free(all);
    if (status == PL_OK)
        pl_log_root("staged to %s: %.0f file%s copied, %.1f MB in %.1f s; %.0f there already", s->dir, sum[0],
                    sum[0] == 1 ? "" : "s", sum[2] / 1e6, (pl_now_ms() - s->begin_ms) / 1e3, sum[1]);
    return status;
}

pl_status pl_stage(struct pl_world *w, const char *dir, const struct pl_job_set *const *set, int sets)
{
    struct staging s = {.world = w, .dir = dir};
    if (!dir)
        return PL_OK;
    pl_status status = list_files(&s, set, sets);
    if (status == PL_OK && w->local_rank == 0)
        status = check_space(&s);
    status = pl_world_agree(w, status);
    if (status == PL_OK)
        status = pl_world_agree(w, copy_share(&s));
    if (status == PL_OK)
        status = say_outcome(&s);
    pl_free(s.piece);
    pl_files_free(&s.files);
    return status;
}
