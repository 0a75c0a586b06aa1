/* Synchronous SGD over all ranks: every gradient takes part, the sum is all-reduced bucket by bucket
 * while backward goes on. The counts travel as doubles beside the gradient. */
#include "sync/counts.h"

struct pl_sync {
    struct pl_exchange *exchange;
    double counts[PL_COUNTS];
};

static pl_status allreduce_create(const struct pl_replica *r, struct pl_exchange *x, struct pl_sync **out)
{
    (void)r;
    *out = pl_alloc(sizeof **out, "sync");
    if (!*out)
        return PL_ERR_MEMORY;
    (*out)->exchange = x;
    return PL_OK;
}

static void allreduce_destroy(struct pl_sync *s) { pl_free(s); }

static pl_status allreduce_begin(struct pl_sync *s, int64_t step) { return pl_exchange_begin(s->exchange, step); }

static pl_status allreduce_contribute(struct pl_sync *s, const struct pl_contribution *mine)
{
    for (int i = 0; i < PL_COUNTS; i++)
        s->counts[i] = 0;
    pl_counts_add(s->counts, mine);
    return pl_exchange_post_sum(s->exchange, s->counts, PL_COUNTS);
}

static pl_status allreduce_slice_final(struct pl_sync *s, int64_t a, int64_t b)
{
    return pl_exchange_ready(s->exchange, a, b);
}

static pl_status allreduce_finish(struct pl_sync *s, struct pl_agreement *out)
{
    *out = (struct pl_agreement){.sum = pl_exchange_agreed(s->exchange), .steps = 1};
    PL_TRY(pl_exchange_finish(s->exchange, &out->times));
    pl_counts_read(s->counts, out);
    return PL_OK;
}

const struct pl_sync_table pl_sync_allreduce = {
    .name = "allreduce",
    .create = allreduce_create,
    .destroy = allreduce_destroy,
    .begin = allreduce_begin,
    .contribute = allreduce_contribute,
    .slice_final = allreduce_slice_final,
    .finish = allreduce_finish,
};
