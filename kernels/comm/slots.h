// The memory that a peer receives into or sends from: as many slots of one size as both sides have
// agreed on. Bookkeeping only.
#ifndef OSCARKV_KERNELS_COMM_SLOTS_H_
#define OSCARKV_KERNELS_COMM_SLOTS_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"

namespace oscarkv::comm {

struct SlotShape {
  uint32_t slots = 0;
  uint64_t slot_bytes = 0;
  uint64_t bytes() const { return slots * slot_bytes; }  // fits: AgreeOnSlots
};

// No peer that means well asks for more.
inline constexpr uint32_t kSlotsMax = 1024;
inline constexpr uint64_t kSlotBytesMax = uint64_t{1} << 32;

// What a peer gets that asked for `asked`, where there may be `most`: fewer slots if need be, never
// smaller ones. kInvalidArgument: none, or more than the bounds above; kResourceExhausted: one slot
// of that size is more than there may be.
absl::StatusOr<SlotShape> AgreeOnSlots(const SlotShape& asked, uint64_t bytes_max);

// Which slots are free. Not thread-safe.
class FreeSlots {
 public:
  explicit FreeSlots(const SlotShape& shape);
  const SlotShape& shape() const { return shape_; }
  size_t free() const { return free_.size(); }
  // The slot's offset in bytes. kResourceExhausted: none is free.
  absl::StatusOr<uint64_t> Take();
  void Return(uint64_t offset);

 private:
  const SlotShape shape_;
  std::vector<uint64_t> free_;
};

}  // namespace oscarkv::comm

#endif  // OSCARKV_KERNELS_COMM_SLOTS_H_
