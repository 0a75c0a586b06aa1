/* From the job's list of layers to the network: kinds and their keys, `from:` by name, the order in
 * which layers run (Kahn's topological sort; of those that are ready the first in the file goes
 * first, so a file in running order keeps it), the `activation` key as a layer of its own, and what
 * evaluation leaves out. What cannot be a network is refused here, with the place in the file. */
#include "graph/graph_private.h"

#include <string.h>

/* The network before it is in order: one entry for each of the job's layers. */
struct draft {
    const struct pl_job *job;
    int n;
    struct pl_layer *layer;  /* input[]: indices of this array */
    const char **activation; /* kind of the layer to follow, or NULL */
    char **activated;        /* "NAME.relu": its name */
    int *users;              /* how many inputs take this output */
    int *order;              /* order[k]: the k-th to run */
    int *place;              /* index of the output in the finished graph; -1: none so far */
    bool *needed;            /* for the end in evaluation, all of them in training */
    int end;                 /* the main loss, or the one layer that nobody takes */
};

void pl_graph_layer_free(struct pl_layer *l)
{
    if (l->config)
        pl_job_layer_config_free(l->kind->keys, l->config);
    pl_free(l->config);
    pl_free(l->name);
    *l = (struct pl_layer){0};
}

void pl_graph_layers_free(struct pl_graph *g)
{
    for (int i = 0; g->layer && i < g->layers; i++)
        pl_graph_layer_free(&g->layer[i]);
    pl_free(g->layer);
    pl_free(g->node);
}

static void draft_free(struct draft *d)
{
    for (int i = 0; d->layer && i < d->n; i++)
        pl_graph_layer_free(&d->layer[i]);
    for (int i = 0; d->activated && i < d->n; i++)
        pl_free(d->activated[i]);
    pl_free(d->layer);
    pl_free(d->activation);
    pl_free(d->activated);
    pl_free(d->users);
    pl_free(d->order);
    pl_free(d->place);
    pl_free(d->needed);
}

static pl_status draft_alloc(struct draft *d, const struct pl_job *job)
{
    size_t n = (size_t)job->layers;
    d->job = job;
    d->n = job->layers;
    d->layer = pl_alloc(n * sizeof *d->layer, "layers");
    d->activation = pl_alloc(n * sizeof *d->activation, "layers");
    d->activated = pl_alloc(n * sizeof *d->activated, "layers");
    d->users = pl_alloc(n * sizeof *d->users, "layers");
    d->order = pl_alloc(n * sizeof *d->order, "layers");
    d->place = pl_alloc(n * sizeof *d->place, "layers");
    d->needed = pl_alloc(n * sizeof *d->needed, "layers");
    bool all = d->layer && d->activation && d->activated && d->users && d->order && d->place && d->needed;
    return all ? PL_OK : PL_ERR_MEMORY;
}

/* ---- kinds and keys -------------------------------------------------------------------------- */

static pl_status find_kind(const struct pl_job_layer *source, const struct pl_layer_kind **out)
{
    *out = pl_layer_find(source->kind);
    if (*out)
        return PL_OK;
    const char *near = pl_layer_nearest(source->kind);
    if (near)
        return pl_job_layer_error(source, "%s: unknown kind `%s`; did you mean `%s`?", source->name,
                                  source->kind, near);
    struct pl_text known = {0};
    for (int i = 0; pl_layer_list()[i]; i++)
        pl_text_add(&known, " %s", pl_layer_list()[i]->name);
    pl_status s = pl_job_layer_error(source, "%s: unknown kind `%s`\nkinds are:%s", source->name,
                                     source->kind, known.s);
    pl_text_free(&known);
    return s;
}

static pl_status read_layer(struct draft *d, int i)
{
    const struct pl_job_layer *source = &d->job->layer[i];
    struct pl_layer *l = &d->layer[i];
    PL_TRY(find_kind(source, &l->kind));
    l->source = source;
    l->name = pl_strdup(source->name);
    size_t bytes = l->kind->config_bytes ? l->kind->config_bytes : 1;
    l->config = pl_alloc(bytes, "a layer's keys");
    if (!l->name || !l->config)
        return PL_ERR_MEMORY;
    PL_TRY(pl_job_layer_config(source, l->kind->keys, l->config));
    d->activation[i] = l->kind->activation ? l->kind->activation(l) : NULL;
    if (d->activation[i]) {
        d->activated[i] = pl_strdupf("%s.%s", l->name, d->activation[i]);
        if (!d->activated[i])
            return PL_ERR_MEMORY;
    }
    return PL_OK;
}

/* Is `name` one of layer i's: its own, or that of the activation that follows it? */
static bool has_name(const struct draft *d, int i, const char *name)
{
    return strcmp(d->layer[i].name, name) == 0 ||
           (d->activated[i] && strcmp(d->activated[i], name) == 0);
}

/* Two layers of one name are refused by job/; this is for the names of activations. */
static pl_status check_name(const struct draft *d, int i)
{
    const struct pl_layer *l = &d->layer[i];
    for (int j = 0; j < i; j++)
        if (has_name(d, j, l->name) || (d->activated[i] && has_name(d, j, d->activated[i])))
            return pl_job_layer_error(l->source, "%s: a layer of this name stands above", l->name);
    return PL_OK;
}

/* ---- from ------------------------------------------------------------------------------------ */

static const char *nearest_name(const struct draft *d, const char *name)
{
    const char *best = "data";
    int least = pl_text_distance(name, best);
    for (int i = 0; i < d->n; i++) {
        int distance = pl_text_distance(name, d->layer[i].name);
        if (distance < least) {
            least = distance;
            best = d->layer[i].name;
        }
    }
    return least < 2 + (int)strlen(name) / 4 ? best : NULL;
}

static pl_status find_input(const struct draft *d, int i, const char *name, int *out)
{
    *out = PL_DATA;
    if (strcmp(name, "data") == 0)
        return PL_OK;
    for (int j = 0; j < d->n; j++)
        if (has_name(d, j, name)) {
            *out = j;
            return PL_OK;
        }
    const char *near = nearest_name(d, name);
    return pl_job_layer_error(d->layer[i].source, "%s: from `%s`: no layer has this name%s%s%s",
                              d->layer[i].name, name, near ? "; did you mean `" : "",
                              near ? near : "", near ? "`?" : "");
}

static pl_status check_count(const struct pl_layer *l, int n)
{
    const struct pl_layer_kind *k = l->kind;
    if (n >= k->min_inputs && n <= k->max_inputs)
        return PL_OK;
    if (n < k->min_inputs)
        return pl_job_layer_error(l->source,
                                  "%s: %s takes %d or more inputs, not %d\n"
                                  "name them: from: [a, b]",
                                  l->name, k->name, k->min_inputs, n);
    return pl_job_layer_error(l->source, "%s: %s takes %d input%s, but from: names %d", l->name,
                              k->name, k->max_inputs, k->max_inputs > 1 ? "s" : "", n);
}

static pl_status resolve_inputs(struct draft *d, int i)
{
    struct pl_layer *l = &d->layer[i];
    const struct pl_texts *from = &l->source->from;
    l->inputs = from->n ? from->n : 1;
    PL_TRY(check_count(l, l->inputs));
    if (from->n == 0)
        l->input[0] = i - 1; /* the layer above; PL_DATA for the first */
    for (int k = 0; k < from->n; k++)
        PL_TRY(find_input(d, i, from->v[k], &l->input[k]));
    for (int k = 0; k < l->inputs; k++) {
        int j = l->input[k];
        if (j == PL_DATA)
            continue;
        d->users[j]++;
        if (d->layer[j].kind->loss)
            return pl_job_layer_error(l->source,
                                      "%s: takes the output of `%s`, but a loss ends the "
                                      "network",
                                      l->name, d->layer[j].name);
    }
    return PL_OK;
}

/* ---- order ----------------------------------------------------------------------------------- */

/* All inputs of layer i have a place. */
static bool ready(const struct draft *d, int i)
{
    for (int k = 0; k < d->layer[i].inputs; k++) {
        int j = d->layer[i].input[k];
        if (j != PL_DATA && d->place[j] < 0)
            return false;
    }
    return true;
}

/* An input of layer i that has no place. */
static int blocked_input(const struct draft *d, int i)
{
    int k = 0;
    while (d->layer[i].input[k] == PL_DATA || d->place[d->layer[i].input[k]] >= 0)
        k++;
    return d->layer[i].input[k];
}

/* Every layer without a place has an input without one: who follows them long enough runs in a
 * circle. Names it in the direction of the flow. */
static pl_status circle(struct draft *d)
{
    int at = 0, n = 0;
    while (d->place[at] >= 0)
        at++;
    for (int k = 0; k < d->n; k++)
        at = blocked_input(d, at);
    int start = at;
    for (int k = 0; k < d->n; k++, at = blocked_input(d, at))
        start = at < start ? at : start; /* the circle's first in the file */
    at = start;
    do {
        d->order[n++] = at;
        at = blocked_input(d, at);
    } while (at != start);
    struct pl_text names = {0};
    pl_text_add(&names, "%s", d->layer[start].name);
    while (n--)
        pl_text_add(&names, " -> %s", d->layer[d->order[n]].name);
    pl_status s = pl_job_layer_error(d->layer[start].source, "%s: layers go in a circle: %s",
                                     d->layer[start].name, names.s);
    pl_text_free(&names);
    return s;
}

static pl_status sort(struct draft *d)
{
    for (int i = 0; i < d->n; i++)
        d->place[i] = -1;
    for (int done = 0; done < d->n; done++) {
        int i = 0;
        while (i < d->n && (d->place[i] >= 0 || !ready(d, i)))
            i++;
        if (i == d->n)
            return circle(d);
        d->order[done] = i;
        d->place[i] = done; /* until emit() knows better */
    }
    return PL_OK;
}

/* ---- the form of a network ------------------------------------------------------------------- */

/* The last loss in the file; -1: none. */
static int main_loss(const struct draft *d)
{
    int i = d->n - 1;
    while (i >= 0 && !d->layer[i].kind->loss)
        i--;
    return i;
}

/* A network ends in losses, the main one and those that help to train it, or for predict in the one
 * layer that nobody takes. */
static pl_status find_end(struct draft *d, bool train)
{
    const struct pl_layer *last = &d->layer[d->n - 1];
    d->end = main_loss(d);
    bool has_loss = d->end >= 0;
    if (!has_loss && train)
        return pl_job_layer_error(last->source,
                                  "%s: the network has no loss to train "
                                  "by\nend it with one, for instance {name: loss, kind: "
                                  "softmax_loss}",
                                  last->name);
    for (int i = 0; i < d->n; i++) {
        const struct pl_layer *l = &d->layer[i];
        if (d->users[i] || l->kind->loss)
            continue;
        if (has_loss)
            return pl_job_layer_error(l->source, "%s: no layer takes its output", l->name);
        if (d->end >= 0)
            return pl_job_layer_error(l->source,
                                      "%s: no layer takes its output, nor that of `%s`; a "
                                      "network without a loss has one end",
                                      l->name, d->layer[d->end].name);
        d->end = i;
    }
    return PL_OK;
}

/* Evaluation leaves out the auxiliary losses with the layers that only they need. */
static void find_needed(struct draft *d, bool train)
{
    d->needed[d->end] = true;
    for (int at = d->n - 1; at >= 0; at--) {
        int i = d->order[at];
        const struct pl_layer *l = &d->layer[i];
        d->needed[i] |= train;
        for (int k = 0; d->needed[i] && k < l->inputs; k++)
            if (l->input[k] != PL_DATA)
                d->needed[l->input[k]] = true;
    }
}

/* ---- the finished graph ---------------------------------------------------------------------- */

/* Moves layer i of the draft to the end of the graph, with its activation. */
static void emit(struct pl_graph *g, struct draft *d, int i)
{
    struct pl_layer *l = &g->layer[g->layers++];
    *l = d->layer[i];
    d->layer[i] = (struct pl_layer){0};
    for (int k = 0; k < l->inputs; k++)
        l->input[k] = l->input[k] == PL_DATA ? PL_DATA : d->place[l->input[k]];
    d->place[i] = g->layers - 1;
    if (!d->activation[i])
        return;
    struct pl_layer *a = &g->layer[g->layers++];
    *a = (struct pl_layer){.kind = pl_layer_find(d->activation[i]),
                           .source = l->source,
                           .name = d->activated[i],
                           .inputs = 1,
                           .input = {g->layers - 2}};
    d->activated[i] = NULL;
    d->place[i] = g->layers - 1;
}

static pl_status build(struct pl_graph *g, struct draft *d)
{
    for (int i = 0; i < d->n; i++)
        PL_TRY(read_layer(d, i));
    for (int i = 0; i < d->n; i++)
        PL_TRY(check_name(d, i));
    for (int i = 0; i < d->n; i++)
        PL_TRY(resolve_inputs(d, i));
    PL_TRY(sort(d));
    PL_TRY(find_end(d, g->train));
    find_needed(d, g->train);
    size_t most = 2 * (size_t)d->n; /* each with an activation */
    g->layer = pl_alloc(most * sizeof *g->layer, "layers");
    g->node = pl_alloc(most * sizeof *g->node, "layers");
    if (!g->layer || !g->node)
        return PL_ERR_MEMORY;
    for (int k = 0; k < d->n; k++)
        if (d->needed[d->order[k]])
            emit(g, d, d->order[k]);
    g->output = d->place[d->end];
    g->has_loss = g->layer[g->output].kind->loss;
    return PL_OK;
}

pl_status pl_graph_build(struct pl_graph *g, const struct pl_job *job)
{
    if (job->layers < 1)
        return pl_error(PL_ERR_USAGE, "graph", "%s: the model has no layers",
                        job->path ? job->path : "job");
    struct draft d = {0};
    pl_status s = draft_alloc(&d, job);
    if (s == PL_OK)
        s = build(g, &d);
    draft_free(&d);
    return s;
}
