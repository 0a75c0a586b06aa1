/* transport mpi: everything through the MPI library, on a communicator of its own. Non-blocking
 * collectives (MPI 3.1, chapter 5.12) advance only inside MPI calls, so test must be called often. */
#include "transport/transport.h"

#include <mpi.h>
#include <pthread.h>
#include <string.h>

#define NAP_MS 0.05  /* between polls of who has nothing else to do: MPI has no way to wait for a message or a wake */
#define TAGS 16384   /* MPI grants at least 32767; those in flight differ by less, and equal ones keep their order */
#define CONTROL_TAG TAGS

/* A process may have several open groups, each with a thread of its own, and MPI_THREAD_SERIALIZED takes one call at a
 * time. Calls that wait for others, of open and close, come from the main thread while no request is under way. */
static pthread_mutex_t calling = PTHREAD_MUTEX_INITIALIZER;

struct pl_transport {
    MPI_Comm comm;
    _Atomic bool woken;
};

_Static_assert(sizeof(MPI_Request) <= sizeof(((struct pl_request *)0)->bytes), "MPI_Request fits");

static pl_status failed(int code, const char *call)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int len = 0;
    MPI_Error_string(code, text, &len);
    return pl_error(PL_ERR_PEER, "transport mpi", "%s: %s", call, text);
}
#define CHECK(call, name)               \
    do {                                \
        pthread_mutex_lock(&calling);   \
        int code_ = (call);             \
        pthread_mutex_unlock(&calling); \
        if (code_ != MPI_SUCCESS)       \
            return failed(code_, name); \
    } while (0)

static bool mpi_probe(const struct pl_world *w, const struct pl_transport_options *o, bool named, char *reason, size_t bytes)
{
    (void)o, (void)named;
    snprintf(reason, bytes, "%s, %d node%s", pl_world_mpi_version(), w->nodes, w->nodes == 1 ? "" : "s");
    return true;
}

static int make_communicator(const struct pl_group *g, MPI_Comm *comm)
{
    MPI_Group all, members;
    int code = MPI_Comm_group(MPI_COMM_WORLD, &all);
    if (code != MPI_SUCCESS)
        return code;
    code = MPI_Group_incl(all, g->members, g->rank, &members);
    if (code == MPI_SUCCESS) {
        code = MPI_Comm_create_group(MPI_COMM_WORLD, members, 0, comm);
        MPI_Group_free(&members);
    }
    MPI_Group_free(&all);
    return code;
}

static pl_status mpi_open(const struct pl_group *g, const struct pl_transport_options *o, struct pl_transport **out,
                          char *describe, size_t bytes)
{
    (void)o;
    struct pl_transport *t = pl_alloc(sizeof *t, "transport");
    if (!t)
        return PL_ERR_MEMORY;
    int code = make_communicator(g, &t->comm);
    if (code != MPI_SUCCESS) {
        pl_free(t);
        return failed(code, "MPI_Comm_create_group");
    }
    MPI_Comm_set_errhandler(t->comm, MPI_ERRORS_RETURN);
    describe[0] = '\0';
    (void)bytes;
    *out = t;
    return PL_OK;
}

static void mpi_close(struct pl_transport *t, bool lost)
{
    if (!t)
        return;
    if (!lost)
        MPI_Comm_free(&t->comm);
    pl_free(t);
}

static pl_status mpi_register(struct pl_transport *t, void *p, size_t bytes, struct pl_memory **out)
{
    (void)t, (void)p, (void)bytes;
    *out = NULL; /* MPI registers what it needs by itself */
    return PL_OK;
}

static void mpi_unregister(struct pl_transport *t, struct pl_memory *m) { (void)t, (void)m; }

static void started(struct pl_request *r, MPI_Request q)
{
    memcpy(r->bytes, &q, sizeof q);
    r->active = true;
}

static int tag_of(struct pl_label l)
{
    return l.bucket == PL_CONTROL_BUCKET ? CONTROL_TAG : (int)((l.step * 61 + l.bucket) % TAGS);
}

static pl_status mpi_send(struct pl_transport *t, int peer, struct pl_label l, const void *p, size_t bytes, struct pl_request *r)
{
    int n;
    MPI_Request q;
    PL_TRY(pl_narrow_int((int64_t)bytes, "a message", &n));
    CHECK(MPI_Isend(p, n, MPI_BYTE, peer, tag_of(l), t->comm, &q), "MPI_Isend");
    started(r, q);
    return PL_OK;
}

static pl_status mpi_receive(struct pl_transport *t, int peer, struct pl_label l, void *p, size_t bytes, struct pl_request *r)
{
    int n;
    MPI_Request q;
    PL_TRY(pl_narrow_int((int64_t)bytes, "a message", &n));
    CHECK(MPI_Irecv(p, n, MPI_BYTE, peer, tag_of(l), t->comm, &q), "MPI_Irecv");
    started(r, q);
    return PL_OK;
}

static pl_status mpi_allreduce(struct pl_transport *t, enum pl_reduce op, const void *in, void *out,
                               int64_t elems, struct pl_request *r)
{
    int n;
    MPI_Request q;
    MPI_Datatype type = op == PL_SUM_F32 ? MPI_FLOAT : MPI_DOUBLE;
    PL_TRY(pl_narrow_int(elems, "an all-reduce", &n));
    CHECK(MPI_Iallreduce(in == out ? MPI_IN_PLACE : in, out, n, type, op == PL_MAX_F64 ? MPI_MAX : MPI_SUM,
                         t->comm, &q),
          "MPI_Iallreduce");
    started(r, q);
    return PL_OK;
}

static pl_status mpi_test(struct pl_transport *t, struct pl_request *r, bool *done)
{
    (void)t;
    MPI_Request q;
    int flag = 0;
    memcpy(&q, r->bytes, sizeof q);
    CHECK(MPI_Test(&q, &flag, MPI_STATUS_IGNORE), "MPI_Test");
    memcpy(r->bytes, &q, sizeof q);
    *done = flag != 0;
    if (*done)
        r->active = false;
    return PL_OK;
}

/* MPI would write what comes later, at the latest in MPI_Finalize, to where the receive was posted. */
static void mpi_cancel(struct pl_transport *t, struct pl_request *r)
{
    (void)t;
    MPI_Request q;
    memcpy(&q, r->bytes, sizeof q);
    pthread_mutex_lock(&calling);
    MPI_Cancel(&q);
    MPI_Wait(&q, MPI_STATUS_IGNORE);
    pthread_mutex_unlock(&calling);
    r->active = false;
}

static pl_status mpi_progress(struct pl_transport *t, double wait_ms)
{
    if (wait_ms > 0 && !atomic_exchange(&t->woken, false))
        pl_sleep_ms(wait_ms < NAP_MS ? wait_ms : NAP_MS);
    return PL_OK;
}

static void mpi_wake(struct pl_transport *t) { atomic_store(&t->woken, true); }

static bool mpi_lost(struct pl_transport *t, int peer, char *why, size_t bytes)
{
    (void)t, (void)peer; /* MPI itself ends a run that has lost a rank */
    if (bytes > 0)
        why[0] = '\0';
    return false;
}

const struct pl_transport_table pl_transport_mpi = {
    .name = "mpi",
    .probe = mpi_probe,
    .open = mpi_open,
    .close = mpi_close,
    .register_memory = mpi_register,
    .unregister_memory = mpi_unregister,
    .post_send = mpi_send,
    .post_receive = mpi_receive,
    .test = mpi_test,
    .cancel = mpi_cancel,
    .forget = NULL, /* a message that MPI has begun cannot be taken back */
    .lost = mpi_lost,
    .progress = mpi_progress,
    .wake = mpi_wake,
    .post_allreduce = mpi_allreduce,
};
