/* Internal to transport/ (and its tests): the secret of a run, and proofs of knowing it. HMAC-SHA256 (RFC 2104,
 * FIPS 198-1) by libcrypto. */
#ifndef PL_TRANSPORT_SECRET_H
#define PL_TRANSPORT_SECRET_H

#include "base/base.h"

enum { PL_SECRET_BYTES = 32, PL_PROOF_BYTES = 32, PL_NONCE_BYTES = 16 };

/* Fresh random bytes from the kernel, for secrets and nonces. PL_ERR_PEER. */
pl_status pl_secret_random(void *out, size_t bytes);
/* proof[PL_PROOF_BYTES] = HMAC(secret, message). PL_ERR_PEER. */
pl_status pl_secret_prove(const unsigned char *secret, const void *message, size_t bytes, unsigned char *proof);
/* In constant time. */
bool pl_secret_same_proof(const unsigned char *a, const unsigned char *b);

#endif
