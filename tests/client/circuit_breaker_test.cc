// The circuit breaker alone, with the time given.
#include "client/cpp/circuit_breaker.h"

#include "gtest/gtest.h"

namespace oscarkv::client {
namespace {

class CircuitBreakerTest : public ::testing::Test {
 protected:
  void Fail(int times) {
    for (int i = 0; i < times; ++i) {
      ASSERT_TRUE(breaker_.Allow(now_));
      breaker_.OnFailure(now_);
    }
  }

  absl::Time now_ = absl::UnixEpoch();
  CircuitBreaker breaker_{
      {.failures = 3, .pause = absl::Seconds(2), .pause_max = absl::Seconds(7)}};
};

TEST_F(CircuitBreakerTest, OpensAfterFailuresInARow) {
  Fail(2);
  EXPECT_FALSE(breaker_.open());
  EXPECT_TRUE(breaker_.Allow(now_));
  breaker_.OnFailure(now_);
  EXPECT_TRUE(breaker_.open());
  EXPECT_TRUE(breaker_.Refuses(now_));
  EXPECT_FALSE(breaker_.Allow(now_));
}

TEST_F(CircuitBreakerTest, SuccessBetweenFailuresStartsTheCountAgain) {
  Fail(2);
  breaker_.OnSuccess();
  Fail(2);
  EXPECT_FALSE(breaker_.open());
}

TEST_F(CircuitBreakerTest, OneProbeGoesAfterThePauseAndClosesIt) {
  Fail(3);
  EXPECT_FALSE(breaker_.Allow(now_ + absl::Seconds(2) - absl::Nanoseconds(1)));
  now_ += absl::Seconds(2);
  EXPECT_FALSE(breaker_.Refuses(now_));
  EXPECT_TRUE(breaker_.Allow(now_));
  EXPECT_FALSE(breaker_.Allow(now_)) << "one probe at a time";
  breaker_.OnSuccess();
  EXPECT_FALSE(breaker_.open());
  EXPECT_TRUE(breaker_.Allow(now_));
}

TEST_F(CircuitBreakerTest, FailedProbesDoubleThePauseUpToItsMost) {
  Fail(3);
  for (const absl::Duration pause :
       {absl::Seconds(2), absl::Seconds(4), absl::Seconds(7), absl::Seconds(7)}) {
    EXPECT_FALSE(breaker_.Allow(now_ + pause - absl::Nanoseconds(1)));
    now_ += pause;
    EXPECT_TRUE(breaker_.Allow(now_));
    breaker_.OnFailure(now_);
  }
}

TEST_F(CircuitBreakerTest, PauseIsShortAgainAfterASuccess) {
  Fail(3);
  now_ += absl::Seconds(2);
  ASSERT_TRUE(breaker_.Allow(now_));
  breaker_.OnFailure(now_);
  now_ += absl::Seconds(4);
  ASSERT_TRUE(breaker_.Allow(now_));
  breaker_.OnSuccess();
  Fail(3);
  EXPECT_TRUE(breaker_.Allow(now_ + absl::Seconds(2)));
}

TEST_F(CircuitBreakerTest, CallsThatBeganBeforeItOpenedDoNotLengthenThePause) {
  Fail(3);
  breaker_.OnFailure(now_ + absl::Seconds(1));
  EXPECT_TRUE(breaker_.Allow(now_ + absl::Seconds(2)));
}

TEST_F(CircuitBreakerTest, AnAbandonedProbeLetsAnotherGo) {
  Fail(3);
  now_ += absl::Seconds(2);
  ASSERT_TRUE(breaker_.Allow(now_));
  breaker_.OnAbandoned();
  EXPECT_TRUE(breaker_.open());
  EXPECT_TRUE(breaker_.Allow(now_));
}

}  // namespace
}  // namespace oscarkv::client
