#include "server/tier/host_tier.h"

#include "kernels/base/status_macros.h"

namespace oscarkv {

absl::StatusOr<std::unique_ptr<HostTier>> HostTier::Create(const HostTierOptions& options) {
  OSCARKV_ASSIGN_OR_RETURN(SlabAllocator slabs,
                           SlabAllocator::Create({.capacity_bytes = options.capacity_bytes,
                                                  .unit_bytes = options.unit_bytes}));
  OSCARKV_ASSIGN_OR_RETURN(HostArena arena,
                           HostArena::Create(slabs.capacity_bytes(), options.sharing));
  return std::unique_ptr<HostTier>(new HostTier(std::move(slabs), std::move(arena)));
}

}  // namespace oscarkv
