/* transport: moves bytes between the ranks of a group. Called by the exchange thread alone once it
 * runs (MPI_THREAD_SERIALIZED). Requests are polled by test; whoever waits decides how. */
#ifndef PL_TRANSPORT_H
#define PL_TRANSPORT_H

#include "world/world.h"

struct pl_transport; /* one open group */
struct pl_memory;    /* registered memory; mpi needs none and gives NULL */
struct pl_request { _Alignas(16) unsigned char bytes[32]; bool active; };

enum pl_reduce { PL_SUM_F32, PL_SUM_F64, PL_MAX_F64 };

struct pl_transport_table {
    const char *name;
    /* Can it work here? Otherwise false and the reason. Not collective. */
    bool (*probe)(const struct pl_world *w, char *reason, size_t bytes);
    pl_status (*open)(const struct pl_world *w, struct pl_transport **out); /* collective */
    void (*close)(struct pl_transport *t);                                  /* collective */
    pl_status (*register_memory)(struct pl_transport *t, void *p, size_t bytes, struct pl_memory **out);
    void (*unregister_memory)(struct pl_transport *t, struct pl_memory *m);
    /* Point to point; tags 0 .. 32767. PL_ERR_PEER on failure. */
    pl_status (*post_send)(struct pl_transport *t, int peer, int tag, const void *p, size_t bytes, struct pl_request *r);
    pl_status (*post_receive)(struct pl_transport *t, int peer, int tag, void *p, size_t bytes, struct pl_request *r);
    /* The library's own all-reduce over all ranks, out of place; a transport without one returns
     * PL_ERR_USAGE. Same order of calls on every rank. */
    pl_status (*post_allreduce)(struct pl_transport *t, enum pl_reduce op, const void *in, void *out, int64_t n, struct pl_request *r);
    pl_status (*post_broadcast)(struct pl_transport *t, void *p, size_t bytes, int root, struct pl_request *r);
    pl_status (*test)(struct pl_transport *t, struct pl_request *r, bool *done);
};

/* By name, or "auto": the first of the list that probes well. why: one sentence for rank 0. */
pl_status pl_transport_find(const struct pl_world *w, const char *name,
                            const struct pl_transport_table **out, char *why, size_t bytes);
const struct pl_transport_table *const *pl_transport_list(void);

#endif
