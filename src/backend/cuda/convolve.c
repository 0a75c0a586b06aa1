/* convolve: the three products of a convolution over cuDNN. Of the algorithms that cuDNN has for a shape, only the
 * deterministic ones within the workspace's limit count; the one that cuDNN thinks best stays unless another was measured to be
 * clearly faster, so that runs whose measurements differ a little still take the same. */
#include "backend/cuda/cuda.h"

#include <cudnn_cnn.h>
#include <string.h>

enum { FORWARD, DATA, WEIGHTS, PRODUCTS };
enum { CANDIDATES = 16 };
#define WORKSPACE_BYTES ((size_t)512 << 20)

struct pl_cuda_dnn {
    cudnnHandle_t handle;
};

/* One way of computing a product; the algorithm is an enum of the product's own. */
struct way {
    int algorithm;
    cudnnMathType_t math;
    size_t workspace_bytes;
};

struct pl_cuda_convolve {
    struct pl_backend *backend;
    bool bf16;
    cudnnTensorDescriptor_t x, y;
    cudnnFilterDescriptor_t w;
    cudnnConvolutionDescriptor_t how[PRODUCTS]; /* they differ in the kind of arithmetic */
    struct way way[PRODUCTS];
};

static pl_status failed(cudnnStatus_t e, const char *call)
{
    char more[256] = "";
    cudnnGetLastErrorString(more, sizeof more);
    return pl_error(PL_ERR_MEMORY, "device", "cuda: %.*s failed: %s%s%s", (int)strcspn(call, "("), call, cudnnGetErrorString(e), more[0] ? ": " : "", more);
}

#define DNN(call)                         \
    do {                                  \
        cudnnStatus_t e_ = (call);        \
        if (e_ != CUDNN_STATUS_SUCCESS)   \
            return failed(e_, #call);     \
    } while (0)

static pl_status open_dnn(struct pl_backend *b)
{
    if (b->dnn)
        return PL_OK;
    b->dnn = pl_alloc(sizeof *b->dnn, "cuDNN's handle");
    if (!b->dnn)
        return PL_ERR_MEMORY;
    DNN(cudnnCreate(&b->dnn->handle));
    DNN(cudnnSetStream(b->dnn->handle, (cudaStream_t)b->stream));
    return PL_OK;
}

void pl_cuda_dnn_close(struct pl_cuda_dnn *dnn)
{
    if (dnn && dnn->handle)
        cudnnDestroy(dnn->handle);
    pl_free(dnn);
}

int pl_cuda_dnn_version(void) { return (int)cudnnGetVersion(); }

/* ---- descriptors -------------------------------------------------------------------------------- */

static pl_status tensor(cudnnTensorDescriptor_t *t, const struct pl_shape *s, cudnnTensorFormat_t format, cudnnDataType_t type)
{
    int n, c, h, w;
    PL_TRY(pl_narrow_int(s->dim[0], "cuDNN", &n));
    PL_TRY(pl_narrow_int(s->dim[1], "cuDNN", &c));
    PL_TRY(pl_narrow_int(s->dim[2], "cuDNN", &h));
    PL_TRY(pl_narrow_int(s->dim[3], "cuDNN", &w));
    DNN(cudnnCreateTensorDescriptor(t));
    DNN(cudnnSetTensor4dDescriptor(*t, format, type, n, c, h, w));
    return PL_OK;
}

/* Of float the default may round to tf32; bf16 asks for tensor cores by name. */
static cudnnMathType_t wanted_math(const struct pl_cuda_convolve *c)
{
    return c->bf16 ? CUDNN_TENSOR_OP_MATH : c->backend->options.tf32 ? CUDNN_DEFAULT_MATH : CUDNN_FMA_MATH;
}

static pl_status describe(struct pl_cuda_convolve *c, const struct pl_op *op, bool channels_last)
{
    cudnnDataType_t type = c->bf16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_FLOAT;
    cudnnTensorFormat_t format = channels_last ? CUDNN_TENSOR_NHWC : CUDNN_TENSOR_NCHW;
    const int64_t *w = op->p[0].dim;
    PL_TRY(tensor(&c->x, &op->x[0], format, type));
    PL_TRY(tensor(&c->y, &op->y, format, type));
    DNN(cudnnCreateFilterDescriptor(&c->w));
    DNN(cudnnSetFilter4dDescriptor(c->w, type, format, (int)w[0], (int)w[1], (int)w[2], (int)w[3]));
    for (int i = 0; i < PRODUCTS; i++) {
        DNN(cudnnCreateConvolutionDescriptor(&c->how[i]));
        DNN(cudnnSetConvolution2dDescriptor(c->how[i], (int)op->pad_begin[0], (int)op->pad_begin[1], (int)op->stride[0], (int)op->stride[1], (int)op->dilation[0],
                                            (int)op->dilation[1], CUDNN_CROSS_CORRELATION, CUDNN_DATA_FLOAT));
        DNN(cudnnSetConvolutionGroupCount(c->how[i], (int)op->groups));
        DNN(cudnnSetConvolutionMathType(c->how[i], wanted_math(c)));
    }
    return PL_OK;
}

/* ---- the choice of algorithms ------------------------------------------------------------------- */

/* Adds those of perf[0 .. n) that may be taken to way[]; perf's type is of the product. */
#define KEEP(c, perf, n, way, ways)                                                                                                           \
    do {                                                                                                                                      \
        for (int i_ = 0; i_ < (n); i_++)                                                                                                      \
            if ((perf)[i_].status == CUDNN_STATUS_SUCCESS && (perf)[i_].determinism == CUDNN_DETERMINISTIC && (perf)[i_].memory <= WORKSPACE_BYTES) \
                (way)[(ways)++] = (struct way){(int)(perf)[i_].algo, math((c), (perf)[i_].mathType), (perf)[i_].memory};              \
    } while (0)

/* Of float without tf32 nothing but plain arithmetic, whatever cuDNN reports. */
static cudnnMathType_t math(const struct pl_cuda_convolve *c, cudnnMathType_t reported) { return wanted_math(c) == CUDNN_FMA_MATH ? CUDNN_FMA_MATH : reported; }

static pl_status list_forward(struct pl_cuda_convolve *c, struct way *way, int *ways)
{
    cudnnConvolutionFwdAlgoPerf_t perf[CANDIDATES];
    int n = 0;
    DNN(cudnnGetConvolutionForwardAlgorithm_v7(c->backend->dnn->handle, c->x, c->w, c->how[FORWARD], c->y, CANDIDATES, &n, perf));
    KEEP(c, perf, n, way, *ways);
    return PL_OK;
}

static pl_status list_data(struct pl_cuda_convolve *c, struct way *way, int *ways)
{
    cudnnConvolutionBwdDataAlgoPerf_t perf[CANDIDATES];
    int n = 0;
    DNN(cudnnGetConvolutionBackwardDataAlgorithm_v7(c->backend->dnn->handle, c->w, c->y, c->how[DATA], c->x, CANDIDATES, &n, perf));
    KEEP(c, perf, n, way, *ways);
    return PL_OK;
}

static pl_status list_weights(struct pl_cuda_convolve *c, struct way *way, int *ways)
{
    cudnnConvolutionBwdFilterAlgoPerf_t perf[CANDIDATES];
    int n = 0;
    DNN(cudnnGetConvolutionBackwardFilterAlgorithm_v7(c->backend->dnn->handle, c->x, c->y, c->how[WEIGHTS], c->w, CANDIDATES, &n, perf));
    KEEP(c, perf, n, way, *ways);
    return PL_OK;
}

/* The tensors of a product; which of them is written depends on it. */
struct operands {
    const void *x, *w, *y;
};

static void *out(const void *p) { return (void *)(uintptr_t)p; }

static cudnnStatus_t start(struct pl_cuda_convolve *c, int product, const struct way *way, void *workspace, struct operands o, float beta)
{
    cudnnHandle_t handle = c->backend->dnn->handle;
    const float one = 1.0f;
    if (product == FORWARD)
        return cudnnConvolutionForward(handle, &one, c->x, o.x, c->w, o.w, c->how[product], (cudnnConvolutionFwdAlgo_t)way->algorithm, workspace,
                                       way->workspace_bytes, &beta, c->y, out(o.y));
    if (product == DATA)
        return cudnnConvolutionBackwardData(handle, &one, c->w, o.w, c->y, o.y, c->how[product], (cudnnConvolutionBwdDataAlgo_t)way->algorithm, workspace,
                                            way->workspace_bytes, &beta, c->x, out(o.x));
    return cudnnConvolutionBackwardFilter(handle, &one, c->x, o.x, c->y, o.y, c->how[product], (cudnnConvolutionBwdFilterAlgo_t)way->algorithm, workspace,
                                          way->workspace_bytes, &beta, c->w, out(o.w));
}

/* What is measured, on memory that is let go afterwards. */
struct trial {
    struct pl_cuda_convolve *convolve;
    int product;
    const struct way *way;
    struct operands operands;
    void *workspace;
};

/* A candidate that does not run is none: no message. */
static pl_status try(void *arg)
{
    struct trial *t = arg;
    return start(t->convolve, t->product, t->way, t->workspace, t->operands, 0.0f) == CUDNN_STATUS_SUCCESS ? PL_OK : PL_ERR_MEMORY;
}

static pl_status list_ways(struct pl_cuda_convolve *c, int product, struct way *way, int *ways)
{
    *ways = 0;
    return (product == FORWARD ? list_forward : product == DATA ? list_data : list_weights)(c, way, ways);
}

/* What a way needs with the arithmetic that it is to use, which may differ from what it was reported with. */
static bool ask_workspace(struct pl_cuda_convolve *c, int product, struct way *way)
{
    cudnnHandle_t handle = c->backend->dnn->handle;
    cudnnConvolutionDescriptor_t how = c->how[product];
    cudnnStatus_t e = cudnnSetConvolutionMathType(how, way->math);
    if (e == CUDNN_STATUS_SUCCESS && product == FORWARD)
        e = cudnnGetConvolutionForwardWorkspaceSize(handle, c->x, c->w, how, c->y, (cudnnConvolutionFwdAlgo_t)way->algorithm, &way->workspace_bytes);
    else if (e == CUDNN_STATUS_SUCCESS && product == DATA)
        e = cudnnGetConvolutionBackwardDataWorkspaceSize(handle, c->w, c->y, how, c->x, (cudnnConvolutionBwdDataAlgo_t)way->algorithm, &way->workspace_bytes);
    else if (e == CUDNN_STATUS_SUCCESS)
        e = cudnnGetConvolutionBackwardFilterWorkspaceSize(handle, c->x, c->y, how, c->w, (cudnnConvolutionBwdFilterAlgo_t)way->algorithm, &way->workspace_bytes);
    return e == CUDNN_STATUS_SUCCESS && way->workspace_bytes <= WORKSPACE_BYTES;
}

static bool measure(struct trial *t, const struct way *way, int ways)
{
    struct pl_cuda_convolve *c = t->convolve;
    double best = -1, ms;
    for (int i = 0; i < ways; i++) {
        t->way = &way[i];
        if (cudnnSetConvolutionMathType(c->how[t->product], way[i].math) != CUDNN_STATUS_SUCCESS || pl_cuda_time(c->backend->device, try, t, &ms) < 0 ||
            !pl_cuda_is_faster(ms, best))
            continue;
        best = ms;
        c->way[t->product] = way[i];
    }
    return best >= 0;
}

static pl_status choose_product(struct trial *t, const struct pl_op *op)
{
    static const char *const names[] = {"forward", "backward to its input", "backward to its weights"};
    struct pl_cuda_convolve *c = t->convolve;
    struct pl_cuda_device *d = c->backend->device;
    struct way way[CANDIDATES];
    size_t most = 0;
    int listed, ways = 0;
    PL_TRY(list_ways(c, t->product, way, &listed));
    for (int i = 0; i < listed; i++)
        if (ask_workspace(c, t->product, &way[i]))
            way[ways++] = way[i];
    for (int i = 0; i < ways; i++)
        most = way[i].workspace_bytes > most ? way[i].workspace_bytes : most;
    t->workspace = pl_cuda_alloc(d, most, "choosing a convolution's algorithm");
    if (!t->workspace)
        return PL_ERR_MEMORY;
    bool found = measure(t, way, ways);
    pl_cuda_free(d, t->workspace);
    if (!found)
        return pl_error(PL_ERR_USAGE, "backend", "cuda cannot compute layer %s: cuDNN has no deterministic algorithm for it, %s", op->name, names[t->product]);
    DNN(cudnnSetConvolutionMathType(c->how[t->product], c->way[t->product].math));
    return pl_cuda_scratch(c->backend, c->way[t->product].workspace_bytes);
}

static pl_status choose(struct pl_cuda_convolve *c, const struct pl_op *op)
{
    struct pl_cuda_device *d = c->backend->device;
    const bool needed[PRODUCTS] = {true, op->train && op->need_dx[0], op->train};
    struct trial t = {.convolve = c};
    void *x = pl_cuda_alloc(d, pl_cuda_copy_bytes(pl_shape_elems(&op->x[0]), c->bf16), "choosing a convolution's algorithm");
    void *w = x ? pl_cuda_alloc(d, pl_cuda_copy_bytes(pl_shape_elems(&op->p[0]), c->bf16), "choosing a convolution's algorithm") : NULL;
    void *y = w ? pl_cuda_alloc(d, pl_cuda_copy_bytes(pl_shape_elems(&op->y), c->bf16), "choosing a convolution's algorithm") : NULL;
    pl_status s = y ? PL_OK : PL_ERR_MEMORY;
    t.operands = (struct operands){x, w, y};
    for (t.product = 0; s == PL_OK && t.product < PRODUCTS; t.product++)
        if (needed[t.product])
            s = choose_product(&t, op);
    pl_cuda_free(d, x);
    pl_cuda_free(d, w);
    pl_cuda_free(d, y);
    return s;
}

/* ---- what cuda.h says --------------------------------------------------------------------------- */

pl_status pl_cuda_convolve_create(struct pl_backend *b, const struct pl_op *op, bool channels_last, bool bf16, struct pl_cuda_convolve **result)
{
    *result = NULL;
    PL_TRY(open_dnn(b));
    struct pl_cuda_convolve *c = pl_alloc(sizeof *c, "a convolution");
    if (!c)
        return PL_ERR_MEMORY;
    c->backend = b;
    c->bf16 = bf16;
    pl_status s = describe(c, op, channels_last);
    if (s == PL_OK)
        s = choose(c, op);
    if (s < 0)
        pl_cuda_convolve_destroy(c);
    else
        *result = c;
    return s;
}

void pl_cuda_convolve_destroy(struct pl_cuda_convolve *c)
{
    if (!c)
        return;
    for (int i = 0; i < PRODUCTS; i++)
        if (c->how[i])
            cudnnDestroyConvolutionDescriptor(c->how[i]);
    if (c->w)
        cudnnDestroyFilterDescriptor(c->w);
    if (c->x)
        cudnnDestroyTensorDescriptor(c->x);
    if (c->y)
        cudnnDestroyTensorDescriptor(c->y);
    pl_free(c);
}

static pl_status run(struct pl_cuda_convolve *c, int product, struct operands o, float beta)
{
    static const char *const names[] = {"cudnnConvolutionForward", "cudnnConvolutionBackwardData", "cudnnConvolutionBackwardFilter"};
    cudnnStatus_t e = start(c, product, &c->way[product], c->backend->scratch, o, beta);
    return e == CUDNN_STATUS_SUCCESS ? PL_OK : failed(e, names[product]);
}

pl_status pl_cuda_convolve_forward(struct pl_cuda_convolve *c, const void *x, const void *w, void *y)
{
    return run(c, FORWARD, (struct operands){x, w, y}, 0.0f);
}

pl_status pl_cuda_convolve_data(struct pl_cuda_convolve *c, const void *dy, const void *w, void *dx)
{
    return run(c, DATA, (struct operands){dx, w, dy}, 0.0f);
}

pl_status pl_cuda_convolve_weights(struct pl_cuda_convolve *c, const void *x, const void *dy, bool accumulate, void *dw)
{
    return run(c, WEIGHTS, (struct operands){x, dw, dy}, accumulate ? 1.0f : 0.0f);
}
