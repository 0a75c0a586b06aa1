/* Transports that are not in this build: they stand in the list, so that whoever asks for one learns why it
 * is missing. */
#include "transport/transport.h"

#if !defined(PL_HAVE_CRYPTO) || !defined(PL_HAVE_VERBS)

static bool say(char *reason, size_t bytes, const char *missing)
{
    snprintf(reason, bytes, "not in this build: %s was not found, or switched off", missing);
    return false;
}

static pl_status no_open(const struct pl_group *g, const struct pl_transport_options *o, struct pl_transport **out, char *describe, size_t bytes)
{
    (void)g, (void)o, (void)out, (void)describe, (void)bytes;
    return pl_error(PL_ERR_PEER, "transport", "not in this build");
}
#endif

#ifndef PL_HAVE_CRYPTO
static bool tcp_probe(const struct pl_world *w, const struct pl_transport_options *o, bool named, char *reason, size_t bytes)
{
    (void)w, (void)o, (void)named;
    return say(reason, bytes, "libcrypto (Debian: libssl-dev)");
}
const struct pl_transport_table pl_transport_tcp = {.name = "tcp", .probe = tcp_probe, .open = no_open};
#endif

#ifndef PL_HAVE_VERBS
static bool verbs_probe(const struct pl_world *w, const struct pl_transport_options *o, bool named, char *reason, size_t bytes)
{
    (void)w, (void)o, (void)named;
#ifdef PL_HAVE_CRYPTO
    return say(reason, bytes, "libibverbs (Debian: libibverbs-dev)");
#else
    return say(reason, bytes, "libcrypto (Debian: libssl-dev)");
#endif
}
const struct pl_transport_table pl_transport_verbs = {.name = "verbs", .probe = verbs_probe, .open = no_open};
#endif
