#include "server/core/eviction_policy.h"

namespace oscarkv {

std::string_view RemoveReasonName(RemoveReason reason) {
  switch (reason) {
    case RemoveReason::kEvicted:
      return "evicted";
    case RemoveReason::kDeleted:
      return "deleted";
    case RemoveReason::kCorrupt:
      return "corrupt";
    case RemoveReason::kOrphaned:
      return "orphaned";
    case RemoveReason::kExpired:
      return "expired";
  }
  return "unknown";
}

}  // namespace oscarkv
