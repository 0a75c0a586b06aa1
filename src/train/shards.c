/* train.reproducible: the same bits on any number of ranks that is a power of two. A global batch is cut into train.micro_shards
 * parts, whoever computes them: each by itself, in plans of one size, which also fixes what batch normalisation sees, and their
 * gradients and losses are added up in one binary tree over the parts. A rank has neighbours in it, so it adds up a branch, and
 * the exchange the branches of the ranks, pairs first (halving and doubling, or a tree, in the order of the ranks). */
#include "train/train.h"

#include <string.h>

enum { MOST_LEVELS = 32, GRAIN = 16384 };

struct pl_shards {
    int parts;     /* of this rank, a power of two */
    int64_t rows;  /* of a part */
    const struct pl_job_input *input;
    int levels;    /* of slabs: log2 parts + 1 */
    float *slab[MOST_LEVELS];       /* slab[0]: where the whole is wanted; not owned */
    struct pl_loss_sums *sums;      /* [parts] */
};

pl_status pl_shards_create(const struct pl_trainer *t, struct pl_shards **out)
{
    const struct pl_job *job = t->job;
    int shards = (int)job->train.micro_shards, ranks = t->peers->ranks;
    if (shards % ranks != 0)
        return pl_error(PL_ERR_USAGE, "train", "train.reproducible on %d ranks: they do not divide train.micro_shards %d\nstart 1, 2, 4, ... of them", ranks, shards);
    struct pl_shards *s = pl_alloc(sizeof *s, "micro-shards");
    if (!s)
        return PL_ERR_MEMORY;
    *s = (struct pl_shards){.parts = shards / ranks, .rows = job->train.global_batch / shards, .input = &job->input};
    s->sums = pl_alloc((size_t)s->parts * sizeof *s->sums, "micro-shards");
    if (!s->sums) {
        pl_shards_destroy(s);
        return PL_ERR_MEMORY;
    }
    *out = s;
    return PL_OK;
}

pl_status pl_shards_take_gradient(struct pl_shards *s, float *whole, int64_t elems)
{
    s->slab[0] = whole;
    for (int n = s->parts, level = 1; n > 1; n /= 2, level++) {
        s->slab[level] = pl_alloc((size_t)elems * sizeof(float), "gradients of micro-shards");
        if (!s->slab[level])
            return PL_ERR_MEMORY;
    }
    return PL_OK;
}

void pl_shards_destroy(struct pl_shards *s)
{
    if (!s)
        return;
    for (int level = 1; level < MOST_LEVELS; level++)
        pl_free(s->slab[level]);
    pl_free(s->sums);
    pl_free(s);
}

/* ---- the tree ---------------------------------------------------------------------------------------- */

struct sum { float *to; const float *from; };

static void add_range(void *arg, int64_t begin, int64_t end)
{
    const struct sum *s = arg;
    float *restrict to = s->to;
    const float *restrict from = s->from;
    for (int64_t i = begin; i < end; i++)
        to[i] += from[i];
}

/* Part i has been written behind `depth` branches that are complete in themselves: joins those of equal size. */
static void join_branches(struct pl_shards *s, int i, int *depth, int64_t elems)
{
    for (int size = i; size & 1; size >>= 1, --*depth) {
        struct sum sum = {s->slab[*depth - 1], s->slab[*depth]};
        pl_parallel_for(elems, GRAIN, add_range, &sum);
    }
    ++*depth;
}

static void add_sums(struct pl_loss_sums *to, const struct pl_loss_sums *from)
{
    to->rows += from->rows;
    to->loss += from->loss;
    to->total += from->total;
    to->correct += from->correct;
    to->correct5 += from->correct5;
}

void pl_shards_sum(struct pl_shards *s, struct pl_loss_sums *out)
{
    for (int apart = 1; apart < s->parts; apart *= 2)
        for (int i = 0; i + apart < s->parts; i += 2 * apart)
            add_sums(&s->sums[i], &s->sums[i + apart]);
    *out = s->sums[0];
    memset(s->sums, 0, (size_t)s->parts * sizeof *s->sums);
}

/* ---- passes ------------------------------------------------------------------------------------------ */

static struct pl_graph_batch part_of(const struct pl_shards *s, const struct pl_graph_batch *b, int i)
{
    int64_t first = i * s->rows, left = b->rows - first;
    return pl_graph_batch_part(s->input, b, first, left < 0 ? 0 : left < s->rows ? left : s->rows);
}

pl_status pl_shards_pass(struct pl_shards *s, struct pl_graph *g, const struct pl_graph_batch *b, struct pl_loss_sums *sums, pl_slice_fn *slice, void *arg)
{
    int depth = 0;
    bool alone = s->parts == 1; /* then slices are final as they come */
    for (int i = 0; i < s->parts; i++) {
        struct pl_graph_batch in = part_of(s, b, i);
        pl_graph_set_grads(g, s->slab[depth]);
        PL_TRY(pl_graph_forward(g, &in, true, &s->sums[i]));
        pl_status r = pl_graph_backward(g, &in, false, alone ? slice : NULL, arg);
        if (r != PL_OK)
            return r;
        join_branches(s, i, &depth, pl_graph_elems(g));
    }
    pl_shards_sum(s, sums);
    return alone || !slice ? PL_OK : slice(arg, 0, pl_graph_elems(g));
}

pl_status pl_shards_evaluate(struct pl_shards *s, struct pl_graph *g, const struct pl_graph_batch *b)
{
    for (int i = 0; i < s->parts; i++) {
        struct pl_graph_batch in = part_of(s, b, i);
        if (in.rows > 0)
            PL_TRY(pl_graph_forward(g, &in, false, &s->sums[i]));
    }
    return PL_OK;
}
