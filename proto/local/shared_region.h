// Memory of one process that another of the same host maps: a memfd whose size is sealed, so that
// no mapping of it can ever be cut short (SIGBUS), and, when others only read, sealed against every
// mapping for writing but the one that its maker has already.
#ifndef OSCARKV_PROTO_LOCAL_SHARED_REGION_H_
#define OSCARKV_PROTO_LOCAL_SHARED_REGION_H_

#include <cstdint>

#include "absl/status/statusor.h"

#include "kernels/base/bytes.h"
#include "proto/local/descriptor.h"

namespace oscarkv {

// Owns a mapping, and what made it. Move-only; the bytes are as thread-safe as bytes are.
class SharedRegion {
 public:
  enum class Others { kRead, kWrite };

  // Address space now, memory as it is touched; full of zeros. The maker maps what others read for
  // writing, and what others write for reading only. kResourceExhausted: the system refuses the
  // memory; kUnimplemented: it has no sealed memory (Linux before 5.1).
  static absl::StatusOr<SharedRegion> Create(const char* name, uint64_t bytes, Others others);

  // What another process has made of `bytes` bytes, mapped for reading, or for writing.
  // kInvalidArgument: the descriptor is of something else, of another size, or not sealed.
  enum class Access { kRead, kWrite };
  static absl::StatusOr<SharedRegion> Map(Descriptor memory, uint64_t bytes, Access access);

  SharedRegion() = default;
  SharedRegion(SharedRegion&& other) noexcept { *this = std::move(other); }
  SharedRegion& operator=(SharedRegion&& other) noexcept;
  ~SharedRegion();

  ByteView bytes() const { return bytes_; }
  // Only where this process may write: its own that others read, or mapped for writing.
  MutableByteView writable() const { return bytes_; }
  // To be handed to another process. With Others::kRead it was opened for reading.
  int descriptor() const { return descriptor_.number(); }

 private:
  MutableByteView bytes_;
  Descriptor descriptor_;
};

}  // namespace oscarkv

#endif  // OSCARKV_PROTO_LOCAL_SHARED_REGION_H_
