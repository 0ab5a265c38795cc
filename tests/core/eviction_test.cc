// What goes when room is needed, and what Delete and Clear take.
#include <algorithm>
#include <cstring>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "server/tier/host_tier.h"
#include "tests/core/store_test.h"

namespace oscarkv::testing {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class EvictionTest : public StoreTest {
 protected:
  std::vector<ItemStatus> Delete(const std::vector<TestItem>& items) {
    return store().Delete(space(), KeysOf(items));
  }
  void Touch(const std::vector<TestItem>& items) { store().Touch(space(), KeysOf(items)); }
  PinnedPage Pin(const TestItem& item) { return store().Pin(space(), item.key).page; }
};

TEST_F(EvictionTest, LeastRecentlyUsedLeafGoesFirst) {
  Open(8);
  const auto old_chain = Chain(space(), 0, 4);
  const auto new_chain = Chain(space(), 100, 4);
  ASSERT_EQ(PutChain(store(), space(), old_chain), ItemStatus::kOk);
  ASSERT_EQ(PutChain(store(), space(), new_chain), ItemStatus::kOk);
  const auto more = Chain(space(), 200, 3);
  for (uint32_t i = 0; i < 3; ++i) {
    ASSERT_EQ(Put(more[i]), ItemStatus::kOk);
    EXPECT_EQ(Prefix(old_chain), 3 - i);  // from its end, without a hole
  }
  EXPECT_EQ(Prefix(new_chain), 4u);
  EXPECT_EQ(Read(old_chain[3]), ItemStatus::kEvicted);
  const StoreStats stats = store().Stats();
  EXPECT_EQ(stats.counters.removed_by_reason[static_cast<size_t>(RemoveReason::kEvicted)], 3u);
  EXPECT_EQ(stats.counters.evicted_bytes, 3 * 1024u);
  EXPECT_LE(stats.tiers[0].used_bytes, stats.tiers[0].capacity_bytes);
}

TEST_F(EvictionTest, LookingDoesNotRefreshButTouchDoes) {
  Open(4);
  const auto a = Chain(space(), 0, 2);
  const auto b = Chain(space(), 100, 2);
  ASSERT_EQ(PutChain(store(), space(), a), ItemStatus::kOk);
  ASSERT_EQ(PutChain(store(), space(), b), ItemStatus::kOk);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(Prefix(a), 2u);
  ASSERT_EQ(Put(Chain(space(), 200, 1)[0]), ItemStatus::kOk);
  EXPECT_EQ(Prefix(a), 1u);  // looked at a hundred times, and went first
  EXPECT_EQ(Prefix(b), 2u);

  Touch(a);
  ASSERT_EQ(Put(Chain(space(), 300, 1)[0]), ItemStatus::kOk);
  EXPECT_EQ(Prefix(a), 1u);
  EXPECT_EQ(Prefix(b), 1u);
}

TEST_F(EvictionTest, TouchOfAFetchTakesTheDeepestFirst) {
  Open(6);
  const auto a = Chain(space(), 0, 3);
  const auto b = Chain(space(), 100, 3);
  ASSERT_EQ(PutChain(store(), space(), a), ItemStatus::kOk);
  ASSERT_EQ(PutChain(store(), space(), b), ItemStatus::kOk);
  Touch(a);
  Touch({b[0], b[1]});  // its last page was not fetched: oldest
  ASSERT_EQ(Put(Chain(space(), 200, 1)[0]), ItemStatus::kOk);
  EXPECT_EQ(Prefix(b), 2u);
  ASSERT_EQ(Put(Chain(space(), 300, 1)[0]), ItemStatus::kOk);
  EXPECT_EQ(Prefix(a), 2u);
  EXPECT_EQ(Prefix(b), 2u);
}

TEST_F(EvictionTest, PinnedPagesAndTheirParentsStay) {
  Open(4);
  const auto chain = Chain(space(), 0, 4);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  PinnedPage held = Pin(chain[3]);
  const auto other = Chain(space(), 100, 1);
  const ItemResult refused = PutPage(store(), space(), other[0]);
  EXPECT_EQ(refused.status, ItemStatus::kNoSpace);
  EXPECT_THAT(refused.message, HasSubstr("full"));
  EXPECT_EQ(Prefix(chain), 4u);
  EXPECT_OK(held.VerifiedPage());
  held.Reset();
  EXPECT_EQ(Put(other[0]), ItemStatus::kOk);
  EXPECT_EQ(Prefix(chain), 3u);
}

TEST_F(EvictionTest, AnInnerPinLetsTheLeavesGo) {
  Open(4);
  const auto chain = Chain(space(), 0, 4);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  const PinnedPage held = Pin(chain[1]);
  const auto others = Chain(space(), 100, 2);
  EXPECT_EQ(PutChain(store(), space(), others), ItemStatus::kOk);
  EXPECT_EQ(Prefix(chain), 2u);
  EXPECT_EQ(Prefix(others), 2u);
}

TEST_F(EvictionTest, APutNeverEvictsItsOwnParent) {
  Open(2);
  const auto chain = Chain(space(), 0, 3);
  EXPECT_EQ(Put(chain[0]), ItemStatus::kOk);
  EXPECT_EQ(Put(chain[1]), ItemStatus::kOk);
  EXPECT_EQ(Put(chain[2]), ItemStatus::kNoSpace);
  EXPECT_EQ(Prefix(chain), 2u);
  EXPECT_EQ(store().Stats().pins, 0u);
  EXPECT_EQ(Put(Chain(space(), 100, 1)[0]), ItemStatus::kOk);
}

TEST_F(EvictionTest, HalfWrittenPagesAreNotEvicted) {
  Open(2);
  const auto items = Chain(space(), 0, 1);
  const TestPage page = MakePage(space(), Encoding::kWide, items[0].seed);
  BeginPutResult begun = store().BeginPut(space(), AsPutItem(items[0], page));
  std::memcpy(begun.slot.bytes().data(), page.bytes.data(), page.bytes.size());
  for (uint64_t i = 1; i < 10; ++i) ASSERT_EQ(Put(Chain(space(), i * 100, 1)[0]), ItemStatus::kOk);
  EXPECT_EQ(begun.slot.Commit().status, ItemStatus::kOk);
  EXPECT_EQ(Read(items[0]), ItemStatus::kOk);
}

TEST_F(EvictionTest, ManyHeldPagesDoNotHideTheOneThatMayGo) {
  Open(64);
  std::vector<PinnedPage> held;
  for (uint64_t i = 0; i < 63; ++i) {
    const auto item = Chain(space(), i * 100, 1);
    ASSERT_EQ(Put(item[0]), ItemStatus::kOk);
    held.push_back(Pin(item[0]));
  }
  for (uint64_t i = 63; i < 70; ++i)
    EXPECT_EQ(Put(Chain(space(), i * 100, 1)[0]), ItemStatus::kOk) << i;
  held.clear();
  for (uint64_t i = 70; i < 140; ++i)
    EXPECT_EQ(Put(Chain(space(), i * 100, 1)[0]), ItemStatus::kOk) << i;
  EXPECT_EQ(store().Stats().pages, 64u);
}

TEST_F(EvictionTest, WorkOfOnePutIsBounded) {
  Open(64, {.evictions_per_put_max = 8});
  std::vector<PinnedPage> held;
  for (uint64_t i = 0; i < 64; ++i) {
    const auto item = Chain(space(), i * 100, 1);
    ASSERT_EQ(Put(item[0]), ItemStatus::kOk);
    if (i < 20) held.push_back(Pin(item[0]));
  }
  // Each try passes over eight held pages at most, and the next goes on from there.
  const auto late = Chain(space(), 9900, 1);
  EXPECT_EQ(Put(late[0]), ItemStatus::kNoSpace);
  EXPECT_EQ(Put(late[0]), ItemStatus::kNoSpace);
  EXPECT_EQ(Put(late[0]), ItemStatus::kOk);
}

TEST_F(EvictionTest, DeleteTakesWhatExtends) {
  Open();
  const auto chain = Chain(space(), 0, 4);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  EXPECT_THAT(Delete({chain[2], chain[3], Chain(space(), 900, 1)[0]}),
              ElementsAre(ItemStatus::kOk, ItemStatus::kMiss, ItemStatus::kMiss));
  EXPECT_EQ(Prefix(chain), 2u);
  EXPECT_EQ(UsedBytes(), 2 * kWideSlotBytes);
  EXPECT_EQ(Read(chain[2]), ItemStatus::kMiss);
}

TEST_F(EvictionTest, DeleteOfALargeTreeLeavesTheRest) {
  Open(2000);
  const auto stem = Chain(space(), 0, 2);
  ASSERT_EQ(PutChain(store(), space(), stem), ItemStatus::kOk);
  for (uint64_t branch = 1; branch <= 10; ++branch) {
    auto items = Chain(space(), branch * 1000, 100);
    items[0].parent = stem[1].key;
    for (TestItem& item : items) item.first_position += 8;
    ASSERT_EQ(PutChain(store(), space(), items), ItemStatus::kOk);
  }
  EXPECT_EQ(store().Stats().pages, 1002u);
  EXPECT_THAT(Delete({stem[1]}), ElementsAre(ItemStatus::kOk));
  EXPECT_EQ(store().Stats().pages, 1u);
  EXPECT_EQ(UsedBytes(), kWideSlotBytes);
  EXPECT_EQ(Prefix(stem), 1u);
}

TEST_F(EvictionTest, DeletedPagesStayWithTheirReaders) {
  Open();
  const auto chain = Chain(space(), 0, 2);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  PinnedPage held = Pin(chain[1]);
  EXPECT_THAT(Delete({chain[0]}), ElementsAre(ItemStatus::kOk));
  EXPECT_EQ(Prefix(chain), 0u);
  EXPECT_EQ(UsedBytes(), kWideSlotBytes);
  EXPECT_OK(held.VerifiedPage());
  // The same key may be stored anew while the old bytes are read.
  auto again = chain;
  for (TestItem& item : again) item.seed += 1000;
  EXPECT_EQ(PutChain(store(), space(), again), ItemStatus::kOk);
  const TestPage old_page = MakePage(space(), Encoding::kWide, chain[1].seed);
  const auto bytes = held.VerifiedPage();
  ASSERT_OK(bytes);
  EXPECT_TRUE(std::ranges::equal(*bytes, old_page.bytes));
  EXPECT_EQ(Read(again[1]), ItemStatus::kOk);
  held.Reset();
  EXPECT_EQ(UsedBytes(), 2 * kWideSlotBytes);
  EXPECT_EQ(store().Stats().detached_pages, 0u);
}

TEST_F(EvictionTest, ClearKeepsWhatIsHeldAndWhatThatExtends) {
  Open();
  const auto other = store().OpenNamespace(SmallSpec("other"), true);
  ASSERT_OK(other);
  const auto foreign = Chain(**other, 0, 3);
  ASSERT_EQ(PutChain(store(), **other, foreign), ItemStatus::kOk);
  const auto chain = Chain(space(), 0, 5);
  const auto gone = Chain(space(), 100, 5);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  ASSERT_EQ(PutChain(store(), space(), gone), ItemStatus::kOk);
  PinnedPage held = Pin(chain[2]);
  const ClearResult cleared = store().Clear(space());
  EXPECT_EQ(cleared.removed, 7u);
  EXPECT_EQ(cleared.kept, 3u);
  EXPECT_EQ(Prefix(chain), 3u);
  EXPECT_EQ(Prefix(gone), 0u);
  EXPECT_EQ(PrefixPages(store(), **other, foreign), 3u);
  held.Reset();
  EXPECT_EQ(store().Clear(space()).removed, 3u);
  EXPECT_EQ(UsedBytes(), 3 * kWideSlotBytes);
}

// --- Two page sizes in one arena ---

class RegionTest : public EvictionTest {
 protected:
  // A slab of one unit holds 8 WIDE slots (1040 bytes, rounded up to 1088) or 15 PACKED ones (528,
  // 576).
  static constexpr uint64_t kUnit = 8 * 1088;
  static constexpr uint64_t kSlabPages = 8;
  void OpenHost(uint64_t units, PageStoreOptions options = {}) {
    auto tier = HostTier::Create({.capacity_bytes = units * kUnit, .unit_bytes = kUnit});
    ASSERT_OK(tier);
    OpenOver(*std::move(tier), options);
  }
  // Single pages, so that each may go by itself.
  void FillWith(Encoding encoding, uint64_t first, uint64_t count) {
    for (uint64_t i = 0; i < count; ++i) {
      const auto item = Chain(space(), first + i, 1, encoding);
      ASSERT_EQ(Put(item[0]), ItemStatus::kOk) << i;
    }
  }
  uint64_t CountOf(Encoding encoding, uint64_t first, uint64_t count,
                   ItemStatus absent = ItemStatus::kEvicted) {
    uint64_t found = 0;
    for (uint64_t i = 0; i < count; ++i) {
      const ItemStatus status = Read(Chain(space(), first + i, 1, encoding)[0]);
      EXPECT_TRUE(status == ItemStatus::kOk || status == absent);
      found += status == ItemStatus::kOk ? 1 : 0;
    }
    return found;
  }
};

TEST_F(RegionTest, AnArenaFullOfOneSizeMakesRoomForTheOther) {
  OpenHost(16);
  FillWith(Encoding::kWide, 0, 16 * kSlabPages);
  const auto packed = Chain(space(), 5000, 1, Encoding::kPacked);
  EXPECT_EQ(Put(packed[0]), ItemStatus::kOk);
  EXPECT_EQ(Read(packed[0]), ItemStatus::kOk);
  // No more went than one slab holds.
  EXPECT_GE(CountOf(Encoding::kWide, 0, 16 * kSlabPages), 16 * kSlabPages - kSlabPages);
  const TierStats tier = store().Stats().tiers[0];
  EXPECT_LE(tier.used_bytes + tier.free_bytes + tier.stranded_bytes, tier.capacity_bytes);
}

TEST_F(RegionTest, ScatteredFreeSlotsAreGatheredByMovingPages) {
  OpenHost(8);
  FillWith(Encoding::kWide, 0, 8 * kSlabPages);
  // One page of each slab goes: 8 free slots, none of use to another size.
  for (uint64_t i = 0; i < 8; ++i) Delete({Chain(space(), i * kSlabPages, 1)[0]});
  FillWith(Encoding::kPacked, 5000, 10);
  const StoreStats stats = store().Stats();
  EXPECT_EQ(stats.counters.removed_by_reason[static_cast<size_t>(RemoveReason::kEvicted)], 0u);
  EXPECT_GE(stats.counters.moved_pages, 1u);
  EXPECT_EQ(CountOf(Encoding::kPacked, 5000, 10), 10u);
  EXPECT_EQ(CountOf(Encoding::kWide, 0, 8 * kSlabPages, ItemStatus::kMiss), 8 * (kSlabPages - 1));
}

TEST_F(RegionTest, PagesInTransferAreNotMoved) {
  OpenHost(4);
  FillWith(Encoding::kWide, 0, 4 * kSlabPages);
  std::vector<PinnedPage> held;
  std::vector<const std::byte*> places;
  for (uint64_t slab = 0; slab < 4; ++slab) {
    held.push_back(Pin(Chain(space(), slab * kSlabPages, 1)[0]));
    const auto bytes = held.back().VerifiedPage();
    ASSERT_OK(bytes);
    places.push_back(bytes->data());
    Delete(
        {Chain(space(), slab * kSlabPages + 1, 1)[0], Chain(space(), slab * kSlabPages + 2, 1)[0]});
  }
  const auto packed = Chain(space(), 5000, 1, Encoding::kPacked);
  EXPECT_EQ(Put(packed[0]), ItemStatus::kNoSpace);
  for (size_t i = 0; i < held.size(); ++i) {
    const auto bytes = held[i].VerifiedPage();
    ASSERT_OK(bytes);
    EXPECT_EQ(bytes->data(), places[i]);
  }
  held.pop_back();
  EXPECT_EQ(Put(packed[0]), ItemStatus::kOk);
}

TEST_F(RegionTest, AReaderThatComesDuringAMoveKeepsItsPlace) {
  OpenHost(2);
  FillWith(Encoding::kWide, 0, 2 * kSlabPages);
  // Five pages of each slab go: what is left of one slab could move to the other.
  std::vector<TestItem> kept;
  for (uint64_t i = 0; i < 2 * kSlabPages; ++i) {
    const TestItem item = Chain(space(), i, 1)[0];
    if (i % kSlabPages < 5)
      Delete({item});
    else
      kept.push_back(item);
  }
  std::vector<PinnedPage> readers;
  int reserves = 0;
  tier_->OnReserve([&] {
    // The first is the put's own; the second is for the copy of a page that moves.
    if (++reserves != 2) return;
    for (const TestItem& item : kept) readers.push_back(Pin(item));
  });
  EXPECT_EQ(Put(Chain(space(), 5000, 1, Encoding::kPacked)[0]), ItemStatus::kNoSpace);
  ASSERT_EQ(readers.size(), 6u);
  tier_->OnReserve(nullptr);
  EXPECT_EQ(store().Stats().counters.moved_pages, 0u);
  // Whatever is stored now is not stored over what they read.
  FillWith(Encoding::kWide, 6000, 10);
  for (size_t i = 0; i < readers.size(); ++i) {
    const auto bytes = readers[i].VerifiedPage();
    ASSERT_OK(bytes);
    EXPECT_TRUE(std::ranges::equal(*bytes, MakePage(space(), Encoding::kWide, kept[i].seed).bytes));
  }
  readers.clear();
  EXPECT_EQ(Put(Chain(space(), 5000, 1, Encoding::kPacked)[0]), ItemStatus::kOk);
}

TEST_F(RegionTest, LeasedPagesMayMove) {
  OpenHost(4, {.leased_share_max = 1.0});
  FillWith(Encoding::kWide, 0, 4 * kSlabPages);
  std::vector<TestItem> kept;
  for (uint64_t i = 0; i < 4 * kSlabPages; ++i) {
    if (i % kSlabPages < 2)
      Delete({Chain(space(), i, 1)[0]});
    else
      kept.push_back(Chain(space(), i, 1)[0]);
  }
  const SessionId session = store().OpenSession("test");
  const auto keys = KeysOf(kept);
  const LookupResult leased =
      store().Lookup(space(), {.keys = keys, .mode = LookupMode::kEach, .lease_session = session});
  ASSERT_NE(leased.lease, 0u);
  EXPECT_EQ(Put(Chain(space(), 5000, 1, Encoding::kPacked)[0]), ItemStatus::kOk);
  for (const TestItem& item : kept) EXPECT_EQ(Read(item), ItemStatus::kOk);
}

TEST_F(RegionTest, BothSizesAlternateForLong) {
  OpenHost(8);
  for (uint64_t round = 0; round < 20; ++round) {
    FillWith(round % 2 == 0 ? Encoding::kWide : Encoding::kPacked, 10000 * round, 60);
    EXPECT_GT(CountOf(round % 2 == 0 ? Encoding::kWide : Encoding::kPacked, 10000 * round, 60),
              50u);
  }
}

}  // namespace
}  // namespace oscarkv::testing
