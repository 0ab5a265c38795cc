// Pages that clients pin, pages that may go first, and pages past their time to live.
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "server/core/learnt_policy.h"
#include "tests/core/store_test.h"

namespace oscarkv::testing {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

class ResidencyTest : public StoreTest, public ::testing::WithParamInterface<bool> {
 protected:
  void OpenWith(uint64_t wide_pages, PageStoreOptions options = {}) {
    if (GetParam()) policy_ = std::make_unique<LearntPolicy>();
    Open(wide_pages, options);
  }
  ItemStatus PutAs(const TestItem& item, Residency residency) {
    const TestPage page = MakePage(space(), item.encoding, item.seed);
    PutItem put = AsPutItem(item, page);
    put.request = {.number = ++requests_, .residency = residency};
    BeginPutResult begun = store().BeginPut(space(), put);
    if (!begun.result.ok()) return begun.result.status;
    std::memcpy(begun.slot.bytes().data(), page.bytes.data(), page.bytes.size());
    return begun.slot.Commit().status;
  }
  std::vector<ItemStatus> TouchAs(const std::vector<TestItem>& items, Residency residency) {
    return store().Touch(space(), KeysOf(items), {.residency = residency});
  }
  uint64_t Pinned() { return store().Stats().pinned_bytes; }

  uint64_t requests_ = 0;
};

TEST_P(ResidencyTest, PinnedPagesStayUnderPressure) {
  OpenWith(8);
  const std::vector<TestItem> pinned = Chain(space(), 0, 2);
  for (const TestItem& item : pinned) ASSERT_EQ(PutAs(item, Residency::kPinned), ItemStatus::kOk);
  EXPECT_EQ(Pinned(), 2 * kWideSlotBytes);
  for (uint64_t i = 0; i < 40; ++i) {
    clock_.Advance(absl::Seconds(1));
    ASSERT_EQ(PutAs(Chain(space(), 100 + i, 1)[0], Residency::kUnspecified), ItemStatus::kOk);
  }
  EXPECT_EQ(Prefix(pinned), 2u);
  // Used as normal pages they may go, and do.
  EXPECT_THAT(TouchAs(pinned, Residency::kMayGoFirst), Each(ItemStatus::kOk));
  EXPECT_EQ(Pinned(), 0u);
  for (uint64_t i = 0; i < 2; ++i)
    ASSERT_EQ(PutAs(Chain(space(), 200 + i, 1)[0], Residency::kUnspecified), ItemStatus::kOk);
  EXPECT_EQ(Prefix(pinned), 0u);
}

TEST_P(ResidencyTest, PinningHasACeiling) {
  OpenWith(8, {.pinned_share_max = 0.25});
  std::vector<TestItem> items = Chain(space(), 0, 3);
  EXPECT_EQ(PutAs(items[0], Residency::kPinned), ItemStatus::kOk);
  EXPECT_EQ(PutAs(items[1], Residency::kPinned), ItemStatus::kOk);
  EXPECT_EQ(PutAs(items[2], Residency::kPinned), ItemStatus::kQuota);
  EXPECT_EQ(PutAs(items[2], Residency::kUnspecified), ItemStatus::kOk);
  // A use pins what fits; the others are used all the same.
  EXPECT_THAT(TouchAs(items, Residency::kPinned),
              ElementsAre(ItemStatus::kOk, ItemStatus::kOk, ItemStatus::kQuota));
  // What goes makes room.
  const std::string_view last = items[1].key;
  store().Delete(space(), {&last, 1});
  EXPECT_EQ(Pinned(), kWideSlotBytes);
  EXPECT_EQ(PutAs(items[1], Residency::kPinned), ItemStatus::kOk);
}

TEST_P(ResidencyTest, PutThatMeetsTheCeilingAtItsEndIsRefused) {
  OpenWith(8, {.pinned_share_max = 0.125});
  const TestItem first = Chain(space(), 0, 1)[0];
  const TestItem second = Chain(space(), 1, 1)[0];
  const TestPage page = MakePage(space(), Encoding::kWide, first.seed);
  PutItem put = AsPutItem(first, page);
  put.request.residency = Residency::kPinned;
  BeginPutResult begun = store().BeginPut(space(), put);
  ASSERT_TRUE(begun.result.ok());
  ASSERT_EQ(PutAs(second, Residency::kPinned), ItemStatus::kOk);
  std::memcpy(begun.slot.bytes().data(), page.bytes.data(), page.bytes.size());
  EXPECT_EQ(begun.slot.Commit().status, ItemStatus::kQuota);
  EXPECT_EQ(store().Stats().pages, 1u);
}

TEST_P(ResidencyTest, PagesThatMayGoFirstGoFirst) {
  OpenWith(4);
  for (uint64_t i = 0; i < 3; ++i)
    ASSERT_EQ(PutAs(Chain(space(), i, 1)[0], Residency::kNormal), ItemStatus::kOk);
  ASSERT_EQ(PutAs(Chain(space(), 3, 1)[0], Residency::kMayGoFirst), ItemStatus::kOk);
  clock_.Advance(absl::Seconds(1));
  ASSERT_EQ(PutAs(Chain(space(), 4, 1)[0], Residency::kNormal), ItemStatus::kOk);
  EXPECT_EQ(Prefix(Chain(space(), 3, 1)), 0u);
  EXPECT_EQ(Prefix(Chain(space(), 0, 1)), 1u);
}

TEST_P(ResidencyTest, UnusedPagesEndWithTheirTime) {
  OpenWith(16);
  const std::vector<TestItem> old = Chain(space(), 0, 3);
  const std::vector<TestItem> used = Chain(space(), 10, 3);
  ASSERT_EQ(PutChain(store(), space(), old), ItemStatus::kOk);
  ASSERT_EQ(PutChain(store(), space(), used), ItemStatus::kOk);
  clock_.Advance(absl::Hours(10));
  EXPECT_EQ(store().ExpirePages(), 0u);  // nobody set a time
  store().SetPageTtl(space(), absl::Hours(11));
  clock_.Advance(absl::Minutes(30));
  store().Touch(space(), KeysOf(used));
  EXPECT_EQ(store().ExpirePages(), 0u);
  clock_.Advance(absl::Minutes(31));
  EXPECT_EQ(store().ExpirePages(), 3u);
  EXPECT_EQ(Prefix(old), 0u);
  EXPECT_EQ(Prefix(used), 3u);
  const StoreCounters counters = store().Stats().counters;
  EXPECT_EQ(counters.removed_by_reason[static_cast<size_t>(RemoveReason::kExpired)], 3u);
}

TEST_P(ResidencyTest, PageLivesOnWhileOneBehindItIsUsedOrItIsHeld) {
  OpenWith(16);
  store().SetPageTtl(space(), absl::Minutes(10));
  const std::vector<TestItem> items = Chain(space(), 0, 3);
  const TestItem alone = Chain(space(), 10, 1)[0];
  ASSERT_EQ(PutChain(store(), space(), items), ItemStatus::kOk);
  ASSERT_EQ(Put(alone), ItemStatus::kOk);
  clock_.Advance(absl::Minutes(9));
  const std::string_view middle = items[1].key;
  store().Touch(space(), {&middle, 1});
  PinResult pin = store().Pin(space(), alone.key);
  clock_.Advance(absl::Minutes(2));
  EXPECT_EQ(store().ExpirePages(), 1u);
  EXPECT_EQ(Prefix(items), 2u);
  EXPECT_EQ(Prefix({alone}), 1u);
  pin.page.Reset();
  clock_.Advance(absl::Minutes(10));
  EXPECT_EQ(store().ExpirePages(), 3u);
  EXPECT_EQ(store().Stats().pages, 0u);
}

INSTANTIATE_TEST_SUITE_P(LruAndLearnt, ResidencyTest, ::testing::Bool());

}  // namespace
}  // namespace oscarkv::testing
