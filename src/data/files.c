/* The files of a set: its one file, or its list of paths and patterns in their order, what a pattern
 * matches sorted by name. A file that is there by its very name is no pattern. */
#include "data/dataset.h"

#include <glob.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static pl_status add(struct pl_files *f, const char *path)
{
    char **more = pl_realloc(f->path, (size_t)f->n * sizeof *more, (size_t)(f->n + 1) * sizeof *more,
                             "the names of files");
    if (!more)
        return PL_ERR_MEMORY;
    f->path = more;
    f->path[f->n] = pl_strdup(path);
    return f->path[f->n] ? (f->n++, PL_OK) : PL_ERR_MEMORY;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static pl_status add_pattern(struct pl_files *f, const char *pattern)
{
    glob_t found = {0};
    struct stat st;
    if (!strpbrk(pattern, "*?[") || stat(pattern, &st) == 0)
        return add(f, pattern);
    int code = glob(pattern, GLOB_NOSORT, NULL, &found);
    pl_status s = PL_OK;
    if (code != 0)
        s = pl_error(PL_ERR_DATA, "data",
                     "%s: %s\na relative pattern counts from the folder of the job file, on the "
                     "command line from the working directory",
                     pattern, code == GLOB_NOMATCH ? "no file matches" : "its folder cannot be read");
    else
        qsort(found.gl_pathv, found.gl_pathc, sizeof *found.gl_pathv, by_name);
    for (size_t i = 0; s == PL_OK && i < found.gl_pathc; i++)
        s = add(f, found.gl_pathv[i]);
    globfree(&found);
    return s;
}

/* A file that comes twice, by whatever name, would be seen twice an epoch. One that is not there is for who opens it. */
static pl_status check_once(const struct pl_files *f)
{
    struct stat *st = pl_alloc((size_t)f->n * sizeof *st, "the names of files");
    if (!st)
        return PL_ERR_MEMORY;
    pl_status s = PL_OK;
    for (int i = 0; s == PL_OK && i < f->n; i++)
        if (stat(f->path[i], &st[i]) == 0)
            for (int k = 0; s == PL_OK && k < i; k++)
                if (st[k].st_ino == st[i].st_ino && st[k].st_dev == st[i].st_dev)
                    s = pl_error(PL_ERR_DATA, "data", "%s: is twice in files\nname it once", f->path[i]);
    pl_free(st);
    return s;
}

pl_status pl_files_find(const struct pl_job_set *set, struct pl_files *out)
{
    *out = (struct pl_files){0};
    if (set->memory)
        return add(out, set->memory->name);
    pl_status s = set->file ? add(out, set->file) : PL_OK;
    for (int i = 0; s == PL_OK && i < set->files.n; i++)
        s = add_pattern(out, set->files.v[i]);
    if (s == PL_OK)
        s = check_once(out);
    if (s < 0)
        pl_files_free(out);
    return s;
}

pl_status pl_files_join(struct pl_files *f, const struct pl_files *more)
{
    for (int i = 0; i < more->n; i++) {
        bool there = false;
        for (int k = 0; k < f->n && !there; k++)
            there = strcmp(f->path[k], more->path[i]) == 0;
        if (!there)
            PL_TRY(add(f, more->path[i]));
    }
    return PL_OK;
}

void pl_files_free(struct pl_files *f)
{
    for (int i = 0; i < f->n; i++)
        pl_free(f->path[i]);
    pl_free(f->path);
    *f = (struct pl_files){0};
}
