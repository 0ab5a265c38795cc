// One range of host memory, taken once: huge pages where the kernel gives them, page-aligned.
#ifndef OSCARKV_SERVER_TIER_HOST_ARENA_H_
#define OSCARKV_SERVER_TIER_HOST_ARENA_H_

#include <cstdint>
#include <utility>

#include "absl/status/statusor.h"

#include "kernels/base/bytes.h"
#include "proto/local/shared_region.h"

namespace oscarkv {

// Owns a mapping. Move-only; the bytes are as thread-safe as bytes are.
class HostArena {
 public:
  // Whether other processes may map it, for reading.
  enum class Sharing { kNone, kReaders };
  // Address space now, memory as it is touched: starting is instant and a store that is not full
  // does not take what it does not need. kResourceExhausted when the system refuses,
  // kInvalidArgument for 0 bytes, kUnimplemented when it has no memory that can be shared so.
  static absl::StatusOr<HostArena> Create(uint64_t bytes, Sharing sharing = Sharing::kNone);

  HostArena(HostArena&& other) noexcept { *this = std::move(other); }
  HostArena& operator=(HostArena&& other) noexcept;
  ~HostArena();

  MutableByteView bytes() const { return private_.empty() ? shared_.writable() : private_; }
  // What another process maps for reading; -1 when none can.
  int descriptor() const { return shared_.descriptor(); }

 private:
  HostArena() = default;

  // One of the two.
  MutableByteView private_;
  SharedRegion shared_;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_TIER_HOST_ARENA_H_
