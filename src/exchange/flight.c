/* The stages of a flight. On two levels (the ranks of a node share memory) a bucket has three: once all of this node
 * have posted it, this rank adds its part of it over their slabs; that part is summed with those of the same part on
 * the other nodes; then it counts as done. A compressed bucket crosses the network twice (compressed.h). Small values
 * are added by the node's first rank, which hands the result to the others. */
#include "exchange/flight.h"
#include "exchange/node.h"

#include <string.h>

/* Elements of [a, a + n) that this rank adds up over its node. */
static int64_t own_part(const struct pl_exchange *x, int64_t n, int64_t *begin)
{
    const struct pl_levels *l = &x->levels;
    if (l->column < 0)
        return *begin = 0;
    *begin = pl_part(n, l->column, l->columns);
    return pl_part(n, l->column + 1, l->columns) - *begin;
}

/* false: others of this node have not posted it yet. */
static bool add_on_node(struct pl_route *r, struct pl_flight *f)
{
    struct pl_exchange *x = r->exchange;
    int64_t begin;
    if (!pl_node_posted(x->shared, f->what.number))
        return false;
    f->n = own_part(x, f->what.n, &begin);
    if (f->what.a + f->what.n == x->elems) /* the first of a step */
        r->partial_at = 0;
    float *partial = x->partial + r->partial_at;
    r->partial_at += f->n;
    pl_node_add(x->shared, f->what.a + begin, f->n, partial);
    f->at = f->what.a + begin;
    f->residual = x->residual ? x->residual + f->at : NULL;
    f->in = partial;
    f->out = x->sum + f->what.a + begin;
    return true;
}

static double *said(const struct pl_route *r, struct pl_flight *f) { return r->values ? r->values : f->said; }
static double *sum(const struct pl_route *r, struct pl_flight *f) { return r->values ? r->values + r->exchange->options.values : f->sum; }

static bool is_first_of_node(const struct pl_exchange *x) { return x->levels.column == 0; }

/* Values on two levels. false: not yet. */
static bool gather_on_node(struct pl_route *r, struct pl_flight *f)
{
    struct pl_exchange *x = r->exchange;
    if (!is_first_of_node(x)) {
        if (!pl_node_result(x->shared, f->what.number, f->what.values, (int)f->what.n))
            return false;
        f->stage = PL_WHOLE;
        return true;
    }
    if (!pl_node_reduce(x->shared, f->what.number, f->what.op, said(r, f), (int)f->what.n))
        return false;
    f->in = said(r, f);
    f->out = sum(r, f);
    f->n = f->what.n;
    return true;
}

/* PL_POSTED -> PL_ON_NODE, or PL_WHOLE. */
bool pl_flight_prepare(struct pl_route *r, struct pl_flight *f)
{
    struct pl_exchange *x = r->exchange;
    f->stage = PL_ON_NODE;
    if (x->shared) {
        bool ready = f->what.kind == PL_BUCKET ? add_on_node(r, f) : gather_on_node(r, f);
        if (!ready)
            f->stage = PL_POSTED;
        return ready;
    }
    f->n = f->what.n;
    if (f->what.kind == PL_BUCKET) {
        f->at = f->what.a;
        f->residual = x->residual ? x->residual + f->at : NULL;
        f->in = x->gradient + f->what.a;
        f->out = x->sum + f->what.a;
    } else {
        memcpy(said(r, f), f->what.values, (size_t)f->n * sizeof *f->said);
        f->in = said(r, f);
        f->out = sum(r, f);
    }
    return true;
}

static pl_status start(struct pl_route *r, struct pl_flight *f, struct pl_reduction what)
{
    what.step = f->what.step < 0 ? 0 : (uint64_t)f->what.step;
    what.bucket = (uint32_t)(r->next_op % PL_CONTROL_BUCKET);
    pl_status s = pl_collectives_start(r->collectives, &what, &f->ticket);
    r->next_op += s == PL_OK;
    return s;
}

/* PL_ON_NODE -> PL_SCATTERING */
static pl_status scatter(struct pl_route *r, struct pl_flight *f)
{
    size_t slot;
    if (!pl_collectives_idle(r->collectives))
        return PL_END;
    PL_TRY(pl_compressed_pack(r->compressed, f->in, f->residual, f->n, &slot));
    f->stage = PL_SCATTERING;
    uint64_t others = (uint64_t)r->network.group.members - 1, plain = (uint64_t)f->n * sizeof(float) / (others + 1) * 2 * others;
    atomic_fetch_add(&r->saved, plain > 2 * others * slot ? plain - 2 * others * slot : 0);
    return start(r, f, (struct pl_reduction){.pattern = PL_SCATTER, .bytes = true, .in = pl_compressed_sent(r->compressed),
                                             .out = pl_compressed_received(r->compressed), .n = (int64_t)slot * r->network.group.members});
}

/* PL_SCATTERING -> PL_ON_NETWORK. No other has begun in between. */
static pl_status gather(struct pl_route *r, struct pl_flight *f)
{
    size_t slot = pl_compressed_slot(r->compressed);
    if (!pl_collectives_done(r->collectives, f->ticket))
        return PL_END;
    PL_TRY(pl_compressed_sum(r->compressed, f->in, f->residual, f->n, f->out));
    f->stage = PL_ON_NETWORK;
    return start(r, f, (struct pl_reduction){.pattern = PL_GATHER, .bytes = true, .in = pl_compressed_sent(r->compressed),
                                             .out = pl_compressed_received(r->compressed), .n = (int64_t)slot * r->network.group.members});
}

/* PL_ON_NODE -> PL_ON_NETWORK. PL_END: those under way come first. */
pl_status pl_flight_begin(struct pl_route *r, struct pl_flight *f)
{
    size_t bytes = (size_t)f->n * (f->what.op == PL_SUM_F32 ? sizeof(float) : sizeof(double));
    enum pl_pattern pattern;
    pl_status s;
    if (f->stage == PL_SCATTERING)
        return gather(r, f);
    if (pl_fault("exchange.start", f->what.step))
        return pl_error(PL_ERR_PEER, "exchange", "debug.fault at exchange.start");
    f->compressed = r->compressed && f->what.kind == PL_BUCKET && !f->what.exact;
    f->by_library = !f->compressed && !pl_choose_pattern(&r->exchange->choice, bytes, &pattern);
    if (f->compressed)
        return scatter(r, f);
    if (f->by_library)
        s = r->network.table->post_allreduce(r->network.transport, f->what.op, f->in, f->out, f->n, &f->request);
    else
        s = start(r, f, (struct pl_reduction){.pattern = pattern, .op = f->what.op, .in = f->in, .out = f->out, .n = f->n});
    f->stage = s == PL_OK ? PL_ON_NETWORK : f->stage;
    return s;
}

/* A codec that knows no tensors leaves something in the gaps between them. */
static void clear_gaps(const struct pl_exchange *x, const struct pl_flight *f)
{
    float *out = f->out;
    for (int i = 0; i < x->options.gaps; i++) {
        int64_t a = x->gap[i].a > f->at ? x->gap[i].a : f->at, b = x->gap[i].b < f->at + f->n ? x->gap[i].b : f->at + f->n;
        if (a >= b)
            continue;
        memset(out + a - f->at, 0, (size_t)(b - a) * sizeof *out);
        memset(f->residual + a - f->at, 0, (size_t)(b - a) * sizeof *out);
    }
}

static pl_status unpack(struct pl_route *r, struct pl_flight *f)
{
    PL_TRY(pl_compressed_unpack(r->compressed, f->n, f->out));
    clear_gaps(r->exchange, f);
    return PL_OK;
}

/* PL_ON_NETWORK -> PL_WHOLE */
pl_status pl_flight_test(struct pl_route *r, struct pl_flight *f)
{
    bool done = false;
    if (f->by_library)
        PL_TRY(r->network.table->test(r->network.transport, &f->request, &done));
    else
        done = pl_collectives_done(r->collectives, f->ticket);
    if (done && f->compressed)
        PL_TRY(unpack(r, f));
    if (done)
        f->stage = PL_WHOLE;
    return PL_OK;
}

void pl_flight_finish(struct pl_route *r, struct pl_flight *f)
{
    struct pl_exchange *x = r->exchange;
    pl_trace_end_beside(f->traced, "network", f->what.kind == PL_BUCKET ? "a bucket" : "values", (int64_t)f->what.number);
    if (x->shared && f->what.kind == PL_BUCKET)
        pl_node_done(x->shared);
    if (f->what.kind == PL_BUCKET || (x->shared && !is_first_of_node(x)))
        return;
    memcpy(f->what.values, sum(r, f), (size_t)f->what.n * sizeof *f->sum);
    if (x->shared)
        pl_node_publish(x->shared, f->what.number, sum(r, f), (int)f->what.n);
}
