#include "server/peer/staging_area.h"

#include "kernels/base/status_macros.h"

namespace oscarkv {

absl::StatusOr<std::shared_ptr<const StagingArea::Place>> StagingArea::Reserve(uint64_t bytes) {
  OSCARKV_ASSIGN_OR_RETURN(const TierSlot slot, tier_->Reserve(bytes));
  return std::make_shared<const Place>(*this, slot);
}

absl::StatusOr<std::unique_ptr<PendingTransfer>> StagingArea::CopyOut(const Place& place,
                                                                      MutableByteView to) {
  const absl::MutexLock lock(&mutex_);
  return tier_->CopyOut(place.slot_, to);
}

absl::StatusOr<std::unique_ptr<PendingTransfer>> StagingArea::CopyIn(const Place& place,
                                                                     ByteView from) {
  const absl::MutexLock lock(&mutex_);
  return tier_->CopyIn(place.slot_, from, {}, {});
}

}  // namespace oscarkv
