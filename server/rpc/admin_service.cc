#include "server/rpc/admin_service.h"

#include <algorithm>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include <grpcpp/alarm.h>

#include "kernels/base/status_macros.h"
#include "proto/convert/convert.h"
#include "server/core/counters.h"
#include "server/rpc/call_scope.h"

namespace oscarkv {
namespace {

constexpr uint64_t kVerifyStepBytes = 8 << 20;

class VerifyReactor final : public grpc::ServerWriteReactor<v1::VerifyReply>, public Drainable {
 public:
  VerifyReactor(RpcContext& context, grpc::CallbackServerContext* call, uint64_t bytes_per_second)
      : context_(context),
        scope_(context, call, Method::kVerify),
        call_(call),
        bytes_per_second_(bytes_per_second) {
    if (const absl::Status status = scope_.Admit(); !status.ok()) {
      Finish(scope_.End(status));
      return;
    }
    context_.Register(this);
    registered_ = true;
    reply_.set_pages_total(context.store().Stats().pages);
    context_.RunAsync([this] { Step(); });
  }

  void OnWriteDone(bool ok) override {
    if (!ok || call_->IsCancelled())
      return Finish(scope_.End(absl::CancelledError("the client broke off")));
    if (context_.draining())
      return Finish(scope_.End(absl::UnavailableError("the server is draining")));
    if (progress_.cursor == 0) return Finish(scope_.End(absl::OkStatus()));
    if (bytes_per_second_ == 0) return context_.RunAsync([this] { Step(); });
    const double seconds =
        static_cast<double>(progress_.bytes_checked) / static_cast<double>(bytes_per_second_);
    {
      const absl::MutexLock lock(&mutex_);
      if (!hurried_) {
        alarm_.Set(absl::ToChronoTime(absl::Now() + absl::Seconds(seconds)),
                   [this](bool) { context_.RunAsync([this] { Step(); }); });
        return;
      }
    }
    context_.RunAsync([this] { Step(); });
  }

  void OnCancel() override { EndPause(); }
  void OnDrain() override { EndPause(); }

  void OnDone() override {
    if (registered_) context_.Unregister(this);
    delete this;
  }

 private:
  // A pause may be long: the call does not outlive its client, nor hold up the server's end. The
  // write after the next step sees why.
  void EndPause() {
    const absl::MutexLock lock(&mutex_);
    hurried_ = true;
    alarm_.Cancel();
  }

  void Step() {
    const uint64_t bytes =
        bytes_per_second_ == 0 ? kVerifyStepBytes : std::min(kVerifyStepBytes, bytes_per_second_);
    progress_ = context_.store().Verify(progress_.cursor, bytes);
    reply_.set_pages_checked(reply_.pages_checked() + progress_.pages_checked);
    reply_.set_pages_corrupt(reply_.pages_corrupt() + progress_.pages_corrupt);
    reply_.set_pages_total(std::max(reply_.pages_total(), reply_.pages_checked()));
    StartWrite(&reply_);
  }

  RpcContext& context_;
  CallScope scope_;
  grpc::CallbackServerContext* call_;
  const uint64_t bytes_per_second_;
  bool registered_ = false;
  VerifyProgress progress_;
  v1::VerifyReply reply_;
  absl::Mutex mutex_;
  bool hurried_ ABSL_GUARDED_BY(mutex_) = false;  // no more pauses
  grpc::Alarm alarm_ ABSL_GUARDED_BY(mutex_);
};

// As in /metrics: name{label="value"}.
std::string NameOf(const NamedCounter& counter) {
  std::string name(counter.name);
  if (counter.label.empty()) return name;
  absl::StrAppend(&name, "{", std::string(counter.label), "=\"",
                  std::string(counter.value_of_label), "\"");
  if (!counter.second_label.empty()) {
    absl::StrAppend(&name, ",", std::string(counter.second_label), "=\"",
                    std::string(counter.value_of_second), "\"");
  }
  return name + "}";
}

void FillGauges(const StoreStats& stats, google::protobuf::Map<std::string, double>* gauges) {
  const auto mean = [](const ErrorHistogram& errors) {
    return errors.count == 0 ? 0.0 : errors.sum / static_cast<double>(errors.count);
  };
  const std::pair<std::string, double> named[] = {
      {"oscarkv_index_bytes", static_cast<double>(stats.index_bytes)},
      {"oscarkv_eviction_policy_bytes", static_cast<double>(stats.policy_bytes)},
      {"oscarkv_oldest_lease_seconds", stats.oldest_lease_s},
      {"oscarkv_scrub_pages", static_cast<double>(stats.scrub_pages)},
      {"oscarkv_scrubbed_pages", static_cast<double>(stats.scrubbed_pages)},
      {"oscarkv_reencode_relative_error{side=\"k\"}", mean(stats.ladder.k_error)},
      {"oscarkv_reencode_relative_error{side=\"v\"}", mean(stats.ladder.v_error)},
  };
  for (const auto& [name, value] : named) (*gauges)[name] = value;
}

void FillNamespace(const NamespaceStats& stats, const NamespaceSpec& spec,
                   v1::NamespaceStats* out) {
  out->set_fingerprint(stats.fingerprint);
  ToProto(spec, out->mutable_spec());
  out->set_wide_pages(stats.wide_pages);
  out->set_packed_pages(stats.packed_pages);
  out->set_stored_bytes(stats.stored_bytes);
  out->set_wide_equivalent_bytes(stats.wide_equivalent_bytes);
}

void FillTenant(const TenantStats& stats, v1::TenantStats* out) {
  out->set_name(stats.name);
  out->set_host_bytes(stats.host_bytes);
  out->set_host_pages(stats.host_pages);
  out->set_protected_host_bytes(stats.protected_host_bytes);
  out->set_gpu_bytes(stats.gpu_bytes);
  out->set_disk_bytes(stats.disk_bytes);
  out->set_inflight_bytes(stats.inflight_bytes);
  out->set_pinned_bytes(stats.pinned_bytes);
  out->set_evicted_pages(stats.evicted_pages);
  out->set_refused_items(stats.refused_items);
  if (stats.host_bytes_max != Budget::kNoLimit) out->set_host_bytes_max(stats.host_bytes_max);
  if (stats.host_pages_max != Budget::kNoLimit) out->set_host_pages_max(stats.host_pages_max);
  if (stats.gpu_bytes_max != Budget::kNoLimit) out->set_gpu_bytes_max(stats.gpu_bytes_max);
  if (stats.disk_bytes_max != Budget::kNoLimit) out->set_disk_bytes_max(stats.disk_bytes_max);
  if (stats.inflight_bytes_max != Budget::kNoLimit)
    out->set_inflight_bytes_max(stats.inflight_bytes_max);
}

}  // namespace

grpc::ServerUnaryReactor* AdminService::Stats(grpc::CallbackServerContext* call,
                                              const v1::StatsRequest*, v1::StatsReply* reply) {
  return RunUnary(context_, call, Method::kStats, [&] {
    const StoreStats stats = context_.store().Stats();
    reply->set_version(version_);
    reply->set_server_epoch(context_.epoch());
    reply->set_uptime_s(absl::ToDoubleSeconds(absl::Now() - context_.start()));
    for (const NamespaceStats& space : stats.namespaces) {
      if (const Namespace* found = context_.store().FindNamespace(space.fingerprint)) {
        FillNamespace(space, found->spec(), reply->add_namespaces());
      }
    }
    for (const TierStats& tier : stats.tiers) {
      v1::TierStats* out = reply->add_tiers();
      out->set_tier(static_cast<v1::Tier>(tier.kind));
      out->set_capacity_bytes(tier.capacity_bytes);
      out->set_used_bytes(tier.used_bytes);
      if (tier.kind == TierKind::kHost) out->set_leased_bytes(stats.leased_bytes);
      out->set_degraded(tier.degraded);
      out->set_pinned_host_bytes(tier.pinned_host_bytes);
    }
    for (const TenantStats& tenant : stats.tenants) FillTenant(tenant, reply->add_tenants());
    reply->set_sessions(stats.sessions);
    reply->set_leases(stats.leases);
    reply->set_inflight_bytes(context_.inflight_bytes());
    FillGauges(stats, reply->mutable_gauges());
    for (const NamedCounter& counter : NamedCounters(stats)) {
      (*reply->mutable_counters())[NameOf(counter)] = counter.value;
    }
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* AdminService::Drain(grpc::CallbackServerContext* call,
                                              const v1::DrainRequest* request,
                                              v1::DrainReply* reply) {
  return RunUnary(context_, call, Method::kDrain, [&] {
    reply->set_calls_in_flight(static_cast<uint32_t>(context_.calls_in_flight()));
    context_.RequestDrain(absl::Milliseconds(request->grace_ms()));
    return absl::OkStatus();
  });
}

grpc::ServerWriteReactor<v1::VerifyReply>* AdminService::Verify(grpc::CallbackServerContext* call,
                                                                const v1::VerifyRequest* request) {
  return new VerifyReactor(context_, call, request->bytes_per_second());
}

// On a worker: what is on disk goes before the answer.
grpc::ServerUnaryReactor* AdminService::DeleteTransformSet(
    grpc::CallbackServerContext* call, const v1::DeleteTransformSetRequest* request,
    v1::DeleteTransformSetReply* reply) {
  return RunUnaryAsync(context_, call, Method::kDeleteTransformSet, [=, this]() -> absl::Status {
    OSCARKV_ASSIGN_OR_RETURN(const bool existed, context_.DeleteTransformSet(request->hash()));
    reply->set_existed(existed);
    return absl::OkStatus();
  });
}

}  // namespace oscarkv
