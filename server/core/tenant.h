// Tenants: who owns namespaces, what each may hold, and what it holds. Nothing that one tenant does
// with keys is to be seen by another: what is remembered of keys is kept for each by itself.
#ifndef OSCARKV_SERVER_CORE_TENANT_H_
#define OSCARKV_SERVER_CORE_TENANT_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

#include "server/core/budget.h"
#include "server/core/dropped_keys.h"
#include "server/core/store_stats.h"

namespace oscarkv {

// What a tenant may hold. Host memory is counted in slots, from the start of a put until the last
// reader of a page that is gone has let go.
struct TenantQuota {
  uint64_t host_bytes = Budget::kNoLimit;
  uint64_t host_pages = Budget::kNoLimit;
  uint64_t gpu_bytes = Budget::kNoLimit;       // of copies of pages
  uint64_t disk_bytes = Budget::kNoLimit;      // of pages in the archive, their records included
  uint64_t inflight_bytes = Budget::kNoLimit;  // of puts and gets under way
  uint64_t protected_host_bytes = 0;           // which others' pages never drive out
  double weight = 1.0;                         // of the host memory above protected shares
};

// Thread-safe; lives as long as the store.
class Tenant {
 public:
  // `keys_remembered`: of dropped pages (DroppedKeys).
  Tenant(std::string name, uint32_t id, const TenantQuota& quota, uint32_t keys_remembered);

  const std::string& name() const { return name_; }
  uint32_t id() const { return id_; }  // dense from 0

  void SetQuota(const TenantQuota& quota);

  // Takes a slot of host memory; false when the quota does not have it.
  bool TakeHost(uint64_t bytes);
  void GiveBackHost(uint64_t bytes);
  void ShrinkHost(uint64_t bytes) { host_bytes_.GiveBack(bytes); }  // of a slot that stays
  bool IsOverHostPages() const { return host_pages_.taken() > host_pages_.most(); }
  bool IsAtHostPages() const { return host_pages_.taken() >= host_pages_.most(); }
  bool IsOverHost() const;  // holds more than it may: the quota was lowered
  // "tenant 'a': 1040 bytes more of host memory were asked for, 1000 of at most 2000 are held ...":
  // of the limit that is in the way.
  std::string HostQuotaMet(uint64_t bytes) const;
  uint64_t host_bytes() const { return host_bytes_.taken(); }
  uint64_t host_bytes_max() const { return host_bytes_.most(); }
  uint64_t disk_bytes_max() const { return disk_bytes_max_.load(std::memory_order_relaxed); }

  // How far it is above its protected share, by weight: who is furthest gives way first. 0: it is
  // within its share.
  double Excess() const;
  uint64_t unclaimed_share() const;  // of its protected share, what it does not hold

  Budget& gpu() { return gpu_; }
  Budget& inflight() { return inflight_; }
  std::string InflightQuotaMet(uint64_t bytes) const;

  // Find by any thread; changed under the store's tree lock, as is pinned_bytes.
  DroppedKeys& dropped() { return dropped_; }
  const DroppedKeys& dropped() const { return dropped_; }
  std::atomic<uint64_t>& pinned_bytes() { return pinned_bytes_; }

  void CountRefused() { refused_.fetch_add(1, std::memory_order_relaxed); }
  void CountEvicted() { evicted_.fetch_add(1, std::memory_order_relaxed); }
  TenantStats Stats() const;

 private:
  const std::string name_;
  const uint32_t id_;
  Budget host_bytes_;
  Budget host_pages_;
  Budget gpu_;
  Budget inflight_;
  // Relaxed, as all counts here: each is complete in itself.
  std::atomic<uint64_t> disk_bytes_max_{0};
  std::atomic<uint64_t> protected_host_bytes_{0};
  std::atomic<double> weight_{1.0};
  std::atomic<uint64_t> pinned_bytes_{0};
  std::atomic<uint64_t> refused_{0};
  std::atomic<uint64_t> evicted_{0};
  DroppedKeys dropped_;
};

// The quotas of tenants by name, and of those that are not named.
struct TenantQuotas {
  absl::flat_hash_map<std::string, TenantQuota> named;
  TenantQuota others;

  const TenantQuota& Of(std::string_view name) const;
};

// All tenants of a store. Thread-safe; its lock is the last in the order: it calls nobody.
class TenantTable {
 public:
  TenantTable(uint32_t tenants_max, uint32_t keys_remembered)
      : tenants_max_(tenants_max), keys_remembered_(keys_remembered) {}

  // The tenant of this name; makes it when there is none. kResourceExhausted: there are as many as
  // there may be.
  absl::StatusOr<Tenant*> Open(std::string_view name);
  void SetQuotas(TenantQuotas quotas);
  std::vector<Tenant*> All() const;  // [id]
  // Of protected shares, what tenants but `asker` do not hold. O(tenants).
  uint64_t UnclaimedShares(const Tenant& asker) const;
  uint64_t memory_bytes() const;  // of what is remembered of dropped keys

 private:
  const uint32_t tenants_max_;
  const uint32_t keys_remembered_;
  mutable absl::Mutex mutex_;
  TenantQuotas quotas_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::unique_ptr<Tenant>> tenants_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<std::string, Tenant*> by_name_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_TENANT_H_
