#include "client/cpp/fetch_times.h"

#include <algorithm>
#include <cmath>

namespace oscarkv::client {
namespace {

constexpr double kRoundTripWeight = 0.1;
// A measurement counts half after some seven more.
constexpr double kKeep = 0.9;
constexpr uint64_t kBytesMin = 64 << 10;
// The part of a fetch that is at least the path's, whatever was expected of the rest.
constexpr double kPathShareMin = 0.1;
// The spread follows the quantile that kAbove of kAbove + kBelow fetches stay below: it rises by
// the one when it was too little, and falls by the other when it was not.
constexpr double kRise = 0.19;
constexpr double kFall = 0.003;
// A fetch that took more than twice what was told would take: the spread rises so far that it would
// not have, at most by this, so that one stall is forgiven and a machine that has become slow is
// noticed at once.
constexpr double kFarLonger = 2.0;
constexpr double kRiseMax = 1.5;
constexpr double kSpreadMin = 1.0;
constexpr double kSpreadMax = 16.0;

}  // namespace

void FetchTimes::RecordRoundTrip(absl::Duration took) {
  const absl::MutexLock lock(&mutex_);
  round_trip_ms_ += kRoundTripWeight * (absl::ToDoubleMilliseconds(took) - round_trip_ms_);
}

double FetchTimes::BaseMs(const Measured& measured, uint64_t bytes,
                          const FetchForecast& told) const {
  const size_t waits = Waits(told);
  const PathTimes& times = measured[measured[waits].seconds > 0.0 ? waits : 1 - waits];
  // Nothing was measured on this path: the server's word is what there is.
  if (times.seconds == 0.0) return std::max(told.server_ms, round_trip_ms_);
  const auto amount = static_cast<double>(bytes) + static_cast<double>(told.bytes_ahead);
  return round_trip_ms_ + told.loading_ms + 1e3 * amount * times.seconds / times.bytes;
}

void FetchTimes::Record(DataPath path, uint64_t bytes, absl::Duration took,
                        const FetchForecast& told) {
  const double ms = absl::ToDoubleMilliseconds(took);
  if (bytes < kBytesMin || !(ms > 0.0)) return;
  const absl::MutexLock lock(&mutex_);
  const Measured& measured = paths_[Index(path)];
  PathTimes& times = paths_[Index(path)][Waits(told)];
  if (times.seconds > 0.0) {
    const double ratio = ms / BaseMs(measured, bytes, told);
    double change = std::exp(ratio > times.spread ? kRise : -kFall);
    change = std::max(change, std::min(ratio / (kFarLonger * times.spread), kRiseMax));
    times.spread = std::clamp(times.spread * change, kSpreadMin, kSpreadMax);
  }
  const double path_ms = std::max(ms - round_trip_ms_ - told.loading_ms, kPathShareMin * ms);
  times.bytes =
      kKeep * times.bytes + static_cast<double>(bytes) + static_cast<double>(told.bytes_ahead);
  times.seconds = kKeep * times.seconds + path_ms / 1e3;
}

double FetchTimes::ExpectedMs(DataPath path, uint64_t bytes, const FetchForecast& told) const {
  const absl::MutexLock lock(&mutex_);
  const Measured& measured = paths_[Index(path)];
  return measured[Waits(told)].spread * BaseMs(measured, bytes, told);
}

}  // namespace oscarkv::client
