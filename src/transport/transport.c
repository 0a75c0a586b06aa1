/* The list of transports in order of preference, and the choice among them. */
#include "transport/transport.h"

#include <string.h>

extern const struct pl_transport_table pl_transport_verbs, pl_transport_tcp, pl_transport_mpi;

static const struct pl_transport_table *const transports[] = {&pl_transport_verbs, &pl_transport_tcp, &pl_transport_mpi, NULL};

const struct pl_transport_table *const *pl_transport_list(void) { return transports; }

/* *ok: it probes well on every rank. reason: rank 0's, or that of the lowest rank that says no. */
static pl_status probe_all(struct pl_world *w, const struct pl_transport_table *t, const struct pl_transport_options *o,
                           bool named, bool *ok, char reason[256])
{
    char text[224] = "";
    int rank, code;
    bool mine = t->probe(w, o, named, text, sizeof text);
    PL_TRY(pl_world_first(w, mine ? 0 : 1, &rank, &code));
    *ok = rank < 0;
    PL_TRY(pl_world_broadcast(w, text, sizeof text, rank < 0 ? 0 : rank));
    if (rank <= 0)
        snprintf(reason, 256, "%s", text);
    else
        snprintf(reason, 256, "rank %d: %s", pl_world_run_rank(w, rank), text);
    return PL_OK;
}

pl_status pl_transport_find(struct pl_world *w, const char *name, const struct pl_transport_options *o,
                            const struct pl_transport_table **out, char *why, size_t bytes)
{
    char reason[256] = "", against[1024] = "";
    bool named = strcmp(name, "auto") != 0, ok;
    for (int i = 0; transports[i]; i++) {
        if (named && strcmp(name, transports[i]->name) != 0)
            continue;
        PL_TRY(probe_all(w, transports[i], o, named, &ok, reason));
        if (ok) {
            snprintf(why, bytes, "transport %s (%s)%s", transports[i]->name, reason, against);
            *out = transports[i];
            return PL_OK;
        }
        size_t at = strlen(against);
        snprintf(against + at, sizeof against - at, "; not %s: %s", transports[i]->name, reason);
    }
    return pl_error(PL_ERR_PEER, "transport", "%s cannot be had: %s", name, reason[0] ? reason : "no such transport");
}
