// What clients and machines do that they should not: parents that never come, storms of keys that
// nobody has, a namespace emptied under its readers, readers that stall, clocks that jump.
#include <algorithm>
#include <cstring>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "server/core/learnt_policy.h"
#include "tests/core/store_test.h"

namespace oscarkv::testing {
namespace {

using ::testing::Each;

class HardUseTest : public StoreTest, public ::testing::WithParamInterface<bool> {
 protected:
  void OpenWith(uint64_t wide_pages, PageStoreOptions options = {}) {
    clock_.Advance(absl::Hours(1) - clock_.Now());
    if (GetParam()) policy_ = std::make_unique<LearntPolicy>();
    Open(wide_pages, options);
  }
  uint64_t MemoryThatDescribes() {
    const StoreStats stats = store().Stats();
    return stats.index_bytes + stats.policy_bytes;
  }
  void PutSingles(uint64_t first, uint64_t count) {
    for (uint64_t key = first; key < first + count; ++key) {
      clock_.Advance(absl::Seconds(1));
      EXPECT_EQ(Put(Chain(space(), key, 1)[0]), ItemStatus::kOk);
    }
  }
  void ExpectDrained() {
    const StoreStats stats = store().Stats();
    EXPECT_EQ(stats.pins, 0u);
    EXPECT_EQ(stats.holds, 0u);
    EXPECT_EQ(stats.open_puts, 0u);
    EXPECT_EQ(stats.detached_pages, 0u);
    EXPECT_EQ(stats.tenants[0].host_bytes, UsedBytes());
  }
};

TEST_P(HardUseTest, PagesWhoseParentsNeverComeCostNothing) {
  OpenWith(64);
  PutSingles(1'000'000, 64);
  const uint64_t before = MemoryThatDescribes();
  for (uint64_t sequence = 0; sequence < 5'000; ++sequence) {
    const auto chain = Chain(space(), sequence * 10, 3);
    EXPECT_EQ(Put(chain[1]), ItemStatus::kSkipped);
    EXPECT_EQ(Put(chain[2]), ItemStatus::kSkipped);
  }
  EXPECT_EQ(store().Stats().pages, 64u);
  EXPECT_EQ(MemoryThatDescribes(), before);
  ExpectDrained();
  // One that comes late is welcome.
  EXPECT_EQ(PutChain(store(), space(), Chain(space(), 0, 3)), ItemStatus::kOk);
}

TEST_P(HardUseTest, PagesWhoseParentsWereDroppedAreBoundedInWhatTheyCost) {
  OpenWith(8, {.dropped_keys_remembered = 1 << 12});
  uint64_t most = 0;
  for (uint64_t sequence = 0; sequence < 40'000; ++sequence) {
    const auto chain = Chain(space(), sequence * 10, 2);
    clock_.Advance(absl::Milliseconds(10));
    ASSERT_EQ(Put(chain[0]), ItemStatus::kOk);
    if (sequence >= 10) {
      const auto old = Chain(space(), (sequence - 10) * 10, 2);
      ASSERT_EQ(Put(old[1]), ItemStatus::kSkipped);
    }
    if (sequence == 20'000) most = MemoryThatDescribes();
  }
  EXPECT_LE(MemoryThatDescribes(), most + most / 4);
  ExpectDrained();
}

TEST_P(HardUseTest, TenMillionLookupsOfAbsentKeysLeaveNothingBehind) {
  OpenWith(64);
  PutSingles(0, 64);
  const uint64_t before = MemoryThatDescribes();
  constexpr uint64_t kKeys = 128;
  constexpr uint64_t kRounds = 10'000'000 / kKeys;
  std::vector<std::string> keys(kKeys, std::string(32, 'a'));
  const std::vector<std::string_view> views(keys.begin(), keys.end());
  const SessionId session = store().OpenSession("probes");
  for (uint64_t round = 0; round < kRounds; ++round) {
    for (uint64_t i = 0; i < kKeys; ++i) {
      const uint64_t number = round * kKeys + i;
      std::memcpy(keys[i].data(), &number, sizeof(number));
    }
    const LookupResult found = store().Lookup(
        space(), {.keys = views, .mode = LookupMode::kEach, .lease_session = session});
    ASSERT_EQ(found.hole, ItemStatus::kMiss);
    ASSERT_EQ(found.lease, 0u);
  }
  EXPECT_EQ(store().Stats().counters.lookup_misses, kRounds * kKeys);
  EXPECT_EQ(MemoryThatDescribes(), before);
  EXPECT_EQ(store().Stats().leased_bytes, 0u);
  EXPECT_EQ(store().Stats().pages, 64u);
}

// Timed in ./run bench index, ten million.
TEST_P(HardUseTest, LookupsOfAbsentKeysChangeNothing) {
  const auto survivors = [&](bool probed) {
    OpenWith(64);
    PutSingles(0, 64);
    if (probed) {
      const uint64_t before = MemoryThatDescribes();
      std::vector<std::string> keys(100);
      for (uint64_t round = 0; round < 2'000; ++round) {
        for (uint64_t i = 0; i < keys.size(); ++i) keys[i] = KeyOf(1'000'000 + round * 100 + i);
        const std::vector<std::string_view> views(keys.begin(), keys.end());
        EXPECT_EQ(store().Lookup(space(), {.keys = views, .mode = LookupMode::kEach}).hole,
                  ItemStatus::kMiss);
        EXPECT_EQ(store().Lookup(space(), {.keys = views}).prefix_pages, 0u);
        EXPECT_THAT(store().Touch(space(), views), Each(ItemStatus::kMiss));
      }
      EXPECT_EQ(MemoryThatDescribes(), before);
      EXPECT_EQ(store().Stats().counters.lookup_misses, 2'000u * 101);
    }
    PutSingles(5'000, 32);
    std::set<uint64_t> left;
    for (uint64_t key = 0; key < 64; ++key)
      if (Prefix(Chain(space(), key, 1)) == 1) left.insert(key);
    return left;
  };
  const std::set<uint64_t> expected = survivors(false);
  EXPECT_LT(expected.size(), 64u);
  EXPECT_EQ(survivors(true), expected);
}

TEST_P(HardUseTest, NamespaceEmptiedUnderItsReaders) {
  OpenWith(32, {.leased_share_max = 1.0});
  const auto read = Chain(space(), 0, 3);
  const auto leased = Chain(space(), 100, 3);
  const auto idle = Chain(space(), 200, 3);
  for (const auto* chain : {&read, &leased, &idle})
    ASSERT_EQ(PutChain(store(), space(), *chain), ItemStatus::kOk);
  PinnedPage pinned = store().Pin(space(), read[1].key).page;
  const SessionId session = store().OpenSession("reader");
  ASSERT_NE(store().Lookup(space(), {.keys = KeysOf(leased), .lease_session = session}).lease, 0u);
  // A put under way, which extends a page that is to go.
  TestItem next = Chain(space(), 300, 1)[0];
  next.parent = idle[2].key;
  next.first_position = 3 * space().page_tokens();
  const TestPage page = MakePage(space(), Encoding::kWide, next.seed);
  BeginPutResult begun = store().BeginPut(space(), AsPutItem(next, page));
  ASSERT_TRUE(begun.result.ok());
  std::memcpy(begun.slot.bytes().data(), page.bytes.data(), page.bytes.size());

  const ClearResult cleared = store().Clear(space());
  EXPECT_EQ(cleared.removed, 1u);  // the last page of `read`: the others are held, or extended
  EXPECT_EQ(cleared.kept, 8u);
  EXPECT_OK(pinned.VerifiedPage());
  EXPECT_EQ(Prefix(leased), 3u);
  EXPECT_EQ(begun.slot.Commit().status, ItemStatus::kOk);
  // Pages named to be deleted go, whoever reads them, and the readers keep their bytes.
  const std::vector<std::string_view> roots = {read[0].key, leased[0].key, idle[0].key};
  EXPECT_THAT(store().Delete(space(), roots), Each(ItemStatus::kOk));
  EXPECT_EQ(store().Stats().pages, 0u);
  const auto bytes = pinned.VerifiedPage();
  ASSERT_OK(bytes);
  EXPECT_TRUE(std::ranges::equal(*bytes, MakePage(space(), Encoding::kWide, read[1].seed).bytes));
  EXPECT_EQ(UsedBytes(), 4 * kWideSlotBytes);
  pinned.Reset();
  EXPECT_TRUE(store().CloseSession(session));
  EXPECT_EQ(UsedBytes(), 0u);
  ExpectDrained();
}

TEST_P(HardUseTest, StalledReaderNeverSeesAReusedPage) {
  OpenWith(16);
  const auto chain = Chain(space(), 0, 4);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  const SessionId session = store().OpenSession("stalled");
  store().Lookup(
      space(),
      {.keys = KeysOf(chain), .lease_session = session, .lease_duration = absl::Seconds(5)});
  std::vector<PinnedPage> reading;
  for (const TestItem& item : chain) reading.push_back(store().Pin(space(), item.key).page);
  // It stalls for a minute: its lease ends, its session does, the pages are deleted, and all memory
  // is used anew many times.
  for (uint64_t second = 0; second < 60; ++second) {
    clock_.Advance(absl::Seconds(1));
    store().ExpireLeases();
    if (second == 20) store().CloseSession(session);
    if (second == 30) {
      const std::string_view root = chain[0].key;
      store().Delete(space(), {&root, 1});
    }
    for (uint64_t i = 0; i < 20; ++i) Put(Chain(space(), 1000 + second * 20 + i, 1)[0]);
  }
  for (size_t i = 0; i < chain.size(); ++i) {
    const auto bytes = reading[i].VerifiedPage();
    ASSERT_OK(bytes);
    EXPECT_TRUE(
        std::ranges::equal(*bytes, MakePage(space(), Encoding::kWide, chain[i].seed).bytes));
  }
  EXPECT_EQ(store().Stats().detached_pages, 4u);
  reading.clear();
  ExpectDrained();
}

// The server's clock is steady, so it cannot; a virtual machine's may all the same.
TEST_P(HardUseTest, ClockThatJumpsForwardEndsLeasesAndNothingElse) {
  OpenWith(16, {.leased_share_max = 1.0});
  const auto chain = Chain(space(), 0, 4);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  const SessionId session = store().OpenSession("a");
  const auto lease = [&] {
    return store().Lookup(space(), {.keys = KeysOf(chain), .lease_session = session}).lease;
  };
  const LeaseId before = lease();
  PinnedPage reading = store().Pin(space(), chain[3].key).page;
  clock_.Advance(absl::Hours(24 * 365 * 10));
  EXPECT_EQ(store().ExpireLeases(), 1u);
  EXPECT_FALSE(store().LeaseIsLive(before));
  EXPECT_EQ(store().ExpirePages(), 0u);
  EXPECT_OK(reading.VerifiedPage());
  EXPECT_NE(lease(), 0u);  // the session goes on
  PutSingles(1000, 100);
  EXPECT_EQ(Prefix(chain), 4u);
  EXPECT_TRUE(store().CloseSession(session));
  reading.Reset();
  ExpectDrained();
}

TEST_P(HardUseTest, ClockThatJumpsBackEndsNothingEarly) {
  OpenWith(16, {.leased_share_max = 1.0});
  store().SetPageTtl(space(), absl::Hours(2));
  const auto chain = Chain(space(), 0, 4);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  const SessionId session = store().OpenSession("a");
  const LeaseId leased =
      store().Lookup(space(), {.keys = KeysOf(chain), .lease_session = session}).lease;
  clock_.Advance(-absl::Minutes(50));
  EXPECT_EQ(store().ExpireLeases(), 0u);
  EXPECT_EQ(store().ExpirePages(), 0u);
  EXPECT_TRUE(store().LeaseIsLive(leased));
  // All goes on: puts, uses, evictions.
  PutSingles(1000, 100);
  store().Touch(space(), KeysOf(chain));
  EXPECT_EQ(Prefix(chain), 4u);
  EXPECT_EQ(store().Stats().pages, 16u);
  // Behind the start of the clock, too.
  clock_.Advance(-absl::Hours(5));
  EXPECT_EQ(store().ExpireLeases(), 0u);
  EXPECT_EQ(store().ExpirePages(), 0u);
  PutSingles(2000, 100);
  clock_.Advance(absl::Hours(6));
  EXPECT_EQ(store().ExpireLeases(), 1u);
  PutSingles(3000, 100);
  EXPECT_EQ(store().Stats().pages, 16u);
  EXPECT_TRUE(store().CloseSession(session));
  ExpectDrained();
}

INSTANTIATE_TEST_SUITE_P(LruAndLearnt, HardUseTest, ::testing::Bool());

}  // namespace
}  // namespace oscarkv::testing
