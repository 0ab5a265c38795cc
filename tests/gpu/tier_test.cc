// The GPU tier on a device: the contract of every tier, and what only a device shows.
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "kernels/base/checksum.h"
#include "kernels/codec/oscar/cuda_checksum.h"
#include "kernels/device/buffer.h"
#include "kernels/device/stream.h"
#include "server/tier/device_memory.h"
#include "server/tier/gpu_tier.h"
#include "server/tier/host_tier.h"
#include "tests/support/status_matchers.h"
#include "tests/tier/tier_contract.h"

namespace oscarkv::testing {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kMiB = uint64_t{1} << 20;

std::unique_ptr<GpuTier> MakeTier(uint64_t bytes, MutableByteView host_arena = {}) {
  return *GpuTier::Create(
      *MakeDeviceMemory({.bytes = bytes, .device = 0, .host_arena = host_arena}));
}

[[maybe_unused]] const int kRegistered =
    RegisterCopiedTierContract("cuda", [] { return MakeTier(kMiB); });

std::vector<std::byte> RandomBytes(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(count);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

TEST(ChecksumTest, EqualsTheCpusForEverySize) {
  const device::Stream stream = *device::Stream::Create();
  for (const uint64_t piece :
       {4u, 64u, 124u, 128u, 132u, 1020u, 1024u, 1028u, 4608u, 32'768u, 100'004u}) {
    for (const uint32_t count : {1u, 7u, 9000u}) {
      if (piece * count > 64 * kMiB) continue;
      const std::vector<std::byte> bytes = RandomBytes(piece * count, piece + count);
      const auto data = device::DeviceBuffer::CopyOf(std::span(bytes));
      ASSERT_OK(data);
      const auto results = device::PinnedBuffer::Allocate(count * sizeof(uint32_t));
      ASSERT_OK(results);
      auto* crcs = reinterpret_cast<uint32_t*>(results->bytes().data());
      ASSERT_OK(cuda::Checksum(data->data(), piece, count, crcs, stream.get()));
      ASSERT_OK(stream.Synchronize());
      uint32_t wrong = 0;
      for (uint32_t i = 0; i < count; ++i)
        wrong += crcs[i] == Crc32c(ByteView(bytes).subspan(i * piece, piece)) ? 0u : 1u;
      EXPECT_EQ(wrong, 0u) << count << " pieces of " << piece;
    }
  }
}

TEST(ChecksumTest, PartsOfWordsAreInvalid) {
  EXPECT_THAT(cuda::Checksum(nullptr, 6, 1, nullptr, nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("6 bytes")));
  EXPECT_THAT(cuda::Checksum(nullptr, 0, 1, nullptr, nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(CudaMemoryTest, ADeviceThatIsNotThereIsUnavailable) {
  EXPECT_THAT(MakeDeviceMemory({.bytes = kMiB, .device = 99}),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("no device 99")));
}

TEST(CudaMemoryTest, MoreThanThereIsIsExhausted) {
  EXPECT_THAT(MakeDeviceMemory({.bytes = uint64_t{1} << 42}),
              StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_OK(MakeDeviceMemory({.bytes = kMiB}));  // and the device is as it was
}

TEST(CudaMemoryTest, TheHostArenaIsPinnedWhereCopiesComeFrom) {
  auto host = *HostTier::Create({.capacity_bytes = 300 * kMiB});
  auto gpu = MakeTier(200 * kMiB, host->arena());
  EXPECT_EQ(gpu->Stats().pinned_host_bytes, 0u);
  // A copy that begins in one region of 64 MiB and ends in the next but one.
  const TierSlot slot = *gpu->Reserve(100 * kMiB);
  const MutableByteView from = host->arena().subspan(60 * kMiB, slot.bytes);
  const std::vector<std::byte> bytes = RandomBytes(slot.bytes, 1);
  std::ranges::copy(bytes, from.begin());
  const TierPieces all{0, kMiB, 100};
  std::vector<uint32_t> crcs(100);
  ASSERT_OK((*gpu->CopyIn(slot, from, {&all, 1}, crcs))->Wait());
  EXPECT_EQ(gpu->Stats().pinned_host_bytes, 3 * 64 * kMiB);
  for (uint32_t i = 0; i < 100; ++i)
    ASSERT_EQ(crcs[i], Crc32c(ByteView(bytes).subspan(i * kMiB, kMiB)));
  // The arena's end is no whole region.
  const TierSlot last = *gpu->Reserve(kMiB);
  const MutableByteView end = host->arena().last(kMiB);
  ASSERT_OK((*gpu->CopyIn(last, end, {}, {}))->Wait());
  EXPECT_EQ(gpu->Stats().pinned_host_bytes, 3 * 64 * kMiB + host->arena().size() % (64 * kMiB));
  ASSERT_OK((*gpu->CopyOut(slot, host->arena().first(slot.bytes)))->Wait());
  EXPECT_TRUE(std::ranges::equal(host->arena().first(slot.bytes), bytes));
  gpu->Release(slot);
  gpu->Release(last);
}

}  // namespace
}  // namespace oscarkv::testing
