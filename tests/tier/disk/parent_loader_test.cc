// Prefixes that are on disk only are extended: what a put needs of them comes back first, or the
// put is told that it did not.
#include "server/core/parent_loader.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/tier/disk/disk_archive_testing.h"

namespace oscarkv::testing {
namespace {

class ParentLoaderTest : public DiskArchiveTest {
 protected:
  // A chain of which `pages` are on disk only, and one more that is to be put.
  void Demote(uint32_t pages, uint64_t memory) {
    OpenWith(memory);
    chain_ = Chain(space(), 0, pages + 1);
    const std::vector<TestItem> first(chain_.begin(), chain_.end() - 1);
    ASSERT_EQ(PutChain(store(), space(), first), ItemStatus::kOk);
    WriteAll();
    OpenWith(memory);
    ASSERT_EQ(Prefix(chain_), pages);
    ASSERT_EQ(TierOf(chain_[0]), TierKind::kDisk);
  }
  uint64_t Loads(ParentLoad outcome) {
    return store().Stats().counters.parent_loads[static_cast<size_t>(outcome)];
  }
  bool IsArchived(const TestItem& item) {
    const TestPage page = MakePage(space(), item.encoding, item.seed);
    return store().ParentIsArchived(space(), AsPutItem(item, page));
  }

  std::vector<TestItem> chain_;
};

TEST_F(ParentLoaderTest, APrefixThatIsOnDiskOnlyIsExtended) {
  constexpr uint32_t kPages = 100;  // more than are looked for, and far more than are read, at once
  Demote(kPages, 256);
  EXPECT_TRUE(IsArchived(chain_[kPages]));
  EXPECT_EQ(Put(chain_[kPages]), ItemStatus::kOk);
  EXPECT_EQ(store().Stats().counters.loaded_pages, kPages);
  EXPECT_EQ(Loads(ParentLoad::kLoaded), 1u);
  for (size_t i = 0; i <= kPages; ++i) EXPECT_EQ(Fetch(chain_, i), ItemStatus::kOk);
  WriteAll();
  OpenWith(256);
  EXPECT_EQ(Prefix(chain_), kPages + 1);
  for (size_t i = 0; i <= kPages; ++i) EXPECT_EQ(Fetch(chain_, i), ItemStatus::kOk);
}

TEST_F(ParentLoaderTest, OnlyWhatIsNotInMemoryIsRead) {
  // The least recently used page in memory is the one that the rest extends: making room for the
  // rest must not drop it.
  Demote(10, 24);
  ASSERT_EQ(Fetch({chain_[0]}), ItemStatus::kOk);
  ASSERT_EQ(Fetch({chain_[1]}), ItemStatus::kOk);
  for (const TestItem& item : Chain(space(), 500, 22)) ASSERT_EQ(Put(item), ItemStatus::kOk);
  ASSERT_EQ(TierOf(chain_[1]), TierKind::kHost);
  ASSERT_EQ(store().Stats().pages, 24u);
  EXPECT_EQ(Put(chain_[10]), ItemStatus::kOk);
  EXPECT_EQ(store().Stats().counters.loaded_pages, 10u);
  EXPECT_EQ(Prefix(chain_), 11u);
  for (const TestItem& item : chain_) EXPECT_EQ(TierOf(item), TierKind::kHost);
}

TEST_F(ParentLoaderTest, NothingIsReadForAPutThatCannotBe) {
  Demote(3, 16);
  TestItem wrong = chain_[3];
  wrong.first_position += space().page_tokens();
  EXPECT_FALSE(IsArchived(wrong));
  EXPECT_FALSE(IsArchived(chain_[0]));                  // a root
  EXPECT_FALSE(IsArchived(Chain(space(), 700, 2)[1]));  // a parent that nobody has
  ASSERT_EQ(Put(chain_[3]), ItemStatus::kOk);
  EXPECT_FALSE(IsArchived(chain_[3]));  // it is there
}

TEST_F(ParentLoaderTest, NoPutDrivesOutAllThatOthersUse) {
  Demote(9, 16);
  EXPECT_EQ(Put(chain_[9]), ItemStatus::kSkipped);
  EXPECT_EQ(Loads(ParentLoad::kTooLong), 1u);
  EXPECT_EQ(store().Stats().counters.loaded_pages, 0u);
  // Once readers have brought some of it back, the rest is not too much.
  for (size_t i = 0; i < 4; ++i) ASSERT_EQ(Fetch({chain_[i]}), ItemStatus::kOk);
  EXPECT_EQ(Put(chain_[9]), ItemStatus::kOk);
  EXPECT_EQ(Prefix(chain_), 10u);
}

TEST_F(ParentLoaderTest, NoMemoryIsSaidToBeSo) {
  Demote(4, 10);
  std::vector<PinnedPage> held;
  for (const TestItem& item : Chain(space(), 500, 8)) {
    ASSERT_EQ(Put(item), ItemStatus::kOk);
    held.push_back(store().Pin(space(), item.key).page);
  }
  EXPECT_EQ(Put(chain_[4]), ItemStatus::kSkipped);
  EXPECT_EQ(Loads(ParentLoad::kNoRoom), 1u);
  held.clear();
  EXPECT_EQ(Put(chain_[4]), ItemStatus::kOk);
}

TEST_F(ParentLoaderTest, AFailingDiskMakesSkippedAndACount) {
  Demote(20, 64);
  io_->SetFaults({.read_error = 1000});
  EXPECT_EQ(Put(chain_[20]), ItemStatus::kSkipped);
  EXPECT_EQ(Loads(ParentLoad::kFailed), 1u);
  EXPECT_GT(store().Stats().archive.failed_reads, 0u);
  io_->SetFaults({});
  // What it could not read is gone, with what extends it; a put of all of it is one as ever.
  EXPECT_EQ(Prefix(chain_), 0u);
  EXPECT_EQ(PutChain(store(), space(), chain_), ItemStatus::kOk);
  EXPECT_EQ(Prefix(chain_), 21u);
}

TEST_F(ParentLoaderTest, ABadPageInTheMiddleEndsIt) {
  Demote(20, 64);
  // The second batch of reads is spoiled: the first has come.
  int runs = 0;
  io_->OnRun([&] {
    if (++runs == 2) io_->SetFaults({.flipped_read = 1000});
  });
  EXPECT_EQ(Put(chain_[20]), ItemStatus::kSkipped);
  EXPECT_EQ(Loads(ParentLoad::kFailed), 1u);
  EXPECT_GE(store().Stats().archive.corrupt_pages, 1u);
  EXPECT_EQ(Prefix(chain_), PageStore::kPagesPerLoad);
  io_->SetFaults({});
  EXPECT_EQ(PutChain(store(), space(), chain_), ItemStatus::kOk);
  for (size_t i = 0; i <= 20; ++i) EXPECT_EQ(Fetch(chain_, i), ItemStatus::kOk);
}

TEST_F(ParentLoaderTest, WhatIsDeletedMeanwhileDoesNotComeBack) {
  Demote(40, 128);
  int runs = 0;
  io_->OnRun([&] {
    const std::string_view root = chain_[0].key;
    if (++runs == 2) store().Delete(space(), {&root, 1});
  });
  EXPECT_EQ(Put(chain_[40]), ItemStatus::kSkipped);
  EXPECT_EQ(Loads(ParentLoad::kFailed), 1u);
  EXPECT_EQ(Prefix(chain_), 0u);
  for (const TestItem& item : chain_) EXPECT_FALSE(store().Holds(space(), item.key));
  const StoreStats stats = store().Stats();
  EXPECT_EQ(stats.pages + stats.detached_pages + stats.pins, 0u);
}

TEST_F(ParentLoaderTest, TwoWritersOfOnePrefixBothGoOn) {
  Demote(40, 128);
  TestItem other = chain_[40];
  other.key = KeyOf(999);
  bool nested = false;
  io_->OnRun([&] {
    if (std::exchange(nested, true)) return;
    EXPECT_EQ(Put(other), ItemStatus::kOk);
  });
  EXPECT_EQ(Put(chain_[40]), ItemStatus::kOk);
  EXPECT_EQ(Loads(ParentLoad::kLoaded), 2u);
  EXPECT_EQ(Prefix(chain_), 41u);
  EXPECT_EQ(store().Stats().pages, 42u);
}

}  // namespace
}  // namespace oscarkv::testing
