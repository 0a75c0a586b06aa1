/* The main thread's half of the exchange: slices become buckets, requests go to the thread.
 * A bucket is a range of the gradient slab of about bucket_bytes, closed as backward hands over
 * slices from the far end (Li et al., PyTorch Distributed, VLDB 2020, section 3.2.3). */
#include "exchange/exchange_internal.h"

#include <string.h>

pl_status pl_exchange_create(struct pl_world *w, const struct pl_exchange_options *o,
                             struct pl_exchange **out)
{
    struct pl_exchange *x = pl_alloc(sizeof *x, "exchange");
    if (!x)
        return PL_ERR_MEMORY;
    x->world = w;
    x->options = *o;
    x->step = -1;
    snprintf(x->why, sizeof x->why, "one rank, nothing to exchange");
    pl_status s = PL_OK;
    if (w->ranks > 1) {
        s = pl_transport_find(w, o->transport, &x->table, x->why, sizeof x->why);
        if (s == PL_OK)
            s = x->table->open(w, &x->transport);
        if (s == PL_OK)
            s = pl_exchange_thread_start(x);
    }
    if (s < 0) {
        if (x->transport)
            x->table->close(x->transport);
        pl_free(x);
        return s;
    }
    *out = x;
    return PL_OK;
}

void pl_exchange_destroy(struct pl_exchange *x)
{
    if (!x)
        return;
    if (x->transport) {
        pl_exchange_thread_stop(x);
        if (x->failed == PL_OK) /* after an error a collective close could wait for a dead peer */
            x->table->close(x->transport);
    }
    pl_free(x);
}

const char *pl_exchange_transport(const struct pl_exchange *x) { return x->table ? x->table->name : "none"; }
const char *pl_exchange_algorithm(const struct pl_exchange *x) { return x->table ? "native" : "none"; }
const char *pl_exchange_why(const struct pl_exchange *x) { return x->why; }

pl_status pl_exchange_begin(struct pl_exchange *x, const float *mine, float *sum, int64_t elems,
                            int64_t step)
{
    x->mine = mine;
    x->sum = sum;
    x->bucket_end = x->ready_from = elems;
    x->step = step;
    x->total_ms = 0;
    x->first_post_ms = 0;
    return PL_OK;
}

static pl_status post_bucket(struct pl_exchange *x)
{
    int64_t a = x->ready_from, n = x->bucket_end - a;
    if (n == 0)
        return PL_OK;
    struct request r = {.what = REQUEST_SUM_F32, .in = x->mine + a, .out = x->sum + a, .n = n, .step = x->step};
    x->bucket_end = a;
    if (x->first_post_ms == 0)
        x->first_post_ms = pl_now_ms();
    return pl_exchange_post(x, &r);
}

pl_status pl_exchange_ready(struct pl_exchange *x, int64_t a, int64_t b)
{
    if (b != x->ready_from)
        return pl_error(PL_ERR_USAGE, "exchange", "slice [%lld, %lld) leaves a gap before %lld",
                        (long long)a, (long long)b, (long long)x->ready_from);
    x->ready_from = a;
    if (!x->transport)
        return PL_OK;
    double bytes = (double)(x->bucket_end - a) * sizeof(float);
    return bytes >= x->options.bucket_bytes ? post_bucket(x) : PL_OK;
}

pl_status pl_exchange_finish(struct pl_exchange *x, struct pl_exchange_times *times)
{
    memset(times, 0, sizeof *times);
    if (!x->transport) {
        if (x->sum != x->mine)
            memcpy(x->sum, x->mine, (size_t)x->bucket_end * sizeof(float));
        return PL_OK;
    }
    double begin = pl_now_ms();
    PL_TRY(post_bucket(x));
    PL_TRY(pl_exchange_drain(x));
    double end = pl_now_ms();
    times->exposed_ms = end - begin;
    times->total_ms = x->total_ms;
    times->busy_ms = x->first_post_ms > 0 ? end - x->first_post_ms : 0;
    return PL_OK;
}

static pl_status post_values(struct pl_exchange *x, enum request_kind what, double *values, int n)
{
    if (!x->transport)
        return PL_OK;
    struct request r = {.what = what, .in = values, .out = values, .n = n, .step = x->step};
    return pl_exchange_post(x, &r);
}

pl_status pl_exchange_post_sum(struct pl_exchange *x, double *values, int n)
{
    return post_values(x, REQUEST_SUM_F64, values, n);
}

pl_status pl_exchange_sum(struct pl_exchange *x, double *values, int n)
{
    PL_TRY(post_values(x, REQUEST_SUM_F64, values, n));
    return x->transport ? pl_exchange_drain(x) : PL_OK;
}

pl_status pl_exchange_max(struct pl_exchange *x, double *values, int n)
{
    PL_TRY(post_values(x, REQUEST_MAX_F64, values, n));
    return x->transport ? pl_exchange_drain(x) : PL_OK;
}
