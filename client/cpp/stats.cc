#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

#include "client/cpp/client.h"
#include "client/cpp/connection.h"
#include "client/cpp/wire.h"
#include "kernels/base/status_macros.h"
#include "proto/convert/convert.h"

namespace oscarkv::client {

std::string TierName(v1::Tier tier) {
  switch (tier) {
    case v1::GPU:
    case v1::HOST:
    case v1::DISK:
      return absl::AsciiStrToLower(v1::Tier_Name(tier));
    default:
      return absl::StrCat("tier ", static_cast<int>(tier));
  }
}

namespace {

TenantUse TenantOf(const v1::TenantStats& tenant) {
  const auto share = [](uint64_t used, bool limited, uint64_t limit) {
    return TenantUse::Share{used, limited ? std::optional(limit) : std::nullopt};
  };
  return {
      .name = tenant.name(),
      .host_bytes =
          share(tenant.host_bytes(), tenant.has_host_bytes_max(), tenant.host_bytes_max()),
      .host_pages =
          share(tenant.host_pages(), tenant.has_host_pages_max(), tenant.host_pages_max()),
      .gpu_bytes = share(tenant.gpu_bytes(), tenant.has_gpu_bytes_max(), tenant.gpu_bytes_max()),
      .disk_bytes =
          share(tenant.disk_bytes(), tenant.has_disk_bytes_max(), tenant.disk_bytes_max()),
      .inflight_bytes = share(tenant.inflight_bytes(), tenant.has_inflight_bytes_max(),
                              tenant.inflight_bytes_max()),
      .protected_host_bytes = tenant.protected_host_bytes(),
      .pinned_bytes = tenant.pinned_bytes(),
      .evicted_pages = tenant.evicted_pages(),
      .refused_items = tenant.refused_items()};
}

}  // namespace

absl::StatusOr<ServerStats> Client::Stats() {
  v1::StatsReply reply;
  OSCARKV_RETURN_IF_ERROR(connection_->Call(connection_->options().control_timeout, method::kStats,
                                            v1::StatsRequest(), &reply));
  ServerStats stats;
  stats.version = reply.version();
  stats.epoch = reply.server_epoch();
  stats.uptime_s = reply.uptime_s();
  for (const v1::NamespaceStats& space : reply.namespaces()) {
    absl::StatusOr<NamespaceSpec> spec = FromProto(space.spec());
    if (!spec.ok()) {
      return Annotate(spec.status(), absl::StrCat("the server's namespace ",
                                                  absl::BytesToHexString(space.fingerprint())));
    }
    stats.namespaces.push_back({.fingerprint = space.fingerprint(),
                                .spec = *std::move(spec),
                                .wide_pages = space.wide_pages(),
                                .packed_pages = space.packed_pages(),
                                .stored_bytes = space.stored_bytes(),
                                .model_bytes = space.wide_equivalent_bytes()});
  }
  for (const v1::TierStats& tier : reply.tiers()) {
    stats.tiers.push_back({.tier = TierName(tier.tier()),
                           .capacity_bytes = tier.capacity_bytes(),
                           .used_bytes = tier.used_bytes(),
                           .leased_bytes = tier.leased_bytes(),
                           .degraded = tier.degraded(),
                           .pinned_host_bytes = tier.pinned_host_bytes()});
  }
  for (const v1::TenantStats& tenant : reply.tenants()) stats.tenants.push_back(TenantOf(tenant));
  stats.sessions = reply.sessions();
  stats.leases = reply.leases();
  stats.inflight_bytes = reply.inflight_bytes();
  stats.counters.insert(reply.counters().begin(), reply.counters().end());
  stats.gauges.insert(reply.gauges().begin(), reply.gauges().end());
  return stats;
}

}  // namespace oscarkv::client
