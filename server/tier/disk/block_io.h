// The seam between the disk tier and the operating system: batches of aligned reads and writes of
// open files. Back ends: io_uring (uring_io.h), and pread and pwrite (posix_io.h) for kernels and
// containers without it. Every back end passes tests/tier/disk/block_io_contract.h.
#ifndef OSCARKV_SERVER_TIER_DISK_BLOCK_IO_H_
#define OSCARKV_SERVER_TIER_DISK_BLOCK_IO_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "kernels/base/bytes.h"
#include "server/tier/disk/aligned_buffer.h"

namespace oscarkv {

enum class IoKind : uint8_t { kRead, kWrite };

// One read or write. `file`, `offset` and `data` are the caller's, and stay until the request has
// ended; offset, address and size are multiples of kIoAlignment.
struct IoRequest {
  IoKind kind = IoKind::kRead;
  int file = -1;
  uint64_t offset = 0;
  MutableByteView data = {};
  absl::Status status = {};  // once it has ended; OK: all of it was read or written
};

struct IoStats {
  uint64_t reads = 0;  // requests that ended, with or without success
  uint64_t writes = 0;
  uint64_t syncs = 0;
  uint64_t read_bytes = 0;  // of those that succeeded
  uint64_t written_bytes = 0;
  uint64_t read_errors = 0;
  uint64_t write_errors = 0;  // syncs and allocations too
};

// Thread-safe. Errors: kResourceExhausted (no space, or over a quota), kDataLoss (the device
// failed, or a file ends early), kFailedPrecondition (read-only), kUnavailable (anything else).
class BlockIo {
 public:
  virtual ~BlockIo() = default;

  virtual std::string_view name() const = 0;

  // Carries out all requests, in any order and several at a time, and returns when all have ended.
  // Calls `ended` for each as it ends, on this thread, while others are under way.
  void Run(std::span<IoRequest> requests, absl::FunctionRef<void(IoRequest&)> ended);
  void Run(std::span<IoRequest> requests);

  // Returns when everything that was written to the file before is on the device.
  absl::Status Sync(int file);
  // Makes the file `bytes` long, with all of its space taken.
  absl::Status Allocate(int file, uint64_t bytes);

  IoStats Stats() const;

 protected:
  // Calls `ended` once for each request, with its status set.
  virtual void DoRun(std::span<IoRequest> requests, absl::FunctionRef<void(IoRequest&)> ended) = 0;
  virtual absl::Status DoSync(int file);
  virtual absl::Status DoAllocate(int file, uint64_t bytes);

 private:
  void Count(const IoRequest& request);

  std::atomic<uint64_t> reads_{0}, writes_{0}, syncs_{0}, read_bytes_{0}, written_bytes_{0},
      read_errors_{0}, write_errors_{0};
};

// The status of an operation that failed with `error` (an errno); `what` says which.
absl::Status IoError(int error, std::string_view what);
// "read of 4096 bytes at 8192"
std::string Describe(const IoRequest& request);

enum class IoBackend { kAuto, kUring, kPosix };
std::optional<IoBackend> ParseIoBackend(std::string_view name);  // "auto", "io_uring", "pread"

struct ChosenIo {
  std::unique_ptr<BlockIo> io;
  std::string why_not_uring;  // with kAuto, when the kernel refuses io_uring
};
// kUnavailable when io_uring was asked for and the kernel refuses it.
absl::StatusOr<ChosenIo> MakeBlockIo(IoBackend backend);

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_TIER_DISK_BLOCK_IO_H_
