/* A transport opened among some ranks of the run: the addresses travel over MPI. */
#include "exchange/group.h"

struct among { struct pl_world *world; const int *rank; int members; };

static pl_status allgather(void *arg, const void *mine, size_t bytes, void *all)
{
    const struct among *a = arg;
    return pl_world_allgather_among(a->world, a->rank, a->members, mine, bytes, all);
}

pl_status pl_network_open(struct pl_world *w, const struct pl_transport_options *o, const int *rank, int members, bool one_node,
                          struct pl_network *n)
{
    struct among among = {w, rank, members};
    n->rank = pl_alloc((size_t)members * sizeof *rank, "the ranks of a group");
    if (!n->rank)
        return PL_ERR_MEMORY;
    n->group = (struct pl_group){.members = members, .rank = n->rank, .one_node = one_node, .allgather = allgather, .arg = &among};
    for (int i = 0; i < members; i++) {
        n->rank[i] = pl_world_run_rank(w, rank[i]);
        n->group.me = rank[i] == w->rank ? i : n->group.me;
    }
    pl_status s = n->table->open(&n->group, o, &n->transport, n->how, sizeof n->how);
    n->group.allgather = NULL;
    n->group.arg = NULL;
    return s;
}

void pl_network_close(struct pl_network *n, bool lost)
{
    if (n->transport)
        n->table->close(n->transport, lost);
    pl_free(n->rank);
    n->transport = NULL;
    n->rank = NULL;
}
