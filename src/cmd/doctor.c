/* paceline doctor: what this machine and build offer a run, and what would slow one down. */
#include "cmd/cmd.h"

#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

static void print_components(void)
{
    char text[2048];
    pl_backend_cpu_describe(text, sizeof text);
    printf("cpu backend   %s\n", text);
    printf("backends      ");
    for (const struct pl_backend_table *const *b = pl_backend_list(); *b; b++)
        printf("%s ", (*b)->name);
    bool cuda = pl_backend_cuda_describe(text, sizeof text);
    printf("%s\ncuda          %s\n", cuda ? "cuda" : "", text);
    printf("hdf5          %s\n", pl_h5_version());
    printf("jpeg          %s\n", pl_jpeg_available() ? "TurboJPEG" : "not built: sets of JPEG images are refused (libturbojpeg0-dev)");
}

static void print_transports(const struct pl_world *w)
{
    const struct pl_transport_options o = {.channels = 2};
    for (const struct pl_transport_table *const *t = pl_transport_list(); *t; t++) {
        char why[256] = "";
        bool works = (*t)->probe(w, &o, true, why, sizeof why);
        printf("transport     %s: %s (%s)\n", (*t)->name, works ? "works" : "does not work", why);
    }
}

/* How these ranks would add gradients up. Collective. */
static pl_status print_exchange(struct pl_world *w)
{
    struct pl_exchange *x;
    struct pl_exchange_options o = {.transport = "auto", .algorithm = "auto", .two_level = true, .network = {.channels = 2}, .bucket_bytes = 4 << 20, .timeout_ms = 60000};
    PL_TRY(pl_exchange_create(w, &o, 1 << 20, &x));
    if (w->rank == 0)
        printf("exchange      %s: %s\n", pl_exchange_algorithm(x), pl_exchange_why(x));
    pl_exchange_destroy(x);
    return PL_OK;
}

static void print_shm(void)
{
    struct statvfs v;
    if (statvfs("/dev/shm", &v) == 0)
        printf("/dev/shm      %.1f GB free\n", (double)v.f_bavail * (double)v.f_frsize / 1e9);
}

static int run_doctor(int argc, char **argv)
{
    struct pl_world w = {0};
    struct pl_args args;
    pl_status s = pl_args_read(argc, argv, NULL, &args);
    if (s == PL_OK && (args.file || args.overrides > 0))
        s = pl_error(PL_ERR_USAGE, "paceline", "doctor takes no arguments");
    if (s == PL_OK)
        s = pl_world_start(NULL, NULL, &w);
    pl_args_free(&args);
    if (s < 0)
        return pl_cmd_not_started(&w, s);
    if (w.rank == 0) {
        printf("paceline      %s\n", PL_VERSION);
        printf("mpi           %s, %d rank%s on %d node%s\n", pl_world_mpi_version(), w.ranks,
               w.ranks == 1 ? "" : "s", w.nodes, w.nodes == 1 ? "" : "s");
        printf("cores         %d in this rank's mask, %d compute thread%s a rank%s\n", w.cores, w.threads,
               w.threads == 1 ? "" : "s",
               w.cores_unused ? "; other cores are left unused: mpirun --bind-to none" : "");
        if (w.local_ranks > w.node_cores)
            printf("              %d ranks on %d cores of this node: they wait for each other\n", w.local_ranks, w.node_cores);
        print_components();
        print_transports(&w);
        print_shm();
    }
    return pl_world_finish(&w, print_exchange(&w));
}

const struct pl_command pl_cmd_doctor = {
    .name = "doctor",
    .usage = "paceline doctor",
    .help = "Shows what this machine and this build offer: MPI, cores and threads, BLAS, oneDNN,\n"
            "CUDA, HDF5, transports, how gradients are added up. Run it the way the job is run, say under mpirun -n 2.",
    .run = run_doctor,
};
