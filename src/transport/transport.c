/* The list of transports in order of preference, and the choice among them. */
#include "transport/transport.h"

#include <string.h>

extern const struct pl_transport_table pl_transport_mpi;

static const struct pl_transport_table *const transports[] = {&pl_transport_mpi, NULL};

const struct pl_transport_table *const *pl_transport_list(void) { return transports; }

pl_status pl_transport_find(const struct pl_world *w, const char *name,
                            const struct pl_transport_table **out, char *why, size_t bytes)
{
    char reason[256] = "";
    bool any = strcmp(name, "auto") == 0;
    for (int i = 0; transports[i]; i++) {
        if (!any && strcmp(name, transports[i]->name) != 0)
            continue;
        if (transports[i]->probe(w, reason, sizeof reason)) {
            snprintf(why, bytes, "transport %s (%s)", transports[i]->name, reason);
            *out = transports[i];
            return PL_OK;
        }
    }
    return pl_error(PL_ERR_PEER, "transport", "no transport %s: %s", name,
                    reason[0] ? reason : "not built");
}
