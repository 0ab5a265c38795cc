// Block I/O with io_uring: many requests under way at once, submitted in batches.
#ifndef OSCARKV_SERVER_TIER_DISK_URING_IO_H_
#define OSCARKV_SERVER_TIER_DISK_URING_IO_H_

#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

#include "server/tier/disk/block_io.h"

namespace oscarkv {

struct UringIoOptions {
  uint32_t depth = 32;     // requests under way in one call of Run
  uint32_t rings_max = 8;  // calls of Run at the same time; more wait their turn
};

// Thread-safe: each call of Run has a ring of its own while it runs.
class UringIo final : public BlockIo {
 public:
  // kUnavailable when the kernel has no io_uring or refuses it (a container's seccomp profile
  // often does).
  static absl::StatusOr<std::unique_ptr<BlockIo>> Create(const UringIoOptions& options);
  ~UringIo() override;

  std::string_view name() const override { return "io_uring"; }

 protected:
  void DoRun(std::span<IoRequest> requests, absl::FunctionRef<void(IoRequest&)> ended) override;

 private:
  class Ring;

  UringIo(const UringIoOptions& options, std::unique_ptr<Ring> first);

  std::unique_ptr<Ring> TakeRing();
  void ReturnRing(std::unique_ptr<Ring> ring);
  bool MayTakeRing() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !idle_.empty() || taken_ < options_.rings_max;
  }

  const UringIoOptions options_;
  absl::Mutex mutex_;
  std::vector<std::unique_ptr<Ring>> idle_ ABSL_GUARDED_BY(mutex_);
  uint32_t taken_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_TIER_DISK_URING_IO_H_
