// Re-encoding WIDE -> PACKED in place: the record stays, the slot is another. What it costs and
// when it happens is the ReEncoder's; which page is next, the Ladder's.
#include <algorithm>

#include "server/core/page_store.h"

namespace oscarkv {
namespace {

// For so long puts wait for room that re-encoding makes, while it makes none.
constexpr absl::Duration kStalled = absl::Seconds(1);

}  // namespace

// --- Rules ---

void PageStore::SetStoreWide(const Namespace& space, StoreWide mode) {
  {
    absl::MutexLock lock(&tree_mutex_);
    if (!ladder_.SetMode(space, mode)) return;
  }
  Replace(space);
}

void PageStore::SetCodec(const Namespace& space, const PageCodec* codec) {
  {
    absl::MutexLock lock(&tree_mutex_);
    if (!ladder_.SetCodec(space, codec)) return;
  }
  Replace(space);
}

void PageStore::Replace(const Namespace& space) {
  const auto visit_all = [&](auto&& visit) {
    PageId next = 0;
    for (bool more = true; more;) {
      absl::MutexLock lock(&tree_mutex_);
      const PageId stop = std::min(records_.end(), next + kPlacesPerLock);
      for (; next < stop; ++next) {
        PageRecord& record = records_.Get(next);
        if (record.in_index && record.space == &space) visit(record);
      }
      more = next < records_.end();
    }
  };
  visit_all([&](PageRecord& record)
                ABSL_EXCLUSIVE_LOCKS_REQUIRED(tree_mutex_) { ladder_.Replace(record); });
  visit_all([&](PageRecord& record)
                ABSL_EXCLUSIVE_LOCKS_REQUIRED(tree_mutex_) { ladder_.OnGrowth(record); });
  absl::MutexLock lock(&tree_mutex_);
  RingIfNeededLocked(ladder_.HasDue());
}

bool PageStore::IsShortLocked() const {
  if (wanted_bytes_ > 0) return true;
  // What a slot is larger than its page is nobody's.
  const TierStats tier = tier_->Stats();
  return static_cast<double>(tier.free_bytes + tier.stranded_bytes) <
         options_.reencode_free_share * static_cast<double>(tier.capacity_bytes);
}

bool PageStore::IsShortLocked(const Tenant& tenant) const {
  const double most =
      (1.0 - options_.reencode_free_share) * static_cast<double>(tenant.host_bytes_max());
  return ladder_.Wants(tenant) || static_cast<double>(tenant.host_bytes()) > most;
}

void PageStore::RingIfNeededLocked(bool due) {
  if (!due) {
    if (!ladder_.HasWork()) return;
    const bool is_short = IsShortLocked();
    due = ladder_.WouldTake([&](const Tenant& tenant) ABSL_EXCLUSIVE_LOCKS_REQUIRED(tree_mutex_) {
      return is_short || IsShortLocked(tenant);
    });
  }
  if (due) reencode_bell_.Ring();
}

// --- One page ---

PageStore::WidePage PageStore::TakeWide() {
  absl::MutexLock lock(&tree_mutex_);
  for (;;) {
    const bool is_short = IsShortLocked();
    PageRecord* const record =
        ladder_.Take([&](const Tenant& tenant) ABSL_EXCLUSIVE_LOCKS_REQUIRED(tree_mutex_) {
          return is_short || IsShortLocked(tenant);
        });
    if (record == nullptr) {
      // Nothing more can be won.
      wanted_bytes_ = 0;
      stalled_since_.reset();
      ladder_.ForgetWants();
      return {};
    }
    if (page_state::IsLeased(record->state.load(std::memory_order_acquire))) {
      ParkLeasedLocked(*record);
      continue;
    }
    return {PinRecordLocked(*record), ladder_.CodecOf(*record->space)};
  }
}

void PageStore::ParkLeasedLocked(PageRecord& record) {
  uint64_t state = record.state.load(std::memory_order_acquire);
  while (page_state::IsLeased(state)) {
    if (!record.state.compare_exchange_weak(state, state | page_state::kAwaited,
                                            std::memory_order_acq_rel))
      continue;
    return ladder_.Park(record);
  }
  ladder_.PutBack(record);
}

void PageStore::CallForReEncoding(uint64_t bytes, const Tenant* tenant) {
  absl::MutexLock lock(&tree_mutex_);
  if (!ladder_.HasWork(tenant)) return;
  if (tenant != nullptr)
    ladder_.Want(*tenant, bytes);
  else
    wanted_bytes_ = std::max(wanted_bytes_, bytes);  // whoever was told so asks again
  RingIfNeededLocked(false);
}

bool PageStore::MayShrink(const Tenant* tenant) {
  absl::MutexLock lock(&tree_mutex_);
  // Of one tenant only what is its own: nothing that others do is to be seen.
  if (!(tenant == nullptr ? ladder_.HasWork() : ladder_.HasNextOf(*tenant))) return false;
  RingIfNeededLocked(false);
  return true;
}

bool PageStore::BitsGoFirst(const Tenant& asker, bool own_only) {
  absl::MutexLock lock(&tree_mutex_);
  if (own_only ? !ladder_.HasNextOf(asker) : !ladder_.HasWork() || asker.Excess() == 0.0)
    return false;
  const absl::Duration now = clock_.Now();
  if (!stalled_since_.has_value()) stalled_since_ = now;
  if (now - *stalled_since_ >= kStalled) return false;
  RingIfNeededLocked(false);
  return true;
}

absl::StatusOr<TierSlot> PageStore::ReservePacked(const PinnedPage& wide) {
  // Re-encoding frees more than it takes: pages go for it, where nothing else is left.
  const PageRecord& record = *wide.record_;
  uint32_t work_left = options_.evictions_per_put_max;
  const Room room = ReserveInTier({.asker = record.space->tenant(), .re_encodes = true},
                                  record.slot_bytes(Encoding::kPacked), &work_left);
  if (room.result.ok()) return room.slot;
  return absl::ResourceExhaustedError(room.result.message);
}

bool PageStore::SwapForm(const PinnedPage& wide, const TierSlot& packed) {
  PageRecord& record = *wide.record_;
  absl::MutexLock lock(&tree_mutex_);
  if (!record.in_index) {
    tier_->Release(packed);
    return false;
  }
  const TierSlot old{record.slot_offset, record.slot_bytes()};
  uint64_t readers = 0;
  index_.Write(record, [&] {
    // From here on whoever lets go waits for the tree lock, so the count stays.
    const uint64_t state = record.state.fetch_or(page_state::kRetired, std::memory_order_acq_rel);
    if (page_state::IsLeased(state)) {
      record.state.fetch_and(~page_state::kRetired, std::memory_order_acq_rel);
      return;
    }
    readers = page_state::Pins(state);  // the caller's among them
    record.encoding = Encoding::kPacked;
    record.slot_offset = packed.offset;
  });
  if (readers == 0) {
    tier_->Release(packed);
    ParkLeasedLocked(record);
    return false;
  }
  retired_[record.id] = {old, readers};
  retired_bytes_ += old.bytes;
  tier_->SetOwner(old, kNoTierSlotOwner);
  tier_->SetOwner(packed, record.id);
  // A copy has the bytes of before.
  if (copies_ != nullptr) copies_->OnRemove(record);
  const bool due = record.rung == Rung::kDue;
  ladder_.OnLeave(record);
  if (due) ArchiveNewForm(record);

  const uint64_t freed = old.bytes - packed.bytes;
  if (record.pinned) {
    pinned_bytes_ -= freed;
    record.space->tenant().pinned_bytes().fetch_sub(freed, std::memory_order_relaxed);
  }
  SpacePages& pages = space_pages_[record.space->id()];
  --pages.wide;
  ++pages.packed;
  ++(due ? ladder_stats_.due_pages : ladder_stats_.pressed_pages);
  ladder_stats_.freed_bytes += freed;
  wanted_bytes_ -= std::min(wanted_bytes_, freed);
  stalled_since_.reset();
  ladder_.OnWon(record.space->tenant(), freed);
  return true;
}

void PageStore::LeaveRetiredLocked(PageRecord& record) {
  const auto retired = retired_.find(record.id);
  if (--retired->second.pins > 0) return;
  tier_->Release(retired->second.slot);
  record.space->tenant().ShrinkHost(retired->second.slot.bytes - record.slot_bytes());
  retired_bytes_ -= retired->second.slot.bytes;
  retired_.erase(retired);
  record.state.fetch_and(~page_state::kRetired, std::memory_order_acq_rel);
}

void PageStore::KeepWide(const PinnedPage& wide, std::optional<StaysWide> why) {
  PageRecord& record = *wide.record_;
  absl::MutexLock lock(&tree_mutex_);
  if (!why.has_value()) {
    ++ladder_stats_.no_room;
    if (record.in_index) ladder_.PutBack(record);
    return;
  }
  ++ladder_stats_.stays_wide[static_cast<size_t>(*why)];
  if (!record.in_index) return;
  const bool due = record.rung == Rung::kDue;
  ladder_.Keep(record);
  if (due) ArchiveNewForm(record);
}

void PageStore::FillLadderStatsLocked(LadderStats* stats) const {
  *stats = ladder_stats_;
  stats->retired_slots = retired_.size();
  stats->retired_bytes = retired_bytes_;
  stats->waiting_due = ladder_.pages(Rung::kDue);
  stats->waiting_past = ladder_.pages(Rung::kPast);
  stats->waiting_tail = ladder_.pages(Rung::kTail) + ladder_.pages(Rung::kLooseTail);
}

}  // namespace oscarkv
