#include "client/cpp/held_call.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"

namespace oscarkv::client {
namespace {

// A cancelled step ends at once, unless the transport is stuck.
constexpr absl::Duration kCancelledStep = absl::Milliseconds(20);
// How often a step that has not ended looks whether it should have.
constexpr absl::Duration kLook = absl::Milliseconds(50);

}  // namespace

void HeldCall::State::Drain() {
  queue.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (queue.Next(&tag, &ok)) {
  }
}

bool HeldCall::State::Ended(absl::Time deadline, bool* ok) {
  void* tag = nullptr;
  return queue.AsyncNext(&tag, ok, absl::ToChronoTime(deadline)) ==
         grpc::CompletionQueue::GOT_EVENT;
}

// Calls whose transport was stuck when they were given up. They end when keepalive has found that
// out, and go when a later call looks. Thread-safe.
class HeldCall::Abandoned {
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
    states_.erase(std::remove_if(states_.begin(), states_.end(),
                                 [](const std::unique_ptr<State>& state) {
                                   bool ok = false;
                                   return state->Ended(absl::UnixEpoch(), &ok);
                                 }),
                  states_.end());
  }

 private:
  absl::Mutex mutex_;
  std::vector<std::unique_ptr<State>> states_ ABSL_GUARDED_BY(mutex_);
};

HeldCall::HeldCall(std::unique_ptr<State> state, CallGroup& group, absl::Time deadline)
    : state_(std::move(state)), group_(group), deadline_(deadline) {
  Abandoned::All().LetGoOfEnded();
  member_.emplace(group, &state_->context);
  state_->context.set_deadline(absl::ToChronoTime(deadline));
}

HeldCall::~HeldCall() {
  member_.reset();
  if (pending_) Abandoned::All().Add(std::move(state_));
}

bool HeldCall::Wait() {
  bool ok = false;
  pending_ = true;
  while (pending_ && !given_up_) {
    const absl::Time now = absl::Now();
    given_up_ = now >= deadline_ || group_.cancelled();
    if (!given_up_) pending_ = !state_->Ended(std::min(deadline_, now + kLook), &ok);
  }
  if (!pending_) return ok;
  state_->context.TryCancel();
  pending_ = !state_->Ended(absl::Now() + kCancelledStep, &ok);
  return !pending_ && ok;
}

grpc::Status HeldCall::GivenUp() const {
  if (group_.cancelled()) return {grpc::StatusCode::CANCELLED, "the call was cancelled"};
  return {grpc::StatusCode::DEADLINE_EXCEEDED, "the server did not go on in time"};
}

}  // namespace oscarkv::client
