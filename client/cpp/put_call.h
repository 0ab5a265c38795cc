// A Put that ends by its deadline, whatever the server does. Included by the client's own sources
// only.
#ifndef OSCARKV_CLIENT_CPP_PUT_CALL_H_
#define OSCARKV_CLIENT_CPP_PUT_CALL_H_

#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include <grpcpp/grpcpp.h>

#include "client/cpp/wire.h"

#include "oscarkv/v1/kv_cache.grpc.pb.h"

namespace oscarkv::client {

// gRPC ends a write only when its transport has taken the bytes: a server that has stopped, and a
// socket that is full, would hold the caller for as long as the connection lives. So the caller
// gives up at the deadline, and the call lives on by itself until gRPC lets go of it. Write and
// Finish are called by one thread.
class PutCall final : private grpc::ClientWriteReactor<v1::PutRequest> {
 public:
  static std::shared_ptr<PutCall> Start(const WireStubs& stubs, absl::Time deadline);

  grpc::ClientContext* context() { return &context_; }
  // Waits until the message is on its way; false when the call has ended, or the deadline has come.
  // Takes what the message holds, and leaves the one before in it.
  bool Write(v1::PutRequest* message) ABSL_LOCKS_EXCLUDED(mutex_);
  // Ends the call, and waits for its answer until the deadline.
  grpc::Status Finish(v1::PutReply* reply) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  explicit PutCall(absl::Time deadline) : deadline_(deadline) {}
  void OnWriteDone(bool ok) override ABSL_LOCKS_EXCLUDED(mutex_);
  void OnDone(const grpc::Status& status) override ABSL_LOCKS_EXCLUDED(mutex_);
  bool Written() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !writing_; }

  const absl::Time deadline_;
  grpc::ClientContext context_;
  v1::PutRequest message_;         // gRPC's while it is written
  v1::PutReply reply_;             // gRPC's until the end
  std::shared_ptr<PutCall> self_;  // until the end
  absl::Mutex mutex_;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool writable_ ABSL_GUARDED_BY(mutex_) = true;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::Status status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_PUT_CALL_H_
