// A streaming call of raw messages, driven by the thread that makes it. Included by the client's
// own sources only.
#ifndef OSCARKV_CLIENT_CPP_BULK_CALL_H_
#define OSCARKV_CLIENT_CPP_BULK_CALL_H_

#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include "client/cpp/call_group.h"

namespace oscarkv::client {

// No step outlasts the deadline, whatever the server does. gRPC itself ends a write only when its
// transport has taken the bytes: a server that has stopped, and a socket that is full, would hold
// the caller for as long as the connection lives. So the caller goes at the deadline, and what gRPC
// still holds is kept until it lets go.
class BulkCall {
 public:
  enum class Method { kGet, kPut, kPutTransformSet };

  // `group` and `channel` outlive the call; cancelling the group ends it.
  BulkCall(const std::shared_ptr<grpc::Channel>& channel, Method method, CallGroup& group,
           absl::Time deadline);
  // Cancels a call that was not finished.
  ~BulkCall();
  BulkCall(const BulkCall&) = delete;
  BulkCall& operator=(const BulkCall&) = delete;

  // False: the call has ended, or the deadline has come; Finish says which. What the message's
  // slices hold may be held on until gRPC lets go of it.
  bool Write(const grpc::ByteBuffer& message);
  bool WriteLast(const grpc::ByteBuffer& message);
  // False: there is no further message.
  bool Read(grpc::ByteBuffer* message);
  void Cancel();
  // How the call ended. Nothing may follow but the destructor.
  grpc::Status Finish();

 private:
  struct State;
  class Abandoned;
  // Waits for the step that was started.
  bool Wait();

  std::unique_ptr<State> state_;
  std::optional<CallGroup::Member> member_;
  const absl::Time deadline_;
  bool late_ = false;  // given up at the deadline
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_BULK_CALL_H_
