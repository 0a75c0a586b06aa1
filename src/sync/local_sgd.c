/* Local SGD: every rank makes sync.tau steps by its own gradient, then the parameters are averaged over the ranks
 * (Moritz et al., SparkNet, ICLR 2016; Stich, Local SGD converges fast and communicates little, ICLR 2019), by choice
 * the optimizer's state too (Yu et al., On the linear speedup of momentum SGD, ICML 2019).
 *
 * The average is over samples: w = w0 + sum(n_r (w_r - w0)) / sum(n_r), with w0 what all started from and n_r the
 * samples that rank r has seen since. So one local step by plain SGD is synchronous SGD whatever the shares. What is
 * exchanged are differences, which are small: it rounds like a sum of gradients. Running statistics are parameters.
 * Averagings fall on the steps that tau divides, so that a run that goes on keeps their places, and on the last.
 *
 * The exchange's slab holds the gradient between averagings and the differences at one: the update is over by then. */
#include "sync/counts.h"

#include <string.h>

#define BLOCK 262144 /* elements filled in before they are handed over: what is on the wire by then goes on */
#define GRAIN 16384
#define MOST_SLABS 3

struct pl_sync {
    struct pl_replica replica;
    struct pl_exchange *exchange;
    int64_t step, elems;             /* elems: of each slab */
    int slabs;                       /* parameters and, if it is averaged, the optimizer's state */
    float *start[MOST_SLABS];        /* [elems] each: as the last averaging left them */
    double counts[PL_COUNTS], rows;  /* rows: of this step */
    int64_t steps;                   /* since the last averaging */
};

/* ---- set-up ------------------------------------------------------------------------------------- */

static int local_slabs(const struct pl_replica *r)
{
    return 1 + (r->job->sync.average_momentum ? pl_optimizer_slots(r->optimizer) : 0);
}

static void local_destroy(struct pl_sync *s)
{
    if (!s)
        return;
    for (int i = 0; i < MOST_SLABS; i++)
        pl_free(s->start[i]);
    pl_free(s);
}

static pl_status local_create(const struct pl_replica *r, struct pl_exchange *x, struct pl_sync **out)
{
    struct pl_sync *s = pl_alloc(sizeof *s, "sync");
    if (!s)
        return PL_ERR_MEMORY;
    *s = (struct pl_sync){.replica = *r, .exchange = x, .elems = pl_graph_elems(r->graph), .slabs = local_slabs(r)};
    for (int i = 0; i < s->slabs; i++)
        if (!(s->start[i] = pl_alloc((size_t)s->elems * sizeof(float), "parameters as they were averaged"))) {
            local_destroy(s);
            return PL_ERR_MEMORY;
        }
    *out = s;
    return PL_OK;
}

static float *slab_of(struct pl_sync *s, int i)
{
    return i == 0 ? pl_graph_params(s->replica.graph) : pl_optimizer_slot(s->replica.optimizer, i - 1);
}

/* ---- a local step ------------------------------------------------------------------------------- */

static pl_status local_begin(struct pl_sync *s, int64_t step)
{
    s->step = step;
    if (s->steps > 0)
        return PL_OK;
    for (int i = 0; i < s->slabs; i++)
        memcpy(s->start[i], slab_of(s, i), (size_t)s->elems * sizeof(float));
    memset(s->counts, 0, sizeof s->counts);
    return PL_OK;
}

static pl_status local_contribute(struct pl_sync *s, const struct pl_contribution *mine)
{
    pl_counts_add(s->counts, mine);
    s->rows = mine->rows;
    return PL_OK;
}

static pl_status local_finish(struct pl_sync *s, struct pl_agreement *out)
{
    *out = (struct pl_agreement){.sum = pl_exchange_gradient(s->exchange), .rows = s->rows};
    s->steps++;
    return PL_OK;
}

/* ---- averaging ---------------------------------------------------------------------------------- */

struct pass { const float *in, *start; float *out; float samples; };

static void weigh(void *arg, int64_t begin, int64_t end)
{
    const struct pass *p = arg;
    for (int64_t i = begin; i < end; i++)
        p->out[i] = p->samples * (p->in[i] - p->start[i]);
}

static void divide(void *arg, int64_t begin, int64_t end)
{
    const struct pass *p = arg;
    for (int64_t i = begin; i < end; i++)
        p->out[i] = p->start[i] + p->in[i] / p->samples;
}

/* Slabs one behind the other, from the far end. */
static pl_status hand_over(struct pl_sync *s, float samples)
{
    float *to = pl_exchange_gradient(s->exchange);
    for (int i = s->slabs - 1; i >= 0; i--)
        for (int64_t b = s->elems, a; b > 0; b = a) {
            a = b > BLOCK ? b - BLOCK : 0;
            int64_t at = i * s->elems + a;
            struct pass p = {slab_of(s, i) + a, s->start[i] + a, to + at, samples};
            pl_parallel_for(b - a, GRAIN, weigh, &p);
            PL_TRY(pl_exchange_ready(s->exchange, at, at + b - a));
        }
    return PL_OK;
}

static void take_over(struct pl_sync *s, float samples)
{
    for (int i = 0; i < s->slabs; i++) {
        struct pass p = {pl_exchange_agreed(s->exchange) + i * s->elems, s->start[i], slab_of(s, i), samples};
        pl_parallel_for(s->elems, GRAIN, divide, &p);
    }
}

static pl_status local_average(struct pl_sync *s, bool last, struct pl_agreement *out)
{
    if ((s->step + 1) % s->replica.job->sync.tau != 0 && !last)
        return PL_OK;
    double begin = pl_now_ms(), rows = s->counts[PL_COUNT_ROWS];
    PL_TRY(pl_exchange_begin(s->exchange, s->step));
    PL_TRY(pl_exchange_post_sum(s->exchange, s->counts, PL_COUNTS));
    PL_TRY(hand_over(s, (float)rows));
    *out = (struct pl_agreement){.steps = s->steps};
    PL_TRY(pl_exchange_finish(s->exchange, &out->times));
    pl_counts_read(s->counts, out);
    take_over(s, (float)out->rows);
    out->times.exposed_ms = pl_now_ms() - begin; /* nothing of it is hidden */
    out->times.within_ms = 0;
    s->steps = 0;
    return PL_OK;
}

const struct pl_sync_table pl_sync_local_sgd = {
    .name = "local_sgd",
    .slabs = local_slabs,
    .create = local_create,
    .destroy = local_destroy,
    .begin = local_begin,
    .contribute = local_contribute,
    .finish = local_finish,
    .average = local_average,
};
