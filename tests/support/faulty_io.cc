#include "tests/support/faulty_io.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <numeric>

namespace oscarkv::testing {
namespace {

constexpr uint64_t kSectorBytes = 512;

}  // namespace

void FaultyIo::DoRun(std::span<IoRequest> requests, absl::FunctionRef<void(IoRequest&)> ended) {
  if (on_run_ != nullptr) on_run_();
  // In any order, as a device may.
  std::vector<size_t> order(requests.size());
  std::iota(order.begin(), order.end(), size_t{0});
  {
    absl::MutexLock lock(&mutex_);
    std::shuffle(order.begin(), order.end(), random_);
  }
  for (const size_t i : order) {
    IoRequest& request = requests[i];
    {
      absl::MutexLock lock(&mutex_);
      if (Stopped()) {
        request.status = absl::UnavailableError("stopped");
      } else {
        request.status = request.kind == IoKind::kRead ? Read(request) : Write(request);
      }
    }
    ended(request);
  }
}

absl::Status FaultyIo::Pass(IoKind kind, int file, uint64_t offset, MutableByteView data) {
  IoRequest request{.kind = kind, .file = file, .offset = offset, .data = data, .status = {}};
  base_->Run({&request, 1});
  return request.status;
}

absl::Status FaultyIo::Read(IoRequest& request) {
  if (Happens(faults_.read_error)) return IoError(EIO, Describe(request));
  const absl::Status status = Pass(IoKind::kRead, request.file, request.offset, request.data);
  if (status.ok() && Happens(faults_.flipped_read)) {
    ++damages_;
    request.data[random_() % request.data.size()] ^= std::byte{1} << (random_() % 8);
  }
  return status;
}

absl::Status FaultyIo::Store(int file, uint64_t offset, MutableByteView data) {
  Unsynced write{file, offset, AlignedBuffer(data.size()), data.size()};
  const absl::Status before =
      Pass(IoKind::kRead, file, offset, write.before.bytes().first(data.size()));
  if (before.ok()) unsynced_.push_back(std::move(write));
  return Pass(IoKind::kWrite, file, offset, data);
}

absl::Status FaultyIo::Write(IoRequest& request) {
  const std::string what = Describe(request);
  if (Happens(faults_.write_error)) return IoError(EIO, what);
  if (Happens(faults_.no_space)) return IoError(ENOSPC, what);
  if (Happens(faults_.read_only)) return IoError(EROFS, what);
  if (Happens(faults_.short_write)) {
    const uint64_t blocks = request.data.size() / kIoAlignment;
    const uint64_t written = random_() % blocks * kIoAlignment;
    if (written > 0)
      (void)Store(request.file, request.offset, request.data.first(written));  // then it fails
    return IoError(EIO, what);
  }
  if (Happens(faults_.lost_write)) {
    ++damages_;
    return absl::OkStatus();
  }
  if (Happens(faults_.misdirected_write) && request.offset >= 2 * kIoAlignment) {
    ++damages_;
    return Store(request.file, request.offset - kIoAlignment, request.data);
  }
  if (Happens(faults_.flipped_write)) {
    ++damages_;
    AlignedBuffer flipped(request.data.size());
    std::memcpy(flipped.bytes().data(), request.data.data(), request.data.size());
    flipped.bytes()[random_() % request.data.size()] ^= std::byte{1} << (random_() % 8);
    return Store(request.file, request.offset, flipped.bytes().first(request.data.size()));
  }
  return Store(request.file, request.offset, request.data);
}

absl::Status FaultyIo::DoSync(int file) {
  absl::MutexLock lock(&mutex_);
  if (Stopped()) return absl::UnavailableError("stopped");
  if (Happens(faults_.sync_error)) return IoError(EIO, "fdatasync");
  std::erase_if(unsynced_, [file](const Unsynced& write) { return write.file == file; });
  return base_->Sync(file);
}

absl::Status FaultyIo::DoAllocate(int file, uint64_t bytes) {
  {
    absl::MutexLock lock(&mutex_);
    if (Happens(faults_.allocate_no_space)) return IoError(ENOSPC, "fallocate");
  }
  return base_->Allocate(file, bytes);
}

void FaultyIo::LosePower() {
  absl::MutexLock lock(&mutex_);
  // The latest first, so that what is taken back leaves what was there before it.
  for (auto write = unsynced_.rbegin(); write != unsynced_.rend(); ++write) {
    const MutableByteView before = write->before.bytes().first(write->bytes);
    const uint64_t fate = random_() % 3;
    if (fate == 0) continue;  // it arrived
    if (fate == 1) {          // some sectors did
      AlignedBuffer now(write->bytes);
      const MutableByteView mixed = now.bytes().first(write->bytes);
      if (!Pass(IoKind::kRead, write->file, write->offset, mixed).ok()) continue;
      for (uint64_t at = 0; at < write->bytes; at += kSectorBytes)
        if (random_() % 2 == 0) std::memcpy(&mixed[at], &before[at], kSectorBytes);
      (void)Pass(IoKind::kWrite, write->file, write->offset, mixed);  // a test's disk works
    } else {
      (void)Pass(IoKind::kWrite, write->file, write->offset, before);  // likewise
    }
  }
  unsynced_.clear();
}

}  // namespace oscarkv::testing
