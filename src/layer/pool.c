/* maxpool, avgpool: the largest or the mean number of each window. Padding counts in neither: a
 * window of avgpool that reaches over the edge is divided by the points inside, or with count_pad by
 * those of the padded image (as in Caffe, and PyTorch's count_include_pad, its default). A window must touch the image: pad <
 * kernel. */
#include "layer/kinds.h"

struct config {
    struct pl_ints kernel, stride, pad;
    bool global, ceil, count_pad;
    struct pl_window window; /* of the keys above, by shape() */
};

static pl_status read_window(struct pl_layer *l, struct config *c)
{
    struct pl_window *w = &c->window;
    w->dilation[0] = w->dilation[1] = 1;
    if (c->global) {
        if (c->kernel.n || c->stride.n || c->pad.n)
            return pl_job_layer_error(l->source,
                                      "%s: `global` takes the whole image; kernel, stride and pad "
                                      "do not go with it",
                                      l->name);
        for (int d = 0; d < 2; d++) {
            w->kernel[d] = l->x[0].dim[2 + d];
            w->stride[d] = 1;
            w->pad_begin[d] = 0;
        }
        return PL_OK;
    }
    PL_TRY(pl_window_pair(l, "kernel", &c->kernel, -1, w->kernel));
    PL_TRY(pl_window_pair(l, "stride", c->stride.n ? &c->stride : &c->kernel, 1, w->stride));
    PL_TRY(pl_window_pair(l, "pad", &c->pad, 0, w->pad_begin));
    for (int d = 0; d < 2; d++)
        if (w->pad_begin[d] >= w->kernel[d])
            return pl_job_layer_error(l->source, "%s: pad %lld must be less than kernel %lld",
                                      l->name, (long long)w->pad_begin[d], (long long)w->kernel[d]);
    return PL_OK;
}

static pl_status shape(struct pl_layer *l, const struct pl_job_input *input)
{
    (void)input;
    struct config *c = l->config;
    int64_t hw[2];
    PL_TRY(pl_layer_need_image(l));
    PL_TRY(read_window(l, c));
    PL_TRY(pl_window_slide(l, &c->window, c->ceil, hw));
    l->y = (struct pl_shape){4, {l->x[0].dim[0], l->x[0].dim[1], hw[0], hw[1]}};
    return PL_OK;
}

static void op(const struct pl_layer *l, struct pl_op *op)
{
    const struct config *c = l->config;
    op->kind = l->kind == &pl_layer_maxpool ? PL_OP_MAXPOOL : PL_OP_AVGPOOL;
    pl_window_op(&c->window, op);
    op->count_pad = c->count_pad;
    for (int d = 0; d < 2 && c->count_pad; d++)
        op->pad_end[d] = op->pad_begin[d]; /* what `ceil` reaches over beyond that does not count */
}

#define KEYS \
    {.name = "kernel", \
     .type = PL_KEY_INTS, \
     .offset = offsetof(struct config, kernel), \
     .min = 1, \
     .max = PL_MAX_KERNEL, \
     .help = "size of the window: one number or [h, w]"}, \
    {.name = "stride", \
     .type = PL_KEY_INTS, \
     .offset = offsetof(struct config, stride), \
     .min = 1, \
     .max = PL_MAX_KERNEL, \
     .help = "step of the window: one number or [h, w]; the kernel's size" \
             " if not given"}, \
    {.name = "pad", \
     .type = PL_KEY_INTS, \
     .offset = offsetof(struct config, pad), \
     .min = 0, \
     .max = PL_MAX_KERNEL, \
     .help = "border on each side that counts as nothing; 0 if not given"}, \
    {.name = "global", \
     .type = PL_KEY_BOOL, \
     .offset = offsetof(struct config, global), \
     .def = "false", \
     .help = "one window, the whole image"}, \
    {.name = "ceil", \
     .type = PL_KEY_BOOL, \
     .offset = offsetof(struct config, ceil), \
     .def = "false", \
     .help = "round the number of windows up, as Caffe does, instead of down"}

static const struct pl_key max_keys[] = {KEYS, {.name = NULL}};

static const struct pl_key average_keys[] = {
    KEYS,
    {.name = "count_pad",
     .type = PL_KEY_BOOL,
     .offset = offsetof(struct config, count_pad),
     .def = "false",
     .help = "the border counts as zeros, as PyTorch's does if not told otherwise"},
    {.name = NULL},
};

const struct pl_layer_kind pl_layer_maxpool = {
    .name = "maxpool",
    .help = "the largest number of each window",
    .keys = max_keys,
    .config_bytes = sizeof(struct config),
    .min_inputs = 1,
    .max_inputs = 1,
    .shape = shape,
    .op = op,
};

const struct pl_layer_kind pl_layer_avgpool = {
    .name = "avgpool",
    .help = "the mean of each window",
    .keys = average_keys,
    .config_bytes = sizeof(struct config),
    .min_inputs = 1,
    .max_inputs = 1,
    .shape = shape,
    .op = op,
};
