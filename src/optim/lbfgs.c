/* L-BFGS (Nocedal and Wright, Numerical Optimization, 2006): the direction from the last pairs of steps s and changes of
 * the gradient y (algorithm 7.4), and a line search for the strong Wolfe conditions (3.5, 3.6). Vectors are sharded over
 * ranks and never leave theirs: the two loops run over coefficients of s, y and g, in scalars, by their products with one
 * another (Chen, Wang and Zhou, Large-scale L-BFGS using MapReduce, 2014), so that an iteration adds up over the ranks once
 * for its products, once for its slope, and once a point. All ranks decide by the same sums and so in the same way. */
#include "optim/optim.h"

#include <math.h>
#include <string.h>

#define C1 1e-4           /* sufficient decrease */
#define C2 0.9            /* and curvature */
#define SEARCH_MOST 20    /* points of a line search */
#define RESOLUTION 1e-10  /* of a value, relative: what a shorter step would change is not seen */
#define BLOCK 32768       /* elements that are added up together, whatever the threads */

struct pl_lbfgs {
    int64_t elems, blocks;
    int slots, pairs, newest;      /* one slot more than pairs: the next pair's */
    double tolerance;
    float *memory, **s, **y;       /* [slots][elems] */
    float *x, *g, *d, *trial;      /* where the iteration begins, its gradient, direction, the gradient of the last point */
    bool known;                    /* value and gradient of x */
    double value, gg;              /* gg: g with itself */
    double *ss, *sy, *yy;          /* [slots][slots] products: s with s, s with y, y with y */
    double *gs, *gy;               /* [slots] */
    double *cs, *cy, *alpha, *sums;
    double *partial;               /* [blocks] */
};

/* ---- vectors ---------------------------------------------------------------------------------------------- */

struct product { const float *a, *b; int64_t elems; double *partial; };

PL_CLONES static double add_up(const float *a, const float *b, int64_t n)
{
    double sum[8] = {0}, rest = 0;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++)
            sum[j] += (double)a[i + j] * b[i + j];
    for (; i < n; i++)
        rest += (double)a[i] * b[i];
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7])) + rest;
}

static void add_blocks(void *arg, int64_t begin, int64_t end)
{
    const struct product *p = arg;
    for (int64_t i = begin; i < end; i++) {
        int64_t at = i * BLOCK, n = p->elems - at < BLOCK ? p->elems - at : BLOCK;
        p->partial[i] = add_up(p->a + at, p->b + at, n);
    }
}

static double dot(const struct pl_lbfgs *l, const float *a, const float *b)
{
    struct product p = {a, b, l->elems, l->partial};
    double sum = 0;
    pl_parallel_for(l->blocks, 1, add_blocks, &p);
    for (int64_t i = 0; i < l->blocks; i++)
        sum += l->partial[i];
    return sum;
}

struct line { const float *from, *d; float *to; double by; };

static void move(void *arg, int64_t begin, int64_t end)
{
    const struct line *p = arg;
    for (int64_t i = begin; i < end; i++)
        p->to[i] = (float)(p->from[i] + p->by * p->d[i]);
}

/* to = from + by * d */
static void go_along(const struct pl_lbfgs *l, const float *from, double by, const float *d, float *to)
{
    struct line p = {from, d, to, by};
    pl_parallel_for(l->elems, BLOCK, move, &p);
}

/* ---- the direction ------------------------------------------------------------------------------------------ */

static int slot(const struct pl_lbfgs *l, int age) { return (l->newest - age + l->slots) % l->slots; }

/* Of s, or with y of the transposed products y, in slot i with q = cs s + cy y + cg g. */
static double with_q(const struct pl_lbfgs *l, int i, bool y, double cg)
{
    double sum = cg * (y ? l->gy[i] : l->gs[i]);
    for (int k = 0; k < l->pairs; k++) {
        int j = slot(l, k);
        sum += l->cs[j] * (y ? l->sy[j * l->slots + i] : l->ss[i * l->slots + j]);
        sum += l->cy[j] * (y ? l->yy[i * l->slots + j] : l->sy[i * l->slots + j]);
    }
    return sum;
}

/* Algorithm 7.4: afterwards q is the inverse Hessian's estimate times g. Returns cg. */
static double two_loops(struct pl_lbfgs *l)
{
    double cg = 1;
    memset(l->cs, 0, (size_t)l->slots * sizeof *l->cs);
    memset(l->cy, 0, (size_t)l->slots * sizeof *l->cy);
    for (int k = 0; k < l->pairs; k++) {
        int i = slot(l, k);
        l->alpha[k] = with_q(l, i, false, cg) / l->sy[i * l->slots + i];
        l->cy[i] -= l->alpha[k];
    }
    int n = l->newest * l->slots + l->newest;
    double scale = l->pairs > 0 ? l->sy[n] / l->yy[n] : 1;
    cg *= scale;
    for (int i = 0; i < l->slots; i++)
        l->cy[i] *= scale;
    for (int k = l->pairs - 1; k >= 0; k--) {
        int i = slot(l, k);
        l->cs[i] += l->alpha[k] - with_q(l, i, true, cg) / l->sy[i * l->slots + i];
    }
    return cg;
}

static void make_direction(struct pl_lbfgs *l)
{
    double cg = two_loops(l);
    memset(l->d, 0, (size_t)l->elems * sizeof *l->d);
    go_along(l, l->d, -cg, l->g, l->d);
    for (int k = 0; k < l->pairs; k++) {
        int i = slot(l, k);
        go_along(l, l->d, -l->cs[i], l->s[i], l->d);
        go_along(l, l->d, -l->cy[i], l->y[i], l->d);
    }
}

/* ---- the line search ---------------------------------------------------------------------------------------- */

struct point { double a, value, slope; }; /* value infinite: the slope is unknown */
struct search {
    struct pl_lbfgs *l;
    const struct pl_objective *o;
    float *x;
    struct point start, last; /* last: evaluated last */
    double gg;                /* of the gradient there */
    int evaluations;
};

static pl_status evaluate(struct search *s, double a, struct point *out)
{
    struct pl_lbfgs *l = s->l;
    double v[3] = {0};
    go_along(l, l->x, a, l->d, s->x);
    s->evaluations++;
    pl_status status = s->o->evaluate(s->o->arg, s->x, &v[0], l->trial);
    if (status != PL_OK)
        return status;
    v[1] = dot(l, l->trial, l->d);
    v[2] = dot(l, l->trial, l->trial);
    PL_TRY(s->o->sum(s->o->arg, v, 3));
    bool finite = isfinite(v[0]) && isfinite(v[1]) && isfinite(v[2]);
    s->last = *out = (struct point){a, finite ? v[0] : INFINITY, finite ? v[1] : 0};
    s->gg = v[2];
    return PL_OK;
}

/* (3.6a), (3.7b): strong Wolfe. */
static bool descends(const struct search *s, const struct point *p) { return p->value <= s->start.value + C1 * p->a * s->start.slope; }
static bool is_flat(const struct search *s, const struct point *p) { return fabs(p->slope) <= -C2 * s->start.slope; }

/* (3.59): where the cubic through two points with their slopes is least; NAN where there is none. */
static double cubic_minimum(const struct point *p, const struct point *q)
{
    double d1 = p->slope + q->slope - 3 * (p->value - q->value) / (p->a - q->a);
    double d2 = copysign(sqrt(d1 * d1 - p->slope * q->slope), q->a - p->a);
    return q->a - (q->a - p->a) * (q->slope + d2 - d1) / (q->slope - p->slope + 2 * d2);
}

/* Between the two, a tenth from either; a long way back from where the value is not finite. */
static double between(const struct point *lo, const struct point *hi)
{
    double width = hi->a - lo->a, part;
    if (!isfinite(hi->value))
        return lo->a + 0.1 * width;
    part = (cubic_minimum(lo, hi) - lo->a) / width;
    part = isnan(part) ? 0.5 : part < 0.1 ? 0.1 : part > 0.9 ? 0.9 : part;
    return lo->a + part * width;
}

static double beyond(const struct point *before, const struct point *p)
{
    double a = cubic_minimum(before, p);
    return isnan(a) || a > 10 * p->a || a < p->a ? 10 * p->a : a < 2 * p->a ? 2 * p->a : a;
}

static bool has_room(const struct search *s, double width)
{
    return s->evaluations < SEARCH_MOST && fabs(width * s->start.slope) > RESOLUTION * fabs(s->start.value);
}

/* Algorithm 3.6: lo is the lowest so far of those that descend, and its slope leads towards hi. Without a point that is
 * flat enough, lo. */
static pl_status zoom(struct search *s, struct point lo, struct point hi, struct point *out)
{
    struct point p;
    while (has_room(s, hi.a - lo.a)) {
        pl_status status = evaluate(s, between(&lo, &hi), &p);
        if (status != PL_OK)
            return status;
        if (!descends(s, &p) || p.value >= lo.value) {
            hi = p;
            continue;
        }
        if (is_flat(s, &p)) {
            *out = p;
            return PL_OK;
        }
        if (p.slope * (hi.a - lo.a) >= 0)
            hi = lo;
        lo = p;
    }
    *out = lo;
    return PL_OK;
}

/* Algorithm 3.5. out->a 0: no lower point. */
static pl_status bracket(struct search *s, double a, struct point *out)
{
    struct point before = s->start, p = before;
    while (s->evaluations < SEARCH_MOST) {
        pl_status status = evaluate(s, a, &p);
        if (status != PL_OK)
            return status;
        if (!descends(s, &p) || (before.a > 0 && p.value >= before.value))
            return zoom(s, before, p, out);
        if (is_flat(s, &p))
            break;
        if (p.slope >= 0)
            return zoom(s, p, before, out);
        a = beyond(&before, &p);
        before = p;
    }
    *out = p;
    return PL_OK;
}

/* Along d from x. *found false: there is no lower point. */
static pl_status search_line(struct search *s, struct point *p, bool *found)
{
    struct pl_lbfgs *l = s->l;
    double v[2] = {dot(l, l->g, l->d), dot(l, l->d, l->d)};
    PL_TRY(s->o->sum(s->o->arg, v, 2));
    *found = false;
    if (!(v[0] < 0) || !isfinite(v[1]))
        return PL_OK;
    s->start = (struct point){0, l->value, v[0]};
    double norm = sqrt(v[1]);
    pl_status status = bracket(s, l->pairs > 0 || norm < 1 ? 1 : 1 / norm, p);
    *found = status == PL_OK && p->a > 0;
    if (*found && s->last.a != p->a)
        status = evaluate(s, p->a, p); /* the point to go to is the one that all were at last */
    return status;
}

/* ---- an iteration ------------------------------------------------------------------------------------------- */

/* The step to x and the change of the gradient there, which is in trial, as the newest pair; a curvature that is not
 * positive, or lost in rounding, is left out. */
static pl_status remember(struct pl_lbfgs *l, const struct pl_objective *o, const float *x)
{
    int n = l->slots, next = (l->newest + 1) % n, count = 0, kept = l->pairs < n - 1 ? l->pairs : n - 2;
    double *v = l->sums;
    go_along(l, x, -1, l->x, l->s[next]);
    go_along(l, l->trial, -1, l->g, l->y[next]);
    for (int k = -1; k < kept; k++) {
        int i = k < 0 ? next : slot(l, k);
        const float *const pair[][2] = {{l->s[i], l->s[next]}, {l->s[next], l->y[i]}, {l->s[i], l->y[next]},
                                        {l->y[i], l->y[next]}, {l->trial, l->s[i]}, {l->trial, l->y[i]}};
        for (int j = 0; j < 6; j++)
            v[count++] = dot(l, pair[j][0], pair[j][1]);
    }
    PL_TRY(o->sum(o->arg, v, count));
    bool curved = v[1] > 1e-8 * sqrt(v[0] * v[3]);
    for (int k = -1; k < kept; k++, v += 6) {
        int i = k < 0 ? next : slot(l, k);
        l->ss[i * n + next] = l->ss[next * n + i] = v[0];
        l->sy[next * n + i] = v[1];
        l->sy[i * n + next] = v[2];
        l->yy[i * n + next] = l->yy[next * n + i] = v[3];
        l->gs[i] = v[4];
        l->gy[i] = v[5];
    }
    l->pairs = kept + curved;
    l->newest = curved ? next : l->newest;
    return PL_OK;
}

static pl_status move_on(struct pl_lbfgs *l, const struct search *s, const struct point *p)
{
    PL_TRY(remember(l, s->o, s->x));
    float *g = l->g;
    l->g = l->trial;
    l->trial = g;
    l->value = p->value;
    l->gg = s->gg;
    return PL_OK;
}

/* The first time: later ones begin where the one before ended. */
static pl_status look_round(struct pl_lbfgs *l, const struct pl_objective *o, const float *x, struct pl_iteration *out)
{
    double v[2] = {0};
    out->evaluations++;
    pl_status status = o->evaluate(o->arg, x, &v[0], l->g);
    if (status != PL_OK)
        return status;
    v[1] = dot(l, l->g, l->g);
    PL_TRY(o->sum(o->arg, v, 2));
    l->value = v[0];
    l->gg = v[1];
    l->known = true;
    return PL_OK;
}

/* By what the history says; where that leads nowhere, straight down. */
static pl_status descend(struct pl_lbfgs *l, struct search *s, struct pl_iteration *out)
{
    struct point p = {0};
    bool found = false;
    pl_status status = PL_OK;
    for (bool plain = false; status == PL_OK && !found && !plain;) {
        plain = l->pairs == 0;
        out->pairs = l->pairs;
        make_direction(l);
        s->evaluations = 0;
        status = search_line(s, &p, &found);
        out->evaluations += s->evaluations;
        if (!found)
            l->pairs = 0;
    }
    out->how = found ? PL_DESCENT_MADE : PL_DESCENT_NONE;
    out->step = p.a;
    return status == PL_OK && found ? move_on(l, s, &p) : status;
}

pl_status pl_lbfgs_iterate(struct pl_lbfgs *l, const struct pl_objective *o, float *x, struct pl_iteration *out)
{
    struct search s = {.l = l, .o = o, .x = x};
    pl_status status = PL_OK;
    *out = (struct pl_iteration){.how = PL_DESCENT_NOT_FINITE};
    memcpy(l->x, x, (size_t)l->elems * sizeof *x);
    if (!l->known)
        status = look_round(l, o, x, out);
    if (status == PL_OK && isfinite(l->value) && isfinite(l->gg)) {
        out->how = PL_DESCENT_CONVERGED;
        if (sqrt(l->gg) > l->tolerance)
            status = descend(l, &s, out);
    }
    if (status != PL_OK || out->how != PL_DESCENT_MADE)
        memcpy(x, l->x, (size_t)l->elems * sizeof *x);
    out->value = l->value;
    out->grad_norm = sqrt(l->gg);
    return status;
}

/* ---- set-up ------------------------------------------------------------------------------------------------- */

/* All vectors, and all tables of products, in one piece each. */
static pl_status make(struct pl_lbfgs *l)
{
    int64_t room = (l->elems + 15) / 16 * 16;
    size_t n = (size_t)l->slots;
    l->s = pl_alloc(n * sizeof *l->s, "a history");
    l->y = pl_alloc(n * sizeof *l->y, "a history");
    l->memory = pl_alloc((2 * n + 4) * (size_t)room * sizeof(float) + 64, "the history of L-BFGS");
    l->ss = pl_alloc((3 * n * n + 5 * n + PL_LBFGS_TERMS(n - 1)) * sizeof(double), "products");
    l->partial = pl_alloc((size_t)(l->blocks + 1) * sizeof(double), "products");
    if (!l->s || !l->y || !l->memory || !l->ss || !l->partial)
        return PL_ERR_MEMORY;
    float *at = l->memory;
    for (int i = 0; i < l->slots; i++, at += 2 * room) {
        l->s[i] = at;
        l->y[i] = at + room;
    }
    l->x = at;
    l->g = at + room;
    l->d = at + 2 * room;
    l->trial = at + 3 * room;
    l->sy = l->ss + n * n;
    l->yy = l->sy + n * n;
    l->gs = l->yy + n * n;
    l->gy = l->gs + n;
    l->cs = l->gy + n;
    l->cy = l->cs + n;
    l->alpha = l->cy + n;
    l->sums = l->alpha + n;
    return PL_OK;
}

pl_status pl_lbfgs_create(int64_t elems, int history, double tolerance, struct pl_lbfgs **out)
{
    struct pl_lbfgs *l = pl_alloc(sizeof *l, "L-BFGS");
    if (!l)
        return PL_ERR_MEMORY;
    *l = (struct pl_lbfgs){.elems = elems, .blocks = (elems + BLOCK - 1) / BLOCK, .slots = history + 1, .tolerance = tolerance};
    pl_status s = make(l);
    if (s < 0)
        pl_lbfgs_destroy(l);
    else
        *out = l;
    return s;
}

void pl_lbfgs_destroy(struct pl_lbfgs *l)
{
    if (!l)
        return;
    pl_free(l->s);
    pl_free(l->y);
    pl_free(l->memory);
    pl_free(l->ss);
    pl_free(l->partial);
    pl_free(l);
}
