/* libibverbs is opened when it is first asked for, so that one program starts on nodes with and without it. */
#include "transport/verbs/verbs.h"

#include <dlfcn.h>
#include <errno.h>

#define LIBRARY "libibverbs.so.1"

struct pl_verbs_api pl_verbs;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static char missing[192]; /* what is, if anything */

static bool find(void *library, const char *name, void *function)
{
    void *symbol = dlsym(library, name);
    if (!symbol && !missing[0])
        snprintf(missing, sizeof missing, "%s has no %s", LIBRARY, name);
    memcpy(function, &symbol, sizeof symbol); /* C has no cast from an object's address to a function's */
    return symbol != NULL;
}

static void load(void)
{
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        snprintf(missing, sizeof missing, "no RDMA library: %.150s", dlerror());
        return;
    }
    bool all = true;
#define FIND(f) all &= find(library, "ibv_" #f, &pl_verbs.f);
    PL_VERBS_FUNCTIONS(FIND)
    /* A child of a fork must not share what the device writes to (gloo#340). It fails where other code of this
     * process has registered memory already; then that code has chosen. */
    if (all)
        pl_verbs.fork_init();
}

bool pl_verbs_load(char *reason, size_t bytes)
{
    pthread_once(&once, load);
    if (missing[0])
        snprintf(reason, bytes, "%s", missing);
    return !missing[0];
}

int pl_verbs_query_port(struct ibv_context *context, int port, struct ibv_port_attr *out)
{
    struct verbs_context *extended = verbs_get_ctx_op(context, query_port);
    memset(out, 0, sizeof *out);
    if (extended)
        return extended->query_port(context, (uint8_t)port, out, sizeof *out);
    return pl_verbs.query_port(context, (uint8_t)port, (struct _compat_ibv_port_attr *)out);
}

pl_status pl_verbs_failed(int error, const char *device, const char *call)
{
    const char *name = strstr(call, "pl_verbs."), *end = strchr(call, '(');
    name = name ? name + strlen("pl_verbs.") : call;
    end = strchr(name, '(');
    return pl_error(PL_ERR_PEER, "transport verbs", "%s: ibv_%.*s: %s", device, end ? (int)(end - name) : 64, name, strerror(error));
}
