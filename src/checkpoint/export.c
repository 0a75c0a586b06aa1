/* A checkpoint as one file: what model.h5 shows of its parts is in it. Written under another name, and renamed when it is whole. */
#include "checkpoint/files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PIECE_BYTES (4 << 20)

struct copying { struct pl_h5 *from, *to; float *piece; pl_status s; };

static pl_status copy_rows(struct copying *c, struct pl_h5ds *from, struct pl_h5ds *to)
{
    const struct pl_h5_info *i = pl_h5_dataset_info(from);
    int64_t row = 1, rows;
    for (int k = 1; k < i->dims; k++)
        row *= i->dim[k];
    rows = row > 0 && row * (int64_t)sizeof(float) <= PIECE_BYTES ? PIECE_BYTES / (row * (int64_t)sizeof(float)) : 1;
    float *piece = pl_realloc(c->piece, 0, (size_t)(rows * row) * sizeof(float), "a tensor");
    if (!piece)
        return PL_ERR_MEMORY;
    c->piece = piece;
    for (int64_t first = 0; first < i->dim[0]; first += rows) {
        int64_t n = i->dim[0] - first < rows ? i->dim[0] - first : rows;
        PL_TRY(pl_h5_read_rows(from, first, n, PL_F32, piece));
        PL_TRY(pl_h5_write_rows(to, first, n, PL_F32, piece));
    }
    return PL_OK;
}

static void copy(void *arg, const char *name, bool is_dataset)
{
    struct copying *c = arg;
    struct pl_h5ds *from, *to;
    if (!is_dataset || c->s < 0 || (c->s = pl_h5_dataset(c->from, name, &from)) < 0)
        return;
    const struct pl_h5_info *i = pl_h5_dataset_info(from);
    c->s = pl_h5_make_dataset(c->to, name, PL_F32, i->dims, i->dim, 0, 0, &to);
    if (c->s == PL_OK) {
        c->s = copy_rows(c, from, to);
        pl_h5_dataset_close(to);
    }
    pl_h5_dataset_close(from);
}

/* The run's attributes as they are, but that there are no parts. */
static pl_status copy_run(struct pl_h5 *from, struct pl_h5 *to)
{
    PL_TRY(pl_h5_copy(from, "/run", to));
    PL_TRY(pl_h5_set_int(to, "/run", "parts", 0));
    return pl_h5_set_int(to, "/run", "pieces", 1);
}

static pl_status copy_all(struct pl_h5 *from, const char *file)
{
    struct copying c = {.from = from};
    PL_TRY(pl_h5_create(file, "checkpoint", PL_ERR_CHECKPOINT, &c.to));
    pl_status s = copy_run(from, c.to);
    if (s == PL_OK)
        s = pl_h5_walk(from, "/", copy, &c);
    pl_free(c.piece);
    pl_status closed = pl_h5_close(c.to);
    s = s < 0 ? s : c.s < 0 ? c.s : closed;
    return s < 0 ? s : pl_checkpoint_sync_path(file);
}

static pl_status in_the_way(const char *file) { return pl_error(PL_ERR_CHECKPOINT, "checkpoint", "%s exists already\ngive another name", file); }

/* Never over what has come there meanwhile; a file system that cannot tell is asked before. */
static pl_status take_name(const char *temporary, const char *file)
{
    if (renameat2(AT_FDCWD, temporary, AT_FDCWD, file, RENAME_NOREPLACE) == 0)
        return PL_OK;
    if (errno == EEXIST || access(file, F_OK) == 0)
        return in_the_way(file);
    return rename(temporary, file) == 0 ? PL_OK : pl_error(PL_ERR_CHECKPOINT, "checkpoint", "%s: cannot be renamed: %s", file, strerror(errno));
}

pl_status pl_checkpoint_export(const char *path, const char *file)
{
    struct pl_h5 *from;
    if (access(file, F_OK) == 0)
        return in_the_way(file);
    PL_TRY(pl_checkpoint_open_model(path, &from));
    char *temporary = pl_strdupf("%s.writing-%d", file, (int)getpid());
    pl_status s = !temporary ? PL_ERR_MEMORY : pl_h5_exists(from, "/run") ? PL_OK : pl_error(PL_ERR_CHECKPOINT, "checkpoint", "%s is no checkpoint: there is no /run in it", path);
    if (s == PL_OK)
        s = copy_all(from, temporary);
    if (s == PL_OK)
        s = take_name(temporary, file);
    if (s < 0 && temporary)
        unlink(temporary);
    pl_free(temporary);
    pl_h5_close(from);
    return s;
}
