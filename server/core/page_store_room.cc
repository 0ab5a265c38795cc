// Making room: eviction in the policy's order, and moving pages when the free memory lies in
// regions of another slot size.
#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "server/core/page_store.h"

namespace oscarkv {
namespace {

// Pages evicted in one hold of the tree lock.
constexpr uint32_t kEvictionsPerLock = 32;
// For so long a quota that was lowered waits for WIDE pages to be re-encoded before pages go for
// it.
constexpr absl::Duration kReEncodingFirst = absl::Seconds(10);
// Room for re-encoding is kept before there is anything to re-encode with in a memory of so many
// WIDE pages and more: it is a small part of that.
constexpr uint64_t kPagesToKeepRoom = 256;
constexpr char kBeingMade[] = "room is being made: WIDE pages are being re-encoded";
constexpr char kNotAdmitted[] = "not admitted: what would have to go is worth more";

}  // namespace

uint64_t PageStore::SlotBytes(const Namespace& space, Encoding form) {
  return space.page_bytes(form) + uint64_t{space.spec().geometry.blocks()} * sizeof(uint32_t);
}

bool PageStore::CanShrinkRegionOf(const Namespace& space) const {
  return tier_->CanShrinkRegion(SlotBytes(space, Encoding::kWide),
                                SlotBytes(space, Encoding::kPacked));
}

bool PageStore::LeavesRoomWhileBitsGo(const Namespace& space) {
  // What others may claim of their shares, up to half of what re-encoding ahead of need frees.
  const auto leaves_shares = [&] {
    const TierStats tier = tier_->Stats();
    const auto free = static_cast<double>(tier.free_bytes + tier.stranded_bytes);
    return free >= options_.reencode_free_share / 2 * static_cast<double>(tier.capacity_bytes) ||
           space.tenant().Excess() == 0.0 ||
           free >= static_cast<double>(tenants_.UnclaimedShares(space.tenant()));
  };
  if (!space.holds(Encoding::kPacked) || (CanShrinkRegionOf(space) && leaves_shares())) return true;
  absl::MutexLock lock(&tree_mutex_);
  return !ladder_.HasWork();
}

bool PageStore::KeepsRoomForCodec(const Namespace& space) const {
  if (tier_->capacity_bytes() < kPagesToKeepRoom * SlotBytes(space, Encoding::kWide)) return false;
  absl::MutexLock lock(&tree_mutex_);
  return ladder_.CodecOf(space) == nullptr;
}

void PageStore::ReleaseSlot(const Namespace& space, const TierSlot& slot) {
  tier_->Release(slot);
  space.tenant().GiveBackHost(slot.bytes);
}

PageStore::Room PageStore::TakeQuota(const Eviction& eviction, uint64_t bytes,
                                     uint32_t* work_left) {
  Tenant& tenant = eviction.asker;
  bool taken = tenant.TakeHost(bytes);
  if (!taken) {
    CallForReEncoding(bytes, &tenant);
    if (eviction.page_of != nullptr && !tenant.IsAtHostPages() && BitsGoFirst(tenant, true))
      return {.result = {ItemStatus::kBusy, kBeingMade}, .slot = {}};
  }
  while (!taken && *work_left > 0) {
    const Evicted evicted =
        EvictSome(eviction, work_left, [&] { return taken = tenant.TakeHost(bytes); });
    if (evicted == Evicted::kRefused)
      return {.result = {ItemStatus::kNoSpace, kNotAdmitted}, .slot = {}, .refused = true};
    if (evicted == Evicted::kNone && ExpireLeases() == 0) break;
  }
  if (taken) return {};
  if (!tenant.IsAtHostPages() && MayShrink(&tenant))
    return {.result = {ItemStatus::kBusy, kBeingMade}, .slot = {}};
  tenant.CountRefused();
  return {.result = {ItemStatus::kQuota, tenant.HostQuotaMet(bytes)}, .slot = {}};
}

PageStore::Room PageStore::ReserveSlot(const Namespace& space, const PageTraits& page,
                                       Admission admission) {
  const bool is_put = admission == Admission::kByPolicy;
  Eviction eviction{.asker = space.tenant(),
                    .own_only = true,
                    .judged = is_put ? &page : nullptr,
                    .page_of = &space};
  uint32_t work_left = options_.evictions_per_put_max;
  Room room = TakeQuota(eviction, page.bytes, &work_left);
  if (!room.result.ok()) return room;
  eviction.own_only = false;
  room = ReserveInTier(eviction, page.bytes, &work_left);
  if (!room.result.ok()) space.tenant().GiveBackHost(page.bytes);
  return room;
}

PageStore::Room PageStore::ReserveInTier(const Eviction& eviction, uint64_t bytes,
                                         uint32_t* work_left) {
  absl::StatusOr<TierSlot> slot;
  // What a region is to be freed for.
  uint64_t slot_bytes = bytes;
  const Namespace* const space = eviction.page_of;
  const auto leave = [&] {
    tier_->Release(*slot);
    slot = absl::ResourceExhaustedError("what is free is kept to re-encode WIDE pages");
  };
  const auto reserve = [&] {
    slot = tier_->Reserve(bytes);
    if (!slot.ok() || space == nullptr || LeavesRoomWhileBitsGo(*space)) return;
    leave();
    slot_bytes = SlotBytes(*space, Encoding::kPacked);
  };
  reserve();
  const bool keeps_room = space != nullptr && space->holds(Encoding::kPacked) &&
                          (!slot.ok() || !CanShrinkRegionOf(*space)) && KeepsRoomForCodec(*space);
  if (slot.ok() && keeps_room) leave();
  const auto take = [&] {
    slot = tier_->Reserve(bytes);
    if (slot.ok() && keeps_room && !CanShrinkRegionOf(*space)) leave();
  };
  if (absl::IsResourceExhausted(slot.status()) && !eviction.re_encodes) {
    CallForReEncoding(bytes, nullptr);
    if (space != nullptr && BitsGoFirst(eviction.asker, false)) {
      // Pages that became smaller may have left a region nearly empty.
      if (FreeRegion(slot_bytes)) reserve();
      if (absl::IsResourceExhausted(slot.status()))
        return {.result = {ItemStatus::kBusy, kBeingMade}, .slot = {}};
    } else {
      take();
    }
  }
  while (absl::IsResourceExhausted(slot.status()) && *work_left > 0) {
    if (FreeRegion(bytes)) {
      --*work_left;
      take();
      continue;
    }
    const Evicted evicted = EvictSome(eviction, work_left, [&] {
      take();
      // Room in another size: perhaps enough now to free a region.
      return slot.ok() || tier_->Stats().stranded_bytes >= bytes;
    });
    if (evicted == Evicted::kRefused) {
      slot = absl::AbortedError(kNotAdmitted);
      break;
    }
    // Leases past their time are held by nobody who may mind.
    if (evicted == Evicted::kNone && ExpireLeases() == 0) break;
  }
  // Nothing may go: what was kept is better used than not.
  if (absl::IsResourceExhausted(slot.status()) && keeps_room) slot = tier_->Reserve(bytes);
  if (slot.ok()) return {.result = {}, .slot = *slot};
  // Nothing may go, as when one sequence fills all memory; but pages may become smaller.
  if (!absl::IsAborted(slot.status()) && !eviction.re_encodes && MayShrink(nullptr))
    return {.result = {ItemStatus::kBusy, kBeingMade}, .slot = {}};
  return {.result = {ItemStatus::kNoSpace, std::string(slot.status().message())},
          .slot = {},
          .refused = absl::IsAborted(slot.status())};
}

PageStore::Evicted PageStore::EvictSome(const Eviction& eviction, uint32_t* work_left,
                                        absl::FunctionRef<bool()> enough) {
  absl::MutexLock lock(&tree_mutex_);
  const absl::Duration now = clock_.Now();
  Evicted evicted = Evicted::kNone;
  for (uint32_t work = 0; work < kEvictionsPerLock && *work_left != 0; ++work) {
    const auto victim = eviction_.Next(eviction.asker, eviction.own_only, now);
    if (!victim.has_value()) break;
    // Of two pages of one tenant its policy says which is worth more; between tenants it is who
    // holds more than its share that counts.
    if (eviction.judged != nullptr && victim->tenant == &eviction.asker &&
        !eviction_.Admits(eviction.asker, *eviction.judged) &&
        !WillBeArchived(eviction.asker, *eviction.judged))
      return Evicted::kRefused;
    evicted = Evicted::kSome;
    --*work_left;
    PageRecord& record = records_.Get(victim->page);
    if (!page_state::IsHeld(record.state.load(std::memory_order_acquire)) &&
        AwaitsArchiving(record, now))
      continue;
    const bool ahead = ladder_.HasWork(eviction.own_only ? &eviction.asker : nullptr);
    if (RemoveLocked(record, RemoveReason::kEvicted)) {
      if (ahead) ++ladder_stats_.evicted_ahead;
      if (!enough()) continue;
      return Evicted::kEnough;
    }
    // Held: out of the policy's way until the last holder lets go. Unless that has just happened.
    uint64_t state = record.state.load(std::memory_order_acquire);
    while (page_state::IsHeld(state)) {
      if (!record.state.compare_exchange_weak(state, state | page_state::kParked,
                                              std::memory_order_acq_rel))
        continue;
      eviction_.SetEvictable(*victim->tenant, record.id, false);
      break;
    }
  }
  return evicted;
}

void PageStore::SetQuotas(TenantQuotas quotas) {
  tenants_.SetQuotas(std::move(quotas));
  quotas_set_at_.store(clock_.Now() / absl::Nanoseconds(1), std::memory_order_relaxed);
  EnforceQuotas();
}

size_t PageStore::EnforceQuotas() {
  size_t went = 0;
  const absl::Duration set_at = absl::Nanoseconds(quotas_set_at_.load(std::memory_order_relaxed));
  const bool bits_first = clock_.Now() - set_at < kReEncodingFirst;
  for (Tenant* tenant : tenants_.All()) {
    // Bits go before pages do, where it is bytes that are too many.
    if (bits_first && tenant->IsOverHost() && !tenant->IsOverHostPages() && MayShrink(tenant))
      continue;
    Evicted evicted = Evicted::kSome;
    while (evicted == Evicted::kSome && tenant->IsOverHost()) {
      uint32_t work_left = kEvictionsPerLock;
      const uint64_t before = tenant->Stats().evicted_pages;
      evicted =
          EvictSome({*tenant, true, nullptr}, &work_left, [&] { return !tenant->IsOverHost(); });
      went += tenant->Stats().evicted_pages - before;
    }
  }
  return went;
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
  Encoding form{};
  {
    absl::MutexLock lock(&tree_mutex_);
    if (!record.in_index) return !page_state::IsHeld(record.state.load(std::memory_order_acquire));
    from = {record.slot_offset, record.slot_bytes()};
    form = record.encoding;
    // A pin keeps the page while the lock is not held; readers may come meanwhile.
    index_.Write(record,
                 [&] { record.state.fetch_add(page_state::kPin, std::memory_order_acq_rel); });
  }
  const absl::StatusOr<TierSlot> to = tier_->Reserve(from.bytes);
  if (to.ok()) std::memcpy(tier_->Map(*to).data(), tier_->Map(from).data(), from.bytes);

  absl::MutexLock lock(&tree_mutex_);
  bool moved = false;
  if (to.ok() && record.in_index && record.encoding == form) {
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
  // Re-encoded meanwhile, its old slot goes with this pin, if nobody else reads it.
  const bool gone = !record.in_index || record.encoding != form;
  LetGoLocked(record, form);
  return moved || gone;
}

}  // namespace oscarkv
