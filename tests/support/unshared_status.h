// Statuses for tests with threads.
#ifndef OSCARKV_TESTS_SUPPORT_UNSHARED_STATUS_H_
#define OSCARKV_TESTS_SUPPORT_UNSHARED_STATUS_H_

#include "absl/status/status.h"

namespace oscarkv::testing {

// A copy that shares nothing with `status`. Copies that threads share are safe; but Abseil counts
// who shares one inside its own library, where ThreadSanitizer does not see it.
inline absl::Status Unshared(const absl::Status& status) {
  return {status.code(), status.message()};
}

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_SUPPORT_UNSHARED_STATUS_H_
