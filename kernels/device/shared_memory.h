// Device memory that two processes of one host reach (CUDA IPC). Not everywhere: a container
// without the host's IPC namespace, or a part of a GPU (MIG), refuses it.
#ifndef OSCARKV_KERNELS_DEVICE_SHARED_MEMORY_H_
#define OSCARKV_KERNELS_DEVICE_SHARED_MEMORY_H_

#include <cstddef>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "kernels/device/buffer.h"

namespace oscarkv::device {

// What another process opens the buffer by, as long as this one keeps it. Who has it may also write
// to the memory. kUnavailable: the device does not share memory.
absl::StatusOr<std::string> HandleOf(const DeviceBuffer& buffer);

// Another process's buffer, mapped for the current device, which may be another one than the
// buffer's if it reaches that one's memory. Move-only; empty after a move. Unmapping waits for the
// device. What the memory holds when its process has ended is undefined.
class OpenedMemory {
 public:
  OpenedMemory() = default;
  // kInvalidArgument: not a handle; kUnavailable: it cannot be opened here, and why.
  static absl::StatusOr<OpenedMemory> Open(const std::string& handle);
  OpenedMemory(OpenedMemory&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  OpenedMemory& operator=(OpenedMemory&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  ~OpenedMemory();

  const std::byte* data() const { return data_; }
  // Where its owner wants it to be written to.
  std::byte* writable() const { return const_cast<std::byte*>(data_); }

 private:
  explicit OpenedMemory(const std::byte* data) : data_(data) {}
  const std::byte* data_ = nullptr;
};

}  // namespace oscarkv::device

#endif  // OSCARKV_KERNELS_DEVICE_SHARED_MEMORY_H_
