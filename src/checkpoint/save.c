/* Writing a checkpoint: everything under another name, synced, then one rename that makes it real. Killed
 * at any instant, what was whole before is whole after. */
#include "checkpoint/files.h"

#include <errno.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* Of a tensor that is split, beside the rows that are here: how many such files have it. */
#define SHARES "shares"

static pl_status write_tensor(struct pl_h5 *f, const char *group, const struct pl_tensor *t, const float *slab)
{
    struct pl_h5ds *d;
    if (t->param->twin)
        return PL_OK;
    char *name = pl_strdupf("%s/%s/%s", group, t->layer, t->name);
    if (!name)
        return PL_ERR_MEMORY;
    pl_status s = pl_h5_make_dataset(f, name, PL_F32, t->param->shape.dims, t->param->shape.dim, 0, 0, &d);
    if (s == PL_OK) {
        s = pl_h5_write_rows(d, 0, t->param->shape.dim[0], PL_F32, slab + t->param->offset);
        pl_h5_dataset_close(d);
    }
    if (s == PL_OK && t->param->whole > 0)
        s = pl_h5_set_int(f, name, SHARES, t->param->whole / t->param->shape.dim[0]);
    pl_free(name);
    return s;
}

/* ---- parts --------------------------------------------------------------------------------------- */

static char *part_dir(const char *dir, int64_t step) { return pl_strdupf("%s/.parts-%08lld", dir, (long long)step); }

static pl_status write_slab(struct pl_h5 *f, int rank, const struct pl_graph *g, const struct pl_part *part)
{
    const struct pl_tensor *tensor;
    char group[96];
    int n = pl_graph_tensors(g, &tensor);
    snprintf(group, sizeof group, "/rank/%d/%s", rank, part->name);
    for (int t = 0; t < n; t++)
        if (!tensor[t].param->statistic)
            PL_TRY(write_tensor(f, group, &tensor[t], part->slab));
    return PL_OK;
}

static pl_status write_own(struct pl_h5 *f, int rank, const struct pl_graph *g, const struct pl_part *part, int n)
{
    for (int i = 0; i < n; i++)
        if (part[i].own)
            PL_TRY(write_slab(f, rank, g, &part[i]));
    return PL_OK;
}

static pl_status begin_part(const char *dir, int64_t step, int number, char **path, struct pl_h5 **f)
{
    char *parts = part_dir(dir, step);
    *path = parts ? pl_checkpoint_part_name(parts, number) : NULL;
    pl_status s = *path ? pl_make_dirs(parts, "checkpoint") : PL_ERR_MEMORY;
    if (s == PL_OK && unlink(*path) != 0 && errno != ENOENT) /* of a life that was killed here */
        s = pl_error(PL_ERR_CHECKPOINT, "checkpoint", "%s stands in the way: %s", *path, strerror(errno));
    if (s == PL_OK)
        s = pl_h5_create(*path, "checkpoint", PL_ERR_CHECKPOINT, f);
    pl_free(parts);
    return s;
}

static pl_status end_file(struct pl_h5 *f, const char *path, pl_status s)
{
    pl_status closed = pl_h5_close(f);
    if (s == PL_OK)
        s = closed;
    return s < 0 ? s : pl_checkpoint_sync_path(path);
}

pl_status pl_checkpoint_save_part(const char *dir, int64_t step, int rank, const struct pl_graph *g, const struct pl_part *part, int n)
{
    char *path;
    struct pl_h5 *f;
    pl_status s = begin_part(dir, step, rank, &path, &f);
    if (s == PL_OK)
        s = end_file(f, path, write_own(f, rank, g, part, n));
    pl_free(path);
    return s;
}

void pl_checkpoint_discard_part(const char *dir, int64_t step, int rank)
{
    char *parts = part_dir(dir, step), *path = parts ? pl_checkpoint_part_name(parts, rank) : NULL;
    if (path) {
        unlink(path);
        rmdir(parts); /* the last one's succeeds */
    }
    pl_free(parts);
    pl_free(path);
}

static pl_status take_parts(const char *temporary, const struct pl_checkpoint_source *src, const char *dir)
{
    if (src->parts == 0)
        return PL_OK;
    char *from = part_dir(dir, src->state->step), *to = pl_strdupf("%s/%s", temporary, PARTS_DIR);
    pl_status s = from && to ? pl_checkpoint_sync_path(from) : PL_ERR_MEMORY;
    if (s == PL_OK && rename(from, to) != 0)
        s = pl_error(PL_ERR_CHECKPOINT, "checkpoint", "%s: cannot be renamed: %s", from, strerror(errno));
    pl_free(from);
    pl_free(to);
    return s;
}

static void remove_parts(const char *dir, int64_t step)
{
    char *parts = part_dir(dir, step);
    if (parts)
        pl_checkpoint_remove_parts(parts);
    pl_free(parts);
}

/* Parts that belong to nothing: of a killed life. */
void pl_checkpoint_remove_old_parts(const char *dir)
{
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));)
        if (strncmp(e->d_name, ".parts-", 7) == 0) {
            char *old = pl_strdupf("%s/%s", dir, e->d_name);
            if (old)
                pl_checkpoint_remove_parts(old);
            pl_free(old);
        }
    if (d)
        closedir(d);
}

/* ---- the whole ----------------------------------------------------------------------------------- */

static pl_status write_slabs(struct pl_h5 *f, const struct pl_checkpoint_source *src)
{
    const struct pl_tensor *tensor;
    int n = pl_graph_tensors(src->graph, &tensor);
    for (int t = 0; t < n; t++)
        PL_TRY(write_tensor(f, "/params", &tensor[t], src->params));
    for (int i = 0; i < pl_optimizer_slots(src->optimizer); i++) {
        char group[80];
        snprintf(group, sizeof group, "/optimizer/%s", pl_optimizer_slot_name(src->optimizer, i));
        for (int t = 0; t < n; t++)
            if (!tensor[t].param->statistic)
                PL_TRY(write_tensor(f, group, &tensor[t], src->slot[i]));
    }
    return PL_OK;
}

pl_status pl_checkpoint_save_stage(const char *dir, int stage, const struct pl_checkpoint_source *src)
{
    char *path;
    struct pl_h5 *f;
    pl_status s = begin_part(dir, src->state->step, stage, &path, &f);
    if (s == PL_OK)
        s = end_file(f, path, write_slabs(f, src));
    pl_free(path);
    return s;
}

/* file[files]: of the part that is looked at, and of all after it. */
struct showing { struct pl_h5 *from, *to; const char *const *file; int files, number; pl_status s; };

/* A tensor that is split is shown when the first of its parts is looked at. */
static void show(void *arg, const char *name, bool is_dataset)
{
    struct showing *w = arg;
    struct pl_h5ds *d;
    int64_t shares;
    if (!is_dataset || w->s < 0)
        return;
    if (pl_h5_get_int(w->from, name, SHARES, &shares) < 0) {
        pl_error_clear();
        shares = 1;
    }
    if (shares > 1 && w->number % shares != 0)
        return;
    w->s = shares > w->files ? pl_error(PL_ERR_CHECKPOINT, "checkpoint", "%s is in %lld parts, %d are there", name, (long long)shares, w->files)
                             : pl_h5_dataset(w->from, name, &d);
    if (w->s < 0)
        return;
    w->s = pl_h5_make_virtual(w->to, name, pl_h5_dataset_info(d), w->file, (int)shares);
    pl_h5_dataset_close(d);
}

static pl_status show_stage(struct pl_h5 *f, const char *parts, const char *const *file, int files, int stage)
{
    char *path = pl_checkpoint_part_name(parts, stage);
    struct showing w = {.to = f, .file = file + stage, .files = files - stage, .number = stage};
    pl_status s = path ? pl_h5_open(path, "checkpoint", PL_ERR_CHECKPOINT, &w.from) : PL_ERR_MEMORY;
    if (s == PL_OK)
        s = pl_h5_walk(w.from, "/", show, &w);
    pl_h5_close(w.from);
    pl_free(path);
    return s < 0 ? s : w.s;
}

/* What is in the parts, where they will be. */
static pl_status show_stages(struct pl_h5 *f, const char *dir, const struct pl_checkpoint_source *src)
{
    char *parts = part_dir(dir, src->state->step), **file = pl_alloc((size_t)src->parts * sizeof *file, "names of parts");
    pl_status s = parts && file ? PL_OK : PL_ERR_MEMORY;
    for (int i = 0; s == PL_OK && i < src->parts; i++)
        s = (file[i] = pl_checkpoint_part_name(PARTS_DIR, i)) ? PL_OK : PL_ERR_MEMORY;
    for (int stage = 0; s == PL_OK && stage < src->parts; stage++)
        s = show_stage(f, parts, (const char *const *)file, src->parts, stage);
    for (int i = 0; file && i < src->parts; i++)
        pl_free(file[i]);
    pl_free(file);
    pl_free(parts);
    return s;
}

static pl_status write_run(struct pl_h5 *f, const struct pl_checkpoint_source *src)
{
    const struct pl_run_state *r = src->state;
    const struct { const char *name; int64_t v; } numbers[] = {
        {"step", r->step}, {"epoch", r->epoch}, {"position", r->position}, {"samples_seen", r->samples_seen},
        {"global_batch", r->global_batch}, {"train_samples", r->train_samples}, {"seed", r->seed}, {"ranks", r->ranks}, {"done", r->done}, {"last_eval_step", r->last_eval_step},
        {"best_step", r->best_step}, {"parts", src->parts}, {"pieces", src->split ? src->parts : 1}, {"signature", (int64_t)pl_graph_signature(src->graph)}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        PL_TRY(pl_h5_set_int(f, "/run", numbers[i].name, numbers[i].v));
    PL_TRY(pl_h5_set_double(f, "/run", "best", r->best));
    PL_TRY(pl_h5_set_double(f, "/run", "last_loss", r->last_loss));
    PL_TRY(pl_h5_set_double(f, "/run", "last_accuracy", r->last_accuracy));
    PL_TRY(pl_h5_set_text(f, "/run", "optimizer", pl_optimizer_name(src->optimizer)));
    PL_TRY(pl_h5_set_text(f, "/run", "precision", pl_job_precision_name(src->job)));
    PL_TRY(pl_h5_set_text(f, "/run", "train_file", src->train_file ? src->train_file : ""));
    PL_TRY(pl_h5_set_text(f, "/run", "version", PL_VERSION));
    return pl_h5_set_text(f, "/run", "job", src->job->text);
}

static pl_status write_model(const char *path, const char *dir, const struct pl_checkpoint_source *src)
{
    struct pl_h5 *f;
    PL_TRY(pl_h5_create(path, "checkpoint", PL_ERR_CHECKPOINT, &f));
    pl_status s = write_run(f, src);
    if (s == PL_OK)
        s = src->split ? show_stages(f, dir, src) : write_slabs(f, src);
    return end_file(f, path, s);
}

/* A writer of this host that is no more; of another host, one that has been silent for a day. */
static bool abandoned(const char *path, const char *name)
{
    char host[64], here[64] = "";
    int pid;
    struct stat st;
    gethostname(here, sizeof here - 1);
    if (sscanf(name, ".writing-%d-%63s", &pid, host) == 2 && strcmp(host, here) == 0)
        return pid == (int)getpid() || (kill(pid, 0) != 0 && errno == ESRCH);
    return stat(path, &st) == 0 && st.st_mtime + 86400 < time(NULL);
}

/* A fresh name for what is not whole yet; leftovers of a killed writer go first. */
static pl_status make_temporary(const char *dir, char **out)
{
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));)
        if (strncmp(e->d_name, ".writing-", 9) == 0) {
            char *old = pl_strdupf("%s/%s", dir, e->d_name);
            if (old && abandoned(old, e->d_name))
                pl_checkpoint_remove(old);
            pl_free(old);
        }
    if (d)
        closedir(d);
    char host[64] = "";
    gethostname(host, sizeof host - 1);
    *out = pl_strdupf("%s/.writing-%d-%s", dir, (int)getpid(), host);
    if (!*out)
        return PL_ERR_MEMORY;
    if (mkdir(*out, 0777) == 0)
        return PL_OK;
    pl_status s = pl_error(PL_ERR_CHECKPOINT, "checkpoint", "%s: cannot be made: %s", *out, strerror(errno));
    pl_free(*out);
    *out = NULL;
    return s;
}

static pl_status set_latest(const char *dir, const char *temporary, int64_t step)
{
    char text[64];
    char *from = pl_strdupf("%s/latest", temporary), *to = pl_strdupf("%s/latest", dir);
    pl_status s = from && to ? PL_OK : PL_ERR_MEMORY;
    snprintf(text, sizeof text, "step-%08lld\n", (long long)step);
    if (s == PL_OK && mkdir(temporary, 0777) != 0 && errno != EEXIST)
        s = pl_error(PL_ERR_CHECKPOINT, "checkpoint", "%s: cannot be made: %s", temporary, strerror(errno));
    if (s == PL_OK)
        s = pl_checkpoint_write_text(from, text);
    if (s == PL_OK && rename(from, to) != 0)
        s = pl_error(PL_ERR_CHECKPOINT, "checkpoint", "%s: cannot be renamed: %s", to, strerror(errno));
    pl_checkpoint_remove(temporary);
    pl_free(from);
    pl_free(to);
    return s;
}

static pl_status fill(const char *temporary, const char *dir, const struct pl_checkpoint_source *src)
{
    char *model = pl_strdupf("%s/%s", temporary, MODEL_FILE);
    if (!model)
        return PL_ERR_MEMORY;
    pl_status s = pl_fault("checkpoint.write", src->state->step) ? pl_error(PL_ERR_CHECKPOINT, "checkpoint", "debug.fault at checkpoint.write") : write_model(model, dir, src);
    pl_free(model);
    PL_TRY(s);
    PL_TRY(take_parts(temporary, src, dir));
    pl_fault("checkpoint.after_parts", src->state->step);
    PL_TRY(pl_manifest_write(temporary, src->parts));
    return pl_checkpoint_sync_path(temporary);
}

/* The new one takes its name in one step. What stood there, damaged or of a run that went another way,
 * is swapped out and goes; where the file system cannot swap, it is moved aside first. */
static pl_status take_name(const char *temporary, const char *name)
{
    struct stat st;
    if (stat(name, &st) != 0)
        return rename(temporary, name) == 0 ? PL_OK : pl_error(PL_ERR_CHECKPOINT, "checkpoint", "%s: cannot be renamed: %s", name, strerror(errno));
    if (!S_ISDIR(st.st_mode))
        return pl_error(PL_ERR_CHECKPOINT, "checkpoint", "%s stands in the way: it is no directory", name);
    if (pl_manifest_check(name) == NULL)
        pl_log("checkpoint: %s, written by an earlier run, is replaced", name);
    char *aside = pl_strdupf("%s.replaced", name);
    if (!aside)
        return PL_ERR_MEMORY;
    bool fine = renameat2(AT_FDCWD, temporary, AT_FDCWD, name, RENAME_EXCHANGE) == 0;
    if (fine)
        fine = rename(temporary, aside) == 0;
    else
        fine = rename(name, aside) == 0 && rename(temporary, name) == 0;
    pl_status s = fine ? PL_OK : pl_error(PL_ERR_CHECKPOINT, "checkpoint", "%s: cannot be replaced: %s", name, strerror(errno));
    pl_checkpoint_remove(aside); /* a file of somebody else's in it stays */
    pl_free(aside);
    return s;
}

pl_status pl_checkpoint_save(const char *dir, const struct pl_checkpoint_source *src)
{
    PL_TRY(pl_make_dirs(dir, "checkpoint"));
    char *temporary = NULL, *name = pl_checkpoint_name(dir, src->state->step);
    if (!name)
        return PL_ERR_MEMORY;
    pl_status s = make_temporary(dir, &temporary);
    if (s == PL_OK)
        s = fill(temporary, dir, src);
    if (s == PL_OK)
        pl_fault("checkpoint.before_rename", src->state->step);
    if (s == PL_OK)
        s = pl_checkpoint_still_owned(dir, src->owner);
    if (s == PL_OK)
        s = take_name(temporary, name);
    if (s == PL_OK)
        s = pl_checkpoint_sync_path(dir);
    if (s == PL_OK)
        s = set_latest(dir, temporary, src->state->step);
    else if (temporary)
        pl_checkpoint_remove(temporary);
    if (s < 0 && src->parts > 0 && pl_checkpoint_owned(dir, src->owner))
        remove_parts(dir, src->state->step);
    if (s == PL_OK)
        pl_checkpoint_retain(dir, src->job->checkpoint.keep, src->state->step, src->job->checkpoint.keep_best ? src->state->best_step : -1);
    pl_free(temporary);
    pl_free(name);
    return s;
}

pl_status pl_checkpoint_probe(const char *dir)
{
    char *temporary = NULL;
    PL_TRY(pl_make_dirs(dir, "checkpoint"));
    PL_TRY(make_temporary(dir, &temporary));
    pl_checkpoint_remove(temporary);
    pl_free(temporary);
    return PL_OK;
}
