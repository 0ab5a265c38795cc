// Times of calls, and what is said of them.
#ifndef OSCARKV_TESTS_BENCH_TRANSFER_TIMING_H_
#define OSCARKV_TESTS_BENCH_TRANSFER_TIMING_H_

#include <algorithm>
#include <chrono>
#include <vector>

#include "nlohmann/json.hpp"

namespace oscarkv::bench {

using Clock = std::chrono::steady_clock;

inline Clock::duration Seconds(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}
inline double MicrosSince(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

// p50_us, p99_us, p999_us and max_us; sorts the times.
inline void AddQuantiles(std::vector<double>* us, nlohmann::json* json) {
  std::sort(us->begin(), us->end());
  const auto quantile = [&](double share) {
    if (us->empty()) return 0.0;
    const auto at = static_cast<size_t>(share * static_cast<double>(us->size()));
    return (*us)[std::min(at, us->size() - 1)];
  };
  (*json)["p50_us"] = quantile(0.5);
  (*json)["p99_us"] = quantile(0.99);
  (*json)["p999_us"] = quantile(0.999);
  (*json)["max_us"] = quantile(1.0);
}

}  // namespace oscarkv::bench

#endif  // OSCARKV_TESTS_BENCH_TRANSFER_TIMING_H_
