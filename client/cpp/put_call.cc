#include "client/cpp/put_call.h"

#include <utility>

namespace oscarkv::client {

std::shared_ptr<PutCall> PutCall::Start(const WireStubs& stubs, absl::Time deadline) {
  std::shared_ptr<PutCall> call(new PutCall(deadline));
  call->self_ = call;
  call->context_.set_deadline(absl::ToChronoTime(deadline));
  stubs.cache->async()->Put(&call->context_, &call->reply_, call.get());
  call->AddHold();  // writes come from the caller's thread: the call is not done before Finish
  call->StartCall();
  return call;
}

bool PutCall::Write(v1::PutRequest* message) {
  {
    const absl::MutexLock lock(&mutex_);
    writing_ = true;
  }
  message_.Swap(message);
  StartWrite(&message_);
  const absl::MutexLock lock(&mutex_);
  if (!mutex_.AwaitWithDeadline(absl::Condition(this, &PutCall::Written), deadline_))
    writable_ = false;
  return writable_;
}

grpc::Status PutCall::Finish(v1::PutReply* reply) {
  bool writable = false;
  {
    const absl::MutexLock lock(&mutex_);
    writable = writable_;
  }
  if (writable) StartWritesDone();
  RemoveHold();
  const absl::MutexLock lock(&mutex_);
  if (!mutex_.AwaitWithDeadline(absl::Condition(&done_), deadline_)) {
    context_.TryCancel();
    return {grpc::StatusCode::DEADLINE_EXCEEDED, "the server did not take the pages in time"};
  }
  *reply = std::move(reply_);
  return status_;
}

void PutCall::OnWriteDone(bool ok) {
  const absl::MutexLock lock(&mutex_);
  writing_ = false;
  if (!ok) writable_ = false;
}

void PutCall::OnDone(const grpc::Status& status) {
  const std::shared_ptr<PutCall> last = std::move(self_);
  const absl::MutexLock lock(&mutex_);
  status_ = status;
  done_ = true;
}

}  // namespace oscarkv::client
