/* Internal to backend/reference: an operation is a pair of functions over struct ref_plan. */
#ifndef PL_BACKEND_REFERENCE_H
#define PL_BACKEND_REFERENCE_H

#include "backend/backend.h"

struct pl_plan {
    struct pl_op op;
    const struct ref_op *ops;
    double *saved;    /* what forward leaves for backward */
    uint8_t *mask;
    bool trained;     /* the last forward was in training */
    pl_status status; /* of this run: set by an operation that can fail */
};
struct ref_op {
    size_t (*saved)(const struct pl_op *op); /* doubles to keep; NULL: none */
    size_t (*mask)(const struct pl_op *op);
    void (*forward)(struct pl_plan *p, const struct pl_io *io);
    void (*backward)(struct pl_plan *p, const struct pl_io *io);
};
extern const struct ref_op ref_dense, ref_conv, ref_maxpool, ref_avgpool, ref_relu, ref_sigmoid, ref_tanh, ref_gelu, ref_dropout,
    ref_embedding, ref_position_embedding, ref_lstm, ref_gru, ref_attention, ref_batchnorm, ref_layernorm, ref_lrn, ref_concat, ref_add, ref_softmax_loss, ref_sigmoid_loss, ref_euclidean_loss;

/* An [N, C, H, W] view of a shape; missing dimensions are 1. */
struct ref_dims { int64_t n, c, h, w; };
static inline struct ref_dims ref_dims(const struct pl_shape *s)
{
    return (struct ref_dims){s->dim[0], s->dims > 1 ? s->dim[1] : 1, s->dims > 2 ? s->dim[2] : 1, s->dims > 3 ? s->dim[3] : 1};
}
/* dp[i] = or += v */
static inline void ref_put(float *at, double v, bool accumulate) { *at = (float)(accumulate ? *at + v : v); }

#endif
