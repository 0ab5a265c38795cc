// The log of corrupt pages: a line each with all that is known of it, and no flood.
#include "server/corrupt_log.h"

#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/support/fake_clock.h"

namespace oscarkv::testing {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class CorruptLogTest : public ::testing::Test {
 protected:
  static CorruptPage Page(CorruptAt at) {
    return {.fingerprint = "space",
            .key = "0123456789abcdef",
            .tier = TierKind::kDisk,
            .at = at,
            .block = BlockPlace{7, 3},
            .error = "expected crc32c 1, found 2"};
  }
  // The lines that this makes.
  template <typename Do>
  std::vector<std::string> LinesOf(Do&& something) {
    ::testing::internal::CaptureStderr();
    something();
    return absl::StrSplit(::testing::internal::GetCapturedStderr(), '\n', absl::SkipEmpty());
  }
  std::vector<std::string> LinesOf(CorruptAt at, uint64_t pages) {
    return LinesOf([&] {
      for (uint64_t i = 0; i < pages; ++i) log_.Log(Page(at));
    });
  }

  FakeClock clock_;
  Logger logger_{LogLevel::kInfo, LogFormat::kText};
  CorruptLog log_{logger_, clock_};
};

TEST_F(CorruptLogTest, ALineSaysWhatIsKnown) {
  EXPECT_THAT(
      LinesOf(CorruptAt::kScrub, 1),
      ElementsAre(AllOf(HasSubstr("error"), HasSubstr("a page is corrupt"),
                        HasSubstr(" namespace=7370616365 "),
                        HasSubstr(" key=30313233343536373839616263646566 "), HasSubstr(" layer=7 "),
                        HasSubstr(" head=3 "), HasSubstr(" tier=disk "), HasSubstr(" at=scrub "),
                        HasSubstr(" error=expected crc32c 1, found 2"))));
  const auto lines = LinesOf([&] {
    CorruptPage page = Page(CorruptAt::kScrub);
    page.block.reset();
    log_.Log(page);
  });
  EXPECT_THAT(lines, ElementsAre(AllOf(HasSubstr(" layer=unknown "), HasSubstr(" head=unknown "))));
}

TEST_F(CorruptLogTest, AFloodIsCountedAndHidesNothingElse) {
  EXPECT_THAT(LinesOf(CorruptAt::kPut, 100'000), SizeIs(CorruptLog::kPagesMax));
  EXPECT_THAT(LinesOf(CorruptAt::kServe, 1), ElementsAre(HasSubstr(" at=serve ")));
  clock_.Advance(CorruptLog::kWithin - absl::Nanoseconds(1));
  EXPECT_THAT(LinesOf(CorruptAt::kPut, 1), IsEmpty());
  clock_.Advance(absl::Nanoseconds(1));
  // How many were left out is said before the next, and once.
  EXPECT_THAT(LinesOf(CorruptAt::kPut, 2),
              ElementsAre(AllOf(HasSubstr("were not logged"), HasSubstr(" at=put"),
                                HasSubstr(" pages=99901")),
                          HasSubstr("a page is corrupt"), HasSubstr("a page is corrupt")));
}

TEST_F(CorruptLogTest, WhatWasLeftOutIsToldWithoutAnotherPage) {
  LinesOf(CorruptAt::kMove, CorruptLog::kPagesMax + 5);
  EXPECT_THAT(LinesOf([&] { log_.LogLeftOut(); }), IsEmpty());
  clock_.Advance(CorruptLog::kWithin);
  EXPECT_THAT(LinesOf([&] { log_.LogLeftOut(); }),
              ElementsAre(AllOf(HasSubstr(" at=move"), HasSubstr(" pages=5"))));
  EXPECT_THAT(LinesOf([&] { log_.LogLeftOut(); }), IsEmpty());
}

}  // namespace
}  // namespace oscarkv::testing
