/* paceline predict JOB.yaml --out FILE.h5: the network's output for every sample of a set, in the
 * set's order: /output [N, ...] and, where the output is one row of classes, /class [N]; where it is one
 * at each position, [N, positions, classes], /class [N, positions]. */
#include "cmd/cmd.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

struct prediction {
    struct pl_trainer t;
    struct pl_dataset *data;
    struct pl_loader *loader;
    struct pl_h5 *file;
    struct pl_h5ds *output, *class;
    char *part;    /* what it is called while it is written */
    int64_t rows;  /* of classes, of a sample; 0: the output is none */
    int32_t *best; /* [batch, rows] */
};

static int64_t rows_of_classes(const struct prediction *p)
{
    const struct pl_shape *y = pl_graph_output_shape(p->t.graph);
    if (y->dims == 3 && pl_graph_classes(p->t.graph) > 0)
        return y->dim[1];
    return pl_shape_row_elems(y) == y->dim[1] ? 1 : 0;
}

static pl_status make_file(struct prediction *p, const char *out)
{
    const struct pl_shape *y = pl_graph_output_shape(p->t.graph);
    int64_t dim[PL_MAX_DIMS];
    if (access(out, F_OK) == 0)
        return pl_error(PL_ERR_CHECKPOINT, "predict", "%s: is there already\nremove it, or give another name", out);
    p->part = pl_strdupf("%s.part", out);
    if (!p->part)
        return PL_ERR_MEMORY;
    memcpy(dim, y->dim, sizeof dim);
    dim[0] = pl_dataset_samples(p->data);
    PL_TRY(pl_h5_create(p->part, "predict", PL_ERR_CHECKPOINT, &p->file));
    PL_TRY(pl_h5_make_dataset(p->file, "/output", PL_F32, y->dims, dim, 0, 0, &p->output));
    p->rows = rows_of_classes(p);
    if (p->rows == 0)
        return PL_OK;
    p->best = pl_alloc((size_t)(p->t.batch * p->rows) * sizeof *p->best, "predicted classes");
    if (!p->best)
        return PL_ERR_MEMORY;
    return pl_h5_make_dataset(p->file, "/class", PL_I32, y->dims == 3 ? 2 : 1, dim, 0, 0, &p->class);
}

static pl_status write_rows(void *arg, int64_t first, int64_t rows, const float *y)
{
    struct prediction *p = arg;
    PL_TRY(pl_h5_write_rows(p->output, first, rows, PL_F32, y));
    if (!p->class)
        return PL_OK;
    int64_t width = pl_shape_row_elems(pl_graph_output_shape(p->t.graph)) / p->rows;
    for (int64_t r = 0; r < rows * p->rows; r++) {
        p->best[r] = 0;
        for (int64_t c = 1; c < width; c++)
            if (y[r * width + c] > y[r * width + p->best[r]])
                p->best[r] = (int32_t)c;
    }
    return pl_h5_write_rows(p->class, first, rows, PL_I32, p->best);
}

static pl_status open_parts(struct prediction *p, const struct pl_job *job, const struct pl_job_set *set, const struct pl_args *args)
{
    char *path = NULL;
    PL_TRY(pl_checkpoint_find_weights(job, args->option_value[0], &path));
    pl_status s = pl_checkpoint_load_weights(path, p->t.graph, pl_graph_params(p->t.graph));
    pl_free(path);
    PL_TRY(s);
    PL_TRY(pl_dataset_open(set, &job->input, false, &p->data));
    PL_TRY(pl_trainer_eval_loader(&p->t, p->data, &p->loader));
    return pl_trainer_takes_output(&p->t) ? make_file(p, args->option_value[2]) : PL_OK;
}

static pl_status set_up(struct prediction *p, struct pl_world *w, const struct pl_job *job, const struct pl_args *args)
{
    const struct pl_job_set *set = NULL;
    pl_status s = args->option_value[2] ? PL_OK : pl_error(PL_ERR_USAGE, "paceline", "predict needs --out FILE.h5");
    PL_TRY(pl_world_agree(w, s));
    PL_TRY(pl_world_agree(w, pl_cmd_find_set(job, args->option_value[1], &set)));
    PL_TRY(pl_stage(w, job->data.stage, &set, 1));
    return pl_world_agree(w, open_parts(p, job, set, args));
}

/* Under its name once it is whole: half of it would look like all. */
static pl_status finish_file(struct prediction *p, const char *out, pl_status s)
{
    pl_h5_dataset_close(p->output);
    pl_h5_dataset_close(p->class);
    bool made = p->file != NULL;
    pl_status closed = pl_h5_close(p->file);
    s = s < 0 ? s : closed;
    if (made && s == PL_OK && rename(p->part, out) != 0)
        s = pl_error(PL_ERR_CHECKPOINT, "predict", "%s: %s", out, strerror(errno));
    if (made && s < 0)
        unlink(p->part);
    if (made && s == PL_OK)
        printf("%s: %lld rows\n", out, (long long)pl_dataset_samples(p->data));
    return s;
}

static pl_status predict(struct pl_world *w, const struct pl_job *job, const struct pl_args *args)
{
    struct prediction p = {0};
    PL_TRY(pl_trainer_open(&p.t, w, job, false));
    pl_status s = set_up(&p, w, job, args);
    if (s == PL_OK)
        s = pl_trainer_predict(&p.t, p.loader, write_rows, &p);
    bool alone = s == PL_ERR_PEER && w->ranks > 1;
    s = finish_file(&p, args->option_value[2], s);
    if (alone)
        pl_world_abort(w, s);
    s = pl_world_agree(w, s);
    pl_loader_destroy(p.loader);
    pl_dataset_close(p.data);
    pl_trainer_close(&p.t);
    pl_free(p.part);
    pl_free(p.best);
    return s;
}

static int run_predict(int argc, char **argv)
{
    static const char *const options[] = {"checkpoint", "set", "out", NULL};
    struct pl_world w;
    struct pl_args args;
    struct pl_job *job;
    int code = 0;
    if (pl_cmd_start(argc, argv, options, &w, &args, &job, &code) < 0)
        return code;
    pl_status s = predict(&w, job, &args);
    pl_job_destroy(job);
    pl_args_free(&args);
    return pl_world_finish(&w, s);
}

const struct pl_command pl_cmd_predict = {
    .name = "predict",
    .usage = "paceline predict JOB.yaml --out FILE.h5 [--checkpoint PATH] [--set test|train] [key=value ...]",
    .help = "Writes the network's output for every sample of a set, in the set's order, to a new HDF5\n"
            "file: /output and, for classes, /class. The set needs no labels.",
    .run = run_predict,
};
