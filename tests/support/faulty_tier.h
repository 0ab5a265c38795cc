// Decorates a tier with faults that the test asks for: reservations that fail, bits that flip,
// things that happen in between.
#ifndef OSCARKV_TESTS_SUPPORT_FAULTY_TIER_H_
#define OSCARKV_TESTS_SUPPORT_FAULTY_TIER_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"

#include "server/core/tier.h"
#include "tests/support/unshared_status.h"

namespace oscarkv::testing {

class FaultyTier final : public MappedTier {
 public:
  explicit FaultyTier(std::unique_ptr<MappedTier> base) : base_(std::move(base)) {}

  // The next `count` reservations fail with `status`.
  void FailReservations(int count, absl::Status status) {
    absl::MutexLock lock(&mutex_);
    failures_left_ = count;
    failure_ = std::move(status);
  }

  // Runs before every reservation from now on, under no lock: to do something in the middle of a
  // call of the store. Not thread-safe.
  void OnReserve(std::function<void()> callback) { on_reserve_ = std::move(callback); }

  // Flips one bit of byte `byte` of the slot that was reserved as the `nth` still held (in the
  // order of offsets). False when there is no such byte.
  bool FlipBit(size_t nth, uint64_t byte, int bit = 0) {
    absl::MutexLock lock(&mutex_);
    if (nth >= held_.size()) return false;
    const TierSlot slot = std::next(held_.begin(), static_cast<std::ptrdiff_t>(nth))->second;
    if (byte >= slot.bytes) return false;
    base_->Map(slot)[byte] ^= std::byte{static_cast<unsigned char>(1u << bit)};
    return true;
  }
  size_t held() const {
    absl::MutexLock lock(&mutex_);
    return held_.size();
  }
  // The nth slot held, nth < held().
  TierSlot slot(size_t nth) const {
    absl::MutexLock lock(&mutex_);
    return std::next(held_.begin(), static_cast<std::ptrdiff_t>(nth))->second;
  }

  TierKind kind() const override { return base_->kind(); }
  uint64_t capacity_bytes() const override { return base_->capacity_bytes(); }
  absl::StatusOr<TierSlot> Reserve(uint64_t bytes) override {
    if (on_reserve_ != nullptr) on_reserve_();
    absl::MutexLock lock(&mutex_);
    if (failures_left_ > 0) {
      --failures_left_;
      return Unshared(failure_);
    }
    absl::StatusOr<TierSlot> slot = base_->Reserve(bytes);
    if (slot.ok()) held_[slot->offset] = *slot;
    return slot;
  }
  void Release(const TierSlot& slot) override {
    absl::MutexLock lock(&mutex_);
    held_.erase(slot.offset);
    base_->Release(slot);
  }
  MutableByteView Map(const TierSlot& slot) override { return base_->Map(slot); }
  void SetOwner(const TierSlot& slot, TierSlotOwner owner) override {
    base_->SetOwner(slot, owner);
  }
  std::vector<TierSlotOwner> BeginEvacuation(
      uint64_t bytes, absl::FunctionRef<bool(TierSlotOwner)> movable) override {
    return base_->BeginEvacuation(bytes, movable);
  }
  void EndEvacuation() override { base_->EndEvacuation(); }
  bool CanShrinkRegion(uint64_t from_bytes, uint64_t to_bytes) const override {
    return base_->CanShrinkRegion(from_bytes, to_bytes);
  }
  TierStats Stats() const override { return base_->Stats(); }

 private:
  const std::unique_ptr<MappedTier> base_;
  std::function<void()> on_reserve_;
  mutable absl::Mutex mutex_;
  std::map<uint64_t, TierSlot> held_ ABSL_GUARDED_BY(mutex_);
  int failures_left_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_SUPPORT_FAULTY_TIER_H_
