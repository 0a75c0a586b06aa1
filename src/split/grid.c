/* Ranks in rows and columns. */
#include "split/split.h"

pl_status pl_grid_open(struct pl_world *w, int64_t stages, int64_t parts, struct pl_grid *out)
{
    int64_t pieces = stages * parts;
    *out = (struct pl_grid){0};
    if (w->ranks % pieces != 0)
        return pl_world_agree(w, pl_error(PL_ERR_USAGE, "split", "split.%s %lld does not divide the %d rank%s\nstart %lld of them, or a multiple",
                                          parts > 1 ? "tensor" : "pipeline", (long long)pieces, w->ranks, w->ranks == 1 ? "" : "s", (long long)pieces));
    out->stages = (int)stages;
    out->parts = (int)parts;
    out->pieces = (int)pieces;
    out->piece = w->rank % out->pieces;
    out->stage = out->piece / out->parts;
    out->part = out->piece % out->parts;
    out->replicas = w->ranks / out->pieces;
    out->replica = w->rank / out->pieces;
    PL_TRY(pl_world_agree(w, pl_world_part(w, out->replica, &out->row)));
    return pl_world_agree(w, pl_world_part(w, out->piece, &out->column));
}

void pl_grid_close(struct pl_grid *g)
{
    pl_world_part_leave(&g->row);
    pl_world_part_leave(&g->column);
    *g = (struct pl_grid){0};
}
