// A tier whose every slot is an allocation of its own, so that AddressSanitizer sees the use of a
// slot after its release; exact accounting, no fragmentation.
#ifndef OSCARKV_TESTS_SUPPORT_FAKE_TIER_H_
#define OSCARKV_TESTS_SUPPORT_FAKE_TIER_H_

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"

#include "server/core/tier.h"

namespace oscarkv::testing {

class FakeTier final : public MappedTier {
 public:
  explicit FakeTier(uint64_t capacity_bytes) : capacity_bytes_(capacity_bytes) {}

  TierKind kind() const override { return TierKind::kHost; }
  uint64_t capacity_bytes() const override { return capacity_bytes_; }

  absl::StatusOr<TierSlot> Reserve(uint64_t bytes) override {
    absl::MutexLock lock(&mutex_);
    if (bytes == 0 || bytes > capacity_bytes_)
      return absl::InvalidArgumentError(absl::StrCat("a slot of ", bytes, " bytes"));
    if (used_bytes_ + bytes > capacity_bytes_) {
      ++failed_reserves_;
      return absl::ResourceExhaustedError("fake tier: full");
    }
    used_bytes_ += bytes;
    const TierSlot slot{next_offset_, bytes};
    next_offset_ += kTierSlotAlignment;
    slots_[slot.offset] = std::make_unique<Line[]>((bytes + 63) / 64);
    return slot;
  }

  void Release(const TierSlot& slot) override {
    absl::MutexLock lock(&mutex_);
    used_bytes_ -= slot.bytes;
    released_twice_ += slots_.erase(slot.offset) == 0 ? 1 : 0;
  }

  MutableByteView Map(const TierSlot& slot) override {
    absl::MutexLock lock(&mutex_);
    return {reinterpret_cast<std::byte*>(slots_.at(slot.offset).get()), slot.bytes};
  }

  void SetOwner(const TierSlot& /*slot*/, TierSlotOwner /*owner*/) override {}
  std::vector<TierSlotOwner> BeginEvacuation(
      uint64_t /*bytes*/, absl::FunctionRef<bool(TierSlotOwner)> /*movable*/) override {
    return {};
  }
  void EndEvacuation() override {}
  // Every slot is a region.
  bool CanShrinkRegion(uint64_t /*from_bytes*/, uint64_t to_bytes) const override {
    absl::MutexLock lock(&mutex_);
    return used_bytes_ + to_bytes <= capacity_bytes_;
  }

  TierStats Stats() const override {
    absl::MutexLock lock(&mutex_);
    TierStats stats;
    stats.capacity_bytes = capacity_bytes_;
    stats.used_bytes = used_bytes_;
    stats.reserved_slots = slots_.size();
    stats.free_bytes = capacity_bytes_ - used_bytes_;
    stats.failed_reserves = failed_reserves_;
    return stats;
  }

  int released_twice() const {
    absl::MutexLock lock(&mutex_);
    return released_twice_;
  }

 private:
  struct alignas(kTierSlotAlignment) Line {
    std::byte bytes[kTierSlotAlignment];
  };

  const uint64_t capacity_bytes_;
  mutable absl::Mutex mutex_;
  std::map<uint64_t, std::unique_ptr<Line[]>> slots_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_offset_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t used_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t failed_reserves_ ABSL_GUARDED_BY(mutex_) = 0;
  int released_twice_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_SUPPORT_FAKE_TIER_H_
