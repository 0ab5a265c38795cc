// Putting pages: what is refused, what is stored, who wins.
#include <algorithm>
#include <cstring>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "proto/wire/page_key.h"
#include "tests/core/store_test.h"

namespace oscarkv::testing {
namespace {

using ::testing::HasSubstr;

class PagePutTest : public StoreTest {
 protected:
  void SetUp() override { Open(); }

  BeginPutResult Begin(const TestItem& item) {
    page_ = MakePage(space(), item.encoding, item.seed);
    return store().BeginPut(space(), AsPutItem(item, page_));
  }
  void Fill(PutSlot& slot) {
    std::memcpy(slot.bytes().data(), page_.bytes.data(), page_.bytes.size());
  }

  TestPage page_;  // of the latest Begin
};

TEST_F(PagePutTest, WhatIsPutIsRead) {
  for (const Encoding encoding : {Encoding::kWide, Encoding::kPacked}) {
    const auto chain = Chain(space(), encoding == Encoding::kWide ? 0 : 100, 5, encoding);
    ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
    EXPECT_EQ(Prefix(chain), 5u);
    for (const TestItem& item : chain) EXPECT_EQ(Read(item), ItemStatus::kOk);
  }
  const NamespaceStats stats = store().Stats().namespaces[0];
  EXPECT_EQ(stats.wide_pages, 5u);
  EXPECT_EQ(stats.packed_pages, 5u);
  EXPECT_EQ(stats.stored_bytes,
            5 * space().page_bytes(Encoding::kWide) + 5 * space().page_bytes(Encoding::kPacked));
  EXPECT_EQ(stats.wide_equivalent_bytes, 10 * space().page_bytes(Encoding::kWide));
}

TEST_F(PagePutTest, IsInvisibleUntilCommit) {
  const TestItem item = Chain(space(), 0, 1)[0];
  BeginPutResult begun = Begin(item);
  ASSERT_EQ(begun.result.status, ItemStatus::kOk);
  Fill(begun.slot);
  EXPECT_EQ(Read(item), ItemStatus::kMiss);
  EXPECT_EQ(Prefix({item}), 0u);
  EXPECT_EQ(store().List(space(), 10, 0).pages.size(), 0u);
  EXPECT_EQ(begun.slot.Commit().status, ItemStatus::kOk);
  EXPECT_EQ(Read(item), ItemStatus::kOk);
}

TEST_F(PagePutTest, MemoryIsBackWhenDroppedWithoutCommit) {
  const TestItem item = Chain(space(), 0, 1)[0];
  {
    BeginPutResult begun = Begin(item);
    EXPECT_EQ(UsedBytes(), kWideSlotBytes);
    EXPECT_EQ(store().Stats().open_puts, 1u);
  }
  EXPECT_EQ(UsedBytes(), 0u);
  EXPECT_EQ(store().Stats().open_puts, 0u);
  EXPECT_EQ(store().Stats().counters.puts_abandoned, 1u);
  EXPECT_EQ(Read(item), ItemStatus::kMiss);
}

TEST_F(PagePutTest, MovedSlotIsStillOnePut) {
  const TestItem item = Chain(space(), 0, 1)[0];
  BeginPutResult begun = Begin(item);
  Fill(begun.slot);
  PutSlot moved = std::move(begun.slot);
  EXPECT_FALSE(begun.slot);
  EXPECT_EQ(begun.slot.Commit().status, ItemStatus::kInvalid);
  EXPECT_EQ(moved.Commit().status, ItemStatus::kOk);
  EXPECT_FALSE(moved);
  EXPECT_EQ(UsedBytes(), kWideSlotBytes);
}

TEST_F(PagePutTest, LyingChecksumIsCorruptAndNamesTheBlock) {
  const TestItem item = Chain(space(), 0, 1)[0];
  BeginPutResult begun = Begin(item);
  Fill(begun.slot);
  begun.slot.bytes()[3 * 256 + 5] ^= std::byte{1};
  const ItemResult result = begun.slot.Commit();
  EXPECT_EQ(result.status, ItemStatus::kCorrupt);
  EXPECT_THAT(result.message, HasSubstr("layer 1, head 1"));
  EXPECT_EQ(Read(item), ItemStatus::kMiss);
  EXPECT_EQ(UsedBytes(), 0u);
}

TEST_F(PagePutTest, WhatIsFilledIsVerifiedByTheWay) {
  const TestItem item = Chain(space(), 0, 1)[0];
  const uint64_t bytes = space().page_bytes(Encoding::kWide);
  for (const bool lie : {true, false}) {
    BeginPutResult begun = Begin(item);
    for (uint64_t filled = 0; filled < bytes; filled += 100) {
      const uint64_t count = std::min<uint64_t>(100, bytes - filled);
      std::memcpy(begun.slot.bytes().data() + filled, page_.bytes.data() + filled, count);
      if (lie && filled == 200) begun.slot.bytes()[filled] ^= std::byte{1};
      begun.slot.Filled(filled + count);
    }
    // What it said then counts, whatever the bytes are now.
    if (lie) Fill(begun.slot);
    PutSlot moved = std::move(begun.slot);
    const ItemResult result = moved.Commit();
    EXPECT_EQ(result.status, lie ? ItemStatus::kCorrupt : ItemStatus::kOk);
    if (lie) {
      EXPECT_THAT(result.message, HasSubstr("layer 0, head 0"));
    }
    EXPECT_EQ(Read(item), lie ? ItemStatus::kMiss : ItemStatus::kOk);
  }
}

TEST_F(PagePutTest, PaddingIsClearedNotStored) {
  const TestItem item = Chain(space(), 0, 1, Encoding::kPacked)[0];
  const BlockLayout& block = space().layout(Encoding::kPacked).block(0);
  ASSERT_LT(block.bytes, block.stride);
  BeginPutResult begun = Begin(item);
  Fill(begun.slot);
  std::memset(begun.slot.bytes().data() + block.bytes, 0x5a, block.stride - block.bytes);
  EXPECT_EQ(begun.slot.Commit().status, ItemStatus::kOk);
  EXPECT_EQ(Read(item), ItemStatus::kOk);  // compares the padding too
}

TEST_F(PagePutTest, SameAgainExistsWithoutAWrite) {
  const TestItem item = Chain(space(), 0, 1)[0];
  ASSERT_EQ(Put(item), ItemStatus::kOk);
  BeginPutResult again = Begin(item);
  EXPECT_EQ(again.result.status, ItemStatus::kExists);
  EXPECT_FALSE(again.slot);
  EXPECT_EQ(UsedBytes(), kWideSlotBytes);
}

TEST_F(PagePutTest, OtherBytesUnderTheKeyConflict) {
  TestItem item = Chain(space(), 0, 1)[0];
  ASSERT_EQ(Put(item), ItemStatus::kOk);
  TestItem other = item;
  other.seed = 77;
  BeginPutResult begun = Begin(other);
  EXPECT_EQ(begun.result.status, ItemStatus::kConflict);
  EXPECT_THAT(begun.result.message, HasSubstr("other block checksums"));
  EXPECT_EQ(Read(item), ItemStatus::kOk);
}

TEST_F(PagePutTest, OtherPositionOrParentUnderTheKeyConflicts) {
  const auto chain = Chain(space(), 0, 3);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  TestItem moved = chain[0];
  moved.first_position = 400;
  EXPECT_EQ(Put(moved), ItemStatus::kConflict);
  TestItem adopted = chain[1];
  adopted.parent = chain[2].key;
  EXPECT_EQ(Put(adopted), ItemStatus::kConflict);
}

TEST_F(PagePutTest, OtherEncodingUnderTheKeyExists) {
  TestItem item = Chain(space(), 0, 1)[0];
  ASSERT_EQ(Put(item), ItemStatus::kOk);
  TestItem packed = item;
  packed.encoding = Encoding::kPacked;
  EXPECT_EQ(Put(packed), ItemStatus::kExists);
  EXPECT_EQ(store().Pin(space(), item.key).page.meta().encoding, Encoding::kWide);
}

TEST_F(PagePutTest, FirstOfTwoWritersToCommitWins) {
  const TestItem item = Chain(space(), 0, 1)[0];
  TestItem other = item;
  other.seed = 77;
  BeginPutResult slow = Begin(other);
  Fill(slow.slot);
  BeginPutResult fast = Begin(item);
  Fill(fast.slot);
  BeginPutResult same = Begin(item);
  Fill(same.slot);
  ASSERT_TRUE(slow.slot && fast.slot && same.slot);
  EXPECT_EQ(fast.slot.Commit().status, ItemStatus::kOk);
  EXPECT_EQ(slow.slot.Commit().status, ItemStatus::kConflict);
  EXPECT_EQ(same.slot.Commit().status, ItemStatus::kExists);
  EXPECT_EQ(Read(item), ItemStatus::kOk);
  EXPECT_EQ(UsedBytes(), kWideSlotBytes);
}

TEST_F(PagePutTest, ItemsThatCannotBeAreInvalid) {
  const TestItem good = Chain(space(), 0, 1)[0];
  const TestPage page = MakePage(space(), good.encoding, good.seed);
  const auto expect_invalid = [&](const PutItem& item, std::string_view why) {
    const BeginPutResult begun = store().BeginPut(space(), item);
    EXPECT_EQ(begun.result.status, ItemStatus::kInvalid);
    EXPECT_THAT(begun.result.message, HasSubstr(std::string(why)));
    EXPECT_FALSE(begun.slot);
  };
  PutItem item = AsPutItem(good, page);
  item.key = "short";
  expect_invalid(item, "16..64 bytes, found 5");
  item.key = "";
  expect_invalid(item, "found 0");
  const std::string long_key(65, 'k');
  item.key = long_key;
  expect_invalid(item, "found 65");

  item = AsPutItem(good, page);
  item.parent = "short";
  expect_invalid(item, "parent: a key must have 16..64 bytes");
  item.parent = item.key;
  expect_invalid(item, "own parent");

  item = AsPutItem(good, page);
  item.bytes += 1;
  expect_invalid(item, "expected 1024 bytes (the namespace's page size), found 1025");
  item = AsPutItem(good, page);
  item.block_crcs = item.block_crcs.first(3);
  expect_invalid(item, "expected 4 block checksums, found 3");
  EXPECT_EQ(store().Stats().counters.puts_by_outcome[static_cast<size_t>(ItemStatus::kInvalid)],
            7u);
}

TEST_F(PagePutTest, KeysOfEveryPermittedLengthWork) {
  for (size_t bytes = kKeyBytesMin; bytes <= kKeyBytesMax; ++bytes) {
    TestItem item;
    item.key = std::string(bytes, 'k');
    item.seed = bytes;
    ASSERT_EQ(Put(item), ItemStatus::kOk) << bytes;
    EXPECT_EQ(Read(item), ItemStatus::kOk) << bytes;
  }
}

TEST_F(PagePutTest, PackedWithoutTransformSetIsInvalid) {
  NamespaceSpec spec = SmallSpec();
  spec.codec.transform_hash.clear();
  const auto wide_only = store().OpenNamespace(spec, true);
  ASSERT_OK(wide_only);
  const auto chain = Chain(**wide_only, 0, 1, Encoding::kPacked);
  EXPECT_EQ(PutPage(store(), **wide_only, chain[0]).status, ItemStatus::kInvalid);
}

TEST_F(PagePutTest, PackedSinksAreInvalid) {
  NamespaceSpec spec = SmallSpec();
  spec.codec.sink_tokens = 6;
  const auto opened = store().OpenNamespace(spec, true);
  ASSERT_OK(opened);
  auto chain = Chain(**opened, 0, 3);
  chain[2].encoding = Encoding::kPacked;
  EXPECT_EQ(PutChain(store(), **opened, chain), ItemStatus::kOk);
  chain = Chain(**opened, 10, 2);
  chain[1].encoding = Encoding::kPacked;
  EXPECT_EQ(PutChain(store(), **opened, chain), ItemStatus::kInvalid);
}

TEST_F(PagePutTest, UnknownParentIsSkipped) {
  const auto chain = Chain(space(), 0, 2);
  const ItemResult result = PutPage(store(), space(), chain[1]);
  EXPECT_EQ(result.status, ItemStatus::kSkipped);
  EXPECT_THAT(result.message, HasSubstr("is not stored"));
}

// Of two pages that are begun before the first is stored.
TEST_F(PagePutTest, AParentMayBeOpenAndIsLookedForWhenThePageIsCommitted) {
  const auto chain = Chain(space(), 0, 2);
  for (const bool parent_arrives : {true, false}) {
    const TestPage pages[] = {MakePage(space(), chain[0].encoding, chain[0].seed),
                              MakePage(space(), chain[1].encoding, chain[1].seed)};
    BeginPutResult parent = store().BeginPut(space(), AsPutItem(chain[0], pages[0]));
    ASSERT_EQ(parent.result.status, ItemStatus::kOk);
    PutItem item = AsPutItem(chain[1], pages[1]);
    item.open_parent = &parent.slot;
    item.first_position += 1;
    EXPECT_EQ(store().BeginPut(space(), item).result.status, ItemStatus::kInvalid);
    item.first_position -= 1;
    BeginPutResult child = store().BeginPut(space(), item);
    ASSERT_EQ(child.result.status, ItemStatus::kOk) << child.result.message;
    for (auto [slot, page] : {std::pair(&parent.slot, &pages[0]), {&child.slot, &pages[1]}})
      std::memcpy(slot->bytes().data(), page->bytes.data(), page->bytes.size());
    if (!parent_arrives) parent.slot.bytes()[0] ^= std::byte{1};
    EXPECT_EQ(parent.slot.Commit().status, parent_arrives ? ItemStatus::kOk : ItemStatus::kCorrupt);
    EXPECT_EQ(child.slot.Commit().status, parent_arrives ? ItemStatus::kOk : ItemStatus::kSkipped);
    EXPECT_EQ(Prefix(chain), parent_arrives ? 2u : 0u);
    store().Clear(space());
  }
}

TEST_F(PagePutTest, AnOpenPageThatIsNotTheParentSaysNothing) {
  const auto chain = Chain(space(), 0, 1);
  const auto other = Chain(space(), 100, 2);
  const BeginPutResult open = Begin(chain[0]);
  const TestPage page = MakePage(space(), other[1].encoding, other[1].seed);
  PutItem item = AsPutItem(other[1], page);
  item.open_parent = &open.slot;
  EXPECT_EQ(store().BeginPut(space(), item).result.status, ItemStatus::kSkipped);
}

TEST_F(PagePutTest, PositionThatDoesNotFollowTheParentIsInvalid) {
  auto chain = Chain(space(), 0, 2);
  ASSERT_EQ(Put(chain[0]), ItemStatus::kOk);
  chain[1].first_position = 8;
  const ItemResult result = PutPage(store(), space(), chain[1]);
  EXPECT_EQ(result.status, ItemStatus::kInvalid);
  EXPECT_THAT(result.message, HasSubstr("plus page_tokens, 4, found 8"));
  EXPECT_EQ(store().Stats().pins, 0u);
}

TEST_F(PagePutTest, ParentDeletedMeanwhileSkips) {
  const auto chain = Chain(space(), 0, 2);
  ASSERT_EQ(Put(chain[0]), ItemStatus::kOk);
  BeginPutResult begun = Begin(chain[1]);
  Fill(begun.slot);
  const std::string_view root = chain[0].key;
  EXPECT_EQ(store().Delete(space(), {&root, 1})[0], ItemStatus::kOk);
  EXPECT_EQ(begun.slot.Commit().status, ItemStatus::kSkipped);
  EXPECT_EQ(UsedBytes(), 0u);
  // Also when another page has come under the parent's key.
  ASSERT_EQ(Put(chain[0]), ItemStatus::kOk);
  BeginPutResult again = Begin(chain[1]);
  Fill(again.slot);
  EXPECT_EQ(store().Delete(space(), {&root, 1})[0], ItemStatus::kOk);
  ASSERT_EQ(Put(chain[0]), ItemStatus::kOk);
  EXPECT_EQ(again.slot.Commit().status, ItemStatus::kSkipped);
  EXPECT_EQ(Put(chain[1]), ItemStatus::kOk);
}

TEST_F(PagePutTest, NamespacesDoNotShare) {
  const auto other = store().OpenNamespace(SmallSpec("other"), true);
  ASSERT_OK(other);
  const auto chain = Chain(space(), 0, 2);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  EXPECT_EQ(PrefixPages(store(), **other, chain), 0u);
  EXPECT_EQ(ReadPage(store(), **other, chain[0]), ItemStatus::kMiss);
  EXPECT_EQ(PutPage(store(), **other, chain[1]).status, ItemStatus::kSkipped);
}

TEST_F(PagePutTest, ReservationThatFailsIsNoSpace) {
  const auto chain = Chain(space(), 0, 2);
  ASSERT_EQ(Put(chain[0]), ItemStatus::kOk);
  tier_->FailReservations(1, absl::InternalError("injected"));
  BeginPutResult begun = Begin(chain[1]);
  EXPECT_EQ(begun.result.status, ItemStatus::kNoSpace);
  EXPECT_THAT(begun.result.message, HasSubstr("injected"));
  EXPECT_EQ(store().Stats().pins, 0u);
  EXPECT_EQ(Put(chain[1]), ItemStatus::kOk);
}

TEST_F(PagePutTest, RotOfStoredChecksumsIsNoConflict) {
  const auto chain = Chain(space(), 0, 2);
  ASSERT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  ASSERT_TRUE(tier_->FlipBit(0, 1024));  // the first checksum of the root
  EXPECT_EQ(Put(chain[0]), ItemStatus::kOk);
  EXPECT_EQ(store().Stats().counters.corrupt_pages, 1u);
  EXPECT_EQ(Prefix(chain), 1u);
  EXPECT_EQ(Read(chain[0]), ItemStatus::kOk);
}

}  // namespace
}  // namespace oscarkv::testing
