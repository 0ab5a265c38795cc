#include "proto/local/shared_region.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"

namespace oscarkv {
namespace {

constexpr int kSizeSeals = F_SEAL_SHRINK | F_SEAL_GROW;

absl::Status SystemError(absl::StatusCode code, const char* what) {
  return absl::Status(code, absl::StrCat("shared memory: ", what, ": ", std::strerror(errno)));
}

absl::StatusOr<MutableByteView> MapBytes(int descriptor, uint64_t bytes, int protection) {
  void* address =
      mmap(nullptr, bytes, protection, MAP_SHARED | MAP_NORESERVE, descriptor, /*offset=*/0);
  if (address == MAP_FAILED) return SystemError(absl::StatusCode::kResourceExhausted, "mmap");
  return MutableByteView(static_cast<std::byte*>(address), bytes);
}

}  // namespace

absl::StatusOr<SharedRegion> SharedRegion::Create(const char* name, uint64_t bytes, Others others) {
  if (bytes == 0 || bytes > static_cast<uint64_t>(std::numeric_limits<off_t>::max()))
    return absl::InvalidArgumentError(absl::StrCat("shared memory of ", bytes, " bytes"));
  SharedRegion region;
  Descriptor memory(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!memory) return SystemError(absl::StatusCode::kUnimplemented, "memfd_create");
  if (ftruncate(memory.number(), static_cast<off_t>(bytes)) != 0)
    return SystemError(absl::StatusCode::kResourceExhausted, "ftruncate");
  const bool mine_to_write = others == Others::kRead;
  OSCARKV_ASSIGN_OR_RETURN(
      region.bytes_,
      MapBytes(memory.number(), bytes, mine_to_write ? PROT_READ | PROT_WRITE : PROT_READ));
  // A wish, not a need: fewer page-table entries.
  madvise(region.bytes_.data(), bytes, MADV_HUGEPAGE);
  // From here on nobody, this process included, can map for writing what others read, nor write to
  // it or punch holes in it through any descriptor; the mapping above stays as it is.
  const int seals = kSizeSeals | F_SEAL_SEAL | (mine_to_write ? F_SEAL_FUTURE_WRITE : 0);
  if (fcntl(memory.number(), F_ADD_SEALS, seals) != 0)
    return SystemError(absl::StatusCode::kUnimplemented, "F_ADD_SEALS");
  if (mine_to_write) {
    const std::string path = absl::StrCat("/proc/self/fd/", memory.number());
    region.descriptor_ = Descriptor(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!region.descriptor_) return SystemError(absl::StatusCode::kUnimplemented, path.c_str());
  } else {
    region.descriptor_ = std::move(memory);
  }
  return region;
}

absl::StatusOr<SharedRegion> SharedRegion::Map(Descriptor memory, uint64_t bytes, Access access) {
  const int seals = fcntl(memory.number(), F_GET_SEALS);
  if (seals < 0)
    return SystemError(absl::StatusCode::kInvalidArgument, "the descriptor is not of a memfd");
  if ((seals & kSizeSeals) != kSizeSeals)
    return absl::InvalidArgumentError("shared memory: the size of the memfd is not sealed");
  struct stat found {};
  if (fstat(memory.number(), &found) != 0)
    return SystemError(absl::StatusCode::kInvalidArgument, "fstat");
  if (bytes == 0 || static_cast<uint64_t>(found.st_size) != bytes) {
    return absl::InvalidArgumentError(absl::StrCat("shared memory: expected a memfd of ", bytes,
                                                   " bytes, found ", found.st_size));
  }
  SharedRegion region;
  OSCARKV_ASSIGN_OR_RETURN(region.bytes_,
                           MapBytes(memory.number(), bytes,
                                    access == Access::kWrite ? PROT_READ | PROT_WRITE : PROT_READ));
  region.descriptor_ = std::move(memory);
  return region;
}

SharedRegion& SharedRegion::operator=(SharedRegion&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

SharedRegion::~SharedRegion() {
  if (!bytes_.empty()) munmap(bytes_.data(), bytes_.size());
}

}  // namespace oscarkv
