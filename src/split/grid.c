/* Ranks in rows and columns. */
#include "split/split.h"

pl_status pl_grid_open(struct pl_world *w, int64_t stages, struct pl_grid *out)
{
    *out = (struct pl_grid){0};
    if (w->ranks % stages != 0)
        return pl_world_agree(w, pl_error(PL_ERR_USAGE, "split", "split.pipeline %lld does not divide the %d rank%s\nstart %lld of them, or a multiple",
                                          (long long)stages, w->ranks, w->ranks == 1 ? "" : "s", (long long)stages));
    out->stages = (int)stages;
    out->stage = w->rank % out->stages;
    out->replicas = w->ranks / out->stages;
    out->replica = w->rank / out->stages;
    PL_TRY(pl_world_agree(w, pl_world_part(w, out->replica, &out->row)));
    return pl_world_agree(w, pl_world_part(w, out->stage, &out->column));
}

void pl_grid_close(struct pl_grid *g)
{
    pl_world_part_leave(&g->row);
    pl_world_part_leave(&g->column);
    *g = (struct pl_grid){0};
}
