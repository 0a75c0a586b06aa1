/* Reading a checkpoint: the newest whole one is found by its manifest, damaged ones are named and passed
 * over; another model's is refused with the tensor that differs. */
#include "checkpoint/files.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Where to look, in this order: what was written after `latest` was (a run killed in between), what it
 * names, what came before, and at last checkpoints of greater steps, of a run that went another way. */
enum { AFTER, UP_TO, OTHERS, ROUNDS };

struct order { int64_t latest; struct timespec time; };

static void read_latest(const char *dir, struct order *o)
{
    long long step;
    struct stat st;
    char *path = pl_strdupf("%s/latest", dir);
    FILE *f = path ? fopen(path, "r") : NULL;
    *o = (struct order){.latest = INT64_MAX};
    if (f && fscanf(f, "step-%lld", &step) == 1 && fstat(fileno(f), &st) == 0)
        *o = (struct order){.latest = step, .time = st.st_mtim};
    if (f)
        fclose(f);
    pl_free(path);
}

static int round_of(const struct order *o, const char *dir, int64_t step)
{
    struct stat st;
    if (step <= o->latest)
        return UP_TO;
    char *path = pl_strdupf("%s/step-%08lld/%s", dir, (long long)step, MANIFEST_FILE);
    bool known = path && stat(path, &st) == 0;
    pl_free(path);
    bool newer = known && (st.st_mtim.tv_sec > o->time.tv_sec || (st.st_mtim.tv_sec == o->time.tv_sec && st.st_mtim.tv_nsec >= o->time.tv_nsec));
    return newer ? AFTER : OTHERS;
}

static pl_status find_in(const char *dir, char **path)
{
    int64_t *steps;
    int n;
    struct stat st;
    *path = NULL;
    char *manifest = pl_strdupf("%s/%s", dir, MANIFEST_FILE);
    bool itself = manifest && stat(manifest, &st) == 0;
    pl_free(manifest);
    if (itself) {
        const char *wrong = pl_manifest_check(dir);
        if (wrong)
            return pl_error(PL_ERR_CHECKPOINT, "checkpoint", "%s is damaged: %s", dir, wrong);
        return (*path = pl_strdup(dir)) ? PL_OK : PL_ERR_MEMORY;
    }
    PL_TRY(pl_checkpoint_list(dir, &steps, &n));
    struct order order;
    read_latest(dir, &order);
    for (int at = ROUNDS * n - 1; at >= 0 && !*path; at--) {
        int i = at % n;
        if (round_of(&order, dir, steps[i]) != ROUNDS - 1 - at / n)
            continue;
        char *name = pl_checkpoint_name(dir, steps[i]);
        const char *wrong = name ? pl_manifest_check(name) : "no memory";
        if (!wrong)
            *path = name;
        else {
            pl_log("checkpoint: %s is damaged and passed over: %s", name, wrong);
            pl_free(name);
        }
    }
    pl_free(steps);
    return PL_OK;
}

static bool names_newest(const char *path)
{
    struct stat st;
    const char *base = strrchr(path, '/');
    return strcmp(base ? base + 1 : path, "latest") == 0 && stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

/* The file that names the newest stands for its directory. */
pl_status pl_checkpoint_find(const char *dir, char **path)
{
    const char *base = strrchr(dir, '/');
    char *in = !names_newest(dir) ? pl_strdup(dir) : base ? pl_strdupf("%.*s", (int)(base - dir), dir) : pl_strdup(".");
    pl_status s = in ? find_in(in, path) : PL_ERR_MEMORY;
    pl_free(in);
    return s;
}

pl_status pl_checkpoint_find_weights(const struct pl_job *job, const char *given, char **path)
{
    const char *dir = given ? given : job->checkpoint.dir;
    if (!dir)
        return pl_error(PL_ERR_USAGE, "checkpoint", "the job has no checkpoint.dir\ngive --checkpoint PATH");
    size_t n = strlen(dir);
    if (n > 3 && strcmp(dir + n - 3, ".h5") == 0) {
        *path = pl_strdup(dir);
        return PL_OK;
    }
    PL_TRY(pl_checkpoint_find(dir, path));
    return *path ? PL_OK : pl_error(PL_ERR_CHECKPOINT, "checkpoint", "no whole checkpoint in %s", dir);
}

int pl_checkpoint_count(const char *dir)
{
    int64_t *steps;
    int n;
    if (pl_checkpoint_list(dir, &steps, &n) < 0) {
        pl_error_clear();
        return 0;
    }
    pl_free(steps);
    return n;
}

static bool same_shape(const struct pl_h5_info *i, const struct pl_shape *s)
{
    bool same = i->dims == s->dims;
    for (int k = 0; same && k < s->dims; k++)
        same = i->dim[k] == s->dim[k];
    return same;
}

static void shape_text(const int64_t *dim, int dims, char *text, size_t bytes)
{
    size_t at = 0;
    for (int k = 0; k < dims && at < bytes; k++)
        at += (size_t)snprintf(text + at, bytes - at, "%s%lld", k ? ", " : "", (long long)dim[k]);
}

#define ANOTHER "give another checkpoint.dir"

static pl_status read_tensor(struct pl_h5 *f, const char *path, const char *group, const struct pl_tensor *t, float *slab)
{
    struct pl_h5ds *d;
    char *name = pl_strdupf("%s/%s/%s", group, t->layer, t->name);
    if (!name)
        return PL_ERR_MEMORY;
    pl_status s = pl_h5_exists(f, name) ? pl_h5_dataset(f, name, &d)
                                        : pl_error(PL_ERR_CHECKPOINT, "checkpoint", "%s is of another model: it has no %s, which this job's has\n" ANOTHER, path, name);
    if (s == PL_OK) {
        const struct pl_h5_info *i = pl_h5_dataset_info(d);
        struct pl_shape whole = t->param->shape;
        char wanted[128], found[128];
        whole.dim[0] = pl_param_rows(t->param);
        shape_text(whole.dim, whole.dims, wanted, sizeof wanted);
        shape_text(i->dim, i->dims, found, sizeof found);
        if (!same_shape(i, &whole))
            s = pl_error(PL_ERR_CHECKPOINT, "checkpoint", "%s is of another model: %s is [%s], this job's is [%s]\n" ANOTHER, path, name, found, wanted);
        else
            s = pl_h5_read_rows(d, t->param->first, t->param->shape.dim[0], PL_F32, slab + t->param->offset);
        pl_h5_dataset_close(d);
    }
    pl_free(name);
    return s;
}

static pl_status read_slab(struct pl_h5 *f, const char *path, const char *group, const struct pl_graph *g, bool statistics, float *slab)
{
    const struct pl_tensor *tensor;
    int n = pl_graph_tensors(g, &tensor);
    for (int t = 0; t < n; t++)
        if (statistics || !tensor[t].param->statistic)
            PL_TRY(read_tensor(f, path, group, &tensor[t], slab));
    return PL_OK;
}

/* Before it was kept, a run had read what it had seen: every sample of the epochs, on all ranks. */
static void read_position(struct pl_h5 *f, struct pl_run_state *r)
{
    if (pl_h5_get_int(f, "/run", "position", &r->position) == PL_OK)
        return;
    pl_error_clear();
    r->position = r->samples_seen - r->epoch * r->train_samples;
}

static pl_status read_run(struct pl_h5 *f, struct pl_run_state *r, int64_t *signature)
{
    int64_t ranks, done;
    const struct { const char *name; int64_t *v; } numbers[] = {
        {"step", &r->step}, {"epoch", &r->epoch}, {"samples_seen", &r->samples_seen},
        {"global_batch", &r->global_batch}, {"train_samples", &r->train_samples}, {"seed", &r->seed}, {"ranks", &ranks}, {"done", &done}, {"last_eval_step", &r->last_eval_step},
        {"best_step", &r->best_step}, {"signature", signature}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        PL_TRY(pl_h5_get_int(f, "/run", numbers[i].name, numbers[i].v));
    r->ranks = (int)ranks;
    r->done = done != 0;
    read_position(f, r);
    PL_TRY(pl_h5_get_double(f, "/run", "best", &r->best));
    PL_TRY(pl_h5_get_double(f, "/run", "last_loss", &r->last_loss));
    return pl_h5_get_double(f, "/run", "last_accuracy", &r->last_accuracy);
}

static pl_status same_optimizer(struct pl_h5 *f, const char *path, const struct pl_optimizer *o)
{
    char *kind;
    PL_TRY(pl_h5_get_text(f, "/run", "optimizer", &kind));
    pl_status s = PL_OK;
    if (strcmp(kind, pl_optimizer_name(o)) != 0)
        s = pl_error(PL_ERR_CHECKPOINT, "checkpoint", "%s was trained with optimizer.kind %s, the job says %s\ngive optimizer.kind=%s, or another checkpoint.dir with train.init=%s to start from its weights",
                     path, kind, pl_optimizer_name(o), kind, path);
    pl_free(kind);
    return s;
}

static pl_status load_all(struct pl_h5 *f, const char *path, const struct pl_graph *g, struct pl_optimizer *o, float *params, struct pl_run_state *state)
{
    int64_t signature;
    PL_TRY(read_run(f, state, &signature));
    PL_TRY(params ? read_slab(f, path, "/params", g, true, params) : PL_OK);
    if ((uint64_t)signature != pl_graph_signature(g))
        return pl_error(PL_ERR_CHECKPOINT, "checkpoint", "%s is of another model\n" ANOTHER ", or train.init=FILE to start from its weights", path);
    if (o)
        PL_TRY(same_optimizer(f, path, o));
    for (int i = 0; o && params && i < pl_optimizer_slots(o); i++) {
        char group[80];
        snprintf(group, sizeof group, "/optimizer/%s", pl_optimizer_slot_name(o, i));
        PL_TRY(read_slab(f, path, group, g, false, pl_optimizer_slot(o, i)));
    }
    return PL_OK;
}

pl_status pl_checkpoint_open_model(const char *path, struct pl_h5 **f)
{
    struct stat st;
    bool dir = (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) || names_newest(path);
    char *file = dir ? NULL : pl_strdup(path);
    if (dir) {
        char *found;
        PL_TRY(pl_checkpoint_find(path, &found));
        if (!found)
            return pl_error(PL_ERR_CHECKPOINT, "checkpoint", "no whole checkpoint in %s", path);
        file = pl_strdupf("%s/%s", found, MODEL_FILE);
        pl_free(found);
    }
    if (!file)
        return PL_ERR_MEMORY;
    pl_status s = pl_h5_open(file, "checkpoint", PL_ERR_CHECKPOINT, f);
    pl_free(file);
    return s;
}

pl_status pl_checkpoint_load(const char *path, const struct pl_graph *g, struct pl_optimizer *o, float *params, struct pl_run_state *state)
{
    struct pl_h5 *f;
    PL_TRY(pl_checkpoint_open_model(path, &f));
    pl_status s = load_all(f, path, g, o, params, state);
    pl_h5_close(f);
    return s;
}

/* ---- parts ---------------------------------------------------------------------------------------- */

static void part_group(char *group, size_t bytes, int rank, const struct pl_part *part) { snprintf(group, bytes, "/rank/%d/%s", rank, part->name); }

static pl_status open_part(const char *dir, int rank, struct pl_h5 **f)
{
    char *parts = pl_strdupf("%s/%s", dir, PARTS_DIR), *path = parts ? pl_checkpoint_part_name(parts, rank) : NULL;
    pl_status s = path ? pl_h5_open(path, "checkpoint", PL_ERR_CHECKPOINT, f) : PL_ERR_MEMORY;
    pl_free(parts);
    pl_free(path);
    return s;
}

static pl_status read_part(const char *dir, const struct pl_graph *g, int rank, const struct pl_part *part, float *slab)
{
    struct pl_h5 *f;
    char group[96];
    part_group(group, sizeof group, rank, part);
    PL_TRY(open_part(dir, rank, &f));
    pl_status s = read_slab(f, dir, group, g, false, slab);
    pl_h5_close(f);
    return s;
}

/* Every rank gets the same of them all. */
static pl_status share_out(const char *dir, const struct pl_graph *g, int parts, int ranks, const struct pl_part *part)
{
    int64_t elems = pl_graph_elems(g);
    float *one = pl_alloc((size_t)elems * sizeof *one, part->name), over = (float)(part->mean ? parts : ranks);
    pl_status s = one ? PL_OK : PL_ERR_MEMORY;
    memset(part->slab, 0, (size_t)elems * sizeof *one);
    for (int r = 0; s == PL_OK && r < parts; r++) {
        s = read_part(dir, g, r, part, one);
        for (int64_t i = 0; i < elems; i++)
            part->slab[i] += one[i] / over;
    }
    pl_free(one);
    return s;
}

/* How many parts there are; has[n]: what is in them. */
static pl_status look_for_parts(const char *path, const struct pl_part *part, int n, int *parts, bool *has)
{
    struct pl_h5 *f;
    int64_t count = 0, pieces = 1;
    PL_TRY(pl_checkpoint_open_model(path, &f));
    if (pl_h5_get_int(f, "/run", "parts", &count) < 0 || pl_h5_get_int(f, "/run", "pieces", &pieces) < 0)
        pl_error_clear(); /* written before there were parts, or pieces */
    pl_h5_close(f);
    *parts = (int)count;
    if (count == 0 || pieces > 1)
        return PL_OK;
    PL_TRY(open_part(path, 0, &f));
    for (int i = 0; i < n; i++) {
        char group[96];
        part_group(group, sizeof group, 0, &part[i]);
        has[i] = pl_h5_exists(f, group);
    }
    pl_h5_close(f);
    return PL_OK;
}

pl_status pl_checkpoint_load_part(const char *path, const struct pl_graph *g, int rank, int ranks, const struct pl_part *part, int n)
{
    bool has[PL_PARTS_MAX] = {false}, unused = false;
    int parts;
    PL_TRY(look_for_parts(path, part, n, &parts, has));
    for (int i = 0; i < n; i++) {
        unused = unused || (has[i] && !part[i].slab);
        if (has[i] && part[i].slab)
            PL_TRY(part[i].own && parts == ranks ? read_part(path, g, rank, &part[i], part[i].slab) : share_out(path, g, parts, ranks, &part[i]));
    }
    return unused ? PL_END : PL_OK;
}

pl_status pl_checkpoint_load_weights(const char *path, const struct pl_graph *g, float *params)
{
    struct pl_h5 *f;
    PL_TRY(pl_checkpoint_open_model(path, &f));
    pl_status s = read_slab(f, path, "/params", g, true, params);
    pl_h5_close(f);
    return s;
}

pl_status pl_checkpoint_text(const char *path, const char *what, char **text)
{
    struct pl_h5 *f;
    PL_TRY(pl_checkpoint_open_model(path, &f));
    pl_status s = pl_h5_get_text(f, "/run", what, text);
    pl_h5_close(f);
    return s;
}
