// Session: a stream that a client holds open. Its leases live as long as it does: when it ends, for
// whatever reason, they end with it at once.
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

#include "kernels/base/fault_point.h"
#include "server/rpc/cache_service.h"
#include "server/rpc/call_scope.h"
#include "server/rpc/device_pushes.h"

namespace oscarkv {
namespace {

class SessionReactor final : public grpc::ServerBidiReactor<v1::SessionRequest, v1::SessionReply>,
                             public Drainable {
 public:
  SessionReactor(RpcContext& context, grpc::CallbackServerContext* call)
      : context_(context), scope_(context, call, Method::kSession) {
    if (const absl::Status status = scope_.Admit(); !status.ok()) {
      End(status);
      return;
    }
    context_.Register(this);
    registered_ = true;
    // A drain that began since Admit may have missed this stream.
    if (context_.draining()) {
      OnDrain();
    } else {
      StartRead(&request_);
    }
  }

  void OnReadDone(bool ok) override {
    if (!ok) return End(absl::OkStatus());  // the client has ended the session, or is gone
    if (session_ == 0) {
      session_ = context_.store().OpenSession(request_.client_name());
      FaultPoint("grpc.server.session.opened");
      if (context_.device_holds() != nullptr) context_.device_holds()->BeginSession(session_);
      if (context_.peer_hub() != nullptr) context_.peer_hub()->BeginSession(session_);
      if (context_.device_pushes() != nullptr) context_.device_pushes()->BeginSession(session_);
      reply_.set_session_id(session_);
      reply_.set_server_epoch(context_.epoch());
      context_.paths().Agree(request_.paths(), &reply_);
      LogPaths();
      if (request_.has_hints()) context_.SetSessionHints(session_, request_.hints());
      StartWrite(&reply_);
      return;
    }
    if (request_.has_hints()) context_.SetSessionHints(session_, request_.hints());
    StartRead(&request_);
  }

  void OnWriteDone(bool ok) override {
    if (!ok) return End(absl::OkStatus());
    StartRead(&request_);
  }

  void OnDrain() override { End(absl::UnavailableError("the server is draining")); }

  void OnDone() override {
    if (registered_) context_.Unregister(this);
    if (session_ != 0) {
      FaultPoint("grpc.server.session.ended");
      if (context_.device_holds() != nullptr) context_.device_holds()->EndSession(session_);
      if (context_.device_pushes() != nullptr) context_.device_pushes()->EndSession(session_);
      if (context_.peer_hub() != nullptr) context_.peer_hub()->EndSession(session_);
      context_.store().CloseSession(session_);
      context_.ForgetSession(session_);
    }
    delete this;
  }

 private:
  void LogPaths() const {
    const auto name = [](const v1::PathChoice& choice) {
      if (choice.path() == v1::DATA_PATH_UNSPECIFIED) return std::string("none");
      std::string names(DataPathName(static_cast<DataPath>(choice.path())));
      for (const int path : choice.then())
        names.append(", ").append(DataPathName(static_cast<DataPath>(path)));
      return names;
    };
    context_.logger().Log(LogLevel::kInfo, "session opened",
                          {{"client", request_.client_name()},
                           {"fetch", name(reply_.fetch())},
                           {"fetch_reason", reply_.fetch().reason()},
                           {"push", name(reply_.push())},
                           {"push_reason", reply_.push().reason()}});
  }

  // Draining and reading may both want to end the stream: the first does.
  void End(const absl::Status& status) {
    {
      const absl::MutexLock lock(&mutex_);
      if (std::exchange(ended_, true)) return;
    }
    Finish(scope_.End(status));
  }

  RpcContext& context_;
  CallScope scope_;
  bool registered_ = false;
  v1::SessionRequest request_;
  v1::SessionReply reply_;
  SessionId session_ = 0;
  absl::Mutex mutex_;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace

grpc::ServerBidiReactor<v1::SessionRequest, v1::SessionReply>* CacheService::Session(
    grpc::CallbackServerContext* call) {
  return new SessionReactor(context_, call);
}

}  // namespace oscarkv
