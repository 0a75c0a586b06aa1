/* Internal to world/: the checking macro for MPI. */
#ifndef PL_WORLD_MPI_H
#define PL_WORLD_MPI_H

#include "world/world.h"

#include <mpi.h>

pl_status pl_world_mpi_error(int code, const char *call);
#define PL_MPI(call)                                    \
    do {                                                \
        int pl_mpi_code_ = (call);                      \
        if (pl_mpi_code_ != MPI_SUCCESS)                \
            return pl_world_mpi_error(pl_mpi_code_, #call); \
    } while (0)

#endif
