// Whose page goes: a policy for each tenant orders the pages of that tenant, and this one picks the
// tenant. Room is made by who is furthest above its protected share, by weight, the one that asks
// counted with what it asks for; pages of a tenant within its share go for its own pages only. So
// one tenant's flood takes from others what is above their shares at most, and among tenants with
// no shares each ends up with as much as it wants or an equal part.
#ifndef OSCARKV_SERVER_CORE_FAIR_EVICTION_H_
#define OSCARKV_SERVER_CORE_FAIR_EVICTION_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "absl/time/time.h"

#include "server/core/eviction_policy.h"
#include "server/core/tenant.h"

namespace oscarkv {

// Not thread-safe: the store calls under its tree lock. Calls are those of EvictionPolicy, for a
// page of `tenant`. Each policy sees its own tenant's pages alone, under numbers of their own, so
// what it does depends on nobody else. O(tenants) for a victim, and what the policy takes.
//
// Memory: 8 bytes a page beside the policies', each of which is as large as its tenant ever was.
class FairEviction {
 public:
  // `first` is of the first tenant; the others get siblings of it.
  explicit FairEviction(std::unique_ptr<EvictionPolicy> first);

  // Makes the tenant's policy, if it has none. Tenants come in the order of their numbers, and
  // outlive this.
  void Add(const Tenant& tenant);

  void OnInsert(const Tenant& tenant, PageId page, PageTraits traits);
  bool Admits(const Tenant& tenant, PageTraits traits);
  void OnRefuse(const Tenant& tenant, PageTraits traits);
  void OnUse(const Tenant& tenant, std::span<const UsedPage> pages, const RequestTraits& request,
             absl::Duration now);
  void OnRemove(const Tenant& tenant, PageId page, RemoveReason reason);
  void SetEvictable(const Tenant& tenant, PageId page, bool evictable);

  struct Victim {
    PageId page = kNoPage;
    const Tenant* tenant = nullptr;
  };
  // The page that goes next for a page of `asker`; of the asker's own pages when `own_only`.
  std::optional<Victim> Next(const Tenant& asker, bool own_only, absl::Duration now);

  // Of a page that is there.
  std::optional<double> UseChance(const Tenant& tenant, PageId page, absl::Duration now) const {
    return shares_[tenant.id()].policy->UseChance(numbers_[page], now);
  }

  std::optional<double> PutChance(const Tenant& tenant, const PageTraits& traits) {
    return Of(tenant).policy->PutChance(Translated(traits));
  }

  std::string_view name() const { return shares_.front().policy->name(); }
  uint64_t memory_bytes() const;

 private:
  struct Share {
    const Tenant* tenant = nullptr;
    std::unique_ptr<EvictionPolicy> policy;
    std::vector<PageId> pages;    // [number within the tenant]; of a free one: the next free one
    PageId first_free = kNoPage;  // a number within the tenant
    bool asked = false;           // within one call of Next
  };

  Share& Of(const Tenant& tenant) { return shares_[tenant.id()]; }
  PageTraits Translated(PageTraits traits) const;
  static std::optional<Victim> NextOf(Share& share, absl::Duration now);

  std::vector<Share> shares_;    // [tenant], at least one
  std::vector<PageId> numbers_;  // [page]: its number within its tenant
  std::vector<UsedPage> used_;   // within one call of OnUse
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_FAIR_EVICTION_H_
