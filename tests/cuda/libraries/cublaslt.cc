/* cuBLASLt: products of column-major matrices, one or a strided batch, as cublasLtMatmul's page says for operands of float and of bf16 with sums of float. */
#include "device.h"

#include <cublasLt.h>
#include <vector>

namespace {

struct Product {
    cublasComputeType_t compute;
    cublasOperation_t ta = CUBLAS_OP_N, tb = CUBLAS_OP_N;
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    const void *bias = nullptr;
};

struct Matrix { bool bf16; int64_t rows, columns, ld; int32_t batch = 1; int64_t stride = 0; };
struct Preference { size_t workspace = 0; uint32_t sums = ~0u; uint32_t aligned = 256; };
struct Algorithm { uint64_t magic, kind, workspace, aligned; }; /* in a cublasLtMatmulAlgo_t */

const uint64_t MAGIC = 0x70616365;
int handles;

const Matrix &of(cublasLtMatrixLayout_t l) { return *(const Matrix *)l; }
int64_t rows(const Matrix &m, cublasOperation_t op) { return op == CUBLAS_OP_N ? m.rows : m.columns; }
int64_t columns(const Matrix &m, cublasOperation_t op) { return op == CUBLAS_OP_N ? m.columns : m.rows; }
int64_t elems(const Matrix &m) { return (m.columns - 1) * m.ld + m.rows; }
size_t bytes(const Matrix &m) { return (size_t)((m.batch - 1) * m.stride + elems(m)) * (m.bf16 ? 2 : 4); }

/* What its table of types has, and dimensions that fit. */
cublasStatus_t fits(const Product &p, const Matrix &a, const Matrix &b, const Matrix &c, const Matrix &d)
{
    if (rows(a, p.ta) != d.rows || columns(a, p.ta) != rows(b, p.tb) || columns(b, p.tb) != d.columns || c.rows != d.rows || c.columns != d.columns)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (a.batch < 1 || a.batch != d.batch || b.batch != d.batch || c.batch != d.batch)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (d.batch > 1 && p.epilogue == CUBLASLT_EPILOGUE_BIAS) /* it has a stride of its own, which is not imitated */
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (a.bf16 != b.bf16 || c.bf16 != d.bf16 || (d.bf16 && !a.bf16))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (p.compute == CUBLAS_COMPUTE_32F_FAST_TF32 && a.bf16)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    return CUBLAS_STATUS_SUCCESS;
}

bool aligned(const void *p, uint64_t to) { return (uintptr_t)p % to == 0; }

/* Element (i, j) of a batch's matrix z */
double at(const Matrix &m, const void *p, cublasOperation_t op, int64_t z, int64_t i, int64_t j)
{
    return pl_emulated_get(p, m.bf16, z * m.stride + (op == CUBLAS_OP_N ? i + j * m.ld : j + i * m.ld));
}

} // namespace

extern "C" {

const char *cublasLtGetStatusString(cublasStatus_t s) { return s == CUBLAS_STATUS_NOT_SUPPORTED ? "CUBLAS_STATUS_NOT_SUPPORTED" : "CUBLAS_STATUS"; }
size_t cublasLtGetVersion(void) { return 130000; }

cublasStatus_t cublasLtCreate(cublasLtHandle_t *h)
{
    if (pl_fake_fails("cublasLtCreate"))
        return CUBLAS_STATUS_NOT_INITIALIZED;
    *h = (cublasLtHandle_t)&handles;
    handles++;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t h) { return h == (cublasLtHandle_t)&handles && handles-- > 0 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE; }

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *out, cublasComputeType_t compute, cudaDataType_t scale)
{
    if (pl_fake_fails("cublasLtMatmulDescCreate"))
        return CUBLAS_STATUS_ALLOC_FAILED;
    if (scale != CUDA_R_32F || (compute != CUBLAS_COMPUTE_32F && compute != CUBLAS_COMPUTE_32F_FAST_TF32))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    Product *p = new Product;
    p->compute = compute;
    *out = (cublasLtMatmulDesc_t)p;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t p) { return delete (Product *)p, CUBLAS_STATUS_SUCCESS; }

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t what, const void *v, size_t n)
{
    Product *p = (Product *)desc;
    if (pl_fake_fails("cublasLtMatmulDescSetAttribute"))
        return CUBLAS_STATUS_INVALID_VALUE;
    struct { cublasLtMatmulDescAttributes_t what; void *at; size_t bytes; } const known[] = {
        {CUBLASLT_MATMUL_DESC_TRANSA, &p->ta, sizeof p->ta}, {CUBLASLT_MATMUL_DESC_TRANSB, &p->tb, sizeof p->tb},
        {CUBLASLT_MATMUL_DESC_EPILOGUE, &p->epilogue, sizeof p->epilogue}, {CUBLASLT_MATMUL_DESC_BIAS_POINTER, &p->bias, sizeof p->bias}};
    for (const auto &k : known)
        if (k.what == what && k.bytes == n)
            return memcpy(k.at, v, n), CUBLAS_STATUS_SUCCESS;
    return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *out, cudaDataType type, uint64_t rows, uint64_t columns, int64_t ld)
{
    if (pl_fake_fails("cublasLtMatrixLayoutCreate") || rows == 0 || columns == 0 || ld < (int64_t)rows || (type != CUDA_R_32F && type != CUDA_R_16BF))
        return CUBLAS_STATUS_INVALID_VALUE;
    *out = (cublasLtMatrixLayout_t) new Matrix{type == CUDA_R_16BF, (int64_t)rows, (int64_t)columns, ld};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l, cublasLtMatrixLayoutAttribute_t what, const void *v, size_t n)
{
    Matrix *m = (Matrix *)l;
    if (pl_fake_fails("cublasLtMatrixLayoutSetAttribute"))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (what == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT && n == sizeof m->batch)
        return memcpy(&m->batch, v, n), CUBLAS_STATUS_SUCCESS;
    if (what == CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET && n == sizeof m->stride)
        return memcpy(&m->stride, v, n), CUBLAS_STATUS_SUCCESS;
    return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) { return delete (Matrix *)l, CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *out) { return *out = (cublasLtMatmulPreference_t) new Preference, CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) { return delete (Preference *)p, CUBLAS_STATUS_SUCCESS; }

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t pref, cublasLtMatmulPreferenceAttributes_t what, const void *v, size_t n)
{
    Preference *p = (Preference *)pref;
    if (what == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES && n == sizeof p->workspace)
        return memcpy(&p->workspace, v, n), CUBLAS_STATUS_SUCCESS;
    if (what == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK && n == sizeof p->sums)
        return memcpy(&p->sums, v, n), CUBLAS_STATUS_SUCCESS;
    if (what >= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES && what <= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES && n == sizeof p->aligned) {
        uint32_t given;
        memcpy(&given, v, n);
        p->aligned = given < p->aligned ? given : p->aligned;
        return CUBLAS_STATUS_SUCCESS;
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

/* Some of odd sizes have none that adds a bias, and of the candidates one cannot run at all. */
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t product, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                                              cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t preference, int most, cublasLtMatmulHeuristicResult_t result[], int *found)
{
    const Product &p = *(const Product *)product;
    const Preference &pref = *(const Preference *)preference;
    *found = 0;
    if (pl_fake_fails("cublasLtMatmulAlgoGetHeuristic"))
        return CUBLAS_STATUS_INTERNAL_ERROR;
    cublasStatus_t s = fits(p, of(a), of(b), of(c), of(d));
    if (s != CUBLAS_STATUS_SUCCESS)
        return s;
    if (p.epilogue == CUBLASLT_EPILOGUE_BIAS && of(d).rows % 7 == 3)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    const uint64_t workspaces[] = {0, 65536, pref.workspace, 4096};
    for (int i = 0; i < 4 && *found < most; i++) {
        Algorithm algorithm = {MAGIC, (uint64_t)i, workspaces[i], pref.aligned};
        cublasLtMatmulHeuristicResult_t &r = result[(*found)++];
        memset(&r, 0, sizeof r);
        memcpy(&r.algo, &algorithm, sizeof algorithm);
        r.workspaceSize = workspaces[i];
        r.state = i == 3 ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS;
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t h, cublasLtMatmulDesc_t product, const void *alpha, const void *A, cublasLtMatrixLayout_t Adesc, const void *B,
                              cublasLtMatrixLayout_t Bdesc, const void *beta, const void *C, cublasLtMatrixLayout_t Cdesc, void *D, cublasLtMatrixLayout_t Ddesc,
                              const cublasLtMatmulAlgo_t *given, void *workspace, size_t workspace_bytes, cudaStream_t stream)
{
    const Product p = *(const Product *)product;
    const Matrix a = of(Adesc), b = of(Bdesc), c = of(Cdesc), d = of(Ddesc);
    Algorithm algorithm;
    float al, be;
    memcpy(&algorithm, given, sizeof algorithm);
    memcpy(&al, alpha, sizeof al);
    memcpy(&be, beta, sizeof be);
    if (pl_fake_fails("cublasLtMatmul"))
        return CUBLAS_STATUS_EXECUTION_FAILED;
    if (h != (cublasLtHandle_t)&handles || handles < 1 || algorithm.magic != MAGIC || algorithm.workspace > workspace_bytes)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (fits(p, a, b, c, d) != CUBLAS_STATUS_SUCCESS || algorithm.kind == 3)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    for (const void *t : {A, B, C, (const void *)D})
        if (!aligned(t, algorithm.aligned))
            return CUBLAS_STATUS_INVALID_VALUE;
    bool biased = p.epilogue == CUBLASLT_EPILOGUE_BIAS;
    if (!pl_fake_far(A, bytes(a)) || !pl_fake_far(B, bytes(b)) || !pl_fake_far(D, bytes(d)) || (be != 0 && !pl_fake_far(C, bytes(c))) || (C == D && c.ld != d.ld) ||
        (algorithm.workspace > 0 && !pl_fake_far(workspace, algorithm.workspace)) || (biased && !pl_fake_far(p.bias, (size_t)d.rows * (d.bf16 ? 2 : 4))))
        pl_fake_wrong("cublasLtMatmul", "memory that is not the device's, or too little of it");
    if (d.batch > 1 && (d.stride < elems(d) || (C == D && c.stride != d.stride)))
        pl_fake_wrong("cublasLtMatmul", "results of a batch that overlap");
    bool submitted = pl_fake_submit(stream, 20 - (double)algorithm.kind, [=] {
        std::vector<float> sum;
        sum.reserve((size_t)(d.batch * d.rows * d.columns));
        for (int64_t z = 0; z < d.batch; z++)
            for (int64_t j = 0; j < d.columns; j++)
                for (int64_t i = 0; i < d.rows; i++) {
                    double v = 0;
                    for (int64_t k = 0; k < columns(a, p.ta); k++)
                        v += at(a, A, p.ta, z, i, k) * at(b, B, p.tb, z, k, j);
                    v *= al;
                    if (be != 0)
                        v += be * at(c, C, CUBLAS_OP_N, z, i, j);
                    if (biased)
                        v += pl_emulated_get(p.bias, d.bf16, i);
                    sum.push_back((float)v);
                }
        if (algorithm.workspace > 0)
            pl_fake_spoil(workspace, algorithm.workspace);
        size_t next = 0;
        for (int64_t z = 0; z < d.batch; z++)
            for (int64_t j = 0; j < d.columns; j++)
                for (int64_t i = 0; i < d.rows; i++)
                    pl_emulated_put(D, d.bf16, z * d.stride + i + j * d.ld, sum[next++]);
    });
    return submitted ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}
}
