// Reading pages: lookups, pins, checksums on the way out, listing, scrubbing.
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/core/store_test.h"

namespace oscarkv::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class PageReadTest : public StoreTest {
 protected:
  void SetUp() override { Open(); }

  // The statuses of the pages of a lookup.
  std::vector<ItemStatus> StatusesOf(const LookupResult& result) {
    std::vector<ItemStatus> statuses;
    for (const FoundPage& page : result.pages) statuses.push_back(page.status);
    return statuses;
  }
};

TEST_F(PageReadTest, PrefixLookupStopsAtTheFirstHole) {
  const auto chain = Chain(space(), 0, 4);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  const std::string unknown = KeyOf(999);
  const std::vector<std::string_view> keys = {chain[0].key, chain[1].key, unknown, chain[2].key};
  const LookupResult result = store().Lookup(space(), {.keys = keys});
  EXPECT_EQ(result.prefix_pages, 2u);
  EXPECT_EQ(result.hole, ItemStatus::kMiss);
  EXPECT_THAT(StatusesOf(result), ElementsAre(ItemStatus::kOk, ItemStatus::kOk));
  EXPECT_EQ(result.pages[1].meta.first_position, 4u);
  EXPECT_EQ(result.pages[1].meta.bytes, 1024u);
  EXPECT_EQ(result.fetch_bytes, 2048u);
  const StoreCounters counters = store().Stats().counters;
  EXPECT_EQ(counters.lookup_hits, 2u);
  EXPECT_EQ(counters.lookup_misses, 1u);
}

TEST_F(PageReadTest, EachLookupSaysOfEveryKey) {
  const auto chain = Chain(space(), 0, 2);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  const std::string unknown = KeyOf(999);
  const std::vector<std::string_view> keys = {unknown, chain[1].key, chain[0].key, "bad"};
  const LookupResult result = store().Lookup(space(), {.keys = keys, .mode = LookupMode::kEach});
  EXPECT_EQ(result.prefix_pages, 0u);
  EXPECT_THAT(StatusesOf(result),
              ElementsAre(ItemStatus::kMiss, ItemStatus::kOk, ItemStatus::kOk, ItemStatus::kMiss));
  EXPECT_EQ(result.fetch_bytes, 2048u);
}

TEST_F(PageReadTest, LookupOfNothingFindsNothing) {
  const LookupResult result = store().Lookup(space(), {});
  EXPECT_EQ(result.prefix_pages, 0u);
  EXPECT_EQ(result.hole, ItemStatus::kOk);
}

TEST_F(PageReadTest, PinOfAMissIsAMiss) {
  const PinResult pin = store().Pin(space(), KeyOf(1));
  EXPECT_EQ(pin.status, ItemStatus::kMiss);
  EXPECT_FALSE(pin.page);
  EXPECT_EQ(store().Stats().counters.fetch_misses, 1u);
}

TEST_F(PageReadTest, VerifiesOnlyTheBlocksAskedFor) {
  const auto chain = Chain(space(), 0, 1);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  ASSERT_TRUE(tier_->FlipBit(0, 2 * 256 + 9, 3));  // layer 1, head 0
  PinResult pin = store().Pin(space(), chain[0].key);
  EXPECT_OK(pin.page.Verified({0, 1}, {0, 2}));
  EXPECT_OK(pin.page.Verified({0, 2}, {1, 1}));
  EXPECT_EQ(store().Stats().counters.fetch_bytes, 4 * 256u);
  EXPECT_EQ(store().Stats().pages, 1u);
  EXPECT_THAT(pin.page.Verified({0, 2}, {0, 1}),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("layer 1, head 0")));
  EXPECT_EQ(store().Stats().pages, 0u);
}

TEST_F(PageReadTest, RangesPastThePageAreRefused) {
  const auto chain = Chain(space(), 0, 1);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  PinResult pin = store().Pin(space(), chain[0].key);
  const BlockRange all{0, 2};
  for (const BlockRange bad : {BlockRange{0, 0}, BlockRange{0, 3}, BlockRange{2, 1},
                               BlockRange{1, 0xffffffff}, BlockRange{0xffffffff, 2}}) {
    EXPECT_THAT(pin.page.Verified(bad, all), StatusIs(absl::StatusCode::kInvalidArgument));
    EXPECT_THAT(pin.page.Verified(all, bad), StatusIs(absl::StatusCode::kInvalidArgument));
  }
  EXPECT_EQ(store().Stats().pages, 1u);
}

TEST_F(PageReadTest, CorruptPageGoesWithWhatExtendsItAndCanBeStoredAgain) {
  const auto chain = Chain(space(), 0, 4);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  auto branch = Chain(space(), 100, 1);
  branch[0].parent = chain[1].key;
  branch[0].first_position = 8;
  ASSERT_EQ(Put(branch[0]), ItemStatus::kOk);
  ASSERT_TRUE(tier_->FlipBit(1, 0));  // chain[1]

  EXPECT_EQ(Read(chain[0]), ItemStatus::kOk);
  EXPECT_EQ(Read(chain[1]), ItemStatus::kCorrupt);
  EXPECT_EQ(Read(chain[1]), ItemStatus::kCorrupt);  // as remembered
  EXPECT_EQ(Read(chain[2]), ItemStatus::kEvicted);
  EXPECT_EQ(Read(branch[0]), ItemStatus::kEvicted);
  EXPECT_EQ(Prefix(chain), 1u);
  const StoreStats stats = store().Stats();
  EXPECT_EQ(stats.counters.corrupt_pages, 1u);
  EXPECT_EQ(stats.counters.removed_by_reason[static_cast<size_t>(RemoveReason::kCorrupt)], 1u);
  EXPECT_EQ(stats.counters.removed_by_reason[static_cast<size_t>(RemoveReason::kOrphaned)], 3u);
  EXPECT_EQ(stats.tiers[0].used_bytes, kWideSlotBytes);

  EXPECT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  for (const TestItem& item : chain) EXPECT_EQ(Read(item), ItemStatus::kOk);
}

TEST_F(PageReadTest, EverySingleFlippedBitIsCaught) {
  // One bit in each byte of the slot in turn: blocks, padding and checksums.
  for (const Encoding encoding : {Encoding::kWide, Encoding::kPacked}) {
    const auto chain = Chain(space(), 0, 1, encoding);
    const uint64_t slot_bytes = space().page_bytes(encoding) + 4 * 4;
    for (uint64_t byte = 0; byte < slot_bytes; ++byte) {
      ASSERT_EQ(Put(chain[0]), ItemStatus::kOk);
      ASSERT_TRUE(tier_->FlipBit(0, byte, static_cast<int>(byte % 8)));
      ASSERT_EQ(Read(chain[0]), ItemStatus::kCorrupt) << byte;
      ASSERT_EQ(UsedBytes(), 0u);
    }
  }
}

TEST_F(PageReadTest, ReadersOfACorruptPageKeepTheirMemory) {
  const auto chain = Chain(space(), 0, 2);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  PinResult first = store().Pin(space(), chain[0].key);
  PinResult below = store().Pin(space(), chain[1].key);
  ASSERT_TRUE(tier_->FlipBit(0, 0));
  EXPECT_EQ(Read(chain[0]), ItemStatus::kCorrupt);
  EXPECT_THAT(first.page.VerifiedPage(), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_OK(below.page.VerifiedPage());
  EXPECT_EQ(store().Stats().detached_pages, 2u);
  EXPECT_EQ(store().Stats().counters.corrupt_pages, 1u);
  EXPECT_EQ(UsedBytes(), 2 * kWideSlotBytes);
  first.page.Reset();
  EXPECT_EQ(UsedBytes(), kWideSlotBytes);
  below.page.Reset();
  EXPECT_EQ(UsedBytes(), 0u);
}

TEST_F(PageReadTest, VerifyWalksAllPagesInSteps) {
  const auto chain = Chain(space(), 0, 10);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  ASSERT_TRUE(tier_->FlipBit(9, 700));
  uint64_t cursor = 0;
  VerifyProgress total;
  int steps = 0;
  do {
    const VerifyProgress step = store().Verify(cursor, 3 * 1024);
    total.pages_checked += step.pages_checked;
    total.pages_corrupt += step.pages_corrupt;
    EXPECT_LE(step.bytes_checked, 3 * 1024u);
    cursor = step.cursor;
    ++steps;
  } while (cursor != 0);
  EXPECT_EQ(total.pages_checked, 10u);
  EXPECT_EQ(total.pages_corrupt, 1u);
  EXPECT_GE(steps, 4);
  EXPECT_EQ(Prefix(chain), 9u);
  EXPECT_EQ(store().Stats().counters.fetch_bytes, 0u);
}

TEST_F(PageReadTest, VerifyOfAnEmptyStoreIsDoneAtOnce) {
  const VerifyProgress step = store().Verify(0, 1);
  EXPECT_EQ(step.cursor, 0u);
  EXPECT_EQ(step.pages_checked, 0u);
}

TEST_F(PageReadTest, ListGoesThroughTheNamespaceOnce) {
  const auto other = store().OpenNamespace(SmallSpec("other"), true);
  ASSERT_OK(other);
  const auto chain = Chain(space(), 0, 7);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  ASSERT_EQ(PutChain(store(), **other, Chain(**other, 50, 3)), ItemStatus::kOk);
  std::set<std::pair<std::string, std::string>> listed;
  uint64_t cursor = 0;
  do {
    const ListResult part = store().List(space(), 3, cursor);
    EXPECT_LE(part.pages.size(), 3u);
    for (const ListedPage& page : part.pages)
      EXPECT_TRUE(listed.insert({page.key, page.parent}).second);
    cursor = part.cursor;
  } while (cursor != 0);
  std::set<std::pair<std::string, std::string>> expected;
  for (const TestItem& item : chain) expected.insert({item.key, item.parent});
  EXPECT_EQ(listed, expected);
}

TEST_F(PageReadTest, ListWithACursorPastTheEndIsEmpty) {
  const ListResult list = store().List(space(), 3, uint64_t{1} << 60);
  EXPECT_TRUE(list.pages.empty());
  EXPECT_EQ(list.cursor, 0u);
}

TEST_F(PageReadTest, NamespacesAreFoundByFingerprintAndBounded) {
  EXPECT_EQ(store().FindNamespace(space().fingerprint()), &space());
  EXPECT_EQ(store().FindNamespace("nothing"), nullptr);
  EXPECT_THAT(store().OpenNamespace(SmallSpec("unknown"), false),
              StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(store().OpenNamespace(SmallSpec(), false), IsOkAndHolds(&space()));
  NamespaceSpec bad = SmallSpec();
  bad.geometry.layers = 0;
  EXPECT_THAT(store().OpenNamespace(bad, true), StatusIs(absl::StatusCode::kInvalidArgument));
  Open(64, {.namespaces_max = 1});
  EXPECT_THAT(store().OpenNamespace(SmallSpec("second"), true),
              StatusIs(absl::StatusCode::kResourceExhausted));
}

TEST_F(PageReadTest, OptionsOutOfRangeAreRefused) {
  const auto create = [&](const PageStoreOptions& options) {
    return PageStore::Create(options, std::make_unique<FakeTier>(1024), nullptr, clock_).status();
  };
  EXPECT_OK(create({}));
  EXPECT_THAT(create({.leased_share_max = 1.5}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(create({.leased_share_max = -0.1}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(create({.namespaces_max = 0}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(create({.lease_max = absl::ZeroDuration()}),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(PageStore::Create({}, nullptr, nullptr, clock_),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace oscarkv::testing
