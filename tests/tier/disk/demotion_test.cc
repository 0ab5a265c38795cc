// Pages that leave memory are written to disk if they are worth it (ArchiveAdmission::kWorth).
#include <memory>
#include <optional>
#include <vector>

#include "gtest/gtest.h"

#include "server/core/lru_policy.h"
#include "tests/tier/disk/disk_archive_testing.h"

namespace oscarkv::testing {
namespace {

// LRU that is told how likely pages are used, and whether it takes those that are put.
class ToldPolicy final : public EvictionPolicy {
 public:
  struct Words {
    double chance = 1.0;
    bool admits = true;
  };
  explicit ToldPolicy(const Words& words) : words_(words) {}

  std::string_view name() const override { return "told"; }
  std::unique_ptr<EvictionPolicy> NewSibling() const override {
    return std::make_unique<ToldPolicy>(words_);
  }
  void OnInsert(PageId page, const PageTraits& traits) override { lru_.OnInsert(page, traits); }
  bool Admits(const PageTraits& /*traits*/) override { return words_.admits; }
  void OnRefuse(const PageTraits& /*traits*/) override {}
  void OnUse(std::span<const UsedPage> pages, const RequestTraits& request,
             absl::Duration now) override {
    lru_.OnUse(pages, request, now);
  }
  void OnRemove(PageId page, RemoveReason reason) override { lru_.OnRemove(page, reason); }
  void SetEvictable(PageId page, bool evictable) override { lru_.SetEvictable(page, evictable); }
  std::optional<PageId> Victim(absl::Duration now) override { return lru_.Victim(now); }
  std::optional<double> UseChance(PageId /*page*/, absl::Duration /*now*/) const override {
    return words_.chance;
  }
  std::optional<double> PutChance(const PageTraits& /*traits*/) override { return words_.chance; }
  uint64_t memory_bytes() const override { return lru_.memory_bytes(); }

 private:
  const Words& words_;
  LruPolicy lru_;
};

class DemotionTest : public DiskArchiveTest {
 protected:
  void OpenWith(uint64_t pages, PageStoreOptions options = {}) {
    options.archive_admission = ArchiveAdmission::kWorth;
    DiskArchiveTest::OpenWith(pages, options, std::make_unique<ToldPolicy>(words_));
  }
  // Puts pages until `count` more are stored; the writer gets its turn when one is not.
  void Fill(uint64_t first_key, uint32_t count) {
    for (uint32_t i = 0; i < count; ++i) {
      const std::vector<TestItem> one = Chain(space(), first_key + i, 1);
      if (PutChain(store(), space(), one) == ItemStatus::kOk) continue;
      WriteAll();
      ASSERT_EQ(PutChain(store(), space(), one), ItemStatus::kOk);
    }
  }
  uint64_t Written() { return store().Stats().archive.written_pages; }

  ToldPolicy::Words words_;
};

TEST_F(DemotionTest, APageIsWrittenWhenItHasToGoAndWhatItExtendsBeforeIt) {
  OpenWith(8);
  const std::vector<TestItem> chain = Chain(space(), 0, 4);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  Fill(100, 4);
  WriteAll();
  EXPECT_EQ(Written(), 0u);
  // The last page of the chain is to go. It stays while it waits, and the newest but one goes.
  const std::vector<TestItem> more = Chain(space(), 200, 1);
  EXPECT_EQ(PutChain(store(), space(), more), ItemStatus::kOk);
  EXPECT_EQ(TierOf(chain[3]), TierKind::kHost);
  EXPECT_EQ(RefusedFor(ArchiveRefusal::kBehind), 1u);  // one page in memory may wait, this was it
  WriteAll();
  EXPECT_EQ(Written(), 4u);
  Fill(300, 8);
  for (const TestItem& item : chain) EXPECT_EQ(TierOf(item), TierKind::kDisk);
}

TEST_F(DemotionTest, WhatIsUnlikelyToBeUsedIsNotWritten) {
  OpenWith(4, {.archive_chance_min = 0.25});
  words_.chance = 0.24;
  Fill(0, 12);
  WriteAll();
  EXPECT_EQ(Written(), 0u);
  EXPECT_EQ(RefusedFor(ArchiveRefusal::kNotWorth), 8u);
  words_.chance = 0.25;
  Fill(100, 4);
  WriteAll();
  EXPECT_GT(Written(), 0u);
  EXPECT_EQ(RefusedFor(ArchiveRefusal::kNotWorth), 8u);
}

TEST_F(DemotionTest, WhatMemoryRefusesIsTakenIfTheDiskIsGoingToHaveIt) {
  OpenWith(4, {.archive_chance_min = 0.25});
  Fill(0, 4);
  words_ = {.chance = 0.2, .admits = false};
  const std::vector<TestItem> page = Chain(space(), 100, 1);
  EXPECT_EQ(PutChain(store(), space(), page), ItemStatus::kNoSpace);
  EXPECT_EQ(store().Stats().counters.puts_refused, 1u);
  words_.chance = 0.3;
  EXPECT_EQ(PutChain(store(), space(), page), ItemStatus::kOk);
}

TEST_F(DemotionTest, WhatAFetchIsAboutToAskForComesWithTheFirstWhateverItIsWorth) {
  OpenWith(8);
  const std::vector<TestItem> chain = Chain(space(), 0, 6);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  Fill(100, 8);
  WriteAll();
  Fill(200, 8);
  ASSERT_EQ(TierOf(chain[0]), TierKind::kDisk);
  // One by one they would all come too, each after a wait for the device.
  words_.admits = false;
  EXPECT_EQ(Fetch(chain), ItemStatus::kOk);
  for (const TestItem& item : chain) EXPECT_EQ(TierOf(item), TierKind::kHost);
}

TEST_F(DemotionTest, AFailingDiskHoldsUpNobody) {
  OpenWith(32);
  io_->SetFaults({.write_error = 1000});
  for (uint64_t i = 0; i < 40; ++i) {
    Fill(100 * i, 4);
    WriteAll();
  }
  EXPECT_EQ(Written(), 0u);
  EXPECT_GT(RefusedFor(ArchiveRefusal::kFailed), 0u);
  // Once it works again, pages are written again.
  io_->SetFaults({});
  for (uint64_t i = 40; i < 80; ++i) {
    Fill(100 * i, 4);
    WriteAll();
  }
  EXPECT_GT(Written(), 0u);
}

TEST_F(DemotionTest, NothingIsWrittenWithoutWhatItExtends) {
  OpenWith(8);
  // Room for the first three pages.
  store().SetQuotas(
      {.named = {{"default", {.disk_bytes = 3 * (kWideSlotBytes + PageArchive::kRecordExtraMax)}}},
       .others = {}});
  const std::vector<TestItem> chain = Chain(space(), 0, 8);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  EXPECT_NE(Put(Chain(space(), 100, 1)[0]), ItemStatus::kOk);  // all that may go waits
  WriteAll();
  EXPECT_EQ(Written() + RefusedFor(ArchiveRefusal::kQuota) + RefusedFor(ArchiveRefusal::kNoParent),
            8u);
  EXPECT_EQ(RefusedFor(ArchiveRefusal::kQuota), 1u);
  Fill(200, 8);
  const uint32_t found = Prefix(chain);
  EXPECT_GT(found, 0u);
  for (uint32_t i = 0; i < chain.size(); ++i)
    EXPECT_EQ(TierOf(chain[i]), i < found ? TierKind::kDisk : TierKind{});
}

TEST_F(DemotionTest, APageThatIsDeletedWhileItWaitsIsNotWritten) {
  OpenWith(4);
  const std::vector<TestItem> chain = Chain(space(), 0, 4);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  const TestItem other = Chain(space(), 100, 1)[0];
  EXPECT_EQ(Put(other), ItemStatus::kNoSpace);  // the only page that may go waits
  const std::string_view key = chain[2].key;
  EXPECT_EQ(store().Delete(space(), {&key, 1})[0], ItemStatus::kOk);
  EXPECT_EQ(Put(other), ItemStatus::kOk);
  WriteAll();
  EXPECT_EQ(TierOf(chain[1]), TierKind::kHost);
  EXPECT_EQ(TierOf(chain[2]), TierKind{});
  Fill(200, 8);
  EXPECT_EQ(Prefix(chain), 2u);
}

TEST_F(DemotionTest, WhatIsInMemoryAtTheEndIsWrittenIfItIsWorthIt) {
  OpenWith(16);
  const std::vector<TestItem> chain = Chain(space(), 0, 12);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  {
    ArchiveWorker worker(store(), [](const absl::Status&) {});
    words_.chance = 0.0;
    store().ArchiveWorthy(absl::InfiniteFuture());
    EXPECT_EQ(Written(), 0u);
    words_.chance = 1.0;
    store().ArchiveWorthy(absl::InfiniteFuture());
    EXPECT_EQ(Written(), 12u);
  }
  OpenWith(16);
  EXPECT_EQ(Prefix(chain), 12u);
}

}  // namespace
}  // namespace oscarkv::testing
