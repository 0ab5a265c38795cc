// Decorates block I/O with faults: operations that fail, bytes that change on the way, and a device
// that forgets at a crash what was not synced. Everything that chance decides comes from a seed.
#ifndef OSCARKV_TESTS_SUPPORT_FAULTY_IO_H_
#define OSCARKV_TESTS_SUPPORT_FAULTY_IO_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

#include "server/tier/disk/block_io.h"

namespace oscarkv::testing {

// Chances in a thousand, of each request.
struct IoFaults {
  int read_error = 0;         // EIO
  int write_error = 0;        // EIO, nothing written
  int no_space = 0;           // ENOSPC, nothing written
  int read_only = 0;          // EROFS, nothing written
  int short_write = 0;        // EIO, the first part written
  int lost_write = 0;         // "success", nothing written
  int misdirected_write = 0;  // "success", written one block off, inside the file
  int flipped_write = 0;      // "success", one bit wrong on the device
  int flipped_read = 0;       // "success", one bit wrong in memory
  int sync_error = 0;         // EIO
  int allocate_no_space = 0;
};

class FaultyIo final : public BlockIo {
 public:
  FaultyIo(std::unique_ptr<BlockIo> base, uint64_t seed) : base_(std::move(base)), random_(seed) {}

  void SetFaults(const IoFaults& faults) {
    absl::MutexLock lock(&mutex_);
    faults_ = faults;
  }
  // Called before each batch, outside of the lock: to do something in the middle of a call.
  void OnRun(std::function<void()> callback) { on_run_ = std::move(callback); }

  // Nothing more is carried out after `requests` more reads, writes and syncs: they fail.
  void StopAfter(uint64_t requests) {
    absl::MutexLock lock(&mutex_);
    requests_left_ = requests;
  }
  // The power goes: of what was written and not synced since, some is on the device, some is not,
  // and some is in part (512 bytes at a time). Files are still open.
  void LosePower();
  // Of the faults that change what is on the device or in memory: how many there were.
  uint64_t damages() const {
    absl::MutexLock lock(&mutex_);
    return damages_;
  }

  std::string_view name() const override { return "faulty"; }

 protected:
  void DoRun(std::span<IoRequest> requests, absl::FunctionRef<void(IoRequest&)> ended) override;
  absl::Status DoSync(int file) override;
  absl::Status DoAllocate(int file, uint64_t bytes) override;

 private:
  // A write that the device may still forget, and what was there before.
  struct Unsynced {
    int file;
    uint64_t offset;
    AlignedBuffer before;
    uint64_t bytes;
  };

  bool Happens(int per_thousand) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return per_thousand > 0 && static_cast<int>(random_() % 1000) < per_thousand;
  }
  bool Stopped() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (requests_left_ == 0) return true;
    --requests_left_;
    return false;
  }
  absl::Status Read(IoRequest& request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Write(IoRequest& request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Pass(IoKind kind, int file, uint64_t offset, MutableByteView data)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Store(int file, uint64_t offset, MutableByteView data)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::unique_ptr<BlockIo> base_;
  std::function<void()> on_run_;
  mutable absl::Mutex mutex_;
  std::mt19937_64 random_ ABSL_GUARDED_BY(mutex_);
  IoFaults faults_ ABSL_GUARDED_BY(mutex_);
  std::vector<Unsynced> unsynced_ ABSL_GUARDED_BY(mutex_);
  uint64_t damages_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t requests_left_ ABSL_GUARDED_BY(mutex_) = UINT64_MAX;
};

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_SUPPORT_FAULTY_IO_H_
