// Stops asking a store that does not answer, so that a dead store costs an engine nothing but
// misses.
#ifndef OSCARKV_CLIENT_CPP_CIRCUIT_BREAKER_H_
#define OSCARKV_CLIENT_CPP_CIRCUIT_BREAKER_H_

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

#include "client/cpp/options.h"

namespace oscarkv::client {

// Closed: calls go. After `failures` in a row it opens: calls do not go for a pause. Then one call
// goes as a probe: its success closes the breaker, its failure doubles the pause. Thread-safe; the
// caller brings the time.
class CircuitBreaker {
 public:
  explicit CircuitBreaker(const BreakerOptions& options) : options_(options) {}

  // Whether a call may go now. A call that was let go must be answered by one of the On... below.
  bool Allow(absl::Time now);
  // Whether Allow would say no; counts for nothing, so that work for a call can be left undone.
  bool Refuses(absl::Time now) const;
  void OnSuccess();
  void OnFailure(absl::Time now);
  void OnAbandoned();  // the caller gave up: nothing is known of the store; another may probe
  bool open() const;

 private:
  bool RefusesLocked(absl::Time now) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return open_ && (probing_ || now < open_until_);
  }

  const BreakerOptions options_;
  mutable absl::Mutex mutex_;
  int failures_ ABSL_GUARDED_BY(mutex_) = 0;
  bool open_ ABSL_GUARDED_BY(mutex_) = false;
  bool probing_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Duration pause_ ABSL_GUARDED_BY(mutex_);
  absl::Time open_until_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_CIRCUIT_BREAKER_H_
