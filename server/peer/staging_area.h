// Memory of a device through which pages pass between clients' GPUs and this server's host memory.
// Nothing is stored in it, so a client that writes where it no longer may spoils pages that are on
// their way, which their checksums show, and none that is stored.
#ifndef OSCARKV_SERVER_PEER_STAGING_AREA_H_
#define OSCARKV_SERVER_PEER_STAGING_AREA_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

#include "kernels/base/bytes.h"
#include "kernels/comm/peer_comm.h"
#include "server/core/tier.h"

namespace oscarkv {

// Thread-safe.
class StagingArea {
 public:
  // `address`: where the tier's memory begins, for the device; `handle`: what other processes of
  // the host open it by, or why they cannot.
  StagingArea(std::unique_ptr<CopiedTier> tier, std::byte* address,
              absl::StatusOr<std::string> handle)
      : tier_(std::move(tier)), address_(address), handle_(std::move(handle)) {}

  // Room for a page, as long as this lives. The area must outlive it.
  class Place {
   public:
    Place(StagingArea& area, const TierSlot& slot) : area_(area), slot_(slot) {}
    ~Place() { area_.tier_->Release(slot_); }
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;
    uint64_t offset() const { return slot_.offset; }
    comm::Block block() const { return {area_.address_ + slot_.offset, slot_.bytes}; }

   private:
    friend class StagingArea;
    StagingArea& area_;
    const TierSlot slot_;
  };

  // kResourceExhausted: there is no room now; kInvalidArgument: there never is.
  absl::StatusOr<std::shared_ptr<const Place>> Reserve(uint64_t bytes);

  // Starts copying all of a place; the host memory stays until it has ended.
  absl::StatusOr<std::unique_ptr<PendingTransfer>> CopyOut(const Place& place, MutableByteView to)
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<std::unique_ptr<PendingTransfer>> CopyIn(const Place& place, ByteView from)
      ABSL_LOCKS_EXCLUDED(mutex_);

  uint64_t bytes() const { return tier_->capacity_bytes(); }
  uint64_t used_bytes() const { return tier_->Stats().used_bytes; }
  const absl::StatusOr<std::string>& handle() const { return handle_; }

 private:
  const std::unique_ptr<CopiedTier> tier_;
  std::byte* const address_;
  const absl::StatusOr<std::string> handle_;
  absl::Mutex mutex_;  // one transfer is started at a time
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_PEER_STAGING_AREA_H_
