#include "server/tier/host_arena.h"

#include <sys/mman.h>
#include <sys/prctl.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"

namespace oscarkv {

absl::StatusOr<HostArena> HostArena::Create(uint64_t bytes, Sharing sharing) {
  if (bytes == 0) return absl::InvalidArgumentError("arena: 0 bytes");
  HostArena arena;
  if (sharing == Sharing::kReaders) {
    OSCARKV_ASSIGN_OR_RETURN(
        arena.shared_, SharedRegion::Create("oscarkv arena", bytes, SharedRegion::Others::kRead));
    return arena;
  }
  void* address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("arena: cannot map ", bytes, " bytes: ", std::strerror(errno)));
  }
  // Wishes, not needs: fewer page-table entries, and a name in /proc/<pid>/smaps.
  madvise(address, bytes, MADV_HUGEPAGE);
  prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, address, bytes, "oscarkv arena");
  arena.private_ = {static_cast<std::byte*>(address), bytes};
  return arena;
}

HostArena& HostArena::operator=(HostArena&& other) noexcept {
  std::swap(private_, other.private_);
  std::swap(shared_, other.shared_);
  return *this;
}

HostArena::~HostArena() {
  if (!private_.empty()) munmap(private_.data(), private_.size());
}

}  // namespace oscarkv
