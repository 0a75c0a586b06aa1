/* Internal to exchange/: a transport opened among some ranks of the run. */
#ifndef PL_EXCHANGE_GROUP_H
#define PL_EXCHANGE_GROUP_H

#include "transport/transport.h"

struct pl_network {
    const struct pl_transport_table *table;
    struct pl_transport *transport;
    struct pl_group group;
    int *rank; /* [members], group.rank */
    char how[128];
};

/* Opens n->table, by pl_transport_find, among rank[members], this rank one of them. Collective over those. The list is copied. */
pl_status pl_network_open(struct pl_world *w, const struct pl_transport_options *o, const int *rank, int members, bool one_node,
                          struct pl_network *n);
void pl_network_close(struct pl_network *n, bool lost);

#endif
