/* Internal to transport/ (and its tests): what transports that connect their members themselves share. */
#ifndef PL_TRANSPORT_MEET_H
#define PL_TRANSPORT_MEET_H

#include "transport/transport.h"

/* How a member fares. It stands first in what the member brings. */
struct pl_say { int32_t status; char text[508]; };

/* What each member brings goes round: all[members * bytes]. All leave with a failure if one fails; those that are
 * well repeat the message of the one that is not. s: of this member. room: "transport tcp". */
pl_status pl_go_round(const struct pl_group *g, const char *room, pl_status s, struct pl_say *mine, size_t bytes, void *all);

/* Do the leading bits agree? */
bool pl_same_bits(const unsigned char *a, const unsigned char *b, int bits);
/* Is it the address, or in the network, that `text` names: "10.1.2.3", "10.1.0.0/16", "fe80::/10"? IPv4 addresses are
 * mapped, ::ffff:a.b.c.d, on both sides. False as well where the text is neither. */
bool pl_address_fits(const unsigned char address[16], const char *text);
/* ip: 4 bytes of IPv4 (AF_INET), or 16. */
void pl_address_map(int family, const unsigned char *ip, unsigned char address[16]);

#endif
