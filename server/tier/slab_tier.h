// What tiers over one range of bytes have in common: slots cut up by the slab allocator.
#ifndef OSCARKV_SERVER_TIER_SLAB_TIER_H_
#define OSCARKV_SERVER_TIER_SLAB_TIER_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

#include "server/core/tier.h"
#include "server/tier/slab_allocator.h"

namespace oscarkv {

// `Kind` is MappedTier or CopiedTier. Thread-safe.
template <typename Kind>
class SlabTier : public Kind {
 public:
  uint64_t capacity_bytes() const override { return capacity_bytes_; }
  absl::StatusOr<TierSlot> Reserve(uint64_t bytes) override {
    absl::MutexLock lock(&mutex_);
    return slabs_.Reserve(bytes);
  }
  void Release(const TierSlot& slot) override {
    absl::MutexLock lock(&mutex_);
    slabs_.Release(slot);
  }
  void SetOwner(const TierSlot& slot, TierSlotOwner owner) override {
    absl::MutexLock lock(&mutex_);
    slabs_.SetOwner(slot, owner);
  }
  std::vector<TierSlotOwner> BeginEvacuation(
      uint64_t bytes, absl::FunctionRef<bool(TierSlotOwner)> movable) override {
    absl::MutexLock lock(&mutex_);
    return slabs_.BeginEvacuation(bytes, movable);
  }
  void EndEvacuation() override {
    absl::MutexLock lock(&mutex_);
    slabs_.EndEvacuation();
  }
  bool CanShrinkRegion(uint64_t from_bytes, uint64_t to_bytes) const override {
    absl::MutexLock lock(&mutex_);
    return slabs_.CanShrinkSlab(from_bytes, to_bytes);
  }
  TierStats Stats() const override {
    absl::MutexLock lock(&mutex_);
    TierStats stats = slabs_.Stats();
    stats.kind = this->kind();
    return stats;
  }

 protected:
  explicit SlabTier(SlabAllocator slabs)
      : capacity_bytes_(slabs.capacity_bytes()), slabs_(std::move(slabs)) {}

 private:
  const uint64_t capacity_bytes_;
  mutable absl::Mutex mutex_;
  SlabAllocator slabs_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_TIER_SLAB_TIER_H_
