#include "client/cpp/bulk_call.h"

namespace oscarkv::client {

struct BulkCall::Stream final : HeldCall::State {
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> steps;
  grpc::ByteBuffer message;
  grpc::Status status;
  bool finished = false;

  ~Stream() override { Drain(); }
};

BulkCall::BulkCall(const std::shared_ptr<grpc::Channel>& channel, const char* method,
                   CallGroup& group, absl::Time deadline)
    : HeldCall(std::make_unique<Stream>(), group, deadline),
      stream_(static_cast<Stream*>(state())) {
  stream_->context.set_initial_metadata_corked(true);  // goes with the first message
  stream_->steps =
      grpc::GenericStub(channel).PrepareCall(&stream_->context, method, &stream_->queue);
  stream_->steps->StartCall(nullptr);
}

BulkCall::~BulkCall() {
  if (!stream_->finished) stream_->context.TryCancel();
}

bool BulkCall::Write(const grpc::ByteBuffer& message, bool more) {
  if (pending()) return false;
  grpc::WriteOptions options;
  if (more) options.set_buffer_hint();
  stream_->steps->Write(message, options, nullptr);
  return Wait();
}

bool BulkCall::WriteLast(const grpc::ByteBuffer& message) {
  if (pending()) return false;
  stream_->steps->WriteLast(message, grpc::WriteOptions(), nullptr);
  return Wait();
}

bool BulkCall::Read(grpc::ByteBuffer* message) {
  if (pending()) return false;
  stream_->steps->Read(&stream_->message, nullptr);
  if (!Wait()) return false;
  message->Swap(&stream_->message);
  return true;
}

void BulkCall::Cancel() { stream_->context.TryCancel(); }

grpc::Status BulkCall::Finish() {
  if (!pending()) {
    stream_->steps->Finish(&stream_->status, nullptr);
    Wait();
    stream_->finished = !pending();
  }
  return stream_->finished && !given_up() ? stream_->status : GivenUp();
}

}  // namespace oscarkv::client
