/* same_job: every rank reads job and model by itself, and on some node a file may be an older one. Jobs that differ in what all need
 * alike would end in ranks that wait for each other, or worse, that learn something else, each for itself. */
#include "train/train.h"

#include <string.h>

static size_t line(const char *s) { return strcspn(s, "\n"); }

/* The first line in which they differ, of each of them; "" behind the end. */
static void first_difference(const char **a, const char **b)
{
    while (**a && line(*a) == line(*b) && strncmp(*a, *b, line(*a)) == 0) {
        size_t n = line(*a);
        *a += n + ((*a)[n] == '\n' ? 1 : 0);
        *b += n + ((*b)[n] == '\n' ? 1 : 0);
    }
    *a += strspn(*a, " -");
    *b += strspn(*b, " -");
}

static pl_status compare(const char *here, const char *first)
{
    if (strcmp(here, first) == 0)
        return PL_OK;
    first_difference(&here, &first);
    int n = (int)line(here), m = (int)line(first);
    return pl_error(PL_ERR_USAGE, "train", "this rank was given another job than rank 0: here %.*s, there %.*s", n > 0 ? n : 7, n > 0 ? here : "nothing",
                    m > 0 ? m : 7, m > 0 ? first : "nothing");
}

pl_status pl_train_same_job(struct pl_world *w, const struct pl_job *job)
{
    struct pl_text mine = {0};
    char *first = NULL;
    if (w->ranks == 1)
        return PL_OK;
    pl_text_add(&mine, "Paceline %s\n", PL_VERSION);
    pl_job_common(job, &mine);
    uint64_t bytes = mine.len + 1; /* then rank 0's */
    pl_status s = pl_world_agree(w, mine.s ? PL_OK : PL_ERR_MEMORY);
    if (s == PL_OK)
        s = pl_world_agree(w, pl_world_broadcast(w, &bytes, sizeof bytes, 0));
    if (s == PL_OK) {
        first = pl_alloc(bytes, "rank 0's job");
        if (first && w->rank == 0)
            memcpy(first, mine.s, bytes);
        s = pl_world_agree(w, first ? PL_OK : PL_ERR_MEMORY);
    }
    if (s == PL_OK)
        s = pl_world_agree(w, pl_world_broadcast(w, first, bytes, 0));
    if (s == PL_OK)
        s = pl_world_agree(w, compare(mine.s, first));
    pl_text_free(&mine);
    pl_free(first);
    return s;
}
