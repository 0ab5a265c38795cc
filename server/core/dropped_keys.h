// Remembers keys of pages that were dropped a while ago, so that a miss can say EVICTED or CORRUPT.
// Bounded, and wrong in two ways that do no harm:
//   * It forgets: a bucket of four keeps its latest four drops. A forgotten key is MISS.
//   * It confuses keys with equal hashes: a key never stored is called EVICTED with a chance of at
//     most `capacity` / 2^62, about 10^-13 for the default capacity.
#ifndef OSCARKV_SERVER_CORE_DROPPED_KEYS_H_
#define OSCARKV_SERVER_CORE_DROPPED_KEYS_H_

#include <atomic>
#include <cstdint>
#include <memory>

#include "proto/wire/item_status.h"

namespace oscarkv {

// Find may be called by any thread at any time; Remember and Forget by one thread at a time.
class DroppedKeys {
 public:
  // Room for `capacity` keys, rounded up to a power of two, 8 bytes each. 0: remembers nothing.
  explicit DroppedKeys(uint32_t capacity);

  // `status` is kEvicted or kCorrupt.
  void Remember(uint64_t hash, ItemStatus status);
  void Forget(uint64_t hash);
  // kEvicted, kCorrupt, or kMiss.
  ItemStatus Find(uint64_t hash) const;

  uint64_t memory_bytes() const { return bucket_count_ * kWays * sizeof(uint64_t); }

 private:
  static constexpr uint64_t kWays = 4;
  // An entry is the hash with its two lowest bits replaced by the reason; 0 is an empty one.
  static constexpr uint64_t kReasonMask = 3;

  std::atomic<uint64_t>* Bucket(uint64_t hash) const {
    return &entries_[((hash >> 2) & (bucket_count_ - 1)) * kWays];
  }

  uint64_t bucket_count_ = 0;  // a power of two, or 0
  uint64_t next_way_ = 0;      // which of a full bucket goes: round robin over all buckets
  // Relaxed: each entry is complete in itself, and orders nothing else.
  std::unique_ptr<std::atomic<uint64_t>[]> entries_;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_DROPPED_KEYS_H_
