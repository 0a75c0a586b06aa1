/* Synchronous SGD over all ranks: every gradient takes part, the sum is all-reduced bucket by bucket
 * while backward goes on. The counts travel as doubles beside the gradient. */
#include "sync/sync.h"

enum { ROWS, LOSS, TOTAL, CORRECT, CORRECT5, STOP, SAVE, NOT_FINITE, VALUES };

struct pl_sync {
    struct pl_exchange *exchange;
    double values[VALUES];
};

static pl_status allreduce_create(struct pl_exchange *x, struct pl_sync **out)
{
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
    s->values[ROWS] = mine->rows;
    s->values[LOSS] = mine->loss;
    s->values[TOTAL] = mine->total;
    s->values[CORRECT] = mine->correct;
    s->values[CORRECT5] = mine->correct5;
    s->values[STOP] = mine->stop ? 1 : 0;
    s->values[SAVE] = mine->save ? 1 : 0;
    s->values[NOT_FINITE] = mine->not_finite ? 1 : 0;
    return pl_exchange_post_sum(s->exchange, s->values, VALUES);
}

static pl_status allreduce_slice_final(struct pl_sync *s, int64_t a, int64_t b)
{
    return pl_exchange_ready(s->exchange, a, b);
}

static pl_status allreduce_finish(struct pl_sync *s, struct pl_agreement *out)
{
    *out = (struct pl_agreement){.sum = pl_exchange_agreed(s->exchange)};
    PL_TRY(pl_exchange_finish(s->exchange, &out->times));
    out->rows = s->values[ROWS];
    out->loss = s->values[LOSS];
    out->total = s->values[TOTAL];
    out->correct = s->values[CORRECT];
    out->correct5 = s->values[CORRECT5];
    out->stop = s->values[STOP] > 0;
    out->save = s->values[SAVE] > 0;
    out->not_finite = (int)s->values[NOT_FINITE];
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
