// The seam between the GPU tier and the device: one range of its memory, reached by copies. The
// real one (cuda_memory.cc) is there where there is CUDA; tests have one in host memory.
#ifndef OSCARKV_SERVER_TIER_DEVICE_MEMORY_H_
#define OSCARKV_SERVER_TIER_DEVICE_MEMORY_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "kernels/base/bytes.h"
#include "server/core/tier.h"

namespace oscarkv {

// Transfers are those of CopiedTier, with their rules and errors; offsets are of the range, and
// what they name lies in it.
class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;

  virtual uint64_t bytes() const = 0;
  virtual std::string device_name() const = 0;
  // Of host memory that the device copies at the bus's full speed.
  virtual uint64_t pinned_host_bytes() const = 0;
  // `check`'s offsets are relative to `offset`.
  virtual absl::StatusOr<std::unique_ptr<PendingTransfer>> CopyIn(uint64_t offset, ByteView from,
                                                                  std::span<const TierPieces> check,
                                                                  std::span<uint32_t> crcs) = 0;
  virtual absl::StatusOr<std::unique_ptr<PendingTransfer>> CopyOut(uint64_t offset,
                                                                   MutableByteView to) = 0;
  // Where the range begins, for the device alone.
  virtual std::byte* address() const = 0;
  // What another process of the host opens the range by. kUnavailable: it cannot be shared, and
  // why.
  virtual absl::StatusOr<std::string> Handle() const = 0;
  // Another range of the same device, apart from this one, with which it shares what of the host's
  // memory is page-locked. Errors as MakeDeviceMemory's.
  virtual absl::StatusOr<std::unique_ptr<DeviceMemory>> Beside(uint64_t bytes) = 0;
};

struct DeviceMemoryOptions {
  uint64_t bytes = 0;
  uint32_t device = 0;
  // Memory from which most copies come. Page-locked region by region as copies first come from it,
  // since all of it would take long and be touched at once. Borrowed for the object's life.
  MutableByteView host_arena = {};
};

// Whether this build can have a device at all: kUnimplemented when it has no CUDA.
absl::Status DeviceMemorySupported();

// kUnimplemented as above; kUnavailable when there is no such device or it does not answer;
// kResourceExhausted when it has not that much memory free. Tries the memory before it returns.
absl::StatusOr<std::unique_ptr<DeviceMemory>> MakeDeviceMemory(const DeviceMemoryOptions& options);

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_TIER_DEVICE_MEMORY_H_
