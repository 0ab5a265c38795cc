#include "server/tier/disk/block_io.h"

#include <fcntl.h>
#include <unistd.h>

#include <cassert>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"
#include "server/tier/disk/posix_io.h"
#include "server/tier/disk/uring_io.h"

namespace oscarkv {
namespace {

void Raise(std::atomic<uint64_t>& counter, uint64_t by = 1) {
  counter.fetch_add(by, std::memory_order_relaxed);
}

[[maybe_unused]] bool IsAligned(const IoRequest& request) {
  return request.offset % kIoAlignment == 0 && request.data.size() % kIoAlignment == 0 &&
         reinterpret_cast<uintptr_t>(request.data.data()) % kIoAlignment == 0;
}

}  // namespace

void BlockIo::Run(std::span<IoRequest> requests, absl::FunctionRef<void(IoRequest&)> ended) {
  for ([[maybe_unused]] const IoRequest& request : requests) assert(IsAligned(request));
  DoRun(requests, [&](IoRequest& request) {
    Count(request);
    ended(request);
  });
}

void BlockIo::Run(std::span<IoRequest> requests) {
  Run(requests, [](IoRequest&) {});
}

absl::Status BlockIo::Sync(int file) {
  const absl::Status status = DoSync(file);
  Raise(syncs_);
  if (!status.ok()) Raise(write_errors_);
  return status;
}

absl::Status BlockIo::Allocate(int file, uint64_t bytes) {
  const absl::Status status = DoAllocate(file, bytes);
  if (!status.ok()) Raise(write_errors_);
  return status;
}

absl::Status BlockIo::DoSync(int file) {
  return fdatasync(file) == 0 ? absl::OkStatus() : IoError(errno, "fdatasync");
}

absl::Status BlockIo::DoAllocate(int file, uint64_t bytes) {
  int done = -1;
  do {
    done = fallocate(file, 0, 0, static_cast<off_t>(bytes));
  } while (done != 0 && errno == EINTR);
  if (done == 0) return absl::OkStatus();
  return IoError(errno, absl::StrCat("fallocate of ", bytes, " bytes"));
}

void BlockIo::Count(const IoRequest& request) {
  const bool read = request.kind == IoKind::kRead;
  Raise(read ? reads_ : writes_);
  if (request.status.ok()) {
    Raise(read ? read_bytes_ : written_bytes_, request.data.size());
  } else {
    Raise(read ? read_errors_ : write_errors_);
  }
}

IoStats BlockIo::Stats() const {
  return {.reads = reads_,
          .writes = writes_,
          .syncs = syncs_,
          .read_bytes = read_bytes_,
          .written_bytes = written_bytes_,
          .read_errors = read_errors_,
          .write_errors = write_errors_};
}

absl::Status IoError(int error, std::string_view what) {
  const std::string message =
      absl::StrCat(absl::string_view(what.data(), what.size()), ": ", std::strerror(error));
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      return absl::ResourceExhaustedError(message);
    case EIO:
      return absl::DataLossError(message);
    case EROFS:
      return absl::FailedPreconditionError(message);
    default:
      return absl::UnavailableError(message);
  }
}

std::string Describe(const IoRequest& request) {
  return absl::StrCat(request.kind == IoKind::kRead ? "read" : "write", " of ", request.data.size(),
                      " bytes at ", request.offset);
}

std::optional<IoBackend> ParseIoBackend(std::string_view name) {
  if (name == "auto") return IoBackend::kAuto;
  if (name == "io_uring") return IoBackend::kUring;
  if (name == "pread") return IoBackend::kPosix;
  return std::nullopt;
}

absl::StatusOr<ChosenIo> MakeBlockIo(IoBackend backend) {
  ChosenIo chosen;
  if (backend != IoBackend::kPosix) {
    absl::StatusOr<std::unique_ptr<BlockIo>> uring = UringIo::Create({});
    if (uring.ok()) {
      chosen.io = *std::move(uring);
      return chosen;
    }
    if (backend == IoBackend::kUring) return uring.status();
    chosen.why_not_uring = std::string(uring.status().message());
  }
  chosen.io = std::make_unique<PosixIo>();
  return chosen;
}

}  // namespace oscarkv
