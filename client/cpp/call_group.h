// Calls that end together: those of a namespace, when it is destroyed.
#ifndef OSCARKV_CLIENT_CPP_CALL_GROUP_H_
#define OSCARKV_CLIENT_CPP_CALL_GROUP_H_

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include <grpcpp/client_context.h>

namespace oscarkv::client {

// Thread-safe.
class CallGroup {
 public:
  // Makes `context` one of the group for as long as the object lives, cancelled if the group is.
  class Member {
   public:
    Member(CallGroup& group, grpc::ClientContext* context);
    Member(const Member&) = delete;
    Member& operator=(const Member&) = delete;
    ~Member();

   private:
    CallGroup& group_;
    grpc::ClientContext* context_;
  };

  // Cancels the calls under way and every later one.
  void Cancel();
  bool cancelled() const;
  // Waits for `wait`, or until the group is cancelled: whether it is.
  bool WaitCancelled(absl::Duration wait) const;

 private:
  mutable absl::Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  absl::flat_hash_set<grpc::ClientContext*> contexts_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_CALL_GROUP_H_
