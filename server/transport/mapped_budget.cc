#include "server/transport/mapped_budget.h"

namespace oscarkv {

bool MappedBudget::Take(SessionId session, uint64_t bytes) {
  const absl::MutexLock lock(&mutex_);
  if (taken_ != 0) {
    const auto found = by_session_.find(session);
    const uint64_t held = found == by_session_.end() ? 0 : found->second;
    const uint64_t free = bytes_max_ > taken_ ? bytes_max_ - taken_ : 0;
    if (bytes > free || held + bytes > free - bytes) return false;
  }
  taken_ += bytes;
  by_session_[session] += bytes;
  return true;
}

void MappedBudget::Give(SessionId session, uint64_t bytes) {
  if (bytes == 0) return;
  const absl::MutexLock lock(&mutex_);
  taken_ -= bytes;
  const auto found = by_session_.find(session);
  found->second -= bytes;
  if (found->second == 0) by_session_.erase(found);
}

uint64_t MappedBudget::taken() const {
  const absl::MutexLock lock(&mutex_);
  return taken_;
}

}  // namespace oscarkv
