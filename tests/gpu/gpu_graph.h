// Work captured into a CUDA graph and replayed.
#ifndef OSCARKV_TESTS_GPU_GPU_GRAPH_H_
#define OSCARKV_TESTS_GPU_GPU_GRAPH_H_

#include <functional>

#include "cuda_runtime_api.h"

namespace oscarkv::testing {

// Captures what `enqueue` puts into a stream, runs it `times` times and waits. Fails the test when
// CUDA refuses any of it.
void Replay(int times, const std::function<void(cudaStream_t)>& enqueue);

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_GPU_GPU_GRAPH_H_
