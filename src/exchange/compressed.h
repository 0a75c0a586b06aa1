/* Internal to exchange/: the three computations of a compressed all-reduce (Tang et al., DoubleSqueeze, ICML 2019).
 * The range is cut into a part for each member. pack encodes all parts but the own one; they are scattered; sum
 * decodes what came for the own part, adds it up in the members' order and encodes the sum; that is gathered;
 * unpack decodes the sums of the others. What an encoding lost is kept in the residual and added next time. */
#ifndef PL_EXCHANGE_COMPRESSED_H
#define PL_EXCHANGE_COMPRESSED_H

#include "exchange/compress/compress.h"

struct pl_compressed;

pl_status pl_compressed_create(const struct pl_codec *codec, double ratio, int me, int members, struct pl_compressed **out);
void pl_compressed_destroy(struct pl_compressed *c);

/* residual [n]: of the own part what the encoding of the sum lost, elsewhere what that of `in` lost. Afterwards
 * *slot is the length in bytes of a member's slot in sent and received. PL_ERR_MEMORY. */
pl_status pl_compressed_pack(struct pl_compressed *c, const float *in, float *residual, int64_t n, size_t *slot);
/* out: the own part, as the others will have it. PL_ERR_PEER for a code that is none. */
pl_status pl_compressed_sum(struct pl_compressed *c, const float *in, float *residual, int64_t n, float *out);
pl_status pl_compressed_unpack(struct pl_compressed *c, int64_t n, float *out);

size_t pl_compressed_slot(const struct pl_compressed *c);       /* of the last pack */
unsigned char *pl_compressed_sent(struct pl_compressed *c);     /* [members * slot] */
unsigned char *pl_compressed_received(struct pl_compressed *c); /* [members * slot] */

#endif
