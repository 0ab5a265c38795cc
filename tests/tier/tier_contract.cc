#include "tests/tier/tier_contract.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "tests/support/status_matchers.h"

namespace oscarkv::testing {
namespace {

using Body = std::function<void(Tier&)>;

class ContractTest : public ::testing::Test {
 public:
  ContractTest(TierUnderTest tier, Body body) : tier_(std::move(tier)), body_(std::move(body)) {}
  void TestBody() override {
    const std::unique_ptr<Tier> tier = tier_.make();
    body_(*tier);
    const TierStats stats = tier->Stats();
    EXPECT_EQ(stats.used_bytes, 0u);
    EXPECT_EQ(stats.reserved_slots, 0u);
  }

 private:
  const TierUnderTest tier_;
  const Body body_;
};

void Fill(Tier& tier, const TierSlot& slot, uint64_t seed) {
  std::mt19937_64 random(seed);
  for (std::byte& byte : tier.Map(slot)) byte = static_cast<std::byte>(random());
}
bool Holds(Tier& tier, const TierSlot& slot, uint64_t seed) {
  std::mt19937_64 random(seed);
  return std::ranges::all_of(
      tier.Map(slot), [&](std::byte byte) { return byte == static_cast<std::byte>(random()); });
}

void ImpossibleSizesAreInvalid(Tier& tier) {
  EXPECT_THAT(tier.Reserve(0), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(tier.Reserve(tier.capacity_bytes() + 1),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(tier.Reserve(UINT64_MAX), StatusIs(absl::StatusCode::kInvalidArgument));
}

void SlotsAreAlignedApartAndWritable(Tier& tier) {
  std::vector<TierSlot> slots;
  for (uint64_t bytes : {1u, 63u, 64u, 65u, 1000u, 4096u, 10'000u}) {
    const auto slot = tier.Reserve(bytes);
    ASSERT_OK(slot);
    EXPECT_EQ(slot->bytes, bytes);
    EXPECT_EQ(slot->offset % kTierSlotAlignment, 0u);
    EXPECT_EQ(tier.Map(*slot).size(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tier.Map(*slot).data()) % kTierSlotAlignment, 0u);
    Fill(tier, *slot, bytes);
    slots.push_back(*slot);
  }
  for (const TierSlot& slot : slots) EXPECT_TRUE(Holds(tier, slot, slot.bytes));
  for (const TierSlot& slot : slots) tier.Release(slot);
}

void FullIsExhaustedAndReleaseMakesRoom(Tier& tier) {
  std::vector<TierSlot> slots;
  for (;;) {
    const auto slot = tier.Reserve(5000);
    if (!slot.ok()) {
      EXPECT_THAT(slot, StatusIs(absl::StatusCode::kResourceExhausted));
      break;
    }
    slots.push_back(*slot);
    ASSERT_LE(slots.size() * 5000, tier.capacity_bytes());
  }
  EXPECT_GE(slots.size() * 5000, tier.capacity_bytes() * 4 / 5);
  EXPECT_EQ(tier.Stats().used_bytes, slots.size() * 5000);
  EXPECT_GE(tier.Stats().failed_reserves, 1u);
  tier.Release(slots.back());
  const auto again = tier.Reserve(5000);
  ASSERT_OK(again);
  slots.back() = *again;
  for (const TierSlot& slot : slots) tier.Release(slot);
}

void AllOfItServesAnotherSizeAfterRelease(Tier& tier) {
  for (uint64_t bytes : {3000u, 700u, 9000u}) {
    std::vector<TierSlot> slots;
    while (slots.size() * bytes < tier.capacity_bytes() * 3 / 4) {
      const auto slot = tier.Reserve(bytes);
      ASSERT_OK(slot);
      slots.push_back(*slot);
    }
    for (const TierSlot& slot : slots) tier.Release(slot);
  }
}

void StatsAddUp(Tier& tier) {
  const TierStats empty = tier.Stats();
  EXPECT_EQ(empty.capacity_bytes, tier.capacity_bytes());
  EXPECT_EQ(empty.kind, tier.kind());
  const auto first = tier.Reserve(1000);
  const auto second = tier.Reserve(300);
  ASSERT_OK(first);
  ASSERT_OK(second);
  const TierStats stats = tier.Stats();
  EXPECT_EQ(stats.used_bytes, 1300u);
  EXPECT_EQ(stats.reserved_slots, 2u);
  EXPECT_LE(stats.used_bytes + stats.free_bytes + stats.stranded_bytes, stats.capacity_bytes);
  tier.Release(*first);
  tier.Release(*second);
}

void EvacuationOfAnEmptyTierHasNothingToDo(Tier& tier) {
  EXPECT_TRUE(tier.BeginEvacuation(1000, [](TierSlotOwner) { return true; }).empty());
  EXPECT_TRUE(tier.BeginEvacuation(0, [](TierSlotOwner) { return true; }).empty());
  EXPECT_TRUE(tier.BeginEvacuation(UINT64_MAX, [](TierSlotOwner) { return true; }).empty());
}

void ThreadsGetSlotsOfTheirOwn(Tier& tier) {
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&tier, &wrong, t] {
      std::mt19937_64 random(t);
      std::vector<std::pair<TierSlot, uint64_t>> held;
      for (uint64_t step = 0; step < 300; ++step) {
        if (held.size() < 10) {
          const auto slot = tier.Reserve(500 + random() % 3 * 700);
          if (!slot.ok()) continue;
          held.emplace_back(*slot, t * 1000 + step);
          Fill(tier, *slot, held.back().second);
        } else {
          std::swap(held[random() % held.size()], held.back());
          if (!Holds(tier, held.back().first, held.back().second)) ++wrong[t];
          tier.Release(held.back().first);
          held.pop_back();
        }
      }
      for (const auto& [slot, seed] : held) tier.Release(slot);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

}  // namespace

int RegisterTierContract(const TierUnderTest& tier) {
  const std::pair<const char*, Body> bodies[] = {
      {"ImpossibleSizesAreInvalid", ImpossibleSizesAreInvalid},
      {"SlotsAreAlignedApartAndWritable", SlotsAreAlignedApartAndWritable},
      {"FullIsExhaustedAndReleaseMakesRoom", FullIsExhaustedAndReleaseMakesRoom},
      {"AllOfItServesAnotherSizeAfterRelease", AllOfItServesAnotherSizeAfterRelease},
      {"StatsAddUp", StatsAddUp},
      {"EvacuationOfAnEmptyTierHasNothingToDo", EvacuationOfAnEmptyTierHasNothingToDo},
      {"ThreadsGetSlotsOfTheirOwn", ThreadsGetSlotsOfTheirOwn},
  };
  const std::string suite = "TierContract/" + tier.name;
  for (const auto& [name, body] : bodies) {
    ::testing::RegisterTest(
        suite.c_str(), name, nullptr, nullptr, __FILE__, __LINE__,
        [tier, body = body]() -> ContractTest* { return new ContractTest(tier, body); });
  }
  return 0;
}

}  // namespace oscarkv::testing
