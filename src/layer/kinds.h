/* Inside layer/ only: the kinds that the table in layer.c lists, and what several of them share:
 * keys of weights (init.c), sliding windows of convolution and pooling (window.c), messages. */
#ifndef PL_LAYER_KINDS_H
#define PL_LAYER_KINDS_H

#include "layer/layer.h"

extern const struct pl_layer_kind pl_layer_dense, pl_layer_conv, pl_layer_maxpool, pl_layer_avgpool,
    pl_layer_relu, pl_layer_sigmoid, pl_layer_tanh, pl_layer_gelu, pl_layer_embedding, pl_layer_position_embedding, pl_layer_lstm, pl_layer_gru,
    pl_layer_attention, pl_layer_dropout, pl_layer_batchnorm, pl_layer_layernorm, pl_layer_lrn, pl_layer_flatten, pl_layer_concat, pl_layer_add, pl_layer_softmax_loss,
    pl_layer_sigmoid_loss, pl_layer_euclidean_loss;

/* "50x3x3", one sample of s; a class of its own so that a message may hold several. */
struct pl_shape_text {
    char s[PL_MAX_DIMS * 21];
};
struct pl_shape_text pl_layer_shape_text(const struct pl_shape *s);
/* [batch, elems of a sample]: what dense layers and losses make of their input. */
struct pl_shape pl_layer_flat(const struct pl_shape *s);
/* Refuses an input that is not channels x height x width. */
pl_status pl_layer_need_image(const struct pl_layer *l);
/* Refuses an input that is not positions x features. */
pl_status pl_layer_need_sequence(const struct pl_layer *l);
/* Every position of a sequence as a row of its own. */
struct pl_shape pl_layer_rows(const struct pl_shape *s);

/* ---- weights: init.c ------------------------------------------------------------------------- */

struct pl_weight_config {
    int init; /* enum pl_init_kind */
    double init_value, bias_init;
    double lr_mult, decay_mult, bias_lr_mult, bias_decay_mult;
    bool bias;
};
/* Sets param[0] "weight" of shape w and, where the config asks for it, param[1] "bias" [w.dim[0]].
 */
pl_status pl_layer_weights(struct pl_layer *l, const struct pl_weight_config *c,
                           const struct pl_shape *w, int64_t fan_in);

/* Sets p to a tensor that starts, learns and decays as the config says of weights, or of biases. */
pl_status pl_layer_weight(const struct pl_layer *l, const struct pl_weight_config *c, const char *name, const struct pl_shape *w,
                          int64_t fan_in, struct pl_param *p);
void pl_layer_bias(const struct pl_weight_config *c, const char *name, int64_t elems, struct pl_param *p);

#define PL_WEIGHT_KEY(T, field, key_type, default_text, least, most, text)                         \
    {                                                                                              \
        .name = #field, .type = key_type, .offset = offsetof(T, weights.field),                    \
        .def = default_text, .min = least, .max = most, .help = text                               \
    }
/* The keys of a kind whose config T has a struct pl_weight_config `weights`; those of one without biases. */
#define PL_TABLE_KEYS(T)                                                                           \
    {.name = "init",                                                                               \
     .type = PL_KEY_CHOICE,                                                                        \
     .offset = offsetof(T, weights.init),                                                          \
     .def = "xavier",                                                                              \
     .choices = "constant|xavier|he|gaussian|uniform",                                             \
     .help = "how weights start: xavier is uniform in +-sqrt(3/fan_in), he gaussian with "         \
             "deviation sqrt(2/fan_in)"},                                                          \
        PL_WEIGHT_KEY(T, init_value, PL_KEY_DOUBLE, NULL, 0, 0,                                    \
                      "deviation of gaussian (0.01 if not given), range of uniform (0.05), "       \
                      "value of constant (0)"),                                                    \
        PL_WEIGHT_KEY(T, lr_mult, PL_KEY_DOUBLE, "1", 0, 1e6,                                      \
                      "times the learning rate, for weights"),                                     \
        PL_WEIGHT_KEY(T, decay_mult, PL_KEY_DOUBLE, "1", 0, 1e6,                                   \
                      "times the weight decay, for weights")
#define PL_WEIGHT_KEYS(T)                                                                          \
    PL_WEIGHT_KEY(T, bias, PL_KEY_BOOL, "true", 0, 0, "add a bias to each output"),                \
        PL_TABLE_KEYS(T),                                                                          \
        PL_WEIGHT_KEY(T, bias_init, PL_KEY_DOUBLE, "0", 0, 0,                                      \
                      "the constant that biases start with"),                                      \
        PL_WEIGHT_KEY(T, bias_lr_mult, PL_KEY_DOUBLE, "1", 0, 1e6,                                 \
                      "times the learning rate, for biases"),                                      \
        PL_WEIGHT_KEY(                                                                             \
            T, bias_decay_mult, PL_KEY_DOUBLE, "1", 0, 1e6,                                        \
            "times the weight decay, for biases (1 as in Caffe and PyTorch: decayed too)")

/* What may follow a layer by its `activation` key; the choices, and the index's layer kind. */
#define PL_ACTIVATION_CHOICES "none|relu|sigmoid|tanh|gelu"
#define PL_ACTIVATION_KEY(T)                                                                       \
    {                                                                                              \
        .name = "activation", .type = PL_KEY_CHOICE, .offset = offsetof(T, activation),            \
        .def = "none", .choices = PL_ACTIVATION_CHOICES, .help = "an activation after this layer"  \
    }
const char *pl_layer_activation_name(int choice); /* NULL for none */

/* ---- sliding windows: window.c --------------------------------------------------------------- */

#define PL_MAX_KERNEL 4096 /* keeps products of shapes within int64_t */

struct pl_window {
    int64_t kernel[2], stride[2], pad_begin[2], pad_end[2], dilation[2];
};
/* One number for both directions, or [h, w]. Empty: `otherwise`, or refused if that is negative. */
pl_status pl_window_pair(const struct pl_layer *l, const char *key, const struct pl_ints *v,
                         int64_t otherwise, int64_t out[2]);
/* Positions of the window over the image x[0] into hw. up: round up as Caffe's pooling does, by
 * growing pad_end; a window that would start beyond the image and its padding is left out. */
pl_status pl_window_slide(const struct pl_layer *l, struct pl_window *w, bool up, int64_t hw[2]);
void pl_window_op(const struct pl_window *w, struct pl_op *op);

#endif
