/* export: what the program finds when it opens the module. */
#include "backend/cuda/cuda.h"
#include "backend/module.h"

static void describe(char *text, size_t bytes)
{
    int toolkit = pl_cuda_toolkit_version(), blas = pl_cuda_blas_version(), dnn = pl_cuda_dnn_version();
    char devices[1024], nccl[256];
    pl_cuda_devices_describe(devices, sizeof devices);
    pl_cuda_nccl_describe(nccl, sizeof nccl);
    snprintf(text, bytes, "code for " PL_CUDA_ARCHITECTURES ", CUDA %d.%d, cuBLAS %d.%d.%d, cuDNN %d.%d.%d, %s; %s", toolkit / 1000, toolkit % 1000 / 10,
             blas / 10000, blas % 10000 / 100, blas % 100, dnn / 10000, dnn % 10000 / 100, dnn % 100, nccl, devices);
}

extern const struct pl_module PL_MODULE_CUDA;
__attribute__((visibility("default"))) const struct pl_module PL_MODULE_CUDA = {PL_MODULE_HEAD, .table = &pl_backend_cuda, .describe = describe};
