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

struct product { const struct pl_cuda_matmul_shape *s; const void *a, *b; const float *bias; void *c; };

static float element(const struct product *p, int64_t i, int64_t j)
{
    const struct pl_cuda_matmul_shape *s = p->s;
    double sum = s->accumulate ? pl_emulated_get(p->c, s->bf16_out, i * s->n + j) : 0;
    for (int64_t l = 0; l < s->k; l++)
        sum += (double)pl_emulated_get(p->a, s->bf16, s->ta ? l * s->m + i : i * s->k + l) *
               pl_emulated_get(p->b, s->bf16, s->tb ? j * s->k + l : l * s->n + j);
    sum += s->bias ? p->bias[j] : 0;
    return s->relu && sum < 0 ? 0 : (float)sum;
}

static void run(const void *arg)
{
    const struct product *p = arg;
    const struct pl_cuda_matmul_shape *s = p->s;
    for (int64_t i = 0; i < s->m; i++)
        for (int64_t j = 0; j < s->n; j++)
            pl_emulated_put(p->c, s->bf16_out, i * s->n + j, element(p, i, j));
}

pl_status pl_cuda_matmul_run(struct pl_cuda_matmul *m, const void *a, const void *b, const float *bias, void *c)
{
    const struct product p = {&m->shape, a, b, bias, c};
    pl_emulated_check(a), pl_emulated_check(b), pl_emulated_check(bias), pl_emulated_check(c);
    pl_emulated_do(run, &p, sizeof p);
    return PL_OK;
}
