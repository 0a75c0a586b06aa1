/* matmul: row-major products over cuBLASLt, which is column-major: C = A B there is C^T = B^T A^T, so the operands change places.
 * Of the library's candidates the first stays unless another was measured to be clearly faster: runs whose measurements differ
 * a little should still take the same. No candidate whose partial sums race: split sums go through the workspace. */
#include "backend/cuda/cuda.h"

#include <cublasLt.h>
#include <string.h>

enum { CANDIDATES = 8 };
#define WORKSPACE_BYTES ((size_t)32 << 20) /* as NVIDIA recommends for its newer devices */

struct pl_cuda_blas {
    cublasLtHandle_t handle;
};

struct pl_cuda_matmul {
    struct pl_backend *backend;
    struct pl_cuda_matmul_shape shape;
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t a, b, c;
    cublasLtMatmulAlgo_t algorithm;
    size_t workspace_bytes;
    bool adds_bias; /* the library does */
};

static pl_status failed(cublasStatus_t e, const char *call)
{
    return pl_error(PL_ERR_MEMORY, "device", "cuda: %.*s failed: %s", (int)strcspn(call, "("), call, cublasLtGetStatusString(e));
}

#define BLAS(call)                            \
    do {                                      \
        cublasStatus_t e_ = (call);           \
        if (e_ != CUBLAS_STATUS_SUCCESS)      \
            return failed(e_, #call);         \
    } while (0)

static pl_status open_blas(struct pl_backend *b)
{
    if (b->blas)
        return PL_OK;
    b->blas = pl_alloc(sizeof *b->blas, "cuBLASLt's handle");
    if (!b->blas)
        return PL_ERR_MEMORY;
    BLAS(cublasLtCreate(&b->blas->handle));
    return PL_OK;
}

void pl_cuda_blas_close(struct pl_cuda_blas *blas)
{
    if (blas && blas->handle)
        cublasLtDestroy(blas->handle);
    pl_free(blas);
}

int pl_cuda_blas_version(void) { return (int)cublasLtGetVersion(); }

static pl_status set(cublasLtMatmulDesc_t product, cublasLtMatmulDescAttributes_t what, const void *value, size_t bytes)
{
    BLAS(cublasLtMatmulDescSetAttribute(product, what, value, bytes));
    return PL_OK;
}

static int64_t batch_of(const struct pl_cuda_matmul_shape *s) { return s->batch > 0 ? s->batch : 1; }

/* A row-major matrix [rows, columns] is a column-major one [columns, rows]. */
static pl_status lay(cublasLtMatrixLayout_t *l, bool bf16, int64_t rows, int64_t columns, int64_t batch)
{
    const int32_t count = (int32_t)batch;
    const int64_t stride = rows * columns;
    BLAS(cublasLtMatrixLayoutCreate(l, bf16 ? CUDA_R_16BF : CUDA_R_32F, (uint64_t)columns, (uint64_t)rows, columns));
    if (batch == 1)
        return PL_OK;
    BLAS(cublasLtMatrixLayoutSetAttribute(*l, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count));
    BLAS(cublasLtMatrixLayoutSetAttribute(*l, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof stride));
    return PL_OK;
}

static pl_status set_epilogue(struct pl_cuda_matmul *m)
{
    cublasLtEpilogue_t epilogue = m->adds_bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    return set(m->product, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue);
}

static pl_status describe(struct pl_cuda_matmul *m)
{
    const struct pl_cuda_matmul_shape *s = &m->shape;
    cublasOperation_t first = s->tb ? CUBLAS_OP_T : CUBLAS_OP_N, second = s->ta ? CUBLAS_OP_T : CUBLAS_OP_N;
    BLAS(cublasLtMatmulDescCreate(&m->product, m->backend->options.tf32 && !s->bf16 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, CUDA_R_32F));
    PL_TRY(set(m->product, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first));
    PL_TRY(set(m->product, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second));
    m->adds_bias = s->bias && !s->bf16_out; /* to an output of bf16 it would add one of bf16 */
    PL_TRY(set_epilogue(m));
    PL_TRY(lay(&m->a, s->bf16, s->ta ? s->k : s->m, s->ta ? s->m : s->k, batch_of(s)));
    PL_TRY(lay(&m->b, s->bf16, s->tb ? s->n : s->k, s->tb ? s->k : s->n, batch_of(s)));
    return lay(&m->c, s->bf16_out, s->m, s->n, batch_of(s));
}

/* ---- the choice of an algorithm ----------------------------------------------------------------- */

/* What is measured: one candidate on memory that is let go afterwards. */
struct trial {
    struct pl_cuda_matmul *matmul;
    const cublasLtMatmulHeuristicResult_t *candidate;
    void *a, *b, *c, *bias;
};

static cublasStatus_t start(struct pl_cuda_matmul *m, const cublasLtMatmulAlgo_t *algorithm, size_t workspace_bytes, const void *a, const void *b, void *c)
{
    const float one = 1.0f, beta = m->shape.accumulate ? 1.0f : 0.0f;
    return cublasLtMatmul(m->backend->blas->handle, m->product, &one, b, m->b, a, m->a, &beta, c, m->c, c, m->c, algorithm, m->backend->scratch,
                          workspace_bytes, (cudaStream_t)m->backend->stream);
}

/* A candidate that does not run is none. */
static pl_status try(void *arg)
{
    struct trial *t = arg;
    return start(t->matmul, &t->candidate->algo, t->candidate->workspaceSize, t->a, t->b, t->c) == CUBLAS_STATUS_SUCCESS ? PL_OK : PL_END;
}

/* Partial sums are float, also of an output of bf16. */
static pl_status prefer(cublasLtMatmulPreference_t p, bool bf16_out, uint32_t aligned)
{
    const size_t workspace = WORKSPACE_BYTES;
    const uint32_t sums = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE | (bf16_out ? 0 : CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE);
    static const cublasLtMatmulPreferenceAttributes_t alignments[] = {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                                                                      CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    BLAS(cublasLtMatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace));
    BLAS(cublasLtMatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &sums, sizeof sums));
    for (size_t i = 0; i < sizeof alignments / sizeof *alignments; i++)
        BLAS(cublasLtMatmulPreferenceSetAttribute(p, alignments[i], &aligned, sizeof aligned));
    return PL_OK;
}

static pl_status list(struct pl_cuda_matmul *m, cublasLtMatmulHeuristicResult_t *candidate, int *candidates)
{
    cublasLtMatmulPreference_t preference = NULL;
    BLAS(cublasLtMatmulPreferenceCreate(&preference));
    pl_status s = prefer(preference, m->shape.bf16_out, m->shape.aligned > 0 ? m->shape.aligned : 64); /* as tensors in slabs are */
    cublasStatus_t e = CUBLAS_STATUS_SUCCESS;
    if (s == PL_OK)
        e = cublasLtMatmulAlgoGetHeuristic(m->backend->blas->handle, m->product, m->b, m->a, m->c, m->c, preference, CANDIDATES, candidate, candidates);
    cublasLtMatmulPreferenceDestroy(preference);
    PL_TRY(s);
    if (e == CUBLAS_STATUS_NOT_SUPPORTED) {
        *candidates = 0;
        return PL_OK;
    }
    BLAS(e);
    return PL_OK;
}

/* Where there is none that adds the bias, one that leaves it to us. */
static pl_status list_some(struct pl_cuda_matmul *m, cublasLtMatmulHeuristicResult_t *candidate, int *candidates)
{
    PL_TRY(list(m, candidate, candidates));
    if (*candidates > 0 || !m->adds_bias)
        return PL_OK;
    m->adds_bias = false;
    PL_TRY(set_epilogue(m));
    return list(m, candidate, candidates);
}

static pl_status choose(struct trial *t, const cublasLtMatmulHeuristicResult_t *candidate, int candidates)
{
    struct pl_cuda_matmul *m = t->matmul;
    double best = -1, ms = 0;
    pl_status s = PL_OK;
    for (int i = 0; s >= 0 && i < candidates; i++) {
        t->candidate = &candidate[i];
        s = candidate[i].state == CUBLAS_STATUS_SUCCESS ? pl_cuda_time(m->backend->device, try, t, &ms) : PL_END;
        if (s != PL_OK || !pl_cuda_is_faster(ms, best))
            continue;
        best = ms;
        m->algorithm = candidate[i].algo;
        m->workspace_bytes = candidate[i].workspaceSize;
    }
    return s < 0 ? s : PL_OK;
}

static pl_status open_trial(struct trial *t)
{
    const struct pl_cuda_matmul_shape *s = &t->matmul->shape;
    struct { void **at; int64_t elems; bool bf16; } operands[] = {{&t->a, s->m * s->k, s->bf16}, {&t->b, s->k * s->n, s->bf16}, {&t->c, s->m * s->n, s->bf16_out}, {&t->bias, s->n, false}};
    for (int i = 0; i < 4; i++)
        if (!(*operands[i].at = pl_cuda_alloc(t->matmul->backend->device, pl_cuda_copy_bytes(batch_of(s) * operands[i].elems, operands[i].bf16), "choosing a matrix product's algorithm")))
            return PL_ERR_MEMORY;
    return t->matmul->adds_bias ? set(t->matmul->product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &t->bias, sizeof t->bias) : PL_OK;
}

static void close_trial(struct trial *t)
{
    void *const operands[] = {t->a, t->b, t->c, t->bias};
    for (int i = 0; i < 4; i++)
        pl_cuda_free(t->matmul->backend->device, operands[i]);
}

static pl_status measure(struct pl_cuda_matmul *m)
{
    const struct pl_cuda_matmul_shape *s = &m->shape;
    cublasLtMatmulHeuristicResult_t candidate[CANDIDATES] = {0};
    struct trial t = {.matmul = m};
    int candidates = 0;
    pl_status status = open_trial(&t);
    if (status == PL_OK)
        status = list_some(m, candidate, &candidates);
    if (status == PL_OK && candidates == 0)
        status = pl_error(PL_ERR_MEMORY, "device", "cuda: cuBLASLt has no algorithm for a batch of %lld products of %lld x %lld x %lld", (long long)batch_of(s), (long long)s->m,
                          (long long)s->n, (long long)s->k);
    m->algorithm = candidate[0].algo; /* where none could be measured its first run says why */
    m->workspace_bytes = candidate[0].workspaceSize;
    if (status == PL_OK)
        status = choose(&t, candidate, candidates);
    close_trial(&t);
    return status;
}

pl_status pl_cuda_matmul_create(struct pl_backend *b, const struct pl_cuda_matmul_shape *s, struct pl_cuda_matmul **out)
{
    *out = NULL;
    PL_TRY(open_blas(b));
    PL_TRY(pl_cuda_scratch(b, WORKSPACE_BYTES));
    struct pl_cuda_matmul *m = pl_alloc(sizeof *m, "a matrix product");
    if (!m)
        return PL_ERR_MEMORY;
    m->backend = b;
    m->shape = *s;
    pl_status status = describe(m);
    if (status == PL_OK)
        status = measure(m);
    if (status < 0)
        pl_cuda_matmul_destroy(m);
    else
        *out = m;
    return status;
}

void pl_cuda_matmul_destroy(struct pl_cuda_matmul *m)
{
    if (!m)
        return;
    if (m->product)
        cublasLtMatmulDescDestroy(m->product);
    if (m->a)
        cublasLtMatrixLayoutDestroy(m->a);
    if (m->b)
        cublasLtMatrixLayoutDestroy(m->b);
    if (m->c)
        cublasLtMatrixLayoutDestroy(m->c);
    pl_free(m);
}

/* The rectifier is ours: what is not a number stays so, where the library's may make it 0, and the loss shows it. */
pl_status pl_cuda_matmul_run(struct pl_cuda_matmul *m, const void *a, const void *b, const float *bias, void *c)
{
    const struct pl_cuda_matmul_shape *s = &m->shape;
    bool ours = s->bias && !m->adds_bias;
    if (m->adds_bias)
        PL_TRY(set(m->product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias));
    cublasStatus_t e = start(m, &m->algorithm, m->workspace_bytes, a, b, c);
    if (e != CUBLAS_STATUS_SUCCESS)
        return failed(e, "cublasLtMatmul");
    if (s->relu || ours) {
        struct pl_cuda_view v = {.n = s->m, .c = s->n, .h = 1, .w = 1, .sn = s->n, .sc = 1, .sp = 1, .bf16 = s->bf16_out};
        pl_cuda_bias(m->backend->stream, c, v, ours ? bias : NULL, s->relu);
    }
    return PL_OK;
}
