/* Internal to transport/tcp/ (and its tests): frames and their reader, the hand-shake, the choice of a network,
 * and the connections of an open group. Control messages have a connection of their own to each peer, data has
 * `channels` of them; a message is never split over two. */
#ifndef PL_TRANSPORT_TCP_H
#define PL_TRANSPORT_TCP_H

#include "transport/meet.h"
#include "transport/secret.h"
#include "transport/transport.h"

#include <netinet/in.h>
#include <sys/uio.h>

#define PL_TCP_ROOM "transport tcp"

extern const struct pl_transport_table pl_transport_tcp;

/* ---- frame.c: what stands before each message ---------------------------------------------------- */

/* magic 4, version 1, kind 1, zero 2, payload bytes 4, step 8, bucket 4, piece 4, CRC-32 of the payload 4, CRC-32
 * of all before it 4; little-endian. */
enum { PL_TCP_HEADER_BYTES = 36 };
struct pl_tcp_frame {
    struct pl_label label;
    uint32_t bytes, crc;
};
void pl_tcp_frame_encode(const struct pl_tcp_frame *f, unsigned char out[PL_TCP_HEADER_BYTES]);
/* NULL, or what is wrong with it. control: it came over a control connection. */
const char *pl_tcp_frame_decode(const unsigned char in[PL_TCP_HEADER_BYTES], bool control, struct pl_tcp_frame *f);
static inline bool pl_tcp_is_control(struct pl_label l) { return l.bucket == PL_CONTROL_BUCKET; }

/* Turns a stream of bytes into frames without knowing where they come from. The payload goes straight to its
 * place; what follows it is read ahead, so that a small message costs one system call. */
enum { PL_TCP_AHEAD_BYTES = 8192, PL_TCP_READ_BYTES = 256 << 10 /* of a payload at once: still in the cache for its checksum */ };
struct pl_tcp_reader {
    enum { PL_TCP_AT_HEADER, PL_TCP_AT_PLACE, PL_TCP_AT_PAYLOAD } state;
    bool control;
    struct pl_tcp_frame frame;
    unsigned char *payload;    /* NULL: it is thrown away */
    uint32_t got, crc;         /* bytes of the payload so far, and their checksum */
    uint32_t from, to;         /* ahead[from, to) is not consumed yet */
    const char *wrong;
    unsigned char ahead[PL_TCP_AHEAD_BYTES];
};
enum pl_tcp_event {
    PL_TCP_MORE,  /* needs bytes: pl_tcp_reader_space */
    PL_TCP_PLACE, /* frame is a whole header: needs pl_tcp_reader_into before anything else */
    PL_TCP_WHOLE, /* the message of frame is whole and right */
    PL_TCP_WRONG  /* wrong says what; the stream is of no more use */
};
void pl_tcp_reader_start(struct pl_tcp_reader *r, bool control);
enum pl_tcp_event pl_tcp_reader_next(struct pl_tcp_reader *r);
void pl_tcp_reader_into(struct pl_tcp_reader *r, void *payload); /* frame.bytes of it; NULL: it is thrown away once its checksum is right */
void pl_tcp_reader_drop(struct pl_tcp_reader *r);                /* the same of a message whose payload has begun */
int pl_tcp_reader_space(struct pl_tcp_reader *r, struct iovec space[2]); /* after PL_TCP_MORE: how many, none empty */
void pl_tcp_reader_filled(struct pl_tcp_reader *r, size_t bytes);        /* so many bytes of that space */
bool pl_tcp_reader_between(const struct pl_tcp_reader *r);               /* the stream may end here */

/* ---- handshake.c: both sides prove that they know the secret -------------------------------------- */

/* The acceptor sends a nonce; the connector says who it is, with a nonce and its proof; the acceptor answers with a
 * verdict and its own proof. A state machine without a socket: write out[], feed exactly `wants` bytes. */
enum { PL_TCP_CHALLENGE_BYTES = 8 + PL_NONCE_BYTES,
       PL_TCP_HELLO_BYTES = 20 + PL_NONCE_BYTES + PL_PROOF_BYTES,
       PL_TCP_VERDICT_BYTES = 8 + PL_PROOF_BYTES,
       PL_TCP_HAND_BYTES = PL_TCP_HELLO_BYTES };
struct pl_tcp_hand {
    const unsigned char *secret;
    bool acceptor;
    uint32_t members, channels; /* channels: with the control connection */
    uint32_t me, peer, channel; /* peer and channel: the acceptor's are known once it is done */
    unsigned char nonce[2][PL_NONCE_BYTES]; /* the acceptor's, the connector's */
    int stage;
    uint32_t out_bytes, wants; /* out[] is to be sent, wants bytes to be fed; wants is 0 at the end */
    unsigned char out[PL_TCP_HAND_BYTES];
};
enum pl_tcp_hand_result {
    PL_TCP_HAND_ON,      /* send out, then feed what it wants */
    PL_TCP_HAND_DONE,    /* send out, and the connection is good */
    PL_TCP_HAND_REFUSED, /* by the acceptor: send out and close; by the connector: close */
    PL_TCP_HAND_FAILED   /* of our own, recorded */
};
/* expected: does the acceptor wait for this member on this channel? */
typedef bool (*pl_tcp_expected)(void *arg, uint32_t peer, uint32_t channel);
enum pl_tcp_hand_result pl_tcp_hand_start(struct pl_tcp_hand *h);
/* why: of a refusal, a static text. */
enum pl_tcp_hand_result pl_tcp_hand_feed(struct pl_tcp_hand *h, const unsigned char *in, pl_tcp_expected expected, void *arg, const char **why);

/* ---- interface.c: the network to take --------------------------------------------------------------- */

enum pl_tcp_kind { PL_TCP_DEVICE, PL_TCP_VIRTUAL, PL_TCP_BRIDGE, PL_TCP_LOOPBACK }; /* better ones first */
struct pl_tcp_address {
    uint16_t family, prefix; /* AF_INET or AF_INET6; bits of the network */
    uint16_t kind, port;
    int32_t mbps; /* 0: not known */
    unsigned char ip[16];
    char name[20];
};
enum { PL_TCP_ADDRESSES = 24 };
/* What each member brings. */
struct pl_tcp_offer {
    struct pl_say say;
    int32_t addresses;
    uint64_t host; /* the same number: the same network stack */
    unsigned char secret[PL_SECRET_BYTES]; /* of member 0 */
    struct pl_tcp_address address[PL_TCP_ADDRESSES];
};
/* This host's addresses of running interfaces that fit `filter` (NULL: all). PL_ERR_PEER. */
pl_status pl_tcp_list(const char *filter, struct pl_tcp_offer *o);
/* Does it fit "eth0", "10.9.0.1", "10.9.0.0/24"? */
bool pl_tcp_fits(const struct pl_tcp_address *a, const char *filter);
enum pl_tcp_kind pl_tcp_kind_of(const char *name, bool loopback, bool device); /* device: a real one stands behind it */
/* A network that all members share: the index of each one's address, pick[members]. False where there is none. The
 * same on all members. */
bool pl_tcp_choose(const struct pl_tcp_offer *o, int members, bool one_node, int *pick);
/* Without one: this member's address by the route to its peers. PL_ERR_PEER. */
pl_status pl_tcp_by_route(const struct pl_tcp_offer *o, int members, int me, struct pl_tcp_address *out);
socklen_t pl_tcp_sockaddr(const struct pl_tcp_address *a, struct sockaddr_storage *out);
void pl_tcp_print(const struct pl_tcp_address *a, char *text, size_t bytes); /* "10.9.0.2:4711"; no port, no colon */

/* ---- connect.c -------------------------------------------------------------------------------------- */

struct pl_tcp_setup {
    const struct pl_group *group;
    int channels;                        /* with the control connection */
    const struct pl_tcp_address *place;  /* [members] where each listens */
    const unsigned char *secret;
    double timeout_ms;
};
pl_status pl_tcp_enough_files(int connections);
/* Listens on a, whose port it sets. PL_ERR_PEER. */
pl_status pl_tcp_listen(struct pl_tcp_address *a, int *listener);
/* fd[members * channels], -1 for this member's own. Closes the listener. PL_ERR_PEER. */
pl_status pl_tcp_connect(const struct pl_tcp_setup *s, int listener, int *fd);

/* ---- open.c ------------------------------------------------------------------------------------------- */

bool pl_tcp_probe(const struct pl_world *w, const struct pl_transport_options *o, bool named, char *reason, size_t bytes);
pl_status pl_tcp_open(const struct pl_group *g, const struct pl_transport_options *o, struct pl_transport **out,
                      char *describe, size_t bytes);
void pl_tcp_destroy(struct pl_transport *t); /* sends nothing any more; NULL is fine */

/* ---- an open group's connections ---------------------------------------------------------------------- */

struct pl_tcp_request { /* in pl_request.bytes */
    struct pl_tcp_request *next;
    unsigned char *memory;
    uint32_t bytes, moved; /* moved: of a send, header included */
    int32_t peer;
    enum { PL_TCP_POSTED, PL_TCP_DONE, PL_TCP_LOST, PL_TCP_REST /* of the transport's own: struct pl_tcp_rest */ } state;
    struct pl_label label;
    unsigned char header[PL_TCP_HEADER_BYTES]; /* of a send */
};
_Static_assert(sizeof(struct pl_tcp_request) <= sizeof(((struct pl_request *)0)->bytes), "a request fits");

struct pl_tcp_list { struct pl_tcp_request *first, *last; };

/* What was left of a half written message that was forgotten, as a payload whose header is sent. At most one of a
 * connection, and its first. */
struct pl_tcp_rest { struct pl_tcp_request request; unsigned char data[]; };

struct pl_tcp_note { /* a control message without a receive yet */
    struct pl_tcp_note *next;
    struct pl_label label;
    uint32_t bytes;
    unsigned char data[PL_CONTROL_BYTES];
};
enum { PL_TCP_NOTES = 64 }; /* of one peer; beyond them it has to wait */

struct pl_tcp_peer;
struct pl_tcp_conn {
    int fd; /* -1: over */
    bool control, readable, writable, hung_up;
    bool parked; /* a whole header without a receive (a note, if control): nothing is read */
    bool listed; /* on the transport's list of those that have something to do */
    struct pl_tcp_conn *next_listed;
    struct pl_tcp_peer *peer;
    struct pl_tcp_list out;
    size_t out_bytes;
    double silent_ms; /* since when it owes an answer; 0: it does not */
    struct pl_tcp_request *in; /* being received; NULL also while a payload is thrown away */
    struct pl_tcp_note *note;  /* the same of a control message */
    struct pl_tcp_reader reader;
};

struct pl_tcp_peer {
    int rank, conns, over; /* conns that are over */
    char where[64];
    unsigned next_channel;
    bool lost;            /* all that waits for it fails */
    bool closing;         /* at least one connection has ended */
    double closed_ms;     /* while closing: since when, */
    double moved_ms;      /* and when anything arrived or was posted last */
    uint64_t forgotten[2]; /* by the kind of step: below it nothing is of interest */
    char why[256];        /* of closing or lost */
    struct pl_tcp_conn *conn; /* [conns], the control connection first */
    struct pl_tcp_list receives; /* posted, nothing arrived */
    struct pl_tcp_note *first_note, *last_note;
    int notes;
};

struct pl_transport {
    int me, members, channels; /* channels: of data */
    double timeout_ms, looked_ms;
    int epoll, wake;
    bool woken;
    int closing; /* peers that are, but not lost */
    struct pl_tcp_peer *peer; /* [members] */
    struct pl_tcp_conn *conns;
    struct pl_tcp_conn *first_listed, *last_listed;
    struct pl_tcp_note *free_notes;
    unsigned char *spoiled; /* tcp.corrupt: the payload that was */
};

/* ---- silence.c */

void pl_tcp_set_options(int fd, double timeout_ms);
double pl_tcp_look_period(const struct pl_transport *t); /* ms between looks */
void pl_tcp_look_for_silence(struct pl_transport *t);    /* if it is time to; loses those that have been silent for the timeout */

/* ---- forget.c */

bool pl_tcp_forgotten(const struct pl_tcp_peer *p, struct pl_label l);
void pl_tcp_forget(struct pl_transport *t, int peer, uint64_t before);
void pl_tcp_free_rest(struct pl_tcp_conn *c); /* if there is one */

/* ---- socket.c */

void pl_tcp_append(struct pl_tcp_list *l, struct pl_tcp_request *q);
void pl_tcp_enlist(struct pl_transport *t, struct pl_tcp_conn *c);
/* Writes what the socket takes; reads and delivers what is there, up to a bound. True: there is more to do. */
void pl_tcp_write(struct pl_transport *t, struct pl_tcp_conn *c);
bool pl_tcp_serve(struct pl_transport *t, struct pl_tcp_conn *c);
/* Fails everything that waits for the peer, and closes its connections. */
void pl_tcp_lose(struct pl_transport *t, struct pl_tcp_peer *p, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void pl_tcp_lose_silent(struct pl_transport *t, struct pl_tcp_peer *p);
struct pl_tcp_note *pl_tcp_find_note(struct pl_tcp_peer *p, struct pl_label l); /* takes it from the list */
void pl_tcp_free_note(struct pl_transport *t, struct pl_tcp_note *n);
/* A posted receive meets a note; they differ in size: the peer is lost. */
void pl_tcp_deliver_note(struct pl_transport *t, struct pl_tcp_request *q, struct pl_tcp_note *n);

#endif
