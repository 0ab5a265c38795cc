// Calls that end together: those of a namespace, when it is destroyed; those of one fetch, when it
// is cancelled.
#ifndef OSCARKV_CLIENT_CPP_CALL_GROUP_H_
#define OSCARKV_CLIENT_CPP_CALL_GROUP_H_

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include <grpcpp/client_context.h>

namespace oscarkv::client {

// Thread-safe.
class CallGroup {
 public:
  // Makes a call one of the group for as long as the object lives: cancelled if the group is.
  class Member {
   public:
    // `cancel` is called by Cancel, on any thread and under the group's lock: it must not wait.
    Member(CallGroup& group, absl::AnyInvocable<void()> cancel);
    Member(CallGroup& group, grpc::ClientContext* context);
    Member(const Member&) = delete;
    Member& operator=(const Member&) = delete;
    ~Member();

   private:
    friend class CallGroup;
    CallGroup& group_;
    absl::AnyInvocable<void()> cancel_;
  };

  CallGroup() = default;
  // A group within `parent`, which outlives it, and cancelled with it.
  explicit CallGroup(CallGroup& parent) ABSL_LOCKS_EXCLUDED(mutex_);
  ~CallGroup();
  CallGroup(const CallGroup&) = delete;
  CallGroup& operator=(const CallGroup&) = delete;

  // Cancels the calls under way and every later one.
  void Cancel();
  bool cancelled() const;
  // Waits for `wait`, or until the group is cancelled: whether it is.
  bool WaitCancelled(absl::Duration wait) const;

 private:
  CallGroup* const parent_ = nullptr;  // its lock is taken before this one's
  mutable absl::Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  absl::flat_hash_set<Member*> members_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<CallGroup*> groups_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_CALL_GROUP_H_
