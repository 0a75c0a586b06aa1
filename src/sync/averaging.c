/* Between two averagings: see averaging.h. */
#include "sync/averaging.h"

#include <string.h>

#define GRAIN 16384

int pl_averaging_slabs(const struct pl_replica *r)
{
    return 1 + (r->job->sync.average_momentum ? pl_optimizer_slots(r->optimizer) : 0);
}

pl_status pl_averaging_open(struct pl_averaging *a, const struct pl_replica *r)
{
    *a = (struct pl_averaging){.tau = r->job->sync.tau, .elems = pl_graph_elems(r->graph), .slabs = pl_averaging_slabs(r)};
    for (int i = 0; i < a->slabs; i++) {
        a->slab[i] = i == 0 ? pl_graph_params(r->graph) : pl_optimizer_slot(r->optimizer, i - 1);
        a->start[i] = pl_alloc((size_t)a->elems * sizeof(float), "parameters as they were averaged");
        if (!a->start[i])
            return PL_ERR_MEMORY;
    }
    return PL_OK;
}

void pl_averaging_close(struct pl_averaging *a)
{
    for (int i = 0; i < PL_AVERAGING_SLABS; i++)
        pl_free(a->start[i]);
}

/* ---- a local step ------------------------------------------------------------------------------- */

static void forget_steps(struct pl_averaging *a)
{
    a->steps = 0;
    a->rows = 0;
    memset(a->counts, 0, sizeof a->counts);
}

void pl_averaging_restart(struct pl_averaging *a)
{
    for (int i = 0; i < a->slabs; i++)
        memcpy(a->start[i], a->slab[i], (size_t)a->elems * sizeof(float));
    a->started = true;
    forget_steps(a);
}

void pl_averaging_go_back(struct pl_averaging *a)
{
    for (int i = 0; i < a->slabs && a->started; i++)
        memcpy(a->slab[i], a->start[i], (size_t)a->elems * sizeof(float));
    forget_steps(a);
}

void pl_averaging_begin(struct pl_averaging *a, int64_t step)
{
    a->step = step;
    if (!a->started)
        pl_averaging_restart(a);
}

void pl_averaging_count(struct pl_averaging *a, const struct pl_contribution *mine)
{
    pl_counts_add(a->counts, mine);
    a->rows = mine->rows;
}

bool pl_averaging_due(const struct pl_averaging *a, bool last) { return (a->step + 1) % a->tau == 0 || last; }

/* ---- the average -------------------------------------------------------------------------------- */

struct pass { const float *in; float *start, *out; float samples; };

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
        p->out[i] = p->start[i] = p->start[i] + p->in[i] / p->samples;
}

void pl_averaging_weigh(const struct pl_averaging *a, double samples, int i, int64_t from, int64_t to, float *out)
{
    struct pass p = {a->slab[i] + from, a->start[i] + from, out, (float)samples};
    pl_parallel_for(to - from, GRAIN, weigh, &p);
}

void pl_averaging_take(struct pl_averaging *a, const float *sum, double samples)
{
    if (samples <= 0) {
        pl_averaging_go_back(a);
        return;
    }
    for (int i = 0; i < a->slabs; i++) {
        struct pass p = {sum + i * a->elems, a->start[i], a->slab[i], (float)samples};
        pl_parallel_for(a->elems, GRAIN, divide, &p);
    }
    forget_steps(a);
}
