/* layer: one file a layer kind, one table (layer.c). A kind says which keys it reads, what shape it
 * gives, which parameter tensors it has, and which operation computes it. */
#ifndef PL_LAYER_H
#define PL_LAYER_H

#include "backend/backend.h"
#include "job/job.h"

enum pl_init_kind {
    PL_INIT_CONSTANT,
    PL_INIT_XAVIER,
    PL_INIT_HE,
    PL_INIT_GAUSSIAN,
    PL_INIT_UNIFORM
};
/* Xavier: uniform in +-sqrt(3 / fan_in) (Caffe's form of Glorot & Bengio 2010); he: gaussian with
 * deviation sqrt(2 / fan_in) (He et al. 2015); gaussian(std); uniform(-range, range);
 * constant(value). */
struct pl_init { int kind; double value; int64_t fan_in; };

struct pl_param {
    const char *name;        /* "weight", "bias", "scale", "shift", "mean", "variance" */
    struct pl_shape shape;
    struct pl_init init;
    double lr_mult, decay_mult;
    bool statistic;          /* a running statistic: updated by averaging, not by the optimizer */
    double momentum;         /* of a statistic */
    int64_t offset;          /* elements, into the slabs; set by graph */
    /* Where a layer is split over ranks, set by graph: rows [first, first + shape.dim[0]) of the tensor's `whole` are here; whole
     * 0: all of them. */
    int64_t first, whole;
    bool twin;               /* another rank has the very same, and speaks for both: it counts and writes it */
};

static inline int64_t pl_param_rows(const struct pl_param *p) { return p->whole > 0 ? p->whole : p->shape.dim[0]; }

struct pl_layer_kind;
struct pl_layer {
    const struct pl_layer_kind *kind;
    const struct pl_job_layer *source; /* for messages */
    char *name;
    void *config;                      /* of kind->config_bytes */
    int inputs;
    int input[PL_MAX_INPUTS];          /* index of the layer whose output it takes; -1: the data */
    struct pl_shape x[PL_MAX_INPUTS], y;
    int64_t first;                     /* where only a part of each sample's y is here: its place in all of it; otherwise 0 */
    int params;
    struct pl_param param[PL_MAX_PARAMS];
};

struct pl_layer_kind {
    const char *name, *help;
    const struct pl_key *keys;
    size_t config_bytes;
    int min_inputs, max_inputs;
    bool loss;     /* takes the label, ends the network */
    bool view;     /* output is the input's memory under another shape: no operation */
    /* From config and x[] to y and param[]. PL_ERR_USAGE via pl_job_layer_error. */
    pl_status (*shape)(struct pl_layer *l, const struct pl_job_input *input);
    /* Fills op (kind, attributes); shapes and names are filled by the caller. NULL for views. */
    void (*op)(const struct pl_layer *l, struct pl_op *op);
    /* An activation that config asks to follow this layer ("relu", "sigmoid", "tanh"), or NULL. */
    const char *(*activation)(const struct pl_layer *l);
};

const struct pl_layer_kind *pl_layer_find(const char *name);
const struct pl_layer_kind *const *pl_layer_list(void); /* NULL-terminated */
const char *pl_layer_nearest(const char *name);         /* for "did you mean"; may be NULL */
/* Fills w with the initial values; a function of (seed, layer name, tensor name) alone: part of a tensor has that part's. */
void pl_init_fill(const struct pl_param *p, const char *layer, uint64_t seed, float *w);
/* Multiply-adds x 2 of one forward pass over `rows` samples: products alone. */
double pl_layer_flops(const struct pl_layer *l, int64_t rows);

#endif
