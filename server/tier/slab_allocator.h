// Slots of fixed sizes out of one range of bytes: pure bookkeeping of offsets, which never looks at
// the bytes. The range is cut into units; a slab is a run of units that serves slots of one size,
// and returns to the range when its last slot does. Every size gets as many units a slab as keep
// the rest behind its last slot small.
//
// Free memory can be stuck in slabs of another size. BeginEvacuation then names the slots whose
// move within their own size would free a run of units (see Tier).
#ifndef OSCARKV_SERVER_TIER_SLAB_ALLOCATOR_H_
#define OSCARKV_SERVER_TIER_SLAB_ALLOCATOR_H_

#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"

#include "server/core/tier.h"

namespace oscarkv {

struct SlabAllocatorOptions {
  uint64_t capacity_bytes = 0;
  uint64_t unit_bytes = 0;  // a multiple of kTierSlotAlignment; 0: chosen from the capacity
};

// Not thread-safe. Reserve and Release are O(1), and O(units) when a slab begins; no heap
// allocation but when a slab begins.
class SlabAllocator {
 public:
  // kInvalidArgument when the capacity is less than a unit, or the unit is not as it must be.
  static absl::StatusOr<SlabAllocator> Create(const SlabAllocatorOptions& options);

  // kResourceExhausted when no slot of that size is free and no run of units for a slab;
  // kInvalidArgument for 0 bytes and for more than the capacity.
  absl::StatusOr<TierSlot> Reserve(uint64_t bytes);
  // `slot` came from Reserve.
  void Release(const TierSlot& slot);
  void SetOwner(const TierSlot& slot, TierSlotOwner owner);

  std::vector<TierSlotOwner> BeginEvacuation(uint64_t bytes,
                                             absl::FunctionRef<bool(TierSlotOwner)> movable);
  void EndEvacuation();
  // Whether as many slots of `to_bytes` could be reserved as a slab of slots of `from_bytes` has.
  // O(units) when no slab that there is has them.
  bool CanShrinkSlab(uint64_t from_bytes, uint64_t to_bytes) const;

  uint64_t unit_bytes() const { return unit_bytes_; }
  uint64_t capacity_bytes() const { return unit_bytes_ * units_.size(); }
  // All but kind.
  TierStats Stats() const;

 private:
  static constexpr uint32_t kNone = 0xffffffff;

  // Slots of one size.
  struct SizeClass {
    uint64_t slot_bytes = 0;  // a multiple of kTierSlotAlignment
    uint32_t slab_units = 0;
    uint32_t slab_slots = 0;
    uint32_t first_partial = kNone;  // list of slabs with a free slot that are not closed
    uint64_t free_slots = 0;         // of all its slabs, closed ones too
  };
  struct Slab {
    uint32_t size_class = kNone;
    uint32_t first_unit = 0;
    uint32_t units = 0;
    uint32_t used_slots = 0;
    uint32_t unowned_slots = 0;  // reserved, without an owner: these do not move
    bool closed = false;         // by an evacuation: gives out no slots
    uint32_t next = kNone;       // in the list of partial slabs
    uint32_t previous = kNone;
    std::vector<uint32_t> free_slots;   // a stack
    std::vector<TierSlotOwner> owners;  // [slots]
  };
  // A run of whole slabs and free units that could be cleared.
  struct Window {
    uint32_t first_unit = 0;
    uint32_t end_unit = 0;
    uint64_t used_bytes = 0;  // that would have to move
  };

  SlabAllocator(uint64_t unit_bytes, uint32_t units);

  SizeClass MakeClass(uint64_t slot_bytes) const;
  uint32_t ClassFor(uint64_t slot_bytes);
  uint32_t SlabUnits(uint64_t slot_bytes) const;
  uint32_t BeginSlab(uint32_t size_class);  // kNone when no run of units is free
  void EndSlab(uint32_t slab);
  uint32_t FindRun(uint32_t count) const;
  void PushPartial(uint32_t slab);
  void RemovePartial(uint32_t slab);
  bool IsPartial(const Slab& slab) const { return !slab.closed && !slab.free_slots.empty(); }
  bool WindowFrom(uint32_t first_unit, uint32_t count, Window* window) const;
  // Whether the slots in use in the window fit elsewhere, each in its own size.
  bool FitsElsewhere(const Window& window) const;
  std::vector<uint32_t> SlabsIn(const Window& window) const;
  // The windows of `count` units or more that could be cleared, cheapest first.
  std::vector<Window> ClearableWindows(uint32_t count) const;
  std::vector<TierSlotOwner> OwnersIn(const std::vector<uint32_t>& slabs) const;

  uint64_t unit_bytes_ = 0;
  uint32_t free_units_ = 0;
  uint64_t used_bytes_ = 0;  // of reserved slots, as asked for
  uint64_t reserved_slots_ = 0;
  uint64_t failed_reserves_ = 0;
  std::vector<uint32_t> units_;  // [units]: the slab it belongs to, or kNone
  std::vector<Slab> slabs_;      // reused
  std::vector<uint32_t> unused_slabs_;
  std::vector<SizeClass> classes_;
  absl::flat_hash_map<uint64_t, uint32_t> class_of_;  // by slot_bytes
  std::vector<uint32_t> closed_slabs_;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_TIER_SLAB_ALLOCATOR_H_
