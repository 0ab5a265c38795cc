#include "server/rpc/rpc_context.h"

#include <string>
#include <thread>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/core/store_test.h"

namespace oscarkv {
namespace {

using ::oscarkv::testing::SmallSpec;
using ::oscarkv::testing::StatusIs;
using ::oscarkv::testing::StoreTest;
using ::testing::AllOf;
using ::testing::HasSubstr;

class RpcContextTest : public StoreTest {
 protected:
  RpcContextTest() { Open(); }

  const Logger logger_{LogLevel::kError, LogFormat::kText};
};

TEST_F(RpcContextTest, BudgetOfBytesInFlightIsKept) {
  RpcContext context(RpcOptions{.max_inflight_bytes = 100}, store(), logger_);
  ItemResult why_not;
  InflightBytes first = context.TakeInflight(space(), 60, &why_not);
  ASSERT_TRUE(first);
  EXPECT_FALSE(context.TakeInflight(space(), 41, &why_not));
  EXPECT_EQ(why_not.status, ItemStatus::kBusy);
  InflightBytes second = context.TakeInflight(space(), 40, &why_not);
  ASSERT_TRUE(second);
  EXPECT_FALSE(context.TakeInflight(space(), 1, &why_not));
  EXPECT_EQ(context.inflight_bytes(), 100u);
  first = std::move(second);  // gives back what it had
  EXPECT_EQ(context.inflight_bytes(), 40u);
  first.Release();
  first.Release();
  EXPECT_EQ(context.inflight_bytes(), 0u);
}

TEST_F(RpcContextTest, OneItemAlwaysGoes) {
  RpcContext context(RpcOptions{.max_inflight_bytes = 100}, store(), logger_);
  ItemResult why_not;
  const InflightBytes large = context.TakeInflight(space(), 1'000'000, &why_not);
  EXPECT_TRUE(large);
  EXPECT_FALSE(context.TakeInflight(space(), 1, &why_not));
  EXPECT_FALSE(
      context.TakeInflight(space(), ~uint64_t{0}, &why_not));  // the sum does not wrap around
}

TEST_F(RpcContextTest, BytesInFlightOfATenantHaveAQuota) {
  store().SetQuotas({.named = {{"bounded", {.inflight_bytes = 50}}}, .others = {}});
  NamespaceSpec spec = SmallSpec();
  spec.tenant = "bounded";
  const Namespace& bounded = **store().OpenNamespace(spec, true);
  RpcContext context(RpcOptions{.max_inflight_bytes = 100}, store(), logger_);
  ItemResult why_not;
  InflightBytes first = context.TakeInflight(bounded, 30, &why_not);
  EXPECT_FALSE(context.TakeInflight(bounded, 21, &why_not));
  EXPECT_EQ(why_not.status, ItemStatus::kQuota);
  EXPECT_THAT(why_not.message, AllOf(HasSubstr("tenant 'bounded'"), HasSubstr("21 bytes"),
                                     HasSubstr("30 of at most 50")));
  // Of others it is no concern, and what another budget refuses is not kept.
  InflightBytes other = context.TakeInflight(space(), 60, &why_not);
  EXPECT_TRUE(other);
  EXPECT_FALSE(context.TakeInflight(bounded, 15, &why_not));
  EXPECT_EQ(why_not.status, ItemStatus::kBusy);
  EXPECT_EQ(bounded.tenant().inflight().taken(), 30u);
  first.Release();
  other.Release();
  EXPECT_EQ(bounded.tenant().inflight().taken(), 0u);
  EXPECT_EQ(context.inflight_bytes(), 0u);
}

TEST_F(RpcContextTest, ResolvesByFingerprintAndEpoch) {
  RpcContext context({}, store(), logger_);
  v1::Scope scope;
  scope.set_fingerprint(space().fingerprint());
  EXPECT_EQ(context.Resolve(scope).value(), &space());
  scope.set_server_epoch(context.epoch());
  EXPECT_EQ(context.Resolve(scope).value(), &space());
  scope.set_server_epoch(context.epoch() + 1);
  EXPECT_THAT(
      context.Resolve(scope),
      StatusIs(absl::StatusCode::kAborted, AllOf(HasSubstr(absl::StrCat(context.epoch())),
                                                 HasSubstr(absl::StrCat(context.epoch() + 1)))));
  scope.set_server_epoch(0);
  scope.set_fingerprint(std::string(32, '\x07'));
  EXPECT_THAT(context.Resolve(scope),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr(absl::BytesToHexString(scope.fingerprint()))));
}

TEST_F(RpcContextTest, EveryStartHasAnEpochOfItsOwn) {
  const RpcContext one({}, store(), logger_);
  const RpcContext other({}, store(), logger_);
  EXPECT_NE(one.epoch(), 0u);
  EXPECT_NE(one.epoch(), other.epoch());
}

TEST_F(RpcContextTest, CodecWaitsForTheTransformSet) {
  RpcContext context({}, store(), logger_);
  EXPECT_THAT(context.CodecFor(space()),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("not been uploaded")));
  NamespaceSpec plain = SmallSpec("plain");
  plain.codec.transform_hash.clear();
  const Namespace* wide_only = store().OpenNamespace(plain, true).value();
  const auto codec = context.CodecFor(*wide_only);
  ASSERT_OK(codec.status());
  EXPECT_EQ(context.CodecFor(*wide_only).value(), *codec);  // made once
}

struct ToldStream final : Drainable {
  void OnDrain() override { ++told; }
  int told = 0;
};

TEST_F(RpcContextTest, DrainTellsTheStreamsThatAreRegistered) {
  RpcContext context({}, store(), logger_);
  ToldStream here;
  ToldStream gone;
  context.Register(&here);
  context.Register(&gone);
  context.Unregister(&gone);
  EXPECT_FALSE(context.draining());
  context.StartDrain();
  EXPECT_TRUE(context.draining());
  EXPECT_EQ(here.told, 1);
  EXPECT_EQ(gone.told, 0);
}

TEST_F(RpcContextTest, DrainWaitsForTheLastCall) {
  RpcContext context({}, store(), logger_);
  context.CallBegins();
  context.CallBegins();
  context.StartDrain();
  context.WaitForCalls(absl::InfinitePast());  // its time is over: no wait
  EXPECT_EQ(context.calls_in_flight(), 2u);
  context.CallEnds();
  std::thread last([&] { context.CallEnds(); });
  context.WaitForCalls(absl::InfiniteFuture());
  EXPECT_EQ(context.calls_in_flight(), 0u);
  last.join();
}

TEST_F(RpcContextTest, DrainRequestCarriesItsGrace) {
  RpcContext context({}, store(), logger_);
  context.RequestDrain(absl::Seconds(1));  // nobody to tell
  absl::Duration asked;
  context.set_drain_request([&](absl::Duration grace) { asked = grace; });
  context.RequestDrain(absl::Seconds(3));
  EXPECT_EQ(asked, absl::Seconds(3));
}

TEST_F(RpcContextTest, LimitsAreThoseOfTheOptions) {
  const RpcContext context(RpcOptions{.max_items = 3,
                                      .max_chunk_bytes = 4096,
                                      .max_inflight_bytes = 5000,
                                      .lease_max = absl::Seconds(6),
                                      .max_transform_set_bytes = 7000},
                           store(), logger_);
  v1::Limits limits;
  context.FillLimits(&limits);
  EXPECT_EQ(limits.max_items(), 3u);
  EXPECT_EQ(limits.max_chunk_bytes(), 4096u);
  EXPECT_EQ(limits.max_inflight_bytes(), 5000u);
  EXPECT_EQ(limits.lease_ms_max(), 6000u);
  EXPECT_EQ(limits.max_transform_set_bytes(), 7000u);
}

}  // namespace
}  // namespace oscarkv
