// Counts of relative errors in fixed buckets.
#ifndef OSCARKV_SERVER_CORE_ERROR_HISTOGRAM_H_
#define OSCARKV_SERVER_CORE_ERROR_HISTOGRAM_H_

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace oscarkv {

// Not thread-safe.
struct ErrorHistogram {
  // Upper bounds; one more bucket has none. Gaussian rows at 2 bits come to 0.34, at 4 bits to 0.1.
  static constexpr std::array<double, 12> kBounds = {0.02, 0.05, 0.1, 0.15, 0.2, 0.25,
                                                     0.3,  0.35, 0.4, 0.5,  0.7, 1.0};

  void Record(double error) {
    ++counts[static_cast<size_t>(std::lower_bound(kBounds.begin(), kBounds.end(), error) -
                                 kBounds.begin())];
    ++count;
    sum += error;
  }

  std::array<uint64_t, kBounds.size() + 1> counts{};  // of each bucket by itself
  uint64_t count = 0;
  double sum = 0.0;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_ERROR_HISTOGRAM_H_
