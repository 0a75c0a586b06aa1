/* graph: the network as a DAG of layers, its slabs, its memory plan, and one pass through it. */
#ifndef PL_GRAPH_H
#define PL_GRAPH_H

#include "layer/layer.h"

struct pl_graph; /* one network on one backend at one batch capacity */

/* One tensor of the slabs, in slab order (forward order; backward finishes from the far end). */
struct pl_tensor {
    const char *layer, *name;
    const struct pl_param *param; /* shape, multipliers, offset */
    void *bf16;                   /* a weight that is multiplied in bf16: its copy; otherwise NULL */
};

/* Builds layers, infers shapes, lays out slabs and the activation arena, makes the plans. Of several
 * losses the last in the file is the main one, that of the network's output; the others are
 * auxiliary heads, which add to the gradient only (Szegedy et al. 2015). train false: forward only,
 * without auxiliary heads and the layers that only they need. share: NULL makes
 * parameters here; otherwise uses those of another graph of the same job (evaluation; or training on several
 * batches in flight, whose gradients pl_graph_set_grads puts into one slab; not where the backend is far), whichever it
 * has at each pass. The job, and the graph that is shared, must outlive this one. PL_ERR_USAGE,
 * PL_ERR_MEMORY. Not collective. */
pl_status pl_graph_create(const struct pl_job *job, const struct pl_backend_table *table,
                          struct pl_backend *backend, int64_t batch, bool train,
                          struct pl_graph *share, struct pl_graph **out);
void pl_graph_destroy(struct pl_graph *g);

/* Pipeline parallelism: the network cut across its flow into contiguous pieces of the running order, each a graph on a rank
 * of its own (Huang et al., GPipe, NeurIPS 2019; Narayanan et al., PipeDream, SOSP 2019). The output of one layer is all that
 * crosses a border; every stage has weights to train, and the last one the main loss. The cuts are those of the network as it
 * is trained, in evaluation too. */
enum { PL_MAX_STAGES = 256 };
struct pl_graph_cut {
    int stage, stages;
    /* split.at: the first layer of each stage but the first, by name. NULL or empty: the cuts that make the slowest stage
     * fastest, by flops, and of those the ones that hand on least. */
    const struct pl_texts *at;
    /* Tensor parallelism: instead of that the layers themselves are shared out. Of the outputs of a dense layer or a convolution
     * (without groups) each of `parts` ranks makes an equal share, with that share of its weights, if their number can be divided so;
     * what follows channel by channel (activations, pooling, dropout, batch normalisation) goes on with the shares. Where a
     * layer takes all channels they are gathered, and the gradient goes back as shares of its sum over the ranks (the g and f
     * of Shoeybi et al., Megatron-LM, 2019; by channels as in Dryden et al., Channel and Filter Parallelism, SC 2019). Other
     * layers, and losses, are computed by every rank alike. parts 0, 1: they are whole. Not both that and stages. */
    int part, parts;
};
/* The same for one stage, or part. cut: NULL is the whole network. share: a graph of the same stage. PL_ERR_USAGE, too, where the
 * network cannot be cut so, or the backend is far. */
pl_status pl_graph_create_stage(const struct pl_job *job, const struct pl_backend_table *table,
                                struct pl_backend *backend, int64_t batch, bool train, const struct pl_graph_cut *cut,
                                struct pl_graph *share, struct pl_graph **out);

struct pl_graph_stage {
    const char *first, *last; /* layers, in running order */
    double flops;             /* forward, of a sample */
    int64_t weights;          /* trainable numbers */
    int64_t border_elems;     /* of a sample, handed on to the next stage; 0: the last */
};
/* Of the whole network, known to every stage; where it is cut, as it is trained. 1: it is not cut. */
int pl_graph_stages(const struct pl_graph *g, const struct pl_graph_stage **out);
/* What crosses, with the batch's capacity. NULL: this is the first stage, or the last. */
const struct pl_shape *pl_graph_border_in(const struct pl_graph *g);
const struct pl_shape *pl_graph_border_out(const struct pl_graph *g);

/* Of a stage these are its own; its layers begin and end with those that stand for the stages beside it, kinds "source" and
 * "sink", without parameters. */
int pl_graph_tensors(const struct pl_graph *g, const struct pl_tensor **out);
int pl_graph_layers(const struct pl_graph *g, const struct pl_layer **out); /* with activations */
int64_t pl_graph_elems(const struct pl_graph *g); /* of a slab; multiples of 16, 0 in gaps */
int64_t pl_graph_weights(const struct pl_graph *g); /* trainable numbers that are here */
/* Slabs, in host memory: where the backend's is far, every pass of a graph made for training, and every pl_graph_prepare, sends the
 * parameters there, and a backward pass brings the gradient here. */
float *pl_graph_params(struct pl_graph *g);
float *pl_graph_grads(struct pl_graph *g); /* sums over samples; NULL before there is one */
/* Uses the caller's slab, in host memory, with the layout of pl_graph_tensors and 0 in the gaps,
 * from the next pass on (versions of parameters, a gradient that others read). NULL goes back to the
 * graph's own; that of the gradient is made by the first backward pass that needs it. Not between a forward and its backward.
 * The caller owns it, and takes it back before it is freed. */
void pl_graph_set_params(struct pl_graph *g, float *params);
void pl_graph_set_grads(struct pl_graph *g, float *grads);
/* With split.optimizer a graph that is made for training has no memory for parameters before this: for good it takes the caller's, or
 * with NULL makes its own. PL_ERR_MEMORY. */
pl_status pl_graph_keep_params(struct pl_graph *g, float *params);
/* For a run in which nobody else reads or writes the parameters at every step, nor the gradient where it is to stay, too. Of a far backend: parameters stay there; they are
 * sent now, are changed there (pl_graph_there) and come here when they are brought. With the gradient, it stays there too, and
 * a slice is said to be final once the work that makes it has been started. As one, besides: forward and backward are started as
 * one, not slice by slice; not with accumulate. Of the host's: copies of weights in bf16 are made now, and who changes a weight brings
 * its copy up to date. */
struct pl_graph_slabs { float *params, *grads; };
enum pl_stay { PL_STAY_PARAMS, PL_STAY_GRADIENT, PL_STAY_AS_ONE };
pl_status pl_graph_stay(struct pl_graph *g, enum pl_stay what);
struct pl_graph_slabs pl_graph_there(struct pl_graph *g);
pl_status pl_graph_bring_params(struct pl_graph *g);
/* train.sync_bn, of a graph made for training: where its plans' sums over the ranks are made, v[n] in place. Every rank's passes
 * ask for the same ones in the same order, with 0 rows too; an error ends the pass. Without it, or with NULL, there is one rank.
 * pl_graph_sync_values: the most values of such a sum; 0: there is none. */
typedef pl_status pl_sync_fn(void *arg, double *v, int64_t n);
void pl_graph_set_sync(struct pl_graph *g, pl_sync_fn *sum, void *arg);
int64_t pl_graph_sync_values(const struct pl_graph *g);
size_t pl_graph_arena_bytes(const struct pl_graph *g);
/* From here to pl_graph_entries: of the whole network, the same on every stage. */
double pl_graph_flops(const struct pl_graph *g, int64_t rows); /* forward */
/* Of names, kinds, shapes and who takes what from whom: "the same model", of graphs made alike. */
uint64_t pl_graph_signature(const struct pl_graph *g);
/* Shape of what predict writes: the main loss's output, or the last layer's. */
const struct pl_shape *pl_graph_output_shape(const struct pl_graph *g);

int pl_graph_losses(const struct pl_graph *g); /* with the main one */
/* Labels are integers below this; 0: labels are floats, or there is no loss. */
int64_t pl_graph_classes(const struct pl_graph *g);
/* The data are integers below this, numbers of an embedding's entries; 0: any numbers. */
int64_t pl_graph_entries(const struct pl_graph *g);

/* Fills the parameters with their initial values. */
void pl_graph_init(struct pl_graph *g, uint64_t seed);

/* For a graph made without train, before its first pass and whenever the parameters have changed since:
 * folds batch normalisations into a copy of the weights before them, sends what is far. PL_ERR_MEMORY. */
pl_status pl_graph_prepare(struct pl_graph *g);

/* What crosses the borders of a stage, all of it canonical, [batch, ...] as pl_graph_border_in and _out say, of which `rows`
 * are used. At the first and the last stage those of the side that has no border are not. What is read is copied: nothing is
 * kept when a pass returns, so one buffer may be x and then dx, one y and then dy. */
struct pl_graph_border {
    const float *x;  /* forward reads it */
    float *y;        /* forward writes it */
    const float *dy; /* backward reads it */
    float *dx;       /* backward writes it */
};

/* What the ranks that have the parts of a network do together amid a pass: the same calls in the same order on all, on host memory.
 * A status other than PL_OK ends the pass. */
struct pl_graph_group {
    /* y[rows, parts * n]: of each row all parts' x[rows, n], one behind the other. */
    pl_status (*gather)(void *arg, int64_t rows, int64_t n, const float *x, float *y);
    /* x[rows, n]: this part's share of the sum of all parts' y[rows, parts * n]. */
    pl_status (*scatter)(void *arg, int64_t rows, int64_t n, const float *y, float *x);
    pl_status (*sum)(void *arg, int64_t n, float *x); /* x[n], in place, the same bits on all */
    void *arg;
};
/* Of a part, before its first pass; not owned. */
void pl_graph_set_group(struct pl_graph *g, const struct pl_graph_group *group);
/* The most numbers that one such call is given, over all parts. 0: nothing is split. */
int64_t pl_graph_group_elems(const struct pl_graph *g);

struct pl_graph_batch {
    int64_t rows;
    const float *data;        /* [batch, ...], padding rows 0; not read by stages but the first */
    const struct pl_pixels *pixels; /* or, where the backend makes data of them, these */
    const void *label;        /* int32_t or float; NULL: no loss is computed (predict) */
    const int64_t *index;     /* [batch] sample index, names random streams */
    uint64_t seed, step_key;  /* dropout */
    bool (*abandoned)(void *arg); /* NULL, or asked before each layer, or before those that are started as one: true ends the pass with PL_END */
    void *arg;
    const struct pl_graph_border *border; /* of a stage; NULL: of the whole network */
    bool more; /* another pass will add to the gradient before anybody reads it: no slice is said to be final, a far one stays where it is */
    /* The batch of the next pass, where it is known: sent to a far backend while this one is computed. Its memory stays as it
     * is until that pass, or until pl_graph_drop_next. */
    const struct pl_graph_batch *next;
};
/* Samples [first, first + rows) of a batch of host memory, as a batch: data is [.., the job's input], NULL stays NULL. */
struct pl_graph_batch pl_graph_batch_part(const struct pl_job_input *input, const struct pl_graph_batch *b, int64_t first, int64_t rows);
size_t pl_graph_data_bytes(const struct pl_job_input *input);  /* of a sample */
size_t pl_graph_label_bytes(const struct pl_job_input *input);
/* Layers forward; adds to *sums (may be NULL where label is): total is that of all losses, the rest of
 * the main one. train: only a graph made for it. */
pl_status pl_graph_forward(struct pl_graph *g, const struct pl_graph_batch *b, bool train,
                           struct pl_loss_sums *sums);
/* There will be another one than was said, or none. */
pl_status pl_graph_drop_next(struct pl_graph *g);
/* Of the last forward, until the next: [batch, ...] as pl_graph_output_shape says, in host memory. NULL: it could not be
 * brought there, or this is a stage that does not make it. */
const float *pl_graph_output(struct pl_graph *g);
bool pl_graph_makes_output(const struct pl_graph *g); /* of stages one does */
/* Layers backward, after a forward with train of the same batch. After each layer whose gradient is
 * final calls slice(arg, a, b): elements [a, b) of the gradient slab, from the far end to 0 without
 * a gap; of a far backend once there are at least as many as pl_graph_slice_at_least says. Returns what slice returns when not 0: PL_END abandons the pass. slice may be NULL. */
typedef pl_status pl_slice_fn(void *arg, int64_t a, int64_t b);
pl_status pl_graph_backward(struct pl_graph *g, const struct pl_graph_batch *b, bool accumulate,
                            pl_slice_fn *slice, void *arg);

void pl_graph_slice_at_least(struct pl_graph *g, int64_t elems);

/* For benchmarks: from now on adds the times of layer i, forward to ms[2 * i] and backward to
 * ms[2 * i + 1]. NULL: no longer. */
void pl_graph_time_layers(struct pl_graph *g, double *ms);

#endif
