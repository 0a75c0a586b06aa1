/* paceline train JOB.yaml [key=value ...] */
#include "cmd/cmd.h"

#include <string.h>

static int print_keys(void)
{
    puts("Keys of a job file, a.b written as a: {b: VALUE}, and of a.b=VALUE on the command line. A file that is read\n"
         "counts from the folder of the job file, on the command line from the working directory; what is written\n"
         "counts from the working directory. A period: 50 steps, 1 epoch, 10 min, never (a bare number: steps). A\n"
         "time: 500 ms, 60 s, 10 min. A list: [a, b]. none takes a file or directory away.\n\n"
         "model                        text          file of the model, or in place {name, input, layers}\n"
         "model.input.data             integers      dimensions of a sample, [C, H, W] or [K]\n"
         "model.input.label            int|integer   int: a class; a number: so many floats a sample (int)\n"
         "model.layers                 list          {name: NAME, kind: KIND, from: NAME or [NAMES], keys of the kind};\n"
         "                                           from: what it reads, by default the layer before; data is the input\n");
    pl_job_print_keys("", pl_job_keys);
    for (const struct pl_layer_kind *const *k = pl_layer_list(); *k; k++) {
        printf("\nlayer kind %s: %s\n", (*k)->name, (*k)->help);
        if ((*k)->keys)
            pl_job_print_keys("  ", (*k)->keys);
    }
    return 0;
}

static int run_train(int argc, char **argv)
{
    struct pl_world w;
    struct pl_args args;
    struct pl_job *job;
    int code = 0;
    for (int i = 0; i < argc; i++)
        if (strcmp(argv[i], "--help-keys") == 0)
            return print_keys();
    if (pl_cmd_start(argc, argv, NULL, &w, &args, &job, &code) < 0)
        return code;
    pl_status s = pl_train(&w, job, NULL);
    pl_job_destroy(job);
    pl_args_free(&args);
    return pl_world_finish(&w, s);
}

const struct pl_command pl_cmd_train = {
    .name = "train",
    .usage = "paceline train JOB.yaml [key=value ...]",
    .help = "Trains the job's model on all ranks. An interrupted run continues where its newest\n"
            "checkpoint is. key=value replaces one key of the job file, say train.epochs=3.\n"
            "  --help-keys  every key with type, default and meaning",
    .run = run_train,
};
