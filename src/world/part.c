/* A part of the run as a world of its own, over a communicator of its own. */
#include "world/world_mpi.h"

static pl_status split(struct pl_world *w, int colour, struct pl_world *out)
{
    MPI_Comm *comm = out->comm = pl_alloc(sizeof *comm, "a part of the run");
    if (!comm)
        return PL_ERR_MEMORY;
    *comm = MPI_COMM_NULL;
    MPI_Comm all = pl_world_comm(w), node;
    PL_MPI(MPI_Comm_split(all, colour, w->rank, comm));
    MPI_Comm_set_errhandler(*comm, MPI_ERRORS_RETURN);
    PL_MPI(MPI_Comm_rank(*comm, &out->rank));
    PL_MPI(MPI_Comm_size(*comm, &out->ranks));
    PL_TRY(pl_world_find_node(out, &node));
    MPI_Comm_free(&node);
    out->run_rank = pl_alloc((size_t)out->ranks * sizeof *out->run_rank, "the ranks of a part");
    if (!out->run_rank)
        return PL_ERR_MEMORY;
    int mine = pl_world_run_rank(w, w->rank);
    PL_MPI(MPI_Allgather(&mine, 1, MPI_INT, out->run_rank, 1, MPI_INT, *comm));
    return PL_OK;
}

pl_status pl_world_part(struct pl_world *w, int colour, struct pl_world *out)
{
    *out = *w;
    out->whole = w->whole ? w->whole : w;
    out->run_rank = NULL;
    out->comm = NULL;
    pl_status s = split(w, colour, out);
    if (s < 0)
        pl_world_part_leave(out);
    return s;
}

void pl_world_part_leave(struct pl_world *part)
{
    MPI_Comm *comm = part->comm;
    if (comm && *comm != MPI_COMM_NULL && !part->whole->lost)
        MPI_Comm_free(comm);
    pl_free(comm);
    pl_free(part->run_rank);
    *part = (struct pl_world){0};
}
