// Pages that somebody waits for to be durable, and what they extend.
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "server/core/persister.h"
#include "tests/tier/disk/disk_archive_testing.h"

namespace oscarkv::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class PersistTest : public DiskArchiveTest {
 protected:
  // What becomes of pages that somebody wants durable. `error`: what the device said.
  std::vector<ItemResult> PersistResults(std::vector<std::string> keys,
                                         absl::Status* error = nullptr,
                                         absl::Time deadline = absl::InfiniteFuture()) {
    std::vector<ItemResult> results;
    store().archive_queue()->Persist({.space = &space(),
                                      .keys = std::move(keys),
                                      .deadline = deadline,
                                      .done = [&](const auto& told) { results = told.value(); }});
    EXPECT_TRUE(ArchiveWriter(store()).Step(error));
    return results;
  }
  std::vector<ItemStatus> Persist(std::vector<std::string> keys,
                                  absl::Time deadline = absl::InfiniteFuture()) {
    std::vector<ItemStatus> statuses;
    for (const ItemResult& result : PersistResults(std::move(keys), nullptr, deadline))
      statuses.push_back(result.status);
    return statuses;
  }
  uint64_t CountOf(ItemStatus status) {
    return store().Stats().counters.persists_by_outcome[static_cast<size_t>(status)];
  }
};

TEST_F(PersistTest, PagesThatSomebodyWaitsForAreWrittenWithWhatTheyExtend) {
  OpenWith(16, {.archive_admission = ArchiveAdmission::kFetched});
  const std::vector<TestItem> chain = Chain(space(), 0, 5);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  WriteAll();
  EXPECT_EQ(store().Stats().archive.written_pages, 0u);
  EXPECT_THAT(Persist({chain[3].key, std::string(16, 'x')}),
              ElementsAre(ItemStatus::kOk, ItemStatus::kMiss));
  EXPECT_EQ(store().Stats().archive.written_pages, 4u);
  OpenWith(16);
  EXPECT_EQ(Prefix(chain), 4u);
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(Fetch(chain, i), ItemStatus::kOk);
  // On disk only, nothing is left to do.
  OpenWith(16);
  EXPECT_THAT(Persist({chain[3].key, chain[4].key}),
              ElementsAre(ItemStatus::kOk, ItemStatus::kMiss));
  EXPECT_EQ(store().Stats().archive.written_pages, 0u);
  EXPECT_EQ(CountOf(ItemStatus::kOk), 1u);
  EXPECT_EQ(CountOf(ItemStatus::kMiss), 1u);
}

TEST_F(PersistTest, WhoWaitsIsServedFirstAndManyAtOnce) {
  OpenWith(300, {.archive_admission = ArchiveAdmission::kAll});
  const std::vector<TestItem> early = Chain(space(), 0, 60);
  const std::vector<TestItem> late = Chain(space(), 1000, 150);
  ASSERT_EQ(PutChain(store(), space(), early), ItemStatus::kOk);
  ASSERT_EQ(PutChain(store(), space(), late), ItemStatus::kOk);
  // Of two that wait the first is answered when its pages are written, before the second's are.
  std::vector<uint64_t> written;
  for (const TestItem* last : {&late[69], &late[149]}) {
    store().archive_queue()->Persist({.space = &space(),
                                      .keys = {last->key},
                                      .deadline = absl::InfiniteFuture(),
                                      .done = [&](const auto& results) {
                                        ASSERT_OK(results);
                                        EXPECT_EQ(results->front().status, ItemStatus::kOk);
                                        written.push_back(store().Stats().archive.written_pages);
                                      }});
  }
  EXPECT_TRUE(ArchiveWriter(store()).Step());
  EXPECT_THAT(written, ElementsAre(128u, 150u));
  WriteAll();
  EXPECT_EQ(store().Stats().archive.written_pages, 210u);
}

TEST_F(PersistTest, APageIsNotDurableBeforeWhatItExtends) {
  OpenWith(16);
  const std::vector<TestItem> chain = Chain(space(), 0, 3);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  WriteAll();
  const std::string_view last = chain[2].key;
  EXPECT_THAT(archive_->HoldChains(space(), {&last, 1}), ElementsAre(true));
  archive_->Forget(space(), chain[0].key);
  // Without what it extends it would be gone after a restart.
  EXPECT_THAT(archive_->HoldChains(space(), {&last, 1}), ElementsAre(false));
  EXPECT_THAT(Persist({chain[2].key}), ElementsAre(ItemStatus::kOk));
  EXPECT_EQ(store().Stats().archive.written_pages, 4u);
  OpenWith(16);
  EXPECT_EQ(Prefix(chain), 3u);
}

TEST_F(PersistTest, ADurablePageThatIsPutAgainStaysSo) {
  OpenWith(16, {.archive_admission = ArchiveAdmission::kFetched});
  const std::vector<TestItem> chain = Chain(space(), 0, 3);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  EXPECT_THAT(Persist({chain[2].key}), ElementsAre(ItemStatus::kOk));
  OpenWith(16, {.archive_admission = ArchiveAdmission::kFetched});
  // Put again, and not written before the crash.
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  EXPECT_FALSE(archive_->Find(space(), chain[1].key).has_value());
  OpenWith(16, {.archive_admission = ArchiveAdmission::kFetched});
  EXPECT_EQ(Prefix(chain), 3u);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(Fetch(chain, i), ItemStatus::kOk);
  // Whatever pages are written, these are again.
  OpenWith(16, {.archive_admission = ArchiveAdmission::kFetched});
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  WriteAll();
  EXPECT_EQ(store().Stats().archive.written_pages, 3u);
}

TEST_F(PersistTest, WhatIsPutAgainReplacesWhatIsOnDiskAndGoesWithItWhenDeleted) {
  OpenWith(16);
  std::vector<TestItem> chain = Chain(space(), 0, 3);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  WriteAll();
  OpenWith(16);
  for (TestItem& item : chain) item.seed += 1;
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  EXPECT_THAT(Persist({chain[2].key}), ElementsAre(ItemStatus::kOk));
  EXPECT_EQ(store().Stats().archive.written_pages, 3u);
  OpenWith(16);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(Fetch(chain, i), ItemStatus::kOk);  // the later bytes
  // Neither form comes back once the page, or all of them, are gone.
  OpenWith(16);
  ASSERT_EQ(PutChain(store(), space(), {chain.begin(), chain.begin() + 2}), ItemStatus::kOk);
  const std::string_view second = chain[1].key;
  EXPECT_EQ(store().Delete(space(), {&second, 1})[0], ItemStatus::kOk);
  WriteAll();
  OpenWith(16);
  EXPECT_EQ(Prefix(chain), 1u);
  ASSERT_EQ(Put(chain[0]), ItemStatus::kOk);
  EXPECT_EQ(store().Clear(space()).removed, 1u);
  WriteAll();
  OpenWith(16);
  EXPECT_EQ(Prefix(chain), 0u);
}

TEST_F(PersistTest, WhatTheDiskDoesNotTakeIsNotDurable) {
  OpenWith(16, {.archive_admission = ArchiveAdmission::kFetched});
  const std::vector<TestItem> chain = Chain(space(), 0, 3);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  io_->SetFaults({.no_space = 1000});
  absl::Status error;
  const std::vector<ItemResult> refused = PersistResults({chain[0].key, chain[2].key}, &error);
  EXPECT_EQ(refused[0].status, ItemStatus::kNoSpace);
  EXPECT_THAT(refused[0].message, HasSubstr("the disk did not take it"));
  EXPECT_EQ(refused[1].status, ItemStatus::kNoSpace);
  EXPECT_THAT(error, StatusIs(absl::StatusCode::kResourceExhausted));
  io_->SetFaults({});
  // The time is up before anything was written; what is on disk is durable all the same.
  EXPECT_THAT(Persist({chain[0].key}, absl::InfinitePast()), ElementsAre(ItemStatus::kBusy));
  EXPECT_EQ(store().Stats().archive.written_pages, 0u);
  EXPECT_THAT(Persist({chain[0].key}), ElementsAre(ItemStatus::kOk));
  EXPECT_THAT(Persist({chain[0].key}, absl::InfinitePast()), ElementsAre(ItemStatus::kOk));
  // A tenant's share of the disk is kept.
  store().SetQuotas({.named = {{"default", {.disk_bytes = 1}}}, .others = {}});
  const std::vector<ItemResult> over = PersistResults({chain[1].key, chain[2].key}, &error);
  EXPECT_EQ(over[0].status, ItemStatus::kQuota);
  EXPECT_THAT(over[0].message, HasSubstr("may hold 1 bytes on disk"));
  EXPECT_EQ(store().Stats().archive.written_pages, 1u);
}

TEST_F(PersistTest, APageThatHasRottedIsNotMadeDurable) {
  OpenWith(16, {.archive_admission = ArchiveAdmission::kFetched});
  const std::vector<TestItem> chain = Chain(space(), 0, 2);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  ASSERT_TRUE(tier_->FlipBit(0, 5));
  EXPECT_THAT(Persist({chain[0].key, chain[1].key}),
              ElementsAre(ItemStatus::kCorrupt, ItemStatus::kEvicted));
  EXPECT_EQ(store().Stats().archive.written_pages, 0u);
}

TEST_F(PersistTest, APageDeletedWhileItIsWrittenIsNotDurable) {
  OpenWith(16);
  const std::vector<TestItem> chain = Chain(space(), 0, 3);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  bool deleted = false;
  io_->OnRun([&] {
    if (std::exchange(deleted, true)) return;
    const std::string_view key = chain[1].key;
    EXPECT_EQ(store().Delete(space(), {&key, 1})[0], ItemStatus::kOk);
  });
  const std::vector<ItemStatus> statuses = Persist({chain[0].key, chain[1].key, chain[2].key});
  io_->OnRun(nullptr);
  EXPECT_EQ(statuses[0], ItemStatus::kOk);
  EXPECT_NE(statuses[1], ItemStatus::kOk);
  EXPECT_NE(statuses[2], ItemStatus::kOk);
}

TEST_F(PersistTest, WhoStillWaitsAtTheEndIsToldSo) {
  OpenWith(16);
  store().archive_queue()->Stop();
  absl::Status told;
  store().archive_queue()->Persist({.space = &space(),
                                    .keys = {std::string(16, 'x')},
                                    .deadline = absl::InfiniteFuture(),
                                    .done = [&](const auto& results) { told = results.status(); }});
  {
    const ArchiveWorker worker(store(), [](const absl::Status&) {});
  }
  EXPECT_THAT(told, StatusIs(absl::StatusCode::kUnavailable));
}

}  // namespace
}  // namespace oscarkv::testing
