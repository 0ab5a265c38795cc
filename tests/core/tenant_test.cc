// Tenants: what each may hold, who gives way when room is needed.
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "server/core/learnt_policy.h"
#include "tests/core/store_test.h"

namespace oscarkv::testing {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;

NamespaceSpec SpecOf(std::string_view tenant) {
  NamespaceSpec spec = SmallSpec();
  spec.tenant = std::string(tenant);
  return spec;
}

class TenantTest : public StoreTest, public ::testing::WithParamInterface<bool> {
 protected:
  void OpenWith(uint64_t wide_pages, TenantQuotas quotas = {}, PageStoreOptions options = {}) {
    if (GetParam()) policy_ = std::make_unique<LearntPolicy>();
    Open(wide_pages, options);
    store().SetQuotas(std::move(quotas));
  }
  const Namespace& SpaceOf(std::string_view tenant) {
    auto space = store().OpenNamespace(SpecOf(tenant), true);
    EXPECT_OK(space.status());
    return **space;
  }
  // `count` pages that extend nothing, one a second.
  std::vector<TestItem> PutSingles(const Namespace& space, uint64_t first, uint64_t count) {
    std::vector<TestItem> items;
    for (uint64_t i = 0; i < count; ++i) {
      clock_.Advance(absl::Seconds(1));
      items.push_back(Chain(space, first + i, 1)[0]);
      EXPECT_EQ(PutPage(store(), space, items.back()).status, ItemStatus::kOk) << i;
    }
    return items;
  }
  uint64_t Held(const Namespace& space) { return space.tenant().Stats().host_pages; }
  std::vector<ItemStatus> StatusesOf(const Namespace& space, const std::vector<TestItem>& items) {
    std::vector<ItemStatus> statuses;
    for (const TestItem& item : items) statuses.push_back(ReadPage(store(), space, item));
    return statuses;
  }
};

TenantQuota Pages(uint64_t pages) { return {.host_bytes = pages * kWideSlotBytes}; }
TenantQuota Protected(uint64_t pages) { return {.protected_host_bytes = pages * kWideSlotBytes}; }

TEST_P(TenantTest, FloodDoesNotEvictAnothersProtectedShare) {
  OpenWith(64, {.named = {{"quiet", Protected(24)}}, .others = {}});
  const Namespace& quiet = SpaceOf("quiet");
  const Namespace& loud = SpaceOf("loud");
  const std::vector<TestItem> kept = PutSingles(quiet, 0, 24);
  PutSingles(loud, 1000, 1000);
  EXPECT_THAT(StatusesOf(quiet, kept), Each(ItemStatus::kOk));
  EXPECT_EQ(Held(loud), 40u);
  EXPECT_EQ(quiet.tenant().Stats().evicted_pages, 0u);
}

TEST_P(TenantTest, WhoIsBelowItsShareTakesFromThoseAbove) {
  OpenWith(64, {.named = {{"late", Protected(24)}}, .others = {}});
  const Namespace& loud = SpaceOf("loud");
  const Namespace& late = SpaceOf("late");
  PutSingles(loud, 1000, 100);
  EXPECT_EQ(Held(loud), 64u);
  PutSingles(late, 0, 24);
  EXPECT_EQ(Held(loud), 40u);
  EXPECT_EQ(late.tenant().Stats().evicted_pages, 0u);
}

TEST_P(TenantTest, WithoutSharesEachHasWhatItWantsOrAnEqualPart) {
  OpenWith(60);
  const Namespace& small = SpaceOf("small");
  const Namespace& a = SpaceOf("a");
  const Namespace& b = SpaceOf("b");
  const std::vector<TestItem> few = PutSingles(small, 0, 10);
  for (uint64_t i = 0; i < 100; ++i) {
    PutSingles(a, 1000 + i * 3, 3);  // it is three times as loud
    PutSingles(b, 5000 + i, 1);
  }
  EXPECT_THAT(StatusesOf(small, few), Each(ItemStatus::kOk));
  EXPECT_NEAR(static_cast<double>(Held(a)), 25, 1);
  EXPECT_NEAR(static_cast<double>(Held(b)), 25, 1);
}

TEST_P(TenantTest, WhatIsAboveSharesIsDividedByWeight) {
  TenantQuota heavy = Protected(20);
  heavy.weight = 3;
  OpenWith(60, {.named = {{"heavy", heavy}}, .others = {}});
  const Namespace& a = SpaceOf("heavy");
  const Namespace& b = SpaceOf("light");
  for (uint64_t i = 0; i < 100; ++i) {
    PutSingles(a, 1000 + i * 2, 2);
    PutSingles(b, 5000 + i * 2, 2);
  }
  EXPECT_NEAR(static_cast<double>(Held(a)), 20 + 30, 1);
  EXPECT_NEAR(static_cast<double>(Held(b)), 10, 1);
}

TEST_P(TenantTest, PagesWithinASharesGoForPagesOfTheirOwn) {
  OpenWith(16, {.named = {{"a", Protected(8)}, {"b", Protected(8)}}, .others = {}});
  const Namespace& a = SpaceOf("a");
  const Namespace& b = SpaceOf("b");
  PutSingles(a, 0, 8);
  PutSingles(b, 100, 8);
  PutSingles(a, 200, 20);
  EXPECT_EQ(Held(a), 8u);
  EXPECT_EQ(Held(b), 8u);
  EXPECT_EQ(b.tenant().Stats().evicted_pages, 0u);
}

TEST_P(TenantTest, WhatIsAboveASharesButHeldIsPassedOver) {
  OpenWith(16, {.named = {{"quiet", Protected(8)}}, .others = {}});
  const Namespace& loud = SpaceOf("loud");
  const Namespace& quiet = SpaceOf("quiet");
  std::vector<PinnedPage> held;
  for (const TestItem& item : PutSingles(loud, 0, 12))
    held.push_back(store().Pin(loud, item.key).page);
  PutSingles(quiet, 100, 4);
  PutSingles(quiet, 200, 4);  // nobody else's may go
  EXPECT_EQ(Held(quiet), 4u);
  held.clear();
  PutSingles(quiet, 300, 4);
  EXPECT_EQ(Held(quiet), 8u);
}

TEST_P(TenantTest, QuotaOfBytesIsMetByPagesOfItsOwn) {
  OpenWith(64, {.named = {{"bounded", Pages(8)}}, .others = {}});
  const Namespace& bounded = SpaceOf("bounded");
  const Namespace& other = SpaceOf("other");
  const std::vector<TestItem> others = PutSingles(other, 1000, 20);
  PutSingles(bounded, 0, 50);
  EXPECT_EQ(Held(bounded), 8u);
  EXPECT_EQ(bounded.tenant().Stats().evicted_pages, 42u);
  EXPECT_THAT(StatusesOf(other, others), Each(ItemStatus::kOk));
}

TEST_P(TenantTest, QuotaOfPagesIsMetByPagesOfItsOwn) {
  OpenWith(64, {.named = {}, .others = {.host_pages = 3}});
  const Namespace& bounded = SpaceOf("anybody");
  PutSingles(bounded, 0, 10);
  EXPECT_EQ(Held(bounded), 3u);
}

TEST_P(TenantTest, QuotaThatNothingMayGoForIsSaid) {
  OpenWith(64, {.named = {{"bounded", Pages(4)}, {"few", {.host_pages = 2}}}, .others = {}});
  const Namespace& bounded = SpaceOf("bounded");
  std::vector<PinnedPage> held;
  for (const TestItem& item : PutSingles(bounded, 0, 4))
    held.push_back(store().Pin(bounded, item.key).page);
  const TestItem more = Chain(bounded, 100, 1)[0];
  const ItemResult refused = PutPage(store(), bounded, more);
  EXPECT_EQ(refused.status, ItemStatus::kQuota);
  EXPECT_THAT(refused.message, AllOf(HasSubstr("tenant 'bounded'"), HasSubstr("1040 bytes more"),
                                     HasSubstr("4160 of at most 4160")));
  EXPECT_EQ(bounded.tenant().Stats().refused_items, 1u);
  held.pop_back();
  EXPECT_EQ(PutPage(store(), bounded, more).status, ItemStatus::kOk);

  const Namespace& few = SpaceOf("few");
  const std::vector<TestItem> chain = Chain(few, 200, 3);
  EXPECT_EQ(PutPage(store(), few, chain[0]).status, ItemStatus::kOk);
  EXPECT_EQ(PutPage(store(), few, chain[1]).status, ItemStatus::kOk);
  const ItemResult third = PutPage(store(), few, chain[2]);  // the others are what it extends
  EXPECT_EQ(third.status, ItemStatus::kQuota);
  EXPECT_THAT(third.message, AllOf(HasSubstr("tenant 'few'"), HasSubstr("2 of at most 2")));
}

TEST_P(TenantTest, PutsUnderWayAndPagesInReadersHandsCount) {
  OpenWith(64, {.named = {}, .others = Pages(2)});
  const Namespace& space = SpaceOf("anybody");
  const TestItem first = PutSingles(space, 0, 1)[0];
  PinnedPage held = store().Pin(space, first.key).page;
  const std::string_view key = first.key;
  ASSERT_THAT(store().Delete(space, {&key, 1}), Each(ItemStatus::kOk));
  EXPECT_EQ(Held(space), 1u);
  const TestItem second = Chain(space, 1, 1)[0];
  const TestPage page = MakePage(space, Encoding::kWide, second.seed);
  BeginPutResult begun = store().BeginPut(space, AsPutItem(second, page));
  ASSERT_TRUE(begun.result.ok());
  EXPECT_EQ(Held(space), 2u);
  EXPECT_EQ(PutPage(store(), space, Chain(space, 2, 1)[0]).status, ItemStatus::kQuota);
  begun.slot = PutSlot();
  held.Reset();
  EXPECT_EQ(Held(space), 0u);
  EXPECT_EQ(space.tenant().Stats().host_bytes, 0u);
}

TEST_P(TenantTest, QuotaLoweredBelowUseTakesNoMoreThanNeeded) {
  OpenWith(64);
  const Namespace& lowered = SpaceOf("lowered");
  const Namespace& other = SpaceOf("other");
  const std::vector<TestItem> others = PutSingles(other, 1000, 20);
  const std::vector<TestItem> items = PutSingles(lowered, 0, 30);
  store().SetQuotas({.named = {{"lowered", Pages(12)}}, .others = {}});
  EXPECT_EQ(Held(lowered), 12u);
  EXPECT_EQ(lowered.tenant().Stats().evicted_pages, 18u);
  EXPECT_THAT(StatusesOf(other, others), Each(ItemStatus::kOk));
  EXPECT_EQ(store().EnforceQuotas(), 0u);
  PutSingles(lowered, 100, 5);
  EXPECT_EQ(Held(lowered), 12u);
  store().SetQuotas({});
  PutSingles(lowered, 200, 5);
  EXPECT_EQ(Held(lowered), 17u);
}

TEST_P(TenantTest, QuotaLoweredBelowWhatIsHeldIsMetWhenReadersLetGo) {
  OpenWith(64);
  const Namespace& lowered = SpaceOf("lowered");
  const std::vector<TestItem> items = PutSingles(lowered, 0, 10);
  std::vector<PinnedPage> held;
  for (const TestItem& item : items) held.push_back(store().Pin(lowered, item.key).page);
  store().SetQuotas({.named = {{"lowered", Pages(4)}}, .others = {}});
  EXPECT_EQ(Held(lowered), 10u);
  EXPECT_EQ(PutPage(store(), lowered, Chain(lowered, 100, 1)[0]).status, ItemStatus::kQuota);
  EXPECT_THAT(StatusesOf(lowered, items), Each(ItemStatus::kOk));
  held.clear();
  EXPECT_EQ(store().EnforceQuotas(), 6u);
  EXPECT_EQ(Held(lowered), 4u);
}

TEST_P(TenantTest, PinnedAndLeasedSharesAreOfWhatATenantMayHold) {
  OpenWith(64, {.named = {{"bounded", Pages(8)}}, .others = {}},
           {.leased_share_max = 0.5, .pinned_share_max = 0.25});
  const Namespace& bounded = SpaceOf("bounded");
  const std::vector<TestItem> items = PutSingles(bounded, 0, 8);
  const std::vector<std::string_view> keys = KeysOf(items);
  const std::vector<ItemStatus> pinned =
      store().Touch(bounded, keys, {.residency = Residency::kPinned});
  EXPECT_EQ(std::count(pinned.begin(), pinned.end(), ItemStatus::kOk), 2);
  EXPECT_EQ(std::count(pinned.begin(), pinned.end(), ItemStatus::kQuota), 6);
  EXPECT_EQ(bounded.tenant().Stats().pinned_bytes, 2 * kWideSlotBytes);

  const SessionId session = store().OpenSession("test");
  const std::span<const std::string_view> all(keys);
  const auto lease = [&](size_t count) {
    return store().Lookup(
        bounded, {.keys = all.first(count), .mode = LookupMode::kEach, .lease_session = session});
  };
  EXPECT_EQ(lease(5).lease_status, ItemStatus::kNoSpace);
  EXPECT_EQ(lease(4).lease_status, ItemStatus::kOk);
  EXPECT_TRUE(store().CloseSession(session));
}

TEST_P(TenantTest, PolicyJudgesPagesOfItsOwnTenantOnly) {
  // Whatever one tenant's policy has learnt, a page of another gets in.
  OpenWith(32);
  const Namespace& a = SpaceOf("a");
  const Namespace& b = SpaceOf("b");
  const std::vector<TestItem> used = PutSingles(a, 0, 32);
  for (int round = 0; round < 100; ++round) {
    clock_.Advance(absl::Seconds(5));
    store().Touch(a, KeysOf(used));
  }
  PutSingles(b, 1000, 16);
  EXPECT_EQ(Held(b), 16u);
}

TEST_P(TenantTest, TenantsAreBounded) {
  OpenWith(8, {}, {.tenants_max = 3});  // one has come with the test's own namespace
  SpaceOf("a");
  SpaceOf("b");
  NamespaceSpec again = SpecOf("b");
  again.model = "another";
  EXPECT_OK(store().OpenNamespace(again, true).status());
  const auto refused = store().OpenNamespace(SpecOf("c"), true);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("at most 3"));
}

INSTANTIATE_TEST_SUITE_P(LruAndLearnt, TenantTest, ::testing::Bool());

}  // namespace
}  // namespace oscarkv::testing
