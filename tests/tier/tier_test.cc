// The tiers there are, through the contract.
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "kernels/base/checksum.h"
#include "server/tier/device_memory.h"
#include "server/tier/gpu_tier.h"
#include "server/tier/host_tier.h"
#include "tests/support/fake_device_memory.h"
#include "tests/support/fake_tier.h"
#include "tests/support/faulty_tier.h"
#include "tests/support/status_matchers.h"
#include "tests/tier/tier_contract.h"

namespace oscarkv::testing {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kMiB = uint64_t{1} << 20;

std::unique_ptr<GpuTier> MakeGpuTier(uint64_t bytes, std::shared_ptr<DeviceFaults> faults = nullptr,
                                     uint64_t unit_bytes = 0) {
  return *GpuTier::Create(std::make_unique<FakeDeviceMemory>(bytes, std::move(faults)), unit_bytes);
}

[[maybe_unused]] const int kRegistered =
    RegisterTierContract("host", [] { return *HostTier::Create({.capacity_bytes = kMiB}); }) +
    RegisterTierContract(
        "host_small_units",
        [] { return *HostTier::Create({.capacity_bytes = kMiB, .unit_bytes = 16384}); }) +
    RegisterTierContract("fake", [] { return std::make_unique<FakeTier>(kMiB); }) +
    RegisterTierContract(
        "faulty",
        [] { return std::make_unique<FaultyTier>(*HostTier::Create({.capacity_bytes = kMiB})); }) +
    RegisterCopiedTierContract("gpu", [] { return MakeGpuTier(kMiB); }) +
    RegisterCopiedTierContract("gpu_small_units", [] { return MakeGpuTier(kMiB, nullptr, 16384); });

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

TEST(GpuTierTest, NoMemoryIsInvalid) {
  EXPECT_THAT(GpuTier::Create(std::make_unique<FakeDeviceMemory>(0)),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(GpuTierTest, FaultsOfTheDeviceComeThrough) {
  const auto faults = std::make_shared<DeviceFaults>();
  const std::unique_ptr<GpuTier> tier = MakeGpuTier(kMiB, faults);
  const TierSlot slot = *tier->Reserve(64);
  std::vector<std::byte> bytes(64);
  const TierPieces all{0, 64, 1};
  uint32_t crc = 0;

  faults->FailStart(0, absl::InternalError("start"));
  EXPECT_THAT(tier->CopyIn(slot, bytes, {}, {}), StatusIs(absl::StatusCode::kInternal, "start"));
  faults->FlipInCopy(0, 5);
  EXPECT_OK((*tier->CopyIn(slot, bytes, {&all, 1}, {&crc, 1}))->Wait());
  EXPECT_NE(crc, Crc32c(bytes));
  faults->FailWait(1, absl::UnavailableError("lost"));
  EXPECT_OK((*tier->CopyIn(slot, bytes, {&all, 1}, {&crc, 1}))->Wait());
  EXPECT_EQ(crc, Crc32c(bytes));
  EXPECT_THAT((*tier->CopyOut(slot, bytes))->Wait(),
              StatusIs(absl::StatusCode::kUnavailable, "lost"));
  EXPECT_THAT(tier->CopyOut(slot, bytes), StatusIs(absl::StatusCode::kUnavailable, "lost"));
  tier->Release(slot);
}

TEST(DeviceMemoryTest, ABuildWithoutCudaSaysSo) {
  EXPECT_THAT(DeviceMemorySupported(),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("CUDA")));
  EXPECT_THAT(MakeDeviceMemory({.bytes = kMiB}),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("CUDA")));
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
