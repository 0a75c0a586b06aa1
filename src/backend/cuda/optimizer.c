/* optimizer: the table of a slab's tensors in device memory, and the passes over it. */
#include "backend/cuda/cuda.h"

struct pl_slab_optimizer {
    struct pl_backend *backend;
    struct pl_cuda_update pass; /* rule, the job's numbers, tensors */
    void *tensors, *scratch;    /* device memory */
    double *squares;
    int64_t elems;
};

_Static_assert((int)PL_SGD == (int)PL_CUDA_SGD && (int)PL_LARS == (int)PL_CUDA_LARS, "the kinds are in the job's order");

void pl_cuda_optimizer_destroy(struct pl_slab_optimizer *o)
{
    if (!o)
        return;
    pl_cuda_free(o->backend->device, o->tensors);
    pl_cuda_free(o->backend->device, o->scratch);
    pl_cuda_free(o->backend->device, o->squares);
    pl_free(o);
}

static pl_status send_tensors(struct pl_slab_optimizer *o, const struct pl_slab_tensor *t, int n)
{
    struct pl_cuda_device *d = o->backend->device;
    struct pl_cuda_tensor *host = pl_alloc((size_t)(n + 1) * sizeof *host, "the tensors of an optimizer");
    if (!host)
        return PL_ERR_MEMORY;
    for (int i = 0; i < n; i++) {
        host[i] = (struct pl_cuda_tensor){t[i].offset, t[i].elems, t[i].lr_mult, t[i].decay_mult, t[i].statistic ? t[i].momentum : -1};
        o->elems = t[i].offset + t[i].elems > o->elems ? t[i].offset + t[i].elems : o->elems;
    }
    pl_status s = PL_OK;
    o->tensors = pl_cuda_alloc(d, (size_t)(n + 1) * sizeof *host, "the tensors of an optimizer");
    o->scratch = pl_cuda_alloc(d, pl_cuda_norm_scratch(n), "norms of tensors");
    o->squares = pl_cuda_alloc(d, sizeof *o->squares, "the norm of a gradient");
    if (!o->tensors || !o->scratch || !o->squares)
        s = PL_ERR_MEMORY;
    if (s == PL_OK)
        s = pl_cuda_upload(d, o->tensors, host, (size_t)n * sizeof *host);
    if (s == PL_OK)
        s = pl_cuda_finish(d); /* before host is freed */
    pl_free(host);
    return s;
}

pl_status pl_cuda_optimizer_create(struct pl_backend *b, const struct pl_job *job, const struct pl_slab_tensor *t, int n, struct pl_slab_optimizer **out)
{
    struct pl_slab_optimizer *o = pl_alloc(sizeof *o, "an optimizer");
    *out = NULL;
    if (!o)
        return PL_ERR_MEMORY;
    o->backend = b;
    pl_status s = send_tensors(o, t, n);
    if (s < 0) {
        pl_cuda_optimizer_destroy(o);
        return s;
    }
    o->pass = (struct pl_cuda_update){.rule = (enum pl_cuda_rule)job->optimizer.kind, .weight_decay = job->optimizer.weight_decay,
                                      .momentum = job->optimizer.momentum, .beta1 = job->optimizer.beta1, .beta2 = job->optimizer.beta2,
                                      .epsilon = job->optimizer.epsilon, .rho = job->optimizer.rho, .trust = job->optimizer.trust,
                                      .tensors = {o->tensors, n}, .scratch = o->scratch};
    *out = o;
    return PL_OK;
}

pl_status pl_cuda_optimizer_square_sum(struct pl_slab_optimizer *o, const float *sum, double *out)
{
    struct pl_cuda_device *d = o->backend->device;
    pl_cuda_square_sum(o->backend->stream, o->pass.tensors, sum, 0, o->elems, o->scratch, o->squares);
    PL_TRY(pl_cuda_launched(d, "the norm of a gradient"));
    return pl_cuda_download(d, out, o->squares, sizeof *out);
}

pl_status pl_cuda_optimizer_update(struct pl_slab_optimizer *o, const struct pl_slab_update *u)
{
    struct pl_cuda_update pass = o->pass;
    pass.lr = u->lr;
    pass.samples = u->samples;
    pass.clip = u->clip;
    pass.step = u->step;
    pass.sum = u->sum;
    pass.from = pass.to = u->params;
    pass.slot[0] = u->slot[0];
    pass.slot[1] = u->slot[1];
    pl_cuda_update_slabs(o->backend->stream, &pass, 0, o->elems);
    return pl_cuda_launched(o->backend->device, "an update");
}
