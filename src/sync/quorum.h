/* Internal to sync/ (and its tests): backup workers without a world of MPI, whose ranks are forked processes. */
#ifndef PL_SYNC_QUORUM_H
#define PL_SYNC_QUORUM_H

#include "sync/sync.h"

size_t pl_sync_quorum_note_bytes(void);
/* Over a mesh whose notes have that size, and which it takes over; of the replica's world rank and ranks are read. Not collective. */
pl_status pl_sync_quorum_create_in(const struct pl_replica *r, struct pl_mesh *mesh, struct pl_sync **out);

#endif
