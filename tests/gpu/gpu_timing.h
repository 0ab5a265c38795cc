// How the device's benchmarks measure, and what: one layer of Qwen3-8B.
#ifndef OSCARKV_TESTS_GPU_GPU_TIMING_H_
#define OSCARKV_TESTS_GPU_GPU_TIMING_H_

#include <functional>
#include <vector>

#include "absl/status/status.h"

#include "cuda_runtime_api.h"
#include "kernels/codec/geometry.h"

namespace oscarkv::testing {

inline constexpr Geometry kQwen3{.layers = 1,
                                 .kv_heads = 8,
                                 .k_head_dim = 128,
                                 .v_head_dim = 128,
                                 .page_tokens = 64,
                                 .dtype = DType::kBf16};

inline constexpr int kTimedRepeats = 61;

// Microseconds between events, of kTimedRepeats runs.
struct Times {
  double median = 0;
  double low = 0;  // a tenth of the runs took less
  double high = 0;
};

// Puts one call's work into a stream; a call is measured over memory of its own.
using Enqueue = std::function<absl::Status(cudaStream_t)>;

// Of one call, from replays of a CUDA graph that holds them all, so that launches cost nothing and,
// where all calls' memory is much more than the second-level cache, no call finds its own there.
Times TimeGraph(cudaStream_t stream, const std::vector<Enqueue>& calls);

// TB/s of a large copy within the device, counting bytes read and written.
double CopyBandwidth(cudaStream_t stream);

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_GPU_GPU_TIMING_H_
