/* debug.compute_ms and debug.delay: trials of stragglers on a machine that has none of its own. Sleeping ranks do not
 * compete for cores, so that a few cores hold many ranks. A delay is a function of seed, rank and step alone: the same
 * in every run and after every resume. The heavy tails that clusters show are Pareto's (Dean and Barroso, The Tail at
 * Scale, CACM 2013); exponential is what Chen et al., Revisiting Distributed Synchronous SGD, 2016, compare with. */
#include "train/train.h"

#include <math.h>
#include <string.h>

#define DELAY_STREAM 0xD31A7u /* apart from the streams of layers and data */
#define POLL_MS 0.5
#define MOST_MS 1e6

double pl_trial_delay_ms(const struct pl_job *job, int rank, int64_t step)
{
    const struct pl_ints *only = &job->debug.delay.rank;
    bool mine = only->n == 0;
    double ms = job->debug.delay.ms;
    for (int i = 0; i < only->n; i++)
        mine |= only->v[i] == rank;
    if (!mine || ms <= 0)
        return 0;
    struct pl_rng r = pl_rng_make((uint64_t)job->train.seed, (uint64_t)rank + 1, (uint64_t)step, DELAY_STREAM);
    if (pl_rng_uniform(&r) >= job->debug.delay.probability)
        return 0;
    double u = 1 - pl_rng_uniform(&r); /* (0, 1] */
    switch (job->debug.delay.distribution) {
    case PL_DELAY_EXPONENTIAL: ms *= -log(u); break;
    case PL_DELAY_PARETO: ms *= pow(u, -1 / job->debug.delay.shape); break;
    }
    return fmin(ms, MOST_MS);
}

pl_status pl_trial_sleep(double ms, pl_abandon_fn *abandon, void *arg)
{
    double now = pl_now_ms(), end = now + ms;
    for (; now < end; now = pl_now_ms()) {
        if (abandon && abandon(arg))
            return PL_END;
        pl_sleep_until_ms(abandon ? fmin(now + POLL_MS, end) : end);
    }
    return PL_OK;
}

pl_status pl_trial_forward(const struct pl_graph_batch *b, struct pl_loss_sums *sums)
{
    sums->rows += b->rows;
    sums->loss += (double)b->rows;
    sums->total += (double)b->rows;
    return PL_OK;
}

/* By layers, as backward does, so that the exchange sees the same buckets. */
pl_status pl_trial_backward(struct pl_graph *g, pl_slice_fn *slice, void *arg)
{
    const struct pl_layer *l;
    int64_t end = pl_graph_elems(g);
    if (pl_graph_grads(g)) /* otherwise they stay on the device, and stay 0 */
        memset(pl_graph_grads(g), 0, (size_t)end * sizeof(float));
    for (int i = pl_graph_layers(g, &l) - 1; i >= 0; i--) {
        if (l[i].params == 0 || !slice)
            continue;
        pl_status s = slice(arg, l[i].param[0].offset, end);
        if (s != PL_OK)
            return s;
        end = l[i].param[0].offset;
    }
    return PL_OK;
}

pl_status pl_trial_check(const struct pl_job *job, int ranks)
{
    const struct pl_ints *only = &job->debug.delay.rank;
    for (int i = 0; i < only->n; i++)
        if (only->v[i] >= ranks)
            return pl_error(PL_ERR_USAGE, "job", "debug.delay.rank %lld: there are ranks 0 to %d", (long long)only->v[i], ranks - 1);
    return PL_OK;
}

static void describe_ranks(const struct pl_ints *only, struct pl_text *out)
{
    if (only->n == 0)
        pl_text_add(out, "every rank");
    for (int i = 0; i < only->n; i++)
        pl_text_add(out, "%s%lld", i ? ", " : only->n == 1 ? "rank " : "ranks ", (long long)only->v[i]);
}

char *pl_trial_describe(const struct pl_job *job)
{
    static const char *const kinds[] = {"", "exponential, mean ", "pareto, at least "};
    struct pl_text t = {0};
    if (job->debug.compute_ms > 0)
        pl_text_add(&t, "debug.compute_ms: forward and backward are a sleep of %g ms, gradients are 0", job->debug.compute_ms);
    if (job->debug.delay.ms > 0) {
        pl_text_add(&t, "%sdebug.delay: ", t.s ? "; " : "");
        describe_ranks(&job->debug.delay.rank, &t);
        pl_text_add(&t, " held up in each step, %s%g ms", kinds[job->debug.delay.distribution], job->debug.delay.ms);
        if (job->debug.delay.distribution == PL_DELAY_PARETO)
            pl_text_add(&t, ", shape %g", job->debug.delay.shape);
        if (job->debug.delay.probability < 1)
            pl_text_add(&t, ", with probability %g", job->debug.delay.probability);
    }
    return t.s;
}
