/* The kernels of the cuda backend as plain functions: each starts work on the stream and returns at once. Pointers are to
 * device memory, but for what is taken by value. Whether the start failed tells pl_cuda_launched. Numbers of elements are
 * int64_t; everything is computed in float, sums over many in double or in a fixed order, so that the same run gives the same bits.
 * A sample has fewer than 2^31 elements (pl_cuda_fits). Views that belong together differ in strides only. */
#ifndef PL_BACKEND_CUDA_KERNELS_H
#define PL_BACKEND_CUDA_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pl_cuda_stream_tag *pl_cuda_stream; /* a cudaStream_t */

/* What changes from pass to pass; kernels get a pointer to it in device memory. */
struct pl_cuda_pass { int64_t rows; uint64_t seed, step_key; };

/* An activation [n, c, plane], of float or of bf16: element (i, k, at) is at i * sn + k * sc + at * sp. Canonical: sc = plane,
 * sp = 1; channels last: sc = 1, sp = c. Pointers to what a view describes are void's. */
struct pl_cuda_view { int64_t n, c, h, w, sn, sc, sp; bool bf16; };

/* ---- elementwise.cu ---------------------------------------------------------------------------------------------------- */

enum pl_cuda_function { PL_CUDA_RELU, PL_CUDA_SIGMOID, PL_CUDA_TANH, PL_CUDA_GELU };
void pl_cuda_function(pl_cuda_stream s, enum pl_cuda_function f, const void *x, struct pl_cuda_view vx, void *y, struct pl_cuda_view vy);
/* dx from dy and y, which lie alike; gelu's from dy and x, which lies as dx does */
void pl_cuda_function_back(pl_cuda_stream s, enum pl_cuda_function f, const void *of, struct pl_cuda_view v, const void *dy,
                           struct pl_cuda_view vy, void *dx, struct pl_cuda_view vx);
void pl_cuda_relu_mask(pl_cuda_stream s, const void *y, void *dy, struct pl_cuda_view vy); /* dy = 0 where y is not above 0 */
/* y = the sum of x[0 .. count), then a rectifier if relu; all lie alike, y may be one of them. */
#define PL_CUDA_TERMS 16
struct pl_cuda_terms { int count; const void *x[PL_CUDA_TERMS]; bool bf16[PL_CUDA_TERMS]; };
void pl_cuda_sum(pl_cuda_stream s, struct pl_cuda_terms x, bool relu, void *y, struct pl_cuda_view vy);
/* y += bias of the channel, unless bias is NULL, then a rectifier if relu; in place */
void pl_cuda_bias(pl_cuda_stream s, void *y, struct pl_cuda_view v, const float *bias, bool relu);

/* ---- copy.cu ----------------------------------------------------------------------------------------------------------- */

/* y = or += x, element by element, whatever their order; views may be of some channels of a tensor. */
void pl_cuda_copy(pl_cuda_stream s, const void *x, struct pl_cuda_view vx, void *y, struct pl_cuda_view vy, bool add);
/* Weights [o, c, taps] of float to how they are multiplied, as [o, taps, c] if last, and back. */
struct pl_cuda_weights { int64_t o, c, taps; bool last, bf16; };
void pl_cuda_weights_lay(pl_cuda_stream s, struct pl_cuda_weights how, const float *w, void *laid);
void pl_cuda_weights_back(pl_cuda_stream s, struct pl_cuda_weights how, const void *laid, float *w, bool add);
/* y = x with zeros around it, as many rows above and columns to the left as said, the rest below and to the right; and y, a
 * part of x, taken out of it again. */
void pl_cuda_pad(pl_cuda_stream s, const void *x, struct pl_cuda_view vx, int64_t top, int64_t left, void *y, struct pl_cuda_view vy);
void pl_cuda_crop(pl_cuda_stream s, const void *x, struct pl_cuda_view vx, int64_t top, int64_t left, void *y, struct pl_cuda_view vy);

/* ---- pixels.cu ---------------------------------------------------------------------------------------------------------- */

/* As struct pl_pixels and pl_pixel_place of data.h, whose comments say what becomes of them. */
struct pl_cuda_place { int32_t top, bottom, left, right, mirrored; };
struct pl_cuda_pixels {
    int64_t n, channels, height, width;
    const uint8_t *value;
    const struct pl_cuda_place *place;
    const float *factor; /* [2, channels] */
};
void pl_cuda_widen(pl_cuda_stream s, struct pl_cuda_pixels p, float *y); /* [n, channels, height, width] */

/* ---- channel.cu: sums over samples and planes, one a channel -------------------------------------------------------------- */

size_t pl_cuda_channel_scratch(struct pl_cuda_view v); /* bytes that these need */
/* db = or += the sum of dy of each channel, over all samples: the gradient of a bias */
void pl_cuda_bias_back(pl_cuda_stream s, const void *dy, struct pl_cuda_view v, bool accumulate, float *db, void *scratch);

/* Batch normalisation of the real rows; see batchnorm.c. `kept` is what forward leaves for backward. */
struct pl_cuda_batchnorm {
    struct pl_cuda_view vx, vy;   /* of x, dx; of y, dy */
    double epsilon;
    bool relu, train;             /* train: by the batch's own statistics */
    const struct pl_cuda_pass *pass;
    const float *scale, *shift, *mean, *variance; /* [c] */
    double *kept;                 /* [PL_CUDA_BATCHNORM_KEPT * c] */
    void *scratch;
};
#define PL_CUDA_BATCHNORM_KEPT 6
void pl_cuda_batchnorm_forward(pl_cuda_stream s, struct pl_cuda_batchnorm b, const void *x, void *y);
/* dp: each [c] or NULL; dx may be NULL */
void pl_cuda_batchnorm_backward(pl_cuda_stream s, struct pl_cuda_batchnorm b, const void *x, const void *y, const void *dy,
                                void *dx, float *const dp[4], bool accumulate);

/* Layer normalisation; see layernorm.c. x, dx and y, dy are [rows, columns], of bf16 where they say so. */
struct pl_cuda_layernorm {
    int64_t rows, columns;
    bool x16, y16;
    float epsilon;
    const float *scale, *shift;   /* [columns], or both NULL: 1 and 0 */
    float *kept;                  /* [rows, 2]: mean and 1 / sqrt(variance + epsilon), which forward leaves for backward; NULL: none follows */
};
size_t pl_cuda_layernorm_scratch(int64_t rows, int64_t columns);
/* The gradients of scale and shift, = or += */
void pl_cuda_layernorm_sums(pl_cuda_stream s, struct pl_cuda_layernorm l, const void *x, const void *dy, bool accumulate, float *dscale,
                            float *dshift, void *scratch);

/* ---- layernorm.cu ------------------------------------------------------------------------------------------------------- */

void pl_cuda_layernorm_forward(pl_cuda_stream s, struct pl_cuda_layernorm l, const void *x, void *y);
void pl_cuda_layernorm_backward(pl_cuda_stream s, struct pl_cuda_layernorm l, const void *x, const void *dy, void *dx);

/* ---- dropout.cu --------------------------------------------------------------------------------------------------------- */

struct pl_cuda_dropout {
    const struct pl_cuda_pass *pass;
    const int64_t *row_key;       /* [n] */
    uint32_t layer_key;
    uint64_t least;               /* an element is kept when its 32 random bits are at least this */
    float scale;
};
/* keep: a byte an element, in y's order */
void pl_cuda_dropout_forward(pl_cuda_stream s, struct pl_cuda_dropout d, const void *x, struct pl_cuda_view vx, void *y,
                             struct pl_cuda_view vy, uint8_t *keep);
void pl_cuda_dropout_backward(pl_cuda_stream s, float scale, const uint8_t *keep, const void *dy, struct pl_cuda_view vy,
                              void *dx, struct pl_cuda_view vx);

/* ---- pool.cu ------------------------------------------------------------------------------------------------------------ */

struct pl_cuda_window {
    int64_t kernel[2], stride[2], begin[2], end[2]; /* begin, end: padding; of h and w */
    bool count_pad;
};
/* from: NULL, or where in its plane each maximum was found, in y's order */
void pl_cuda_pool_largest(pl_cuda_stream s, struct pl_cuda_window w, const void *x, struct pl_cuda_view vx, void *y,
                          struct pl_cuda_view vy, int32_t *from);
void pl_cuda_pool_largest_back(pl_cuda_stream s, struct pl_cuda_window w, const void *dy, struct pl_cuda_view vy, const int32_t *from,
                          void *dx, struct pl_cuda_view vx);
void pl_cuda_pool_mean(pl_cuda_stream s, struct pl_cuda_window w, const void *x, struct pl_cuda_view vx, void *y, struct pl_cuda_view vy);
void pl_cuda_pool_mean_back(pl_cuda_stream s, struct pl_cuda_window w, const void *dy, struct pl_cuda_view vy, void *dx,
                          struct pl_cuda_view vx);

/* ---- lrn.cu ------------------------------------------------------------------------------------------------------------- */

struct pl_cuda_lrn { int64_t before, after; float weight, beta, k; }; /* channels of a window on either side; alpha / size */
/* base: NULL, or k + weight * the sum of squares, kept for backward; in y's order */
void pl_cuda_lrn_forward(pl_cuda_stream s, struct pl_cuda_lrn l, const void *x, struct pl_cuda_view vx, void *y,
                         struct pl_cuda_view vy, float *base);
void pl_cuda_lrn_backward(pl_cuda_stream s, struct pl_cuda_lrn l, const void *x, struct pl_cuda_view vx, const void *y,
                          const void *dy, struct pl_cuda_view vy, const float *base, void *dx);

/* ---- sequence.cu -------------------------------------------------------------------------------------------------------- */

void pl_cuda_clear(pl_cuda_stream s, float *v, int64_t n); /* v = 0 */

struct pl_cuda_table { const float *rows; int64_t entries, units; }; /* rows: [entries, units] */
/* y[n, units] = the rows that id names; NaN where there is no such row */
void pl_cuda_embedding_forward(pl_cuda_stream s, struct pl_cuda_table t, const float *id, int64_t n, float *y);
/* The table's gradient = or += the rows of dy[n, units], those of one id in their order; no such row: nothing */
void pl_cuda_embedding_backward(pl_cuda_stream s, const float *id, int64_t n, const float *dy, int64_t entries, int64_t units,
                                bool accumulate, float *gradient);

/* y = x + w of each sample's row, which is as long as w */
void pl_cuda_add_row(pl_cuda_stream s, const void *x, bool x16, const float *w, int64_t n, int64_t row, void *y, bool y16);

/* A recurrent cell at one position of n samples: of LSTM where z is 4 h, of GRU where it is 3 h (backend.h has the formulas). */
struct pl_cuda_cell {
    int64_t n, h, z;
    const float *b, *bu;    /* [z] or both NULL */
    float *gates;           /* [n, z]: W x; forward activates them, backward makes the gradient by W x + b of them */
    const float *product;   /* [n, z]: U h of the position before; NULL at the first */
    const float *before;    /* [n, h]: c of the position before, of GRU its h; NULL at the first */
    float *beside;          /* [n, h]: c, of GRU U h + bu of its third gate */
    float *y;               /* [n, h]: h */
};
struct pl_cuda_cell_back {
    const float *dy;        /* [n, h] or NULL */
    const float *dh;        /* [n, h]: what comes through U from the position after; NULL: there is none */
    float *direct;          /* [n, h]: what comes from there besides, by c, of GRU by h; becomes that for the position before */
    bool first;             /* direct has nothing yet */
    float *du;              /* [n, z]: GRU: the gradient by U h + bu */
};
void pl_cuda_cell_forward(pl_cuda_stream s, struct pl_cuda_cell c);
void pl_cuda_cell_backward(pl_cuda_stream s, struct pl_cuda_cell c, struct pl_cuda_cell_back g);

/* ---- attention.cu ------------------------------------------------------------------------------------------------------- */

/* Tensors of n * heads sequences, part[i]: [n, heads, t, d], beside each other: [n, t, parts, heads, d]. */
struct pl_cuda_heads { int64_t n, t, parts, heads, d; float *part[3]; };
void pl_cuda_split_heads(pl_cuda_stream s, struct pl_cuda_heads h, const float *x);
void pl_cuda_join_heads(pl_cuda_stream s, struct pl_cuda_heads h, float *x);
/* Of `sequences` matrices [t, t], row after row; causal: what is above the diagonal is not read and becomes 0. */
struct pl_cuda_scores { int64_t sequences, t; float scale; bool causal; };
void pl_cuda_weigh(pl_cuda_stream s, struct pl_cuda_scores c, float *scores); /* become the softmax of scale * scores */
void pl_cuda_weigh_back(pl_cuda_stream s, struct pl_cuda_scores c, const float *weights, float *slopes); /* by weights; become those by scores */

/* ---- loss.cu ------------------------------------------------------------------------------------------------------------ */

/* Of one sample, and of all real rows together. wrong: the first row whose label is no class, or one behind the last. */
struct pl_cuda_loss { double loss, correct, correct5; int64_t wrong; };
enum pl_cuda_loss_kind { PL_CUDA_SOFTMAX_LOSS, PL_CUDA_SIGMOID_LOSS, PL_CUDA_EUCLIDEAN_LOSS };
enum { PL_CUDA_NO_LABEL = -1 }; /* as in backend.h */
struct pl_cuda_labels {
    const struct pl_cuda_pass *pass;
    const void *label;            /* int32_t[n], or float[n, k] if floats; NULL: y alone */
    bool floats;
    int64_t positions;            /* rows of a sample */
    double *share;                /* [samples] room for what a labelled row of each counts; NULL: 1, and each has a label */
    double smoothing, weight;
};
/* x, y: [n, k]. rows: [n]; sum: [1] */
void pl_cuda_loss_forward(pl_cuda_stream s, enum pl_cuda_loss_kind kind, struct pl_cuda_labels l, int64_t n, int64_t k,
                          const float *x, float *y, struct pl_cuda_loss *rows, struct pl_cuda_loss *sum);
void pl_cuda_loss_backward(pl_cuda_stream s, enum pl_cuda_loss_kind kind, struct pl_cuda_labels l, int64_t n, int64_t k,
                           const float *y, float *dx);

/* ---- update.cu: the optimizer as one pass over the slabs (optim/) ------------------------------------------------------------ */

enum pl_cuda_rule { /* in the order of the job's kinds */
    PL_CUDA_SGD, PL_CUDA_MOMENTUM, PL_CUDA_NESTEROV, PL_CUDA_ADAGRAD, PL_CUDA_ADADELTA, PL_CUDA_RMSPROP, PL_CUDA_ADAM, PL_CUDA_ADAMW, PL_CUDA_LARS
};
/* One tensor of the slabs; statistic: the momentum of a running statistic, which is averaged, or -1. */
struct pl_cuda_tensor { int64_t offset, elems; double lr_mult, decay_mult, statistic; };
struct pl_cuda_tensors { const struct pl_cuda_tensor *at; int count; }; /* in device memory, by offset, not overlapping */
struct pl_cuda_update {
    enum pl_cuda_rule rule;
    double weight_decay, momentum, beta1, beta2, epsilon, rho, trust; /* of the job */
    double lr, samples, clip;     /* as in struct pl_update, step too: 0-based */
    int64_t step;
    struct pl_cuda_tensors tensors;
    const float *sum, *from;      /* whole slabs: the summed gradient, the parameters */
    float *to;                    /* may be from */
    float *slot[2];               /* state, as many as the rule has */
    void *scratch;                /* for lars; pl_cuda_norm_scratch bytes */
};
size_t pl_cuda_norm_scratch(int tensors);
/* Updates elements [begin, end) of the slabs. lars takes the norms of whole tensors, of which all must be there then. */
void pl_cuda_update_slabs(pl_cuda_stream s, const struct pl_cuda_update *u, int64_t begin, int64_t end);
/* out[1]: the sum of squares of the trainable gradient, of tensors that lie within [begin, end) of the slab */
void pl_cuda_square_sum(pl_cuda_stream s, struct pl_cuda_tensors t, const float *sum, int64_t begin, int64_t end, void *scratch, double *out);

#ifdef __cplusplus
}
#endif
#endif
