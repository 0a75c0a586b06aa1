/* Growing strings, JSON strings, edit distance, files and paths. */
#include "base/base.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

void pl_text_add(struct pl_text *t, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    if (n < 0)
        return;
    if (t->len + (size_t)n + 1 > t->cap) {
        size_t cap = 2 * (t->len + (size_t)n + 1);
        char *s = pl_realloc(t->s, t->len + 1 < t->cap ? t->len + 1 : t->cap, cap, "a text");
        if (!s)
            return;
        t->s = s;
        t->cap = cap;
    }
    va_start(args, fmt);
    vsnprintf(t->s + t->len, t->cap - t->len, fmt, args);
    va_end(args);
    t->len += (size_t)n;
}

void pl_text_free(struct pl_text *t)
{
    pl_free(t->s);
    *t = (struct pl_text){0};
}

void pl_text_add_json(struct pl_text *t, const char *s)
{
    pl_text_add(t, "\"");
    for (; *s; s++) {
        if (*s == '"' || *s == '\\')
            pl_text_add(t, "\\%c", *s);
        else if ((unsigned char)*s < 0x20)
            pl_text_add(t, "\\u%04x", *s);
        else
            pl_text_add(t, "%c", *s);
    }
    pl_text_add(t, "\"");
}

/* Levenshtein over two rows; names longer than the row are far from everything. */
int pl_text_distance(const char *a, const char *b)
{
    enum { MOST = 96 };
    int row[MOST + 1];
    size_t n = strlen(a), m = strlen(b);
    if (n > MOST || m > MOST)
        return MOST;
    for (size_t j = 0; j <= m; j++)
        row[j] = (int)j;
    for (size_t i = 1; i <= n; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= m; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[m];
}

pl_status pl_read_file(const char *path, const char *room, pl_status err, char **out, size_t *bytes)
{
    struct stat st;
    FILE *f = fopen(path, "rb");
    if (!f)
        return pl_error(err, room, "%s: %s", path, strerror(errno));
    if (fstat(fileno(f), &st) != 0 || S_ISDIR(st.st_mode)) {
        fclose(f);
        return pl_error(err, room, "%s: not a file", path);
    }
    size_t n = 0, cap = (size_t)st.st_size + 1;
    char *text = pl_alloc(cap, path);
    if (text)
        n = fread(text, 1, cap - 1, f);
    bool failed = ferror(f);
    fclose(f);
    if (!text)
        return PL_ERR_MEMORY;
    if (failed) {
        pl_free(text);
        return pl_error(err, room, "%s: cannot be read", path);
    }
    *out = text;
    if (bytes)
        *bytes = n;
    return PL_OK;
}

pl_status pl_make_dirs(const char *path, const char *room)
{
    char *copy = pl_strdup(path);
    if (!copy)
        return PL_ERR_MEMORY;
    int code = 0;
    for (char *p = copy + 1; code == 0 && *p; p++)
        if (*p == '/') {
            *p = '\0';
            code = mkdir(copy, 0777) != 0 && errno != EEXIST ? errno : 0;
            *p = '/';
        }
    struct stat st;
    if (code == 0 && mkdir(copy, 0777) != 0 && errno != EEXIST)
        code = errno;
    if (code == 0 && (stat(copy, &st) != 0 || !S_ISDIR(st.st_mode)))
        code = ENOTDIR;
    pl_free(copy);
    return code == 0 ? PL_OK : pl_error(PL_ERR_CHECKPOINT, room, "%s: cannot be made: %s", path, strerror(code));
}

char *pl_path_beside(const char *beside, const char *path)
{
    const char *slash = strrchr(beside, '/');
    if (path[0] == '/' || !slash)
        return pl_strdup(path);
    return pl_strdupf("%.*s/%s", (int)(slash - beside), beside, path);
}
