// A call to the server, driven by the thread that makes it, step by step. Included by the client's
// own sources only.
#ifndef OSCARKV_CLIENT_CPP_HELD_CALL_H_
#define OSCARKV_CLIENT_CPP_HELD_CALL_H_

#include <memory>
#include <optional>

#include "absl/time/time.h"
#include <grpcpp/grpcpp.h>

#include "client/cpp/call_group.h"

namespace oscarkv::client {

// No step outlasts the deadline, or the group's cancellation, whatever the server does. gRPC itself
// ends what it sends only when its transport has taken the bytes: a server that has stopped, and a
// socket that is full, would hold the caller for as long as the connection lives. So the caller
// goes, and what gRPC still holds is kept until it lets go.
class HeldCall {
 public:
  HeldCall(const HeldCall&) = delete;
  HeldCall& operator=(const HeldCall&) = delete;

 protected:
  // All that gRPC may hold on to.
  struct State {
    grpc::ClientContext context;
    grpc::CompletionQueue queue;

    virtual ~State() = default;
    // Before anything of it is destroyed. No step is under way.
    void Drain();
    // Whether the step that is under way has ended, waiting for it until the deadline.
    bool Ended(absl::Time deadline, bool* ok);
  };

  // `group` outlives the call.
  HeldCall(std::unique_ptr<State> state, CallGroup& group, absl::Time deadline);
  ~HeldCall();

  State* state() { return state_.get(); }
  // Waits for the step that was started: whether it went well.
  bool Wait();
  // Whether a step has started and not ended: no other may follow.
  bool pending() const { return pending_; }
  // The call was given up: at its deadline, or soon after its group was cancelled.
  bool given_up() const { return given_up_; }
  // What is said of a call that was given up.
  grpc::Status GivenUp() const;

 private:
  class Abandoned;

  std::unique_ptr<State> state_;
  const CallGroup& group_;
  std::optional<CallGroup::Member> member_;
  const absl::Time deadline_;
  bool pending_ = false;
  bool given_up_ = false;
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_HELD_CALL_H_
