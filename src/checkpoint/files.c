/* What makes a checkpoint durable and checkable: synced files, a manifest of sizes and checksums, names
 * that sort, and which old ones go. */
#include "checkpoint/files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

pl_status pl_checkpoint_sync_path(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int code = fd < 0 || fsync(fd) != 0 ? errno : 0;
    if (fd >= 0)
        close(fd);
    if (code == 0 || code == EINVAL) /* some file systems cannot sync a directory */
        return PL_OK;
    return pl_error(PL_ERR_CHECKPOINT, "checkpoint", "%s: cannot be synced to disk: %s", path, strerror(code));
}

pl_status pl_checkpoint_write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    bool fine = f && fputs(text, f) >= 0 && fflush(f) == 0 && fsync(fileno(f)) == 0;
    int code = errno;
    if (f && fclose(f) != 0)
        fine = false;
    return fine ? PL_OK : pl_error(PL_ERR_CHECKPOINT, "checkpoint", "%s: cannot be written: %s", path, strerror(code));
}

static bool measure(const char *path, long long *bytes, uint32_t *crc)
{
    static char piece[1 << 16]; /* one writer and one reader at a time */
    FILE *f = fopen(path, "rb");
    size_t n;
    *bytes = 0;
    *crc = 0;
    if (!f)
        return false;
    while ((n = fread(piece, 1, sizeof piece, f)) > 0) {
        *crc = pl_crc32(*crc, piece, n);
        *bytes += (long long)n;
    }
    bool fine = !ferror(f);
    fclose(f);
    return fine;
}

pl_status pl_manifest_write(const char *dir)
{
    long long bytes;
    uint32_t crc;
    char text[256];
    char *model = pl_strdupf("%s/%s", dir, MODEL_FILE), *path = pl_strdupf("%s/%s", dir, MANIFEST_FILE);
    pl_status s = model && path ? PL_OK : PL_ERR_MEMORY;
    if (s == PL_OK && !measure(model, &bytes, &crc))
        s = pl_error(PL_ERR_CHECKPOINT, "checkpoint", "%s: cannot be read back", model);
    if (s == PL_OK) {
        snprintf(text, sizeof text, "{\"format\": 1, \"files\": [\n{\"name\": \"%s\", \"bytes\": %lld, \"crc32\": \"%08x\"}\n]}\n", MODEL_FILE, bytes, crc);
        s = pl_checkpoint_write_text(path, text);
    }
    pl_free(model);
    pl_free(path);
    return s;
}

const char *pl_manifest_check(const char *dir)
{
    char text[1024] = "", name[64];
    long long wanted, bytes;
    unsigned crc_wanted;
    uint32_t crc;
    char *path = pl_strdupf("%s/%s", dir, MANIFEST_FILE);
    FILE *f = path ? fopen(path, "r") : NULL;
    pl_free(path);
    if (!f)
        return "it has no manifest.json";
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = '\0';
    const char *entry = strstr(text, "{\"name\"");
    if (!entry || sscanf(entry, "{\"name\": \"%63[^\"]\", \"bytes\": %lld, \"crc32\": \"%x\"}", name, &wanted, &crc_wanted) != 3 || strcmp(name, MODEL_FILE) != 0)
        return "its manifest.json is damaged";
    path = pl_strdupf("%s/%s", dir, name);
    bool read = path && measure(path, &bytes, &crc);
    pl_free(path);
    if (!read)
        return "model.h5 cannot be read";
    if (bytes != wanted)
        return "model.h5 has not the size that manifest.json says";
    return crc == crc_wanted ? NULL : "model.h5 has not the checksum that manifest.json says";
}

static int ascending(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

pl_status pl_checkpoint_list(const char *dir, int64_t **steps, int *n)
{
    DIR *d = opendir(dir);
    int capacity = 64;
    *n = 0;
    *steps = pl_alloc((size_t)capacity * sizeof **steps, "names of checkpoints");
    for (struct dirent *e; d && *steps && (e = readdir(d));) {
        long long step;
        int end = 0;
        if (sscanf(e->d_name, "step-%lld%n", &step, &end) != 1 || e->d_name[end] != '\0')
            continue;
        if (*n == capacity) {
            *steps = pl_realloc(*steps, (size_t)capacity * sizeof **steps, 2 * (size_t)capacity * sizeof **steps, "names of checkpoints");
            capacity *= 2;
        }
        if (*steps)
            (*steps)[(*n)++] = step;
    }
    if (d)
        closedir(d);
    if (!*steps)
        return PL_ERR_MEMORY;
    qsort(*steps, (size_t)*n, sizeof **steps, ascending);
    return PL_OK;
}

char *pl_checkpoint_name(const char *dir, int64_t step) { return pl_strdupf("%s/step-%08lld", dir, (long long)step); }

void pl_checkpoint_remove(const char *path)
{
    static const char *const files[] = {MANIFEST_FILE, MODEL_FILE, "latest"}; /* the manifest first: no half looks whole */
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char *file = pl_strdupf("%s/%s", path, files[i]);
        if (file)
            unlink(file);
        pl_free(file);
    }
    rmdir(path);
}

void pl_checkpoint_retain(const char *dir, int64_t keep, int64_t now, int64_t best)
{
    int64_t *steps;
    int n;
    if (pl_checkpoint_list(dir, &steps, &n) < 0)
        return;
    while (n > 0 && steps[n - 1] > now)
        n--;
    for (int i = 0; i < n - keep; i++)
        if (steps[i] != best) {
            char *path = pl_checkpoint_name(dir, steps[i]);
            pl_checkpoint_remove(path);
            pl_free(path);
        }
    pl_free(steps);
}
