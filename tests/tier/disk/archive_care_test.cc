// What becomes of pages on disk with time, when they are put again, and when they are bad.
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "tests/tier/disk/disk_archive_testing.h"

namespace oscarkv::testing {
namespace {

class ArchiveCareTest : public DiskArchiveTest {
 protected:
  // Singles that drive all else out of memory.
  void Flood(uint64_t first_key, uint32_t count) {
    for (uint32_t i = 0; i < count; ++i)
      ASSERT_EQ(Put(Chain(space(), first_key + i, 1)[0]), ItemStatus::kOk);
  }
  void Persist(const TestItem& item) {
    store().archive_queue()->Persist(
        {.space = &space(),
         .keys = {item.key},
         .deadline = absl::InfiniteFuture(),
         .done = [](const auto& told) { EXPECT_EQ(told.value()[0].status, ItemStatus::kOk); }});
    WriteAll();
  }
  size_t Expire(absl::Duration after) {
    clock_.Advance(after);
    return store().ExpirePages();
  }
};

TEST_F(ArchiveCareTest, PagesThatNobodyUsesExpireOnDiskToo) {
  OpenWith(3);
  store().SetPageTtl(space(), absl::Minutes(10));
  const std::vector<TestItem> chain = Chain(space(), 0, 3);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  WriteAll();
  Flood(100, 3);
  for (const TestItem& item : chain) EXPECT_EQ(TierOf(item), TierKind::kDisk);
  EXPECT_EQ(Expire(absl::Minutes(5)), 0u);
  // The first page is used, and is in memory again: it has as long from now on.
  EXPECT_EQ(Fetch({chain[0]}), ItemStatus::kOk);
  Expire(absl::Minutes(6));
  EXPECT_EQ(Prefix(chain), 1u);
  EXPECT_EQ(TierOf(chain[1]), TierKind{});
  EXPECT_EQ(TierOf(chain[2]), TierKind{});
  Expire(absl::Minutes(5));
  EXPECT_EQ(Prefix(chain), 0u);
  WriteAll();
  // It was told to the device.
  OpenWith(3);
  EXPECT_EQ(Prefix(chain), 0u);
}

TEST_F(ArchiveCareTest, APageStaysAsLongAsOneThatExtendsItIsUsed) {
  OpenWith(4);
  store().SetPageTtl(space(), absl::Minutes(10));
  const std::vector<TestItem> chain = Chain(space(), 0, 3);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  WriteAll();
  Flood(100, 4);
  Expire(absl::Minutes(9));
  // Its parent is not in memory: it is served, and stays on disk.
  EXPECT_EQ(Fetch(chain, 2), ItemStatus::kOk);
  Expire(absl::Minutes(9));
  EXPECT_EQ(Prefix(chain), 3u);
  EXPECT_EQ(Expire(absl::Minutes(2)), 3u);
  EXPECT_EQ(Prefix(chain), 0u);
}

TEST_F(ArchiveCareTest, ARestartCountsAsAUse) {
  OpenWith(8);
  const std::vector<TestItem> chain = Chain(space(), 0, 3);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  WriteAll();
  clock_.Advance(absl::Hours(1));
  OpenWith(8);
  store().SetPageTtl(space(), absl::Minutes(10));
  EXPECT_EQ(Expire(absl::Minutes(1)), 0u);
  EXPECT_EQ(Expire(absl::Minutes(9)), 0u);
  EXPECT_EQ(Prefix(chain), 3u);
  EXPECT_EQ(Expire(absl::Minutes(2)), 3u);
  EXPECT_EQ(store().Stats().tiers.back().used_bytes, 0u);
}

TEST_F(ArchiveCareTest, AClockThatJumpsBackExpiresNothing) {
  OpenWith(3);
  store().SetPageTtl(space(), absl::Minutes(10));
  const std::vector<TestItem> chain = Chain(space(), 0, 3);
  clock_.Advance(absl::Hours(5));
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  WriteAll();
  Flood(100, 3);
  EXPECT_EQ(Expire(absl::Hours(-4)), 0u);
  EXPECT_EQ(Prefix(chain), 3u);
}

TEST_F(ArchiveCareTest, APageThatIsPutAnewStaysUntilItIsOnDiskAnew) {
  for (const ArchiveAdmission admission :
       {ArchiveAdmission::kAll, ArchiveAdmission::kFetched, ArchiveAdmission::kWorth}) {
    OpenWith(4, {.archive_admission = admission});
    std::vector<TestItem> page = Chain(space(), 50 + static_cast<uint64_t>(admission), 1);
    ASSERT_EQ(Put(page[0]), ItemStatus::kOk);
    Persist(page[0]);
    Flood(100, 4);
    WriteAll();
    Flood(200, 4);
    ASSERT_EQ(TierOf(page[0]), TierKind::kDisk);
    page[0].seed += 1;
    ASSERT_EQ(Put(page[0]), ItemStatus::kOk);
    // It has to go, and is not on disk yet: others go.
    Flood(300, 6);
    EXPECT_EQ(TierOf(page[0]), TierKind::kHost);
    WriteAll();
    Flood(400, 6);
    WriteAll();
    Flood(500, 6);
    EXPECT_EQ(TierOf(page[0]), TierKind::kDisk);
    EXPECT_EQ(Fetch(page), ItemStatus::kOk);
    const std::string_view key = page[0].key;
    store().Delete(space(), {&key, 1});
    WriteAll();
  }
}

// --- Bad pages ---

// Of a WIDE page of SmallSpec: 2 layers of 2 heads, 256 bytes a block.
constexpr uint64_t kByteOfLayer1Head0 = 2 * 256 + 77;

class CorruptArchiveTest : public DiskArchiveTest {
 protected:
  struct Told {
    std::string key;
    TierKind tier = TierKind::kHost;
    CorruptAt at = CorruptAt::kPut;
    std::optional<BlockPlace> block;
  };
  void Open(uint64_t pages, ArchiveAdmission admission = ArchiveAdmission::kAll) {
    OpenWith(pages, {.archive_admission = admission, .on_corrupt = [this](const CorruptPage& page) {
                       told_.push_back({std::string(page.key), page.tier, page.at, page.block});
                       EXPECT_FALSE(page.error.empty());
                     }});
  }
  // A chain on disk, and in memory what comes of it when a server starts.
  void Begin(uint32_t pages = 1) {
    Open(16);
    chain_ = Chain(space(), 0, pages);
    ASSERT_EQ(PutChain(store(), space(), chain_), ItemStatus::kOk);
    WriteAll();
    Open(16);
  }
  // The device flips a bit of the page's layer 1, head 0, wherever it lies in its segment.
  void Spoil(const TestItem& item) {
    const TestPage page = MakePage(space(), Encoding::kWide, item.seed);
    const std::string block(reinterpret_cast<const char*>(page.bytes.data()) + 512, 64);
    for (const auto& entry : std::filesystem::directory_iterator(folder_.path())) {
      std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
      std::string bytes(std::istreambuf_iterator<char>(file), {});
      const size_t at = bytes.find(block);
      if (at == std::string::npos) continue;
      file.clear();
      file.seekp(static_cast<std::streamoff>(at));
      file.put(static_cast<char>(bytes[at] ^ 1));
      return;
    }
    FAIL() << "the page is in no file";
  }
  // Of this page once, and of none other.
  void ExpectTold(const TestItem& item, TierKind tier, CorruptAt at) {
    ASSERT_EQ(told_.size(), 1u);
    EXPECT_EQ(told_[0].key, item.key);
    EXPECT_EQ(told_[0].tier, tier);
    EXPECT_EQ(told_[0].at, at);
    ASSERT_TRUE(told_[0].block.has_value());
    EXPECT_EQ(told_[0].block->layer, 1u);
    EXPECT_EQ(told_[0].block->head, 0u);
  }
  // What it was is gone, and it can be put and fetched again.
  void ExpectRefetchable(const TestItem& item) {
    EXPECT_EQ(Fetch({item}), ItemStatus::kCorrupt);
    EXPECT_EQ(Put(item), ItemStatus::kOk);
    EXPECT_EQ(Fetch({item}), ItemStatus::kOk);
    EXPECT_EQ(told_.size(), 1u);
  }
  // Puts pages that nobody reads.
  void Flood(uint64_t first_key, uint32_t count) {
    for (const TestItem& item : Chain(space(), first_key, count)) {
      TestItem single = item;
      single.parent = "";
      single.first_position = 0;
      ASSERT_EQ(Put(single), ItemStatus::kOk);
      WriteAll();
    }
  }
  uint64_t CorruptOnDisk() { return store().Stats().archive.corrupt_pages; }

  std::vector<TestItem> chain_;
  std::vector<Told> told_;
};

TEST_F(CorruptArchiveTest, IsToldOfWhenItIsRead) {
  Begin(3);
  Spoil(chain_[1]);
  EXPECT_EQ(Fetch(chain_), ItemStatus::kOk);  // it comes along with the first
  ExpectTold(chain_[1], TierKind::kDisk, CorruptAt::kServe);
  EXPECT_EQ(CorruptOnDisk(), 1u);
  EXPECT_EQ(Prefix(chain_), 1u);
  EXPECT_EQ(TierOf(chain_[2]), TierKind{});
  ExpectRefetchable(chain_[1]);
}

TEST_F(CorruptArchiveTest, IsToldOfWhenItIsScrubbed) {
  Begin();
  Spoil(chain_[0]);
  for (uint64_t cursor = 0;;) {
    cursor = store().Verify(cursor, 1 << 20).cursor;
    if (cursor == 0) break;
  }
  ExpectTold(chain_[0], TierKind::kDisk, CorruptAt::kScrub);
  EXPECT_EQ(CorruptOnDisk(), 1u);
  ExpectRefetchable(chain_[0]);
}

TEST_F(CorruptArchiveTest, IsToldOfWhenItsSegmentIsReclaimed) {
  Begin(3);
  // They are in use, so they are kept when their segment goes; but for one that has rotted there.
  for (size_t i = 0; i < chain_.size(); ++i) EXPECT_EQ(Fetch(chain_, i), ItemStatus::kOk);
  Spoil(chain_[1]);
  for (uint32_t flooded = 0; told_.empty() && flooded < 1000; flooded += 50)
    Flood(1000 + flooded, 50);
  ExpectTold(chain_[1], TierKind::kDisk, CorruptAt::kMove);
  EXPECT_EQ(CorruptOnDisk(), 1u);
  EXPECT_GE(store().Stats().archive.rewritten_pages, 1u);
  EXPECT_EQ(TierOf(chain_[0]), TierKind::kDisk);
  EXPECT_EQ(TierOf(chain_[1]), TierKind{});
  EXPECT_EQ(TierOf(chain_[2]), TierKind{});
  ExpectRefetchable(chain_[1]);
}

TEST_F(CorruptArchiveTest, IsToldOfWhenItIsWrittenAsItLeavesMemory) {
  Open(8, ArchiveAdmission::kWorth);
  chain_ = Chain(space(), 0, 3);
  ASSERT_EQ(PutChain(store(), space(), chain_), ItemStatus::kOk);
  ASSERT_TRUE(tier_->FlipBit(1, kByteOfLayer1Head0));
  // The last of the chain has to go, and what it extends is written before it.
  for (uint64_t i = 0; i < 6; ++i) ASSERT_EQ(Put(Chain(space(), 100 + i, 1)[0]), ItemStatus::kOk);
  ASSERT_EQ(store().Stats().archive.written_pages, 0u);
  WriteAll();
  ExpectTold(chain_[1], TierKind::kHost, CorruptAt::kMove);
  EXPECT_EQ(store().Stats().counters.corrupt_pages, 1u);
  EXPECT_EQ(store().Stats().archive.written_pages, 1u);
  EXPECT_EQ(Prefix(chain_), 1u);
  EXPECT_EQ(TierOf(chain_[2]), TierKind{});
  EXPECT_EQ(Fetch({chain_[2]}), ItemStatus::kEvicted);
  ExpectRefetchable(chain_[1]);
}

}  // namespace
}  // namespace oscarkv::testing
