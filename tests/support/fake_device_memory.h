// A device in host memory, with the faults that a test asks for. Copies happen when they are waited
// for, so that memory which is let go too early is found out.
#ifndef OSCARKV_TESTS_SUPPORT_FAKE_DEVICE_MEMORY_H_
#define OSCARKV_TESTS_SUPPORT_FAKE_DEVICE_MEMORY_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"

#include "kernels/base/checksum.h"
#include "server/tier/device_memory.h"
#include "tests/support/unshared_status.h"

namespace oscarkv::testing {

// What goes wrong with a FakeDeviceMemory, shared with the test. Thread-safe.
class DeviceFaults {
 public:
  // The `nth` transfer from now on (0: the next) fails with `status`: at once, or when it is waited
  // for. With kUnavailable all that come after it fail too.
  void FailStart(uint64_t nth, absl::Status status) { Set(nth, std::move(status), true); }
  void FailWait(uint64_t nth, absl::Status status) { Set(nth, std::move(status), false); }
  // Bit 0 of byte `byte` flips on the device in the `nth` copy in from now on.
  void FlipInCopy(uint64_t nth, uint64_t byte) {
    absl::MutexLock lock(&mutex_);
    flip_at_ = transfers_ + nth;
    flip_byte_ = byte;
  }
  // Other processes may not open its memory, and why: as within MIG, and in some containers.
  void ForbidSharing(absl::Status status) {
    absl::MutexLock lock(&mutex_);
    not_shared_ = std::move(status);
  }
  uint64_t transfers() const {
    absl::MutexLock lock(&mutex_);
    return transfers_;
  }

 private:
  friend class FakeDeviceMemory;
  struct Plan {
    absl::Status start;
    absl::Status wait;
    std::optional<uint64_t> flip_byte;
  };
  Plan Next() {
    absl::MutexLock lock(&mutex_);
    const uint64_t number = transfers_++;
    Plan plan;
    if (!lost_.ok()) {
      plan.start = Unshared(lost_);
    } else if (number == fail_at_) {
      (at_start_ ? plan.start : plan.wait) = Unshared(failure_);
      if (absl::IsUnavailable(failure_)) lost_ = Unshared(failure_);
    }
    if (number == flip_at_) plan.flip_byte = flip_byte_;
    return plan;
  }
  absl::Status NotShared() const {
    absl::MutexLock lock(&mutex_);
    return Unshared(not_shared_);
  }
  void Set(uint64_t nth, absl::Status status, bool at_start) {
    absl::MutexLock lock(&mutex_);
    fail_at_ = transfers_ + nth;
    failure_ = std::move(status);
    at_start_ = at_start;
  }

  static constexpr uint64_t kNever = ~uint64_t{0};
  mutable absl::Mutex mutex_;
  uint64_t transfers_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t fail_at_ ABSL_GUARDED_BY(mutex_) = kNever;
  uint64_t flip_at_ ABSL_GUARDED_BY(mutex_) = kNever;
  uint64_t flip_byte_ ABSL_GUARDED_BY(mutex_) = 0;
  bool at_start_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  absl::Status lost_ ABSL_GUARDED_BY(mutex_);
  absl::Status not_shared_ ABSL_GUARDED_BY(mutex_);
};

class FakeDeviceMemory final : public DeviceMemory {
 public:
  explicit FakeDeviceMemory(uint64_t bytes, std::shared_ptr<DeviceFaults> faults = nullptr)
      : bytes_(bytes), faults_(faults ? std::move(faults) : std::make_shared<DeviceFaults>()) {}

  uint64_t bytes() const override { return bytes_.size(); }
  std::string device_name() const override { return "fake"; }
  uint64_t pinned_host_bytes() const override { return 0; }

  absl::StatusOr<std::unique_ptr<PendingTransfer>> CopyIn(uint64_t offset, ByteView from,
                                                          std::span<const TierPieces> check,
                                                          std::span<uint32_t> crcs) override {
    const std::vector<TierPieces> pieces(check.begin(), check.end());
    DeviceFaults::Plan plan = faults_->Next();
    if (!plan.start.ok()) return plan.start;
    const MutableByteView slot = MutableByteView(bytes_).subspan(offset, from.size());
    return std::make_unique<Transfer>(plan.wait, [=] {
      std::ranges::copy(from, slot.begin());
      if (plan.flip_byte.has_value()) slot[*plan.flip_byte % slot.size()] ^= std::byte{1};
      auto crc = crcs.begin();
      for (const TierPieces& run : pieces) {
        for (uint32_t i = 0; i < run.count; ++i)
          *crc++ = Crc32c(slot.subspan(run.offset + i * run.bytes, run.bytes));
      }
    });
  }
  absl::StatusOr<std::unique_ptr<PendingTransfer>> CopyOut(uint64_t offset,
                                                           MutableByteView to) override {
    DeviceFaults::Plan plan = faults_->Next();
    if (!plan.start.ok()) return plan.start;
    const ByteView slot = ByteView(bytes_).subspan(offset, to.size());
    return std::make_unique<Transfer>(plan.wait, [=] { std::ranges::copy(slot, to.begin()); });
  }
  std::byte* address() const override { return const_cast<std::byte*>(bytes_.data()); }
  absl::StatusOr<std::string> Handle() const override {
    if (absl::Status forbidden = faults_->NotShared(); !forbidden.ok()) return forbidden;
    return absl::StrCat("fake:", absl::Hex(reinterpret_cast<uintptr_t>(address())));
  }
  // What another process would map; null: not a handle.
  static std::byte* Open(const std::string& handle) {
    uintptr_t address = 0;
    const std::string digits = handle.substr(std::min<size_t>(handle.size(), 5));
    return handle.starts_with("fake:") && absl::SimpleHexAtoi(digits, &address)
               ? reinterpret_cast<std::byte*>(address)
               : nullptr;
  }
  absl::StatusOr<std::unique_ptr<DeviceMemory>> Beside(uint64_t bytes) override {
    return std::make_unique<FakeDeviceMemory>(bytes, faults_);
  }

 private:
  class Transfer final : public PendingTransfer {
   public:
    Transfer(absl::Status status, std::function<void()> copy)
        : status_(std::move(status)), copy_(std::move(copy)) {}
    ~Transfer() override { Finish(); }
    absl::Status Wait() override {
      Finish();
      return status_;
    }

   private:
    void Finish() {
      if (status_.ok() && copy_ != nullptr) copy_();
      copy_ = nullptr;
    }
    const absl::Status status_;
    std::function<void()> copy_;
  };

  std::vector<std::byte> bytes_;
  const std::shared_ptr<DeviceFaults> faults_;
};

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_SUPPORT_FAKE_DEVICE_MEMORY_H_
