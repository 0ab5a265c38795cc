#include "server/core/dropped_keys.h"

#include <algorithm>
#include <bit>

namespace oscarkv {

DroppedKeys::DroppedKeys(uint32_t capacity) {
  if (capacity == 0) return;
  bucket_count_ = std::bit_ceil(std::max<uint64_t>(capacity, kWays)) / kWays;
  entries_ = std::make_unique<std::atomic<uint64_t>[]>(bucket_count_ * kWays);
}

void DroppedKeys::Remember(uint64_t hash, ItemStatus status) {
  if (bucket_count_ == 0) return;
  const uint64_t entry = (hash & ~kReasonMask) | (status == ItemStatus::kCorrupt ? 2 : 1);
  std::atomic<uint64_t>* bucket = Bucket(hash);
  std::atomic<uint64_t>* place = nullptr;
  for (uint64_t i = 0; i < kWays; ++i) {
    const uint64_t old = bucket[i].load(std::memory_order_relaxed);
    if (old != 0 && (old & ~kReasonMask) == (hash & ~kReasonMask)) {
      place = &bucket[i];
      break;
    }
    if (old == 0) place = &bucket[i];
  }
  if (place == nullptr) place = &bucket[next_way_++ % kWays];
  place->store(entry, std::memory_order_relaxed);
}

void DroppedKeys::Forget(uint64_t hash) {
  if (bucket_count_ == 0) return;
  std::atomic<uint64_t>* bucket = Bucket(hash);
  for (uint64_t i = 0; i < kWays; ++i) {
    const uint64_t old = bucket[i].load(std::memory_order_relaxed);
    if (old != 0 && (old & ~kReasonMask) == (hash & ~kReasonMask))
      bucket[i].store(0, std::memory_order_relaxed);
  }
}

ItemStatus DroppedKeys::Find(uint64_t hash) const {
  if (bucket_count_ == 0) return ItemStatus::kMiss;
  const std::atomic<uint64_t>* bucket = Bucket(hash);
  for (uint64_t i = 0; i < kWays; ++i) {
    const uint64_t entry = bucket[i].load(std::memory_order_relaxed);
    if (entry != 0 && (entry & ~kReasonMask) == (hash & ~kReasonMask))
      return (entry & kReasonMask) == 2 ? ItemStatus::kCorrupt : ItemStatus::kEvicted;
  }
  return ItemStatus::kMiss;
}

}  // namespace oscarkv
