/* Inside graph/ (and its test) only: the network as it is put together by build.c (which layers, in
 * which order), shapes.c (shapes and slabs), cut.c, stage.c and parts.c (which piece of it is here), fold.c (what evaluation spares), plan_memory.c (where
 * activations lie) and graph.c (the backend's plans), and run by run.c. */
#ifndef PL_GRAPH_PRIVATE_H
#define PL_GRAPH_PRIVATE_H

#include "graph/graph.h"

/* A stretch of the arena in use from time step `begin` to `end`, both included. With L layers,
 * layer i runs forward at time i and backward at time 2L - 1 - i. */
struct pl_span {
    size_t bytes;
    int begin, end;
    size_t offset;
    int root; /* the layer whose output or gradient it is */
};
enum { PL_NO_SPAN = -1, PL_DATA = -1, PL_ELSEWHERE = -1 };

/* What graph.c and run.c add to a layer. */
struct pl_node {
    struct pl_plan *plan; /* NULL: a view */
    int root;       /* the layer that owns the output's memory; PL_DATA: a view of the input */
    bool fused;     /* a rectifier or a normalisation that its root's plan computes: a view of it */
    bool relu;      /* such a rectifier follows this layer */
    const struct pl_layer *norm; /* such a normalisation follows this layer, or NULL */
    int64_t folded;              /* then: its weights' place in g->folded, before its bias */
    bool need_grad; /* the loss depends on a parameter through this output */
    int y, dy;      /* spans of a root's output and its gradient */
    int dx[PL_MAX_INPUTS];    /* span that backward writes the gradient of an input into, or none */
    bool adds[PL_MAX_INPUTS]; /* that span is temporary, to be added to the gradient of the input's
                                 root */
    struct pl_plan *add;      /* y = x0 + x1 in place, for a root whose gradient is a sum */
    struct pl_layout layout;  /* of a root's output and gradient */
    void *weight_bf16;        /* its first parameter in bf16, in memory of the graph that has the parameters; or NULL */
    int64_t positions;        /* rows of its operation for each sample */
    uint32_t key;             /* names dropout's random stream */
};

/* What everybody asks of the whole network, whichever stage of it is here. */
struct pl_whole {
    uint64_t signature;
    int64_t classes, entries;
    int losses;
    double flops; /* forward, of a sample */
    struct pl_shape output;
};

struct pl_graph {
    const struct pl_backend_table *table;
    struct pl_backend *backend;
    bool train;
    bool sync_bn;         /* train.sync_bn, and train */
    bool params_later;    /* split.optimizer, and train: pl_graph_keep_params gives them memory */
    int64_t sync_values;  /* the most of a sum over the ranks */
    pl_sync_fn *sync;     /* makes it; or NULL */
    void *sync_arg;
    int64_t batch;
    struct pl_shape data; /* of the input */
    int layers;
    struct pl_layer *layer; /* in the order they run */
    struct pl_node *node;   /* of the same index */
    int output;             /* the main loss, or the last layer; PL_ELSEWHERE: in a later stage */
    bool has_loss;          /* the whole network has */
    struct pl_whole whole;
    int stages;
    struct pl_graph_stage *stage; /* [stages], names owned */
    int part, parts;        /* parts 0: layers are whole */
    const struct pl_graph_group *group;
    bool source, sink;      /* the first layer takes in what the stage before hands on; the last hands on to the next */
    int tensors;
    struct pl_tensor *tensor;
    int64_t elems, weights;
    struct pl_graph *share; /* whose parameters are used; not owned */
    float *own_params, *own_grads;
    float *set_params, *set_grads; /* the caller's, or NULL */
    int spans;
    struct pl_span *span;
    size_t arena_bytes;
    char *arena;
    int64_t folded_elems, fold_host_elems;
    float *folded, *fold_host; /* of fold.c, on the backend and on the host; NULL: nothing is folded */
    bool prepared;
    char *bf16;   /* rounded.c: copies of weights, of the graph that has the parameters */
    bool bf16_kept;
    struct pl_graph_far *far; /* far.c: what lies on a backend whose memory is far; NULL: it is the host's */
    double *layer_ms; /* of pl_graph_time_layers, or NULL */
    struct pl_recording **recording; /* run.c: [2 + 2 * layers] of parts of a training pass, NULL each before it is made; NULL: none is */
    int64_t least_slice;  /* elements of a slice of a far gradient */
    bool passed, started; /* a training pass was made; the backward of this one has been started with its forward */
    bool unrecordable;
    const float *last_data; /* of a near backend: for an output that is a view of the input */
};

/* build.c: g->layer in an order in which every layer follows its inputs; checks the network's form.
 */
pl_status pl_graph_build(struct pl_graph *g, const struct pl_job *job);
void pl_graph_layer_free(struct pl_layer *l);

void pl_graph_layers_free(struct pl_graph *g); /* and nodes */

/* shapes.c: shapes from the input on, with the parameter tensors; then their places in the slabs. */
pl_status pl_graph_shapes(struct pl_graph *g, const struct pl_job_input *input);
pl_status pl_graph_slabs(struct pl_graph *g);
int64_t pl_graph_layer_weights(const struct pl_layer *l); /* trainable numbers */

/* cut.c: where a network with shapes is cut. place[stages + 1], the last of them its end. */
struct pl_cut_place {
    int begin;  /* the first layer of the stage */
    int border; /* the layer whose output crosses before it */
};
pl_status pl_graph_choose_cuts(const struct pl_graph *g, const struct pl_graph_cut *cut, struct pl_cut_place *place);

/* stage.c: makes of a whole network with shapes one stage of it, and says what all of them are. Then what crosses the
 * borders before and after the layers of a pass. */
pl_status pl_graph_take_stage(struct pl_graph *g, const struct pl_job *job, const struct pl_graph_cut *cut);
void pl_graph_stages_free(struct pl_graph *g);
pl_status pl_graph_take_x(struct pl_graph *g, const struct pl_graph_batch *b);
pl_status pl_graph_hand_y(struct pl_graph *g, const struct pl_graph_batch *b);
pl_status pl_graph_take_dy(struct pl_graph *g, const struct pl_graph_batch *b);
pl_status pl_graph_hand_dx(struct pl_graph *g, const struct pl_graph_batch *b);

/* parts.c: makes of a whole network with shapes one part of it, with layers between, *junctions*, where the parts meet. Then
 * what those do in a pass. */
pl_status pl_graph_take_part(struct pl_graph *g, const struct pl_graph_cut *cut);
bool pl_is_junction(const struct pl_layer *l);
pl_status pl_graph_join_forward(struct pl_graph *g, const struct pl_graph_batch *b, int i);
pl_status pl_graph_join_backward(struct pl_graph *g, const struct pl_graph_batch *b, int i); /* but for the sum over users */

/* fold.c: finds normalisations to fold in evaluation. users: how many inputs take an output. Then what
 * becomes of the operation of the layer before, and of its parameters. */
void pl_graph_find_folds(struct pl_graph *g, const int *users);
void pl_graph_fold_op(const struct pl_node *n, struct pl_op *op);
void pl_graph_fold_io(const struct pl_graph *g, int i, struct pl_io *io);

/* plan_memory.c: spans of activations and gradients by the layers' order; then, once layouts are known, their places,
 * and arena_bytes. */
pl_status pl_graph_plan_spans(struct pl_graph *g);
pl_status pl_graph_place_spans(struct pl_graph *g);
/* Gives every span its offset such that spans of overlapping times do not overlap; returns the
 * total. */
size_t pl_spans_place(struct pl_span *span, int n);
/* For tests: every span gets memory of its own. */
extern bool pl_graph_unplanned;

/* graph.c: gradient memory of its own, unless it has that or the caller's. */
pl_status pl_graph_make_grads(struct pl_graph *g);

/* rounded.c: weights that the backend multiplies in bf16. Whether their copies are made before a pass, and not by it. */
pl_status pl_graph_rounded_create(struct pl_graph *g);
void pl_graph_rounded_destroy(struct pl_graph *g);
bool pl_graph_rounded_made(const struct pl_graph *g);
void pl_graph_round_all(struct pl_graph *g);

/* run.c */
static inline int pl_graph_recordings(const struct pl_graph *g) { return 2 + 2 * g->layers; }
void pl_graph_drop_recordings(struct pl_graph *g);

/* far.c: where plans find parameters and write gradients, which are the slabs themselves where memory is the host's; and
 * what is sent and brought. */
pl_status pl_graph_far_create(struct pl_graph *g);
void pl_graph_far_destroy(struct pl_graph *g);
const float *pl_graph_params_there(struct pl_graph *g);
float *pl_graph_grads_there(struct pl_graph *g);
pl_status pl_graph_refresh_params(struct pl_graph *g); /* sends them, unless they stay there */
bool pl_graph_gradient_stays(const struct pl_graph *g);
bool pl_graph_passes_as_one(const struct pl_graph *g);
void pl_graph_pin(struct pl_graph *g); /* the gradient's slab, which slices are brought into */
void pl_graph_unpin(struct pl_graph *g);
pl_status pl_graph_send_batch(struct pl_graph *g, const struct pl_graph_batch *b);
pl_status pl_graph_send_next(struct pl_graph *g, const struct pl_graph_batch *b); /* beside what was started; NULL is fine */
void pl_graph_batch_there(const struct pl_graph *g, const struct pl_graph_batch *b, struct pl_graph_batch *there);
/* Elements [a, b) of the gradient are final: brings them here, and says so to slice, which may be NULL, once they are; in
 * order, those before it first. rest: at the end of a backward pass, however it ended (s); returns what came of it. What
 * slice returns when not 0 ends it. */
pl_status pl_graph_bring_slice(struct pl_graph *g, int64_t a, int64_t b, pl_slice_fn *slice, void *arg);
pl_status pl_graph_bring_rest(struct pl_graph *g, pl_status s, pl_slice_fn *slice, void *arg);

/* The graph that has the parameters. */
static inline struct pl_graph *pl_graph_owner(const struct pl_graph *g)
{
    while (g->share)
        g = g->share;
    return (struct pl_graph *)(uintptr_t)g;
}

enum { PL_ALIGN_ELEMS = 16 }; /* of tensors in slabs: 64 bytes */
static inline int64_t pl_aligned(int64_t n) { return (n + PL_ALIGN_ELEMS - 1) / PL_ALIGN_ELEMS * PL_ALIGN_ELEMS; }

/* Whether the layer is computed by an operation of this kind. */
static inline bool pl_is_op(const struct pl_layer *l, enum pl_op_kind kind)
{
    struct pl_op op = {0};
    if (l->kind->op)
        l->kind->op(l, &op);
    return l->kind->op && op.kind == kind;
}

static inline bool pl_is_source(const struct pl_graph *g, int i) { return g->source && i == 0; }
static inline bool pl_is_sink(const struct pl_graph *g, int i) { return g->sink && i == g->layers - 1; }
static inline bool pl_is_view(const struct pl_graph *g, int i) { return g->layer[i].kind->view || g->node[i].fused; }

static inline float *pl_span_memory(const struct pl_graph *g, int span)
{
    return span < 0 ? NULL : (float *)(void *)(g->arena + g->span[span].offset);
}
/* The layer that owns the memory of input k of layer i; PL_DATA: the batch itself. */
static inline int pl_input_root(const struct pl_graph *g, int i, int k)
{
    int from = g->layer[i].input[k];
    return from < 0 ? PL_DATA : g->node[from].root;
}

#endif
