/* plans: checks and memory that the plans of several operations share. */
#include "backend/cuda/plans.h"

static bool fits(const struct pl_cuda_view *v)
{
    int64_t most = INT32_MAX, plane = v->h * v->w;
    return plane <= most && (plane == 0 || (v->c <= most / plane && v->n <= most / plane));
}

pl_status pl_cuda_check_sizes(const struct pl_plan *p)
{
    bool all = fits(&p->y);
    for (int i = 0; i < p->op.inputs; i++)
        all = all && fits(&p->x[i]);
    return all ? PL_OK : pl_cuda_refuse(&p->op, "a sample of it, or a channel of its batch, has more than 2^31 elements");
}

/* A canonical view of a flattened tensor, seen with the channels of another that was flattened too. */
static void see_like(struct pl_cuda_view *v, const struct pl_cuda_view *like)
{
    if (v->c == like->c || v->c * v->h * v->w != like->c * like->h * like->w || v->sp != 1)
        return;
    v->c = like->c, v->h = like->h, v->w = like->w;
    v->sc = v->h * v->w;
}

pl_status pl_cuda_check_same(struct pl_plan *p)
{
    for (int i = 0; i < p->op.inputs; i++)
        if (p->x[i].sc < p->x[i].sp)
            see_like(&p->y, &p->x[i]);
    for (int i = 0; i < p->op.inputs; i++)
        see_like(&p->x[i], &p->y);
    for (int i = 0; i < p->op.inputs; i++)
        if (pl_shape_elems(&p->op.x[i]) != pl_shape_elems(&p->op.y) || p->x[i].c != p->y.c)
            return pl_cuda_refuse(&p->op, "its inputs and its output differ in shape");
    return pl_cuda_check_sizes(p);
}

pl_status pl_cuda_far_state(struct pl_plan *p, size_t bytes, const char *what)
{
    p->far = pl_cuda_alloc(p->backend->device, bytes, what);
    return p->far ? PL_OK : PL_ERR_MEMORY;
}

bool pl_cuda_lie_alike(const struct pl_plan *p)
{
    const struct pl_cuda_view *y = &p->y;
    bool same = true;
    for (int i = 0; i < p->op.inputs; i++) {
        const struct pl_cuda_view *x = &p->x[i];
        same = same && (x->sc == y->sc || y->c == 1) && (x->sp == y->sp || y->h * y->w == 1);
    }
    return same;
}
