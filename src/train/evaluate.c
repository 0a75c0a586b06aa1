/* Evaluation: every sample of a set once over all ranks, means over the samples. Each rank takes an equal share, or where
 * ranks may be late or lost, one part after the other as it is free. */
#include "train/train.h"

#include <math.h>
#include <string.h>

pl_status pl_trainer_eval_loader(struct pl_trainer *t, struct pl_dataset *d, struct pl_loader **out)
{
    bool parts = t->sync_table && t->sync_table->meshed;
    int ranks = parts ? 1 : t->peers->ranks;
    struct pl_loader_options o = {.global_batch = t->batch * ranks, .rank = parts ? 0 : t->peers->rank, .ranks = ranks, .seed = (uint64_t)t->job->train.seed,
                                  .classes = pl_graph_classes(t->graph), .entries = pl_graph_entries(t->graph), .labels_only = t->grid.stage > 0, .pixels = t->table->pixels != NULL, .depth = 2, .threads = (int)t->job->data.threads};
    return pl_loader_create(d, &o, out);
}

bool pl_trainer_takes_output(const struct pl_trainer *t) { return t->peers->rank == 0 && t->grid.part == 0 && pl_graph_makes_output(t->graph); }

/* What the network gives for this rank's rows of a batch, where this rank's layers make it. */
static pl_status forward_rows(struct pl_trainer *t, const struct pl_batch *b, size_t row, float *mine)
{
    struct pl_graph_batch in = {.rows = b->rows, .data = b->data, .pixels = b->pixels, .index = b->index};
    struct pl_loss_sums ignored = {0};
    if (b->rows == 0)
        return PL_OK;
    if (t->pipeline)
        return pl_pipeline_evaluate(t->pipeline, t->graph, &in, &ignored, mine);
    PL_TRY(pl_graph_forward(t->graph, &in, false, &ignored));
    const float *y = pl_graph_output(t->graph);
    if (!y)
        return PL_ERR_MEMORY;
    memcpy(mine, y, (size_t)b->rows * row * sizeof *y);
    return PL_OK;
}

struct outputs { size_t row; float *mine, *all; pl_output_fn *take; void *arg; }; /* [batch, row], [ranks, batch, row] */

/* Every rank's rows of the global batch at `begin`, in order. */
static pl_status collect(struct pl_trainer *t, struct pl_loader *loader, const struct outputs *o, int64_t begin)
{
    size_t each = (size_t)t->batch * o->row;
    int ranks = t->peers->ranks;
    pl_status s = PL_OK;
    if (t->grid.part > 0 || !pl_graph_makes_output(t->graph))
        return PL_OK;
    PL_TRY(pl_world_gather(t->peers, o->mine, each * sizeof *o->mine, o->all));
    for (int r = 0; s == PL_OK && r < ranks && t->peers->rank == 0; r++) {
        int64_t first, rows;
        pl_sampler_share(pl_loader_samples(loader), t->batch * ranks, begin, r, ranks, &first, &rows);
        if (rows > 0)
            s = o->take(o->arg, first, rows, o->all + (size_t)r * each);
    }
    return s;
}

/* A batch that is there, and is given back. What fails on this rank alone the others learn before the next one; but who has lost a
 * peer can tell them nothing. */
static pl_status through(struct pl_trainer *t, struct pl_loader *loader, const struct outputs *o, struct pl_batch *b)
{
    int64_t begin = b->begin;
    pl_status s = forward_rows(t, b, o->row, o->mine);
    pl_loader_release(loader, b);
    pl_status collected = s == PL_ERR_PEER ? s : collect(t, loader, o, begin);
    return s < 0 ? s : collected;
}

static pl_status predict_all(struct pl_trainer *t, struct pl_loader *loader, const struct outputs *o)
{
    pl_status mine = pl_graph_prepare(t->graph);
    if (mine == PL_OK)
        mine = pl_loader_start(loader, 0, 0, true);
    for (;;) {
        struct pl_batch *b = NULL;
        if (mine == PL_OK)
            mine = pl_loader_next(loader, &b);
        pl_status all = pl_world_agree(t->world, mine < 0 ? mine : PL_OK);
        if (b && all < 0)
            pl_loader_release(loader, b);
        if (all < 0 || mine == PL_END)
            return all; /* every rank has as many batches */
        mine = through(t, loader, o, b);
        if (mine == PL_ERR_PEER)
            return mine;
    }
}

pl_status pl_trainer_predict(struct pl_trainer *t, struct pl_loader *loader, pl_output_fn *take, void *arg)
{
    size_t row = (size_t)pl_shape_row_elems(pl_graph_output_shape(t->graph)), bytes = (size_t)t->batch * row * sizeof(float);
    struct outputs o = {.row = row, .mine = pl_alloc(bytes, "outputs"), .take = take, .arg = arg};
    bool takes = pl_trainer_takes_output(t);
    if (takes)
        o.all = pl_alloc_alone((size_t)t->peers->ranks * bytes, "the outputs of all ranks");
    pl_status s = pl_world_agree(t->world, o.mine && (o.all || !takes) ? PL_OK : PL_ERR_MEMORY);
    if (s == PL_OK)
        s = predict_all(t, loader, &o);
    pl_free(o.mine);
    pl_free(o.all);
    return s;
}

struct evaluation { struct pl_graph *graph; struct pl_pipeline *pipeline; struct pl_shards *shards; struct pl_loader *loader; int64_t samples, each; };

/* Samples [from, to) of each rank's global batches. */
static pl_status sum_up(const struct evaluation *e, int64_t from, int64_t to, struct pl_loss_sums *sums)
{
    struct pl_loader *loader = e->loader;
    struct pl_batch *b;
    pl_status s = PL_OK;
    PL_TRY(pl_loader_start(loader, 0, from, true));
    for (int64_t at = from; at < to && (s = pl_loader_next(loader, &b)) == PL_OK;) {
        struct pl_graph_batch in = {.rows = b->rows, .data = b->data, .pixels = b->pixels, .label = b->label, .index = b->index};
        at = b->end;
        if (b->rows > 0)
            s = e->shards ? pl_shards_evaluate(e->shards, e->graph, &in) : e->pipeline ? pl_pipeline_evaluate(e->pipeline, e->graph, &in, sums, NULL) : pl_graph_forward(e->graph, &in, false, sums);
        pl_loader_release(loader, b);
        PL_TRY(s);
    }
    return s < 0 ? s : PL_OK;
}

enum { ROWS, LOSS, CORRECT, CORRECT5, SUMS };

static pl_status run_part(void *arg, int part, double *v)
{
    const struct evaluation *e = arg;
    int64_t from = part * e->each, to = from + e->each < e->samples ? from + e->each : e->samples;
    struct pl_loss_sums sums = {0};
    PL_TRY(sum_up(e, from, to, &sums));
    if (e->shards)
        pl_shards_sum(e->shards, &sums);
    v[ROWS] = (double)sums.rows;
    v[LOSS] = sums.loss;
    v[CORRECT] = sums.correct;
    v[CORRECT5] = sums.correct5;
    return PL_OK;
}

/* A few for each rank, so that one that is slow holds nobody up. */
static pl_status share_out(struct pl_trainer *t, struct evaluation *e, double *v)
{
    int64_t batches = (e->samples + t->batch - 1) / t->batch, parts = 4 * t->world->ranks;
    parts = parts < batches ? parts : batches;
    e->each = (batches + parts - 1) / parts * t->batch;
    struct pl_parts p = {.id = t->state.step + 1, .step = t->state.step, .parts = (int)((e->samples + e->each - 1) / e->each),
                         .values = SUMS, .run = run_part, .arg = e};
    return t->sync_table->meshed->share_out(t->sync, &p, v);
}

pl_status pl_trainer_evaluate(struct pl_trainer *t, struct pl_graph *graph, struct pl_loader *loader,
                              struct pl_evaluation *out)
{
    double v[SUMS] = {0};
    struct evaluation e = {graph, t->pipeline, t->shards, loader, INT64_MAX, INT64_MAX};
    PL_TRY(pl_graph_prepare(graph));
    if (t->sync_table && t->sync_table->meshed) {
        e.samples = pl_loader_samples(loader);
        PL_TRY(share_out(t, &e, v));
    } else {
        PL_TRY(run_part(&e, 0, v));
        for (int i = 0; t->grid.part > 0 && i < SUMS; i++)
            v[i] = 0; /* the first part speaks for all */
        PL_TRY(pl_trainer_sum(t, v, SUMS));
    }
    if (isnan(v[ROWS]))
        return PL_END;
    *out = (struct pl_evaluation){.samples = (int64_t)v[ROWS], .loss = v[LOSS] / v[ROWS], .accuracy = v[CORRECT] / v[ROWS],
                                  .top5 = v[CORRECT5] / v[ROWS]};
    return PL_OK;
}
