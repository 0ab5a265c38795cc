// IsOk, IsOkAndHolds and StatusIs, in the shape of Abseil's later status matchers.
#ifndef OSCARKV_TESTS_SUPPORT_STATUS_MATCHERS_H_
#define OSCARKV_TESTS_SUPPORT_STATUS_MATCHERS_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gmock/gmock.h"

namespace oscarkv::testing {

inline const absl::Status& GetStatus(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& GetStatus(const absl::StatusOr<T>& statusor) {
  return statusor.status();
}

MATCHER(IsOk, negation ? "is not OK" : "is OK") {
  *result_listener << GetStatus(arg).ToString();
  return GetStatus(arg).ok();
}

MATCHER_P(IsOkAndHolds, matcher, "is OK and holds a matching value") {
  if (!arg.ok()) {
    *result_listener << arg.status().ToString();
    return false;
  }
  return ::testing::ExplainMatchResult(matcher, arg.value(), result_listener);
}

MATCHER_P2(StatusIs, code, message, "has the status code and a matching message") {
  *result_listener << GetStatus(arg).ToString();
  return GetStatus(arg).code() == code &&
         ::testing::ExplainMatchResult(message, std::string(GetStatus(arg).message()),
                                       result_listener);
}

MATCHER_P(StatusIs, code, "has the status code") {
  *result_listener << GetStatus(arg).ToString();
  return GetStatus(arg).code() == code;
}

}  // namespace oscarkv::testing

#define EXPECT_OK(expression) EXPECT_THAT(expression, ::oscarkv::testing::IsOk())
#define ASSERT_OK(expression) ASSERT_THAT(expression, ::oscarkv::testing::IsOk())

#endif  // OSCARKV_TESTS_SUPPORT_STATUS_MATCHERS_H_
