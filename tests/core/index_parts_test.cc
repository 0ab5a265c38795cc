// The parts of the index: records, the sharded tables, the memory of dropped keys.
#include <set>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "server/core/dropped_keys.h"
#include "server/core/page_index.h"
#include "server/core/page_record.h"
#include "tests/support/store_pages.h"

namespace oscarkv::testing {
namespace {

TEST(RecordKeyTest, HoldsKeysOfAnyLength) {
  RecordKey key;
  for (size_t bytes = 0; bytes <= 255; ++bytes) {
    const std::string text(bytes, static_cast<char>('a' + bytes % 26));
    key.Assign(text);
    ASSERT_EQ(key.view(), text);
  }
  key.Clear();
  EXPECT_EQ(key.view(), "");
}

TEST(RecordTableTest, GivesDenseNumbersAndReusesThem) {
  RecordTable table;
  std::set<PageRecord*> addresses;
  for (PageId id = 0; id < 10'000; ++id) {
    PageRecord* record = table.Allocate();
    ASSERT_EQ(record->id, id);
    ASSERT_EQ(&table.Get(id), record);
    addresses.insert(record);
  }
  EXPECT_EQ(addresses.size(), 10'000u);
  EXPECT_EQ(table.end(), 10'000u);
  table.Free(table.Get(77));
  table.Free(table.Get(5000));
  EXPECT_EQ(table.Allocate()->id, 5000u);
  EXPECT_EQ(table.Allocate()->id, 77u);
  EXPECT_EQ(table.Allocate()->id, 10'000u);
}

class PageIndexTest : public ::testing::Test {
 protected:
  PageRecord& Add(const std::string& key) {
    PageRecord& record = *records_.Allocate();
    record.key.Assign(key);
    record.space = &space_;
    index_.Insert(record);
    return record;
  }
  PageId Find(std::string_view key) {
    PageId found = kNoPage;
    index_.Read(index_.Probe(space_, key), [&](PageRecord& record) { found = record.id; });
    return found;
  }

  Namespace space_ = *Namespace::Create(SmallSpec(), 0);
  Namespace other_ = *Namespace::Create(SmallSpec("other"), 1);
  RecordTable records_;
  PageIndex index_{records_, 42};
};

TEST_F(PageIndexTest, FindsWhatWasInserted) {
  std::vector<PageId> ids;
  for (uint64_t i = 0; i < 5000; ++i) ids.push_back(Add(KeyOf(i)).id);
  for (uint64_t i = 0; i < 5000; ++i) ASSERT_EQ(Find(KeyOf(i)), ids[i]);
  EXPECT_EQ(Find(KeyOf(5000)), kNoPage);
  EXPECT_FALSE(index_.Read(index_.Probe(other_, KeyOf(1)), [](PageRecord&) {}));
}

TEST_F(PageIndexTest, ReadsManyInOrderUntilTold) {
  for (uint64_t i = 0; i < 1000; ++i) Add(KeyOf(i));
  std::vector<std::string> keys;
  std::vector<PageProbe> probes;
  for (uint64_t i = 0; i < PageIndex::kManyMax; ++i) keys.push_back(KeyOf(i * 10));  // to 1270
  for (const std::string& key : keys) probes.push_back(index_.Probe(space_, key));
  size_t next = 0;
  index_.ReadMany(probes, [&](size_t i, PageRecord* record) {
    EXPECT_EQ(i, next++);
    EXPECT_EQ(record != nullptr, i < 100) << i;
    if (record != nullptr) {
      EXPECT_EQ(record->key.view(), keys[i]);
    }
    return true;
  });
  EXPECT_EQ(next, probes.size());
  next = 0;
  index_.ReadMany(probes, [&](size_t, PageRecord*) { return ++next < 5; });
  EXPECT_EQ(next, 5u);
  index_.ReadMany({}, [](size_t, PageRecord*) { return true; });
  EXPECT_TRUE(index_.EraseIf(records_.Get(0), [] { return true; }));  // no lock was left behind
}

TEST_F(PageIndexTest, ErasesOnCondition) {
  const PageRecord& record = Add(KeyOf(1));
  EXPECT_FALSE(index_.EraseIf(record, [] { return false; }));
  EXPECT_EQ(Find(KeyOf(1)), record.id);
  EXPECT_TRUE(index_.EraseIf(record, [] { return true; }));
  EXPECT_EQ(Find(KeyOf(1)), kNoPage);
}

TEST_F(PageIndexTest, MemoryPerPageIsBounded) {
  constexpr uint64_t kPages = 200'000;
  for (uint64_t i = 0; i < kPages; ++i) {
    std::string key(32, 'k');
    for (int byte = 0; byte < 8; ++byte)
      key[static_cast<size_t>(byte)] = static_cast<char>(i >> (8 * byte));
    Add(key);
  }
  const double bytes =
      static_cast<double>(index_.memory_bytes() + records_.memory_bytes()) / kPages;
  EXPECT_LE(bytes, 120.0);  // and 16 of the policy
  RecordProperty("index_bytes_per_page", std::to_string(bytes));
}

TEST(DroppedKeysTest, RemembersForgetsAndReplaces) {
  DroppedKeys keys(1024);
  EXPECT_EQ(keys.Find(0x1234567890abcdef), ItemStatus::kMiss);
  keys.Remember(0x1234567890abcdef, ItemStatus::kEvicted);
  EXPECT_EQ(keys.Find(0x1234567890abcdef), ItemStatus::kEvicted);
  keys.Remember(0x1234567890abcdef, ItemStatus::kCorrupt);
  EXPECT_EQ(keys.Find(0x1234567890abcdef), ItemStatus::kCorrupt);
  keys.Forget(0x1234567890abcdef);
  EXPECT_EQ(keys.Find(0x1234567890abcdef), ItemStatus::kMiss);
}

TEST(DroppedKeysTest, BucketKeepsItsLatestFour) {
  DroppedKeys keys(4);  // one bucket
  for (uint64_t i = 1; i <= 12; ++i) keys.Remember(i << 20, ItemStatus::kEvicted);
  for (uint64_t i = 1; i <= 8; ++i) EXPECT_EQ(keys.Find(i << 20), ItemStatus::kMiss) << i;
  for (uint64_t i = 9; i <= 12; ++i) EXPECT_EQ(keys.Find(i << 20), ItemStatus::kEvicted) << i;
}

TEST(DroppedKeysTest, OfNoCapacityRemembersNothing) {
  DroppedKeys keys(0);
  keys.Remember(123 << 10, ItemStatus::kEvicted);
  keys.Forget(123 << 10);
  EXPECT_EQ(keys.Find(123 << 10), ItemStatus::kMiss);
  EXPECT_EQ(keys.memory_bytes(), 0u);
}

TEST(DroppedKeysTest, NeverStoredKeysAreMisses) {
  DroppedKeys keys(1 << 12);
  Namespace space = *Namespace::Create(SmallSpec(), 0);
  RecordTable records;
  const PageIndex index(records, 42);
  for (uint64_t i = 0; i < 20'000; ++i)
    keys.Remember(index.Probe(space, KeyOf(i)).hash, ItemStatus::kEvicted);
  for (uint64_t i = 20'000; i < 60'000; ++i)
    ASSERT_EQ(keys.Find(index.Probe(space, KeyOf(i)).hash), ItemStatus::kMiss);
}

}  // namespace
}  // namespace oscarkv::testing
