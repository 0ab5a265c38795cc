// Pages that are gone are not found in the archive, not even by who looks while they come and go.
#include "server/core/gone_pages.h"

#include <optional>

#include "gtest/gtest.h"

#include "tests/support/store_pages.h"

namespace oscarkv::testing {
namespace {

class GonePagesTest : public ::testing::Test {
 protected:
  const Namespace space_ = *Namespace::Create(SmallSpec(), 0);
  const Namespace other_ = *Namespace::Create(SmallSpec("other"), 1);
  const ArchivedPage page_{.first_position = 64};
  GonePages gone_;
};

TEST_F(GonePagesTest, HideAPageUntilItIsForgotten) {
  const auto find = [&] { return std::optional(page_); };
  EXPECT_TRUE(gone_.Find(space_, "key", find).has_value());
  gone_.Add(space_, "key");
  EXPECT_FALSE(gone_.Find(space_, "key", find).has_value());
  EXPECT_EQ(gone_.Find(space_, "another key", find)->first_position, 64u);
  EXPECT_TRUE(gone_.Find(other_, "key", find).has_value());
  gone_.Remove(space_, "key");
  EXPECT_TRUE(gone_.Find(space_, "key", find).has_value());
  gone_.Remove(space_, "key");  // a page that was put and deleted twice while it was written
  EXPECT_TRUE(gone_.Find(space_, "key", find).has_value());
}

// It was not gone, as far as was known, before and after; the archive had it in between.
TEST_F(GonePagesTest, HideAPageThatWasThereForAMoment) {
  int looks = 0;
  const auto find = [&]() -> std::optional<ArchivedPage> {
    if (looks++ > 0) return std::nullopt;
    gone_.Add(space_, "key");
    gone_.Remove(space_, "key");
    return page_;
  };
  EXPECT_FALSE(gone_.Find(space_, "key", find).has_value());
  EXPECT_EQ(looks, 2);
}

TEST_F(GonePagesTest, FindWhatIsThereWhileOthersCome) {
  int looks = 0;
  const auto find = [&] {
    if (looks++ == 0) gone_.Add(space_, "another key");
    return std::optional(page_);
  };
  EXPECT_TRUE(gone_.Find(space_, "key", find).has_value());
}

}  // namespace
}  // namespace oscarkv::testing
