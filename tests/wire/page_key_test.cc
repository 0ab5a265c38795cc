#include "proto/wire/page_key.h"

#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/support/status_matchers.h"

namespace oscarkv {
namespace {

using ::oscarkv::testing::StatusIs;
using ::testing::HasSubstr;

TEST(PageKeyTest, EqualsTheHashesThatSglangComputes) {
  const std::vector<uint32_t> tokens = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  const std::vector<std::string> keys = ChainKeys(tokens, 4);
  ASSERT_EQ(keys.size(), 2u);  // the ninth token fills no page
  EXPECT_EQ(absl::BytesToHexString(keys[0]),
            "cf97adeedb59e05bfd73a2b4c2a8885708c4f4f70c84c64b27120e72ab733b72");
  EXPECT_EQ(absl::BytesToHexString(keys[1]),
            "4ebfa8a1f3c341517621838c6e1b9aa350307e3f00b3cbd1a07ef740f54396d6");
}

TEST(PageKeyTest, ContinuesFromAParent) {
  const std::vector<uint32_t> tokens = {1, 2, 3, 4, 5, 6, 7, 8};
  const std::vector<std::string> keys = ChainKeys(tokens, 4);
  EXPECT_EQ(ChainKeys(std::span(tokens).subspan(4), 4, keys[0]), std::vector<std::string>{keys[1]});
}

TEST(PageKeyTest, RefusesKeysOfTheWrongLength) {
  EXPECT_OK(ValidateKey(std::string(16, 'k')));
  EXPECT_OK(ValidateKey(std::string(64, 'k')));
  for (size_t bytes : {size_t{0}, size_t{15}, size_t{65}}) {
    EXPECT_THAT(ValidateKey(std::string(bytes, 'k')),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(std::to_string(bytes))));
  }
}

}  // namespace
}  // namespace oscarkv
