#include "server/core/fair_eviction.h"

#include <utility>

namespace oscarkv {

FairEviction::FairEviction(std::unique_ptr<EvictionPolicy> first) {
  shares_.emplace_back();
  shares_.front().policy = std::move(first);
}

void FairEviction::Add(const Tenant& tenant) {
  if (tenant.id() == shares_.size()) {
    Share share;
    share.policy = shares_.front().policy->NewSibling();
    shares_.push_back(std::move(share));
  }
  Of(tenant).tenant = &tenant;
}

// --- Pages, under the numbers that their policy knows ---

PageTraits FairEviction::Translated(PageTraits traits) const {
  if (traits.parent != kNoPage) traits.parent = numbers_[traits.parent];
  return traits;
}

void FairEviction::OnInsert(const Tenant& tenant, PageId page, PageTraits traits) {
  Share& share = Of(tenant);
  PageId number = share.first_free;
  if (number == kNoPage) {
    number = static_cast<PageId>(share.pages.size());
    share.pages.push_back(page);
  } else {
    share.first_free = share.pages[number];
    share.pages[number] = page;
  }
  if (page >= numbers_.size()) numbers_.resize(page + size_t{1}, kNoPage);
  numbers_[page] = number;
  share.policy->OnInsert(number, Translated(traits));
}

bool FairEviction::Admits(const Tenant& tenant, PageTraits traits) {
  return Of(tenant).policy->Admits(Translated(traits));
}

void FairEviction::OnRefuse(const Tenant& tenant, PageTraits traits) {
  Of(tenant).policy->OnRefuse(Translated(traits));
}

void FairEviction::OnUse(const Tenant& tenant, std::span<const UsedPage> pages,
                         const RequestTraits& request, absl::Duration now) {
  used_.clear();
  for (const UsedPage& used : pages) used_.push_back({numbers_[used.page], used.key_hash});
  Of(tenant).policy->OnUse(used_, request, now);
}

void FairEviction::OnRemove(const Tenant& tenant, PageId page, RemoveReason reason) {
  Share& share = Of(tenant);
  const PageId number = numbers_[page];
  share.policy->OnRemove(number, reason);
  share.pages[number] = share.first_free;
  share.first_free = number;
  numbers_[page] = kNoPage;
}

void FairEviction::SetEvictable(const Tenant& tenant, PageId page, bool evictable) {
  Of(tenant).policy->SetEvictable(numbers_[page], evictable);
}

// --- Order ---

std::optional<FairEviction::Victim> FairEviction::NextOf(Share& share, absl::Duration now) {
  const std::optional<PageId> number = share.policy->Victim(now);
  if (!number.has_value()) return std::nullopt;
  return Victim{share.pages[*number], share.tenant};
}

std::optional<FairEviction::Victim> FairEviction::Next(const Tenant& asker, bool own_only,
                                                       absl::Duration now) {
  if (own_only) return NextOf(Of(asker), now);
  for (Share& share : shares_) share.asked = false;
  for (;;) {
    Share* furthest = nullptr;
    double most = 0.0;
    for (Share& share : shares_) {
      const double excess = share.asked ? 0.0 : share.tenant->Excess();
      if (excess <= most) continue;
      furthest = &share;
      most = excess;
    }
    // All that is above shares is held: the asker's own pages are left.
    if (furthest == nullptr) return NextOf(Of(asker), now);
    furthest->asked = true;
    if (const std::optional<Victim> victim = NextOf(*furthest, now)) return victim;
  }
}

uint64_t FairEviction::memory_bytes() const {
  uint64_t bytes = (numbers_.capacity() * sizeof(PageId)) + used_.capacity() * sizeof(UsedPage);
  for (const Share& share : shares_)
    bytes += sizeof(Share) + share.policy->memory_bytes() + share.pages.capacity() * sizeof(PageId);
  return bytes;
}

}  // namespace oscarkv
