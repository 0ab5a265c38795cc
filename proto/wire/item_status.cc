#include "proto/wire/item_status.h"

namespace oscarkv {

std::string_view ItemStatusName(ItemStatus status) {
  switch (status) {
    case ItemStatus::kOk:
      return "OK";
    case ItemStatus::kMiss:
      return "MISS";
    case ItemStatus::kEvicted:
      return "EVICTED";
    case ItemStatus::kCorrupt:
      return "CORRUPT";
    case ItemStatus::kBusy:
      return "BUSY";
    case ItemStatus::kNoSpace:
      return "NO_SPACE";
    case ItemStatus::kQuota:
      return "QUOTA";
    case ItemStatus::kFenced:
      return "FENCED";
    case ItemStatus::kExists:
      return "EXISTS";
    case ItemStatus::kConflict:
      return "CONFLICT";
    case ItemStatus::kSkipped:
      return "SKIPPED";
    case ItemStatus::kInvalid:
      return "INVALID";
  }
  return "UNKNOWN";
}

}  // namespace oscarkv
