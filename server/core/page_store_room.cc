// Making room: eviction in the policy's order, and moving pages when the free memory lies in
// regions of another slot size.
#include <cstring>

#include "server/core/page_store.h"

namespace oscarkv {
namespace {

// Pages evicted in one hold of the tree lock.
constexpr uint32_t kEvictionsPerLock = 32;

}  // namespace

absl::StatusOr<TierSlot> PageStore::ReserveSlot(const PageTraits& page, Admission admission) {
  const uint64_t bytes = page.bytes;
  absl::StatusOr<TierSlot> slot = tier_->Reserve(bytes);
  uint32_t work = 0;
  while (absl::IsResourceExhausted(slot.status()) && work < options_.evictions_per_put_max) {
    if (FreeRegion(bytes)) {
      ++work;
      slot = tier_->Reserve(bytes);
      continue;
    }
    const uint32_t done = EvictSome(page, admission, options_.evictions_per_put_max - work, &slot);
    work += done;
    if (absl::IsAborted(slot.status())) break;
    // Leases past their time are held by nobody who may mind.
    if (done == 0 && ExpireLeases() == 0) break;
  }
  return slot;
}

uint32_t PageStore::EvictSome(const PageTraits& page, Admission admission, uint32_t work_max,
                              absl::StatusOr<TierSlot>* slot) {
  absl::MutexLock lock(&tree_mutex_);
  const absl::Duration now = clock_.Now();
  uint32_t work = 0;
  while (work < work_max && work < kEvictionsPerLock) {
    const std::optional<PageId> victim = policy_->Victim(now);
    if (!victim.has_value()) break;
    if (admission == Admission::kByPolicy && !policy_->Admits(page)) {
      *slot = absl::AbortedError("not admitted: what would have to go is worth more");
      return 0;
    }
    ++work;
    PageRecord& record = records_.Get(*victim);
    if (RemoveLocked(record, RemoveReason::kEvicted)) {
      *slot = tier_->Reserve(page.bytes);
      if (slot->ok()) break;
      // Room in another size: perhaps enough now to free a region.
      if (tier_->Stats().stranded_bytes >= page.bytes) break;
      continue;
    }
    // Held: out of the policy's way until the last holder lets go. Unless that has just happened.
    uint64_t state = record.state.load(std::memory_order_acquire);
    while (page_state::IsHeld(state)) {
      if (!record.state.compare_exchange_weak(state, state | page_state::kParked,
                                              std::memory_order_acq_rel))
        continue;
      policy_->SetEvictable(record.id, false);
      break;
    }
  }
  return work;
}

bool PageStore::FreeRegion(uint64_t bytes) {
  std::vector<TierSlotOwner> owners;
  {
    absl::MutexLock lock(&tree_mutex_);
    if (moving_) return false;
    owners = tier_->BeginEvacuation(bytes, [this](TierSlotOwner owner) {
      const PageRecord& record = records_.Get(owner);
      return record.in_index && page_state::Pins(record.state.load(std::memory_order_acquire)) == 0;
    });
    if (owners.empty()) return false;
    moving_ = true;
  }
  bool freed = true;
  for (const TierSlotOwner owner : owners) {
    freed = MovePage(owner);
    if (!freed) break;
  }
  tier_->EndEvacuation();
  absl::MutexLock lock(&tree_mutex_);
  moving_ = false;
  return freed;
}

bool PageStore::MovePage(PageId page) {
  PageRecord& record = records_.Get(page);
  TierSlot from;
  {
    absl::MutexLock lock(&tree_mutex_);
    if (!record.in_index) return !page_state::IsHeld(record.state.load(std::memory_order_acquire));
    from = {record.slot_offset, record.slot_bytes()};
    // A pin keeps the page while the lock is not held; readers may come meanwhile.
    index_.Write(record,
                 [&] { record.state.fetch_add(page_state::kPin, std::memory_order_acq_rel); });
  }
  const absl::StatusOr<TierSlot> to = tier_->Reserve(from.bytes);
  if (to.ok()) std::memcpy(tier_->Map(*to).data(), tier_->Map(from).data(), from.bytes);

  absl::MutexLock lock(&tree_mutex_);
  bool moved = false;
  if (to.ok() && record.in_index) {
    index_.Write(record, [&] {
      if (page_state::Pins(record.state.load(std::memory_order_acquire)) != 1) return;
      record.slot_offset = to->offset;
      moved = true;
    });
  }
  if (moved) {
    tier_->SetOwner(*to, page);
    tier_->Release(from);
    counters_.moved_pages.fetch_add(1, std::memory_order_relaxed);
    counters_.moved_bytes.fetch_add(from.bytes, std::memory_order_relaxed);
  } else if (to.ok()) {
    tier_->Release(*to);
  }
  const bool gone = !record.in_index;
  LetGoLocked(record, page_state::kPin);
  return moved || gone;
}

}  // namespace oscarkv
