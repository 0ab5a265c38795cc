#include "kernels/comm/slots.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace oscarkv::comm {

absl::StatusOr<SlotShape> AgreeOnSlots(const SlotShape& asked, uint64_t bytes_max) {
  if (asked.slots == 0 || asked.slots > kSlotsMax || asked.slot_bytes == 0 ||
      asked.slot_bytes > kSlotBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("expected 1..", kSlotsMax, " slots of 1..",
                                                   kSlotBytesMax, " bytes, found ", asked.slots,
                                                   " of ", asked.slot_bytes));
  }
  const uint64_t fit = bytes_max / asked.slot_bytes;
  if (fit == 0) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "a slot of ", asked.slot_bytes, " bytes, a peer may have ", bytes_max, " in all"));
  }
  return SlotShape{static_cast<uint32_t>(std::min<uint64_t>(asked.slots, fit)), asked.slot_bytes};
}

FreeSlots::FreeSlots(const SlotShape& shape) : shape_(shape) {
  for (uint64_t slot = shape.slots; slot-- > 0;) free_.push_back(slot * shape.slot_bytes);
}

absl::StatusOr<uint64_t> FreeSlots::Take() {
  if (free_.empty())
    return absl::ResourceExhaustedError(absl::StrCat("all ", shape_.slots, " slots are in use"));
  const uint64_t offset = free_.back();
  free_.pop_back();
  return offset;
}

void FreeSlots::Return(uint64_t offset) { free_.push_back(offset); }

}  // namespace oscarkv::comm
