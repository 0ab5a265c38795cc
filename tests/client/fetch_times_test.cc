#include "client/cpp/fetch_times.h"

#include <random>

#include "gtest/gtest.h"

namespace oscarkv::client {
namespace {

constexpr uint64_t kMiB = 1 << 20;

class FetchTimesTest : public ::testing::Test {
 protected:
  void Fetches(int count, uint64_t bytes, double ms, const FetchForecast& told = {},
               DataPath path = DataPath::kGrpc) {
    for (int i = 0; i < count; ++i) times_.Record(path, bytes, absl::Milliseconds(ms), told);
  }
  double Expected(uint64_t bytes, const FetchForecast& told = {},
                  DataPath path = DataPath::kGrpc) const {
    return times_.ExpectedMs(path, bytes, told);
  }

  FetchTimes times_;
};

TEST_F(FetchTimesTest, StartsFromTheServersWord) {
  EXPECT_GE(Expected(kMiB, {.server_ms = 40}), 40.0);
  EXPECT_LE(Expected(kMiB, {.server_ms = 40}), 80.0);
  EXPECT_GT(Expected(kMiB), 0.0);  // and without one from a round trip
  times_.RecordRoundTrip(absl::Milliseconds(500));
  EXPECT_GT(Expected(kMiB), 50.0);
}

TEST_F(FetchTimesTest, FollowsWhatFetchesTake) {
  Fetches(300, kMiB, 50, {.server_ms = 1});
  EXPECT_GE(Expected(kMiB), 50.0);
  EXPECT_LE(Expected(kMiB), 60.0);
  EXPECT_LE(Expected(2 * kMiB), 120.0);
  Fetches(300, kMiB, 5);
  EXPECT_GE(Expected(kMiB), 5.0);
  EXPECT_LE(Expected(kMiB), 6.0);
}

TEST_F(FetchTimesTest, PathsAreMeasuredEachByItself) {
  Fetches(300, kMiB, 50);
  Fetches(300, kMiB, 1, {}, DataPath::kShm);
  EXPECT_GE(Expected(kMiB), 50.0);
  EXPECT_LE(Expected(kMiB, {}, DataPath::kShm), 2.0);
}

TEST_F(FetchTimesTest, WhatOthersFetchMeanwhileIsNotThePathsFault) {
  // Beside three others of its size it took four times as long.
  Fetches(300, kMiB, 40, {.bytes_ahead = 3 * kMiB});
  EXPECT_LE(Expected(kMiB), 13.0);
  EXPECT_GE(Expected(kMiB, {.bytes_ahead = 3 * kMiB}), 40.0);
  // Nor is the disk.
  Fetches(300, kMiB, 110, {.loading_ms = 100});
  EXPECT_LE(Expected(kMiB), 13.0);
  EXPECT_GE(Expected(kMiB, {.loading_ms = 100}), 105.0);
}

TEST_F(FetchTimesTest, FetchesSeldomTakeLongerThanExpected) {
  std::mt19937_64 random(5);
  std::lognormal_distribution<double> ms(3.0, 0.5);  // one in a hundred takes 3.2 times the median
  int longer = 0;
  int far_longer = 0;
  constexpr int kFetches = 20'000;
  for (int i = 0; i < kFetches; ++i) {
    const double took = ms(random);
    if (i >= 1000) {
      longer += took > Expected(kMiB) ? 1 : 0;
      far_longer += took > 2 * Expected(kMiB) ? 1 : 0;
    }
    times_.Record(DataPath::kGrpc, kMiB, absl::Milliseconds(took), {});
  }
  EXPECT_LE(longer, kFetches / 10);
  EXPECT_GE(longer, kFetches / 100);  // nor is it twice what it could be
  EXPECT_LE(far_longer, kFetches / 200);
}

TEST_F(FetchTimesTest, TheSpreadOfADiskIsNotThatOfMemory) {
  std::mt19937_64 random(6);
  std::lognormal_distribution<double> disk(4.0, 0.7);
  constexpr FetchForecast kWaits{.loading_ms = 55};
  int longer = 0;
  int far_longer = 0;
  constexpr int kFetches = 20'000;
  for (int i = 0; i < kFetches; ++i) {
    times_.Record(DataPath::kGrpc, kMiB, absl::Milliseconds(10), {});
    const double took = 10 + disk(random);
    if (i >= 1000) {
      EXPECT_LE(Expected(kMiB), 13.0);
      longer += took > Expected(kMiB, kWaits) ? 1 : 0;
      far_longer += took > 2 * Expected(kMiB, kWaits) ? 1 : 0;
    }
    times_.Record(DataPath::kGrpc, kMiB, absl::Milliseconds(took), kWaits);
  }
  EXPECT_LE(longer, kFetches / 20);
  EXPECT_GE(longer, kFetches / 200);
  EXPECT_LE(far_longer, kFetches / 200);
}

TEST_F(FetchTimesTest, WhatBecomesSlowIsSoonKnown) {
  constexpr FetchForecast kWaits{.loading_ms = 10};
  Fetches(300, kMiB, 15, kWaits);
  // All at once five times as slow, and the server does not know yet.
  int promises_broken = 0;
  for (int i = 0; i < 100; ++i) {
    promises_broken += 75 > 2 * Expected(kMiB, kWaits) ? 1 : 0;
    Fetches(1, kMiB, 75, kWaits);
  }
  EXPECT_LE(promises_broken, 3);
}

TEST_F(FetchTimesTest, WhatMeasuresNothingTeachesNothing) {
  Fetches(300, kMiB, 50);
  const double before = Expected(kMiB);
  Fetches(10, 100, 5000);  // latency
  Fetches(10, kMiB, 0);
  EXPECT_EQ(Expected(kMiB), before);
}

TEST_F(FetchTimesTest, OneStallIsForgiven) {
  Fetches(300, kMiB, 10);
  Fetches(1, kMiB, 2000);
  Fetches(50, kMiB, 10);
  EXPECT_LE(Expected(kMiB), 20.0);
}

}  // namespace
}  // namespace oscarkv::client
