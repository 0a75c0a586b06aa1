/* The commands, and what they share: reading their arguments and coming up on all ranks. */
#include "cmd/cmd.h"

#include <string.h>

extern const struct pl_command pl_cmd_train, pl_cmd_eval, pl_cmd_predict, pl_cmd_inspect, pl_cmd_doctor, pl_cmd_bench;

static const struct pl_command *const commands[] = {&pl_cmd_train,  &pl_cmd_eval,  &pl_cmd_predict, &pl_cmd_inspect,
                                                    &pl_cmd_doctor, &pl_cmd_bench, NULL};

const struct pl_command *const *pl_commands(void) { return commands; }

/* --name VALUE, or --name=VALUE: then *value. */
static int find_option(const char *const *options, const char *name, const char **value)
{
    size_t n = strcspn(name, "=");
    *value = name[n] ? name + n + 1 : NULL;
    for (int i = 0; options && options[i]; i++)
        if (strlen(options[i]) == n && strncmp(options[i], name, n) == 0)
            return i;
    return -1;
}

pl_status pl_args_read(int argc, char **argv, const char *const *options, struct pl_args *out)
{
    memset(out, 0, sizeof *out);
    out->override = pl_alloc(sizeof(char *) * (size_t)(argc + 1), "arguments");
    if (!out->override)
        return PL_ERR_MEMORY;
    for (int i = 0; i < argc; i++) {
        const char *value;
        int o = strncmp(argv[i], "--", 2) == 0 ? find_option(options, argv[i] + 2, &value) : -1;
        if (o >= 0 && value)
            out->option_value[o] = value;
        else if (o >= 0 && i + 1 < argc)
            out->option_value[o] = argv[++i];
        else if (argv[i][0] == '-')
            return pl_error(PL_ERR_USAGE, "paceline", o >= 0 ? "%s takes a value" : "unknown option %s\nsee --help", argv[i]);
        else if (strchr(argv[i], '='))
            out->override[out->overrides++] = argv[i];
        else if (!out->file)
            out->file = argv[i];
        else
            return pl_error(PL_ERR_USAGE, "paceline", "%s: one file is enough; overrides are key=value", argv[i]);
    }
    return PL_OK;
}

void pl_args_free(struct pl_args *a) { pl_free(a->override); }

int pl_cmd_not_started(const struct pl_world *w, pl_status s)
{
    if (!w->reported)
        pl_log("%s", pl_error_text());
    return pl_exit_code(s);
}

static pl_status read_job(int argc, char **argv, const char *const *options, struct pl_args *args,
                          struct pl_job **job)
{
    PL_TRY(pl_args_read(argc, argv, options, args));
    if (!args->file)
        return pl_error(PL_ERR_USAGE, "paceline", "no job file given\nsee paceline --help");
    return pl_job_read(args->file, args->overrides, args->override, job);
}

pl_status pl_cmd_start(int argc, char **argv, const char *const *options, struct pl_world *w,
                       struct pl_args *args, struct pl_job **job, int *code)
{
    *job = NULL;
    memset(args, 0, sizeof *args);
    pl_status s = pl_world_start(NULL, NULL, w);
    if (s < 0) {
        *code = pl_cmd_not_started(w, s);
        return s;
    }
    s = pl_world_agree(w, read_job(argc, argv, options, args, job));
    if (s < 0) {
        pl_args_free(args);
        pl_job_destroy(*job);
        *job = NULL;
        *code = pl_world_finish(w, s);
    }
    return s;
}
