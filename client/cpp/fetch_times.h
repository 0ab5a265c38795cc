// How long a fetch should take: what the server said of its side, completed by what this client has
// measured of its own.
//
// Which end computes: this one. The server knows its tiers and who else fetches, and tells both
// with every look-up; the way between the two, and what verifying and decoding cost here, only
// this end sees, and of pages that it reads where they lie (shared memory, a GPU) the server sees
// nothing at all. So a client times its own fetches from end to end, by path, and the server's own
// estimate (of gRPC, up to its socket) is what it starts from, and what others have.
//
// What is told to callers is what a fetch seldom takes longer than, not what it takes on average:
// an engine that loads loses by a wait it did not expect more than it wins by a short one. How far
// the two are apart is learnt from the fetches themselves, of those that wait for a disk by itself:
// their times are spread far wider than those of fetches from memory.
#ifndef OSCARKV_CLIENT_CPP_FETCH_TIMES_H_
#define OSCARKV_CLIENT_CPP_FETCH_TIMES_H_

#include <array>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

#include "client/cpp/client.h"
#include "proto/wire/data_path.h"

namespace oscarkv::client {

// Thread-safe.
class FetchTimes {
 public:
  // A look-up took this long: a round trip.
  void RecordRoundTrip(absl::Duration took) ABSL_LOCKS_EXCLUDED(mutex_);
  // A fetch of so many bytes by `path` was complete after `took`; `told` of its look-up, or zeros.
  // One of few bytes teaches nothing.
  void Record(DataPath path, uint64_t bytes, absl::Duration took, const FetchForecast& told)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // Milliseconds that a fetch by `path` should take at most.
  double ExpectedMs(DataPath path, uint64_t bytes, const FetchForecast& told) const
      ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct PathTimes {
    // What came, and what others fetched meanwhile, in how long, lately; 0: nothing yet.
    double bytes = 0.0;
    double seconds = 0.0;
    double spread = 1.5;  // that most fetches stay below, of what the rest foretells
  };

  // Of a path: fetches from memory, and those that wait for a disk.
  using Measured = std::array<PathTimes, 2>;
  static size_t Waits(const FetchForecast& told) { return told.loading_ms > 0.0 ? 1 : 0; }
  static size_t Index(DataPath path) { return static_cast<size_t>(path) - 1; }
  // What a fetch would take if nothing were spread.
  double BaseMs(const Measured& measured, uint64_t bytes, const FetchForecast& told) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable absl::Mutex mutex_;
  double round_trip_ms_ ABSL_GUARDED_BY(mutex_) = 0.2;
  std::array<Measured, kDataPaths.size()> paths_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_FETCH_TIMES_H_
