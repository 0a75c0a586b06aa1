/* cmd: one file a command; main.c finds them in the table of cmd.c. A command gets the arguments
 * after its name and returns the process's exit code. */
#ifndef PL_CMD_H
#define PL_CMD_H

#include "train/train.h"

struct pl_command {
    const char *name, *usage, *help; /* help: what --help prints below the usage */
    int (*run)(int argc, char **argv);
};
const struct pl_command *const *pl_commands(void); /* NULL-terminated */

/* argv split into the job file (or other first argument), "--name value" options and key=value
 * overrides. */
struct pl_args {
    const char *file;
    int overrides;
    char **override; /* points into argv's strings */
    const char *option_value[12];
};
/* options: NULL-terminated names without "--", each takes a value. PL_ERR_USAGE. */
pl_status pl_args_read(int argc, char **argv, const char *const *options, struct pl_args *out);
void pl_args_free(struct pl_args *a);

/* World and job for a command that works on all ranks. On failure everything is ended and the exit
 * code is in *code. */
pl_status pl_cmd_start(int argc, char **argv, const char *const *options, struct pl_world *w,
                       struct pl_args *args, struct pl_job **job, int *code);

/* Where the world could not be started: says so unless it has been said; the exit code of s. */
int pl_cmd_not_started(const struct pl_world *w, pl_status s);

/* data.train or data.test by the value of --set; NULL: test. PL_ERR_USAGE. (eval.c) */
pl_status pl_cmd_find_set(const struct pl_job *job, const char *given, const struct pl_job_set **out);

/* bench allreduce, with what follows these words. Collective. (bench_allreduce.c) */
pl_status pl_bench_allreduce(struct pl_world *w, int argc, char **argv);
double pl_bench_median(double *v, int n); /* sorts v[n] (bench.c) */

/* The same for bench nullstep. (bench_nullstep.c) */
pl_status pl_bench_nullstep(struct pl_world *w, int argc, char **argv);
/* --NAME TEXT: an integer from 1 to most; without it `otherwise`. PL_ERR_USAGE. (bench.c) */
pl_status pl_bench_count(const char *name, const char *text, long otherwise, long most, int *out);

#endif
