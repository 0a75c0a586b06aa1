/* Where a run begins: at the newest checkpoint if there is one that fits, otherwise at new or given
 * weights. Everything that would make another run of it is refused. */
#include "train/train.h"

#include <string.h>

/* Continued by itself, a run has the data that it had; a file of another name is most likely of another
 * job, whose checkpoint.dir was left as it was. */
static pl_status same_data(const char *now, const char *path)
{
    char *file;
    PL_TRY(pl_checkpoint_text(path, "train_file", &file));
    const char *was = strrchr(file, '/'), *is = strrchr(now, '/');
    pl_status s = PL_OK;
    if (strcmp(was ? was + 1 : file, is ? is + 1 : now) != 0)
        s = pl_error(PL_ERR_CHECKPOINT, "checkpoint",
                     "%s was trained on %s, the job says %s\n"
                     "give another checkpoint.dir, or if the data is the same under another name checkpoint.resume=%s",
                     path, file, now, path);
    pl_free(file);
    return s;
}

/* Rank 0 decides which checkpoint, if any; path is "" for none. */
static pl_status choose_checkpoint(struct pl_trainer *t, char *path, size_t bytes)
{
    const struct pl_job *job = t->job;
    const char *how = job->checkpoint.resume ? job->checkpoint.resume : "auto";
    bool never = strcmp(how, "never") == 0, automatic = strcmp(how, "auto") == 0;
    const char *dir = automatic || never ? job->checkpoint.dir : how;
    char *found = NULL;
    path[0] = '\0';
    if (!dir)
        return PL_OK;
    PL_TRY(pl_checkpoint_find(dir, &found));
    pl_status s = PL_OK;
    if (found && never)
        s = pl_error(PL_ERR_CHECKPOINT, "checkpoint",
                     "%s holds checkpoints and checkpoint.resume is never\n"
                     "continue them with checkpoint.resume=auto, or start afresh with checkpoint.dir=ANOTHER",
                     dir);
    else if (!found && !automatic && !never)
        s = pl_error(PL_ERR_CHECKPOINT, "checkpoint", "no whole checkpoint in %s", dir);
    else if (!found && pl_checkpoint_count(dir) > 0)
        s = pl_error(PL_ERR_CHECKPOINT, "checkpoint",
                     "%s holds checkpoints, but none that is whole\n"
                     "move them away to start afresh, or give checkpoint.dir=ANOTHER", dir);
    else if (found && automatic)
        s = same_data(t->train_file, found);
    if (s == PL_OK && found)
        snprintf(path, bytes, "%s", found);
    pl_free(found);
    return s;
}

static pl_status same_order(const struct pl_trainer *t, const char *path)
{
    const struct pl_run_state *p = &t->state;
    int64_t seed = t->job->train.seed, samples = t->source.epoch_samples;
    if (p->seed != seed)
        return pl_error(PL_ERR_CHECKPOINT, "checkpoint",
                        "%s was trained with train.seed %lld, the job says %lld\n"
                        "give train.seed=%lld, or another checkpoint.dir",
                        path, (long long)p->seed, (long long)seed, (long long)p->seed);
    if (p->train_samples != samples)
        return pl_error(PL_ERR_CHECKPOINT, "checkpoint",
                        "%s was trained on %lld samples, %s has %lld\n"
                        "give the same data, or another checkpoint.dir with train.init=%s to start from its weights",
                        path, (long long)p->train_samples, t->train_file, (long long)samples, path);
    return PL_OK;
}

/* Sandblaster would leave an optimizer's state behind, and takes no such optimizer.kind. */
static pl_status no_state(const struct pl_trainer *t, const char *path)
{
    char *kind;
    if (!t->sync_table->whole)
        return PL_OK;
    PL_TRY(pl_checkpoint_text(path, "optimizer", &kind));
    pl_status s = PL_OK;
    if (strcmp(kind, pl_optimizer_name(t->optimizer)) != 0)
        s = pl_error(PL_ERR_CHECKPOINT, "checkpoint",
                     "%s was trained with optimizer.kind %s, whose state sync.kind sandblaster does not go on with\n"
                     "give another checkpoint.dir with train.init=%s to start from its weights", path, kind, path);
    pl_free(kind);
    return s;
}

static pl_status load_checkpoint(struct pl_trainer *t, const char *path)
{
    PL_TRY(no_state(t, path));
    bool fills = pl_trainer_fills(t);
    PL_TRY(pl_checkpoint_load(path, t->graph, t->optimizer, fills ? pl_graph_params(t->graph) : NULL, &t->state));
    PL_TRY(same_order(t, path));
    struct pl_part part[PL_PARTS_MAX];
    int parts = pl_trainer_parts(t, part);
    pl_status s = pl_checkpoint_load_part(path, t->graph, t->world->rank, t->world->ranks, part, fills ? parts : PL_RANKS_PARTS);
    if (s == PL_END)
        pl_log_root("note: what compression had lost until then is left out, as this run compresses nothing");
    return s < 0 ? s : PL_OK;
}

/* Checkpoints of earlier versions do not say. */
static void say_other_precision(const struct pl_trainer *t, const char *path)
{
    char *was = NULL;
    const char *is = pl_job_precision_name(t->job);
    if (pl_checkpoint_text(path, "precision", &was) < 0)
        pl_error_clear();
    else if (strcmp(was, is) != 0)
        pl_log_root("note: the run goes on in %s, it was in %s until here", is, was);
    pl_free(was);
}

static void say_changes(const struct pl_trainer *t, const char *path)
{
    char *text = NULL;
    struct pl_job *was = NULL;
    struct pl_text changes = {0};
    if (pl_checkpoint_text(path, "job", &text) < 0 || pl_job_parse(text, path, &was) < 0)
        pl_error_clear(); /* of another version */
    else
        pl_job_changes(was, t->job, &changes);
    if (changes.s)
        pl_log_root("note: from here on %s", changes.s);
    pl_text_free(&changes);
    pl_job_destroy(was);
    pl_free(text);
}

/* Where the checkpoint left off the same samples follow, on whatever ranks. */
static pl_status go_on(struct pl_trainer *t, const char *path)
{
    PL_TRY(load_checkpoint(t, path));
    say_other_precision(t, path);
    say_changes(t, path);
    int64_t was = t->state.global_batch;
    PL_TRY(pl_trainer_deal(t, t->peers->rank, t->peers->ranks));
    if (was != t->state.global_batch && !t->sync_table->whole)
        pl_log_root("note: the global batch is %lld now and was %lld; train.global_batch=%lld keeps what a step and the learning rate mean",
                    (long long)t->state.global_batch, (long long)was, (long long)was);
    return PL_OK;
}

static pl_status start_afresh(struct pl_trainer *t)
{
    const struct pl_job *job = t->job;
    t->state.train_samples = t->source.epoch_samples;
    if (job->train.init) {
        PL_TRY(pl_trainer_fills(t) ? pl_checkpoint_load_weights(job->train.init, t->graph, pl_graph_params(t->graph)) : PL_OK);
        pl_log_root("weights from %s", job->train.init);
    } else if (pl_trainer_fills(t)) {
        pl_graph_init(t->graph, (uint64_t)job->train.seed);
    }
    return pl_trainer_deal(t, t->peers->rank, t->peers->ranks);
}

/* All ranks must start from the same bits. */
static pl_status compare_params(struct pl_trainer *t)
{
    struct pl_world *w = t->peers;
    uint64_t mine = pl_hash_words(PL_HASH_START, pl_graph_params(t->graph), (size_t)pl_graph_elems(t->graph) * sizeof(float));
    uint64_t first = mine;
    PL_TRY(pl_world_broadcast(w, &first, sizeof first, 0));
    if (first != mine)
        return pl_error(PL_ERR_CHECKPOINT, "train", "this rank starts from other parameters than rank %d", pl_world_run_rank(w, 0));
    return PL_OK;
}

pl_status pl_trainer_resume(struct pl_trainer *t, char *path, size_t bytes)
{
    struct pl_world *w = t->world;
    PL_TRY(pl_world_agree(w, w->rank == 0 ? choose_checkpoint(t, path, bytes) : PL_OK));
    PL_TRY(pl_world_agree(w, pl_world_broadcast(w, path, bytes, 0)));
    PL_TRY(pl_world_agree(w, path[0] ? go_on(t, path) : start_afresh(t)));
    PL_TRY(pl_world_agree(w, compare_params(t)));
    return pl_world_agree(w, pl_trainer_settle(t));
}
