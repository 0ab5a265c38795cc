// The outcome of one item of a batch. A miss is an outcome, never an error of the call. Numbers
// equal oscarkv.v1.ItemStatus.
#ifndef OSCARKV_PROTO_WIRE_ITEM_STATUS_H_
#define OSCARKV_PROTO_WIRE_ITEM_STATUS_H_

#include <cstdint>
#include <string_view>

namespace oscarkv {

enum class ItemStatus : uint8_t {
  kOk = 1,
  kMiss = 2,       // never stored, as far as the server knows
  kEvicted = 3,    // was stored, and dropped recently
  kCorrupt = 4,    // a checksum did not hold; the page is gone and may be stored again
  kBusy = 5,       // another put of this key is under way, or too many bytes in flight
  kNoSpace = 6,    // nothing can be evicted to make room
  kQuota = 7,      // the tenant's share is full
  kFenced = 8,     // the lease or session is no longer valid
  kExists = 9,     // put: the page was there already, with the same bytes; counts as success
  kConflict = 10,  // put: the page was there with different bytes; nothing was changed
  kSkipped = 11,   // not tried: the parent is unknown, or an earlier item stopped the batch
  kInvalid = 12,   // the item itself is malformed: size, key, range; the message says how
};

std::string_view ItemStatusName(ItemStatus status);

}  // namespace oscarkv

#endif  // OSCARKV_PROTO_WIRE_ITEM_STATUS_H_
