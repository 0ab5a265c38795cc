// The frame of every call: it is counted and timed, refused while the server drains, and logged
// when it fails.
#ifndef OSCARKV_SERVER_RPC_CALL_SCOPE_H_
#define OSCARKV_SERVER_RPC_CALL_SCOPE_H_

#include <memory>
#include <string>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include <grpcpp/grpcpp.h>

#include "proto/convert/convert.h"
#include "server/rpc/rpc_context.h"

namespace oscarkv {

// One call from its start to its end. Used by one reactor, from any thread, one at a time.
class CallScope {
 public:
  CallScope(RpcContext& context, grpc::ServerContextBase* call, Method method)
      : context_(context), call_(call), method_(method), start_(absl::Now()) {}
  ~CallScope() {
    if (admitted_) context_.CallEnds();
  }
  CallScope(const CallScope&) = delete;
  CallScope& operator=(const CallScope&) = delete;

  // kUnavailable while the server drains.
  absl::Status Admit() {
    if (context_.draining())
      return absl::UnavailableError("the server is draining: it takes no new calls");
    context_.CallBegins();
    admitted_ = true;
    return absl::OkStatus();
  }

  // Counts the outcome; what is to be handed to Finish.
  grpc::Status End(const absl::Status& status) {
    context_.calls().Record(method_, static_cast<int>(status.code()), elapsed());
    const bool our_fault = absl::IsInternal(status) || absl::IsDataLoss(status);
    const LogLevel level = our_fault ? LogLevel::kError : LogLevel::kDebug;
    if (!status.ok() && context_.logger().enabled(level)) {
      context_.logger().Log(level, "call failed",
                            {{"method", std::string(MethodName(method_))},
                             {"status", absl::StatusCodeToString(status.code())},
                             {"error", std::string(status.message())},
                             {"peer", call_->peer()},
                             {"trace", TraceParent()}});
    }
    return ToGrpcStatus(status);
  }

  absl::Duration elapsed() const { return absl::Now() - start_; }

 private:
  // The caller's trace, W3C "traceparent".
  std::string TraceParent() const {
    const auto found = call_->client_metadata().find("traceparent");
    return found == call_->client_metadata().end()
               ? ""
               : std::string(found->second.data(), found->second.size());
  }

  RpcContext& context_;
  grpc::ServerContextBase* call_;
  const Method method_;
  const absl::Time start_;
  bool admitted_ = false;
};

// A call that a thread of its own handles: runs `work` unless the server drains.
inline grpc::Status RunCall(RpcContext& context, grpc::ServerContextBase* call, Method method,
                            absl::FunctionRef<absl::Status()> work) {
  CallScope scope(context, call, method);
  absl::Status status = scope.Admit();
  if (status.ok()) status = work();
  return scope.End(status);
}

// A unary call: runs `work` unless the server drains, and finishes with its status.
inline grpc::ServerUnaryReactor* RunUnary(RpcContext& context, grpc::CallbackServerContext* call,
                                          Method method, absl::FunctionRef<absl::Status()> work) {
  const grpc::Status status = RunCall(context, call, method, work);
  grpc::ServerUnaryReactor* reactor = call->DefaultReactor();
  reactor->Finish(status);
  return reactor;
}

// The same for work that waits, or takes long: it runs on a worker.
inline grpc::ServerUnaryReactor* RunUnaryAsync(RpcContext& context,
                                               grpc::CallbackServerContext* call, Method method,
                                               absl::AnyInvocable<absl::Status()> work) {
  auto scope = std::make_unique<CallScope>(context, call, method);
  grpc::ServerUnaryReactor* reactor = call->DefaultReactor();
  if (const absl::Status status = scope->Admit(); !status.ok()) {
    reactor->Finish(scope->End(status));
    return reactor;
  }
  context.RunAsync([reactor, scope = std::move(scope), work = std::move(work)]() mutable {
    const grpc::Status end = scope->End(work());
    reactor->Finish(end);
  });
  return reactor;
}

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_RPC_CALL_SCOPE_H_
