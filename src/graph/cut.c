/* Where a network can be cut into stages, and where it is: as split.at says, or such that the slowest stage is as fast as can
 * be, found by dynamic programming over the places that can be had, as PipeDream's partitioner does (Narayanan et al., SOSP
 * 2019, section 3.1), with the operations counted instead of measured. A cut stands before a layer of the running order; every
 * rank finds the same ones, since nothing but the network is asked. */
#include "graph/graph_private.h"

#include <math.h>
#include <string.h>

enum { NO_CUT = -1 };

/* Of n layers; each list [n + 1], the k-th of a cut before layer k. */
struct cutter {
    const struct pl_graph *g;
    int n;
    int *border;      /* the layer whose output is all that crosses; NO_CUT: it cannot be cut here */
    double *flops;    /* of a sample, forward, of the layers before */
    int64_t *weights; /* trainable ones of the layers before */
};

/* ---- places ---------------------------------------------------------------------------------- */

/* Is this the batch's input, perhaps under another shape? */
static bool is_data(const struct pl_graph *g, int i)
{
    while (i != PL_DATA && g->layer[i].kind->view)
        i = g->layer[i].input[0];
    return i == PL_DATA;
}

/* An activation by key has the place in the job file of the layer that asked for it. */
static bool follows_by_key(const struct pl_graph *g, int k) { return g->layer[k].source == g->layer[k - 1].source; }

/* The layer whose output is all that layers from k on take of what is before; NO_CUT, and why. */
static int crossing(const struct pl_graph *g, int k, struct pl_text *why)
{
    int from = NO_CUT;
    for (int i = k; i < g->layers; i++)
        for (int j = 0; j < g->layer[i].inputs; j++) {
            int x = g->layer[i].input[j];
            if (x >= k)
                continue;
            if (is_data(g, x)) {
                pl_text_add(why, "`%s` takes the input's data, which the first stage alone has", g->layer[i].name);
                return NO_CUT;
            }
            if (from != NO_CUT && from != x) {
                pl_text_add(why, "the outputs of both `%s` and `%s` are taken later, and one alone can be handed on",
                            g->layer[from < x ? from : x].name, g->layer[from < x ? x : from].name);
                return NO_CUT;
            }
            from = x;
        }
    return from;
}

/* The same of a cut in all its respects but its neighbours. */
static int border_at(const struct cutter *c, int k, struct pl_text *why)
{
    const struct pl_graph *g = c->g;
    if (follows_by_key(g, k))
        pl_text_add(why, "it is the activation of `%s`", g->layer[k - 1].name);
    else if (k > g->output)
        pl_text_add(why, "`%s` runs before it, and belongs to the last stage", g->layer[g->output].name);
    else if (c->weights[k] == 0)
        pl_text_add(why, "no layer before it has weights to train");
    else if (c->weights[k] == c->weights[c->n])
        pl_text_add(why, "neither it nor a layer after it has weights to train");
    else
        return crossing(g, k, why);
    return NO_CUT;
}

static pl_status find_places(struct cutter *c)
{
    size_t n = (size_t)c->n + 1;
    c->border = pl_alloc(n * sizeof *c->border, "stages");
    c->flops = pl_alloc(n * sizeof *c->flops, "stages");
    c->weights = pl_alloc(n * sizeof *c->weights, "stages");
    if (!c->border || !c->flops || !c->weights)
        return PL_ERR_MEMORY;
    for (int i = 0; i < c->n; i++) {
        c->flops[i + 1] = c->flops[i] + pl_layer_flops(&c->g->layer[i], 1);
        c->weights[i + 1] = c->weights[i] + pl_graph_layer_weights(&c->g->layer[i]);
    }
    c->border[0] = c->border[c->n] = NO_CUT;
    for (int k = 1; k < c->n; k++) {
        struct pl_text why = {0};
        c->border[k] = border_at(c, k, &why);
        pl_text_free(&why);
    }
    return PL_OK;
}

static void cutter_free(struct cutter *c)
{
    pl_free(c->border);
    pl_free(c->flops);
    pl_free(c->weights);
}

/* Can layers a to b be a stage, but for what is before a? */
static bool can_be_stage(const struct cutter *c, int a, int b)
{
    return a < b && (b == c->n || c->border[b] != NO_CUT) && c->weights[b] > c->weights[a];
}

/* ---- the best cuts --------------------------------------------------------------------------- */

/* cost[s][k] of the first k layers in s stages, the last of which begins at from[s][k]. */
struct plan {
    double *cost;
    int *from;
};

/* What it costs that a stage of layers a to b follows those that cost `before`: its flops, where they are more; or, of plans
 * whose stages keep within a limit, the numbers that cross. */
static double cost_with(const struct cutter *c, double before, int a, int b, double limit)
{
    double flops = c->flops[b] - c->flops[a];
    if (limit < 0)
        return before > flops ? before : flops;
    double crosses = b < c->n ? (double)pl_shape_row_elems(&c->g->layer[c->border[b]].y) : 0;
    return flops <= limit ? before + crosses : INFINITY;
}

static void plan_stage(const struct cutter *c, struct plan *p, int s, int k, double limit)
{
    size_t row = (size_t)c->n + 1, at = (size_t)s * row + (size_t)k;
    p->cost[at] = INFINITY;
    for (int a = 0; a < k; a++) {
        double before = p->cost[(size_t)(s - 1) * row + (size_t)a];
        double cost = before < INFINITY && can_be_stage(c, a, k) ? cost_with(c, before, a, k, limit) : INFINITY;
        if (cost < p->cost[at]) {
            p->cost[at] = cost;
            p->from[at] = a;
        }
    }
}

/* Returns the cost of the whole in `stages`. */
static double plan_stages(const struct cutter *c, struct plan *p, int stages, double limit)
{
    p->cost[0] = 0;
    for (int k = 1; k <= c->n; k++)
        p->cost[k] = INFINITY;
    for (int s = 1; s <= stages; s++) {
        p->cost[(size_t)s * ((size_t)c->n + 1)] = INFINITY;
        for (int k = 1; k <= c->n; k++)
            plan_stage(c, p, s, k, limit);
    }
    return p->cost[(size_t)(stages + 1) * ((size_t)c->n + 1) - 1];
}

static pl_status too_many(const struct cutter *c, const struct plan *p, int tried, int stages)
{
    int most = tried;
    while (most > 1 && p->cost[(size_t)(most + 1) * ((size_t)c->n + 1) - 1] == INFINITY)
        most--;
    return pl_error(PL_ERR_USAGE, "graph",
                    "split.pipeline: %d stages, but this network can be cut into %d at most\n"
                    "the output of one layer alone crosses a cut, and every stage has weights to train",
                    stages, most);
}

/* First how fast the slowest stage can be, then who of those hands on least. */
static pl_status best_cuts(const struct cutter *c, struct plan *p, int stages, struct pl_cut_place *place)
{
    int tried = stages < c->n ? stages : c->n;
    size_t list = (size_t)(tried + 1) * ((size_t)c->n + 1);
    p->cost = pl_alloc(list * sizeof *p->cost, "stages");
    p->from = pl_alloc(list * sizeof *p->from, "stages");
    if (!p->cost || !p->from)
        return PL_ERR_MEMORY;
    double slowest = plan_stages(c, p, tried, -1);
    if (tried < stages || slowest == INFINITY)
        return too_many(c, p, tried, stages);
    plan_stages(c, p, stages, slowest);
    for (int s = stages, k = c->n; s > 0; s--) {
        k = p->from[(size_t)s * ((size_t)c->n + 1) + (size_t)k];
        place[s - 1].begin = k;
    }
    return PL_OK;
}

/* ---- split.at -------------------------------------------------------------------------------- */

static pl_status no_such_layer(const struct pl_graph *g, const char *name)
{
    const char *near = NULL;
    int least = 2 + (int)strlen(name) / 4; /* further away is another word, not a slip */
    for (int i = 0; i < g->layers; i++) {
        int distance = pl_text_distance(name, g->layer[i].name);
        if (distance < least) {
            least = distance;
            near = g->layer[i].name;
        }
    }
    return pl_error(PL_ERR_USAGE, "graph", "split.at: `%s`: no layer has this name%s%s%s", name, near ? "; did you mean `" : "",
                    near ? near : "", near ? "`?" : "");
}

static int layer_named(const struct pl_graph *g, const char *name)
{
    int i = 0;
    while (i < g->layers && strcmp(g->layer[i].name, name) != 0)
        i++;
    return i;
}

/* The places next to k for a stage that follows one that begins at `begin`. */
static void add_near(const struct cutter *c, int begin, int k, struct pl_text *t)
{
    int before = k - 1, after = (k > begin ? k : begin) + 1;
    while (before > begin && !can_be_stage(c, begin, before))
        before--;
    while (after < c->n && !can_be_stage(c, begin, after))
        after++;
    if (before <= begin && after >= c->n)
        return;
    pl_text_add(t, "\nnear it the network can be cut before");
    if (before > begin)
        pl_text_add(t, " `%s`", c->g->layer[before].name);
    if (before > begin && after < c->n)
        pl_text_add(t, " or");
    if (after < c->n)
        pl_text_add(t, " `%s`", c->g->layer[after].name);
}

/* Why a stage that begins with layer k cannot follow one that begins with layer `begin`. */
static pl_status refuse(const struct cutter *c, int begin, int k)
{
    const struct pl_graph *g = c->g;
    struct pl_text why = {0};
    if (k == 0)
        pl_text_add(&why, "it is the first layer of all");
    else if (k <= begin)
        pl_text_add(&why, "it does not run after `%s`; the layers stand here in the order they run", g->layer[begin].name);
    else if (border_at(c, k, &why) != NO_CUT)
        pl_text_add(&why, "no layer from `%s` up to it has weights to train", g->layer[begin].name);
    add_near(c, begin, k, &why);
    pl_status s = pl_error(PL_ERR_USAGE, "graph", "split.at: no stage can begin with `%s`: %s", g->layer[k].name, why.s);
    pl_text_free(&why);
    return s;
}

/* The last stage has weights wherever the one before it may end. */
static pl_status named_cuts(const struct cutter *c, const struct pl_texts *at, int stages, struct pl_cut_place *place)
{
    if (at->n != stages - 1)
        return pl_error(PL_ERR_USAGE, "graph",
                        "split.at names %d layer%s, but split.pipeline: %d wants %d: the first of each stage but the first",
                        at->n, at->n > 1 ? "s" : "", stages, stages - 1);
    for (int s = 1; s < stages; s++) {
        int begin = place[s - 1].begin, k = layer_named(c->g, at->v[s - 1]);
        if (k == c->n)
            return no_such_layer(c->g, at->v[s - 1]);
        if (!can_be_stage(c, begin, k))
            return refuse(c, begin, k);
        place[s].begin = k;
    }
    return PL_OK;
}

pl_status pl_graph_choose_cuts(const struct pl_graph *g, const struct pl_graph_cut *cut, struct pl_cut_place *place)
{
    struct cutter c = {.g = g, .n = g->layers};
    struct plan p = {0};
    pl_status s = find_places(&c);
    place[0].begin = 0;
    place[cut->stages].begin = c.n;
    if (s == PL_OK)
        s = cut->at && cut->at->n > 0 ? named_cuts(&c, cut->at, cut->stages, place) : best_cuts(&c, &p, cut->stages, place);
    for (int k = 0; k <= cut->stages && s == PL_OK; k++)
        place[k].border = c.border[place[k].begin];
    pl_free(p.cost);
    pl_free(p.from);
    cutter_free(&c);
    return s;
}
