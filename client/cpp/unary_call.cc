#include "client/cpp/unary_call.h"

#include <utility>

#include "proto/convert/data_frames.h"

namespace oscarkv::client {

struct UnaryCall::Exchange final : HeldCall::State {
  std::unique_ptr<grpc::ClientAsyncResponseReader<grpc::ByteBuffer>> steps;
  grpc::ByteBuffer reply;
  grpc::Status status;

  ~Exchange() override { Drain(); }
};

UnaryCall::UnaryCall(std::shared_ptr<grpc::Channel> channel, CallGroup& group, absl::Time deadline)
    : HeldCall(std::make_unique<Exchange>(), group, deadline),
      channel_(std::move(channel)),
      exchange_(static_cast<Exchange*>(state())) {}

grpc::Status UnaryCall::Run(const char* method, const grpc::ByteBuffer& request,
                            grpc::ByteBuffer* reply) {
  exchange_->steps = grpc::GenericStub(channel_).PrepareUnaryCall(&exchange_->context, method,
                                                                  request, &exchange_->queue);
  exchange_->steps->StartCall();
  exchange_->steps->Finish(&exchange_->reply, &exchange_->status, nullptr);
  Wait();
  if (pending()) return GivenUp();
  if (!exchange_->status.ok()) return given_up() ? GivenUp() : exchange_->status;
  reply->Swap(&exchange_->reply);
  return grpc::Status::OK;
}

grpc::Status UnaryCall::Run(const char* method, const google::protobuf::MessageLite& request,
                            google::protobuf::MessageLite* reply) {
  grpc::ByteBuffer answer;
  const grpc::Status status = Run(method, FrameMessage(request), &answer);
  return status.ok() && !ParseMessage(answer, reply) ? NotAnAnswer() : status;
}

grpc::Status UnaryCall::NotAnAnswer() {
  return {grpc::StatusCode::DATA_LOSS, "the server's answer is another message than asked for"};
}

}  // namespace oscarkv::client
