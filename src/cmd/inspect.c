/* paceline inspect FILE: what is in a job, a model, a data set or a checkpoint. */
#include "cmd/cmd.h"

#include <string.h>
#include <sys/stat.h>

static void print_dims(const struct pl_h5_info *i)
{
    putchar('[');
    for (int d = 0; d < i->dims; d++)
        printf("%s%lld", d ? ", " : "", (long long)i->dim[d]);
    putchar(']');
}

/* Of what has a length each: how much it takes no one call tells. */
static void print_encoding(struct pl_h5 *f, const char *path)
{
    char *text;
    if (pl_h5_get_text(f, path, "encoding", &text) < 0) {
        pl_error_clear();
        puts(", a length each");
        return;
    }
    printf(", encoding %s\n", text);
    pl_free(text);
}

static void visit(void *arg, const char *path, bool is_dataset)
{
    struct pl_h5 *f = arg;
    struct pl_h5ds *d;
    if (!is_dataset || pl_h5_dataset(f, path, &d) < 0) {
        if (!is_dataset)
            printf("  %s/\n", path);
        pl_error_clear();
        return;
    }
    const struct pl_h5_info *i = pl_h5_dataset_info(d);
    printf("  %-44s %-8s ", path, i->bytes_each ? "bytes" : pl_dtype_name(i->dtype));
    print_dims(i);
    if (i->chunked)
        printf(", chunks of %lld rows", (long long)i->chunk[0]);
    if (i->elsewhere)
        puts(", stored in parts");
    else if (!i->bytes_each)
        printf(", %.2f MB stored\n", (double)i->bytes_stored / 1e6);
    else
        print_encoding(f, path);
    pl_h5_dataset_close(d);
}

static void print_run(struct pl_h5 *f)
{
    static const char *const names[] = {"step", "epoch", "position", "samples_seen", "seed", "pieces", "ranks", NULL};
    int64_t v;
    if (!pl_h5_exists(f, "/run"))
        return;
    printf("a Paceline checkpoint:");
    for (int i = 0; names[i]; i++)
        if (pl_h5_get_int(f, "/run", names[i], &v) == PL_OK)
            printf(" %s %lld%s", names[i], (long long)v, names[i + 1] ? "," : "\n");
    pl_error_clear();
}

static pl_status inspect_h5(const char *path)
{
    struct pl_h5 *f;
    PL_TRY(pl_h5_open(path, "inspect", PL_ERR_DATA, &f));
    printf("%s: HDF5\n", path);
    print_run(f);
    pl_status s = pl_h5_walk(f, "/", visit, f);
    pl_h5_close(f);
    return s;
}

static void print_layers(const struct pl_graph *g)
{
    const struct pl_layer *l;
    int n = pl_graph_layers(g, &l);
    printf("%-24s %-18s %-22s %12s %14s\n", "layer", "kind", "output of a sample", "parameters", "MFLOP forward");
    for (int i = 0; i < n; i++) {
        char shape[128] = "";
        int64_t params = 0;
        for (int d = 1, at = 0; d < l[i].y.dims; d++)
            at += snprintf(shape + at, sizeof shape - (size_t)at, "%s%lld", d > 1 ? " x " : "", (long long)l[i].y.dim[d]);
        for (int p = 0; p < l[i].params; p++)
            params += l[i].param[p].statistic ? 0 : pl_shape_elems(&l[i].param[p].shape);
        printf("%-24s %-18s %-22s %12lld %14.3f\n", l[i].name, l[i].kind->name, shape, (long long)params,
               pl_layer_flops(&l[i], 1) / 1e6);
    }
}

static pl_status inspect_job(const char *path)
{
    const struct pl_backend_table *table = pl_backend_find("reference");
    struct pl_backend *backend = NULL;
    struct pl_graph *g = NULL;
    struct pl_job *job = NULL;
    PL_TRY(pl_job_read(path, 0, NULL, &job));
    pl_status s = table->open(&(struct pl_device_options){.threads = 1}, &backend);
    if (s == PL_OK)
        s = pl_graph_create(job, table, backend, 1, true, NULL, &g);
    if (s == PL_OK) {
        printf("%s: %s %s, %lld parameters, %.2f MFLOP a sample forward\n", path, pl_job_set_given(&job->train_set) ? "a job, model" : "model", job->model_name,
               (long long)pl_graph_weights(g), pl_graph_flops(g, 1) / 1e6);
        print_layers(g);
    }
    pl_graph_destroy(g);
    if (backend)
        table->close(backend);
    pl_job_destroy(job);
    return s;
}

/* For scripts: what a key is, in the file or by default, with overrides. */
static pl_status inspect_key(const struct pl_args *args, const char *key)
{
    struct pl_job *job = NULL;
    pl_status s = pl_job_read(args->file, args->overrides, args->override, &job);
    if (s == PL_OK)
        s = pl_job_print_value(job, key);
    pl_job_destroy(job);
    return s;
}

/* A directory: of checkpoints, or one. */
static pl_status inspect_dir(const char *path)
{
    char *found = NULL;
    PL_TRY(pl_checkpoint_find(path, &found));
    if (!found)
        return pl_error(PL_ERR_CHECKPOINT, "inspect", "%s: no whole checkpoint in it", path);
    char *file = pl_strdupf("%s/model.h5", found);
    pl_status s = inspect_h5(file);
    pl_free(file);
    pl_free(found);
    return s;
}

static pl_status export_whole(const char *path, const char *file)
{
    struct stat st;
    PL_TRY(pl_checkpoint_export(path, file));
    if (stat(file, &st) == 0)
        printf("%s: all of %s, %.2f MB\n", file, path, (double)st.st_size / 1e6);
    return PL_OK;
}

static int run_inspect(int argc, char **argv)
{
    struct stat st;
    struct pl_args args;
    static const char *const options[] = {"key", "export", NULL};
    pl_status s = pl_args_read(argc, argv, options, &args);
    const char *key = args.option_value[0], *export = args.option_value[1];
    if (s == PL_OK && !args.file)
        s = pl_error(PL_ERR_USAGE, "paceline", "no file given\nusage: paceline inspect FILE|DIR");
    if (s == PL_OK && args.overrides > 0 && !key)
        s = pl_error(PL_ERR_USAGE, "paceline", "inspect takes key=value with --key only");
    if (s == PL_OK && stat(args.file, &st) != 0)
        s = pl_error(PL_ERR_USAGE, "inspect", "%s: no such file", args.file);
    size_t n = s == PL_OK ? strlen(args.file) : 0;
    bool yaml = n > 4 && ((n > 5 && strcmp(args.file + n - 5, ".yaml") == 0) || strcmp(args.file + n - 4, ".yml") == 0);
    if (s == PL_OK && key && !yaml)
        s = pl_error(PL_ERR_USAGE, "inspect", "%s: --key is of a job, JOB.yaml", args.file);
    if (s == PL_OK && export && yaml)
        s = pl_error(PL_ERR_USAGE, "inspect", "%s: --export is of a checkpoint or a model.h5", args.file);
    if (s == PL_OK && key)
        s = inspect_key(&args, key);
    else if (s == PL_OK && export)
        s = export_whole(args.file, export);
    else if (s == PL_OK)
        s = S_ISDIR(st.st_mode) ? inspect_dir(args.file) : yaml ? inspect_job(args.file) : inspect_h5(args.file);
    if (s < 0)
        pl_log("%s", pl_error_text());
    pl_args_free(&args);
    return pl_exit_code(s);
}

const struct pl_command pl_cmd_inspect = {
    .name = "inspect",
    .usage = "paceline inspect FILE|DIR [--export FILE] [--key NAME]",
    .help = "Shows what is in a job or model file, an HDF5 data set or model, or a checkpoint directory.\n"
            "  --export FILE  of a checkpoint, writes all of it to this new file, also where a split model's is in parts\n"
            "  --key NAME  of a job, the value of this key alone; key=value replaces keys first",
    .run = run_inspect,
};
