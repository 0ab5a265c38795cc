#include "server/tier/host_tier.h"

#include <utility>

#include "kernels/base/status_macros.h"

namespace oscarkv {

absl::StatusOr<std::unique_ptr<HostTier>> HostTier::Create(const HostTierOptions& options) {
  OSCARKV_ASSIGN_OR_RETURN(SlabAllocator slabs,
                           SlabAllocator::Create({.capacity_bytes = options.capacity_bytes,
                                                  .unit_bytes = options.unit_bytes}));
  OSCARKV_ASSIGN_OR_RETURN(HostArena arena, HostArena::Create(slabs.capacity_bytes()));
  return std::unique_ptr<HostTier>(new HostTier(std::move(slabs), std::move(arena)));
}

absl::StatusOr<TierSlot> HostTier::Reserve(uint64_t bytes) {
  absl::MutexLock lock(&mutex_);
  return slabs_.Reserve(bytes);
}

void HostTier::Release(const TierSlot& slot) {
  absl::MutexLock lock(&mutex_);
  slabs_.Release(slot);
}

void HostTier::SetOwner(const TierSlot& slot, TierSlotOwner owner) {
  absl::MutexLock lock(&mutex_);
  slabs_.SetOwner(slot, owner);
}

std::vector<TierSlotOwner> HostTier::BeginEvacuation(
    uint64_t bytes, absl::FunctionRef<bool(TierSlotOwner)> movable) {
  absl::MutexLock lock(&mutex_);
  return slabs_.BeginEvacuation(bytes, movable);
}

void HostTier::EndEvacuation() {
  absl::MutexLock lock(&mutex_);
  slabs_.EndEvacuation();
}

TierStats HostTier::Stats() const {
  absl::MutexLock lock(&mutex_);
  TierStats stats = slabs_.Stats();
  stats.kind = TierKind::kHost;
  return stats;
}

}  // namespace oscarkv
