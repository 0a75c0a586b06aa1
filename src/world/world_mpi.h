/* Internal to world/: the checking macro for MPI. */
#ifndef PL_WORLD_MPI_H
#define PL_WORLD_MPI_H

#include "world/world.h"

#include <mpi.h>

static inline MPI_Comm pl_world_comm(const struct pl_world *w) { return w->comm ? *(MPI_Comm *)w->comm : MPI_COMM_WORLD; }

/* start.c: which of w's ranks share a node, from its communicator. The caller frees *node. */
pl_status pl_world_find_node(struct pl_world *w, MPI_Comm *node);

pl_status pl_world_mpi_error(int code, const char *call);
#define PL_MPI(call)                                    \
    do {                                                \
        int pl_mpi_code_ = (call);                      \
        if (pl_mpi_code_ != MPI_SUCCESS)                \
            return pl_world_mpi_error(pl_mpi_code_, #call); \
    } while (0)

#endif
