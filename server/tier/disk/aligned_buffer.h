// Memory for direct I/O: its address and size are multiples of kIoAlignment.
#ifndef OSCARKV_SERVER_TIER_DISK_ALIGNED_BUFFER_H_
#define OSCARKV_SERVER_TIER_DISK_ALIGNED_BUFFER_H_

#include <cstdint>
#include <memory>
#include <new>

#include "kernels/base/bytes.h"

namespace oscarkv {

// What addresses, offsets and sizes of I/O are multiples of: the largest block size that NVMe
// devices and file systems ask for.
inline constexpr uint64_t kIoAlignment = 4096;

constexpr uint64_t RoundUpToIo(uint64_t bytes) {
  return (bytes + kIoAlignment - 1) / kIoAlignment * kIoAlignment;
}

// Owns its memory, which is not cleared. Move-only.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  // At least `bytes`, rounded up.
  explicit AlignedBuffer(uint64_t bytes)
      : memory_(static_cast<std::byte*>(
            ::operator new[](RoundUpToIo(bytes), std::align_val_t{kIoAlignment}))),
        bytes_(RoundUpToIo(bytes)) {}

  MutableByteView bytes() const { return {memory_.get(), bytes_}; }

  // Makes the buffer hold `bytes`; what was in it is lost if it was smaller.
  void Grow(uint64_t bytes) {
    if (bytes_ < bytes) *this = AlignedBuffer(bytes);
  }

 private:
  struct Delete {
    void operator()(std::byte* memory) const {
      ::operator delete[](memory, std::align_val_t{kIoAlignment});
    }
  };

  std::unique_ptr<std::byte[], Delete> memory_;
  uint64_t bytes_ = 0;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_TIER_DISK_ALIGNED_BUFFER_H_
