// The rpc tests' server with a fake of a GPU's memory for copies of its pages.
#ifndef OSCARKV_TESTS_RPC_DEVICE_RPC_TEST_H_
#define OSCARKV_TESTS_RPC_DEVICE_RPC_TEST_H_

#include <cstdint>
#include <memory>
#include <utility>

#include "server/peer/device_holds.h"
#include "server/tier/gpu_tier.h"
#include "tests/rpc/rpc_test.h"
#include "tests/support/fake_device_memory.h"

namespace oscarkv::testing {

inline constexpr uint64_t kUnit = 1088;  // a WIDE page of SmallSpec with its checksums

class DeviceRpcTest : public RpcTest {
 protected:
  // A store with room for `copies` copies, of which readers may hold `held`.
  void OpenWithCopies(uint64_t copies, uint64_t held) {
    auto device = std::make_unique<FakeDeviceMemory>(copies * kUnit);
    device_memory_ = device->address();
    auto tier = GpuTier::Create(std::move(device), kUnit);
    ASSERT_OK(tier);
    gpu_ = tier->get();
    auto books = PageCopies::Create({}, *std::move(tier));
    ASSERT_OK(books);
    OpenOver(std::make_unique<FakeTier>(64 * kWideSlotBytes), {}, *std::move(books));
    HoldAtMost(held);
  }
  void HoldAtMost(uint64_t held) {
    holds_ = std::make_unique<DeviceHolds>(
        DeviceHoldsOptions{.bytes_max = held * kUnit, .hold_max = absl::Minutes(1)}, clock_);
  }

  std::byte* device_memory_ = nullptr;
  GpuTier* gpu_ = nullptr;
  std::unique_ptr<DeviceHolds> holds_;
};

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_RPC_DEVICE_RPC_TEST_H_
