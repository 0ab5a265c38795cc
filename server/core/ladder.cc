#include "server/core/ladder.h"

#include <algorithm>
#include <array>

namespace oscarkv {
namespace {

// Pages that a sequence grows by until a page at its end is outgrown.
uint64_t TailPages(const Namespace& space) {
  const uint64_t tokens = space.page_tokens();
  return (space.spec().codec.recent_tokens + tokens - 1) / tokens;
}

}  // namespace

Ladder::Ladder(const RecordTable& records, StoreWide first_mode, double tail_share_max,
               uint64_t capacity_bytes)
    : records_(records),
      first_mode_(first_mode),
      tail_share_max_(tail_share_max),
      capacity_bytes_(capacity_bytes) {
  shelves_.Add(kParkedShelf + 1);
  const std::array<double, kParkedShelf + 1> same{};
  shelves_.Rank(same);
}

Ladder::Holder& Ladder::HolderOf(const Tenant& tenant) {
  if (tenant.id() >= holders_.size()) {
    holders_.resize(tenant.id() + size_t{1});
    shelves_.Add(ShelfOf(static_cast<uint32_t>(holders_.size()), Rung::kPast) - shelves_.size());
    const std::vector<double> same(shelves_.size());
    shelves_.Rank(same);
  }
  Holder& holder = holders_[tenant.id()];
  holder.tenant = &tenant;
  return holder;
}

ShelfId Ladder::ShelfOf(const PageRecord& record) {
  return record.rung == Rung::kDue ? kDueShelf : ShelfOf(record.space->tenant().id(), record.rung);
}

Ladder::Space& Ladder::SpaceOf(const Namespace& space) {
  if (spaces_.size() <= space.id()) spaces_.resize(space.id() + size_t{1}, Space{first_mode_});
  return spaces_[space.id()];
}

bool Ladder::SetMode(const Namespace& space, StoreWide mode) {
  Space& mine = SpaceOf(space);
  const bool changed = mine.mode != mode;
  mine.mode = mode;
  return changed && mine.codec != nullptr;
}

bool Ladder::SetCodec(const Namespace& space, const PageCodec* codec) {
  // Where a PACKED page is not smaller, there is nothing to win.
  if (!space.holds(Encoding::kPacked) ||
      space.page_bytes(Encoding::kPacked) >= space.page_bytes(Encoding::kWide))
    return false;
  Space& mine = SpaceOf(space);
  const bool changed = mine.codec != codec;
  mine.codec = codec;
  return changed;
}

const PageCodec* Ladder::CodecOf(const Namespace& space) const {
  return space.id() < spaces_.size() ? spaces_[space.id()].codec : nullptr;
}

StoreWide Ladder::ModeOf(const Namespace& space) const {
  return space.id() < spaces_.size() ? spaces_[space.id()].mode : first_mode_;
}

// --- Rungs ---

bool Ladder::MayPack(const PageRecord& record) {
  return record.encoding == Encoding::kWide && CodecOf(*record.space) != nullptr &&
         record.first_position >= record.space->spec().codec.sink_tokens;
}

void Ladder::SetRung(PageRecord& record, Rung rung) {
  const auto count = [&](Rung which, auto&& change) {
    if (which == Rung::kNone) return;
    change(pages_[static_cast<size_t>(which)], 1);
    if (IsTail(which)) change(SpaceOf(*record.space).tails, 1);
    if (which != Rung::kTail) return;
    const uint64_t bytes = record.slot_bytes(Encoding::kWide);
    change(tail_bytes_, bytes);
    change(HolderOf(record.space->tenant()).tail_bytes, bytes);
  };
  count(record.rung, [](uint64_t& sum, uint64_t by) { sum -= by; });
  count(rung, [](uint64_t& sum, uint64_t by) { sum += by; });
  record.rung = rung;
}

void Ladder::Place(PageRecord& record) {
  if (!MayPack(record)) return;
  const StoreWide mode = SpaceOf(*record.space).mode;
  const bool tail = mode != StoreWide::kNever && TailPages(*record.space) > 0;
  const bool waits = mode == StoreWide::kUntilPressure;
  SetRung(record,
          tail ? (waits ? Rung::kLooseTail : Rung::kTail) : (waits ? Rung::kPast : Rung::kDue));
  HolderOf(record.space->tenant());
  shelves_.GrowTo(record.id + 1);
  shelves_.Put(record.id, ShelfOf(record));
}

bool Ladder::OnEnter(PageRecord& record) {
  Place(record);
  const bool grown = OnGrowth(record);
  return grown || record.rung == Rung::kDue;
}

void Ladder::Replace(PageRecord& record) {
  if (record.rung == Rung::kStays) return;
  if (record.rung != Rung::kNone) {
    if (!shelves_.Holds(record.id)) return;  // under way
    shelves_.Take(record.id);
    SetRung(record, Rung::kNone);
  }
  Place(record);
}

bool Ladder::OnGrowth(const PageRecord& record) {
  if (CodecOf(*record.space) == nullptr || SpaceOf(*record.space).tails == 0) return false;
  const PageRecord* above = &record;
  for (uint64_t i = TailPages(*record.space); i > 0; --i) {
    if (above->parent == kNoPage) return false;
    above = &records_.Get(above->parent);
  }
  PageRecord& outgrown = records_.Get(above->id);
  if (!IsTail(outgrown.rung)) return false;
  const bool due = outgrown.rung == Rung::kTail;
  SetRung(outgrown, due ? Rung::kDue : Rung::kPast);
  if (!shelves_.Holds(outgrown.id)) return false;  // under way
  shelves_.Take(outgrown.id);
  shelves_.Put(outgrown.id, ShelfOf(outgrown));
  return due;
}

void Ladder::Leave(PageRecord& record, Rung rung) {
  if (record.rung != Rung::kNone && record.rung != Rung::kStays) {
    if (shelves_.Holds(record.id))
      shelves_.Take(record.id);
    else
      --under_way_;
  }
  SetRung(record, rung);
}

// --- Order ---

bool Ladder::HasTooMuchTail(const Holder& holder) const {
  const auto most = [&](uint64_t of) { return tail_share_max_ * static_cast<double>(of); };
  const uint64_t own = std::min(capacity_bytes_, holder.tenant->host_bytes_max());
  return static_cast<double>(tail_bytes_) > most(capacity_bytes_) ||
         static_cast<double>(holder.tail_bytes) > most(own);
}

std::optional<ShelfId> Ladder::NextOf(const Holder& holder) const {
  if (holder.tenant == nullptr) return std::nullopt;
  const uint32_t tenant = holder.tenant->id();
  for (const Rung rung : {Rung::kPast, Rung::kLooseTail})
    if (!IsEmpty(ShelfOf(tenant, rung))) return ShelfOf(tenant, rung);
  const ShelfId tails = ShelfOf(tenant, Rung::kTail);
  if (!IsEmpty(tails) && HasTooMuchTail(holder)) return tails;
  return std::nullopt;
}

std::optional<ShelfId> Ladder::NextShelf(IsShort is_short) const {
  if (HasDue()) return kDueShelf;
  std::optional<ShelfId> next;
  double most = -1.0;
  for (const Holder& holder : holders_) {
    const std::optional<ShelfId> shelf = NextOf(holder);
    if (!shelf.has_value() || !is_short(*holder.tenant)) continue;
    const double excess = holder.tenant->Excess();
    if (excess <= most) continue;
    next = shelf;
    most = excess;
  }
  return next;
}

bool Ladder::HasWork(const Tenant* tenant) const {
  if (under_way_ > 0 || HasDue()) return true;
  return std::any_of(holders_.begin(), holders_.end(), [&](const Holder& holder) {
    return (tenant == nullptr || holder.tenant == tenant) && NextOf(holder).has_value();
  });
}

bool Ladder::HasNextOf(const Tenant& tenant) const {
  return std::any_of(holders_.begin(), holders_.end(), [&](const Holder& holder) {
    return holder.tenant == &tenant && NextOf(holder).has_value();
  });
}

PageRecord* Ladder::Take(IsShort is_short) {
  const std::optional<ShelfId> shelf = NextShelf(is_short);
  if (!shelf.has_value()) return nullptr;
  PageRecord& record = records_.Get(shelves_.Front(*shelf));
  shelves_.Take(record.id);
  ++under_way_;
  return &record;
}

void Ladder::PutBack(PageRecord& record) {
  --under_way_;
  shelves_.PutFirst(record.id, ShelfOf(record));
}

void Ladder::Park(PageRecord& record) {
  --under_way_;
  shelves_.Put(record.id, kParkedShelf);
}

void Ladder::Unpark(PageRecord& record) {
  if (record.rung == Rung::kNone || record.rung == Rung::kStays || !shelves_.Holds(record.id))
    return;
  shelves_.Take(record.id);
  shelves_.PutFirst(record.id, ShelfOf(record));
}

// --- Wants ---

void Ladder::Want(const Tenant& tenant, uint64_t bytes) {
  uint64_t& wanted = HolderOf(tenant).wanted;
  wanted = std::max(wanted, bytes);  // whoever was told so asks again
}

bool Ladder::Wants(const Tenant& tenant) const {
  return tenant.id() < holders_.size() && holders_[tenant.id()].wanted > 0;
}

void Ladder::OnWon(const Tenant& tenant, uint64_t bytes) {
  Holder& holder = HolderOf(tenant);
  holder.wanted -= std::min(holder.wanted, bytes);
}

void Ladder::ForgetWants() {
  for (Holder& holder : holders_) holder.wanted = 0;
}

uint64_t Ladder::memory_bytes() const {
  return shelves_.memory_bytes() + spaces_.capacity() * sizeof(Space) +
         holders_.capacity() * sizeof(Holder);
}

}  // namespace oscarkv
