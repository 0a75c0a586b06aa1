/* pixels: images of uint8 to what a network takes. Products and sums are rounded apart, as on the host, so the bits are the same. */
#include "backend/cuda/kernel.cuh"

static __global__ void widen(pl_cuda_pixels p, float *y, pl_divisor plane, pl_divisor width, int64_t row)
{
    PL_EACH_ROW(i, p.n) {
        pl_cuda_place place = p.place[i];
        PL_EACH(e, row) {
            uint32_t c = pl_quotient((uint32_t)e, plane), at = (uint32_t)e - c * plane.by;
            int32_t r = (int32_t)pl_quotient(at, width), x = (int32_t)at - r * (int32_t)width.by;
            int32_t from = place.mirrored ? (int32_t)width.by - 1 - x : x;
            bool inside = r >= place.top && r < place.bottom && from >= place.left && from < place.right;
            float v = inside ? (float)p.value[i * row + e - x + from] : 0.0f;
            y[i * row + e] = inside ? __fadd_rn(__fmul_rn(v, p.factor[c]), p.factor[p.channels + c]) : 0.0f;
        }
    }
}

void pl_cuda_widen(pl_cuda_stream s, struct pl_cuda_pixels p, float *y)
{
    int64_t row = p.channels * p.height * p.width;
    PL_LAUNCH(widen, pl_blocks_of_rows(p.n, row), PL_THREADS, s, p, y, pl_divisor_of(p.height * p.width), pl_divisor_of(p.width), row);
}
