/* optim: from the agreed gradient to new parameters, one file an optimizer kind, and the schedule; and a method of the
 * whole set, which asks for gradients itself. */
#ifndef PL_OPTIM_H
#define PL_OPTIM_H

#include "graph/graph.h"

struct pl_optimizer;
/* State slots are slabs with the layout of the parameters, zero at first. job gives kind and numbers. With split.optimizer
 * state has no memory before pl_optimizer_share. */
pl_status pl_optimizer_create(const struct pl_job *job, const struct pl_graph *g, struct pl_optimizer **out);
void pl_optimizer_destroy(struct pl_optimizer *o);
int pl_optimizer_slots(const struct pl_optimizer *o);
const char *pl_optimizer_name(const struct pl_optimizer *o); /* optimizer.kind */
const char *pl_optimizer_slot_name(const struct pl_optimizer *o, int slot);
float *pl_optimizer_slot(struct pl_optimizer *o, int slot);

/* Learning rate of committed step `step` (0-based), warm-up included (linear from 0). */
double pl_schedule_lr(const struct pl_job *job, int64_t step, int64_t steps_per_epoch, int64_t total_steps);

struct pl_update {
    double lr;
    int64_t step;         /* 0-based; Adam's bias correction uses step + 1 */
    double samples;       /* the summed gradient is divided by this */
    double clip;          /* further factor on weights' gradients, 1 for none */
};
/* Sum of squares of the trainable gradient in [a, b) of the slab, in double, fixed order; of what another rank speaks for 0. */
double pl_optimizer_square_sum(const struct pl_optimizer *o, const float *sum, int64_t a, int64_t b);
/* Applies the update to whole tensors within the slab: reads `sum` (summed gradient) and `from`
 * (parameters), writes `to` (may equal from). Statistics: to = m * from + (1 - m) * sum / samples. */
void pl_optimizer_update(struct pl_optimizer *o, const struct pl_update *u, const float *sum,
                         const float *from, float *to);
/* The same for elements [a, b) of the slab, by the calling thread alone, any but during another update of them; sum,
 * from, to: [b - a]. Kinds that need norms of whole tensors (lars) take rate 1: for others only. */
void pl_optimizer_update_range(struct pl_optimizer *o, const struct pl_update *u, int64_t a, int64_t b, const float *sum,
                               const float *from, float *to);
/* A step, wherever parameters and state are: takes the agreed gradient, tells the sum of its squares, and updates the graph's
 * parameters by it. sum is used until then. */
pl_status pl_optimizer_take(struct pl_optimizer *o, const float *sum);
pl_status pl_optimizer_squares(struct pl_optimizer *o, double *squares);
pl_status pl_optimizer_apply(struct pl_optimizer *o, const struct pl_update *u, struct pl_graph *g);
/* Several ranks have parameters and state together, in memory that they share: apply updates elements [a, b), whole cache lines,
 * of both, which must all have left alone what they take the gradient for, and returns when all have (ZeRO's first stage,
 * Rajbhandari et al., SC 2020, without its copies). slot[i]: [elems] of the caller's, zeroed; meet: until all ranks
 * have come to it, in the same order. shared NULL: state of its own. Not with
 * pl_optimizer_stay or pl_optimizer_round. PL_ERR_MEMORY. */
struct pl_optimizer_shared {
    float *slot[2];
    int64_t a, b;
    pl_status (*meet)(void *arg);
    void *arg;
};
pl_status pl_optimizer_share(struct pl_optimizer *o, const struct pl_optimizer_shared *shared);
/* On a backend whose memory is far, and that has an optimizer pass of its own: state and the graph's parameters (pl_graph_stay)
 * are there from now on; where own is set the gradient is the graph's, too. bring: copies state into the slots. Not with
 * update_range. table, backend and graph must outlive it. PL_ERR_MEMORY. */
pl_status pl_optimizer_stay(struct pl_optimizer *o, const struct pl_backend_table *table, struct pl_backend *backend, struct pl_graph *g, bool own);
bool pl_optimizer_stays(const struct pl_optimizer *o);
pl_status pl_optimizer_bring(struct pl_optimizer *o);
/* From now on apply brings the copies of weights in bf16 up to date (pl_tensor.bf16); round: pl_backend_table's. */
void pl_optimizer_round(struct pl_optimizer *o, void (*round)(const float *from, void *to, int64_t n));
/* A step of plain SGD, whatever the kind, from params to params; statistics stay. */
void pl_optimizer_descend(const struct pl_optimizer *o, const struct pl_update *u, const float *sum, float *params);

/* ---- lbfgs.c: L-BFGS with a line search, over vectors of which each rank has a shard -------------------- */

/* A function to be minimised. All ranks ask for the same points in the same order. */
struct pl_objective {
    /* At x: this rank's share of the value, all ranks' together are it, and the gradient; x, gradient: [elems] of this
     * rank's shard. A value that is not finite is too far along. PL_END: all gave the point up, and the iteration ends. */
    pl_status (*evaluate)(void *arg, const float *x, double *value, float *gradient);
    /* Sums v[n] over the ranks, to the same bits on all; n: PL_LBFGS_TERMS at most. */
    pl_status (*sum)(void *arg, double *v, int n);
    void *arg;
};
enum pl_descent { PL_DESCENT_MADE, PL_DESCENT_CONVERGED, PL_DESCENT_NONE, PL_DESCENT_NOT_FINITE };
struct pl_iteration {
    enum pl_descent how;       /* made; the gradient's norm at x is at most the tolerance; no lower point was found though it
                                * is not; the value at x is not finite */
    double value, grad_norm, step; /* at x as it is now; step: of the line search, relative to its direction */
    int evaluations, pairs;    /* pairs: of the history that the direction was made from */
};

#define PL_LBFGS_TERMS(history) (6 * (history) + 6)
struct pl_lbfgs;
/* elems: of this rank's shard. history: pairs at most. PL_ERR_MEMORY. Not collective. */
pl_status pl_lbfgs_create(int64_t elems, int history, double tolerance, struct pl_lbfgs **out);
void pl_lbfgs_destroy(struct pl_lbfgs *l);
/* One iteration from x [elems], which must be where the one before left it: to the point that was evaluated last, or where
 * none was found and on any error x stays. Collective. */
pl_status pl_lbfgs_iterate(struct pl_lbfgs *l, const struct pl_objective *o, float *x, struct pl_iteration *out);
#endif
