#include "server/core/tenant.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace oscarkv {

Tenant::Tenant(std::string name, uint32_t id, const TenantQuota& quota, uint32_t keys_remembered)
    : name_(std::move(name)), id_(id), dropped_(keys_remembered) {
  SetQuota(quota);
}

void Tenant::SetQuota(const TenantQuota& quota) {
  host_bytes_.set_most(quota.host_bytes);
  host_pages_.set_most(quota.host_pages);
  gpu_.set_most(quota.gpu_bytes);
  inflight_.set_most(quota.inflight_bytes);
  disk_bytes_max_.store(quota.disk_bytes, std::memory_order_relaxed);
  protected_host_bytes_.store(quota.protected_host_bytes, std::memory_order_relaxed);
  weight_.store(quota.weight, std::memory_order_relaxed);
}

bool Tenant::TakeHost(uint64_t bytes) {
  if (!host_pages_.Take(1)) return false;
  if (host_bytes_.Take(bytes)) return true;
  host_pages_.GiveBack(1);
  return false;
}

void Tenant::GiveBackHost(uint64_t bytes) {
  host_bytes_.GiveBack(bytes);
  host_pages_.GiveBack(1);
}

bool Tenant::IsOverHost() const {
  return host_bytes_.taken() > host_bytes_.most() || host_pages_.taken() > host_pages_.most();
}

std::string Tenant::HostQuotaMet(uint64_t bytes) const {
  const std::string who = absl::StrCat("tenant '", absl::CHexEscape(name_), "': ");
  if (host_pages_.taken() >= host_pages_.most()) {
    return absl::StrCat(who, "1 page more in host memory was asked for, ", host_pages_.taken(),
                        " of at most ", host_pages_.most(), " are held, and none of them may go");
  }
  return absl::StrCat(who, bytes, " bytes more of host memory were asked for, ",
                      host_bytes_.taken(), " of at most ", host_bytes_.most(),
                      " are held, and what is held may not go");
}

double Tenant::Excess() const {
  const uint64_t held = host_bytes_.taken();
  const uint64_t own = protected_host_bytes_.load(std::memory_order_relaxed);
  if (held <= own) return 0.0;
  return static_cast<double>(held - own) / weight_.load(std::memory_order_relaxed);
}

uint64_t Tenant::unclaimed_share() const {
  const uint64_t own = protected_host_bytes_.load(std::memory_order_relaxed);
  return own - std::min(own, host_bytes_.taken());
}

std::string Tenant::InflightQuotaMet(uint64_t bytes) const {
  return absl::StrCat("tenant '", absl::CHexEscape(name_), "': ", bytes,
                      " bytes more in flight were asked for, ", inflight_.taken(), " of at most ",
                      inflight_.most(), " are: try again a little later");
}

TenantStats Tenant::Stats() const {
  return {.name = name_,
          .host_bytes = host_bytes_.taken(),
          .host_bytes_max = host_bytes_.most(),
          .host_pages = host_pages_.taken(),
          .host_pages_max = host_pages_.most(),
          .protected_host_bytes = protected_host_bytes_.load(std::memory_order_relaxed),
          .gpu_bytes = gpu_.taken(),
          .gpu_bytes_max = gpu_.most(),
          .disk_bytes_max = disk_bytes_max(),
          .inflight_bytes = inflight_.taken(),
          .inflight_bytes_max = inflight_.most(),
          .pinned_bytes = pinned_bytes_.load(std::memory_order_relaxed),
          .evicted_pages = evicted_.load(std::memory_order_relaxed),
          .refused_items = refused_.load(std::memory_order_relaxed)};
}

const TenantQuota& TenantQuotas::Of(std::string_view name) const {
  const auto found = named.find(absl::string_view(name.data(), name.size()));
  return found == named.end() ? others : found->second;
}

absl::StatusOr<Tenant*> TenantTable::Open(std::string_view name) {
  const absl::MutexLock lock(&mutex_);
  const auto found = by_name_.find(absl::string_view(name.data(), name.size()));
  if (found != by_name_.end()) return found->second;
  if (tenants_.size() >= tenants_max_) {
    return absl::ResourceExhaustedError(
        absl::StrCat("tenants: at most ", tenants_max_, " may have namespaces"));
  }
  tenants_.push_back(std::make_unique<Tenant>(std::string(name),
                                              static_cast<uint32_t>(tenants_.size()),
                                              quotas_.Of(name), keys_remembered_));
  return by_name_[tenants_.back()->name()] = tenants_.back().get();
}

void TenantTable::SetQuotas(TenantQuotas quotas) {
  const absl::MutexLock lock(&mutex_);
  quotas_ = std::move(quotas);
  for (const auto& tenant : tenants_) tenant->SetQuota(quotas_.Of(tenant->name()));
}

std::vector<Tenant*> TenantTable::All() const {
  const absl::MutexLock lock(&mutex_);
  std::vector<Tenant*> tenants;
  tenants.reserve(tenants_.size());
  for (const auto& tenant : tenants_) tenants.push_back(tenant.get());
  return tenants;
}

uint64_t TenantTable::UnclaimedShares(const Tenant& asker) const {
  const absl::MutexLock lock(&mutex_);
  uint64_t bytes = 0;
  for (const auto& tenant : tenants_) {
    if (tenant.get() == &asker) continue;
    const uint64_t share = tenant->unclaimed_share();
    bytes += std::min(share, std::numeric_limits<uint64_t>::max() - bytes);
  }
  return bytes;
}

uint64_t TenantTable::memory_bytes() const {
  uint64_t bytes = 0;
  for (const Tenant* tenant : All()) bytes += sizeof(Tenant) + tenant->dropped().memory_bytes();
  return bytes;
}

}  // namespace oscarkv
