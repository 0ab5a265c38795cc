#include "client/cpp/call_group.h"

namespace oscarkv::client {

CallGroup::Member::Member(CallGroup& group, grpc::ClientContext* context)
    : group_(group), context_(context) {
  const absl::MutexLock lock(&group_.mutex_);
  group_.contexts_.insert(context_);
  if (group_.cancelled_) context_->TryCancel();
}

CallGroup::Member::~Member() {
  const absl::MutexLock lock(&group_.mutex_);
  group_.contexts_.erase(context_);
}

void CallGroup::Cancel() {
  const absl::MutexLock lock(&mutex_);
  cancelled_ = true;
  for (grpc::ClientContext* context : contexts_) context->TryCancel();
}

bool CallGroup::cancelled() const {
  const absl::MutexLock lock(&mutex_);
  return cancelled_;
}

bool CallGroup::WaitCancelled(absl::Duration wait) const {
  const absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&cancelled_), wait);
}

}  // namespace oscarkv::client
