#include "server/metrics/exposer.h"

#include <memory>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/support/status_matchers.h"

namespace oscarkv {
namespace {

using ::oscarkv::testing::StatusIs;
using ::testing::HasSubstr;

std::shared_ptr<Collector> NoMetrics() {
  return std::make_shared<Collector>([] { return ServerSnapshot(); });
}

TEST(MetricsExposerTest, PicksAPort) {
  const auto exposer = MetricsExposer::Create("127.0.0.1:0", NoMetrics());
  ASSERT_OK(exposer.status());
  EXPECT_GT((*exposer)->port(), 0);
}

TEST(MetricsExposerTest, NamesAnAddressThatItCannotHave) {
  const auto first = MetricsExposer::Create("127.0.0.1:0", NoMetrics());
  ASSERT_OK(first.status());
  const std::string taken = absl::StrCat("127.0.0.1:", (*first)->port());
  EXPECT_THAT(MetricsExposer::Create(taken, NoMetrics()),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr(taken)));
  EXPECT_THAT(MetricsExposer::Create("not an address", NoMetrics()),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("not an address")));
}

}  // namespace
}  // namespace oscarkv
