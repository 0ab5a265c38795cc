// What becomes of a page that has to leave memory and is not archived (ArchiveAdmission::kWorth),
// or is as it was before it was put again (whatever is archived): it goes at once if its use is
// unlikely. Otherwise it stays for as long as it takes to write it, and others go instead; once it
// was its turn it goes next time, whatever came of it. So nobody ever waits for the device, and
// what it cannot keep up with, or does not take, is dropped.
#include <algorithm>
#include <vector>

#include "server/core/page_store.h"

namespace oscarkv {
namespace {

// One page in so many may wait, and as many more that are on disk as they were before.
constexpr uint64_t kPagesPerWaiting = 16;

}  // namespace

bool PageStore::DemotesPages() const {
  return archive_ != nullptr && options_.archive_admission == ArchiveAdmission::kWorth;
}

bool PageStore::WillBeArchived(const Tenant& tenant, const PageTraits& put) {
  if (archive_ == nullptr || options_.archive_admission == ArchiveAdmission::kFetched) return false;
  if (options_.archive_admission == ArchiveAdmission::kAll) return true;
  const std::optional<double> chance = eviction_.PutChance(tenant, put);
  return !chance.has_value() || *chance >= options_.archive_chance_min;
}

bool PageStore::IsWorthWriting(const PageRecord& record, absl::Duration now) const {
  const std::optional<double> chance = eviction_.UseChance(record.space->tenant(), record.id, now);
  return !chance.has_value() || *chance >= options_.archive_chance_min;
}

bool PageStore::AwaitsArchiving(PageRecord& victim, absl::Duration now) {
  if (archive_ == nullptr || victim.demotion == Demotion::kTried ||
      IsArchived(*victim.space, victim.key.view()))
    return false;
  // What is on disk is what the page had before it was put again, and would go with it: it was
  // worth a write then, or somebody wanted it to be durable.
  const bool replaces = archive_->HoldsOlder(*victim.space, victim.key.view());
  if (!replaces && !DemotesPages()) return false;
  const auto refuse = [&](ArchiveRefusal why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(tree_mutex_) {
    ++archive_refused_[static_cast<size_t>(why)];
    return false;
  };
  if (!replaces && !IsWorthWriting(victim, now)) return refuse(ArchiveRefusal::kNotWorth);
  const uint64_t most = std::max<uint64_t>(pages_ / kPagesPerWaiting, 1) * (replaces ? 2 : 1);
  if (demoting_pages_ >= most) return refuse(ArchiveRefusal::kBehind);
  if (!QueueDemotion(victim)) return false;
  victim.demotion = Demotion::kWaits;
  ++demoting_pages_;
  OfferLocked(victim);
  return true;
}

bool PageStore::QueueDemotion(PageRecord& record) {
  // A page whose ancestors are not archived would not be found: they come first. The nearer to the
  // root, the likelier is the use.
  std::vector<PageRecord*> chain;
  for (PageRecord* page = &record;; page = &records_.Get(page->parent)) {
    if (page->demotion == Demotion::kQueued || page->demotion == Demotion::kWaits ||
        IsArchived(*page->space, page->key.view()))
      break;
    chain.push_back(page);
    if (page->parent == kNoPage) break;
  }
  for (size_t i = chain.size(); i-- > 0;) {
    if (!archive_queue_->Add(chain[i])) return false;  // which counts it
    chain[i]->demotion = Demotion::kQueued;
  }
  return true;
}

void PageStore::ArchiveWorthy(absl::Time deadline) {
  PageId next = 0;
  for (bool more = DemotesPages(); more && absl::Now() < deadline;) {
    {
      absl::MutexLock lock(&tree_mutex_);
      const PageId end = std::min(records_.end(), next + kPlacesPerLock);
      for (; next < end; ++next) {
        PageRecord& record = records_.Get(next);
        if (record.in_index && IsWorthWriting(record, clock_.Now())) QueueDemotion(record);
      }
      more = next < records_.end();
    }
    archive_queue_->AwaitDrained(deadline);
  }
}

void PageStore::LeaveDemotionLocked(PageRecord& record) {
  demoting_pages_ -= record.demotion == Demotion::kWaits ? 1 : 0;
  record.demotion = Demotion::kNone;
}

void PageStore::EndDemotionLocked(PageRecord& record) {
  if (!record.in_index || record.demotion == Demotion::kNone) return;
  LeaveDemotionLocked(record);
  if (!IsArchived(*record.space, record.key.view())) record.demotion = Demotion::kTried;
  OfferLocked(record);
}

void PageStore::EndDemotions(std::span<PageRecord* const> records, const ArchiveRefusals& refused) {
  absl::MutexLock lock(&tree_mutex_);
  for (PageRecord* record : records) EndDemotionLocked(*record);
  for (size_t why = 0; why < refused.size(); ++why) archive_refused_[why] += refused[why];
}

}  // namespace oscarkv
