// Copies of pages in a device's memory that clients of the same host read where they lie. A hold
// keeps them in place from the call that names them until the client says that it has read them,
// its session ends, or the ceiling has come. A client that reads on after that may find anything:
// it learns so when it ends the hold, and trusts nothing that it has read.
#ifndef OSCARKV_SERVER_PEER_DEVICE_HOLDS_H_
#define OSCARKV_SERVER_PEER_DEVICE_HOLDS_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

#include "server/core/clock.h"
#include "server/core/page_copies.h"
#include "server/core/page_handles.h"

namespace oscarkv {

using HoldId = uint64_t;  // 0 is none

struct DeviceHoldsOptions {
  uint64_t bytes_max = 0;  // of all copies that are held
  absl::Duration hold_max = absl::Minutes(10);
};

struct DeviceHoldsStats {
  uint64_t holds = 0;
  uint64_t bytes = 0;
  uint64_t expired = 0;  // since the start: at the ceiling, or with their session
};

// Thread-safe.
class DeviceHolds {
 public:
  DeviceHolds(const DeviceHoldsOptions& options, const Clock& clock)
      : options_(options), clock_(clock) {}

  void BeginSession(SessionId session);
  // Ends its holds, too.
  void EndSession(SessionId session);

  // `bytes` of the copies are read. kUnavailable: there is no such session (any more);
  // kResourceExhausted: too much is held.
  absl::StatusOr<HoldId> Add(SessionId session, std::vector<PinnedCopy> copies, uint64_t bytes);
  struct Ended {
    uint64_t bytes = 0;
    absl::Duration age;
  };
  // Empty: it was not there any more, and what was read under it may be anything.
  std::optional<Ended> End(HoldId hold);
  // Ends those that have reached the ceiling.
  void Expire();

  DeviceHoldsStats Stats() const;

 private:
  struct Hold {
    SessionId session = 0;
    absl::Duration since;
    uint64_t bytes = 0;  // that are read
    std::vector<PinnedCopy> copies;
  };
  using Holds = absl::flat_hash_map<HoldId, Hold>;
  void Count(const Hold& hold) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Discount(const Hold& hold) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Takes out those that `ends` says; their copies are let go outside of the lock.
  template <typename Ends>
  void EndWhere(const Ends& ends) ABSL_LOCKS_EXCLUDED(mutex_);

  const DeviceHoldsOptions options_;
  const Clock& clock_;
  mutable absl::Mutex mutex_;
  absl::flat_hash_set<SessionId> sessions_ ABSL_GUARDED_BY(mutex_);
  Holds holds_ ABSL_GUARDED_BY(mutex_);
  HoldId last_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::flat_hash_map<uint64_t, uint32_t> holders_ ABSL_GUARDED_BY(mutex_);  // by a slot's offset
  uint64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;                               // of those slots
  uint64_t expired_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_PEER_DEVICE_HOLDS_H_
