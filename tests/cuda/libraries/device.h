/* device: what the stand-ins for NVIDIA's libraries have in common. Work that is given to a stream is kept and runs as late as it
 * may, or by PL_FAKE_ORDER (last, first, drawn; without it PL_TEST_SEED says) in another order that streams and events leave open:
 * what is missing of them shows as wrong numbers. Device memory is closed to the host, new memory at once, the rest now and then,
 * as that takes long: who touches it again and again faults. What is given of it must lie in one allocation. Where the documentation
 * says that a call is refused, it is. */
#ifndef PL_TESTS_CUDA_LIBRARIES_DEVICE_H
#define PL_TESTS_CUDA_LIBRARIES_DEVICE_H

#define PL_BESIDE_NVIDIA
#include "../emulated.h"

#include <cuda_runtime_api.h>

/* Appends work to what is done in the stream, or in its recording; takes: on the stream's clock. False: the stream is none. */
bool pl_fake_submit(cudaStream_t stream, double takes_ms, const std::function<void()> &work);
/* Work that may have to be asked again and again until it is done. */
bool pl_fake_submit_until(cudaStream_t stream, const std::function<bool()> &done);
/* Whether [p, p + bytes) is in one allocation of device memory. */
bool pl_fake_far(const void *p, size_t bytes);
/* Ends the program: what a call was given would crash it, or corrupt memory, on a device. */
[[noreturn]] void pl_fake_wrong(const char *call, const char *what);
/* Whether this call of `function` is one that is to fail: PL_FAKE_FAIL=FUNCTION:N, its Nth. */
bool pl_fake_fails(const char *function);
/* Fills with what no result may depend on. */
void pl_fake_spoil(void *p, size_t bytes);

#endif
