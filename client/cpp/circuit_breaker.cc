#include "client/cpp/circuit_breaker.h"

#include <algorithm>

namespace oscarkv::client {

bool CircuitBreaker::Allow(absl::Time now) {
  const absl::MutexLock lock(&mutex_);
  if (RefusesLocked(now)) return false;
  probing_ = open_;
  return true;
}

bool CircuitBreaker::Refuses(absl::Time now) const {
  const absl::MutexLock lock(&mutex_);
  return RefusesLocked(now);
}

void CircuitBreaker::OnSuccess() {
  const absl::MutexLock lock(&mutex_);
  failures_ = 0;
  open_ = probing_ = false;
}

void CircuitBreaker::OnFailure(absl::Time now) {
  const absl::MutexLock lock(&mutex_);
  ++failures_;
  if (!open_ && failures_ < options_.failures) return;
  // A call that began before the breaker opened says nothing new.
  if (open_ && !probing_) return;
  pause_ = open_ ? std::min(2 * pause_, options_.pause_max) : options_.pause;
  open_ = true;
  probing_ = false;
  open_until_ = now + pause_;
}

void CircuitBreaker::OnAbandoned() {
  const absl::MutexLock lock(&mutex_);
  probing_ = false;
}

bool CircuitBreaker::open() const {
  const absl::MutexLock lock(&mutex_);
  return open_;
}

}  // namespace oscarkv::client
