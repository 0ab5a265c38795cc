#include "server/rpc/fetch_meter.h"

#include <utility>

#include "gtest/gtest.h"

namespace oscarkv {
namespace {

constexpr uint64_t kMiB = 1 << 20;

class FetchMeterTest : public ::testing::Test {
 protected:
  SharedRate::Use Begin(SharedRate& rate, uint64_t bytes) { return {rate, bytes, now_}; }
  // One that is alone.
  void Fetch(SharedRate& rate, uint64_t bytes, absl::Duration took) {
    SharedRate::Use use = Begin(rate, bytes);
    use.Moved(bytes);
    now_ += took;
    use.End(now_);
  }

  absl::Time now_ = absl::UnixEpoch();
  FetchMeter meter_;
};

TEST_F(FetchMeterTest, ForecastIsSaneBeforeAnythingWasMeasured) {
  const auto nothing = meter_.Expect(0, 0);
  EXPECT_GT(nothing.ms, 0.0);
  EXPECT_LT(nothing.ms, 1.0);
  const auto some = meter_.Expect(100 * kMiB, 0);
  EXPECT_GT(some.ms, 10.0);
  EXPECT_LT(some.ms, 1000.0);
  EXPECT_EQ(some.loading_ms, 0.0);
  const auto from_disk = meter_.Expect(100 * kMiB, 100 * kMiB);
  EXPECT_GT(from_disk.loading_ms, some.ms);
  EXPECT_NEAR(from_disk.ms, some.ms + from_disk.loading_ms, 1e-6);
}

TEST_F(FetchMeterTest, ForecastFollowsWhatFetchesTook) {
  for (int i = 0; i < 400; ++i) Fetch(meter_.sending(), kMiB, absl::Milliseconds(50));
  EXPECT_NEAR(meter_.Expect(kMiB, 0).ms, 50.0, 1.0);
  EXPECT_NEAR(meter_.Expect(2 * kMiB, 0).ms, 100.0, 1.0);
  // The disk is measured by itself.
  for (int i = 0; i < 400; ++i) Fetch(meter_.loading(), kMiB, absl::Milliseconds(20));
  EXPECT_NEAR(meter_.Expect(kMiB, 0).ms, 50.0, 1.0);
  EXPECT_NEAR(meter_.Expect(kMiB, kMiB).loading_ms, 20.0, 1.0);
  // What is old is forgotten.
  for (int i = 0; i < 400; ++i) Fetch(meter_.sending(), kMiB, absl::Milliseconds(5));
  EXPECT_NEAR(meter_.Expect(kMiB, 0).ms, 5.0, 1.0);
}

TEST_F(FetchMeterTest, WhatBecomesSlowIsSoonKnownAndWhatIsFastForAMomentIsNotBelieved) {
  for (int i = 0; i < 400; ++i) Fetch(meter_.loading(), kMiB, absl::Milliseconds(20));
  for (int i = 0; i < 10; ++i) Fetch(meter_.loading(), kMiB, absl::Milliseconds(2));
  EXPECT_GT(meter_.Expect(kMiB, kMiB).loading_ms, 17.0);
  for (int i = 0; i < 20; ++i) Fetch(meter_.loading(), kMiB, absl::Milliseconds(60));
  EXPECT_GT(meter_.Expect(kMiB, kMiB).loading_ms, 50.0);
}

TEST_F(FetchMeterTest, WhatMeasuresNothingTeachesNothing) {
  const double before = meter_.sending().bytes_per_s();
  Fetch(meter_.sending(), 16, absl::Seconds(10));  // latency
  Fetch(meter_.sending(), kMiB, absl::ZeroDuration());
  {
    SharedRate::Use broken_off = Begin(meter_.sending(), kMiB);
    broken_off.Moved(kMiB);
    now_ += absl::Hours(1);
  }
  EXPECT_EQ(meter_.sending().bytes_per_s(), before);
  EXPECT_EQ(meter_.sending().Ahead(kMiB), 0u);
}

TEST_F(FetchMeterTest, FetchesAtOnceShareOneRate) {
  // Four at a time, each a quarter of a gigabyte a second.
  for (int i = 0; i < 400; ++i) {
    std::vector<SharedRate::Use> uses;
    for (int j = 0; j < 4; ++j) uses.push_back(Begin(meter_.sending(), 25 * kMiB));
    for (SharedRate::Use& use : uses) use.Moved(25 * kMiB);
    now_ += absl::Milliseconds(100);
    for (SharedRate::Use& use : uses) use.End(now_);
  }
  EXPECT_NEAR(meter_.sending().bytes_per_s(), 1000.0 * kMiB, 10.0 * kMiB);
}

TEST_F(FetchMeterTest, WhatIsUnderWayIsAhead) {
  const double alone = meter_.Expect(10 * kMiB, 0).ms;
  SharedRate::Use large = Begin(meter_.sending(), 1000 * kMiB);
  // It takes an equal part, as long as the other one lasts.
  EXPECT_EQ(meter_.Expect(10 * kMiB, 0).bytes_ahead, 10 * kMiB);
  EXPECT_GT(meter_.Expect(10 * kMiB, 0).ms, alone * 1.5);
  large.Moved(995 * kMiB);
  EXPECT_EQ(meter_.Expect(10 * kMiB, 0).bytes_ahead, 5 * kMiB);
  SharedRate::Use moved = std::move(large);
  moved.Moved(100 * kMiB);  // more than it said
  EXPECT_EQ(meter_.Expect(10 * kMiB, 0).bytes_ahead, 0u);
  moved.End(now_ + absl::Seconds(1));
  EXPECT_EQ(meter_.sending().Ahead(~uint64_t{0}), 0u);
}

}  // namespace
}  // namespace oscarkv
