/* Internal to transport/verbs (and its tests). From below to above:
 *   library.c  libibverbs, opened at run time          device.c   which devices, ports and GIDs serve
 *   ring.c     frames and the arithmetic of credits    memory.c   how much may be pinned
 *   send.c, receive.c  the ways out of and into a queue pair       queue.c  completions, and the loss of a peer
 *   forget.c   requests taken back
 *   open.c     devices, memory and queue pairs are made            connect.c  members meet, and the hand-shake
 *   verbs.c    the table: requests, progress, close */
#ifndef PL_TRANSPORT_VERBS_H
#define PL_TRANSPORT_VERBS_H

#include "transport/meet.h"
#include "transport/secret.h"
#include "transport/transport.h"

#include <infiniband/verbs.h>
#include <net/if.h>
#include <string.h>

enum {
    PL_VERBS_PAYLOAD = 65536,  /* most payload of a frame; longer messages are several */
    PL_VERBS_SLOTS = 16,       /* most frames on their way to one ring ... */
    PL_VERBS_FEWEST_SLOTS = 4, /* ... and fewest, where the members are many */
    PL_VERBS_STORED = 64,      /* control messages of a peer that wait for their receive outside the ring */
    PL_VERBS_RAILS = 8,        /* ports used at once */
    PL_VERBS_PORTS = 32,       /* ports looked at */
    PL_VERBS_GIDS = 16,        /* GIDs of a port looked at */
    PL_VERBS_INLINE = 220      /* bytes asked for that travel within the work request */
};

/* ---- library.c ---------------------------------------------------------------------------------- */

/* Without libibverbs the program still starts, and the probe says what is missing. What is inline in verbs.h
 * (posting, polling) goes through the context and needs no symbol. */
#define PL_VERBS_FUNCTIONS(X)                                                                                                   \
    X(fork_init) X(get_device_list) X(free_device_list) X(get_device_name) X(open_device) X(close_device) X(query_device)      \
    X(query_port) X(query_gid) X(alloc_pd) X(dealloc_pd) X(reg_mr) X(dereg_mr) X(create_comp_channel) X(destroy_comp_channel) \
    X(create_cq) X(destroy_cq) X(get_cq_event) X(ack_cq_events) X(create_qp) X(modify_qp) X(destroy_qp) X(wc_status_str)
#define PL_VERBS_DECLARE(f) __typeof__(&ibv_##f) f;
struct pl_verbs_api { PL_VERBS_FUNCTIONS(PL_VERBS_DECLARE) };
extern struct pl_verbs_api pl_verbs; /* filled by pl_verbs_load */
/* Opens the library, once. False: reason says why not. Thread-safe. */
bool pl_verbs_load(char *reason, size_t bytes);
/* ibv_query_port is half a macro, and its symbol knows less of the port. An errno. */
int pl_verbs_query_port(struct ibv_context *context, int port, struct ibv_port_attr *out);

/* Records what a verbs call said: `error` is an errno. */
pl_status pl_verbs_failed(int error, const char *device, const char *call);
/* For a call that returns an errno; PL_VERBS_MAKE for one that returns a pointer and sets errno. */
#define PL_VERBS_CHECK(device, call)                          \
    do {                                                      \
        int error_ = (call);                                  \
        if (error_ != 0)                                      \
            return pl_verbs_failed(error_, device, #call);    \
    } while (0)
#define PL_VERBS_MAKE(device, pointer, call)                                   \
    do {                                                                       \
        if (!((pointer) = (call)))                                             \
            return pl_verbs_failed(errno ? errno : EIO, device, #call);        \
    } while (0)

/* ---- device.c ----------------------------------------------------------------------------------- */

enum pl_verbs_gid_type { PL_VERBS_GID_IB, PL_VERBS_GID_ROCE1, PL_VERBS_GID_ROCE2 };
struct pl_verbs_gid {
    unsigned char raw[16];
    int index;
    enum pl_verbs_gid_type type;
    char netdev[IF_NAMESIZE];
};

/* A port that can be used. */
struct pl_verbs_port {
    char device[64], netdev[IF_NAMESIZE];
    int port;
    bool infiniband; /* by LID; otherwise RoCE, by GID */
    bool loopback;   /* reaches this node only */
    uint32_t lid, mtu; /* mtu: 128 << mtu bytes */
    uint32_t rate;     /* in 100 Mbit/s */
    uint32_t most_queues; /* queue pairs that its device has room for */
    struct pl_verbs_gid gid;
};

/* The GID to use of the gids[n] of a port, or -1. `interface`: a network interface, an address or a CIDR that
 * it must have, or NULL. RoCE v2 goes before v1, IPv4 before IPv6, and an address of this node alone is last. */
int pl_verbs_choose_gid(const struct pl_verbs_gid *gids, int n, const char *interface);
/* Is it an address of the loopback interface? */
bool pl_verbs_gid_is_loopback(const struct pl_verbs_gid *g);
/* The active ports that fit the interface (NULL: any), in the order in which all members take them: of the
 * fastest kind, none of them this node's own where another serves. 0: reason says why. */
int pl_verbs_find_ports(const char *interface, bool one_node, struct pl_verbs_port ports[PL_VERBS_RAILS], char *reason, size_t bytes);
/* "rxe0 port 1, RoCE v2, 1024 B MTU" */
void pl_verbs_describe_port(const struct pl_verbs_port *p, char *out, size_t bytes);
/* The ports that all members use, rail by rail. all: [members][PL_VERBS_RAILS], ports[members] of them there. Alike
 * on all members: rails[] are those indices that serve. 0: reason says why. */
int pl_verbs_match_rails(const struct pl_verbs_port *const *all, const int *ports, const int *rank, int members, int rails[PL_VERBS_RAILS],
                         char *reason, size_t bytes);

/* ---- ring.c: what is written into a slot ----------------------------------------------------------- */

/* Goes before the payload, in the byte order of the machines. */
struct pl_verbs_frame {
    uint32_t magic, kind;
    struct pl_label label;
    uint32_t total;         /* bytes of the message */
    uint32_t offset, bytes; /* of it in this frame */
    uint32_t sequence;      /* of the frame in its queue, from 0 */
    uint32_t consumed;      /* frames of the other direction that the sender has freed */
    uint32_t payload_crc, header_crc;
    uint32_t zero[3];
};
_Static_assert(sizeof(struct pl_verbs_frame) == 64, "no holes in a frame's header");
enum pl_verbs_kind { PL_VERBS_HELLO = 1, PL_VERBS_DATA, PL_VERBS_LENT /* data that the device reads where its owner has it */ };

/* Fills magic and the header's checksum; the other fields are the caller's. */
void pl_verbs_seal(struct pl_verbs_frame *f);
/* What is wrong with the header of a frame that arrived as `sequence` with so many bytes, header and all; NULL: nothing. */
const char *pl_verbs_frame_wrong(const struct pl_verbs_frame *f, uint32_t sequence, uint32_t arrived_bytes, uint32_t most_payload);
/* Copies the payload out; false where its checksum differs. */
bool pl_verbs_copy_payload(const struct pl_verbs_frame *f, const void *payload, void *to);

/* The immediate value: what came, and a counter modulo 2^30. */
enum pl_verbs_news { PL_VERBS_NEWS_FRAME, PL_VERBS_NEWS_CREDIT, PL_VERBS_NEWS_CLOSED, PL_VERBS_NEWS_VOID };
uint32_t pl_verbs_immediate(enum pl_verbs_news n, uint32_t count);
enum pl_verbs_news pl_verbs_immediate_news(uint32_t immediate);
/* A counter near `near` from its lower 30 bits. */
uint32_t pl_verbs_immediate_count(uint32_t immediate, uint32_t near);
/* The peer says that it has freed `told` frames of `sent`, after `acked` were known: false if that cannot be. */
bool pl_verbs_credit(uint32_t sent, uint32_t told, uint32_t *acked);
/* Slots of a ring, by how many rings there are: their memory stays within bounds. */
int pl_verbs_ring_slots(int64_t rings);

/* ---- memory.c ----------------------------------------------------------------------------------- */

/* May this process pin so many bytes more? Raises its limit to the hard one first. PL_ERR_PEER with the cure. */
pl_status pl_verbs_may_pin(size_t bytes);

struct pl_memory {
    struct pl_memory *next;
    unsigned char *p;
    size_t bytes;
    struct ibv_mr *mr[PL_VERBS_RAILS]; /* by device */
};

/* ---- the open transport ------------------------------------------------------------------------- */

struct pl_verbs_queue;
struct pl_verbs_peer;

struct pl_verbs_request {
    struct pl_verbs_request *next; /* in the list it waits in */
    struct pl_verbs_queue *queue;
    struct pl_label label;
    unsigned char *p;
    const struct pl_memory *memory; /* p lies in it */
    uint32_t bytes, moved, flying;  /* moved: of bytes; flying: frames without their completion */
    bool done;
    pl_status status;
};
_Static_assert(sizeof(struct pl_verbs_request) <= sizeof(((struct pl_request *)0)->bytes), "a request fits");

struct pl_verbs_list { struct pl_verbs_request *head, *last; };

/* Where one queue pair goes to, and what is on the way. One for each peer and channel; the last of a peer carries
 * its control messages. */
struct pl_verbs_queue {
    struct ibv_qp *qp;
    struct pl_verbs_device *device;
    struct pl_verbs_peer *peer;
    uint32_t index; /* in t->queue */
    int channel, slots;
    bool control, proved; /* proved: the peer knows the secret */
    uint32_t payload, stride, inline_bytes; /* of a slot */
    /* out */
    uint64_t remote_ring;
    uint32_t remote_key;
    unsigned char *pool;            /* registered: a header for each slot, of a control queue the whole frame */
    uint32_t sent, acked, completed; /* frames; acked: their slots are free again; completed: their memory here is */
    int room, bounces;              /* free entries of the send queue; bounce slots in use */
    struct {
        struct pl_verbs_request *request; /* NULL: of nobody any more */
        const struct pl_memory *lent;     /* the device reads the payload there */
        int bounce;
    } flight[PL_VERBS_SLOTS];
    struct pl_verbs_list sends;
    uint32_t voided; /* lent frames before it may have changed on their way */
    /* in */
    unsigned char *ring;
    uint32_t arrived, consumed, told; /* told: of consumed, to the peer */
    uint32_t void_before; /* the peer's `voided` */
    double doubt_ms;      /* since when the first frame is either damaged or about to be declared void; 0: it is not */
    struct pl_verbs_list receives;
};

struct pl_verbs_stored { struct pl_verbs_stored *next; struct pl_verbs_frame frame; unsigned char payload[PL_CONTROL_BYTES]; };

struct pl_verbs_peer {
    int member, rank;
    bool lost;   /* why[] says how */
    bool closed; /* it said so; what it sent before can still be received */
    bool asked;  /* a sign of life is on its way */
    char why[192];
    double heard_ms; /* last sign of life */
    uint64_t forgotten[2]; /* by the kind of step: below it nothing is of interest */
    struct pl_verbs_stored *stored, *stored_last;
    int stored_count;
    struct pl_verbs_queue *queue; /* [queues] */
};

struct pl_verbs_device {
    struct pl_verbs_port port;
    int index;
    struct ibv_context *context;
    struct ibv_pd *pd;
    struct ibv_comp_channel *events;
    struct ibv_cq *cq;
    bool armed;
    struct ibv_mr *rings, *pool; /* what peers write into, and what is sent from */
    int queues;
};

struct pl_transport {
    int me, members, channels, queues; /* queues: of a peer, channels + 1 */
    double timeout_ms;
    int rails;
    struct pl_verbs_device device[PL_VERBS_RAILS];
    struct pl_verbs_peer *peer;   /* [members], that of `me` unused */
    struct pl_verbs_queue *queue; /* [members * queues] */
    unsigned char *slab;          /* rings, then pools, then bounce slots */
    size_t slab_bytes, ring_bytes;
    unsigned char *bounce;
    int bounces, *bounce_free, bounce_free_count;
    bool starved; /* a queue wanted a bounce slot and got none */
    bool doubts;  /* a queue may have one */
    struct pl_memory *memory;
    struct pl_verbs_stored *stored_free;
    int wake_fd;
    bool news; /* a request ended since progress was called last */
    double asked_ms; /* when peers were last asked for a sign of life */
};

/* ---- queue.c ------------------------------------------------------------------------------------ */

enum pl_verbs_work { PL_VERBS_WORK_FRAME, PL_VERBS_WORK_CREDIT, PL_VERBS_WORK_ASK, PL_VERBS_WORK_CLOSING,
                     PL_VERBS_WORK_VOID, PL_VERBS_WORK_RECEIVE }; /* upper half of a work request's id; the lower is the queue */
enum { PL_VERBS_SPARE = 2 };                  /* entries of the send queue kept for signals */

/* Entries of the send and of the receive queue, enough for what credits allow, and a few. */
int pl_verbs_send_depth(int slots);
int pl_verbs_receive_depth(int slots);

void pl_verbs_append(struct pl_verbs_list *l, struct pl_verbs_request *r);
void pl_verbs_take_out(struct pl_verbs_list *l, struct pl_verbs_request *r);
/* The owner may use the request's memory anew as soon as it has seen this. */
void pl_verbs_finish(struct pl_transport *t, struct pl_verbs_request *r, pl_status s);
/* Polls all completion queues until they are empty; true where anything came. */
bool pl_verbs_poll(struct pl_transport *t);
/* The peer is lost to us: its requests fail, its queue pairs stop. The first reason stays. */
void pl_verbs_lose(struct pl_transport *t, struct pl_verbs_peer *p, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void pl_verbs_lose_by(struct pl_transport *t, struct pl_verbs_queue *q, const char *how); /* "lost rank 3 (mlx5_0 port 1): how" */
/* Fails what can no longer be done with a peer that has closed. */
void pl_verbs_settle(struct pl_transport *t, struct pl_verbs_peer *p);

/* ---- send.c ------------------------------------------------------------------------------------- */

/* The send is posted. */
void pl_verbs_offer(struct pl_transport *t, struct pl_verbs_request *r);
/* Sends what can be sent of what was posted. */
void pl_verbs_push(struct pl_transport *t, struct pl_verbs_queue *q);
/* A bounce slot is free again; -1 is none. */
void pl_verbs_give_back_bounce(struct pl_transport *t, struct pl_verbs_queue *q, int bounce);
/* Tells the peer what has been freed, if it is worth a message. */
void pl_verbs_give_credits(struct pl_transport *t, struct pl_verbs_queue *q);
/* The frame of the hand-shake. */
void pl_verbs_send_hello(struct pl_transport *t, struct pl_verbs_queue *q, const unsigned char *proof);
/* A write of nothing: one whose completion is a sign of life, or one that says that this member closes, or which lent
 * frames are void. False: no room. */
enum pl_verbs_signal { PL_VERBS_ASK, PL_VERBS_CLOSE, PL_VERBS_VOID };
bool pl_verbs_signal(struct pl_transport *t, struct pl_verbs_queue *q, enum pl_verbs_signal s);
/* Bytes of a slot of the pool. */
uint32_t pl_verbs_pool_stride(bool control);

/* ---- receive.c ---------------------------------------------------------------------------------- */

/* Entries for what comes, before the queue pair is ready to receive. */
pl_status pl_verbs_fill_receives(struct pl_verbs_queue *q);
/* The receive is posted; it may be done at once. */
void pl_verbs_await(struct pl_transport *t, struct pl_verbs_request *r);
/* Hands frames that have arrived to their receives. */
void pl_verbs_drain(struct pl_transport *t, struct pl_verbs_queue *q);
/* Loses peers whose damaged frames were not declared void in time. */
void pl_verbs_end_doubts(struct pl_transport *t);
/* Something has arrived. */
void pl_verbs_received(struct pl_transport *t, struct pl_verbs_queue *q, const struct ibv_wc *c);
/* A frame that has arrived and is not freed yet, the first; NULL: none. */
const struct pl_verbs_frame *pl_verbs_first_frame(const struct pl_verbs_queue *q);

/* ---- forget.c ----------------------------------------------------------------------------------- */

bool pl_verbs_forgotten(const struct pl_verbs_peer *p, struct pl_label l);
void pl_verbs_forget(struct pl_transport *t, int peer, uint64_t before);

/* ---- open.c ------------------------------------------------------------------------------------- */

/* Devices, the slab and queue pairs, from t's members, channels, rails and the devices' ports. */
pl_status pl_verbs_make(struct pl_transport *t, const int *rank /* [members] */);
/* Where the other side of a queue pair is. */
struct pl_verbs_remote { struct pl_verbs_port port; uint32_t queue_pair, first_packet, my_first_packet, key; uint64_t rings; };
/* The queue pair is ready to receive and to send. */
pl_status pl_verbs_make_ready(struct pl_transport *t, struct pl_verbs_queue *q, const struct pl_verbs_remote *remote);
/* Gives back whatever was made, however far it came, and t. */
void pl_verbs_destroy(struct pl_transport *t);

/* ---- connect.c ---------------------------------------------------------------------------------- */

/* Everything of open after t was allocated. Collective. */
pl_status pl_verbs_connect(const struct pl_group *g, const struct pl_transport_options *o, struct pl_transport *t, char *describe, size_t bytes);

#endif
