// The store with an archive on disk: pages go to it, are found there, come back, and are gone when
// they are deleted.
#include <algorithm>
#include <atomic>
#include <functional>
#include <set>
#include <thread>
#include <tuple>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "kernels/base/fault_point.h"
#include "server/core/re_encoder.h"
#include "tests/tier/disk/disk_archive_testing.h"

namespace oscarkv::testing {
namespace {

TEST_F(DiskArchiveTest, EvictedPagesAreFoundOnDiskAndComeBack) {
  OpenWith(4);
  const std::vector<TestItem> first = Chain(space(), 0, 3);
  ASSERT_EQ(PutChain(store(), space(), first), ItemStatus::kOk);
  WriteAll();
  EXPECT_EQ(TierOf(first[2]), TierKind::kHost);
  const std::vector<TestItem> second = Chain(space(), 100, 4);
  ASSERT_EQ(PutChain(store(), space(), second), ItemStatus::kOk);
  EXPECT_EQ(TierOf(first[0]), TierKind::kDisk);
  EXPECT_EQ(Prefix(first), 3u);
  const StoreStats before = store().Stats();
  EXPECT_EQ(Fetch(first), ItemStatus::kOk);
  // The pages that follow came along.
  EXPECT_EQ(TierOf(first[0]), TierKind::kHost);
  EXPECT_EQ(TierOf(first[2]), TierKind::kHost);
  EXPECT_EQ(Fetch(first, 1), ItemStatus::kOk);
  EXPECT_EQ(Fetch(first, 2), ItemStatus::kOk);
  const StoreStats stats = store().Stats();
  EXPECT_EQ(stats.counters.loaded_pages, 3u);
  EXPECT_EQ(stats.counters.fetch_hits - before.counters.fetch_hits, 3u);
  EXPECT_EQ(stats.counters.fetch_misses + stats.counters.fetch_evicted, 0u);
  EXPECT_EQ(stats.archive.read_pages, 3u);
  EXPECT_EQ(stats.tiers.back().kind, TierKind::kDisk);
  EXPECT_LE(stats.tiers.front().used_bytes, stats.tiers.front().capacity_bytes);
}

// What runs at the places of a test that it names.
std::function<void(std::string_view)>& AtPlaces() {
  static std::function<void(std::string_view)> run;
  return run;
}

TEST_F(DiskArchiveTest, APageThatIsDeletedWhileItIsWrittenIsNeverFound) {
  OpenWith(4);
  const std::vector<TestItem> chain = Chain(space(), 0, 3);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  const std::string_view second = chain[1].key;
  int places = 0;
  AtPlaces() = [&](std::string_view place) {
    if (++places > 2) return;  // that it is gone is written, too
    if (place == "archive.pinned") {
      EXPECT_EQ(store().Delete(space(), {&second, 1})[0], ItemStatus::kOk);
    } else {  // the device has the page, and has not been told to forget it
      EXPECT_TRUE(archive_->Find(space(), second).has_value());
    }
    EXPECT_EQ(Prefix(chain), 1u);
    EXPECT_EQ(Fetch(chain), ItemStatus::kOk);
    EXPECT_EQ(Fetch(chain, 1), ItemStatus::kMiss);
    EXPECT_EQ(Fetch(chain, 2), ItemStatus::kMiss);
    EXPECT_NE(store().Delete(space(), {&second, 1})[0], ItemStatus::kOk);
  };
  SetFaultHandler([](std::string_view place) { AtPlaces()(place); });
  WriteAll();
  SetFaultHandler(nullptr);
  EXPECT_GE(places, 2);
  EXPECT_EQ(Fetch(chain, 1), ItemStatus::kMiss);
  // It can be stored again, and written.
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  WriteAll();
  EXPECT_TRUE(archive_->Find(space(), second).has_value());
  OpenWith(4);
  EXPECT_EQ(Fetch(chain, 1), ItemStatus::kOk);
}

TEST_F(DiskArchiveTest, TenantsKeepWithinTheirQuotaOfTheDisk) {
  OpenWith(16);
  constexpr uint64_t kMost = 4 * (kWideSlotBytes + PageArchive::kRecordExtraMax);
  const auto on_disk = [&] { return store().Stats().tenants[0].disk_bytes; };
  store().SetQuotas({.named = {{"default", {.disk_bytes = kMost}}}, .others = {}});
  const std::vector<TestItem> chain = Chain(space(), 0, 12);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  WriteAll();
  EXPECT_GT(on_disk(), kMost / 2);
  EXPECT_LE(on_disk(), kMost);
  const uint64_t written = store().Stats().archive.written_pages;
  EXPECT_LT(written, 12u);
  EXPECT_EQ(store().Stats().tenants[0].refused_items, 12 - written);
  EXPECT_EQ(Prefix(chain), 12u);
  // Another tenant's pages are its own concern.
  NamespaceSpec spec = SmallSpec();
  spec.tenant = "another";
  const Namespace& another = **store().OpenNamespace(spec, true);
  ASSERT_EQ(PutChain(store(), another, Chain(another, 0, 3)), ItemStatus::kOk);
  WriteAll();
  EXPECT_EQ(store().Stats().archive.written_pages, written + 3);
  // What goes makes room.
  const std::string_view root = chain[0].key;
  ASSERT_EQ(store().Delete(space(), {&root, 1})[0], ItemStatus::kOk);
  EXPECT_EQ(on_disk(), 0u);
  ASSERT_EQ(PutChain(store(), space(), Chain(space(), 100, 2)), ItemStatus::kOk);
  WriteAll();
  EXPECT_EQ(store().Stats().archive.written_pages, written + 5);
}

TEST_F(DiskArchiveTest, PagesAreThereAfterARestart) {
  OpenWith(16);
  const std::vector<TestItem> wide = Chain(space(), 0, 5);
  ASSERT_EQ(PutChain(store(), space(), wide), ItemStatus::kOk);
  std::vector<TestItem> packed = Chain(space(), 50, 3, Encoding::kPacked);
  ASSERT_EQ(PutChain(store(), space(), packed), ItemStatus::kOk);
  WriteAll();
  OpenWith(16);
  EXPECT_EQ(Prefix(wide), 5u);
  EXPECT_EQ(Prefix(packed), 3u);
  for (size_t i = 0; i < wide.size(); ++i) EXPECT_EQ(Fetch(wide, i), ItemStatus::kOk);
  for (size_t i = 0; i < packed.size(); ++i) EXPECT_EQ(Fetch(packed, i), ItemStatus::kOk);
  EXPECT_EQ(store().Stats().pages, 8u);
  // And a page that extends one of them can be put.
  std::vector<TestItem> more = Chain(space(), 5, 1);
  more[0].parent = wide[4].key;
  more[0].first_position = 5 * space().page_tokens();
  EXPECT_EQ(Put(more[0]), ItemStatus::kOk);
}

TEST_F(DiskArchiveTest, APageWhoseParentIsNotInMemoryIsServedAndLeavesNoHole) {
  OpenWith(16);
  const std::vector<TestItem> chain = Chain(space(), 0, 4);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  WriteAll();
  OpenWith(16);
  EXPECT_EQ(Fetch(chain, 2), ItemStatus::kOk);
  EXPECT_EQ(store().Stats().pages, 0u);
  EXPECT_EQ(store().Stats().detached_pages, 0u);
  EXPECT_EQ(store().Stats().pins, 0u);
  EXPECT_EQ(store().Stats().tiers.front().used_bytes, 0u);
  EXPECT_EQ(TierOf(chain[2]), TierKind::kDisk);
}

TEST_F(DiskArchiveTest, DeletedPagesAreGoneWithAllThatExtendsThem) {
  OpenWith(16);
  const std::vector<TestItem> chain = Chain(space(), 0, 6);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  WriteAll();
  OpenWith(3);
  // Two of them are in memory, the others on disk only.
  EXPECT_EQ(Fetch(chain, 0), ItemStatus::kOk);
  const std::string_view key = chain[1].key;
  EXPECT_EQ(store().Delete(space(), {&key, 1})[0], ItemStatus::kOk);
  EXPECT_EQ(store().Delete(space(), {&key, 1})[0], ItemStatus::kMiss);
  EXPECT_EQ(Prefix(chain), 1u);
  for (size_t i = 1; i < chain.size(); ++i) EXPECT_EQ(TierOf(chain[i]), TierKind{});
  // Put again, it does not bring back what extended it.
  EXPECT_EQ(Put(chain[1]), ItemStatus::kOk);
  EXPECT_EQ(Prefix(chain), 2u);
  WriteAll();
  OpenWith(3);
  EXPECT_EQ(Prefix(chain), 2u);
}

TEST_F(DiskArchiveTest, APageDeletedWhileItIsWrittenStaysAway) {
  OpenWith(16);
  const std::vector<TestItem> chain = Chain(space(), 0, 3);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  bool deleted = false;
  io_->OnRun([&] {
    if (std::exchange(deleted, true)) return;
    const std::string_view key = chain[0].key;
    EXPECT_EQ(store().Delete(space(), {&key, 1})[0], ItemStatus::kOk);
  });
  WriteAll();
  io_->OnRun(nullptr);
  EXPECT_TRUE(deleted);
  EXPECT_EQ(Prefix(chain), 0u);
  EXPECT_EQ(store().Stats().tiers.back().reserved_slots, 0u);
}

TEST_F(DiskArchiveTest, APageDeletedWhileItIsReadIsServedAndStaysAway) {
  OpenWith(16);
  const std::vector<TestItem> chain = Chain(space(), 0, 3);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  WriteAll();
  OpenWith(16);
  bool deleted = false;
  io_->OnRun([&] {
    if (std::exchange(deleted, true)) return;
    const std::string_view key = chain[0].key;
    EXPECT_EQ(store().Delete(space(), {&key, 1})[0], ItemStatus::kOk);
  });
  EXPECT_EQ(Fetch(chain), ItemStatus::kOk);
  io_->OnRun(nullptr);
  EXPECT_TRUE(deleted);
  EXPECT_EQ(Prefix(chain), 0u);
  EXPECT_EQ(store().Stats().pages, 0u);
  EXPECT_EQ(store().Stats().detached_pages, 0u);
}

TEST_F(DiskArchiveTest, APageThatWaitsTwiceIsWrittenOnceAndStaysAwayOnceDeleted) {
  OpenWith(16, {.archive_admission = ArchiveAdmission::kFetched});
  const std::vector<TestItem> chain = Chain(space(), 0, 2);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  const std::vector<std::string_view> keys = KeysOf(chain);
  store().Touch(space(), keys);
  store().Touch(space(), keys);
  WriteAll();
  EXPECT_EQ(store().Stats().archive.written_pages, 2u);
  EXPECT_EQ(store().Delete(space(), {keys.data(), 1})[0], ItemStatus::kOk);
  WriteAll();
  OpenWith(16);
  EXPECT_EQ(Prefix(chain), 0u);
}

TEST_F(DiskArchiveTest, DeletingAPageThatIsNotThereSaysSoWhateverExtendsIt) {
  OpenWith(16);
  const std::vector<TestItem> chain = Chain(space(), 0, 2);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  WriteAll();
  OpenWith(16);
  archive_->Forget(space(), chain[0].key);
  const std::string_view key = chain[0].key;
  EXPECT_EQ(store().Delete(space(), {&key, 1})[0], ItemStatus::kMiss);
  EXPECT_EQ(TierOf(chain[1]), TierKind{});
}

TEST_F(DiskArchiveTest, APutReplacesWhatIsArchived) {
  OpenWith(16);
  std::vector<TestItem> chain = Chain(space(), 0, 1);
  ASSERT_EQ(Put(chain[0]), ItemStatus::kOk);
  WriteAll();
  OpenWith(16);
  chain[0].seed += 1;
  ASSERT_EQ(Put(chain[0]), ItemStatus::kOk);
  EXPECT_EQ(Fetch(chain), ItemStatus::kOk);
  WriteAll();
  OpenWith(16);
  EXPECT_EQ(Fetch(chain), ItemStatus::kOk);
}

TEST_F(DiskArchiveTest, OnlyFetchedPagesAreWrittenIfAskedFor) {
  OpenWith(16, {.archive_admission = ArchiveAdmission::kFetched});
  const std::vector<TestItem> chain = Chain(space(), 0, 4);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  WriteAll();
  EXPECT_EQ(store().Stats().archive.written_pages, 0u);
  const std::vector<std::string_view> keys = KeysOf(chain);
  store().Touch(space(), std::span(keys).first(2));
  WriteAll();
  EXPECT_EQ(store().Stats().archive.written_pages, 2u);
  store().Touch(space(), keys);
  WriteAll();
  EXPECT_EQ(store().Stats().archive.written_pages, 4u);
  EXPECT_GT(store().Stats().archive.device_written_bytes, store().Stats().archive.written_bytes);
}

TEST_F(DiskArchiveTest, WhatWaitsIsBounded) {
  OpenWith(16, {.archive_queued_max = 3});
  const std::vector<TestItem> chain = Chain(space(), 0, 5);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  WriteAll();
  EXPECT_EQ(store().Stats().archive.written_pages, 3u);
  EXPECT_EQ(RefusedFor(ArchiveRefusal::kBehind), 2u);
}

TEST_F(DiskArchiveTest, ABadPageOnDiskIsCorruptOnceAndThenAMiss) {
  OpenWith(16);
  const std::vector<TestItem> chain = Chain(space(), 0, 3);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  io_->SetFaults({.flipped_write = 1000});
  WriteAll();
  OpenWith(16);
  // Whichever bits flipped, nothing but the pages' own bytes may come back.
  for (size_t i = 0; i < chain.size(); ++i) Fetch(chain, i);
  io_->SetFaults({.flipped_read = 1000});
  for (size_t i = 0; i < chain.size(); ++i) Fetch(chain, i);
  EXPECT_EQ(store().Stats().detached_pages, 0u);
}

TEST_F(DiskArchiveTest, AFlippedBitIsReportedAndCounted) {
  OpenWith(16);
  const std::vector<TestItem> chain = Chain(space(), 0, 3);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  WriteAll();
  OpenWith(16);
  io_->SetFaults({.flipped_read = 1000});
  EXPECT_EQ(Fetch(chain), ItemStatus::kCorrupt);
  io_->SetFaults({});
  // It has taken what extends it along.
  EXPECT_EQ(Prefix(chain), 0u);
  EXPECT_GE(store().Stats().archive.corrupt_pages, 1u);
  EXPECT_EQ(store().Stats().tiers.front().used_bytes, 0u);
  EXPECT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  EXPECT_EQ(Fetch(chain), ItemStatus::kOk);
}

TEST_F(DiskArchiveTest, AFailingDiskMakesMissesAndCounts) {
  OpenWith(4);
  io_->SetFaults({.no_space = 1000});
  const std::vector<TestItem> first = Chain(space(), 0, 3);
  ASSERT_EQ(PutChain(store(), space(), first), ItemStatus::kOk);
  absl::Status error;
  EXPECT_TRUE(ArchiveWriter(store()).Step(&error));
  EXPECT_THAT(error, StatusIs(absl::StatusCode::kResourceExhausted));
  ASSERT_EQ(PutChain(store(), space(), Chain(space(), 100, 4)), ItemStatus::kOk);
  EXPECT_EQ(Prefix(first), 0u);
  EXPECT_EQ(Fetch(first), ItemStatus::kEvicted);
  EXPECT_EQ(store().Stats().archive.failed_writes, 3u);
}

TEST_F(DiskArchiveTest, NoMemoryToReadIntoIsBusy) {
  OpenWith(4);
  const std::vector<TestItem> first = Chain(space(), 0, 3);
  ASSERT_EQ(PutChain(store(), space(), first), ItemStatus::kOk);
  WriteAll();
  const std::vector<TestItem> second = Chain(space(), 100, 4);
  ASSERT_EQ(PutChain(store(), space(), second), ItemStatus::kOk);
  std::vector<PinResult> pins;
  for (const TestItem& item : second) pins.push_back(store().Pin(space(), item.key));
  EXPECT_EQ(Fetch(first), ItemStatus::kNoSpace);
  pins.clear();
  EXPECT_EQ(Fetch(first), ItemStatus::kOk);
}

TEST_F(DiskArchiveTest, ListAndVerifyAndClearReachTheDisk) {
  OpenWith(16);
  const std::vector<TestItem> chain = Chain(space(), 0, 5);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  WriteAll();
  OpenWith(2);
  EXPECT_EQ(Fetch(chain, 0), ItemStatus::kOk);
  std::multiset<TierKind> tiers;
  uint64_t cursor = 0;
  do {
    const ListResult part = store().List(space(), 2, cursor);
    for (const ListedPage& page : part.pages) tiers.insert(page.meta.tier);
    cursor = part.cursor;
  } while (cursor != 0);
  EXPECT_EQ(tiers.size(), 5u);
  EXPECT_EQ(tiers.count(TierKind::kDisk), 5u - store().Stats().pages);
  uint64_t checked = 0;
  do {
    const VerifyProgress progress = store().Verify(cursor, 2000);
    checked += progress.pages_checked;
    cursor = progress.cursor;
  } while (cursor != 0);
  EXPECT_EQ(checked, 5u + store().Stats().pages);
  EXPECT_EQ(store().Clear(space()).removed, 5u);
  EXPECT_EQ(Prefix(chain), 0u);
  WriteAll();
  OpenWith(2);
  EXPECT_EQ(store().Stats().tiers.back().reserved_slots, 0u);
}

TEST_F(DiskArchiveTest, WritersReadersAndTheWorkerBesideEachOther) {
  OpenWith(30);
  int errors = 0;
  std::atomic<int> answers = 0;
  {
    ArchiveWorker worker(store(), [&](const absl::Status&) { ++errors; });
    std::vector<std::thread> threads;
    for (uint64_t t = 0; t < 3; ++t) {
      threads.emplace_back([this, t, &answers] {
        for (uint64_t round = 0; round < 40; ++round) {
          const std::vector<TestItem> chain = Chain(space(), t * 1000 + round % 8 * 10, 6);
          PutChain(store(), space(), chain);
          for (size_t i = 0; i < chain.size(); ++i) Fetch(chain, i);
          store().archive_queue()->Persist({.space = &space(),
                                            .keys = {chain[0].key, chain[5].key},
                                            .deadline = absl::InfiniteFuture(),
                                            .done = [&](const auto& told) {
                                              EXPECT_EQ(told.value().size(), 2u);
                                              answers.fetch_add(1, std::memory_order_relaxed);
                                            }});
          const std::string_view key = chain[round % 6].key;
          if (round % 5 == 0) store().Delete(space(), {&key, 1});
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    // What is being written is pinned: that may be all that there is.
    store().archive_queue()->AwaitDrained(absl::InfiniteFuture());
    ASSERT_EQ(PutChain(store(), space(), Chain(space(), 5000, 6)), ItemStatus::kOk);
    store().archive_queue()->AwaitDrained(absl::InfiniteFuture());
  }
  EXPECT_EQ(errors, 0);
  EXPECT_EQ(answers.load(), 120);
  const StoreStats stats = store().Stats();
  EXPECT_EQ(stats.pins, 0u);
  EXPECT_EQ(stats.detached_pages, 0u);
  EXPECT_EQ(stats.archive.corrupt_pages, 0u);
  EXPECT_GT(stats.archive.written_pages, 0u);
}

// What is on disk may be of either form, whatever is in memory: it is what the page was when it was
// written.
TEST_F(DiskArchiveTest, APageOnDiskHasTheFormThatItWasWrittenIn) {
  OpenWith(16, {.store_wide = StoreWide::kTail});
  const auto codec = MakeCodec(space());
  store().SetCodec(space(), codec.get());
  ReEncoder encoder(store());
  const auto chain = Chain(space(), 0, 4);
  ASSERT_EQ(PutChain(store(), space(), {chain.begin(), chain.begin() + 2}), ItemStatus::kOk);
  WriteAll();
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  while (encoder.Step()) {
  }
  ASSERT_EQ(store().Stats().ladder.due_pages, 2u);
  WriteAll();
  OpenWith(16);
  // WIDE on disk, PACKED in memory at the end.
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(Fetch(chain, i), ItemStatus::kOk);
  EXPECT_EQ(store().Stats().archive.read_pages, 4u);
}

TEST_F(DiskArchiveTest, APageThatIsDueIsWrittenAsWhatItBecomes) {
  OpenWith(16, {.store_wide = StoreWide::kNever});
  const auto codec = MakeCodec(space());
  store().SetCodec(space(), codec.get());
  ReEncoder encoder(store());
  const auto chain = Chain(space(), 0, 2);
  ASSERT_EQ(Put(chain[0]), ItemStatus::kOk);
  // One that cannot become PACKED is written as it is.
  const TestPage infinite = MakeInfinitePage(space(), 7);
  BeginPutResult put = store().BeginPut(space(), AsPutItem(chain[1], infinite));
  ASSERT_TRUE(put.result.ok());
  std::ranges::copy(infinite.bytes, put.slot.bytes().begin());
  ASSERT_TRUE(put.slot.Commit().ok());
  WriteAll();
  EXPECT_EQ(store().Stats().archive.written_pages, 0u);
  while (encoder.Step()) {
  }
  WriteAll();
  EXPECT_EQ(store().Stats().archive.written_pages, 2u);
  OpenWith(16);
  const std::vector<std::string_view> keys = KeysOf(chain);
  const TestPage packed = PackedFormOf(*codec, MakePage(space(), Encoding::kWide, chain[0].seed));
  for (const auto& [key, encoding, expected] :
       {std::tuple(keys[0], Encoding::kPacked, packed), {keys[1], Encoding::kWide, infinite}}) {
    PinResult loaded = store().Load(space(), {&key, 1});
    ASSERT_EQ(loaded.status, ItemStatus::kOk);
    EXPECT_EQ(loaded.page.meta().encoding, encoding);
    EXPECT_TRUE(std::ranges::equal(*loaded.page.VerifiedPage(), expected.bytes));
  }
}

}  // namespace
}  // namespace oscarkv::testing
