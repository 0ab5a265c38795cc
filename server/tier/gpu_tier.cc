#include "server/tier/gpu_tier.h"

#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"

namespace oscarkv {
namespace {

absl::Status CheckSize(const TierSlot& slot, uint64_t host_bytes) {
  if (host_bytes == slot.bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("gpu tier: a slot of ", slot.bytes, " bytes and host memory of ", host_bytes));
}

absl::Status CheckPieces(const TierSlot& slot, std::span<const TierPieces> pieces,
                         size_t crc_count) {
  uint64_t count = 0;
  for (const TierPieces& run : pieces) {
    count += run.count;
    const bool fits = run.bytes > 0 && run.bytes % 4 == 0 && run.offset % 4 == 0 &&
                      run.offset <= slot.bytes &&
                      run.count <= (slot.bytes - run.offset) / run.bytes;
    if (!fits) {
      return absl::InvalidArgumentError(absl::StrCat("gpu tier: ", run.count, " pieces of ",
                                                     run.bytes, " bytes from ", run.offset,
                                                     " in a slot of ", slot.bytes));
    }
  }
  if (count == crc_count) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("gpu tier: room for ", crc_count, " checksums of ", count, " pieces"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<GpuTier>> GpuTier::Create(std::unique_ptr<DeviceMemory> memory,
                                                         uint64_t unit_bytes) {
  OSCARKV_ASSIGN_OR_RETURN(
      SlabAllocator slabs,
      SlabAllocator::Create({.capacity_bytes = memory->bytes(), .unit_bytes = unit_bytes}));
  return std::unique_ptr<GpuTier>(new GpuTier(std::move(slabs), std::move(memory)));
}

absl::StatusOr<std::unique_ptr<PendingTransfer>> GpuTier::CopyIn(const TierSlot& slot,
                                                                 ByteView from,
                                                                 std::span<const TierPieces> check,
                                                                 std::span<uint32_t> crcs) {
  OSCARKV_RETURN_IF_ERROR(CheckSize(slot, from.size()));
  OSCARKV_RETURN_IF_ERROR(CheckPieces(slot, check, crcs.size()));
  return memory_->CopyIn(slot.offset, from, check, crcs);
}

absl::StatusOr<std::unique_ptr<PendingTransfer>> GpuTier::CopyOut(const TierSlot& slot,
                                                                  MutableByteView to) {
  OSCARKV_RETURN_IF_ERROR(CheckSize(slot, to.size()));
  return memory_->CopyOut(slot.offset, to);
}

TierStats GpuTier::Stats() const {
  TierStats stats = SlabTier::Stats();
  stats.pinned_host_bytes = memory_->pinned_host_bytes();
  return stats;
}

}  // namespace oscarkv
