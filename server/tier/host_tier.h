// Host memory as a tier: an arena, cut up by the slab allocator.
#ifndef OSCARKV_SERVER_TIER_HOST_TIER_H_
#define OSCARKV_SERVER_TIER_HOST_TIER_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

#include "server/core/tier.h"
#include "server/tier/host_arena.h"
#include "server/tier/slab_allocator.h"

namespace oscarkv {

struct HostTierOptions {
  uint64_t capacity_bytes = 0;  // rounded down to whole units
  uint64_t unit_bytes = 0;      // see SlabAllocatorOptions
};

// Thread-safe.
class HostTier final : public Tier {
 public:
  // kInvalidArgument (SlabAllocator::Create), kResourceExhausted (HostArena::Create).
  static absl::StatusOr<std::unique_ptr<HostTier>> Create(const HostTierOptions& options);

  TierKind kind() const override { return TierKind::kHost; }
  uint64_t capacity_bytes() const override { return arena_.bytes().size(); }
  absl::StatusOr<TierSlot> Reserve(uint64_t bytes) override;
  void Release(const TierSlot& slot) override;
  MutableByteView Map(const TierSlot& slot) override {
    return arena_.bytes().subspan(slot.offset, slot.bytes);
  }
  void SetOwner(const TierSlot& slot, TierSlotOwner owner) override;
  std::vector<TierSlotOwner> BeginEvacuation(
      uint64_t bytes, absl::FunctionRef<bool(TierSlotOwner)> movable) override;
  void EndEvacuation() override;
  TierStats Stats() const override;

 private:
  HostTier(SlabAllocator slabs, HostArena arena)
      : arena_(std::move(arena)), slabs_(std::move(slabs)) {}

  const HostArena arena_;
  mutable absl::Mutex mutex_;
  SlabAllocator slabs_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_TIER_HOST_TIER_H_
