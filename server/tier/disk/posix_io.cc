#include "server/tier/disk/posix_io.h"

#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"

namespace oscarkv {
namespace {

absl::Status Carry(const IoRequest& request) {
  uint64_t done = 0;
  while (done < request.data.size()) {
    std::byte* data = request.data.data() + done;
    const uint64_t left = request.data.size() - done;
    const auto offset = static_cast<off_t>(request.offset + done);
    const ssize_t moved = request.kind == IoKind::kRead ? pread(request.file, data, left, offset)
                                                        : pwrite(request.file, data, left, offset);
    if (moved > 0) {
      done += static_cast<uint64_t>(moved);
    } else if (moved == 0) {
      return absl::DataLossError(absl::StrCat(Describe(request), ": ended after ", done));
    } else if (errno != EINTR) {
      return IoError(errno, Describe(request));
    }
  }
  return absl::OkStatus();
}

}  // namespace

void PosixIo::DoRun(std::span<IoRequest> requests, absl::FunctionRef<void(IoRequest&)> ended) {
  for (IoRequest& request : requests) {
    request.status = Carry(request);
    ended(request);
  }
}

}  // namespace oscarkv
