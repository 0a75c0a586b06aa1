/* cuDNN: the three products of a convolution by its older interface, over tensors of float or of bf16 with sums of float. */
#include "device.h"

#include <cudnn_cnn.h>
#include <random>
#include <vector>

namespace {

struct Handle { cudaStream_t stream; };
struct Tensor { bool set, bf16, last; int64_t dim[4]; }; /* also of a filter: [out, in/groups, kh, kw] */
struct Convolution { bool set; int64_t pad[2], stride[2], dilation[2], groups; cudnnMathType_t math; };

enum { FORWARD, DATA, WEIGHTS };

int64_t elems(const Tensor &t) { return t.dim[0] * t.dim[1] * t.dim[2] * t.dim[3]; }
size_t bytes(const Tensor &t) { return (size_t)elems(t) * (t.bf16 ? 2 : 4); }

int64_t place(const Tensor &t, int64_t n, int64_t c, int64_t h, int64_t w)
{
    return t.last ? ((n * t.dim[2] + h) * t.dim[3] + w) * t.dim[1] + c : ((n * t.dim[1] + c) * t.dim[2] + h) * t.dim[3] + w;
}

cudnnStatus_t set(Tensor *t, cudnnTensorFormat_t format, cudnnDataType_t type, int n, int c, int h, int w)
{
    if (n < 1 || c < 1 || h < 1 || w < 1 || (type != CUDNN_DATA_FLOAT && type != CUDNN_DATA_BFLOAT16) || (format != CUDNN_TENSOR_NCHW && format != CUDNN_TENSOR_NHWC))
        return CUDNN_STATUS_BAD_PARAM;
    *t = Tensor{true, type == CUDNN_DATA_BFLOAT16, format == CUDNN_TENSOR_NHWC, {n, c, h, w}};
    return CUDNN_STATUS_SUCCESS;
}

/* Padding is the same on both sides, and the output's size follows. */
bool fits(const Tensor &x, const Tensor &w, const Convolution &how, const Tensor &y)
{
    bool fine = x.set && w.set && y.set && how.set && x.dim[1] == w.dim[1] * how.groups && w.dim[0] % how.groups == 0 && y.dim[0] == x.dim[0] && y.dim[1] == w.dim[0];
    for (int k = 0; k < 2; k++)
        fine = fine && y.dim[2 + k] == (x.dim[2 + k] + 2 * how.pad[k] - (how.dilation[k] * (w.dim[2 + k] - 1) + 1)) / how.stride[k] + 1;
    return fine && x.bf16 == w.bf16 && x.bf16 == y.bf16 && x.last == w.last && x.last == y.last;
}

/* One of an algorithm: what it needs, which depends on the arithmetic; and what is said of it. Those that are not deterministic
 * are the fastest, and differ from run to run. Windows of 5 need more than products of matrices do (cublaslt.cc). */
struct Way { int algorithm; bool deterministic, supported, transforms; size_t workspace; };

std::vector<Way> ways(int product, const Tensor &w)
{
    if (product == FORWARD)
        return {{CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM, true, true, false, w.dim[2] == 5 ? (size_t)40 << 20 : 65536},
                {CUDNN_CONVOLUTION_FWD_ALGO_WINOGRAD_NONFUSED, true, true, true, 1 << 20},
                {CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM, true, true, false, 0}, {CUDNN_CONVOLUTION_FWD_ALGO_FFT, true, false, true, 0}};
    if (product == DATA)
        return {{CUDNN_CONVOLUTION_BWD_DATA_ALGO_0, false, true, false, 0}, {CUDNN_CONVOLUTION_BWD_DATA_ALGO_1, true, true, false, 32768},
                {CUDNN_CONVOLUTION_BWD_DATA_ALGO_WINOGRAD_NONFUSED, true, true, true, 1 << 20}};
    return {{CUDNN_CONVOLUTION_BWD_FILTER_ALGO_3, false, true, false, 1024}, {CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1, true, true, false, 16384},
            {CUDNN_CONVOLUTION_BWD_FILTER_ALGO_0, false, true, false, 0}};
}

/* Both ends; all of it takes too long. */
void spoil(void *space, size_t bytes)
{
    size_t end = bytes < 65536 ? bytes : 65536;
    pl_fake_spoil(space, end);
    pl_fake_spoil((char *)space + bytes - end, end);
}

double off_by(const Way &way)
{
    static std::mt19937 draw{std::random_device{}()};
    return way.deterministic ? 1 : 1 + 1e-6 * std::uniform_real_distribution<>(1, 2)(draw);
}

bool has(int product, int algorithm, const Convolution &how, const Tensor &x, const Tensor &filter, Way *out)
{
    for (const Way &w : ways(product, filter))
        if (w.algorithm == algorithm && w.supported && !(w.transforms && (x.bf16 || how.dilation[0] > 1 || how.groups > 1)) && !(x.bf16 && how.math == CUDNN_FMA_MATH)) {
            *out = w;
            out->workspace *= how.math == CUDNN_FMA_MATH ? 1 : 2; /* more with rounded copies */
            return true;
        }
    return false;
}

template <class Perf, class Algo> cudnnStatus_t list(const char *function, int product, cudnnTensorDescriptor_t xd, cudnnFilterDescriptor_t wd, cudnnConvolutionDescriptor_t hd,
                                                     cudnnTensorDescriptor_t yd, int most, int *found, Perf *perf)
{
    const Tensor &x = *(const Tensor *)xd, &w = *(const Tensor *)wd, &y = *(const Tensor *)yd;
    const Convolution &how = *(const Convolution *)hd;
    *found = 0;
    if (pl_fake_fails(function))
        return CUDNN_STATUS_INTERNAL_ERROR;
    if (!fits(x, w, how, y))
        return CUDNN_STATUS_BAD_PARAM;
    for (const Way &way : ways(product, w)) {
        Way needs = way;
        if (*found == most)
            break;
        Perf &p = perf[(*found)++];
        memset(&p, 0, sizeof p);
        p.algo = (Algo)way.algorithm;
        p.status = has(product, way.algorithm, how, x, w, &needs) ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_NOT_SUPPORTED;
        p.memory = way.workspace; /* with other arithmetic it may need more */
        p.determinism = way.deterministic ? CUDNN_DETERMINISTIC : CUDNN_NON_DETERMINISTIC;
        p.mathType = how.math == CUDNN_FMA_MATH ? CUDNN_FMA_MATH : CUDNN_TENSOR_OP_MATH;
    }
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t workspace(const char *function, int product, int algorithm, cudnnTensorDescriptor_t xd, cudnnFilterDescriptor_t wd, cudnnConvolutionDescriptor_t hd,
                        cudnnTensorDescriptor_t yd, size_t *out)
{
    Way way;
    if (pl_fake_fails(function))
        return CUDNN_STATUS_INTERNAL_ERROR;
    if (!fits(*(const Tensor *)xd, *(const Tensor *)wd, *(const Convolution *)hd, *(const Tensor *)yd))
        return CUDNN_STATUS_BAD_PARAM;
    if (!has(product, algorithm, *(const Convolution *)hd, *(const Tensor *)xd, *(const Tensor *)wd, &way))
        return CUDNN_STATUS_NOT_SUPPORTED;
    *out = way.workspace;
    return CUDNN_STATUS_SUCCESS;
}

/* sum[of what is written] += the product of the other two. */
void multiply(int product, const Tensor &x, const void *X, const Tensor &w, const void *W, const Convolution &how, const Tensor &y, const void *Y, std::vector<double> &sum)
{
    int64_t of_group = y.dim[1] / how.groups;
    for (int64_t n = 0; n < y.dim[0]; n++)
        for (int64_t o = 0; o < y.dim[1]; o++)
            for (int64_t i = 0; i < y.dim[2]; i++)
                for (int64_t j = 0; j < y.dim[3]; j++) {
                    int64_t yi = place(y, n, o, i, j);
                    double all = 0, dy = product == FORWARD ? 0 : pl_emulated_get(Y, y.bf16, yi);
                    for (int64_t c = 0; c < w.dim[1]; c++)
                        for (int64_t a = 0; a < w.dim[2]; a++)
                            for (int64_t b = 0; b < w.dim[3]; b++) {
                                int64_t r = i * how.stride[0] - how.pad[0] + a * how.dilation[0], s = j * how.stride[1] - how.pad[1] + b * how.dilation[1];
                                if (r < 0 || r >= x.dim[2] || s < 0 || s >= x.dim[3])
                                    continue;
                                int64_t wi = place(w, o, c, a, b), xi = place(x, n, o / of_group * w.dim[1] + c, r, s);
                                if (product == FORWARD)
                                    all += (double)pl_emulated_get(X, x.bf16, xi) * pl_emulated_get(W, w.bf16, wi);
                                else if (product == DATA)
                                    sum[(size_t)xi] += dy * pl_emulated_get(W, w.bf16, wi);
                                else
                                    sum[(size_t)wi] += dy * pl_emulated_get(X, x.bf16, xi);
                            }
                    if (product == FORWARD)
                        sum[(size_t)yi] = all;
                }
}

cudnnStatus_t run(const char *function, int product, cudnnHandle_t handle, const void *alpha, cudnnTensorDescriptor_t xd, const void *X, cudnnFilterDescriptor_t wd, const void *W,
                  cudnnConvolutionDescriptor_t hd, int algorithm, void *space, size_t space_bytes, const void *beta, cudnnTensorDescriptor_t yd, const void *Y)
{
    const Tensor x = *(const Tensor *)xd, w = *(const Tensor *)wd, y = *(const Tensor *)yd;
    const Convolution how = *(const Convolution *)hd;
    const Tensor to = product == FORWARD ? y : product == DATA ? x : w;
    void *out = (void *)(uintptr_t)(product == FORWARD ? Y : product == DATA ? X : W);
    Way way;
    float al, be;
    memcpy(&al, alpha, sizeof al);
    memcpy(&be, beta, sizeof be);
    if (pl_fake_fails(function))
        return CUDNN_STATUS_EXECUTION_FAILED;
    if (!handle || !fits(x, w, how, y))
        return CUDNN_STATUS_BAD_PARAM;
    if (!has(product, algorithm, how, x, w, &way))
        return CUDNN_STATUS_NOT_SUPPORTED;
    if (space_bytes < way.workspace)
        return CUDNN_STATUS_BAD_PARAM;
    if (!pl_fake_far(X, bytes(x)) || !pl_fake_far(W, bytes(w)) || !pl_fake_far(Y, bytes(y)) || (way.workspace > 0 && !pl_fake_far(space, way.workspace)))
        pl_fake_wrong(function, "memory that is not the device's, or too little of it");
    bool submitted = pl_fake_submit(((Handle *)handle)->stream, way.deterministic ? 20 - (double)(way.algorithm % 3) : 10, [=] {
        std::vector<double> sum((size_t)elems(to));
        if (way.workspace > 0)
            spoil(space, way.workspace);
        double off = off_by(way);
        multiply(product, x, X, w, W, how, y, Y, sum);
        for (int64_t i = 0; i < elems(to); i++)
            pl_emulated_put(out, to.bf16, i, (float)(al * off * sum[(size_t)i] + (be != 0 ? be * pl_emulated_get(out, to.bf16, i) : 0)));
    });
    return submitted ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_EXECUTION_FAILED;
}

} // namespace

extern "C" {

size_t cudnnGetVersion(void) { return CUDNN_VERSION; }
const char *cudnnGetErrorString(cudnnStatus_t s) { return s == CUDNN_STATUS_BAD_PARAM ? "CUDNN_STATUS_BAD_PARAM" : s == CUDNN_STATUS_NOT_SUPPORTED ? "CUDNN_STATUS_NOT_SUPPORTED" : "CUDNN_STATUS"; }

void cudnnGetLastErrorString(char *message, size_t most)
{
    if (most > 0)
        message[0] = '\0';
}

cudnnStatus_t cudnnCreate(cudnnHandle_t *out)
{
    if (pl_fake_fails("cudnnCreate"))
        return CUDNN_STATUS_NOT_INITIALIZED;
    *out = (cudnnHandle_t) new Handle{};
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnDestroy(cudnnHandle_t h) { return delete (Handle *)h, CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnSetStream(cudnnHandle_t h, cudaStream_t stream) { return ((Handle *)h)->stream = stream, CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnCreateTensorDescriptor(cudnnTensorDescriptor_t *out) { return *out = (cudnnTensorDescriptor_t) new Tensor{}, CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnDestroyTensorDescriptor(cudnnTensorDescriptor_t t) { return delete (Tensor *)t, CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnCreateFilterDescriptor(cudnnFilterDescriptor_t *out) { return *out = (cudnnFilterDescriptor_t) new Tensor{}, CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnDestroyFilterDescriptor(cudnnFilterDescriptor_t t) { return delete (Tensor *)t, CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnCreateConvolutionDescriptor(cudnnConvolutionDescriptor_t *out) { return *out = (cudnnConvolutionDescriptor_t) new Convolution{}, CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnDestroyConvolutionDescriptor(cudnnConvolutionDescriptor_t c) { return delete (Convolution *)c, CUDNN_STATUS_SUCCESS; }

cudnnStatus_t cudnnSetTensor4dDescriptor(cudnnTensorDescriptor_t t, cudnnTensorFormat_t format, cudnnDataType_t type, int n, int c, int h, int w)
{
    return pl_fake_fails("cudnnSetTensor4dDescriptor") ? CUDNN_STATUS_BAD_PARAM : set((Tensor *)t, format, type, n, c, h, w);
}

cudnnStatus_t cudnnSetFilter4dDescriptor(cudnnFilterDescriptor_t t, cudnnDataType_t type, cudnnTensorFormat_t format, int k, int c, int h, int w)
{
    return set((Tensor *)t, format, type, k, c, h, w);
}

cudnnStatus_t cudnnSetConvolution2dDescriptor(cudnnConvolutionDescriptor_t c, int pad_h, int pad_w, int u, int v, int dilation_h, int dilation_w, cudnnConvolutionMode_t mode,
                                              cudnnDataType_t compute)
{
    if (pad_h < 0 || pad_w < 0 || u < 1 || v < 1 || dilation_h < 1 || dilation_w < 1 || mode != CUDNN_CROSS_CORRELATION || compute != CUDNN_DATA_FLOAT)
        return CUDNN_STATUS_BAD_PARAM;
    *(Convolution *)c = Convolution{true, {pad_h, pad_w}, {u, v}, {dilation_h, dilation_w}, 1, CUDNN_DEFAULT_MATH};
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnSetConvolutionGroupCount(cudnnConvolutionDescriptor_t c, int groups)
{
    return groups < 1 ? CUDNN_STATUS_BAD_PARAM : (((Convolution *)c)->groups = groups, CUDNN_STATUS_SUCCESS);
}

cudnnStatus_t cudnnSetConvolutionMathType(cudnnConvolutionDescriptor_t c, cudnnMathType_t math) { return ((Convolution *)c)->math = math, CUDNN_STATUS_SUCCESS; }

cudnnStatus_t cudnnGetConvolutionForwardAlgorithm_v7(cudnnHandle_t, const cudnnTensorDescriptor_t x, const cudnnFilterDescriptor_t w, const cudnnConvolutionDescriptor_t how,
                                                     const cudnnTensorDescriptor_t y, const int most, int *found, cudnnConvolutionFwdAlgoPerf_t *perf)
{
    return list<cudnnConvolutionFwdAlgoPerf_t, cudnnConvolutionFwdAlgo_t>("cudnnGetConvolutionForwardAlgorithm_v7", FORWARD, x, w, how, y, most, found, perf);
}

cudnnStatus_t cudnnGetConvolutionBackwardDataAlgorithm_v7(cudnnHandle_t, const cudnnFilterDescriptor_t w, const cudnnTensorDescriptor_t dy, const cudnnConvolutionDescriptor_t how,
                                                          const cudnnTensorDescriptor_t dx, const int most, int *found, cudnnConvolutionBwdDataAlgoPerf_t *perf)
{
    return list<cudnnConvolutionBwdDataAlgoPerf_t, cudnnConvolutionBwdDataAlgo_t>("cudnnGetConvolutionBackwardDataAlgorithm_v7", DATA, dx, w, how, dy, most, found, perf);
}

cudnnStatus_t cudnnGetConvolutionBackwardFilterAlgorithm_v7(cudnnHandle_t, const cudnnTensorDescriptor_t x, const cudnnTensorDescriptor_t dy, const cudnnConvolutionDescriptor_t how,
                                                            const cudnnFilterDescriptor_t dw, const int most, int *found, cudnnConvolutionBwdFilterAlgoPerf_t *perf)
{
    return list<cudnnConvolutionBwdFilterAlgoPerf_t, cudnnConvolutionBwdFilterAlgo_t>("cudnnGetConvolutionBackwardFilterAlgorithm_v7", WEIGHTS, x, dw, how, dy, most, found, perf);
}

cudnnStatus_t cudnnGetConvolutionForwardWorkspaceSize(cudnnHandle_t, const cudnnTensorDescriptor_t x, const cudnnFilterDescriptor_t w, const cudnnConvolutionDescriptor_t how,
                                                      const cudnnTensorDescriptor_t y, cudnnConvolutionFwdAlgo_t algorithm, size_t *out)
{
    return workspace("cudnnGetConvolutionForwardWorkspaceSize", FORWARD, algorithm, x, w, how, y, out);
}

cudnnStatus_t cudnnGetConvolutionBackwardDataWorkspaceSize(cudnnHandle_t, const cudnnFilterDescriptor_t w, const cudnnTensorDescriptor_t dy, const cudnnConvolutionDescriptor_t how,
                                                           const cudnnTensorDescriptor_t dx, cudnnConvolutionBwdDataAlgo_t algorithm, size_t *out)
{
    return workspace("cudnnGetConvolutionBackwardDataWorkspaceSize", DATA, algorithm, dx, w, how, dy, out);
}

cudnnStatus_t cudnnGetConvolutionBackwardFilterWorkspaceSize(cudnnHandle_t, const cudnnTensorDescriptor_t x, const cudnnTensorDescriptor_t dy, const cudnnConvolutionDescriptor_t how,
                                                             const cudnnFilterDescriptor_t dw, cudnnConvolutionBwdFilterAlgo_t algorithm, size_t *out)
{
    return workspace("cudnnGetConvolutionBackwardFilterWorkspaceSize", WEIGHTS, algorithm, x, dw, how, dy, out);
}

cudnnStatus_t cudnnConvolutionForward(cudnnHandle_t h, const void *alpha, const cudnnTensorDescriptor_t xd, const void *x, const cudnnFilterDescriptor_t wd, const void *w,
                                      const cudnnConvolutionDescriptor_t how, cudnnConvolutionFwdAlgo_t algorithm, void *space, size_t bytes, const void *beta,
                                      const cudnnTensorDescriptor_t yd, void *y)
{
    return run("cudnnConvolutionForward", FORWARD, h, alpha, xd, x, wd, w, how, algorithm, space, bytes, beta, yd, y);
}

cudnnStatus_t cudnnConvolutionBackwardData(cudnnHandle_t h, const void *alpha, const cudnnFilterDescriptor_t wd, const void *w, const cudnnTensorDescriptor_t dyd, const void *dy,
                                           const cudnnConvolutionDescriptor_t how, cudnnConvolutionBwdDataAlgo_t algorithm, void *space, size_t bytes, const void *beta,
                                           const cudnnTensorDescriptor_t dxd, void *dx)
{
    return run("cudnnConvolutionBackwardData", DATA, h, alpha, dxd, dx, wd, w, how, algorithm, space, bytes, beta, dyd, dy);
}

cudnnStatus_t cudnnConvolutionBackwardFilter(cudnnHandle_t h, const void *alpha, const cudnnTensorDescriptor_t xd, const void *x, const cudnnTensorDescriptor_t dyd, const void *dy,
                                             const cudnnConvolutionDescriptor_t how, cudnnConvolutionBwdFilterAlgo_t algorithm, void *space, size_t bytes, const void *beta,
                                             const cudnnFilterDescriptor_t dwd, void *dw)
{
    return run("cudnnConvolutionBackwardFilter", WEIGHTS, h, alpha, xd, x, dwd, dw, how, algorithm, space, bytes, beta, dyd, dy);
}
}
