#include "tests/gpu/gpu_graph.h"

#include "gtest/gtest.h"

#include "kernels/device/stream.h"
#include "tests/gpu/gpu_cache.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::testing {

void Replay(int times, const std::function<void(cudaStream_t)>& enqueue) {
  const auto stream = OrDie(device::Stream::Create());
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  ASSERT_EQ(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeGlobal), cudaSuccess);
  enqueue(stream.get());
  ASSERT_EQ(cudaStreamEndCapture(stream.get(), &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  for (int i = 0; i < times; ++i) EXPECT_EQ(cudaGraphLaunch(executable, stream.get()), cudaSuccess);
  EXPECT_OK(stream.Synchronize());
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
}

}  // namespace oscarkv::testing
