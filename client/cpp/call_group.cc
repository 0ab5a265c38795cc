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

CallGroup::CallGroup(CallGroup& parent) : parent_(&parent) {
  const absl::MutexLock lock(&parent.mutex_);
  parent.groups_.insert(this);
  cancelled_ = parent.cancelled_;
}

CallGroup::~CallGroup() {
  if (parent_ == nullptr) return;
  const absl::MutexLock lock(&parent_->mutex_);
  parent_->groups_.erase(this);
}

void CallGroup::Cancel() {
  const absl::MutexLock lock(&mutex_);
  cancelled_ = true;
  for (CallGroup* group : groups_) group->Cancel();
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
