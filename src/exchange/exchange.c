/* The main thread's half of the exchange: how to add up is chosen, slices become buckets.
 * A bucket is a range of the gradient slab of about bucket_bytes, closed as backward hands over
 * slices from the far end (Li et al., PyTorch Distributed, VLDB 2020, section 3.2.3). */
#include "exchange/exchange_internal.h"

#include <string.h>

/* ---- choice ------------------------------------------------------------------------------------- */

static pl_status open_alone(struct pl_exchange *x)
{
    snprintf(x->why, sizeof x->why, "one rank, nothing to exchange");
    x->gradient = x->sum = x->own[0] = pl_alloc((size_t)x->elems * sizeof(float), "gradients");
    return pl_world_agree(x->world, x->gradient ? PL_OK : PL_ERR_MEMORY);
}

/* PL_END: not here, x->why says it. */
static pl_status open_shared(struct pl_exchange *x)
{
    const struct pl_world *w = x->world;
    struct pl_extent own[PL_OWN_EXTENTS];
    void *memory;
    if (!x->options.shared_memory || w->nodes > 1) {
        snprintf(x->why, sizeof x->why, "%s", w->nodes > 1 ? "several nodes" : "no shared memory by the job's choice");
        return PL_END;
    }
    size_t bytes = pl_exchange_shared_bytes(w->ranks, x->elems);
    pl_exchange_shared_extents(w->rank, w->ranks, x->elems, own);
    pl_status s = pl_exchange_map(x->world, bytes, own, &memory, x->why, sizeof x->why);
    if (s != PL_OK)
        return s;
    s = pl_exchange_shared_open(x, memory, w->rank, w->ranks);
    if (s < 0)
        pl_exchange_unmap(memory, bytes);
    else
        snprintf(x->why, sizeof x->why, "the %d ranks of this node add up in %.1f MB that they share", w->ranks, (double)bytes / 1e6);
    return pl_world_agree(x->world, s);
}

static pl_status open(struct pl_exchange *x)
{
    if (x->world->ranks == 1)
        return open_alone(x);
    pl_status s = open_shared(x);
    return s == PL_END ? pl_exchange_native_open(x) : s;
}

static struct pl_exchange *make(const struct pl_exchange_options *o, int64_t elems)
{
    struct pl_exchange *x = pl_alloc(sizeof *x, "exchange");
    if (!x)
        return NULL;
    x->options = *o;
    x->elems = elems;
    x->step = -1;
    x->transport = "none";
    return x;
}

pl_status pl_exchange_create(struct pl_world *w, const struct pl_exchange_options *o, int64_t elems, struct pl_exchange **out)
{
    struct pl_exchange *x = make(o, elems);
    PL_TRY(pl_world_agree(w, x ? PL_OK : PL_ERR_MEMORY));
    x->world = w;
    pl_status s = open(x);
    if (s < 0)
        pl_exchange_destroy(x);
    else
        *out = x;
    return s;
}

pl_status pl_exchange_create_in(void *memory, int rank, int ranks, const struct pl_exchange_options *o, int64_t elems,
                                struct pl_exchange **out)
{
    struct pl_exchange *x = make(o, elems);
    pl_status s = x ? pl_exchange_shared_open(x, memory, rank, ranks) : PL_ERR_MEMORY;
    if (s < 0)
        pl_exchange_destroy(x);
    else
        *out = x;
    return s;
}

void pl_exchange_destroy(struct pl_exchange *x)
{
    if (!x)
        return;
    if (x->algorithm)
        x->algorithm->close(x);
    pl_free(x->own[0]);
    pl_free(x->own[1]);
    pl_free(x);
}

const char *pl_exchange_transport(const struct pl_exchange *x) { return x->transport; }
const char *pl_exchange_algorithm(const struct pl_exchange *x) { return x->algorithm ? x->algorithm->name : "none"; }
const char *pl_exchange_why(const struct pl_exchange *x) { return x->why; }
float *pl_exchange_gradient(struct pl_exchange *x) { return x->gradient; }
const float *pl_exchange_agreed(const struct pl_exchange *x) { return x->sum; }

pl_status pl_exchange_timed_out(const struct pl_exchange *x, int64_t step, const char *missing)
{
    return pl_error(PL_ERR_PEER, "exchange",
                    "waited %.0f s for the ranks in step %lld; missing: rank %s\n"
                    "see that rank's log; exchange.timeout sets how long is waited",
                    x->options.timeout_ms / 1000, (long long)step,
                    missing[0] ? missing : "none, all ranks answer (is the network slow?)");
}

/* ---- a step ------------------------------------------------------------------------------------- */

pl_status pl_exchange_begin(struct pl_exchange *x, int64_t step)
{
    x->bucket_end = x->ready_from = x->elems;
    x->step = step;
    x->first_post_ms = x->within_ms = 0;
    return PL_OK;
}

static pl_status post_bucket(struct pl_exchange *x)
{
    int64_t a = x->ready_from, b = x->bucket_end;
    if (a == b)
        return PL_OK;
    x->bucket_end = a;
    if (x->first_post_ms == 0)
        x->first_post_ms = pl_now_ms();
    return x->algorithm->post_bucket(x, a, b);
}

pl_status pl_exchange_ready(struct pl_exchange *x, int64_t a, int64_t b)
{
    if (b != x->ready_from)
        return pl_error(PL_ERR_USAGE, "exchange", "slice [%lld, %lld) leaves a gap before %lld",
                        (long long)a, (long long)b, (long long)x->ready_from);
    x->ready_from = a;
    if (!x->algorithm || (double)(x->bucket_end - a) * sizeof(float) < x->options.bucket_bytes)
        return PL_OK;
    double begin = pl_now_ms();
    pl_status s = post_bucket(x);
    x->within_ms += pl_now_ms() - begin;
    return s;
}

pl_status pl_exchange_finish(struct pl_exchange *x, struct pl_exchange_times *times)
{
    memset(times, 0, sizeof *times);
    if (!x->algorithm)
        return PL_OK;
    double begin = pl_now_ms();
    PL_TRY(post_bucket(x));
    PL_TRY(x->algorithm->drain(x));
    double end = pl_now_ms();
    times->exposed_ms = x->within_ms + end - begin;
    times->within_ms = x->within_ms;
    times->busy_ms = x->first_post_ms > 0 ? end - x->first_post_ms : 0;
    return PL_OK;
}

/* ---- small sums --------------------------------------------------------------------------------- */

pl_status pl_exchange_post_sum(struct pl_exchange *x, double *values, int n)
{
    return x->algorithm ? x->algorithm->post_values(x, PL_SUM_F64, values, n) : PL_OK;
}

static pl_status reduce_now(struct pl_exchange *x, enum pl_reduce op, double *values, int n)
{
    if (!x->algorithm)
        return PL_OK;
    PL_TRY(x->algorithm->post_values(x, op, values, n));
    return x->algorithm->drain(x);
}

pl_status pl_exchange_sum(struct pl_exchange *x, double *values, int n) { return reduce_now(x, PL_SUM_F64, values, n); }
pl_status pl_exchange_max(struct pl_exchange *x, double *values, int n) { return reduce_now(x, PL_MAX_F64, values, n); }
