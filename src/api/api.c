/* The public library: opens, checks and hands over. What it does is in train/. */
#include <paceline/paceline.h>

#include "train/train.h"

#include <math.h>
#include <string.h>

struct paceline {
    struct pl_world world;
};

struct paceline_job {
    struct pl_job *job;
    struct pl_memory_set *train, *test; /* or NULL */
};

struct paceline_model {
    struct pl_world alone; /* this rank as a world of its own */
    struct pl_trainer t;
    struct pl_job_set set; /* how values are taken */
};

static char message[4096];
static struct paceline *opened;

/* ---- calls and their outcome ---------------------------------------------------------------------- */

static void begin(void)
{
    pl_error_clear();
    message[0] = '\0';
}

/* Of a call of all ranks. */
static pl_status begin_together(struct paceline *p)
{
    begin();
    p->world.reported = p->world.lost;
    return p->world.lost ? pl_error(PL_ERR_PEER, "api", "a run has lost ranks: MPI cannot be used any more\nend this program") : PL_OK;
}

/* Of a local call. */
static int end(pl_status s)
{
    if (s < 0)
        snprintf(message, sizeof message, "%s", pl_error_text() ? pl_error_text() : "");
    return pl_exit_code(s);
}

/* Of a collective one: the ranks leave with one status. */
static int end_together(struct paceline *p, pl_status mine)
{
    int code = end(mine);
    return p->world.lost ? code : pl_exit_code(pl_world_agree(&p->world, mine));
}

const char *paceline_version(void) { return PL_VERSION; }
const char *paceline_message(void) { return message; }

/* ---- the ranks ------------------------------------------------------------------------------------- */

int paceline_open(struct paceline **out)
{
    begin();
    *out = NULL;
    if (opened)
        return end(pl_error(PL_ERR_USAGE, "api", "paceline_open: it is open already"));
    struct paceline *p = pl_alloc(sizeof *p, "the library");
    if (!p)
        return end(PL_ERR_MEMORY);
    pl_status s = pl_world_join(&p->world);
    if (s < 0) {
        pl_world_say(&p->world, s);
        pl_world_leave(&p->world);
        pl_free(p);
        return end(s);
    }
    *out = opened = p;
    return PACELINE_OK;
}

void paceline_close(struct paceline *p)
{
    if (!p)
        return;
    pl_world_leave(&p->world);
    pl_free(p);
    opened = NULL;
}

int paceline_rank(const struct paceline *p) { return p->world.rank; }
int paceline_ranks(const struct paceline *p) { return p->world.ranks; }

/* ---- a job ------------------------------------------------------------------------------------------ */

static pl_status take_job(pl_status s, struct pl_job *job, struct paceline_job **out)
{
    struct paceline_job *j = s < 0 ? NULL : pl_alloc(sizeof *j, "a job");
    if (!j) {
        pl_job_destroy(job);
        return s < 0 ? s : PL_ERR_MEMORY;
    }
    j->job = job;
    *out = j;
    return PL_OK;
}

static int give_job(struct paceline *p, pl_status s, struct pl_job *job, struct paceline_job **out)
{
    int code = end_together(p, take_job(s, job, out));
    if (code != 0) {
        paceline_job_close(*out);
        *out = NULL;
    }
    return code;
}

int paceline_job_read(struct paceline *p, const char *path, int overrides, const char *const *override, struct paceline_job **out)
{
    struct pl_job *job = NULL;
    *out = NULL;
    pl_status s = begin_together(p);
    if (s == PL_OK)
        s = pl_job_read(path, overrides, (char *const *)override, &job);
    return give_job(p, s, job, out);
}

int paceline_job_parse(struct paceline *p, const char *yaml, struct paceline_job **out)
{
    struct pl_job *job = NULL;
    *out = NULL;
    pl_status s = begin_together(p);
    if (s == PL_OK)
        s = pl_job_parse(yaml, "job", &job);
    return give_job(p, s, job, out);
}

void paceline_job_close(struct paceline_job *j)
{
    if (!j)
        return;
    pl_job_destroy(j->job);
    pl_memory_set_destroy(j->train);
    pl_memory_set_destroy(j->test);
    pl_free(j);
}

static pl_status take_array(const struct paceline_array *a, const char *name, struct pl_array *out)
{
    if (a->dims < 1 || a->dims > PL_MAX_DIMS)
        return pl_error(PL_ERR_DATA, "data", "%s: %d dimensions, wanted 1 to %d", name, a->dims, PL_MAX_DIMS);
    if ((int)a->type < 0 || a->type > PACELINE_UINT64)
        return pl_error(PL_ERR_DATA, "data", "%s: no such type: %d", name, (int)a->type);
    *out = (struct pl_array){.type = (enum pl_dtype)a->type, .dims = a->dims, .values = a->values}; /* in one order */
    memcpy(out->dim, a->dim, (size_t)a->dims * sizeof *a->dim);
    return PL_OK;
}

static pl_status make_set(const char *name, const struct paceline_array *data, const struct paceline_array *label, struct pl_memory_set **out)
{
    struct pl_array x, y;
    PL_TRY(take_array(data, "data", &x));
    if (label)
        PL_TRY(take_array(label, "label", &y));
    return pl_memory_set_create(name, &x, label ? &y : NULL, out);
}

int paceline_job_data(struct paceline_job *j, const char *set, const struct paceline_array *data, const struct paceline_array *label)
{
    begin();
    bool train = strcmp(set, "train") == 0;
    if (!train && strcmp(set, "test") != 0)
        return end(pl_error(PL_ERR_USAGE, "api", "paceline_job_data: %s: wanted train or test", set));
    if (!label)
        return end(pl_error(PL_ERR_USAGE, "api", "paceline_job_data: no labels"));
    struct pl_memory_set *made = NULL, **mine = train ? &j->train : &j->test;
    pl_status s = make_set(train ? "memory:train" : "memory:test", data, label, &made);
    if (s < 0)
        return end(s);
    pl_memory_set_destroy(*mine);
    *mine = made;
    (train ? &j->job->train_set : &j->job->test_set)->memory = made;
    return PACELINE_OK;
}

/* ---- training --------------------------------------------------------------------------------------- */

struct listener {
    paceline_watch *watch;
    void *arg;
    bool classes;
    int64_t steps; /* of the run, as last heard */
};

static void hear_step(void *arg, const struct pl_report_step *line, int64_t steps)
{
    struct listener *l = arg;
    l->steps = steps;
    l->watch(l->arg, &(struct paceline_report){.step = line->step, .steps = steps, .loss = line->loss, .accuracy = l->classes ? line->accuracy : NAN, .samples_per_s = line->samples_per_s});
}

static void hear_evaluation(void *arg, int64_t step, const struct pl_evaluation *e)
{
    struct listener *l = arg;
    l->watch(l->arg, &(struct paceline_report){.step = step, .steps = l->steps, .loss = e->loss, .accuracy = l->classes ? e->accuracy : NAN, .samples_per_s = NAN, .evaluation = 1});
}

int paceline_train(struct paceline *p, struct paceline_job *j, paceline_watch *watch, void *arg)
{
    if (begin_together(p) < 0)
        return end(PL_ERR_PEER);
    struct listener l = {.watch = watch, .arg = arg, .classes = j->job->input.label_floats == 0};
    struct pl_train_watch w = {.step = hear_step, .evaluated = hear_evaluation, .arg = &l};
    pl_status s = pl_train(&p->world, j->job, watch ? &w : NULL);
    pl_world_say(&p->world, s);
    int code = end(s);
    pl_signals_release(s == PL_STOPPED);
    return code;
}

/* ---- what was trained ------------------------------------------------------------------------------- */

static pl_status load(struct paceline_model *m, const struct pl_job *job, const char *path)
{
    char *found = NULL;
    PL_TRY(pl_checkpoint_find_weights(job, path, &found));
    pl_status s = pl_checkpoint_load_weights(found, m->t.graph, pl_graph_params(m->t.graph));
    pl_free(found);
    return s;
}

static pl_status open_model(struct paceline_model *m, const struct pl_job *job, const char *path)
{
    m->alone.reported = true; /* all say it together */
    PL_TRY(pl_trainer_open(&m->t, &m->alone, job, false));
    m->set = job->test_set;
    m->set.limit = 0;
    return load(m, job, path);
}

int paceline_model_open(struct paceline *p, struct paceline_job *j, const char *path, struct paceline_model **out)
{
    *out = NULL;
    if (begin_together(p) < 0)
        return end(PL_ERR_PEER);
    struct paceline_model *m = pl_alloc(sizeof *m, "a model");
    int code = end_together(p, m ? PL_OK : PL_ERR_MEMORY);
    if (code == 0)
        code = end_together(p, pl_world_part(&p->world, p->world.rank, &m->alone));
    if (code == 0)
        code = end_together(p, open_model(m, j->job, path));
    if (code == 0)
        *out = m;
    else
        paceline_model_close(m);
    return code;
}

void paceline_model_close(struct paceline_model *m)
{
    if (!m)
        return;
    if (m->t.world)
        pl_trainer_close(&m->t);
    if (m->alone.comm)
        pl_world_part_leave(&m->alone);
    pl_free(m);
}

int64_t paceline_model_outputs(const struct paceline_model *m) { return pl_shape_row_elems(pl_graph_output_shape(m->t.graph)); }

struct rows { float *out; size_t elems; /* of a row */ };

static pl_status copy_rows(void *arg, int64_t first, int64_t rows, const float *y)
{
    const struct rows *r = arg;
    memcpy(r->out + (size_t)first * r->elems, y, (size_t)rows * r->elems * sizeof *y);
    return PL_OK;
}

int paceline_model_run(struct paceline_model *m, const struct paceline_array *data, float *out)
{
    begin();
    struct pl_memory_set *rows = NULL;
    struct pl_dataset *d = NULL;
    struct pl_loader *loader = NULL;
    pl_status s = make_set("memory:run", data, NULL, &rows);
    m->set.memory = rows;
    if (s == PL_OK)
        s = pl_dataset_open(&m->set, &m->t.job->input, false, &d);
    if (s == PL_OK)
        s = pl_trainer_eval_loader(&m->t, d, &loader);
    if (s == PL_OK)
        s = pl_trainer_predict(&m->t, loader, copy_rows, &(struct rows){out, (size_t)paceline_model_outputs(m)});
    pl_loader_destroy(loader);
    pl_dataset_close(d);
    pl_memory_set_destroy(rows);
    m->set.memory = NULL;
    return end(s);
}
