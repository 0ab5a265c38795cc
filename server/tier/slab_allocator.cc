#include "server/tier/slab_allocator.h"

#include <algorithm>
#include <bit>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"

namespace oscarkv {
namespace {

constexpr uint64_t kUnitBytesMin = uint64_t{64} << 10;
constexpr uint64_t kUnitBytesMax = uint64_t{64} << 20;
constexpr uint64_t kUnitsWanted = 2048;
// A slab grows until at most 1/16 of it is left behind its last slot, but to no more units than
// these, or those of one slot.
constexpr uint64_t kWasteShare = 16;
constexpr uint64_t kSlabUnitsMax = 16;

uint64_t RoundUp(uint64_t bytes, uint64_t to) { return (bytes + to - 1) / to * to; }

}  // namespace

absl::StatusOr<SlabAllocator> SlabAllocator::Create(const SlabAllocatorOptions& options) {
  uint64_t unit = options.unit_bytes;
  if (unit == 0) {
    unit = std::clamp(std::bit_ceil(options.capacity_bytes / kUnitsWanted), kUnitBytesMin,
                      kUnitBytesMax);
  }
  if (unit % kTierSlotAlignment != 0) {
    return absl::InvalidArgumentError(absl::StrCat("slabs: unit_bytes must be a multiple of ",
                                                   kTierSlotAlignment, ", found ", unit));
  }
  const uint64_t units = options.capacity_bytes / unit;
  if (units == 0 || units >= kNone) {
    return absl::InvalidArgumentError(absl::StrCat("slabs: capacity must be at least one unit of ",
                                                   unit, " bytes and fewer than 2^32 - 1, found ",
                                                   options.capacity_bytes, " bytes"));
  }
  return SlabAllocator(unit, static_cast<uint32_t>(units));
}

SlabAllocator::SlabAllocator(uint64_t unit_bytes, uint32_t units)
    : unit_bytes_(unit_bytes), free_units_(units), units_(units, kNone) {}

// --- Slots ---

absl::StatusOr<TierSlot> SlabAllocator::Reserve(uint64_t bytes) {
  if (bytes == 0 || bytes > capacity_bytes()) {
    return absl::InvalidArgumentError(
        absl::StrCat("a slot of ", bytes, " bytes in a tier of ", capacity_bytes(), " bytes"));
  }
  const uint32_t class_index = ClassFor(RoundUp(bytes, kTierSlotAlignment));
  uint32_t index = classes_[class_index].first_partial;
  if (index == kNone) index = BeginSlab(class_index);
  if (index == kNone) {
    ++failed_reserves_;
    return absl::ResourceExhaustedError(absl::StrCat("no room for a page of ", bytes,
                                                     " bytes: ", used_bytes_, " of ",
                                                     capacity_bytes(), " bytes are in use"));
  }
  SizeClass& size_class = classes_[class_index];
  Slab& slab = slabs_[index];
  const uint32_t slot = slab.free_slots.back();
  slab.free_slots.pop_back();
  ++slab.used_slots;
  ++slab.unowned_slots;
  --size_class.free_slots;
  if (slab.free_slots.empty()) RemovePartial(index);
  used_bytes_ += bytes;
  ++reserved_slots_;
  return TierSlot{slab.first_unit * unit_bytes_ + slot * size_class.slot_bytes, bytes};
}

void SlabAllocator::Release(const TierSlot& slot) {
  SetOwner(slot, kNoTierSlotOwner);
  const uint32_t index = units_[slot.offset / unit_bytes_];
  Slab& slab = slabs_[index];
  SizeClass& size_class = classes_[slab.size_class];
  const bool was_full = slab.free_slots.empty();
  slab.free_slots.push_back(
      static_cast<uint32_t>((slot.offset - slab.first_unit * unit_bytes_) / size_class.slot_bytes));
  --slab.used_slots;
  --slab.unowned_slots;
  ++size_class.free_slots;
  used_bytes_ -= slot.bytes;
  --reserved_slots_;
  if (was_full && !slab.closed) PushPartial(index);
  if (slab.used_slots == 0) EndSlab(index);
}

void SlabAllocator::SetOwner(const TierSlot& slot, TierSlotOwner owner) {
  Slab& slab = slabs_[units_[slot.offset / unit_bytes_]];
  TierSlotOwner& place = slab.owners[(slot.offset - slab.first_unit * unit_bytes_) /
                                     classes_[slab.size_class].slot_bytes];
  if (place == kNoTierSlotOwner) --slab.unowned_slots;
  if (owner == kNoTierSlotOwner) ++slab.unowned_slots;
  place = owner;
}

// --- Slabs ---

uint32_t SlabAllocator::ClassFor(uint64_t slot_bytes) {
  const auto [found, added] =
      class_of_.try_emplace(slot_bytes, static_cast<uint32_t>(classes_.size()));
  if (added) classes_.push_back(MakeClass(slot_bytes));
  return found->second;
}

SlabAllocator::SizeClass SlabAllocator::MakeClass(uint64_t slot_bytes) const {
  const uint32_t units = SlabUnits(slot_bytes);
  return {.slot_bytes = slot_bytes,
          .slab_units = units,
          .slab_slots = static_cast<uint32_t>(units * unit_bytes_ / slot_bytes)};
}

uint32_t SlabAllocator::SlabUnits(uint64_t slot_bytes) const {
  const uint64_t least = RoundUp(slot_bytes, unit_bytes_) / unit_bytes_;
  const uint64_t most = std::min<uint64_t>(std::max(least, kSlabUnitsMax), units_.size());
  uint64_t best = least;
  for (uint64_t units = least; units <= most; ++units) {
    const uint64_t waste = units * unit_bytes_ % slot_bytes;
    if (waste * best < best * unit_bytes_ % slot_bytes * units) best = units;
    if (waste * kWasteShare <= units * unit_bytes_) break;
  }
  return static_cast<uint32_t>(best);
}

uint32_t SlabAllocator::FindRun(uint32_t count) const {
  if (free_units_ < count) return kNone;
  uint32_t run = 0;
  for (uint32_t unit = 0; unit < units_.size(); ++unit) {
    run = units_[unit] == kNone ? run + 1 : 0;
    if (run == count) return unit + 1 - count;
  }
  return kNone;
}

uint32_t SlabAllocator::BeginSlab(uint32_t class_index) {
  const SizeClass& size_class = classes_[class_index];
  const uint32_t first_unit = FindRun(size_class.slab_units);
  if (first_unit == kNone) return kNone;
  if (unused_slabs_.empty()) {
    unused_slabs_.push_back(static_cast<uint32_t>(slabs_.size()));
    slabs_.emplace_back();
  }
  const uint32_t index = unused_slabs_.back();
  unused_slabs_.pop_back();
  Slab& slab = slabs_[index];
  slab.size_class = class_index;
  slab.first_unit = first_unit;
  slab.units = size_class.slab_units;
  slab.owners.assign(size_class.slab_slots, kNoTierSlotOwner);
  slab.free_slots.resize(size_class.slab_slots);
  for (uint32_t i = 0; i < size_class.slab_slots; ++i)
    slab.free_slots[i] = size_class.slab_slots - 1 - i;
  std::fill_n(units_.begin() + first_unit, slab.units, index);
  free_units_ -= slab.units;
  classes_[class_index].free_slots += size_class.slab_slots;
  PushPartial(index);
  return index;
}

void SlabAllocator::EndSlab(uint32_t index) {
  Slab& slab = slabs_[index];
  if (IsPartial(slab)) RemovePartial(index);
  if (slab.closed) std::erase(closed_slabs_, index);
  classes_[slab.size_class].free_slots -= slab.free_slots.size();
  std::fill_n(units_.begin() + slab.first_unit, slab.units, kNone);
  free_units_ += slab.units;
  slab.closed = false;
  slab.size_class = kNone;
  slab.free_slots.clear();
  unused_slabs_.push_back(index);
}

void SlabAllocator::PushPartial(uint32_t index) {
  Slab& slab = slabs_[index];
  SizeClass& size_class = classes_[slab.size_class];
  // In front: a slab that was full a moment ago is the fullest, and the others may run empty.
  slab.previous = kNone;
  slab.next = size_class.first_partial;
  if (slab.next != kNone) slabs_[slab.next].previous = index;
  size_class.first_partial = index;
}

void SlabAllocator::RemovePartial(uint32_t index) {
  const Slab& slab = slabs_[index];
  if (slab.next != kNone) slabs_[slab.next].previous = slab.previous;
  if (slab.previous != kNone)
    slabs_[slab.previous].next = slab.next;
  else
    classes_[slab.size_class].first_partial = slab.next;
}

// --- Evacuation ---

bool SlabAllocator::WindowFrom(uint32_t first_unit, uint32_t count, Window* window) const {
  *window = {first_unit, first_unit, 0};
  while (window->end_unit - first_unit < count) {
    if (window->end_unit >= units_.size()) return false;
    const uint32_t index = units_[window->end_unit];
    if (index == kNone) {
      ++window->end_unit;
      continue;
    }
    const Slab& slab = slabs_[index];
    if (slab.unowned_slots > 0 || slab.closed) return false;
    window->end_unit += slab.units;
    window->used_bytes += slab.used_slots * classes_[slab.size_class].slot_bytes;
  }
  return true;
}

std::vector<uint32_t> SlabAllocator::SlabsIn(const Window& window) const {
  std::vector<uint32_t> slabs;
  for (uint32_t unit = window.first_unit; unit < window.end_unit;) {
    const uint32_t index = units_[unit];
    if (index != kNone) slabs.push_back(index);
    unit += index == kNone ? 1 : slabs_[index].units;
  }
  return slabs;
}

bool SlabAllocator::FitsElsewhere(const Window& window) const {
  // By size: slots in use in the window, and slots free in the window. Few sizes, so a plain list.
  std::vector<std::pair<uint32_t, uint64_t>> needed;
  for (const uint32_t index : SlabsIn(window)) {
    const Slab& slab = slabs_[index];
    auto place = std::find_if(needed.begin(), needed.end(),
                              [&](const auto& entry) { return entry.first == slab.size_class; });
    if (place == needed.end()) place = needed.insert(needed.end(), {slab.size_class, 0});
    // What is used there must fit in what is free, less what is free there itself.
    place->second += slab.used_slots + slab.free_slots.size();
  }
  return std::all_of(needed.begin(), needed.end(), [&](const auto& entry) {
    return entry.second <= classes_[entry.first].free_slots;
  });
}

std::vector<TierSlotOwner> SlabAllocator::BeginEvacuation(
    uint64_t bytes, absl::FunctionRef<bool(TierSlotOwner)> movable) {
  if (!closed_slabs_.empty() || bytes == 0 || bytes > capacity_bytes()) return {};
  const uint32_t count = classes_[ClassFor(RoundUp(bytes, kTierSlotAlignment))].slab_units;
  const TierStats stats = Stats();
  if (stats.free_bytes + stats.stranded_bytes < count * unit_bytes_) return {};

  for (const Window& window : ClearableWindows(count)) {
    const std::vector<uint32_t> slabs = SlabsIn(window);
    std::vector<TierSlotOwner> owners = OwnersIn(slabs);
    if (!std::all_of(owners.begin(), owners.end(), movable)) continue;
    for (const uint32_t index : slabs) {
      if (IsPartial(slabs_[index])) RemovePartial(index);
      slabs_[index].closed = true;
    }
    closed_slabs_ = slabs;
    return owners;
  }
  return {};
}

std::vector<SlabAllocator::Window> SlabAllocator::ClearableWindows(uint32_t count) const {
  std::vector<Window> windows;
  for (uint32_t unit = 0; unit < units_.size();) {
    Window window;
    if (WindowFrom(unit, count, &window) && FitsElsewhere(window)) windows.push_back(window);
    unit += units_[unit] == kNone ? 1 : slabs_[units_[unit]].units;
  }
  std::sort(windows.begin(), windows.end(), [](const Window& left, const Window& right) {
    return left.used_bytes < right.used_bytes;
  });
  return windows;
}

std::vector<TierSlotOwner> SlabAllocator::OwnersIn(const std::vector<uint32_t>& slabs) const {
  std::vector<TierSlotOwner> owners;
  for (const uint32_t index : slabs) {
    std::copy_if(slabs_[index].owners.begin(), slabs_[index].owners.end(),
                 std::back_inserter(owners),
                 [](TierSlotOwner owner) { return owner != kNoTierSlotOwner; });
  }
  return owners;
}

void SlabAllocator::EndEvacuation() {
  for (const uint32_t index : closed_slabs_) {
    slabs_[index].closed = false;
    if (IsPartial(slabs_[index])) PushPartial(index);
  }
  closed_slabs_.clear();
}

bool SlabAllocator::CanShrinkSlab(uint64_t from_bytes, uint64_t to_bytes) const {
  const auto class_of = [&](uint64_t bytes) {
    const auto found = class_of_.find(RoundUp(bytes, kTierSlotAlignment));
    return found == class_of_.end() ? MakeClass(RoundUp(bytes, kTierSlotAlignment))
                                    : classes_[found->second];
  };
  if (from_bytes == 0 || to_bytes == 0 || std::max(from_bytes, to_bytes) > capacity_bytes())
    return false;
  const uint32_t needed = class_of(from_bytes).slab_slots;
  const SizeClass to = class_of(to_bytes);
  if (to.free_slots >= needed) return true;
  const uint64_t slabs = (needed - to.free_slots + to.slab_slots - 1) / to.slab_slots;
  return FindRun(static_cast<uint32_t>(slabs * to.slab_units)) != kNone;
}

TierStats SlabAllocator::Stats() const {
  TierStats stats;
  stats.capacity_bytes = capacity_bytes();
  stats.used_bytes = used_bytes_;
  stats.reserved_slots = reserved_slots_;
  stats.free_bytes = free_units_ * unit_bytes_;
  for (const SizeClass& size_class : classes_)
    stats.stranded_bytes += size_class.free_slots * size_class.slot_bytes;
  stats.failed_reserves = failed_reserves_;
  return stats;
}

}  // namespace oscarkv
