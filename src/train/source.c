/* Where batches come from, and the one after the present one: taken early where the backend is far, so that it is sent there
 * while the present one is computed. */
#include "train/train.h"

void pl_trainer_attach(struct pl_trainer *t, const struct pl_source *s)
{
    t->source = *s;
    for (int i = 0; i < s->batches && t->table->ahead; i++)
        t->table->pin(t->backend, s->batch[i].memory, s->batch[i].memory_bytes);
}

void pl_trainer_detach(struct pl_trainer *t)
{
    if (!t->source.next)
        return;
    pl_train_give_early_back(t);
    for (int i = 0; i < t->source.batches && t->table->ahead; i++)
        t->table->unpin(t->backend, t->source.batch[i].memory);
    t->source = (struct pl_source){0};
}

pl_status pl_train_take_batch(struct pl_trainer *t, struct pl_batch **out)
{
    *out = t->early;
    t->early = NULL;
    return *out ? PL_OK : t->source.next(t->source.arg, out);
}

pl_status pl_train_look_ahead(struct pl_trainer *t)
{
    if (t->early || !t->source.next_ready || !t->table->ahead || t->job->debug.compute_ms > 0)
        return PL_OK;
    return t->source.next_ready(t->source.arg, &t->early);
}

pl_status pl_train_give_early_back(struct pl_trainer *t)
{
    pl_status s = pl_graph_drop_next(t->graph);
    if (t->early)
        t->source.release(t->source.arg, t->early);
    t->early = NULL;
    return s;
}
