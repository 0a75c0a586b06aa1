/* Evaluation: every sample of a set once over all ranks, means over the samples. Each rank takes an equal share, or where
 * ranks may be late or lost, one part after the other as it is free. */
#include "train/train.h"

#include <math.h>

pl_status pl_trainer_eval_loader(struct pl_trainer *t, struct pl_dataset *d, struct pl_loader **out)
{
    bool parts = t->sync_table && t->sync_table->meshed;
    int ranks = parts ? 1 : t->peers->ranks;
    struct pl_loader_options o = {.global_batch = t->batch * ranks, .rank = parts ? 0 : t->peers->rank, .ranks = ranks, .seed = (uint64_t)t->job->train.seed,
                                  .classes = pl_graph_classes(t->graph), .labels_only = t->grid.stage > 0, .pixels = t->table->pixels != NULL, .depth = 2, .threads = (int)t->job->data.threads};
    return pl_loader_create(d, &o, out);
}

pl_status pl_trainer_predict(struct pl_trainer *t, struct pl_loader *loader, pl_output_fn *take, void *arg)
{
    struct pl_loss_sums ignored = {0};
    struct pl_batch *b;
    int64_t first = 0;
    pl_status s;
    PL_TRY(pl_graph_prepare(t->graph));
    PL_TRY(pl_loader_start(loader, 0, 0, true));
    while ((s = pl_loader_next(loader, &b)) == PL_OK) {
        struct pl_graph_batch in = {.rows = b->rows, .data = b->data, .pixels = b->pixels, .index = b->index};
        int64_t rows = b->rows;
        s = pl_graph_forward(t->graph, &in, false, &ignored);
        pl_loader_release(loader, b);
        PL_TRY(s);
        const float *y = pl_graph_output(t->graph);
        PL_TRY(y ? take(arg, first, rows, y) : PL_ERR_MEMORY);
        first += rows;
    }
    return s < 0 ? s : PL_OK;
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
            s = e->shards ? pl_shards_evaluate(e->shards, e->graph, &in) : e->pipeline ? pl_pipeline_evaluate(e->pipeline, e->graph, &in, sums) : pl_graph_forward(e->graph, &in, false, sums);
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
    struct pl_parts p = {.id = t->state.step + 1, .parts = (int)((e->samples + e->each - 1) / e->each), .values = SUMS, .run = run_part, .arg = e};
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
