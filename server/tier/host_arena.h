// One range of host memory, taken once: huge pages where the kernel gives them, page-aligned.
#ifndef OSCARKV_SERVER_TIER_HOST_ARENA_H_
#define OSCARKV_SERVER_TIER_HOST_ARENA_H_

#include <cstdint>

#include "absl/status/statusor.h"

#include "kernels/base/bytes.h"

namespace oscarkv {

// Owns a mapping. Move-only; the bytes are as thread-safe as bytes are.
class HostArena {
 public:
  // Address space now, memory as it is touched: starting is instant and a store that is not full
  // does not take what it does not need. kResourceExhausted when the system refuses,
  // kInvalidArgument for 0 bytes.
  static absl::StatusOr<HostArena> Create(uint64_t bytes);

  HostArena(HostArena&& other) noexcept : bytes_(other.bytes_) { other.bytes_ = {}; }
  HostArena& operator=(HostArena&& other) noexcept;
  ~HostArena();

  MutableByteView bytes() const { return bytes_; }

 private:
  explicit HostArena(MutableByteView bytes) : bytes_(bytes) {}

  MutableByteView bytes_;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_TIER_HOST_ARENA_H_
