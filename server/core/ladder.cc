#include "server/core/ladder.h"

#include <algorithm>
#include <array>

namespace oscarkv {
namespace {

constexpr ShelfId kParked = kRungs;

// Pages that a sequence grows by until a page at its end is outgrown.
uint64_t TailPages(const Namespace& space) {
  const uint64_t tokens = space.page_tokens();
  return (space.spec().codec.recent_tokens + tokens - 1) / tokens;
}

}  // namespace

Ladder::Ladder(const RecordTable& records, StoreWide first_mode, uint64_t tail_bytes_max)
    : records_(records), first_mode_(first_mode), tail_bytes_max_(tail_bytes_max) {
  shelves_.Add(kParked + 1);
  const std::array<double, kParked + 1> same{};
  shelves_.Rank(same);
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
    if (which == Rung::kTail) change(tail_bytes_, record.slot_bytes(Encoding::kWide));
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
  shelves_.GrowTo(record.id + 1);
  shelves_.Put(record.id, ShelfOf(record.rung));
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
  shelves_.Put(outgrown.id, ShelfOf(outgrown.rung));
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

Rung Ladder::NextRung(bool memory_is_short) const {
  if (!IsEmpty(Rung::kDue)) return Rung::kDue;
  if (!memory_is_short) return Rung::kNone;
  for (const Rung rung : {Rung::kPast, Rung::kLooseTail})
    if (!IsEmpty(rung)) return rung;
  return tail_bytes_ > tail_bytes_max_ && !IsEmpty(Rung::kTail) ? Rung::kTail : Rung::kNone;
}

PageRecord* Ladder::Take(bool memory_is_short) {
  const Rung rung = NextRung(memory_is_short);
  if (rung == Rung::kNone) return nullptr;
  PageRecord& record = records_.Get(shelves_.Front(ShelfOf(rung)));
  shelves_.Take(record.id);
  ++under_way_;
  return &record;
}

void Ladder::PutBack(PageRecord& record) {
  --under_way_;
  shelves_.PutFirst(record.id, ShelfOf(record.rung));
}

void Ladder::Park(PageRecord& record) {
  --under_way_;
  shelves_.Put(record.id, kParked);
}

void Ladder::Unpark(PageRecord& record) {
  if (record.rung == Rung::kNone || record.rung == Rung::kStays || !shelves_.Holds(record.id))
    return;
  shelves_.Take(record.id);
  shelves_.PutFirst(record.id, ShelfOf(record.rung));
}

uint64_t Ladder::memory_bytes() const {
  return shelves_.memory_bytes() + spaces_.capacity() * sizeof(Space);
}

}  // namespace oscarkv
