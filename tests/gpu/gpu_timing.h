// How the device's benchmarks measure, and what: one layer of Qwen3-8B.
#ifndef OSCARKV_TESTS_GPU_GPU_TIMING_H_
#define OSCARKV_TESTS_GPU_GPU_TIMING_H_

#include <functional>

#include "cuda_runtime_api.h"
#include "kernels/codec/geometry.h"

namespace oscarkv::testing {

inline constexpr Geometry kQwen3{.layers = 1,
                                 .kv_heads = 8,
                                 .k_head_dim = 128,
                                 .v_head_dim = 128,
                                 .page_tokens = 64,
                                 .dtype = DType::kBf16};

// Microseconds of what `enqueue` puts into `stream`, between events: the median of `repeats` runs.
double Median(cudaStream_t stream, int repeats, const std::function<void()>& enqueue);

// TB/s of a large copy within the device, counting bytes read and written.
double CopyBandwidth(cudaStream_t stream);

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_GPU_GPU_TIMING_H_
