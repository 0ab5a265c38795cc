// A streaming call of raw messages. Included by the client's own sources only.
#ifndef OSCARKV_CLIENT_CPP_BULK_CALL_H_
#define OSCARKV_CLIENT_CPP_BULK_CALL_H_

#include <cstdint>
#include <memory>

#include <grpcpp/generic/generic_stub.h>

#include "client/cpp/held_call.h"

namespace oscarkv::client {

// A page goes in pieces of these bytes, if it has more: one is verified while the next is on its
// way.
inline constexpr uint32_t kPieceBytes = 512 << 10;

class BulkCall final : public HeldCall {
 public:
  // `method`: one of wire.h. `group` and `channel` outlive the call; cancelling the group ends it.
  BulkCall(const std::shared_ptr<grpc::Channel>& channel, const char* method, CallGroup& group,
           absl::Time deadline);
  // Cancels a call that was not finished.
  ~BulkCall();

  // False: the call has ended, or the deadline has come; Finish says which. What the message's
  // slices hold may be held on until gRPC lets go of it.
  // `more`: another message follows at once, and this one may wait for it.
  bool Write(const grpc::ByteBuffer& message, bool more = false);
  bool WriteLast(const grpc::ByteBuffer& message);
  // False: there is no further message.
  bool Read(grpc::ByteBuffer* message);
  void Cancel();
  // How the call ended. Nothing may follow but the destructor.
  grpc::Status Finish();

 private:
  struct Stream;
  Stream* const stream_;  // HeldCall's
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_BULK_CALL_H_
