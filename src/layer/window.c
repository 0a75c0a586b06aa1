/* Sliding windows: what convolution and pooling share. A size is one number or [h, w]; the number
 * of positions is floor((in + 2 pad - extent) / stride) + 1 with extent = dilation (kernel - 1) +
 * 1, or rounded up on request, as Caffe's pooling does (`ceil_mode` in PyTorch). */
#include "layer/kinds.h"

#include <string.h>

pl_status pl_window_pair(const struct pl_layer *l, const char *key, const struct pl_ints *v,
                         int64_t otherwise, int64_t out[2])
{
    if (v->n == 0 && otherwise < 0)
        return pl_job_layer_error(l->source, "%s: %s needs `%s`", l->name, l->kind->name, key);
    if (v->n > 2)
        return pl_job_layer_error(l->source, "%s: `%s` is one number or [h, w], not %d numbers",
                                  l->name, key, v->n);
    out[0] = v->n ? v->v[0] : otherwise;
    out[1] = v->n ? v->v[v->n - 1] : otherwise;
    return PL_OK;
}

struct pair_text {
    char s[48];
};

/* "5x5", or "0" where both are the same and `brief`. */
static struct pair_text pair(const int64_t v[2], bool brief)
{
    struct pair_text t;
    if (brief && v[0] == v[1])
        snprintf(t.s, sizeof t.s, "%lld", (long long)v[0]);
    else
        snprintf(t.s, sizeof t.s, "%lldx%lld", (long long)v[0], (long long)v[1]);
    return t;
}

static pl_status does_not_fit(const struct pl_layer *l, const struct pl_window *w)
{
    char dilated[64] = "";
    if (w->dilation[0] > 1 || w->dilation[1] > 1)
        snprintf(dilated, sizeof dilated, ", dilation %s,", pair(w->dilation, true).s);
    return pl_job_layer_error(l->source, "%s: kernel %s%s with pad %s does not fit input %s",
                              l->name, pair(w->kernel, false).s, dilated,
                              pair(w->pad_begin, true).s, pl_layer_shape_text(&l->x[0]).s);
}

pl_status pl_window_slide(const struct pl_layer *l, struct pl_window *w, bool up, int64_t hw[2])
{
    for (int d = 0; d < 2; d++) {
        int64_t in = l->x[0].dim[2 + d], pad = w->pad_begin[d], stride = w->stride[d];
        int64_t extent = w->dilation[d] * (w->kernel[d] - 1) + 1;
        int64_t room = in + 2 * pad - extent;
        if (room < 0)
            return does_not_fit(l, w);
        int64_t n = room / stride + 1;
        if (up && room % stride && n * stride < in + pad)
            n++;
        hw[d] = n;
        int64_t reach = (n - 1) * stride + extent - in - pad; /* beyond the image's end */
        w->pad_end[d] = reach > pad ? reach : pad;
    }
    return PL_OK;
}

void pl_window_op(const struct pl_window *w, struct pl_op *op)
{
    memcpy(op->kernel, w->kernel, sizeof op->kernel);
    memcpy(op->stride, w->stride, sizeof op->stride);
    memcpy(op->pad_begin, w->pad_begin, sizeof op->pad_begin);
    memcpy(op->pad_end, w->pad_end, sizeof op->pad_end);
    memcpy(op->dilation, w->dilation, sizeof op->dilation);
}
