// Host memory as a tier: an arena, cut up by the slab allocator.
#ifndef OSCARKV_SERVER_TIER_HOST_TIER_H_
#define OSCARKV_SERVER_TIER_HOST_TIER_H_

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"

#include "server/core/tier.h"
#include "server/tier/host_arena.h"
#include "server/tier/slab_tier.h"

namespace oscarkv {

struct HostTierOptions {
  uint64_t capacity_bytes = 0;  // rounded down to whole units
  uint64_t unit_bytes = 0;      // see SlabAllocatorOptions
  HostArena::Sharing sharing = HostArena::Sharing::kNone;
};

// Thread-safe.
class HostTier final : public SlabTier<MappedTier> {
 public:
  // kInvalidArgument (SlabAllocator::Create), kResourceExhausted (HostArena::Create).
  static absl::StatusOr<std::unique_ptr<HostTier>> Create(const HostTierOptions& options);

  TierKind kind() const override { return TierKind::kHost; }
  MutableByteView Map(const TierSlot& slot) override {
    return arena_.bytes().subspan(slot.offset, slot.bytes);
  }
  // All of it, for whoever wants to page-lock it.
  MutableByteView arena() const { return arena_.bytes(); }
  // For processes that map it for reading; -1 when it is not shared. Offsets in it are slots'.
  int descriptor() const { return arena_.descriptor(); }

 private:
  HostTier(SlabAllocator slabs, HostArena arena)
      : SlabTier(std::move(slabs)), arena_(std::move(arena)) {}

  const HostArena arena_;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_TIER_HOST_TIER_H_
