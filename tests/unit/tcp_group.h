/* For tests of the tcp transport among forked processes: opening, waiting with a limit, looking at messages. */
#ifndef TCP_GROUP_H
#define TCP_GROUP_H

#include "forks.h"
#include "transport/tcp/tcp.h"

#define TCP pl_transport_tcp
#define LIMIT_MS 30000.0

static inline struct pl_transport_options options(int channels, double timeout_ms)
{
    return (struct pl_transport_options){.channels = channels, .timeout_ms = timeout_ms};
}

static inline bool open_group(const struct pl_group *g, int channels, double timeout_ms, struct pl_transport **t)
{
    struct pl_transport_options o = options(channels, timeout_ms);
    char how[128];
    return TCP.open(g, &o, t, how, sizeof how) == PL_OK;
}

/* The content of a message, by who sends it to whom. */
static inline void fill(unsigned char *p, size_t bytes, int from, int to, struct pl_label l)
{
    struct pl_rng r = pl_rng_make(l.step, (uint64_t)from << 32 | (uint64_t)to, l.bucket, l.piece);
    for (size_t i = 0; i < bytes; i += 4) {
        uint32_t v = pl_rng_u32(&r);
        memcpy(p + i, &v, bytes - i < 4 ? bytes - i : 4);
    }
}

/* Waits for a request; PL_ERR_ECHO when it never ends. */
static inline pl_status finish(struct pl_transport *t, struct pl_request *r)
{
    bool done = false;
    pl_status s = TCP.test(t, r, &done);
    for (double end = pl_now_ms() + LIMIT_MS; s == PL_OK && !done; s = TCP.test(t, r, &done)) {
        if (pl_now_ms() > end)
            return PL_ERR_ECHO;
        s = TCP.progress(t, 20);
        if (s < 0)
            return s;
    }
    return s;
}

static inline bool said(const char *part)
{
    const char *text = pl_error_text();
    if (text && strstr(text, part))
        return true;
    fprintf(stderr, "the message lacks \"%s\": %s\n", part, text ? text : "none");
    return false;
}

#endif
