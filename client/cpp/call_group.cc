#include "client/cpp/call_group.h"

#include <utility>

namespace oscarkv::client {

CallGroup::Member::Member(CallGroup& group, absl::AnyInvocable<void()> cancel)
    : group_(group), cancel_(std::move(cancel)) {
  const absl::MutexLock lock(&group_.mutex_);
  group_.members_.insert(this);
  if (group_.cancelled_) cancel_();
}

CallGroup::Member::Member(CallGroup& group, grpc::ClientContext* context)
    : Member(group, [context] { context->TryCancel(); }) {}

CallGroup::Member::~Member() {
  const absl::MutexLock lock(&group_.mutex_);
  group_.members_.erase(this);
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
  for (Member* member : members_) member->cancel_();
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
