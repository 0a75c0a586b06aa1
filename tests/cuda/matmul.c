/* Stands in for backend/cuda/matmul.c: the product as three loops, in double. */
#include "backend/cuda/cuda.h"
#include "emulated.h"

struct pl_cuda_matmul { struct pl_cuda_matmul_shape shape; };

pl_status pl_cuda_matmul_create(struct pl_backend *b, const struct pl_cuda_matmul_shape *s, struct pl_cuda_matmul **out)
{
    (void)b;
    *out = pl_alloc(sizeof **out, "an emulated product");
    if (!*out)
        return PL_ERR_MEMORY;
    (*out)->shape = *s;
    return PL_OK;
}

void pl_cuda_matmul_destroy(struct pl_cuda_matmul *m) { pl_free(m); }
void pl_cuda_blas_close(struct pl_cuda_blas *blas) { (void)blas; }

static float element(const struct pl_cuda_matmul_shape *s, const float *a, const float *b, const float *bias, float c, int64_t i, int64_t j)
{
    double sum = s->accumulate ? c : 0;
    for (int64_t l = 0; l < s->k; l++)
        sum += (double)a[s->ta ? l * s->m + i : i * s->k + l] * b[s->tb ? j * s->k + l : l * s->n + j];
    sum += s->bias ? bias[j] : 0;
    return s->relu && sum < 0 ? 0 : (float)sum;
}

struct product { const struct pl_cuda_matmul_shape *s; const float *a, *b, *bias; float *c; };

static void run(const void *arg)
{
    const struct product *p = arg;
    const struct pl_cuda_matmul_shape *s = p->s;
    for (int64_t i = 0; i < s->m; i++)
        for (int64_t j = 0; j < s->n; j++)
            p->c[i * s->n + j] = element(s, p->a, p->b, p->bias, p->c[i * s->n + j], i, j);
}

pl_status pl_cuda_matmul_run(struct pl_cuda_matmul *m, const float *a, const float *b, const float *bias, float *c)
{
    const struct product p = {&m->shape, a, b, bias, c};
    pl_emulated_check(a), pl_emulated_check(b), pl_emulated_check(bias), pl_emulated_check(c);
    pl_emulated_do(run, &p, sizeof p);
    return PL_OK;
}
