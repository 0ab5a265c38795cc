// Retries, the circuit breaker, deadlines and leases, as a store sees them.
#include <atomic>
#include <string>

#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"

#include "tests/client/fake_store.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::client {
namespace {

using ::oscarkv::testing::Fixture;
using ::oscarkv::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::Ge;

// Fails `method` with `code`, the first `times` times.
auto FailTimes(const std::string& method, grpc::StatusCode code, int times) {
  const auto left = std::make_shared<std::atomic<int>>(times);
  return [=](const std::string& called) {
    if (called != method || left->fetch_sub(1) <= 0) return grpc::Status::OK;
    return grpc::Status(code, "as the test wants");
  };
}

constexpr int kAlways = 1 << 30;

TEST(Retry, AServerThatIsUnavailableForAMomentIsAskedAgain) {
  Fixture f({.lookup_timeout = absl::Seconds(60)});
  f.store.fail = FailTimes("Lookup", grpc::UNAVAILABLE, 2);
  EXPECT_OK(f.space->Lookup(f.keys)->store);
  EXPECT_EQ(f.store.calls("Lookup"), 3);
  EXPECT_EQ(f.client->counters().retries, 2u);
  EXPECT_EQ(f.client->counters().failures, 0u);
}

TEST(Retry, NotMoreOftenThanAttempts) {
  Fixture f({.lookup_timeout = absl::Seconds(60), .attempts = 2});
  f.store.fail = FailTimes("Lookup", grpc::UNAVAILABLE, kAlways);
  EXPECT_THAT(f.space->Lookup(f.keys)->store, StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(f.store.calls("Lookup"), 2);
  EXPECT_EQ(f.client->counters().failures, 1u);
}

TEST(Retry, NotBeyondTheDeadline) {
  Fixture f({.lookup_timeout = absl::Milliseconds(100), .attempts = kAlways});
  f.store.fail = FailTimes("Lookup", grpc::UNAVAILABLE, kAlways);
  EXPECT_FALSE(f.space->Lookup(f.keys)->store.ok());  // and it returns at all
}

TEST(Retry, APutIsSentAgainWhole) {
  Fixture f({.push_timeout = absl::Seconds(60)});
  f.store.fail = FailTimes("Put", grpc::UNAVAILABLE, 1);
  EXPECT_THAT(f.Push()->statuses, ElementsAre(ItemStatus::kOk, ItemStatus::kOk, ItemStatus::kOk));
  ASSERT_OK(f.Fetch());
  EXPECT_TRUE(f.destination.SameRows(f.source, 0, 12));
}

class RetryOfCode : public ::testing::TestWithParam<grpc::StatusCode> {};

TEST_P(RetryOfCode, OtherErrorsAreFinal) {
  Fixture f({.lookup_timeout = absl::Seconds(60)});
  f.store.fail = FailTimes("Lookup", GetParam(), kAlways);
  const auto hit = f.space->Lookup(f.keys);
  ASSERT_OK(hit);
  EXPECT_EQ(static_cast<int>(hit->store.code()), static_cast<int>(GetParam()));
  EXPECT_EQ(hit->pages, 0u);
  EXPECT_EQ(f.store.calls("Lookup"), 1);
}

INSTANTIATE_TEST_SUITE_P(, RetryOfCode,
                         ::testing::Values(grpc::CANCELLED, grpc::UNKNOWN, grpc::INVALID_ARGUMENT,
                                           grpc::DEADLINE_EXCEEDED, grpc::NOT_FOUND,
                                           grpc::ALREADY_EXISTS, grpc::PERMISSION_DENIED,
                                           grpc::RESOURCE_EXHAUSTED, grpc::OUT_OF_RANGE,
                                           grpc::UNIMPLEMENTED, grpc::INTERNAL, grpc::DATA_LOSS,
                                           grpc::UNAUTHENTICATED));

BreakerOptions LongBreaker() {
  return {.failures = 3, .pause = absl::Hours(1), .pause_max = absl::Hours(1)};
}

TEST(Breaker, AfterFailuresCallsAreMissesWithoutAskingOrEncoding) {
  Fixture f({.breaker = LongBreaker()});
  f.store.fail = FailTimes("Lookup", grpc::INTERNAL, kAlways);
  for (int i = 0; i < 3; ++i) ASSERT_OK(f.space->Lookup(f.keys));
  EXPECT_THAT(f.space->Lookup(f.keys)->store, StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(f.store.calls("Lookup"), 3);
  const auto pushed = f.Push();
  ASSERT_OK(pushed);
  EXPECT_EQ(pushed->encode.rows, 0u);
  EXPECT_EQ(f.store.calls("Put"), 0);
  const auto fetched = f.Fetch();
  ASSERT_OK(fetched);
  EXPECT_THAT(fetched->statuses,
              ElementsAre(ItemStatus::kMiss, ItemStatus::kSkipped, ItemStatus::kSkipped));
  EXPECT_TRUE(f.destination.SameRows(f.untouched, 0, 64));
  EXPECT_THAT(*f.space->Touch(f.keys),
              ElementsAre(ItemStatus::kMiss, ItemStatus::kMiss, ItemStatus::kMiss));
  EXPECT_THAT(f.client->counters().refused_by_breaker, Ge(3u));
}

TEST(Breaker, ErrorsThatAreAnswersDoNotOpenIt) {
  Fixture f({.breaker = LongBreaker()});
  f.store.fail = FailTimes("Lookup", grpc::RESOURCE_EXHAUSTED, kAlways);
  for (int i = 0; i < 9; ++i) ASSERT_OK(f.space->Lookup(f.keys));
  EXPECT_EQ(f.store.calls("Lookup"), 9);
}

TEST(Breaker, AProbeClosesIt) {
  Fixture f({.breaker = {.failures = 1, .pause = absl::Nanoseconds(1)}});
  f.store.fail = FailTimes("Lookup", grpc::INTERNAL, 1);
  EXPECT_FALSE(f.space->Lookup(f.keys)->store.ok());
  EXPECT_OK(f.space->Lookup(f.keys)->store);
  EXPECT_OK(f.space->Lookup(f.keys)->store);
}

// A server that takes a call and is silent, until the test ends.
struct Silence {
  explicit Silence(Fixture* fixture, const std::string& method = "") : f(fixture) {
    f->store.enter = [this, method](const std::string& called) {
      if (method.empty() || called == method) over.WaitForNotification();
    };
  }
  ~Silence() { over.Notify(); }
  Fixture* f;
  absl::Notification over;
};

constexpr absl::Duration kShort = absl::Milliseconds(50);

TEST(Deadline, EveryCallEndsWithinItsOwn) {
  Fixture f({.control_timeout = kShort,
             .lookup_timeout = kShort,
             .fetch_timeout = kShort,
             .push_timeout = kShort});
  const Silence silence(&f);
  const auto late = StatusIs(absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(f.space->Lookup(f.keys)->store, late);
  EXPECT_THAT(f.space->Lookup(f.keys, {.lease = true})->store, late);
  EXPECT_THAT(f.Fetch()->store, late);
  EXPECT_THAT(f.Push()->store, late);
  EXPECT_THAT(f.space->List(10), late);
}

TEST(Deadline, OpeningAgainIsPartOfTheCall) {
  Fixture f({.control_timeout = absl::Hours(1), .lookup_timeout = kShort});
  f.store.SetEpoch(2);
  const Silence silence(&f, "OpenNamespace");
  EXPECT_THAT(f.space->Lookup(f.keys)->store, StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST(Deadline, AnUploadGoesOnAfterThePushThatNeededIt) {
  const auto transforms = ::oscarkv::testing::SmallTransformFile();
  Fixture f({.push_timeout = kShort}, transforms);
  f.store.SetEpoch(2);
  {
    const Silence silence(&f, "PutTransformSet");
    EXPECT_THAT(f.Push()->store, StatusIs(absl::StatusCode::kDeadlineExceeded));
    EXPECT_THAT(f.Push()->store, StatusIs(absl::StatusCode::kDeadlineExceeded));
    EXPECT_EQ(f.store.calls("PutTransformSet"), 2) << "one when it was opened, one now";
  }
  f.store.AwaitTransforms();
  EXPECT_EQ(f.store.transform_file(), transforms);
}

TEST(Lease, IsAskedForInASessionAndReleasedOnce) {
  Fixture f({.lookup_timeout = absl::Seconds(60)});
  ASSERT_OK(f.Push());
  {
    auto hit = f.space->Lookup(f.keys, {.lease = true});
    ASSERT_OK(hit);
    EXPECT_EQ(hit->lease.id(), 42u);
    EXPECT_TRUE(f.store.last_lookup().lease());
    EXPECT_EQ(f.store.last_lookup().session_id(), 77u);
    Lease moved = std::move(hit->lease);
    EXPECT_FALSE(hit->lease);
    EXPECT_THAT(f.store.released_leases(), ElementsAre());
  }
  EXPECT_THAT(f.store.released_leases(), ElementsAre(42u));
  EXPECT_EQ(f.store.calls("Session"), 1);
}

TEST(Lease, OutlivesItsClient) {
  Fixture f({.lookup_timeout = absl::Seconds(60)});
  auto hit = f.space->Lookup(f.keys, {.lease = true});
  ASSERT_OK(hit);
  f.space.reset();
  f.client.reset();
  hit->lease.Release();
  EXPECT_THAT(f.store.released_leases(), ElementsAre(42u));
}

TEST(Lease, WithoutASessionAHitIsStillAHit) {
  Fixture f({.lookup_timeout = absl::Seconds(1),
             .fetch_paths = {DataPath::kGrpc},
             .push_paths = {DataPath::kGrpc}});  // others agree on them in a session
  ASSERT_OK(f.Push());
  const Silence silence(&f, "Session");
  const auto hit = f.space->Lookup(f.keys, {.lease = true});
  ASSERT_OK(hit);
  EXPECT_OK(hit->store);
  EXPECT_EQ(hit->pages, 3u);
  EXPECT_FALSE(hit->lease);
  EXPECT_FALSE(f.store.last_lookup().lease());
}

}  // namespace
}  // namespace oscarkv::client
