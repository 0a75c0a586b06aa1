/* One stage of a network that is cut along its running order. What the stages beside it have is stood for by a layer on each
 * side, without an operation: a *source*, whose output is the tensor that the stage before hands on, and a *sink*, which takes
 * the tensor that is handed on from here. So lifetimes, layouts and sums of gradients come from the plans of any network: the
 * gradient that comes back is what the sink's backward writes, the one that goes on that of the source's output. An output
 * that crosses several borders goes from source to sink in the stages between. */
#include "graph/graph_private.h"

#include <string.h>

/* No job can ask for these. */
static const struct pl_layer_kind source_kind = {.name = "source"};
static const struct pl_layer_kind sink_kind = {.name = "sink", .min_inputs = 1, .max_inputs = 1};

/* ---- what the stages are --------------------------------------------------------------------- */

/* Names are copied: layers of other stages do not stay. */
static pl_status describe(const struct pl_graph *g, const struct pl_cut_place *p, struct pl_graph_stage *out)
{
    out->first = pl_strdup(g->layer[p[0].begin].name);
    out->last = pl_strdup(g->layer[p[1].begin - 1].name);
    for (int i = p[0].begin; i < p[1].begin; i++) {
        out->flops += pl_layer_flops(&g->layer[i], 1);
        out->weights += pl_graph_layer_weights(&g->layer[i]);
    }
    if (p[1].begin < g->layers)
        out->border_elems = pl_shape_row_elems(&g->layer[p[1].border].y);
    return out->first && out->last ? PL_OK : PL_ERR_MEMORY;
}

static pl_status describe_all(struct pl_graph *g, const struct pl_graph *trained, const struct pl_cut_place *place, int stages)
{
    g->stage = pl_alloc((size_t)stages * sizeof *g->stage, "stages");
    if (!g->stage)
        return PL_ERR_MEMORY;
    g->stages = stages;
    for (int s = 0; s < stages; s++)
        PL_TRY(describe(trained, &place[s], &g->stage[s]));
    return PL_OK;
}

void pl_graph_stages_free(struct pl_graph *g)
{
    for (int s = 0; s < g->stages; s++) {
        pl_free((char *)(uintptr_t)g->stage[s].first);
        pl_free((char *)(uintptr_t)g->stage[s].last);
    }
    pl_free(g->stage);
}

int pl_graph_stages(const struct pl_graph *g, const struct pl_graph_stage **out)
{
    *out = g->stage;
    return g->stages;
}

/* ---- the cuts in evaluation ------------------------------------------------------------------ */

/* Places in the network as it is trained become those in the one of evaluation: the same layers in the same order without
 * those of auxiliary heads, so a stage may be left with none. What crosses stays, for the main loss needs it. */
static void translate(const struct pl_graph *trained, const struct pl_graph *g, struct pl_cut_place *place, int stages)
{
    struct pl_cut_place found[PL_MAX_STAGES + 1] = {{0}};
    int at = 0;
    for (int i = 0; i <= trained->layers; i++) {
        for (int s = 0; s <= stages; s++) {
            if (place[s].begin == i)
                found[s].begin = at;
            if (place[s].border == i)
                found[s].border = at;
        }
        at += i < trained->layers && at < g->layers && strcmp(trained->layer[i].name, g->layer[at].name) == 0;
    }
    memcpy(place, found, (size_t)(stages + 1) * sizeof *place);
}

static pl_status find_cuts(struct pl_graph *g, const struct pl_job *job, const struct pl_graph_cut *cut,
                           struct pl_cut_place *place)
{
    struct pl_graph trained = {.batch = g->batch, .train = true};
    bool other = !g->train && g->has_loss;
    pl_status s = other ? pl_graph_build(&trained, job) : PL_OK;
    if (s == PL_OK && other)
        s = pl_graph_shapes(&trained, &job->input);
    if (s == PL_OK)
        s = pl_graph_choose_cuts(other ? &trained : g, cut, place);
    if (s == PL_OK)
        s = describe_all(g, other ? &trained : g, place, cut->stages);
    if (s == PL_OK && other)
        translate(&trained, g, place, cut->stages);
    pl_graph_layers_free(&trained);
    return s;
}

/* ---- one of them ----------------------------------------------------------------------------- */

/* Where layer i of the whole is in a stage that begins with layer `first`; whatever is before it comes from the source. */
static int place_in_stage(int i, int first) { return first == 0 ? i : i < first ? 0 : i - first + 1; }

/* It gives what the layer gives that crosses the border. */
static pl_status make_source(struct pl_layer *l, const struct pl_layer *crosses)
{
    *l = (struct pl_layer){.kind = &source_kind, .source = crosses->source, .name = pl_strdup("source"),
                           .input = {PL_DATA}, .y = crosses->y};
    return l->name ? PL_OK : PL_ERR_MEMORY;
}

/* Its own output is nothing. */
static pl_status make_sink(struct pl_layer *l, const struct pl_layer *crosses, int from)
{
    *l = (struct pl_layer){.kind = &sink_kind, .source = crosses->source, .name = pl_strdup("sink"), .inputs = 1, .input = {from},
                           .x = {crosses->y}, .y = {.dims = 1}};
    return l->name ? PL_OK : PL_ERR_MEMORY;
}

static void move_layers(struct pl_layer *to, struct pl_layer *from, int first, int end)
{
    for (int i = first; i < end; i++) {
        struct pl_layer *l = &to[i - first];
        *l = from[i];
        from[i] = (struct pl_layer){0};
        for (int k = 0; k < l->inputs; k++)
            l->input[k] = place_in_stage(l->input[k], first);
    }
}

static pl_status make_room(struct pl_graph *g, int layers)
{
    g->layer = pl_alloc((size_t)layers * sizeof *g->layer, "layers");
    g->node = pl_alloc((size_t)layers * sizeof *g->node, "layers");
    g->layers = g->layer && g->node ? layers : 0;
    return g->layers > 0 ? PL_OK : PL_ERR_MEMORY;
}

static pl_status keep_stage(struct pl_graph *g, const struct pl_cut_place *p, int stage, int stages)
{
    struct pl_graph whole = *g;
    int first = p[stage].begin, end = p[stage + 1].begin;
    bool here = whole.output >= first && whole.output < end;
    g->output = here ? place_in_stage(whole.output, first) : PL_ELSEWHERE;
    g->source = stage > 0;
    g->sink = stage < stages - 1;
    pl_status s = make_room(g, end - first + g->source + g->sink);
    if (s == PL_OK && g->source)
        s = make_source(&g->layer[0], &whole.layer[p[stage].border]);
    if (s == PL_OK && g->sink)
        s = make_sink(&g->layer[g->layers - 1], &whole.layer[p[stage + 1].border], place_in_stage(p[stage + 1].border, first));
    if (s == PL_OK)
        move_layers(g->layer + g->source, whole.layer, first, end);
    pl_graph_layers_free(&whole);
    return s;
}

pl_status pl_graph_take_stage(struct pl_graph *g, const struct pl_job *job, const struct pl_graph_cut *cut)
{
    struct pl_cut_place place[PL_MAX_STAGES + 1] = {{0}, {.begin = g->layers}};
    if (!cut || cut->stages == 1 || (cut->stages == 0 && cut->parts > 0))
        return describe_all(g, g, place, 1);
    if (cut->stages < 1 || cut->stages > PL_MAX_STAGES)
        return pl_error(PL_ERR_USAGE, "graph", "split.pipeline: %d stages; there may be 1 to %d", cut->stages, PL_MAX_STAGES);
    if (cut->stage < 0 || cut->stage >= cut->stages)
        return pl_error(PL_ERR_USAGE, "graph", "stage %d of %d", cut->stage, cut->stages);
    PL_TRY(find_cuts(g, job, cut, place));
    return keep_stage(g, place, cut->stage, cut->stages);
}

const struct pl_shape *pl_graph_border_in(const struct pl_graph *g) { return g->source ? &g->layer[0].y : NULL; }
const struct pl_shape *pl_graph_border_out(const struct pl_graph *g) { return g->sink ? &g->layer[g->layers - 1].x[0] : NULL; }

/* ---- what crosses ---------------------------------------------------------------------------- */

static pl_status no_border(const char *what)
{
    return pl_error(PL_ERR_USAGE, "graph", "a pass through a stage without its border's %s", what);
}

static size_t row_bytes(const struct pl_shape *s) { return (size_t)pl_shape_row_elems(s) * sizeof(float); }

/* Into the arena, where padding rows may hold anything: they are to be 0. to: NULL where nobody needs it. */
static void take(float *to, const float *from, const struct pl_shape *s, int64_t rows)
{
    size_t row = row_bytes(s), used = (size_t)rows * row;
    if (!to)
        return;
    memcpy(to, from, used);
    memset((char *)to + used, 0, (size_t)s->dim[0] * row - used);
}

pl_status pl_graph_take_x(struct pl_graph *g, const struct pl_graph_batch *b)
{
    if (!g->source)
        return PL_OK;
    if (!b->border || !b->border->x)
        return no_border("x");
    take(pl_span_memory(g, g->node[0].y), b->border->x, pl_graph_border_in(g), b->rows);
    return PL_OK;
}

pl_status pl_graph_hand_y(struct pl_graph *g, const struct pl_graph_batch *b)
{
    if (!g->sink)
        return PL_OK;
    if (!b->border || !b->border->y)
        return no_border("y");
    int root = pl_input_root(g, g->layers - 1, 0);
    memcpy(b->border->y, pl_span_memory(g, g->node[root].y), (size_t)b->rows * row_bytes(pl_graph_border_out(g)));
    return PL_OK;
}

pl_status pl_graph_take_dy(struct pl_graph *g, const struct pl_graph_batch *b)
{
    if (!g->sink)
        return PL_OK;
    if (!b->border || !b->border->dy)
        return no_border("dy");
    take(pl_span_memory(g, g->node[g->layers - 1].dx[0]), b->border->dy, pl_graph_border_out(g), b->rows);
    return PL_OK;
}

pl_status pl_graph_hand_dx(struct pl_graph *g, const struct pl_graph_batch *b)
{
    if (!g->source)
        return PL_OK;
    if (!b->border || !b->border->dx)
        return no_border("dx");
    memcpy(b->border->dx, pl_span_memory(g, g->node[0].dy), (size_t)b->rows * row_bytes(pl_graph_border_in(g)));
    return PL_OK;
}
