// Pages that clients push from their GPUs, from BeginPush to the answer of EndPush. Their bytes
// come into the staging area, by CUDA IPC or NCCL; from there they are copied into host memory that
// nobody else reaches, verified there by several threads, and stored, a page after the other.
#ifndef OSCARKV_SERVER_RPC_DEVICE_PUSHES_H_
#define OSCARKV_SERVER_RPC_DEVICE_PUSHES_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/any_invocable.h"
#include "absl/random/random.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

#include "kernels/base/task_queue.h"
#include "server/peer/staging_area.h"
#include "server/rpc/rpc_context.h"

#include "oscarkv/v1/peer.pb.h"

namespace oscarkv {

struct DevicePushesOptions {
  uint32_t pushes_max = 4096;                   // under way
  absl::Duration push_max = absl::Seconds(10);  // of one, whatever its client asks for
};

// Thread-safe.
class DevicePushes {
 public:
  // Both are borrowed.
  DevicePushes(const DevicePushesOptions& options, RpcContext& context, StagingArea& staging);

  void BeginSession(SessionId session) ABSL_LOCKS_EXCLUDED(mutex_);
  void EndSession(SessionId session) ABSL_LOCKS_EXCLUDED(mutex_);

  // kUnimplemented: the path is forbidden, or a page never fits; kUnavailable: no such session;
  // kResourceExhausted: too many pushes; and the errors of CheckPut and PeerHub::Move.
  absl::Status Begin(const v1::BeginPushRequest& request, v1::BeginPushReply* reply)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Calls `done` once, now or on a thread of the context's; `reply` stays until then. kNotFound:
  // there is no such push (any more), or its pages did not come, and why.
  void End(uint64_t push, v1::EndPushReply* reply,
           absl::AnyInvocable<void(const absl::Status&) &&> done) ABSL_LOCKS_EXCLUDED(mutex_);
  // Ends those whose deadline has come.
  void Expire() ABSL_LOCKS_EXCLUDED(mutex_);

  uint64_t pushes() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Push;
  absl::Status Place(Push& push, uint64_t bytes_max, v1::BeginPushReply* reply);
  absl::Status Receive(const std::shared_ptr<Push>& push, const v1::BeginPushRequest& request,
                       v1::BeginPushReply* reply);
  void OnMoved(Push& push, const absl::Status& moved) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Store(Push& push, v1::EndPushReply* reply);
  std::vector<ItemResult> StorePages(Push& push);
  template <typename Ends>
  void EndWhere(const Ends& ends) ABSL_LOCKS_EXCLUDED(mutex_);

  const DevicePushesOptions options_;
  RpcContext& context_;
  StagingArea& staging_;
  mutable absl::Mutex mutex_;
  absl::BitGen random_ ABSL_GUARDED_BY(mutex_);  // ids that nobody guesses
  absl::flat_hash_set<SessionId> sessions_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<uint64_t, std::shared_ptr<Push>> pushes_ ABSL_GUARDED_BY(mutex_);
  TaskQueue arrivals_;  // last: its tasks use what is above
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_RPC_DEVICE_PUSHES_H_
