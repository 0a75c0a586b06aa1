/* convolve: the three products of a convolution over cuDNN. Of the algorithms that cuDNN has for a shape, only the
 * deterministic ones within the workspace's limit count, and where factors are rounded those that multiply them as they are, not
 * transformed ones (whose rounding grows on the way back); the one that cuDNN thinks best stays unless another was measured to
 * be clearly faster, so that runs whose measurements differ a little still take the same. */
#include "backend/cuda/cuda.h"

#include <cudnn_cnn.h>
#include <string.h>

enum { FORWARD, DATA, WEIGHTS, PRODUCTS };
enum { CANDIDATES = 16 };
#define LEAST_WORKSPACE_BYTES ((size_t)512 << 20) /* of the limit: copies that tensor cores want are as large as the tensors */

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
    cudnnMathType_t math[PRODUCTS];             /* the most that is allowed */
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

/* Of float the default may round to tf32, which is finer than bf16; bf16 asks for tensor cores by name. */
static cudnnMathType_t wanted_math(const struct pl_cuda_convolve *c)
{
    const struct pl_device_options *o = &c->backend->options;
    return c->bf16 ? CUDNN_TENSOR_OP_MATH : o->tf32 || o->bf16 ? CUDNN_DEFAULT_MATH : CUDNN_FMA_MATH;
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
        c->math[i] = wanted_math(c);
    }
    return PL_OK;
}

/* ---- the choice of algorithms ------------------------------------------------------------------- */

/* Adds those of perf[0 .. n) that may be taken to way[]; perf's type is of the product. */
#define KEEP(c, product, perf, n, way, ways)                                                                                       \
    do {                                                                                                                           \
        for (int i_ = 0; i_ < (n); i_++)                                                                                           \
            if ((perf)[i_].status == CUDNN_STATUS_SUCCESS && (perf)[i_].determinism == CUDNN_DETERMINISTIC && may((c), (product), (int)(perf)[i_].algo)) \
                (way)[(ways)++] = (struct way){(int)(perf)[i_].algo, math((c), (product), (perf)[i_].mathType), (perf)[i_].memory}; \
    } while (0)

/* Of float without tf32 nothing but plain arithmetic, whatever cuDNN reports. */
static cudnnMathType_t math(const struct pl_cuda_convolve *c, int product, cudnnMathType_t reported)
{
    return c->math[product] == CUDNN_FMA_MATH ? CUDNN_FMA_MATH : reported;
}

/* Transforms, of Winograd and Fourier, of plain floats only. */
static bool may(const struct pl_cuda_convolve *c, int product, int algorithm)
{
    if (c->math[product] == CUDNN_FMA_MATH)
        return true;
    if (product == FORWARD)
        return algorithm == CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM || algorithm == CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM || algorithm == CUDNN_CONVOLUTION_FWD_ALGO_GEMM;
    return algorithm == (product == DATA ? (int)CUDNN_CONVOLUTION_BWD_DATA_ALGO_1 : (int)CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1);
}

/* PL_END: it has none for this, which is no error. */
static pl_status listed(cudnnStatus_t e, const char *call)
{
    if (e == CUDNN_STATUS_SUCCESS)
        return PL_OK;
    return (int)e / 1000 == (int)CUDNN_STATUS_NOT_SUPPORTED / 1000 ? PL_END : failed(e, call);
}

static pl_status list_forward(struct pl_cuda_convolve *c, struct way *way, int *ways)
{
    cudnnConvolutionFwdAlgoPerf_t perf[CANDIDATES];
    int n = 0;
    pl_status s = listed(cudnnGetConvolutionForwardAlgorithm_v7(c->backend->dnn->handle, c->x, c->w, c->how[FORWARD], c->y, CANDIDATES, &n, perf),
                         "cudnnGetConvolutionForwardAlgorithm_v7");
    if (s == PL_OK)
        KEEP(c, FORWARD, perf, n, way, *ways);
    return s;
}

static pl_status list_data(struct pl_cuda_convolve *c, struct way *way, int *ways)
{
    cudnnConvolutionBwdDataAlgoPerf_t perf[CANDIDATES];
    int n = 0;
    pl_status s = listed(cudnnGetConvolutionBackwardDataAlgorithm_v7(c->backend->dnn->handle, c->w, c->y, c->how[DATA], c->x, CANDIDATES, &n, perf),
                         "cudnnGetConvolutionBackwardDataAlgorithm_v7");
    if (s == PL_OK)
        KEEP(c, DATA, perf, n, way, *ways);
    return s;
}

static pl_status list_weights(struct pl_cuda_convolve *c, struct way *way, int *ways)
{
    cudnnConvolutionBwdFilterAlgoPerf_t perf[CANDIDATES];
    int n = 0;
    pl_status s = listed(cudnnGetConvolutionBackwardFilterAlgorithm_v7(c->backend->dnn->handle, c->x, c->y, c->how[WEIGHTS], c->w, CANDIDATES, &n, perf),
                         "cudnnGetConvolutionBackwardFilterAlgorithm_v7");
    if (s == PL_OK)
        KEEP(c, WEIGHTS, perf, n, way, *ways);
    return s;
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
    int64_t written; /* elements of the one that is */
    void *workspace;
};

/* A candidate that does not run is none. */
static pl_status try(void *arg)
{
    struct trial *t = arg;
    return start(t->convolve, t->product, t->way, t->workspace, t->operands, 0.0f) == CUDNN_STATUS_SUCCESS ? PL_OK : PL_END;
}

static pl_status list_ways(struct pl_cuda_convolve *c, int product, struct way *way, int *ways)
{
    *ways = 0;
    DNN(cudnnSetConvolutionMathType(c->how[product], c->math[product]));
    return (product == FORWARD ? list_forward : product == DATA ? list_data : list_weights)(c, way, ways);
}

static size_t workspace_limit(const struct pl_cuda_convolve *c)
{
    size_t part = pl_cuda_memory_bytes(c->backend->device) / 16;
    return part > LEAST_WORKSPACE_BYTES ? part : LEAST_WORKSPACE_BYTES;
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
    return e == CUDNN_STATUS_SUCCESS;
}

/* cuDNN's bf16 has given what is no number elsewhere (oneDNN's issue 1583): whether the first of what a way wrote is one. */
static pl_status is_finite(const struct trial *t, bool *finite)
{
    enum { LOOK = 4096 };
    const void *written = t->product == FORWARD ? t->operands.y : t->product == DATA ? t->operands.x : t->operands.w;
    uint16_t v[LOOK];
    int64_t n = t->written < LOOK ? t->written : LOOK;
    *finite = true;
    if (!t->convolve->bf16)
        return PL_OK;
    PL_TRY(pl_cuda_download(t->convolve->backend->device, v, written, (size_t)n * sizeof *v));
    for (int64_t i = 0; i < n; i++)
        *finite = *finite && (v[i] & 0x7f80) != 0x7f80;
    return PL_OK;
}

/* Weights are added to as well, of float at once. */
static bool accumulates(struct trial *t)
{
    return t->product != WEIGHTS || t->convolve->bf16 || start(t->convolve, t->product, t->way, t->workspace, t->operands, 1.0f) == CUDNN_STATUS_SUCCESS;
}

static pl_status measure(struct trial *t, const struct way *way, int ways, bool *found)
{
    struct pl_cuda_convolve *c = t->convolve;
    double best = -1, ms = 0;
    pl_status s = PL_OK;
    for (int i = 0; s >= 0 && i < ways; i++) {
        bool finite = true;
        t->way = &way[i];
        s = cudnnSetConvolutionMathType(c->how[t->product], way[i].math) == CUDNN_STATUS_SUCCESS ? pl_cuda_time(c->backend->device, try, t, &ms) : PL_END;
        if (s != PL_OK || !pl_cuda_is_faster(ms, best) || (s = is_finite(t, &finite)) != PL_OK || !finite || !accumulates(t))
            continue;
        best = ms;
        c->way[t->product] = way[i];
    }
    *found = best >= 0;
    return s < 0 ? s : PL_OK;
}

/* Leaves those that need at most so much; the most of what these do. */
static size_t leave_out(struct way *way, int *ways, size_t limit)
{
    size_t most = 0;
    int left = 0;
    for (int i = 0; i < *ways; i++)
        if (way[i].workspace_bytes <= limit) {
            most = way[i].workspace_bytes > most ? way[i].workspace_bytes : most;
            way[left++] = way[i];
        }
    *ways = left;
    return most;
}

/* One workspace for all of them. Where there is no memory for it those that need the most are left out. *least: what the one
 * that needs least takes. */
static pl_status measure_all(struct trial *t, struct way *way, int ways, bool *found, size_t *least)
{
    struct pl_cuda_convolve *c = t->convolve;
    struct pl_cuda_device *d = c->backend->device;
    *found = false;
    *least = 0;
    for (int i = 0; i < ways; i++)
        *least = *least == 0 || way[i].workspace_bytes < *least ? way[i].workspace_bytes : *least;
    size_t most = leave_out(way, &ways, workspace_limit(c));
    while (ways > 0 && !(t->workspace = pl_cuda_alloc(d, most, "choosing a convolution's algorithm"))) {
        size_t refused = most;
        most = refused > 0 ? leave_out(way, &ways, refused - 1) : 0;
        if (refused == 0 || ways == 0)
            return PL_ERR_MEMORY;
        pl_error_clear();
    }
    pl_status s = PL_OK;
    if (ways > 0) {
        s = measure(t, way, ways, found);
        pl_cuda_free(d, t->workspace);
    }
    return s;
}

/* Where no rounded product is to be had, one of plain floats. */
static pl_status choose_product(struct trial *t, const struct pl_op *op)
{
    static const char *const names[] = {"forward", "backward to its input", "backward to its weights"};
    struct pl_cuda_convolve *c = t->convolve;
    struct way way[CANDIDATES];
    size_t least;
    bool found;
    for (;;) {
        int ways = 0, listed;
        pl_status s = list_ways(c, t->product, way, &listed);
        if (s < 0)
            return s;
        for (int i = 0; i < listed; i++)
            if (ask_workspace(c, t->product, &way[i]))
                way[ways++] = way[i];
        PL_TRY(measure_all(t, way, ways, &found, &least));
        if (found || c->bf16 || c->math[t->product] == CUDNN_FMA_MATH)
            break;
        c->math[t->product] = CUDNN_FMA_MATH;
    }
    if (!found)
        return pl_error(PL_ERR_USAGE, "backend", "cuda cannot compute layer %s: cuDNN has no deterministic algorithm for it, %s%s", op->name, names[t->product],
                        least > workspace_limit(c) ? ", that does with the memory there is: a smaller train.batch needs less" : "");
    DNN(cudnnSetConvolutionMathType(c->how[t->product], c->way[t->product].math));
    return pl_cuda_scratch(c->backend, c->way[t->product].workspace_bytes);
}

/* With numbers near 0.01, as bf16 and as float. */
static pl_status fill(struct pl_cuda_convolve *c, void *p, int64_t elems)
{
    return pl_cuda_fill(c->backend->device, p, 0x3c, (size_t)elems * (c->bf16 ? sizeof(uint16_t) : sizeof(float)));
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
    const int64_t elems[PRODUCTS] = {[FORWARD] = pl_shape_elems(&op->y), [DATA] = pl_shape_elems(&op->x[0]), [WEIGHTS] = pl_shape_elems(&op->p[0])};
    t.operands = (struct operands){x, w, y};
    for (t.product = 0; s == PL_OK && t.product < PRODUCTS; t.product++) {
        if (!needed[t.product])
            continue;
        t.written = elems[t.product];
        s = fill(c, x, elems[DATA]);
        if (s == PL_OK)
            s = fill(c, w, elems[WEIGHTS]);
        if (s == PL_OK)
            s = fill(c, y, elems[FORWARD]);
        if (s == PL_OK)
            s = choose_product(&t, op);
    }
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
