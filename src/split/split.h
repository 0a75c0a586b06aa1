/* split: a replica's layers over several ranks. By layers, as a pipeline (Huang et al., GPipe, NeurIPS 2019): its batch goes through
 * them in micro-batches, forward and then backward, one of each in turn once a rank has as many under way as there are
 * stages after it (PipeDream's 1F1B, Narayanan et al., SOSP 2019). Gradients are summed over all of a batch before the
 * update, so that a split network learns what a whole one does with as many micro-batches, but for the rounding of layers beside a
 * cut, where the whole one's output may lie otherwise in memory. Or each layer by itself, as tensor parallelism
 * (graph.h, struct pl_graph_cut): all ranks of a replica go through the same batch together, and learn what one rank does but for the
 * rounding of sums over them. Main thread. */
#ifndef PL_SPLIT_H
#define PL_SPLIT_H

#include "exchange/exchange.h"
#include "graph/graph.h"

/* Where a rank is: ranks of a replica follow each other, so that those of a node hand on what they compute to each other. */
struct pl_grid {
    int stages, stage, parts, part; /* either is 1 */
    int pieces, piece;      /* of a replica's layers, of whichever kind */
    int replicas, replica;
    struct pl_world row;    /* the pieces of this replica, in their order */
    struct pl_world column; /* this piece of all replicas, by replica */
};
/* PL_ERR_USAGE where their number does not divide the ranks. Collective; ranks agree inside. */
pl_status pl_grid_open(struct pl_world *w, int64_t stages, int64_t parts, struct pl_grid *out);
void pl_grid_close(struct pl_grid *g); /* one that was not opened is fine */

struct pl_pipeline;

struct pl_pipeline_options {
    struct pl_grid *grid;          /* outlives the pipeline */
    const struct pl_job *job;
    const struct pl_backend_table *table;
    struct pl_backend *backend;
    struct pl_graph *graph;        /* of this stage, for `rows` samples; it has the parameters; outlives the pipeline */
    int64_t batch, rows;           /* of a replica; of a micro-batch: all at most */
    bool train;
    const struct pl_exchange_options *exchange; /* transport and its options; until create returns */
};
/* Connects the stages and makes a graph for each further micro-batch that is under way at a time. Collective over all ranks;
 * they agree inside. */
pl_status pl_pipeline_create(struct pl_world *w, const struct pl_pipeline_options *o, struct pl_pipeline **out);
void pl_pipeline_destroy(struct pl_pipeline *p, bool lost);
const char *pl_pipeline_why(const struct pl_pipeline *p); /* how stages are connected: a sentence */
/* Where all of its graphs write gradients: as pl_graph_set_grads. */
void pl_pipeline_set_grads(struct pl_pipeline *p, float *grads);

/* Forward and backward of a replica's batch, all stages with the same rows; slice as pl_graph_backward has it, in the last
 * micro-batch. sums: what the losses of this stage say. PL_ERR_PEER names the rank that nothing came from in time. */
pl_status pl_pipeline_pass(struct pl_pipeline *p, const struct pl_graph_batch *b, struct pl_loss_sums *sums, pl_slice_fn *slice, void *arg);
/* Forward alone, with a graph of this stage made for it. out: where the stage that makes it puts the network's output of all rows,
 * or NULL. */
pl_status pl_pipeline_evaluate(struct pl_pipeline *p, struct pl_graph *g, const struct pl_graph_batch *b, struct pl_loss_sums *sums, float *out);
/* Sums, or largest, of n values (PL_EXCHANGE_VALUES at most) over the stages, in their order: the same bits on all. */
pl_status pl_pipeline_sum(struct pl_pipeline *p, double *v, int n);
pl_status pl_pipeline_max(struct pl_pipeline *p, double *v, int n);
/* How long the main thread has waited for other stages since it was asked. */
double pl_pipeline_waited_ms(struct pl_pipeline *p);

/* ---- tensor.c ------------------------------------------------------------------------------------- */

struct pl_tensor_group;
/* Connects the ranks of this row, which have the parts of graph g, and takes part in its passes from then on. grid, and g or one that
 * shares its parameters, outlive it. Collective over all ranks; they agree inside. */
pl_status pl_tensor_group_create(struct pl_world *w, struct pl_grid *grid, const struct pl_exchange_options *o, struct pl_graph *g,
                                 struct pl_tensor_group **out);
void pl_tensor_group_destroy(struct pl_tensor_group *t, bool lost);
void pl_tensor_group_serve(struct pl_tensor_group *t, struct pl_graph *g); /* another graph of the same part, batch and job */
const char *pl_tensor_group_why(const struct pl_tensor_group *t);
/* As those of a pipeline. */
pl_status pl_tensor_group_sum(struct pl_tensor_group *t, double *v, int n);
pl_status pl_tensor_group_max(struct pl_tensor_group *t, double *v, int n);
double pl_tensor_group_waited_ms(struct pl_tensor_group *t);

#endif
