/* transport: moves messages between the members of a group. An open group is used by one thread at a time;
 * `wake` alone may be called by any. Nothing waits but open, and progress for as long as it is told to.
 *
 * A message is named by its label. Between two members those of one bucket are matched by label; a message
 * that arrives before its receive was posted waits in the network and holds up what follows it from the same
 * member, control messages excepted. So both sides post the messages of a bucket in the same order, and begin
 * bucket k only when no bucket before k - L is unfinished (L the same everywhere): then nothing waits for ever. What
 * is given up half-way, because a member stopped or is lost, is taken back by `forget`. */
#ifndef PL_TRANSPORT_H
#define PL_TRANSPORT_H

#include "world/world.h"

struct pl_transport; /* one open group */
struct pl_memory;    /* registered memory; a transport that needs none gives NULL */
struct pl_request { _Alignas(16) unsigned char bytes[96]; bool active; };

struct pl_label {
    uint64_t step;
    uint32_t bucket, piece; /* piece: of the bucket, on the way from the one to the other */
};
static inline bool pl_label_same(struct pl_label a, struct pl_label b) { return a.step == b.step && a.bucket == b.bucket && a.piece == b.piece; }
enum { PL_CONTROL_BYTES = 4096,          /* most of a control message */
       PL_MESSAGE_BYTES = 1 << 20 };     /* most of any other */
#define PL_CONTROL_BUCKET 0xffffffffu    /* bucket of a control message: small, and never held up by others */
/* Steps with the top bit and steps without it are two counts: what is forgotten of one says nothing of the other. */
static inline int pl_step_kind(uint64_t step) { return (int)(step >> 63); }

enum pl_reduce { PL_SUM_F32, PL_SUM_F64, PL_MAX_F64 };

/* Who connects. A member is named by its index. */
struct pl_group {
    int me, members;
    const int *rank; /* [members] its rank in the run: for messages */
    bool one_node;   /* all members are on one node */
    /* all[members * bytes]: what each brings. Collective over the group, only within open. */
    pl_status (*allgather)(void *arg, const void *mine, size_t bytes, void *all);
    void *arg;
};

struct pl_transport_options {
    int channels;          /* connections to each peer that share its data, 1 .. PL_MOST_CHANNELS */
    const char *interface; /* a name, an address or a CIDR; NULL: the one that reaches the peers */
    double timeout_ms;     /* of open, and of silence on a connection that has unacknowledged data */
};
enum { PL_MOST_CHANNELS = 16 };

struct pl_transport_table {
    const char *name;
    /* Can it work on this rank? Otherwise false. named: the user asked for it; not so, it also says no where
     * another is the better choice. reason: why (not), without a full stop. Not collective. */
    bool (*probe)(const struct pl_world *w, const struct pl_transport_options *o, bool named, char *reason, size_t bytes);
    /* Connects all members. Collective over the group; a member that fails returns an error with its message,
     * the others either succeed or fail after the timeout. describe: how, in some words ("eth0, 2 channels"). */
    pl_status (*open)(const struct pl_group *g, const struct pl_transport_options *o, struct pl_transport **out,
                      char *describe, size_t bytes);
    /* What was sent arrives; what is still posted is forgotten and its memory left alone. Waits for nobody
     * but with mpi, where it is collective unless `lost`: a peer is lost. NULL is fine. */
    void (*close)(struct pl_transport *t, bool lost);
    /* Memory that messages are often sent from or received into. Optional. */
    pl_status (*register_memory)(struct pl_transport *t, void *p, size_t bytes, struct pl_memory **out);
    void (*unregister_memory)(struct pl_transport *t, struct pl_memory *m);
    /* The memory stays as it is until the request is done. bytes: the same on both sides. A lost peer fails
     * the requests with it and no others: PL_ERR_PEER, here or by test, with a message that names its rank. */
    pl_status (*post_send)(struct pl_transport *t, int peer, struct pl_label l, const void *p, size_t bytes, struct pl_request *r);
    pl_status (*post_receive)(struct pl_transport *t, int peer, struct pl_label l, void *p, size_t bytes, struct pl_request *r);
    pl_status (*test)(struct pl_transport *t, struct pl_request *r, bool *done);
    /* A receive that is active, and that no peer will answer any more: it is over, and its memory the caller's again; waits for
     * what is on its way. NULL: forget does it, and close. */
    void (*cancel)(struct pl_transport *t, struct pl_request *r);
    /* The data messages (not the control ones) exchanged with `peer` whose step is below `before`, of the same kind, are of
     * no more interest. Requests posted for them that have not ended are over: no longer active and not to be tested, and they
     * and their memory are the caller's again at once (but to unregister it waits for the device). What was half sent still
     * arrives as it was, or never does; what still comes is thrown away and holds up nothing. To post such a label from
     * then on is PL_ERR_USAGE. A bound only rises, a lower one changes nothing. What this takes and cannot be had, memory
     * for what is half sent, loses the peer.
     * NULL: this transport cannot (mpi). */
    void (*forget)(struct pl_transport *t, int peer, uint64_t before);
    /* Is nothing more to be had of the peer, whether or not anything is posted for it? One that closed in order counts as
     * lost a second later at most. why: a message that names its rank; empty otherwise. Found out by progress; never so with mpi. */
    bool (*lost)(struct pl_transport *t, int peer, char *why, size_t bytes);
    /* Moves what can be moved. With wait_ms > 0 sleeps first, until something may have moved, wake is
     * called, or the time is over. */
    pl_status (*progress)(struct pl_transport *t, double wait_ms);
    void (*wake)(struct pl_transport *t);
    /* The library's own all-reduce over all members, in and out apart or the same, ended by test; PL_ERR_USAGE
     * from a transport without one. The same order of calls on every member. */
    pl_status (*post_allreduce)(struct pl_transport *t, enum pl_reduce op, const void *in, void *out, int64_t n, struct pl_request *r);
};

/* By name, or "auto": the first of the list that probes well on all ranks. why: one sentence for rank 0, with
 * the reasons against those before it. Collective; all ranks return the same. */
pl_status pl_transport_find(struct pl_world *w, const char *name, const struct pl_transport_options *o,
                            const struct pl_transport_table **out, char *why, size_t bytes);
const struct pl_transport_table *const *pl_transport_list(void); /* in order of preference, ends with NULL */

#endif
