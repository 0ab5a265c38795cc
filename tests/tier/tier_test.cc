// The tiers there are, through the contract.
#include "gtest/gtest.h"

#include "server/tier/host_tier.h"
#include "tests/support/fake_tier.h"
#include "tests/support/faulty_tier.h"
#include "tests/support/status_matchers.h"
#include "tests/tier/tier_contract.h"

namespace oscarkv::testing {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

[[maybe_unused]] const int kRegistered =
    RegisterTierContract({"host", [] { return *HostTier::Create({.capacity_bytes = kMiB}); }}) +
    RegisterTierContract(
        {"host_small_units",
         [] { return *HostTier::Create({.capacity_bytes = kMiB, .unit_bytes = 16384}); }}) +
    RegisterTierContract({"fake", [] { return std::make_unique<FakeTier>(kMiB); }}) +
    RegisterTierContract(
        {"faulty",
         [] { return std::make_unique<FaultyTier>(*HostTier::Create({.capacity_bytes = kMiB})); }});

TEST(HostTierTest, CapacityIsWholeUnits) {
  const auto tier = HostTier::Create({.capacity_bytes = 100'000, .unit_bytes = 4096});
  ASSERT_OK(tier);
  EXPECT_EQ((*tier)->capacity_bytes(), 98'304u);
}

TEST(HostTierTest, NoCapacityIsInvalid) {
  EXPECT_THAT(HostTier::Create({.capacity_bytes = 0}),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(HostTierTest, TakesMemoryOnlyAsItIsTouched) {
  // More than this machine has: the arena is address space until it is used.
  const auto tier = HostTier::Create({.capacity_bytes = uint64_t{1} << 40});
  ASSERT_OK(tier);
  const auto slot = (*tier)->Reserve(kMiB);
  ASSERT_OK(slot);
  (*tier)->Map(*slot)[kMiB - 1] = std::byte{1};
  (*tier)->Release(*slot);
}

TEST(HostArenaTest, RefusesZeroAndMoves) {
  EXPECT_THAT(HostArena::Create(0), StatusIs(absl::StatusCode::kInvalidArgument));
  auto arena = HostArena::Create(4096);
  ASSERT_OK(arena);
  HostArena moved = *std::move(arena);
  moved.bytes()[4095] = std::byte{7};
  HostArena other = *HostArena::Create(8192);
  other = std::move(moved);
  EXPECT_EQ(other.bytes()[4095], std::byte{7});
}

TEST(FaultyTierTest, FailsAndFlipsAsTold) {
  FaultyTier tier(std::make_unique<FakeTier>(kMiB));
  tier.FailReservations(1, absl::ResourceExhaustedError("injected"));
  EXPECT_THAT(tier.Reserve(10), StatusIs(absl::StatusCode::kResourceExhausted, "injected"));
  const auto slot = tier.Reserve(10);
  ASSERT_OK(slot);
  tier.Map(*slot)[4] = std::byte{0};
  EXPECT_TRUE(tier.FlipBit(0, 4, 5));
  EXPECT_EQ(tier.Map(*slot)[4], std::byte{32});
  EXPECT_FALSE(tier.FlipBit(0, 10));
  EXPECT_FALSE(tier.FlipBit(1, 0));
  tier.Release(*slot);
}

}  // namespace
}  // namespace oscarkv::testing
