/* Agreement on failure, set-up collectives, and the end of the program.
 * During set-up every step that can fail on one rank ends in pl_world_agree, so that all ranks learn
 * of it and one message is printed, whoever failed. */
#include "world/world_mpi.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void print_own_error(pl_status s)
{
    const char *text = pl_error_text();
    if (s >= 0 || s == PL_ERR_ECHO)
        return;
    pl_log("%s", text ? text : "failed without a message");
}

/* Who lost a peer, or only heard of it, comes after what may have been the cause. */
static int weight(int code) { return code == 0 ? 0 : code == PL_ERR_ECHO ? -1 : code == PL_ERR_PEER ? -2 : -3; }

pl_status pl_world_first(struct pl_world *w, int mine, int *rank, int *code)
{
    struct { int failed, rank; } in = {weight(mine), w->rank}, out = {0, 0};
    *rank = -1;
    *code = mine;
    /* MINLOC: the lowest rank among the heaviest. */
    PL_MPI(MPI_Allreduce(&in, &out, 1, MPI_2INT, MPI_MINLOC, pl_world_comm(w)));
    if (!out.failed)
        return PL_OK;
    PL_MPI(MPI_Bcast(code, 1, MPI_INT, out.rank, pl_world_comm(w)));
    *rank = out.rank;
    return PL_OK;
}

pl_status pl_world_agree(struct pl_world *w, pl_status mine)
{
    int rank = -1, agreed = mine;
    PL_TRY(pl_world_first(w, mine < 0 ? mine : 0, &rank, &agreed));
    if (rank < 0)
        return PL_OK;
    if (w->rank == rank && !w->reported)
        print_own_error(mine);
    w->reported = true;
    if (w->whole)
        w->whole->reported = true;
    return agreed;
}

void pl_world_say(struct pl_world *w, pl_status s)
{
    if (!w->reported)
        print_own_error(s);
    w->reported = w->reported || s < 0;
}

int pl_world_finish(struct pl_world *w, pl_status s)
{
    pl_world_say(w, s);
    if (w->lost) {
        fflush(NULL);
        _exit(pl_exit_code(s));
    }
    MPI_Finalize();
    return pl_exit_code(s);
}

_Noreturn void pl_world_abort(struct pl_world *w, pl_status s)
{
    signal(SIGTERM, SIG_DFL); /* what mpirun sends first once another rank has aborted */
    if (s == PL_ERR_PEER || s == PL_ERR_ECHO)
        pl_sleep_ms(2000); /* a rank that sees its peer vanish lets the cause be printed first */
    pl_sleep_ms(400 * (w->rank < 8 ? w->rank : 8)); /* of several with the same trouble the lowest speaks, and ends the others */
    if (!w->reported)
        print_own_error(s);
    fflush(NULL);
    pl_sleep_ms(100); /* MPICH's launcher ends without what is still in its pipes */
    MPI_Abort(MPI_COMM_WORLD, pl_exit_code(s));
    _exit(pl_exit_code(s));
}

pl_status pl_world_broadcast(struct pl_world *w, void *data, size_t bytes, int root)
{
    char *p = data;
    while (bytes > 0) {
        int n = bytes < (1u << 30) ? (int)bytes : 1 << 30;
        PL_MPI(MPI_Bcast(p, n, MPI_BYTE, root, pl_world_comm(w)));
        p += n;
        bytes -= (size_t)n;
    }
    return PL_OK;
}

pl_status pl_world_allgather(struct pl_world *w, const void *mine, size_t bytes, void *out)
{
    int n;
    PL_TRY(pl_narrow_int((int64_t)bytes, "allgather", &n));
    PL_MPI(MPI_Allgather(mine, n, MPI_BYTE, out, n, MPI_BYTE, pl_world_comm(w)));
    return PL_OK;
}

pl_status pl_world_gather(struct pl_world *w, const void *mine, size_t bytes, void *out)
{
    int n;
    PL_TRY(pl_narrow_int((int64_t)bytes, "gather", &n));
    PL_MPI(MPI_Gather(mine, n, MPI_BYTE, out, n, MPI_BYTE, 0, pl_world_comm(w)));
    return PL_OK;
}

pl_status pl_world_allgather_among(struct pl_world *w, const int *rank, int members, const void *mine, size_t bytes, void *out)
{
    int n;
    MPI_Group all, some;
    MPI_Comm comm;
    PL_TRY(pl_narrow_int((int64_t)bytes, "allgather", &n));
    PL_MPI(MPI_Comm_group(pl_world_comm(w), &all));
    int code = MPI_Group_incl(all, members, rank, &some);
    MPI_Group_free(&all);
    PL_MPI(code);
    code = MPI_Comm_create_group(pl_world_comm(w), some, 1, &comm);
    MPI_Group_free(&some);
    PL_MPI(code);
    code = MPI_Allgather(mine, n, MPI_BYTE, out, n, MPI_BYTE, comm);
    MPI_Comm_free(&comm);
    PL_MPI(code);
    return PL_OK;
}

pl_status pl_world_allreduce(struct pl_world *w, const float *in, float *out, int64_t n)
{
    for (int64_t at = 0; at < n; at += 1 << 28) {
        int piece = n - at < 1 << 28 ? (int)(n - at) : 1 << 28;
        PL_MPI(MPI_Allreduce(in + at, out + at, piece, MPI_FLOAT, MPI_SUM, pl_world_comm(w)));
    }
    return PL_OK;
}
