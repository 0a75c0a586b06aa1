/* argv to a command. */
#include "cmd/cmd.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void usage(FILE *to)
{
    fprintf(to, "Paceline %s trains deep networks on HPC clusters.\n\n", PL_VERSION);
    for (const struct pl_command *const *c = pl_commands(); *c; c++)
        fprintf(to, "  %s\n", (*c)->usage);
    fprintf(to, "\n  paceline COMMAND --help   about one command\n  paceline --version\n");
}

/* OpenBLAS picks its kernels while it is loaded; where it picks wrongly we start over, once. */
static void correct_core_type(char **argv)
{
    const char *core;
    if (getenv("OPENBLAS_CORETYPE") || !pl_backend_cpu_core_override(&core))
        return;
    setenv("OPENBLAS_CORETYPE", core, 1);
    execv("/proc/self/exe", argv);
}

static bool wants_help(int argc, char **argv)
{
    for (int i = 0; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            return true;
    return false;
}

static int run(int argc, char **argv)
{
    if (argc < 2) {
        usage(stderr);
        return pl_exit_code(PL_ERR_USAGE);
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("paceline %s\n", PL_VERSION);
        return 0;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        usage(stdout);
        return 0;
    }
    for (const struct pl_command *const *c = pl_commands(); *c; c++) {
        if (strcmp((*c)->name, argv[1]) != 0)
            continue;
        if (wants_help(argc - 2, argv + 2)) {
            printf("usage: %s\n\n%s\n", (*c)->usage, (*c)->help);
            return 0;
        }
        if (argc > 2 && strcmp(argv[2], "--version") == 0) {
            printf("paceline %s\n", PL_VERSION);
            return 0;
        }
        return (*c)->run(argc - 2, argv + 2);
    }
    fprintf(stderr, "paceline: no command %s\n\n", argv[1]);
    usage(stderr);
    return pl_exit_code(PL_ERR_USAGE);
}

int main(int argc, char **argv)
{
    signal(SIGXFSZ, SIG_IGN); /* a file beyond its limit is an error with a message, not an end without one */
    correct_core_type(argv);
    int code = run(argc, argv);
    bool training = argc > 1 && strcmp(argv[1], "train") == 0; /* its results are in files */
    if ((fflush(stdout) != 0 || ferror(stdout)) && code == 0 && !training) {
        fprintf(stderr, "paceline: standard output cannot be written\n");
        return pl_exit_code(PL_ERR_CHECKPOINT);
    }
    return code;
}
