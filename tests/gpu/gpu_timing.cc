#include "tests/gpu/gpu_timing.h"

#include <algorithm>
#include <vector>

#include "kernels/device/buffer.h"
#include "kernels/device/status.h"
#include "kernels/device/stream.h"
#include "tests/gpu/gpu_cache.h"

namespace oscarkv::testing {

double Median(cudaStream_t stream, int repeats, const std::function<void()>& enqueue) {
  for (int i = 0; i < 5; ++i) enqueue();
  std::vector<double> times;
  const auto start = OrDie(device::Event::Create(device::Event::Timing::kOn));
  const auto stop = OrDie(device::Event::Create(device::Event::Timing::kOn));
  for (int i = 0; i < repeats; ++i) {
    OrDie(start.Record(stream));
    enqueue();
    OrDie(stop.Record(stream));
    OrDie(stop.Synchronize());
    times.push_back(double{OrDie(stop.MillisecondsSince(start))} * 1e3);
  }
  std::nth_element(times.begin(), times.begin() + repeats / 2, times.end());
  return times[static_cast<size_t>(repeats / 2)];
}

double CopyBandwidth(cudaStream_t stream) {
  constexpr size_t kBytes = size_t{2} << 30;
  const auto from = OrDie(device::DeviceBuffer::Allocate(kBytes));
  const auto to = OrDie(device::DeviceBuffer::Allocate(kBytes));
  OrDie(device::ToStatus(cudaMemsetAsync(from.data(), 0x5a, kBytes, stream), "filling"));
  const double microseconds = Median(stream, 100, [&] {
    OrDie(device::ToStatus(
        cudaMemcpyAsync(to.data(), from.data(), kBytes, cudaMemcpyDeviceToDevice, stream),
        "copying"));
  });
  return 2.0 * kBytes / microseconds * 1e-6;
}

}  // namespace oscarkv::testing
