/* conv: two-dimensional convolution (cross-correlation, as everywhere in deep learning) with
 * stride, padding, dilation and groups. W [filters, channels/groups, kh, kw], b [filters]. */
#include "layer/kinds.h"

struct config {
    int64_t filters, groups;
    struct pl_ints kernel, stride, pad, dilation;
    int activation;
    struct pl_weight_config weights;
    struct pl_window window; /* of the keys above, by shape() */
};

static pl_status check_groups(const struct pl_layer *l, const struct config *c)
{
    int64_t channels = l->x[0].dim[1];
    if (channels % c->groups == 0 && c->filters % c->groups == 0)
        return PL_OK;
    return pl_job_layer_error(l->source,
                              "%s: %lld groups do not divide both the %lld filters and the %lld "
                              "channels of input %s",
                              l->name, (long long)c->groups, (long long)c->filters,
                              (long long)channels, pl_layer_shape_text(&l->x[0]).s);
}

static pl_status shape(struct pl_layer *l, const struct pl_job_input *input)
{
    (void)input;
    struct config *c = l->config;
    struct pl_window *w = &c->window;
    if (c->filters < 1)
        return pl_job_layer_error(l->source, "%s: conv needs `filters`", l->name);
    PL_TRY(pl_layer_need_image(l));
    PL_TRY(check_groups(l, c));
    PL_TRY(pl_window_pair(l, "kernel", &c->kernel, -1, w->kernel));
    PL_TRY(pl_window_pair(l, "stride", &c->stride, 1, w->stride));
    PL_TRY(pl_window_pair(l, "pad", &c->pad, 0, w->pad_begin));
    PL_TRY(pl_window_pair(l, "dilation", &c->dilation, 1, w->dilation));
    int64_t hw[2];
    PL_TRY(pl_window_slide(l, w, false, hw));
    l->y = (struct pl_shape){4, {l->x[0].dim[0], c->filters, hw[0], hw[1]}};
    int64_t channels = l->x[0].dim[1] / c->groups;
    struct pl_shape weight = {4, {c->filters, channels, w->kernel[0], w->kernel[1]}};
    return pl_layer_weights(l, &c->weights, &weight, channels * w->kernel[0] * w->kernel[1]);
}

static void op(const struct pl_layer *l, struct pl_op *op)
{
    const struct config *c = l->config;
    op->kind = PL_OP_CONV;
    op->bias = c->weights.bias;
    op->groups = c->groups;
    pl_window_op(&c->window, op);
}

static const char *activation(const struct pl_layer *l)
{
    const struct config *c = l->config;
    return pl_layer_activation_name(c->activation);
}

static const struct pl_key keys[] = {
    {.name = "filters",
     .type = PL_KEY_INT,
     .offset = offsetof(struct config, filters),
     .min = 1,
     .max = 1e6,
     .help = "output channels"},
    {.name = "kernel",
     .type = PL_KEY_INTS,
     .offset = offsetof(struct config, kernel),
     .min = 1,
     .max = PL_MAX_KERNEL,
     .help = "size of the window: one number or [h, w]"},
    {.name = "stride",
     .type = PL_KEY_INTS,
     .offset = offsetof(struct config, stride),
     .def = "1",
     .min = 1,
     .max = PL_MAX_KERNEL,
     .help = "step of the window: one number or [h, w]"},
    {.name = "pad",
     .type = PL_KEY_INTS,
     .offset = offsetof(struct config, pad),
     .def = "0",
     .min = 0,
     .max = PL_MAX_KERNEL,
     .help = "zeros on each side: one number or [h, w]"},
    {.name = "dilation",
     .type = PL_KEY_INTS,
     .offset = offsetof(struct config, dilation),
     .def = "1",
     .min = 1,
     .max = PL_MAX_KERNEL,
     .help = "distance of the window's points: one number or [h, w]"},
    {.name = "groups",
     .type = PL_KEY_INT,
     .offset = offsetof(struct config, groups),
     .def = "1",
     .min = 1,
     .max = 1e6,
     .help = "parts of the channels that do not see each other"},
    PL_ACTIVATION_KEY(struct config),
    PL_WEIGHT_KEYS(struct config),
    {.name = NULL},
};

const struct pl_layer_kind pl_layer_conv = {
    .name = "conv",
    .help = "two-dimensional convolution",
    .keys = keys,
    .config_bytes = sizeof(struct config),
    .min_inputs = 1,
    .max_inputs = 1,
    .shape = shape,
    .op = op,
    .activation = activation,
};
