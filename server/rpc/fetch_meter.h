// What fetching takes, as the server sees it: how fast bytes leave by gRPC, how fast a slower tier
// brings pages into memory, and what is under way meanwhile.
//
// The server knows its devices and its queue; it sees neither a client's network nor what decoding
// costs there, nor anything of pages that a client reads where they lie. So a forecast is of this
// end, in parts, and a client that times its own fetches completes it (client/cpp/fetch_times.h).
#ifndef OSCARKV_SERVER_RPC_FETCH_METER_H_
#define OSCARKV_SERVER_RPC_FETCH_METER_H_

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace oscarkv {

// What a resource that several share brings altogether, while any of them is at work: the less of
// what it brought just now and over some time, so that it is soon known to have become slow, and
// is not thought fast for having been so for a moment. Thread-safe.
class SharedRate {
 public:
  explicit SharedRate(double bytes_per_s)
      : short_{.seconds = kFirstBytes / bytes_per_s}, long_(short_) {}

  // One user of it, from its start to its end. Used by one thread at a time.
  class Use {
   public:
    Use() = default;
    // Starts with `bytes` to be brought.
    Use(SharedRate& rate, uint64_t bytes, absl::Time now);
    Use(Use&& other) noexcept { *this = std::move(other); }
    Use& operator=(Use&& other) noexcept;
    ~Use() { Leave(); }
    void Moved(uint64_t bytes);
    // Ends it; unlike destruction, as a measurement: it was at work all the time.
    void End(absl::Time now);

   private:
    void Leave();

    SharedRate* rate_ = nullptr;
    uint64_t left_ = 0;
    uint64_t moved_ = 0;
    uint64_t moved_before_ = 0;  // by all
    absl::Time start_;
  };

  double bytes_per_s() const ABSL_LOCKS_EXCLUDED(mutex_);
  // That others bring while `bytes` more are brought, if all have an equal part.
  uint64_t Ahead(uint64_t bytes) const;

 private:
  // The first guess weighs as much as this; a measurement counts half after some seven more, or
  // some seventy.
  static constexpr double kFirstBytes = 1 << 20;
  static constexpr double kKeepShort = 0.9;
  static constexpr double kKeepLong = 0.99;
  static constexpr uint64_t kBytesMin = 64 << 10;  // fewer measure latency

  struct Mean {
    double bytes = kFirstBytes;
    double seconds = 0.0;

    void Add(double keep, double more_bytes, double more_seconds) {
      bytes = keep * bytes + more_bytes;
      seconds = keep * seconds + more_seconds;
    }
  };

  // Relaxed: each is read on its own, for an estimate.
  std::atomic<uint64_t> moved_{0};
  std::atomic<uint64_t> left_{0};
  std::atomic<uint64_t> users_{0};
  mutable absl::Mutex mutex_;
  Mean short_ ABSL_GUARDED_BY(mutex_);
  Mean long_ ABSL_GUARDED_BY(mutex_);
};

// Thread-safe.
class FetchMeter {
 public:
  SharedRate& sending() { return sending_; }  // from memory, by gRPC
  SharedRate& loading() { return loading_; }  // from disk into memory

  struct Forecast {
    double ms = 0.0;           // in all
    double loading_ms = 0.0;   // of it, until what is on disk is in memory
    uint64_t bytes_ahead = 0;  // that others fetch meanwhile
  };
  Forecast Expect(uint64_t bytes, uint64_t bytes_on_disk) const;

 private:
  // Until something was measured.
  SharedRate sending_{1e9};
  SharedRate loading_{5e8};
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_RPC_FETCH_METER_H_
