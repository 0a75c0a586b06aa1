/* The secret of a run and proofs of knowing it. */
#include "transport/secret.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <string.h>
#include <sys/random.h>

pl_status pl_secret_random(void *out, size_t bytes)
{
    for (unsigned char *p = out; bytes > 0;) {
        ssize_t n = getrandom(p, bytes, 0);
        if (n < 0 && errno != EINTR)
            return pl_error(PL_ERR_PEER, "transport", "no random bytes for the run's secret: %s", strerror(errno));
        p += n > 0 ? n : 0;
        bytes -= n > 0 ? (size_t)n : 0;
    }
    return PL_OK;
}

pl_status pl_secret_prove(const unsigned char *secret, const void *message, size_t bytes, unsigned char *proof)
{
    unsigned int n = 0;
    if (!HMAC(EVP_sha256(), secret, PL_SECRET_BYTES, message, bytes, proof, &n) || n != PL_PROOF_BYTES)
        return pl_error(PL_ERR_PEER, "transport", "libcrypto gives no HMAC-SHA256");
    return PL_OK;
}

bool pl_secret_same_proof(const unsigned char *a, const unsigned char *b) { return CRYPTO_memcmp(a, b, PL_PROOF_BYTES) == 0; }
