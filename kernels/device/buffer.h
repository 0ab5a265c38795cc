// Owners of device memory and of pinned host memory: the only places that allocate either.
// Move-only; empty after a move.
#ifndef OSCARKV_KERNELS_DEVICE_BUFFER_H_
#define OSCARKV_KERNELS_DEVICE_BUFFER_H_

#include <cstddef>
#include <span>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "cuda_runtime_api.h"
#include "kernels/base/bytes.h"

namespace oscarkv::device {

// Device memory of the current device, 256-byte aligned, uninitialised. Freeing waits for the
// device: let go of buffers when nothing is in flight on them.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  // kResourceExhausted when there is no room.
  static absl::StatusOr<DeviceBuffer> Allocate(size_t bytes);
  // A copy of host memory, there when this returns.
  template <typename T>
  static absl::StatusOr<DeviceBuffer> CopyOf(std::span<T> host) {
    return CopyOfBytes(std::as_bytes(host));
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;
  ~DeviceBuffer();

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }
  // Copies in and out, done when they return; for set-up and tests, not for the data path.
  absl::Status CopyFrom(ByteView host) const;
  absl::Status CopyTo(MutableByteView host) const;

 private:
  static absl::StatusOr<DeviceBuffer> CopyOfBytes(ByteView host);
  DeviceBuffer(std::byte* data, size_t size) : data_(data), size_(size) {}
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Page-locked host memory, which copies reach at the bus's full speed and without waiting.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  static absl::StatusOr<PinnedBuffer> Allocate(size_t bytes);
  PinnedBuffer(PinnedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept;
  ~PinnedBuffer();

  MutableByteView bytes() const { return {data_, size_}; }

 private:
  PinnedBuffer(std::byte* data, size_t size) : data_(data), size_(size) {}
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Page-locks host memory that somebody else owns, as long as this lives. The memory is touched.
class PinnedRange {
 public:
  PinnedRange() = default;
  // kResourceExhausted when the system does not let that much be locked.
  static absl::StatusOr<PinnedRange> Pin(MutableByteView bytes);
  PinnedRange(PinnedRange&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
  PinnedRange& operator=(PinnedRange&& other) noexcept;
  ~PinnedRange();

  MutableByteView bytes() const { return bytes_; }

 private:
  explicit PinnedRange(MutableByteView bytes) : bytes_(bytes) {}
  MutableByteView bytes_;
};

}  // namespace oscarkv::device

#endif  // OSCARKV_KERNELS_DEVICE_BUFFER_H_
