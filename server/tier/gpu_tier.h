// A device's memory as a tier: one allocation, cut up by the slab allocator.
#ifndef OSCARKV_SERVER_TIER_GPU_TIER_H_
#define OSCARKV_SERVER_TIER_GPU_TIER_H_

#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "absl/status/statusor.h"

#include "server/core/tier.h"
#include "server/tier/device_memory.h"
#include "server/tier/slab_tier.h"

namespace oscarkv {

// Thread-safe as CopiedTier says.
class GpuTier final : public SlabTier<CopiedTier> {
 public:
  // Uses whole units of `memory`. kInvalidArgument: SlabAllocator::Create. `unit_bytes` 0: chosen.
  static absl::StatusOr<std::unique_ptr<GpuTier>> Create(std::unique_ptr<DeviceMemory> memory,
                                                         uint64_t unit_bytes = 0);

  TierKind kind() const override { return TierKind::kGpu; }
  absl::StatusOr<std::unique_ptr<PendingTransfer>> CopyIn(const TierSlot& slot, ByteView from,
                                                          std::span<const TierPieces> check,
                                                          std::span<uint32_t> crcs) override;
  absl::StatusOr<std::unique_ptr<PendingTransfer>> CopyOut(const TierSlot& slot,
                                                           MutableByteView to) override;
  TierStats Stats() const override;

 private:
  GpuTier(SlabAllocator slabs, std::unique_ptr<DeviceMemory> memory)
      : SlabTier(std::move(slabs)), memory_(std::move(memory)) {}

  const std::unique_ptr<DeviceMemory> memory_;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_TIER_GPU_TIER_H_
