/* emulated: kernels on the host. The .cu files compiled as C++ find here what CUDA gives a kernel. Blocks run one after the
 * other, at most two in each direction so that loops over the grid go round; a block is one thread, or with
 * PL_EMULATED_THREADS=n so many real ones, whose barriers then are real too. Device memory (libraries/) is open while a kernel runs,
 * and closed to the host now and then; a pointer to anything else that a kernel is given ends the program. */
#ifndef PL_TESTS_CUDA_EMULATED_H
#define PL_TESTS_CUDA_EMULATED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif
/* libraries/runtime.cc: device memory may be touched between them; nested calls are fine. */
void pl_emulated_enter(void);
void pl_emulated_leave(void);
void pl_emulated_check(const void *p); /* in device memory, or NULL */
extern int pl_emulated_moves;   /* copies within device memory so far: of what came ahead */
extern int pl_emulated_replays; /* graphs that were launched */
int pl_emulated_waiting(void);  /* pieces of work that were started and not done yet */

/* Elements of float or of bf16, to the nearest, of equals the even one. */
static inline uint16_t pl_emulated_round(float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return v != v ? (uint16_t)0x7fff : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static inline float pl_emulated_widen(uint16_t h)
{
    uint32_t bits = (uint32_t)h << 16;
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}
static inline float pl_emulated_get(const void *t, bool bf16, int64_t i)
{
    return bf16 ? pl_emulated_widen(((const uint16_t *)t)[i]) : ((const float *)t)[i];
}
static inline void pl_emulated_put(void *t, bool bf16, int64_t i, float v)
{
    if (bf16)
        ((uint16_t *)t)[i] = pl_emulated_round(v);
    else
        ((float *)t)[i] = v;
}
#ifdef __cplusplus
}

#include <functional>

void pl_emulated_submit(void *stream, const std::function<void()> &work); /* libraries/runtime.cc: when it is its turn */

#ifndef PL_BESIDE_NVIDIA /* whose headers have these themselves */
#define __global__
#define __device__
#define __host__
#define __shared__ static

struct dim3 {
    unsigned x, y, z;
    explicit dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
extern thread_local dim3 blockIdx, threadIdx;
extern dim3 blockDim, gridDim;

void pl_emulated_barrier();
void pl_emulated_run(void *stream, dim3 blocks, const std::function<void()> &kernel);

static inline void __syncthreads() { pl_emulated_barrier(); }
struct __nv_bfloat16 { uint16_t bits; };
static inline float __bfloat162float(__nv_bfloat16 h) { return pl_emulated_widen(h.bits); }
static inline __nv_bfloat16 __float2bfloat16_rn(float v) { return __nv_bfloat16{pl_emulated_round(v)}; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline uint32_t __umulhi(uint32_t a, uint32_t b) { return (uint32_t)(((uint64_t)a * b) >> 32); }

template <class T> static void pl_emulated_check_argument(const T &) {}
template <class T> static void pl_emulated_check_argument(T *const &p) { pl_emulated_check((const void *)p); }

template <class... P, class... A> static void pl_emulate(void *stream, void (*kernel)(P...), dim3 blocks, A... a)
{
    int each[] = {(pl_emulated_check_argument(a), 0)...};
    (void)each;
    pl_emulated_run(stream, blocks, [=] { kernel(static_cast<P>(a)...); });
}

#define PL_LAUNCH(kernel, blocks, threads, stream, ...) \
    ((void)(threads), pl_emulate((void *)(stream), kernel, dim3(blocks), __VA_ARGS__))
#endif
#endif
#endif
