// A call of one message each way. Included by the client's own sources only.
#ifndef OSCARKV_CLIENT_CPP_UNARY_CALL_H_
#define OSCARKV_CLIENT_CPP_UNARY_CALL_H_

#include <memory>

#include <google/protobuf/message_lite.h>
#include <grpcpp/generic/generic_stub.h>

#include "client/cpp/held_call.h"

namespace oscarkv::client {

class UnaryCall final : public HeldCall {
 public:
  // `group` outlives the call; cancelling it ends the call.
  UnaryCall(std::shared_ptr<grpc::Channel> channel, CallGroup& group, absl::Time deadline);
  ~UnaryCall() = default;

  // Makes the call, once. `method`: one of wire.h. The reply is filled in if the status is OK.
  grpc::Status Run(const char* method, const grpc::ByteBuffer& request, grpc::ByteBuffer* reply);
  grpc::Status Run(const char* method, const google::protobuf::MessageLite& request,
                   google::protobuf::MessageLite* reply);

  static grpc::Status NotAnAnswer();

 private:
  struct Exchange;
  const std::shared_ptr<grpc::Channel> channel_;
  Exchange* const exchange_;  // HeldCall's
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_UNARY_CALL_H_
