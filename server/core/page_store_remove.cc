// Taking pages out: eviction's single step, Delete, Clear and corruption.
#include <algorithm>
#include <string>
#include <utility>

#include "server/core/block_check.h"
#include "server/core/page_store.h"

namespace oscarkv {
namespace {

// Pages removed in one hold of the tree lock.
constexpr uint32_t kRemovalsPerLock = 256;
// How often pages past their time to live are looked for: a sixteenth of it, within these.
constexpr absl::Duration kExpireEveryMin = absl::Seconds(1);
constexpr absl::Duration kExpireEveryMax = absl::Minutes(1);

}  // namespace

bool PageStore::RemoveLocked(PageRecord& record, RemoveReason reason) {
  const bool only_unheld = reason == RemoveReason::kEvicted || reason == RemoveReason::kExpired;
  const uint64_t hash = index_.HashOf(record);
  const bool erased = index_.EraseIf(record, [&] {
    return !only_unheld || !page_state::IsHeld(record.state.load(std::memory_order_acquire));
  });
  if (!erased) return false;
  record.in_index = false;
  SetResidencyLocked(record, Residency::kNormal);
  if (copies_ != nullptr) copies_->OnRemove(record);
  ladder_.OnLeave(record);
  LeaveDemotionLocked(record);
  // What is evicted stays in the archive, but for bytes that it had before it was put again. If it
  // is not there, what extends it goes too: a page whose parent is nowhere cannot be found as part
  // of a prefix, and would not be when what it extends is deleted. What is gone is gone everywhere.
  if (archive_ != nullptr) {
    const std::string_view key = record.key.view();
    if (reason != RemoveReason::kEvicted) {
      HideArchiving(record);
      ForgetArchived(*record.space, key);
    } else if (!IsArchived(*record.space, key)) {
      ForgetArchived(*record.space, key);
    } else {
      archive_->SetUsedAt(*record.space, key, record.used_at_s);
    }
  }
  UnlinkLocked(record);
  Tenant& tenant = record.space->tenant();
  eviction_.OnRemove(tenant, record.id, reason);
  if (reason == RemoveReason::kCorrupt)
    tenant.dropped().Remember(hash, ItemStatus::kCorrupt);
  else if (reason != RemoveReason::kDeleted)
    tenant.dropped().Remember(hash, ItemStatus::kEvicted);

  ++removed_[static_cast<size_t>(reason)];
  if (reason == RemoveReason::kEvicted) {
    evicted_bytes_ += record.page_bytes();
    tenant.CountEvicted();
  }
  SpacePages& pages = space_pages_[record.space->id()];
  --(record.encoding == Encoding::kWide ? pages.wide : pages.packed);
  --pages_;

  // Nobody can begin to hold it any more. Who holds it sees the flag and frees it; if nobody does,
  // it is freed here.
  const uint64_t before = record.state.fetch_or(page_state::kDetached, std::memory_order_acq_rel);
  if (page_state::IsHeld(before))
    ++detached_pages_;
  else
    FreeLocked(record);
  return true;
}

void PageStore::UnlinkLocked(PageRecord& record) {
  if (record.next_sibling != kNoPage)
    records_.Get(record.next_sibling).previous_sibling = record.previous_sibling;
  if (record.previous_sibling != kNoPage) {
    records_.Get(record.previous_sibling).next_sibling = record.next_sibling;
  } else if (record.parent != kNoPage) {
    PageRecord& parent = records_.Get(record.parent);
    parent.first_child = record.next_sibling;
    OfferLocked(parent);
  }
  record.parent = record.next_sibling = record.previous_sibling = kNoPage;
}

void PageStore::OfferLocked(const PageRecord& record) {
  const bool parked = (record.state.load(std::memory_order_acquire) & page_state::kParked) != 0;
  eviction_.SetEvictable(
      record.space->tenant(), record.id,
      IsLeaf(record) && !parked && !record.pinned && record.demotion != Demotion::kWaits);
}

bool PageStore::MayPin(Tenant& tenant, uint64_t slot_bytes) const {
  absl::MutexLock lock(&tree_mutex_);
  return MayPinLocked(tenant, slot_bytes);
}

bool PageStore::MayPinLocked(Tenant& tenant, uint64_t slot_bytes) const {
  const uint64_t capacity = tier_->capacity_bytes();
  const auto fits = [&](uint64_t pinned, uint64_t of) {
    return static_cast<double>(pinned + slot_bytes) <=
           options_.pinned_share_max * static_cast<double>(of);
  };
  return fits(pinned_bytes_, capacity) &&
         fits(tenant.pinned_bytes().load(std::memory_order_relaxed),
              std::min(capacity, tenant.host_bytes_max()));
}

bool PageStore::SetResidencyLocked(PageRecord& record, Residency residency) {
  const bool pin = residency == Residency::kPinned;
  if (residency == Residency::kUnspecified || pin == record.pinned) return true;
  Tenant& tenant = record.space->tenant();
  const uint64_t bytes = record.slot_bytes();
  if (pin && !MayPinLocked(tenant, bytes)) return false;
  record.pinned = pin;
  pinned_bytes_ = pin ? pinned_bytes_ + bytes : pinned_bytes_ - bytes;
  if (pin)
    tenant.pinned_bytes().fetch_add(bytes, std::memory_order_relaxed);
  else
    tenant.pinned_bytes().fetch_sub(bytes, std::memory_order_relaxed);
  OfferLocked(record);
  return true;
}

void PageStore::FreeLocked(PageRecord& record) {
  ReleaseSlot(*record.space, {record.slot_offset, record.slot_bytes()});
  records_.Free(record);
}

bool PageStore::RemoveTree(PageRecord& root, RemoveReason root_reason, RemoveReason below_reason) {
  for (;;) {
    absl::MutexLock lock(&tree_mutex_);
    PageRecord* page = &root;
    for (uint32_t removed = 0; removed < kRemovalsPerLock; ++removed) {
      if (!root.in_index) return false;
      while (!IsLeaf(*page)) page = &records_.Get(page->first_child);
      if (page == &root) return RemoveLocked(root, root_reason);
      PageRecord* parent = &records_.Get(page->parent);
      RemoveLocked(*page, below_reason);
      page = parent;
    }
  }
}

bool PageStore::DropCorrupt(PageRecord& pinned, Encoding bad) {
  bool replaced = false;
  {
    absl::MutexLock lock(&tree_mutex_);
    replaced = pinned.in_index && pinned.encoding != bad;
  }
  // The form that replaced it was made of sound bytes, and others lease it.
  if (!replaced && !RemoveTree(pinned, RemoveReason::kCorrupt, RemoveReason::kOrphaned))
    return false;
  counters_.corrupt_pages.fetch_add(1, std::memory_order_relaxed);
  return true;
}

void PageStore::TellCorrupt(std::string_view fingerprint, std::string_view key, TierKind tier,
                            CorruptAt at, const absl::Status& error) const {
  if (options_.on_corrupt == nullptr) return;
  const std::string message(error.message());
  options_.on_corrupt({.fingerprint = fingerprint,
                       .key = key,
                       .tier = tier,
                       .at = at,
                       .block = BadBlockOf(error),
                       .error = message});
}

void PageStore::OnCorruptArchived(const ArchiveCorruption& page) {
  if (const Namespace* space = FindNamespace(page.fingerprint); space != nullptr) {
    absl::MutexLock lock(&tree_mutex_);
    // Unless it is in memory, or was put and written anew meanwhile.
    if (FindLocked(*space, page.key) == nullptr && !IsArchived(*space, page.key)) {
      space->tenant().dropped().Remember(index_.Probe(*space, page.key).hash, ItemStatus::kCorrupt);
    }
  }
  const absl::Status block = BadBlockIn(page);
  TellCorrupt(page.fingerprint, page.key, TierKind::kDisk, page.at,
              block.ok() ? page.error : block);
}

absl::Status PageStore::BadBlockIn(const ArchiveCorruption& page) const {
  const Namespace* space = FindNamespace(page.fingerprint);
  if (space == nullptr || page.slot.size() != SlotBytes(*space, page.encoding))
    return absl::OkStatus();
  const PageLayout& layout = space->layout(page.encoding);
  return CheckAllBlocks(layout, page.slot.first(layout.page_bytes()),
                        CrcsBehind(page.slot, layout));
}

std::vector<ItemStatus> PageStore::Delete(const Namespace& space,
                                          std::span<const std::string_view> keys) {
  std::vector<ItemStatus> statuses;
  statuses.reserve(keys.size());
  for (const std::string_view key : keys) {
    const PageProbe probe = index_.Probe(space, key);
    bool archived = false;
    PinnedPage page;
    {
      // Under the lock under which pages leave memory, and enter it if they are archived still: the
      // page is here, or there, or nowhere, and does not change places.
      absl::MutexLock lock(&tree_mutex_);
      archived = IsArchived(space, key);
      if (archive_ != nullptr) ForgetArchived(space, key);
      index_.Read(probe, [&](PageRecord& record) { page = MakePinned(record); });
    }
    const bool removed =
        page && RemoveTree(*page.record_, RemoveReason::kDeleted, RemoveReason::kDeleted);
    statuses.push_back(removed || archived ? ItemStatus::kOk : AbsentStatus(probe));
  }
  return statuses;
}

ClearResult PageStore::Clear(const Namespace& space) {
  ClearResult result;
  if (archive_ != nullptr) result.removed = ClearArchive(space);
  result.removed += Sweep([&](const PageRecord& record) { return record.space == &space; },
                          RemoveReason::kDeleted);
  absl::MutexLock lock(&tree_mutex_);
  if (space.id() < space_pages_.size()) {
    const SpacePages& pages = space_pages_[space.id()];
    result.kept = pages.wide + pages.packed;
  }
  return result;
}

size_t PageStore::ExpirePages() {
  const absl::Duration now = clock_.Now();
  std::vector<absl::Duration> ttls;
  {
    absl::MutexLock lock(&tree_mutex_);
    if (now < expire_at_) return 0;
    ttls = page_ttls_;
    const absl::Duration least =
        ttls.empty() ? absl::InfiniteDuration() : *std::min_element(ttls.begin(), ttls.end());
    expire_at_ = now + std::clamp(least / 16, kExpireEveryMin, kExpireEveryMax);
    if (least == absl::InfiniteDuration()) return 0;
  }
  const uint64_t expired = Sweep(
      [&](const PageRecord& record) {
        const uint32_t id = record.space->id();
        return id < ttls.size() && now - absl::Seconds(record.used_at_s) >= ttls[id];
      },
      RemoveReason::kExpired);
  return expired + (archive_ == nullptr ? 0 : ExpireArchived(ttls));
}

uint64_t PageStore::ExpireArchived(std::span<const absl::Duration> ttls) {
  uint64_t expired = 0;
  for (const Namespace* space : Namespaces()) {
    if (space->id() >= ttls.size() || ttls[space->id()] == absl::InfiniteDuration()) continue;
    const auto unused_s = static_cast<uint32_t>(
        absl::ToInt64Seconds(absl::Ceil(ttls[space->id()], absl::Seconds(1))));
    PageArchive::Unused unused;
    do {
      unused = archive_->ListUnused(*space, NowSeconds(), unused_s, unused.cursor);
      for (std::string& key : unused.keys) {
        // A page with pages behind it goes when the last of them does.
        while (!key.empty()) {
          absl::MutexLock lock(&tree_mutex_);
          // In memory its time is another; and what is not there is not extended there, either.
          if (FindLocked(*space, key) != nullptr) break;
          auto [gone, parent] = archive_->ForgetUnused(*space, key, NowSeconds(), unused_s);
          if (!gone) break;
          space->tenant().dropped().Remember(index_.Probe(*space, key).hash, ItemStatus::kEvicted);
          ++expired;
          key = std::move(parent);
        }
      }
    } while (unused.cursor != 0);
  }
  if (expired > 0) archive_queue_->Nudge();
  return expired;
}

uint64_t PageStore::Sweep(absl::FunctionRef<bool(const PageRecord&)> removable,
                          RemoveReason reason) {
  uint64_t removed_in_all = 0;
  const auto goes = [&](const PageRecord& record) {
    return record.in_index && IsLeaf(record) &&
           !page_state::IsHeld(record.state.load(std::memory_order_acquire)) && removable(record);
  };
  // A page with children goes when its last child does: from every place, up as far as it goes.
  PageId next = 0;
  PageId page = kNoPage;
  for (bool more = true; more;) {
    absl::MutexLock lock(&tree_mutex_);
    uint32_t places = 0;
    uint32_t removed = 0;
    while (places < kPlacesPerLock && removed < kRemovalsPerLock) {
      if (page == kNoPage) {
        more = next < records_.end();
        if (!more) break;
        page = next++;
        ++places;
      }
      PageRecord& record = records_.Get(page);
      const PageId parent = record.parent;
      const bool gone = goes(record) && RemoveLocked(record, reason);
      page = gone ? parent : kNoPage;
      removed += gone ? 1 : 0;
    }
    removed_in_all += removed;
  }
  return removed_in_all;
}

}  // namespace oscarkv
