// Block I/O with pread and pwrite, one request after the other.
#ifndef OSCARKV_SERVER_TIER_DISK_POSIX_IO_H_
#define OSCARKV_SERVER_TIER_DISK_POSIX_IO_H_

#include "server/tier/disk/block_io.h"

namespace oscarkv {

// Thread-safe; callers that run at the same time do not wait for each other.
class PosixIo final : public BlockIo {
 public:
  std::string_view name() const override { return "pread"; }

 protected:
  void DoRun(std::span<IoRequest> requests, absl::FunctionRef<void(IoRequest&)> ended) override;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_TIER_DISK_POSIX_IO_H_
