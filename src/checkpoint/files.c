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

char *pl_checkpoint_part_name(const char *parts, int rank) { return pl_strdupf("%s/part-%05d.h5", parts, rank); }

static pl_status add_entry(struct pl_text *t, const char *dir, const char *name)
{
    long long bytes;
    uint32_t crc;
    char *path = pl_strdupf("%s/%s", dir, name);
    pl_status s = path ? PL_OK : PL_ERR_MEMORY;
    if (s == PL_OK && !measure(path, &bytes, &crc))
        s = pl_error(PL_ERR_CHECKPOINT, "checkpoint", strcmp(name, MODEL_FILE) == 0 ? "%s: cannot be read back" :
                     "%s: cannot be read back\neach rank writes a part: checkpoint.dir must be on storage that all of them see", path);
    if (s == PL_OK)
        pl_text_add(t, "%s{\"name\": \"%s\", \"bytes\": %lld, \"crc32\": \"%08x\"}", t->len > 40 ? ",\n" : "", name, bytes, crc);
    pl_free(path);
    return s;
}

pl_status pl_manifest_write(const char *dir, int parts)
{
    struct pl_text t = {0};
    char *path = pl_strdupf("%s/%s", dir, MANIFEST_FILE);
    pl_text_add(&t, "{\"format\": 1, \"files\": [\n");
    pl_status s = path && t.s ? add_entry(&t, dir, MODEL_FILE) : PL_ERR_MEMORY;
    for (int r = 0; s == PL_OK && r < parts; r++) {
        char *name = pl_checkpoint_part_name(PARTS_DIR, r);
        s = name ? add_entry(&t, dir, name) : PL_ERR_MEMORY;
        pl_free(name);
    }
    pl_text_add(&t, "\n]}\n");
    if (s == PL_OK)
        s = t.s ? pl_checkpoint_write_text(path, t.s) : PL_ERR_MEMORY;
    pl_text_free(&t);
    pl_free(path);
    return s;
}

/* model.h5 or parts/part-00003.h5: nothing outside of the checkpoint is looked at. */
static bool is_ours(const char *name)
{
    int rank, end = 0;
    return strcmp(name, MODEL_FILE) == 0 || (sscanf(name, PARTS_DIR "/part-%d.h5%n", &rank, &end) == 1 && end > 0 && name[end] == '\0');
}

static const char *check_entry(const char *dir, const char *entry, bool *model)
{
    static char wrong[128];
    char name[64];
    long long wanted, bytes;
    unsigned crc_wanted;
    uint32_t crc;
    if (sscanf(entry, "{\"name\": \"%63[^\"]\", \"bytes\": %lld, \"crc32\": \"%x\"}", name, &wanted, &crc_wanted) != 3 || !is_ours(name))
        return "its manifest.json is damaged";
    *model |= strcmp(name, MODEL_FILE) == 0;
    char *path = pl_strdupf("%s/%s", dir, name);
    bool read = path && measure(path, &bytes, &crc);
    pl_free(path);
    if (read && bytes == wanted && crc == crc_wanted)
        return NULL;
    snprintf(wrong, sizeof wrong, "%s %s", name, !read ? "cannot be read" : bytes != wanted ? "has not the size that manifest.json says" : "has not the checksum that manifest.json says");
    return wrong;
}

const char *pl_manifest_check(const char *dir)
{
    char *text = NULL, *path = pl_strdupf("%s/%s", dir, MANIFEST_FILE);
    const char *wrong = NULL;
    bool model = false;
    struct stat st;
    if (!path || stat(path, &st) != 0 || pl_read_file(path, "checkpoint", PL_ERR_CHECKPOINT, &text, NULL) < 0) {
        pl_free(path);
        pl_error_clear();
        return "it has no manifest.json";
    }
    pl_free(path);
    for (const char *entry = text; !wrong && (entry = strstr(entry, "{\"name\"")) != NULL; entry++)
        wrong = check_entry(dir, entry, &model);
    size_t n = strlen(text);
    if (!wrong && (!model || n < 3 || strcmp(text + n - 3, "]}\n") != 0))
        wrong = "its manifest.json is damaged";
    pl_free(text);
    return wrong;
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

static void remove_file(const char *dir, const char *name)
{
    char *file = pl_strdupf("%s/%s", dir, name);
    if (file)
        unlink(file);
    pl_free(file);
}

void pl_checkpoint_remove_parts(const char *path)
{
    DIR *d = opendir(path);
    int rank, end;
    for (struct dirent *e; d && (e = readdir(d));) {
        end = 0;
        if (sscanf(e->d_name, "part-%d.h5%n", &rank, &end) == 1 && end > 0 && e->d_name[end] == '\0')
            remove_file(path, e->d_name);
    }
    if (d)
        closedir(d);
    rmdir(path);
}

void pl_checkpoint_remove(const char *path)
{
    static const char *const files[] = {MANIFEST_FILE, MODEL_FILE, "latest"}; /* the manifest first: no half looks whole */
    char *parts = pl_strdupf("%s/%s", path, PARTS_DIR);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        remove_file(path, files[i]);
    if (parts)
        pl_checkpoint_remove_parts(parts);
    pl_free(parts);
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
