#include "server/tier/slab_allocator.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/support/status_matchers.h"

namespace oscarkv::testing {
namespace {

using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

constexpr auto kAllMovable = [](TierSlotOwner) { return true; };

SlabAllocator Make(uint64_t units, uint64_t unit_bytes) {
  return *SlabAllocator::Create({.capacity_bytes = units * unit_bytes, .unit_bytes = unit_bytes});
}

std::vector<TierSlot> ReserveAll(SlabAllocator& slabs, uint64_t bytes) {
  std::vector<TierSlot> slots;
  for (;;) {
    const auto slot = slabs.Reserve(bytes);
    if (!slot.ok()) return slots;
    slots.push_back(*slot);
  }
}

TEST(SlabAllocatorTest, OptionsAreChecked) {
  EXPECT_THAT(SlabAllocator::Create({.capacity_bytes = 0}),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(SlabAllocator::Create({.capacity_bytes = 1000, .unit_bytes = 100}),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(SlabAllocator::Create({.capacity_bytes = 1000, .unit_bytes = 1024}),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(SlabAllocatorTest, UnitsAreChosenFromTheCapacity) {
  EXPECT_EQ(SlabAllocator::Create({.capacity_bytes = 1 << 20})->unit_bytes(), 64u << 10);
  EXPECT_EQ(SlabAllocator::Create({.capacity_bytes = uint64_t{1} << 30})->unit_bytes(), 512u << 10);
  EXPECT_EQ(SlabAllocator::Create({.capacity_bytes = uint64_t{1} << 42})->unit_bytes(), 64u << 20);
}

TEST(SlabAllocatorTest, LargeSlotsGetSlabsOfSeveralUnits) {
  SlabAllocator slabs = Make(64, 1024);
  // Eight in nine units leave 512 bytes, an eighteenth; one in two units would leave half.
  EXPECT_EQ(ReserveAll(slabs, 1088).size(), 56u);
  SlabAllocator one = Make(64, 1024);
  // Larger than all but one unit together.
  EXPECT_EQ(ReserveAll(one, 64 * 1024 - 100).size(), 1u);
}

TEST(SlabAllocatorTest, WasteIsAtMostASixteenthForRealPageSizes) {
  // SmolLM2 (30 layers, 3 heads of 64) and Qwen3-8B (36, 8 of 128), 16 and 64 tokens a page.
  for (const uint64_t bytes : {368'640u + 360u, 57'600u + 360u, 2'359'296u + 1152u,
                               9'437'184u + 1152u, 331'776u + 1152u, 1'327'104u + 1152u}) {
    const uint64_t capacity = uint64_t{4} << 30;
    SlabAllocator slabs = *SlabAllocator::Create({.capacity_bytes = capacity});
    const uint64_t used = ReserveAll(slabs, bytes).size() * bytes;
    EXPECT_GE(used, capacity / 16 * 15 - 16 * slabs.unit_bytes()) << bytes;
  }
}

TEST(SlabAllocatorTest, EmptySlabsReturnToTheRange) {
  SlabAllocator slabs = Make(4, 1024);
  std::vector<TierSlot> slots = ReserveAll(slabs, 256);
  EXPECT_EQ(slots.size(), 16u);
  EXPECT_THAT(slabs.Reserve(512), StatusIs(absl::StatusCode::kResourceExhausted));
  for (int i = 0; i < 4; ++i) slabs.Release(slots[static_cast<size_t>(i)]);
  EXPECT_EQ(slabs.Stats().free_bytes, 1024u);
  EXPECT_OK(slabs.Reserve(512));
  EXPECT_OK(slabs.Reserve(512));
  EXPECT_FALSE(slabs.Reserve(512).ok());
}

TEST(SlabAllocatorTest, StatsTellUsedFreeAndStranded) {
  SlabAllocator slabs = Make(4, 1024);
  const auto slot = slabs.Reserve(200);
  ASSERT_OK(slot);
  const TierStats stats = slabs.Stats();
  EXPECT_EQ(stats.used_bytes, 200u);
  EXPECT_EQ(stats.free_bytes, 3 * 1024u);
  EXPECT_EQ(stats.stranded_bytes, 3 * 256u);  // 200 rounded up, four a slab
  slabs.Release(*slot);
  EXPECT_EQ(slabs.Stats().free_bytes, 4 * 1024u);
}

// --- Evacuation ---

class EvacuationTest : public ::testing::Test {
 protected:
  // Fills 4 slabs of 4 slots of 256 bytes, with owners 0..15 in the order of offsets, and releases
  // the slots of `gone`.
  void SetUpSlots(const std::set<TierSlotOwner>& gone) {
    std::vector<TierSlot> slots = ReserveAll(slabs_, 256);
    std::sort(slots.begin(), slots.end(),
              [](const TierSlot& a, const TierSlot& b) { return a.offset < b.offset; });
    for (TierSlotOwner i = 0; i < slots.size(); ++i) {
      if (gone.contains(i)) {
        slabs_.Release(slots[i]);
      } else {
        slabs_.SetOwner(slots[i], i);
        slots_[i] = slots[i];
      }
    }
  }

  SlabAllocator slabs_ = Make(4, 1024);
  std::map<TierSlotOwner, TierSlot> slots_;
};

TEST_F(EvacuationTest, NothingToGainWhenTheRestIsFull) {
  SetUpSlots({});
  EXPECT_THAT(slabs_.BeginEvacuation(512, kAllMovable), IsEmpty());
  SetUpSlots({});
}

TEST_F(EvacuationTest, TooLittleFreeElsewhereIsNotTried) {
  SetUpSlots({0, 5});  // two free, but any slab with a free slot has three to move
  EXPECT_THAT(slabs_.BeginEvacuation(512, kAllMovable), IsEmpty());
}

TEST_F(EvacuationTest, NamesTheCheapestSlab) {
  SetUpSlots({0, 4, 5, 8, 9, 10});
  EXPECT_THAT(slabs_.BeginEvacuation(512, kAllMovable), UnorderedElementsAre(11));
  // Closed: what is reserved now lies elsewhere.
  const auto moved = slabs_.Reserve(256);
  ASSERT_OK(moved);
  EXPECT_NE(moved->offset / 1024, 2u);
  slabs_.Release(slots_[11]);
  slabs_.EndEvacuation();
  EXPECT_OK(slabs_.Reserve(512));
}

TEST_F(EvacuationTest, PassesOverWhatCannotMove) {
  SetUpSlots({0, 4, 5, 8, 9, 10});
  EXPECT_THAT(slabs_.BeginEvacuation(512, [](TierSlotOwner owner) { return owner != 11; }),
              UnorderedElementsAre(6, 7));
  slabs_.EndEvacuation();
  slabs_.SetOwner(slots_[11], kNoTierSlotOwner);
  EXPECT_THAT(slabs_.BeginEvacuation(512, kAllMovable), UnorderedElementsAre(6, 7));
  slabs_.EndEvacuation();
}

TEST_F(EvacuationTest, OneAtATimeAndOpensAgain) {
  SetUpSlots({0, 4, 5, 8, 9, 10});
  EXPECT_THAT(slabs_.BeginEvacuation(512, kAllMovable), UnorderedElementsAre(11));
  EXPECT_THAT(slabs_.BeginEvacuation(512, kAllMovable), IsEmpty());
  slabs_.EndEvacuation();
  EXPECT_EQ(ReserveAll(slabs_, 256).size(), 6u);
}

TEST_F(EvacuationTest, WindowOfSeveralUnits) {
  SetUpSlots({0, 1, 2, 4, 5, 6, 8, 9, 12});
  // A slot of two units: clears slabs 0 and 1.
  EXPECT_THAT(slabs_.BeginEvacuation(2048, kAllMovable), UnorderedElementsAre(3, 7));
  for (const TierSlotOwner owner : {3u, 7u}) {
    ASSERT_OK(slabs_.Reserve(256));
    slabs_.Release(slots_[owner]);
  }
  slabs_.EndEvacuation();
  EXPECT_OK(slabs_.Reserve(2048));
}

TEST(SlabAllocatorTest, RandomUseNeverOverlapsAndAddsUp) {
  std::mt19937_64 random(5);
  SlabAllocator slabs = Make(64, 4096);
  std::map<uint64_t, TierSlot> held;  // by offset
  uint64_t used = 0;
  for (int step = 0; step < 50'000; ++step) {
    if (random() % 5 < 3) {
      const uint64_t sizes[] = {100, 700, 1000, 5000, 9000};
      const auto slot = slabs.Reserve(sizes[random() % 5]);
      if (slot.ok()) {
        const auto after = held.lower_bound(slot->offset);
        ASSERT_TRUE(after == held.end() || slot->offset + slot->bytes <= after->first);
        if (after != held.begin()) {
          const TierSlot& before = std::prev(after)->second;
          ASSERT_LE(before.offset + before.bytes, slot->offset);
        }
        ASSERT_LE(slot->offset + slot->bytes, slabs.capacity_bytes());
        held[slot->offset] = *slot;
        used += slot->bytes;
      }
    } else if (!held.empty()) {
      auto chosen = held.lower_bound(random() % slabs.capacity_bytes());
      if (chosen == held.end()) chosen = held.begin();
      used -= chosen->second.bytes;
      slabs.Release(chosen->second);
      held.erase(chosen);
    }
    const TierStats stats = slabs.Stats();
    ASSERT_EQ(stats.used_bytes, used);
    ASSERT_EQ(stats.reserved_slots, held.size());
    ASSERT_LE(stats.used_bytes + stats.free_bytes + stats.stranded_bytes, stats.capacity_bytes);
  }
  for (const auto& [offset, slot] : held) slabs.Release(slot);
  EXPECT_EQ(slabs.Stats().free_bytes, slabs.capacity_bytes());
}

}  // namespace
}  // namespace oscarkv::testing
