// Persist: what describes the pages is saved on a worker, the pages are written by the store's
// writer, which ends the call.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"

#include "kernels/base/fault_point.h"
#include "kernels/base/status_macros.h"
#include "proto/convert/convert.h"
#include "server/rpc/cache_service.h"
#include "server/rpc/call_scope.h"
#include "server/rpc/request_keys.h"

namespace oscarkv {
namespace {

// When to say what has been written, so that the caller still hears it.
absl::Time AnswerBy(absl::Time deadline) {
  return deadline - std::min((deadline - absl::Now()) / 10, absl::Milliseconds(200));
}

class PersistCall {
 public:
  PersistCall(RpcContext& context, grpc::CallbackServerContext* call,
              const v1::KeysRequest& request, v1::KeysReply* reply)
      : context_(context),
        scope_(context, call, Method::kPersist),
        deadline_(AnswerBy(absl::FromChrono(call->deadline()))),
        request_(request),
        reply_(reply),
        reactor_(call->DefaultReactor()) {}

  absl::Status Check() {
    OSCARKV_RETURN_IF_ERROR(scope_.Admit());
    OSCARKV_ASSIGN_OR_RETURN(space_, context_.Resolve(request_.scope()));
    return KeysOf(request_, context_.options().max_items).status();
  }
  absl::Status SaveNamespace() {
    return context_.saved().EnsureSaved(*space_, context_.transforms());
  }
  grpc::ServerUnaryReactor* reactor() const { return reactor_; }
  ArchiveQueue* writer() const { return context_.store().archive_queue(); }
  PersistTask MakeTask(decltype(PersistTask::done) done) const {
    return {.space = space_,
            .keys = {request_.keys().begin(), request_.keys().end()},
            .deadline = deadline_,
            .done = std::move(done)};
  }

  void End(const absl::StatusOr<std::vector<ItemResult>>& results) {
    if (results.ok()) {
      for (const ItemResult& result : *results) {
        v1::ItemResult* out = reply_->add_results();
        out->set_status(ToProto(result.status));
        out->set_message(result.message);
      }
    }
    reactor_->Finish(scope_.End(results.status()));
  }

 private:
  RpcContext& context_;
  CallScope scope_;
  const absl::Time deadline_;
  const v1::KeysRequest& request_;  // gRPC's, until Finish
  v1::KeysReply* const reply_;
  grpc::ServerUnaryReactor* const reactor_;
  const Namespace* space_ = nullptr;
};

}  // namespace

grpc::ServerUnaryReactor* CacheService::Persist(grpc::CallbackServerContext* call,
                                                const v1::KeysRequest* request,
                                                v1::KeysReply* reply) {
  auto persist = std::make_unique<PersistCall>(context_, call, *request, reply);
  grpc::ServerUnaryReactor* reactor = persist->reactor();
  if (const absl::Status status = persist->Check(); !status.ok()) {
    persist->End(status);
    return reactor;
  }
  context_.RunAsync([persist = std::move(persist)]() mutable {
    if (const absl::Status status = persist->SaveNamespace(); !status.ok())
      return persist->End(status);
    FaultPoint("persist.saved");
    ArchiveQueue* writer = persist->writer();
    PersistTask task = persist->MakeTask(nullptr);
    task.done = [persist = std::move(persist)](const auto& results) { persist->End(results); };
    writer->Persist(std::move(task));
  });
  return reactor;
}

}  // namespace oscarkv
