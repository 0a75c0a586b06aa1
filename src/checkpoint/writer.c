/* The background writer: takes a copy of the slabs between two steps and writes it in a thread of its own,
 * one checkpoint at a time. */
#include "checkpoint/files.h"

#include <string.h>

struct pl_checkpoint_writer {
    const char *dir;
    struct pl_checkpoint_source source; /* of what is below */
    size_t bytes;
    float *params, *slot[2];
    struct pl_run_state state;
    pthread_t thread;
    bool running;
    atomic_bool writing;
    pl_status result;
};

pl_status pl_checkpoint_writer_create(const char *dir, const struct pl_checkpoint_source *what, struct pl_checkpoint_writer **out)
{
    struct pl_checkpoint_writer *w = pl_alloc(sizeof *w, "the checkpoint writer");
    if (!w)
        return PL_ERR_MEMORY;
    *w = (struct pl_checkpoint_writer){.dir = dir, .source = *what};
    w->bytes = what->split ? 0 : (size_t)pl_graph_elems(what->graph) * sizeof(float); /* stages have been written */
    w->params = pl_alloc_alone(w->bytes, "a checkpoint's copy");
    bool fine = w->params != NULL;
    for (int i = 0; fine && i < pl_optimizer_slots(what->optimizer); i++)
        fine = (w->slot[i] = pl_alloc_alone(w->bytes, "a checkpoint's copy")) != NULL;
    if (!fine) {
        pl_checkpoint_writer_destroy(w);
        return PL_ERR_MEMORY;
    }
    *out = w;
    return PL_OK;
}

static void *run(void *arg)
{
    struct pl_checkpoint_writer *w = arg;
    const float *slots[2] = {w->slot[0], w->slot[1]};
    struct pl_checkpoint_source src = w->source;
    src.params = w->params;
    src.slot = slots;
    src.state = &w->state;
    double traced = pl_trace_begin();
    w->result = pl_checkpoint_save(w->dir, &src);
    pl_trace_end(traced, "run", "write a checkpoint", w->state.step);
    atomic_store(&w->writing, false);
    return NULL;
}

bool pl_checkpoint_writer_busy(const struct pl_checkpoint_writer *w) { return atomic_load(&w->writing); }

pl_status pl_checkpoint_writer_finish(struct pl_checkpoint_writer *w)
{
    if (!w->running)
        return PL_OK;
    pthread_join(w->thread, NULL);
    w->running = false;
    return w->result;
}

pl_status pl_checkpoint_writer_save(struct pl_checkpoint_writer *w, const float *params, const struct pl_run_state *state)
{
    PL_TRY(pl_checkpoint_writer_finish(w));
    memcpy(w->params, params, w->bytes);
    for (int i = 0; i < pl_optimizer_slots(w->source.optimizer); i++)
        memcpy(w->slot[i], pl_optimizer_slot((struct pl_optimizer *)w->source.optimizer, i), w->bytes);
    w->state = *state;
    atomic_store(&w->writing, true);
    PL_TRY(pl_thread_start(&w->thread, "checkpoint", run, w));
    w->running = true;
    return w->source.job->checkpoint.background ? PL_OK : pl_checkpoint_writer_finish(w);
}

void pl_checkpoint_writer_destroy(struct pl_checkpoint_writer *w)
{
    if (!w)
        return;
    pl_checkpoint_writer_finish(w);
    pl_free(w->params);
    pl_free(w->slot[0]);
    pl_free(w->slot[1]);
    pl_free(w);
}
