#include "tests/tier/tier_contract.h"

#include <algorithm>
#include <random>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "kernels/base/checksum.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::testing {
namespace {

// A tier, and how a test gets at its bytes.
class TierUnderTest {
 public:
  explicit TierUnderTest(std::unique_ptr<MappedTier> tier)
      : mapped_(tier.get()), tier_(std::move(tier)) {}
  explicit TierUnderTest(std::unique_ptr<CopiedTier> tier)
      : copied_(tier.get()), tier_(std::move(tier)) {}

  Tier& operator*() { return *tier_; }
  Tier* operator->() { return tier_.get(); }
  MappedTier* mapped() { return mapped_; }
  CopiedTier& copied() { return *copied_; }

  void Write(const TierSlot& slot, ByteView bytes) {
    if (mapped_ != nullptr) {
      std::ranges::copy(bytes, mapped_->Map(slot).begin());
      return;
    }
    absl::MutexLock lock(&mutex_);  // transfers are for one thread at a time
    auto pending = copied_->CopyIn(slot, bytes, {}, {});
    ASSERT_OK(pending);
    EXPECT_OK((*pending)->Wait());
  }
  std::vector<std::byte> Read(const TierSlot& slot) {
    std::vector<std::byte> bytes(slot.bytes);
    if (mapped_ != nullptr) {
      std::ranges::copy(mapped_->Map(slot), bytes.begin());
      return bytes;
    }
    absl::MutexLock lock(&mutex_);
    auto pending = copied_->CopyOut(slot, bytes);
    EXPECT_OK(pending);
    if (pending.ok()) {
      EXPECT_OK((*pending)->Wait());
    }
    return bytes;
  }

 private:
  MappedTier* mapped_ = nullptr;
  CopiedTier* copied_ = nullptr;
  std::unique_ptr<Tier> tier_;
  absl::Mutex mutex_;
};

using Body = void (*)(TierUnderTest&);
using Make = std::function<std::unique_ptr<TierUnderTest>()>;

class ContractTest : public ::testing::Test {
 public:
  ContractTest(Make make, Body body) : make_(std::move(make)), body_(body) {}
  void TestBody() override {
    const std::unique_ptr<TierUnderTest> tier = make_();
    body_(*tier);
    const TierStats stats = (*tier)->Stats();
    EXPECT_EQ(stats.used_bytes, 0u);
    EXPECT_EQ(stats.reserved_slots, 0u);
  }

 private:
  const Make make_;
  const Body body_ = nullptr;
};

std::vector<std::byte> Bytes(uint64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(count);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}
void Fill(TierUnderTest& tier, const TierSlot& slot, uint64_t seed) {
  tier.Write(slot, Bytes(slot.bytes, seed));
}
bool Holds(TierUnderTest& tier, const TierSlot& slot, uint64_t seed) {
  return tier.Read(slot) == Bytes(slot.bytes, seed);
}

void ImpossibleSizesAreInvalid(TierUnderTest& tier) {
  EXPECT_THAT(tier->Reserve(0), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(tier->Reserve(tier->capacity_bytes() + 1),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(tier->Reserve(UINT64_MAX), StatusIs(absl::StatusCode::kInvalidArgument));
}

void SlotsAreAlignedApartAndWritable(TierUnderTest& tier) {
  std::vector<TierSlot> slots;
  for (uint64_t bytes : {1u, 63u, 64u, 65u, 1000u, 4096u, 10'000u}) {
    const auto slot = tier->Reserve(bytes);
    ASSERT_OK(slot);
    EXPECT_EQ(slot->bytes, bytes);
    EXPECT_EQ(slot->offset % kTierSlotAlignment, 0u);
    if (MappedTier* mapped = tier.mapped(); mapped != nullptr) {
      EXPECT_EQ(mapped->Map(*slot).size(), bytes);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(mapped->Map(*slot).data()) % kTierSlotAlignment, 0u);
    }
    Fill(tier, *slot, bytes);
    slots.push_back(*slot);
  }
  for (const TierSlot& slot : slots) EXPECT_TRUE(Holds(tier, slot, slot.bytes));
  for (const TierSlot& slot : slots) tier->Release(slot);
}

void WhatCanShrinkHasRoomForIt(TierUnderTest& tier) {
  EXPECT_TRUE(tier->CanShrinkRegion(5000, 700));
  EXPECT_FALSE(tier->CanShrinkRegion(5000, tier->capacity_bytes() + 1));
  std::vector<TierSlot> slots;
  for (;;) {
    const bool can = tier->CanShrinkRegion(5000, 700);
    const auto small = tier->Reserve(700);
    EXPECT_TRUE(small.ok() || !can);
    if (small.ok()) tier->Release(*small);
    const auto slot = tier->Reserve(5000);
    if (!slot.ok()) break;
    slots.push_back(*slot);
  }
  // All that is left goes to the smaller ones: then there is no more room for any.
  std::vector<TierSlot> smaller;
  for (auto slot = tier->Reserve(700); slot.ok(); slot = tier->Reserve(700))
    smaller.push_back(*slot);
  EXPECT_FALSE(tier->CanShrinkRegion(5000, 700));
  for (const TierSlot& slot : slots) tier->Release(slot);
  EXPECT_TRUE(tier->CanShrinkRegion(5000, 700));
  for (const TierSlot& slot : smaller) tier->Release(slot);
}

void FullIsExhaustedAndReleaseMakesRoom(TierUnderTest& tier) {
  std::vector<TierSlot> slots;
  for (;;) {
    const auto slot = tier->Reserve(5000);
    if (!slot.ok()) {
      EXPECT_THAT(slot, StatusIs(absl::StatusCode::kResourceExhausted));
      break;
    }
    slots.push_back(*slot);
    ASSERT_LE(slots.size() * 5000, tier->capacity_bytes());
  }
  EXPECT_GE(slots.size() * 5000, tier->capacity_bytes() * 4 / 5);
  EXPECT_EQ(tier->Stats().used_bytes, slots.size() * 5000);
  EXPECT_GE(tier->Stats().failed_reserves, 1u);
  tier->Release(slots.back());
  const auto again = tier->Reserve(5000);
  ASSERT_OK(again);
  slots.back() = *again;
  for (const TierSlot& slot : slots) tier->Release(slot);
}

void AllOfItServesAnotherSizeAfterRelease(TierUnderTest& tier) {
  for (uint64_t bytes : {3000u, 700u, 9000u}) {
    std::vector<TierSlot> slots;
    while (slots.size() * bytes < tier->capacity_bytes() * 3 / 4) {
      const auto slot = tier->Reserve(bytes);
      ASSERT_OK(slot);
      slots.push_back(*slot);
    }
    for (const TierSlot& slot : slots) tier->Release(slot);
  }
}

void StatsAddUp(TierUnderTest& tier) {
  const TierStats empty = tier->Stats();
  EXPECT_EQ(empty.capacity_bytes, tier->capacity_bytes());
  EXPECT_EQ(empty.kind, tier->kind());
  const auto first = tier->Reserve(1000);
  const auto second = tier->Reserve(300);
  ASSERT_OK(first);
  ASSERT_OK(second);
  const TierStats stats = tier->Stats();
  EXPECT_EQ(stats.used_bytes, 1300u);
  EXPECT_EQ(stats.reserved_slots, 2u);
  EXPECT_LE(stats.used_bytes + stats.free_bytes + stats.stranded_bytes, stats.capacity_bytes);
  tier->Release(*first);
  tier->Release(*second);
}

void EvacuationOfAnEmptyTierHasNothingToDo(TierUnderTest& tier) {
  EXPECT_TRUE(tier->BeginEvacuation(1000, [](TierSlotOwner) { return true; }).empty());
  EXPECT_TRUE(tier->BeginEvacuation(0, [](TierSlotOwner) { return true; }).empty());
  EXPECT_TRUE(tier->BeginEvacuation(UINT64_MAX, [](TierSlotOwner) { return true; }).empty());
}

void ThreadsGetSlotsOfTheirOwn(TierUnderTest& tier) {
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&tier, &wrong, t] {
      std::mt19937_64 random(t);
      std::vector<std::pair<TierSlot, uint64_t>> held;
      for (uint64_t step = 0; step < 300; ++step) {
        if (held.size() < 10) {
          const auto slot = tier->Reserve(500 + random() % 3 * 700);
          if (!slot.ok()) continue;
          held.emplace_back(*slot, t * 1000 + step);
          Fill(tier, *slot, held.back().second);
        } else {
          std::swap(held[random() % held.size()], held.back());
          if (!Holds(tier, held.back().first, held.back().second)) ++wrong[t];
          tier->Release(held.back().first);
          held.pop_back();
        }
      }
      for (const auto& [slot, seed] : held) tier->Release(slot);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

// --- Of tiers that only copies reach ---

void CopyInChecksWhatLiesInTheSlot(TierUnderTest& tier) {
  const auto slot = tier->Reserve(64 * 5 + 20);
  ASSERT_OK(slot);
  const std::vector<std::byte> bytes = Bytes(slot->bytes, 3);
  const TierPieces pieces[] = {{0, 64, 3}, {192, 128, 1}, {320, 20, 1}, {4, 4, 1}};
  std::vector<uint32_t> crcs(6);
  auto pending = tier.copied().CopyIn(*slot, bytes, pieces, crcs);
  ASSERT_OK(pending);
  EXPECT_OK((*pending)->Wait());
  std::vector<uint32_t> expected;
  for (const TierPieces& run : pieces) {
    for (uint32_t i = 0; i < run.count; ++i)
      expected.push_back(Crc32c(ByteView(bytes).subspan(run.offset + i * run.bytes, run.bytes)));
  }
  EXPECT_EQ(crcs, expected);
  tier->Release(*slot);
}

void ManyTransfersOverlap(TierUnderTest& tier) {
  struct Move {
    TierSlot slot;
    std::vector<std::byte> bytes;
    std::vector<uint32_t> crcs = std::vector<uint32_t>(50);
    std::unique_ptr<PendingTransfer> pending;
  };
  std::vector<Move> moves(12);
  for (size_t i = 0; i < moves.size(); ++i) {
    Move& move = moves[i];
    move.slot = *tier->Reserve(32'000);
    move.bytes = Bytes(move.slot.bytes, i);
    const TierPieces run{0, 640, 50};
    auto pending = tier.copied().CopyIn(move.slot, move.bytes, {&run, 1}, move.crcs);
    ASSERT_OK(pending);
    move.pending = *std::move(pending);
  }
  for (size_t i = moves.size(); i-- > 0;) {  // in any order
    EXPECT_OK(moves[i].pending->Wait());
    for (size_t piece = 0; piece < 50; ++piece) {
      EXPECT_EQ(moves[i].crcs[piece], Crc32c(ByteView(moves[i].bytes).subspan(piece * 640, 640)));
    }
  }
  for (Move& move : moves) {
    std::vector<std::byte> back(move.slot.bytes);
    move.pending = *tier.copied().CopyOut(move.slot, back);
    EXPECT_OK(move.pending->Wait());
    EXPECT_EQ(back, move.bytes);
    tier->Release(move.slot);
  }
}

void LettingGoOfATransferWaitsForIt(TierUnderTest& tier) {
  const auto slot = tier->Reserve(100'000);
  ASSERT_OK(slot);
  {
    const std::vector<std::byte> bytes = Bytes(slot->bytes, 9);
    ASSERT_OK(tier.copied().CopyIn(*slot, bytes, {}, {}));
  }
  EXPECT_TRUE(Holds(tier, *slot, 9));
  tier->Release(*slot);
}

void SizesThatDoNotFitAreInvalid(TierUnderTest& tier) {
  const auto slot = tier->Reserve(128);
  ASSERT_OK(slot);
  std::vector<std::byte> bytes(128);
  std::vector<uint32_t> crcs(2);
  CopiedTier& copied = tier.copied();
  const auto is_invalid = StatusIs(absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(copied.CopyOut(*slot, MutableByteView(bytes).first(127)), is_invalid);
  EXPECT_THAT(copied.CopyIn(*slot, ByteView(bytes).first(127), {}, {}), is_invalid);
  EXPECT_THAT(copied.CopyIn(*slot, bytes, {}, crcs), is_invalid);
  for (const TierPieces run : {TierPieces{0, 64, 1}, TierPieces{0, 68, 2}, TierPieces{128, 64, 2},
                               TierPieces{0, 63, 2}, TierPieces{2, 4, 2}, TierPieces{0, 0, 2},
                               TierPieces{UINT64_MAX - 3, 4, 2}, TierPieces{4, 64, 2}}) {
    EXPECT_THAT(copied.CopyIn(*slot, bytes, {&run, 1}, crcs), is_invalid)
        << run.offset << " " << run.bytes << " " << run.count;
  }
  tier->Release(*slot);
}

using NamedBody = std::pair<const char*, Body>;

int Register(const std::string& name, const Make& make, std::span<const NamedBody> bodies) {
  const std::string suite = "TierContract/" + name;
  for (const auto& [body_name, body] : bodies) {
    ::testing::RegisterTest(
        suite.c_str(), body_name, nullptr, nullptr, __FILE__, __LINE__,
        [make, body = body]() -> ContractTest* { return new ContractTest(make, body); });
  }
  return 0;
}

constexpr NamedBody kOfAll[] = {
    {"ImpossibleSizesAreInvalid", ImpossibleSizesAreInvalid},
    {"SlotsAreAlignedApartAndWritable", SlotsAreAlignedApartAndWritable},
    {"WhatCanShrinkHasRoomForIt", WhatCanShrinkHasRoomForIt},
    {"FullIsExhaustedAndReleaseMakesRoom", FullIsExhaustedAndReleaseMakesRoom},
    {"AllOfItServesAnotherSizeAfterRelease", AllOfItServesAnotherSizeAfterRelease},
    {"StatsAddUp", StatsAddUp},
    {"EvacuationOfAnEmptyTierHasNothingToDo", EvacuationOfAnEmptyTierHasNothingToDo},
    {"ThreadsGetSlotsOfTheirOwn", ThreadsGetSlotsOfTheirOwn},
};
constexpr NamedBody kOfCopied[] = {
    {"CopyInChecksWhatLiesInTheSlot", CopyInChecksWhatLiesInTheSlot},
    {"ManyTransfersOverlap", ManyTransfersOverlap},
    {"LettingGoOfATransferWaitsForIt", LettingGoOfATransferWaitsForIt},
    {"SizesThatDoNotFitAreInvalid", SizesThatDoNotFitAreInvalid},
};

}  // namespace

int RegisterTierContract(const std::string& name,
                         const std::function<std::unique_ptr<MappedTier>()>& make) {
  return Register(
      name, [make] { return std::make_unique<TierUnderTest>(make()); }, kOfAll);
}

int RegisterCopiedTierContract(const std::string& name,
                               const std::function<std::unique_ptr<CopiedTier>()>& make) {
  const Make under_test = [make] { return std::make_unique<TierUnderTest>(make()); };
  return Register(name, under_test, kOfAll) + Register(name, under_test, kOfCopied);
}

}  // namespace oscarkv::testing
