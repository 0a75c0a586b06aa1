/* Start of the run: MPI, ranks and nodes, and how many compute threads a rank should take.
 * A rank's threads default to the cores of its affinity mask, shared fairly by the ranks of the node
 * with the same mask; OMP_NUM_THREADS sets them. mpirun binds one core to a rank when there are one
 * or two, which leaves cores unused without a word: we say so. */
#include "world/world_mpi.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

pl_status pl_world_mpi_error(int code, const char *call)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int len = 0;
    MPI_Error_string(code, text, &len);
    return pl_error(PL_ERR_PEER, "mpi", "%.*s failed: %s", (int)strcspn(call, "("), call, text);
}

/* What a launcher says of its ranks in the environment. srun's step counts only inside of srun: in the
 * shell of sbatch or salloc (their steps are batch, and 4294967290) tasks are those to come. */
static const struct { const char *name, *ranks, *rank, *step; } launchers[] = {
    {"Open MPI's mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", NULL},
    {"srun or another MPI's mpirun", "PMI_SIZE", "PMI_RANK", NULL},
    {"srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_ID"}};

/* Several ranks were started and each believes it is alone: the launcher is not of this MPI. Every rank
 * would train the whole job, and all would write the same files. The first rank says so. */
static pl_status refuse_lonely_ranks(struct pl_world *w)
{
    for (size_t i = 0; i < sizeof launchers / sizeof *launchers; i++) {
        const char *ranks = getenv(launchers[i].ranks), *rank = getenv(launchers[i].rank), *step = launchers[i].step ? getenv(launchers[i].step) : "0";
        if (!ranks || !rank || !step || strcmp(step, "4294967290") == 0)
            continue;
        if (w->ranks > 1 || atoi(ranks) <= 1)
            return PL_OK; /* the innermost launcher's count holds */
        w->reported = atoi(rank) > 0;
        if (w->reported)
            pl_sleep_ms(1000); /* the first to leave makes mpirun end the others */
        return pl_error(PL_ERR_USAGE, "world",
                        "%s started %s ranks, but each sees a world of its own: this program is built with %s, which does not hear it\n"
                        "start it with that MPI's own mpirun, also inside sbatch, or with srun --mpi=pmix",
                        launchers[i].name, ranks, pl_world_mpi_version());
    }
    return PL_OK;
}

pl_status pl_world_find_node(struct pl_world *w, MPI_Comm *node)
{
    MPI_Comm all = pl_world_comm(w);
    PL_MPI(MPI_Comm_split_type(all, MPI_COMM_TYPE_SHARED, w->rank, MPI_INFO_NULL, node));
    PL_MPI(MPI_Comm_rank(*node, &w->local_rank));
    PL_MPI(MPI_Comm_size(*node, &w->local_ranks));
    int leader = w->local_rank == 0;
    PL_MPI(MPI_Allreduce(&leader, &w->nodes, 1, MPI_INT, MPI_SUM, all));
    PL_MPI(MPI_Allreduce(&w->local_ranks, &w->least_local, 1, MPI_INT, MPI_MIN, all));
    PL_MPI(MPI_Allreduce(&w->local_ranks, &w->most_local, 1, MPI_INT, MPI_MAX, all));
    w->leader = w->rank;
    PL_MPI(MPI_Bcast(&w->leader, 1, MPI_INT, 0, *node));
    return PL_OK;
}

/* Compares the affinity masks of the node's ranks. */
static pl_status share_cores(struct pl_world *w, MPI_Comm node)
{
    cpu_set_t mine, all;
    CPU_ZERO(&mine);
    if (sched_getaffinity(0, sizeof mine, &mine) != 0)
        CPU_SET(0, &mine);
    w->cores = CPU_COUNT(&mine);
    cpu_set_t *masks = pl_alloc((size_t)w->local_ranks * sizeof mine, "affinity masks");
    if (!masks)
        return PL_ERR_MEMORY;
    int rc = MPI_Allgather(&mine, sizeof mine, MPI_BYTE, masks, sizeof mine, MPI_BYTE, node);
    int same = 0;
    CPU_ZERO(&all);
    for (int i = 0; rc == MPI_SUCCESS && i < w->local_ranks; i++) {
        same += CPU_EQUAL(&mine, &masks[i]) ? 1 : 0;
        CPU_OR(&all, &all, &masks[i]);
    }
    pl_free(masks);
    PL_MPI(rc);
    w->node_cores = CPU_COUNT(&all);
    w->threads = w->cores / (same > 0 ? same : 1);
    if (w->threads < 1)
        w->threads = 1;
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    const char *slurm = getenv("SLURM_CPUS_ON_NODE");
    if (slurm && atol(slurm) > 0 && atol(slurm) < online)
        online = atol(slurm);
    w->cores_unused = CPU_COUNT(&all) < online;
    const char *omp = getenv("OMP_NUM_THREADS");
    if (omp && atoi(omp) > 0)
        w->threads = atoi(omp);
    return PL_OK;
}

/* given: the thread level of MPI */
static pl_status look_round(struct pl_world *w, int given)
{
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    PL_MPI(MPI_Comm_rank(MPI_COMM_WORLD, &w->rank));
    PL_MPI(MPI_Comm_size(MPI_COMM_WORLD, &w->ranks));
    gethostname(w->host, sizeof w->host - 1);
    w->host[strcspn(w->host, ".")] = '\0';
    pl_log_identity(w->rank, w->ranks, w->host);
    if (given < MPI_THREAD_SERIALIZED)
        return pl_error(w->joined ? PL_ERR_USAGE : PL_ERR_PEER, "mpi", "this MPI gives thread level %d, MPI_THREAD_SERIALIZED (%d) is needed%s", given,
                        MPI_THREAD_SERIALIZED, w->joined ? "\nask MPI_Init_thread for it" : "");
    MPI_Comm node;
    PL_TRY(pl_world_find_node(w, &node));
    pl_alloc_sharers(w->local_ranks);
    pl_status s = share_cores(w, node);
    MPI_Comm_free(&node);
    PL_TRY(s);
    return refuse_lonely_ranks(w);
}

static pl_status start(int *argc, char ***argv, struct pl_world *w)
{
    int given = 0;
    if (MPI_Init_thread(argc, argv, MPI_THREAD_SERIALIZED, &given) != MPI_SUCCESS)
        return pl_error(PL_ERR_PEER, "mpi", "MPI_Init_thread failed");
    return look_round(w, given);
}

pl_status pl_world_start(int *argc, char ***argv, struct pl_world *w)
{
    memset(w, 0, sizeof *w);
    return start(argc, argv, w);
}

static MPI_Errhandler others = MPI_ERRHANDLER_NULL; /* of the program that was joined */

pl_status pl_world_join(struct pl_world *w)
{
    int there = 0, over = 0, given = 0;
    memset(w, 0, sizeof *w);
    MPI_Initialized(&there);
    MPI_Finalized(&over);
    if (over)
        return pl_error(PL_ERR_USAGE, "mpi", "MPI_Finalize has been called: MPI cannot be started again");
    if (!there)
        return start(NULL, NULL, w);
    w->joined = true;
    PL_MPI(MPI_Comm_get_errhandler(MPI_COMM_WORLD, &others));
    PL_MPI(MPI_Query_thread(&given));
    return look_round(w, given);
}

void pl_world_leave(struct pl_world *w)
{
    int there = 0;
    MPI_Initialized(&there);
    if (w->lost || !there)
        return;
    if (!w->joined)
        MPI_Finalize();
    else if (others != MPI_ERRHANDLER_NULL) {
        MPI_Comm_set_errhandler(MPI_COMM_WORLD, others);
        MPI_Errhandler_free(&others);
    }
}

const char *pl_world_mpi_version(void)
{
    static char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int len = 0;
    MPI_Get_library_version(text, &len);
    text[strcspn(text, "\n,")] = '\0';
    char *label = strstr(text, "Version:"); /* MPICH lines its facts up in a table */
    if (label)
        memmove(label, label + 8 + strspn(label + 8, " \t"), strlen(label + 8 + strspn(label + 8, " \t")) + 1);
    return text;
}
