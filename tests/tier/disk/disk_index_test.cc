// The disk's index finds all that extends a page, also when pages between have gone.
#include "server/tier/disk/disk_index.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <set>

#include "gtest/gtest.h"

#include "tests/tier/disk/disk_pages.h"

namespace oscarkv::testing {
namespace {

constexpr uint32_t kSegments = 4;
constexpr uint64_t kPages = 64;  // page n, but 0, extends page (n - 1) / 2

uint64_t NumberOf(std::string_view key) {  // as TestKey has it
  uint64_t number = 0;
  std::memcpy(&number, key.data(), sizeof(number));
  return number;
}

bool Extends(uint64_t page, uint64_t root) {
  while (page > root) page = (page - 1) / 2;
  return page == root;
}

class DiskIndexTest : public ::testing::Test {
 protected:
  bool Holds(uint64_t page) const {
    return index_.Find(TestFingerprint(), TestKey(page)) != nullptr;
  }

  void Append(uint64_t page, uint32_t segment) {
    const std::string fingerprint = TestFingerprint();
    const std::string key = TestKey(page);
    const std::string parent = page == 0 ? "" : TestKey((page - 1) / 2);
    index_.Append(segment, {.sequence = ++sequence_,
                            .body_bytes = 100,
                            .fingerprint = fingerprint,
                            .key = key,
                            .parent = parent});
    const DiskPlace* place = index_.Find(fingerprint, key);
    ASSERT_NE(place, nullptr);
    EXPECT_EQ(place->segment, segment);
  }
  void Erase(uint64_t page) { index_.Erase(*index_.Find(TestFingerprint(), TestKey(page))); }

  std::multiset<uint64_t> Descendants(uint64_t page) const {
    std::multiset<uint64_t> found;
    for (const DiskPlace& place : index_.Descendants(TestFingerprint(), TestKey(page)))
      found.insert(NumberOf(index_.At(place).key.view()));
    return found;
  }
  std::multiset<uint64_t> Expected(uint64_t root) const {
    std::multiset<uint64_t> expected;
    for (uint64_t page = root + 1; page < kPages; ++page)
      if (Holds(page) && Extends(page, root)) expected.insert(page);
    return expected;
  }

  DiskIndex index_{kSegments};
  uint64_t sequence_ = 0;
};

TEST_F(DiskIndexTest, PagesThatComeAndGoLeaveNothingOutOfReach) {
  std::mt19937_64 random(7);
  uint64_t holes_seen = 0;
  for (int step = 0; step < 20'000; ++step) {
    const uint64_t page = random() % kPages;
    const uint64_t draw = random() % 100;
    if (draw < 60) {
      // A page is written when what it extends has been; and again when its segment goes.
      if (page == 0 || Holds((page - 1) / 2) || Holds(page)) Append(page, random() % kSegments);
    } else if (draw < 94) {
      if (Holds(page)) Erase(page);
    } else if (draw < 98) {
      std::vector<DiskPlace> places = index_.Descendants(TestFingerprint(), TestKey(page));
      std::ranges::reverse(places);
      for (const DiskPlace& place : places) index_.Erase(place);
    } else {
      index_.Clear(random() % kSegments);
    }
    holes_seen += index_.holes();
    for (const uint64_t root : {uint64_t{0}, page, random() % kPages})
      ASSERT_EQ(Descendants(root), Expected(root)) << "of page " << root << " at step " << step;
  }
  EXPECT_GT(holes_seen, 1000u);
  for (uint32_t segment = 0; segment < kSegments; ++segment) index_.Clear(segment);
  EXPECT_EQ(index_.pages(), 0u);
  EXPECT_EQ(index_.holes(), 0u);
}

}  // namespace
}  // namespace oscarkv::testing
