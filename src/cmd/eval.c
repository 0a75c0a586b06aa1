/* paceline eval JOB.yaml [--checkpoint PATH] [--set train|test]: loss and accuracy over a set. */
#include "cmd/cmd.h"

#include <string.h>

struct evaluation {
    struct pl_trainer t;
    struct pl_dataset *data;
    struct pl_loader *loader;
    char *path;
};

pl_status pl_cmd_find_set(const struct pl_job *job, const char *given, const struct pl_job_set **out)
{
    const char *set = given ? given : "test";
    bool train = strcmp(set, "train") == 0;
    if (!train && strcmp(set, "test") != 0)
        return pl_error(PL_ERR_USAGE, "paceline", "--set %s: train or test", set);
    *out = train ? &job->train_set : &job->test_set;
    return pl_job_set_given(*out) ? PL_OK : pl_error(PL_ERR_USAGE, "job", "data.%s.file, or files, is missing", set);
}

static pl_status open_parts(struct evaluation *e, const struct pl_job *job, const struct pl_job_set *source, const struct pl_args *args)
{
    PL_TRY(pl_checkpoint_find_weights(job, args->option_value[0], &e->path));
    PL_TRY(pl_dataset_open(source, &job->input, true, &e->data));
    PL_TRY(pl_trainer_eval_loader(&e->t, e->data, &e->loader));
    return pl_checkpoint_load_weights(e->path, e->t.graph, pl_graph_params(e->t.graph));
}

static pl_status evaluate(struct pl_world *w, const struct pl_job *job, const struct pl_args *args)
{
    struct evaluation e = {0};
    struct pl_evaluation r;
    const struct pl_job_set *source = NULL;
    PL_TRY(pl_trainer_open(&e.t, w, job, false));
    pl_status s = pl_world_agree(w, pl_cmd_find_set(job, args->option_value[1], &source));
    if (s == PL_OK)
        s = pl_stage(w, job->data.stage, &source, 1);
    if (s == PL_OK)
        s = pl_world_agree(w, open_parts(&e, job, source, args));
    if (s == PL_OK) {
        s = pl_trainer_evaluate(&e.t, e.t.graph, e.loader, &r);
        if (s < 0)
            pl_world_abort(w, s);
        if (w->rank == 0)
            printf("%s: loss %.6f, accuracy %.4f, top-5 %.4f, %lld samples\n", e.path, r.loss, r.accuracy,
                   r.top5, (long long)r.samples);
    }
    pl_loader_destroy(e.loader);
    pl_dataset_close(e.data);
    pl_trainer_close(&e.t);
    pl_free(e.path);
    return s;
}

static int run_eval(int argc, char **argv)
{
    static const char *const options[] = {"checkpoint", "set", NULL};
    struct pl_world w;
    struct pl_args args;
    struct pl_job *job;
    int code = 0;
    if (pl_cmd_start(argc, argv, options, &w, &args, &job, &code) < 0)
        return code;
    pl_status s = evaluate(&w, job, &args);
    pl_job_destroy(job);
    pl_args_free(&args);
    return pl_world_finish(&w, s);
}

const struct pl_command pl_cmd_eval = {
    .name = "eval",
    .usage = "paceline eval JOB.yaml [--checkpoint PATH] [--set test|train] [key=value ...]",
    .help = "Loss and accuracy of trained weights over a whole set. PATH is a checkpoint, a directory\n"
            "of checkpoints (the newest is taken; default: the job's checkpoint.dir) or a model.h5.",
    .run = run_eval,
};
