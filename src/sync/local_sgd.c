/* Local SGD: every rank makes sync.tau steps by its own gradient, then the parameters are averaged over the ranks
 * (Moritz et al., SparkNet, ICLR 2016; Stich, Local SGD converges fast and communicates little, ICLR 2019), by choice
 * the optimizer's state too (Yu et al., On the linear speedup of momentum SGD, ICML 2019). All ranks take part; with
 * backup workers it is quorum.c that exchanges.
 *
 * The exchange's slab holds the gradient between averagings and the differences at one: the update is over by then. */
#include "sync/averaging.h"

#define BLOCK 262144 /* elements filled in before they are handed over: what is on the wire by then goes on */

struct pl_sync {
    struct pl_exchange *exchange;
    struct pl_averaging average;
};

static void local_destroy(struct pl_sync *s)
{
    pl_averaging_close(&s->average);
    pl_free(s);
}

static pl_status local_create(const struct pl_replica *r, struct pl_exchange *x, struct pl_sync **out)
{
    struct pl_sync *s = pl_alloc(sizeof *s, "sync");
    if (!s)
        return PL_ERR_MEMORY;
    s->exchange = x;
    pl_status status = pl_averaging_open(&s->average, r);
    if (status < 0)
        local_destroy(s);
    else
        *out = s;
    return status;
}

/* ---- a local step ------------------------------------------------------------------------------- */

static pl_status local_begin(struct pl_sync *s, int64_t step)
{
    pl_averaging_begin(&s->average, step);
    return PL_OK;
}

static pl_status local_contribute(struct pl_sync *s, const struct pl_contribution *mine)
{
    pl_averaging_count(&s->average, mine);
    return PL_OK;
}

static pl_status local_finish(struct pl_sync *s, struct pl_agreement *out)
{
    *out = (struct pl_agreement){.sum = pl_exchange_gradient(s->exchange), .rows = s->average.rows};
    s->average.steps++;
    return PL_OK;
}

/* ---- averaging ---------------------------------------------------------------------------------- */

/* Slabs one behind the other, from the far end. */
static pl_status hand_over(struct pl_sync *s, double samples)
{
    const struct pl_averaging *v = &s->average;
    float *to = pl_exchange_gradient(s->exchange);
    for (int i = v->slabs - 1; i >= 0; i--)
        for (int64_t b = v->elems, a; b > 0; b = a) {
            a = b > BLOCK ? b - BLOCK : 0;
            int64_t at = i * v->elems + a;
            pl_averaging_weigh(v, samples, i, a, b, to + at);
            PL_TRY(pl_exchange_ready(s->exchange, at, at + b - a));
        }
    return PL_OK;
}

static pl_status local_average(struct pl_sync *s, bool last, struct pl_agreement *out)
{
    struct pl_averaging *v = &s->average;
    if (!pl_averaging_due(v, last))
        return PL_OK;
    double begin = pl_now_ms(), samples = v->counts[PL_COUNT_ROWS]; /* the counts are summed in place, while it goes on here */
    PL_TRY(pl_exchange_begin(s->exchange, v->step));
    PL_TRY(pl_exchange_post_sum(s->exchange, v->counts, PL_COUNTS));
    PL_TRY(hand_over(s, samples));
    *out = (struct pl_agreement){.steps = v->steps};
    PL_TRY(pl_exchange_finish(s->exchange, &out->times));
    pl_counts_read(v->counts, out);
    pl_averaging_take(v, pl_exchange_agreed(s->exchange), out->rows);
    out->times.exposed_ms = pl_now_ms() - begin; /* nothing of it is hidden */
    out->times.within_ms = 0;
    return PL_OK;
}

const struct pl_sync_table pl_sync_local_sgd = {
    .name = "local_sgd",
    .slabs = pl_averaging_slabs,
    .create = local_create,
    .destroy = local_destroy,
    .begin = local_begin,
    .contribute = local_contribute,
    .finish = local_finish,
    .average = local_average,
};
