#include "client/cpp/bulk_call.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace oscarkv::client {
namespace {

// A cancelled step ends at once, unless the transport is stuck.
constexpr absl::Duration kCancelledStep = absl::Milliseconds(20);

const char* NameOf(BulkCall::Method method) {
  switch (method) {
    case BulkCall::Method::kGet:
      return "/oscarkv.v1.KvCache/Get";
    case BulkCall::Method::kPut:
      return "/oscarkv.v1.KvCache/Put";
    case BulkCall::Method::kPutTransformSet:
      return "/oscarkv.v1.KvCache/PutTransformSet";
  }
  return "";
}

}  // namespace

// All that gRPC may hold on to.
struct BulkCall::State {
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream;
  grpc::ByteBuffer message;
  grpc::Status status;
  bool pending = false;  // a step has started and not ended
  bool finished = false;

  ~State() {
    queue.Shutdown();
    void* tag = nullptr;
    bool ok = false;
    while (queue.Next(&tag, &ok)) {
    }
  }

  // Whether the pending step has ended by now.
  bool Ended() {
    void* tag = nullptr;
    bool ok = false;
    return queue.AsyncNext(&tag, &ok, gpr_time_0(GPR_CLOCK_REALTIME)) ==
           grpc::CompletionQueue::GOT_EVENT;
  }
};

// Calls whose transport was stuck when they were given up. They end when keepalive has found that
// out, and go when a later call looks. Thread-safe.
class BulkCall::Abandoned {
 public:
  // Of the process, never destroyed: gRPC may hold on to them to its very end.
  static Abandoned& All() {
    static auto& all = *new Abandoned;
    return all;
  }

  void Add(std::unique_ptr<State> state) {
    const absl::MutexLock lock(&mutex_);
    states_.push_back(std::move(state));
  }

  void LetGoOfEnded() {
    const absl::MutexLock lock(&mutex_);
    states_.erase(
        std::remove_if(states_.begin(), states_.end(),
                       [](const std::unique_ptr<State>& state) { return state->Ended(); }),
        states_.end());
  }

 private:
  absl::Mutex mutex_;
  std::vector<std::unique_ptr<State>> states_ ABSL_GUARDED_BY(mutex_);
};

BulkCall::BulkCall(const std::shared_ptr<grpc::Channel>& channel, Method method, CallGroup& group,
                   absl::Time deadline)
    : state_(std::make_unique<State>()), deadline_(deadline) {
  Abandoned::All().LetGoOfEnded();
  member_.emplace(group, &state_->context);
  state_->context.set_deadline(absl::ToChronoTime(deadline));
  state_->context.set_initial_metadata_corked(true);  // goes with the first message
  state_->stream =
      grpc::GenericStub(channel).PrepareCall(&state_->context, NameOf(method), &state_->queue);
  state_->stream->StartCall(nullptr);
}

BulkCall::~BulkCall() {
  member_.reset();
  if (!state_->finished) state_->context.TryCancel();
  if (state_->pending) Abandoned::All().Add(std::move(state_));
}

bool BulkCall::Wait() {
  state_->pending = true;
  void* tag = nullptr;
  bool ok = false;
  auto next = state_->queue.AsyncNext(&tag, &ok, absl::ToChronoTime(deadline_));
  if (next == grpc::CompletionQueue::TIMEOUT) {
    late_ = true;
    state_->context.TryCancel();
    next = state_->queue.AsyncNext(&tag, &ok, absl::ToChronoTime(deadline_ + kCancelledStep));
  }
  state_->pending = next != grpc::CompletionQueue::GOT_EVENT;
  return !state_->pending && ok;
}

bool BulkCall::Write(const grpc::ByteBuffer& message) {
  if (state_->pending) return false;
  state_->stream->Write(message, nullptr);
  return Wait();
}

bool BulkCall::WriteLast(const grpc::ByteBuffer& message) {
  if (state_->pending) return false;
  state_->stream->WriteLast(message, grpc::WriteOptions(), nullptr);
  return Wait();
}

bool BulkCall::Read(grpc::ByteBuffer* message) {
  if (state_->pending) return false;
  state_->stream->Read(&state_->message, nullptr);
  if (!Wait()) return false;
  message->Swap(&state_->message);
  return true;
}

void BulkCall::Cancel() { state_->context.TryCancel(); }

grpc::Status BulkCall::Finish() {
  if (!state_->pending) {
    state_->stream->Finish(&state_->status, nullptr);
    Wait();
    state_->finished = !state_->pending;
  }
  if (state_->finished && !late_) return state_->status;
  return {grpc::StatusCode::DEADLINE_EXCEEDED, "the server did not go on in time"};
}

}  // namespace oscarkv::client
