/* Evaluation: every sample of a set once over all ranks, means over the samples. */
#include "train/train.h"

pl_status pl_trainer_eval_loader(struct pl_trainer *t, struct pl_dataset *d, struct pl_loader **out)
{
    struct pl_loader_options o = {.global_batch = t->batch * t->world->ranks, .rank = t->world->rank,
                                  .ranks = t->world->ranks, .seed = (uint64_t)t->job->train.seed,
                                  .classes = pl_graph_classes(t->graph), .depth = 2, .threads = (int)t->job->data.threads};
    return pl_loader_create(d, &o, out);
}

static pl_status sum_up(struct pl_graph *graph, struct pl_loader *loader, struct pl_loss_sums *sums)
{
    struct pl_batch *b;
    pl_status s;
    PL_TRY(pl_graph_prepare(graph));
    PL_TRY(pl_loader_start(loader, 0, 0, true));
    while ((s = pl_loader_next(loader, &b)) == PL_OK) {
        struct pl_graph_batch in = {.rows = b->rows, .data = b->data, .label = b->label, .index = b->index};
        if (b->rows > 0)
            s = pl_graph_forward(graph, &in, false, sums);
        pl_loader_release(loader, b);
        PL_TRY(s);
    }
    return s < 0 ? s : PL_OK;
}

pl_status pl_trainer_evaluate(struct pl_trainer *t, struct pl_graph *graph, struct pl_loader *loader,
                              struct pl_evaluation *out)
{
    struct pl_loss_sums sums = {0};
    PL_TRY(sum_up(graph, loader, &sums));
    double v[4] = {(double)sums.rows, sums.loss, sums.correct, sums.correct5};
    PL_TRY(pl_exchange_sum(t->exchange, v, 4));
    *out = (struct pl_evaluation){.samples = (int64_t)v[0], .loss = v[1] / v[0], .accuracy = v[2] / v[0],
                                  .top5 = v[3] / v[0]};
    return PL_OK;
}
