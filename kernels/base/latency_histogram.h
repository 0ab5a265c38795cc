// Counts of durations in fixed buckets; recording takes no lock.
#ifndef OSCARKV_KERNELS_BASE_LATENCY_HISTOGRAM_H_
#define OSCARKV_KERNELS_BASE_LATENCY_HISTOGRAM_H_

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/time/time.h"

namespace oscarkv {

// Thread-safe. The counters are relaxed: a snapshot taken while others record may miss the newest
// of them.
class LatencyHistogram {
 public:
  // Upper bounds in seconds; one more bucket has none.
  static constexpr std::array<double, 16> kBounds = {20e-6,  50e-6,  100e-6, 200e-6, 500e-6, 1e-3,
                                                     2e-3,   5e-3,   10e-3,  20e-3,  50e-3,  100e-3,
                                                     200e-3, 500e-3, 1.0,    5.0};

  struct Snapshot {
    std::array<uint64_t, kBounds.size() + 1> counts{};  // of each bucket by itself
    uint64_t count = 0;
    double sum_s = 0.0;
  };

  void Record(absl::Duration duration) {
    const double seconds = absl::ToDoubleSeconds(duration);
    const auto bucket = static_cast<size_t>(
        std::lower_bound(kBounds.begin(), kBounds.end(), seconds) - kBounds.begin());
    counts_[bucket].fetch_add(1, std::memory_order_relaxed);
    sum_ns_.fetch_add(
        static_cast<uint64_t>(std::max<int64_t>(absl::ToInt64Nanoseconds(duration), 0)),
        std::memory_order_relaxed);
  }

  Snapshot Take() const {
    Snapshot snapshot;
    for (size_t i = 0; i < counts_.size(); ++i) {
      snapshot.counts[i] = counts_[i].load(std::memory_order_relaxed);
      snapshot.count += snapshot.counts[i];
    }
    snapshot.sum_s = static_cast<double>(sum_ns_.load(std::memory_order_relaxed)) * 1e-9;
    return snapshot;
  }

 private:
  std::array<std::atomic<uint64_t>, kBounds.size() + 1> counts_{};
  std::atomic<uint64_t> sum_ns_ = 0;
};

}  // namespace oscarkv

#endif  // OSCARKV_KERNELS_BASE_LATENCY_HISTOGRAM_H_
