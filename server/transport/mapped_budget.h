// How much of the arena, and of staging memory, clients of the same host may hold.
#ifndef OSCARKV_SERVER_TRANSPORT_MAPPED_BUDGET_H_
#define OSCARKV_SERVER_TRANSPORT_MAPPED_BUDGET_H_

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"

#include "server/core/page_handles.h"

namespace oscarkv {

// Bytes, shared out so that nobody can take them all: a session may hold as much as is still free
// after it (so one alone gets half, two a third each, and a newcomer always finds some).
// Thread-safe.
class MappedBudget {
 public:
  explicit MappedBudget(uint64_t bytes_max) : bytes_max_(bytes_max) {}

  // Whether the session may hold `bytes` more; then it does. While nobody holds anything, one may
  // take any amount, or a page larger than the budget could never be read.
  bool Take(SessionId session, uint64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  void Give(SessionId session, uint64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  uint64_t taken() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  const uint64_t bytes_max_;
  mutable absl::Mutex mutex_;
  uint64_t taken_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::flat_hash_map<SessionId, uint64_t> by_session_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_TRANSPORT_MAPPED_BUDGET_H_
