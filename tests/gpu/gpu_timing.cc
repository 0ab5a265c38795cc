#include "tests/gpu/gpu_timing.h"

#include <algorithm>

#include "kernels/device/buffer.h"
#include "kernels/device/status.h"
#include "kernels/device/stream.h"
#include "tests/gpu/gpu_cache.h"

namespace oscarkv::testing {
namespace {

constexpr int kWarmUps = 5;

// Of what `enqueue` puts into `stream`.
Times Time(cudaStream_t stream, const std::function<void()>& enqueue) {
  for (int i = 0; i < kWarmUps; ++i) enqueue();
  std::vector<double> times;
  const auto start = OrDie(device::Event::Create(device::Event::Timing::kOn));
  const auto stop = OrDie(device::Event::Create(device::Event::Timing::kOn));
  for (int i = 0; i < kTimedRepeats; ++i) {
    OrDie(start.Record(stream));
    enqueue();
    OrDie(stop.Record(stream));
    OrDie(stop.Synchronize());
    times.push_back(double{OrDie(stop.MillisecondsSince(start))} * 1e3);
  }
  std::sort(times.begin(), times.end());
  return {.median = times[kTimedRepeats / 2],
          .low = times[kTimedRepeats / 10],
          .high = times[kTimedRepeats - 1 - kTimedRepeats / 10]};
}

}  // namespace

Times TimeGraph(cudaStream_t stream, const std::vector<Enqueue>& calls) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  OrDie(device::ToStatus(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capturing"));
  for (const Enqueue& enqueue : calls) OrDie(enqueue(stream));
  OrDie(device::ToStatus(cudaStreamEndCapture(stream, &graph), "capturing"));
  OrDie(device::ToStatus(cudaGraphInstantiate(&executable, graph, 0), "instantiating"));
  Times times = Time(
      stream, [&] { OrDie(device::ToStatus(cudaGraphLaunch(executable, stream), "replaying")); });
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  for (double* each : {&times.median, &times.low, &times.high})
    *each /= static_cast<double>(calls.size());
  return times;
}

double CopyBandwidth(cudaStream_t stream) {
  constexpr size_t kBytes = size_t{2} << 30;
  const auto from = OrDie(device::DeviceBuffer::Allocate(kBytes));
  const auto to = OrDie(device::DeviceBuffer::Allocate(kBytes));
  OrDie(device::ToStatus(cudaMemsetAsync(from.data(), 0x5a, kBytes, stream), "filling"));
  const Times times = Time(stream, [&] {
    OrDie(device::ToStatus(
        cudaMemcpyAsync(to.data(), from.data(), kBytes, cudaMemcpyDeviceToDevice, stream),
        "copying"));
  });
  return 2.0 * kBytes / times.median * 1e-6;
}

}  // namespace oscarkv::testing
