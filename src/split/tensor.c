/* What the ranks that share each layer out among them do together in a pass: every call sends each of the others what it needs and
 * receives as much from each, then goes on once all of it is there. Sums are in the order of the parts, so that they have the same bits on
 * all of them. */
#include "split/carrier.h"
#include "split/split.h"

#include <string.h>

struct pl_tensor_group {
    const struct pl_grid *grid;
    struct pl_carrier *carrier;
    struct pl_graph_group group;          /* what graphs call */
    struct pl_crossing *to, *from;        /* [parts], this one's own not used */
    float *memory, **sent, **received;    /* [parts] each with room for a share; likewise */
};

static const struct pl_carrier_words words = {"part", "parts", "to part", "from part", "wait for part"};

/* ---- to all the others ------------------------------------------------------------------------- */

static void post(struct pl_tensor_group *t, struct pl_crossing *c, bool sends, int part, const float *p, int64_t n)
{
    c->sends = sends;
    c->stage = part;
    c->memory = (void *)(uintptr_t)p; /* of one that sends it is only read */
    c->bytes = (size_t)n * sizeof *p;
    if (n > 0)
        pl_carrier_post(t->carrier, c);
}

static pl_status wait_for(struct pl_tensor_group *t, struct pl_crossing *c)
{
    for (int p = 0; p < t->grid->parts; p++)
        if (p != t->grid->part)
            PL_TRY(pl_carrier_wait(t->carrier, &c[p]));
    return PL_OK;
}

static void post_receive(struct pl_tensor_group *t, int p, float *from, int64_t n) { post(t, &t->from[p], false, p, from, n); }
static void post_send(struct pl_tensor_group *t, int p, const float *to, int64_t n) { post(t, &t->to[p], true, p, to, n); }

/* ---- shares to the whole ------------------------------------------------------------------------- */

static void put_share(const struct pl_tensor_group *t, int part, int64_t rows, int64_t n, const float *x, float *y)
{
    for (int64_t r = 0; r < rows; r++)
        memcpy(y + (r * t->grid->parts + part) * n, x + r * n, (size_t)n * sizeof *y);
}

static pl_status gather(void *arg, int64_t rows, int64_t n, const float *x, float *y)
{
    struct pl_tensor_group *t = arg;
    int me = t->grid->part;
    for (int p = 0; p < t->grid->parts; p++)
        if (p != me) {
            post_receive(t, p, t->received[p], rows * n);
            post_send(t, p, x, rows * n);
        }
    put_share(t, me, rows, n, x, y);
    for (int p = 0; p < t->grid->parts; p++)
        if (p != me) {
            PL_TRY(pl_carrier_wait(t->carrier, &t->from[p]));
            put_share(t, p, rows, n, t->received[p], y);
        }
    return wait_for(t, t->to); /* x may change when this returns */
}

/* ---- the sum to shares ---------------------------------------------------------------------------- */

static void add(float *restrict sum, const float *restrict x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        sum[i] += x[i];
}

/* sum[n] of every part's, in their order; mine: this one's, apart from sum. */
static void add_parts(const struct pl_tensor_group *t, const float *mine, int64_t n, float *sum)
{
    for (int p = 0; p < t->grid->parts; p++) {
        const float *x = p == t->grid->part ? mine : t->received[p];
        if (p == 0)
            memcpy(sum, x, (size_t)n * sizeof *sum);
        else
            add(sum, x, n);
    }
}

static void take_share(const struct pl_tensor_group *t, int part, int64_t rows, int64_t n, const float *y, float *x)
{
    for (int64_t r = 0; r < rows; r++)
        memcpy(x + r * n, y + (r * t->grid->parts + part) * n, (size_t)n * sizeof *x);
}

static pl_status scatter(void *arg, int64_t rows, int64_t n, const float *y, float *x)
{
    struct pl_tensor_group *t = arg;
    int me = t->grid->part;
    for (int p = 0; p < t->grid->parts; p++)
        if (p != me) {
            post_receive(t, p, t->received[p], rows * n);
            take_share(t, p, rows, n, y, t->sent[p]);
            post_send(t, p, t->sent[p], rows * n);
        }
    take_share(t, me, rows, n, y, t->sent[me]);
    PL_TRY(wait_for(t, t->from));
    add_parts(t, t->sent[me], rows * n, x);
    return wait_for(t, t->to);
}

/* ---- the sum to all ------------------------------------------------------------------------------- */

static int64_t begin_of(const struct pl_tensor_group *t, int part, int64_t n) { return n * part / t->grid->parts; }

/* Each adds up its own piece, then all have it from there. */
static pl_status sum(void *arg, int64_t n, float *x)
{
    struct pl_tensor_group *t = arg;
    int me = t->grid->part;
    int64_t at = begin_of(t, me, n), own = begin_of(t, me + 1, n) - at;
    for (int p = 0; p < t->grid->parts; p++)
        if (p != me) {
            int64_t a = begin_of(t, p, n);
            post_receive(t, p, t->received[p], own);
            post_send(t, p, x + a, begin_of(t, p + 1, n) - a);
        }
    PL_TRY(wait_for(t, t->from));
    PL_TRY(wait_for(t, t->to)); /* what has been sent is overwritten now */
    memcpy(t->sent[me], x + at, (size_t)own * sizeof *x);
    add_parts(t, t->sent[me], own, x + at);
    for (int p = 0; p < t->grid->parts; p++)
        if (p != me) {
            int64_t a = begin_of(t, p, n);
            post_receive(t, p, x + a, begin_of(t, p + 1, n) - a);
            post_send(t, p, x + at, own);
        }
    PL_TRY(wait_for(t, t->from));
    return wait_for(t, t->to);
}

/* ---- create, destroy ------------------------------------------------------------------------------ */

static pl_status make(struct pl_tensor_group *t, const struct pl_grid *grid, const struct pl_graph *g)
{
    size_t parts = (size_t)grid->parts, each = (size_t)pl_graph_group_elems(g) / parts + 1;
    t->grid = grid;
    t->group = (struct pl_graph_group){.gather = gather, .scatter = scatter, .sum = sum, .arg = t};
    t->to = pl_alloc(2 * parts * sizeof *t->to, "what crosses between parts");
    t->sent = pl_alloc(2 * parts * sizeof *t->sent, "what crosses between parts");
    t->memory = pl_alloc((2 * parts - 1) * each * sizeof *t->memory, "what crosses between parts");
    if (!t->to || !t->sent || !t->memory)
        return PL_ERR_MEMORY;
    t->from = t->to + parts;
    t->received = t->sent + parts;
    float *at = t->memory;
    for (int p = 0; p < grid->parts; p++, at += each)
        t->sent[p] = at;
    for (int p = 0; p < grid->parts; p++)
        if (p != grid->part) {
            t->received[p] = at;
            at += each;
        }
    return PL_OK;
}

pl_status pl_tensor_group_create(struct pl_world *w, struct pl_grid *grid, const struct pl_exchange_options *o, struct pl_graph *g,
                                 struct pl_tensor_group **out)
{
    struct pl_tensor_group *t = pl_alloc(sizeof *t, "a group of parts");
    pl_status s = pl_world_agree(w, t ? make(t, grid, g) : PL_ERR_MEMORY);
    if (s == PL_OK)
        s = pl_world_agree(w, pl_carrier_open(&grid->row, &words, o, &t->carrier));
    if (s < 0) {
        pl_tensor_group_destroy(t, true);
        return s;
    }
    pl_tensor_group_serve(t, g);
    *out = t;
    return PL_OK;
}

void pl_tensor_group_destroy(struct pl_tensor_group *t, bool lost)
{
    if (!t)
        return;
    pl_carrier_close(t->carrier, lost);
    pl_free(t->to);
    pl_free(t->sent);
    pl_free(t->memory);
    pl_free(t);
}

void pl_tensor_group_serve(struct pl_tensor_group *t, struct pl_graph *g) { pl_graph_set_group(g, &t->group); }
const char *pl_tensor_group_why(const struct pl_tensor_group *t) { return pl_carrier_why(t->carrier); }
double pl_tensor_group_waited_ms(struct pl_tensor_group *t) { return pl_carrier_waited_ms(t->carrier); }
pl_status pl_tensor_group_sum(struct pl_tensor_group *t, double *v, int n) { return pl_carrier_sum(t->carrier, v, n); }
pl_status pl_tensor_group_max(struct pl_tensor_group *t, double *v, int n) { return pl_carrier_max(t->carrier, v, n); }
