// The directory of a disk tier: its lock, its superblock and its segment files (FORMAT.md).
#ifndef OSCARKV_SERVER_TIER_DISK_DISK_DIRECTORY_H_
#define OSCARKV_SERVER_TIER_DISK_DISK_DIRECTORY_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "server/tier/disk/block_io.h"
#include "server/tier/disk/format.h"

namespace oscarkv {

// An open file descriptor. Move-only.
class DiskFile {
 public:
  DiskFile() = default;
  explicit DiskFile(int descriptor) : descriptor_(descriptor) {}
  DiskFile(DiskFile&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  DiskFile& operator=(DiskFile&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  ~DiskFile();

  int descriptor() const { return descriptor_; }
  bool is_open() const { return descriptor_ >= 0; }

 private:
  int descriptor_ = -1;
};

struct DiskDirectoryOptions {
  std::string path;             // made if it is not there; its parent is
  std::string owner;            // at most kOwnerBytesMax; the same each time
  uint64_t capacity_bytes = 0;  // of all files together, never passed
  uint64_t catalog_bytes = 0;   // of them, for files that hold no pages (DiskCatalog)
  uint64_t segment_bytes = 0;   // 0: what the directory has; kSegmentBytesDefault in a new one
};
inline constexpr uint64_t kSegmentBytesDefault = 256 << 20;
inline constexpr uint64_t kSegmentsMin = 2;  // one to write to and one to reclaim
// What else takes room: the lock, and the superblock twice while it is made.
inline constexpr uint64_t kDiskOtherFilesBytes = 3 * kDiskBlockBytes;
inline constexpr int kDiskFileMode = 0640;

// Owns the lock and the files. Immutable once open.
class DiskDirectory {
 public:
  // Allocates what is missing: a new directory whole, an old one the segments that are gone or
  // that a greater capacity adds. Segments beyond a smaller capacity are deleted.
  //   kInvalidArgument     an option is out of range.
  //   kUnavailable         another server holds the lock; both are named.
  //   kFailedPrecondition  the directory is another server's, of another version or segment size
  //                        (both are named), or has segments and no superblock.
  //   kDataLoss            the superblock is damaged.
  //   others               of BlockIo: what the file system said.
  static absl::StatusOr<DiskDirectory> Open(const DiskDirectoryOptions& options, BlockIo& io);

  const DiskId& id() const { return superblock_.id; }
  uint64_t segment_bytes() const { return superblock_.segment_bytes; }
  uint32_t segments() const { return static_cast<uint32_t>(files_.size()); }
  int file(uint32_t segment) const { return files_[segment].descriptor(); }
  uint64_t capacity_bytes() const { return segments() * segment_bytes(); }
  // Whether the file system does direct I/O; if not, pages lie in the kernel's cache too.
  bool direct() const { return direct_; }
  uint32_t segments_made() const { return segments_made_; }  // by this Open

 private:
  DiskDirectory() = default;

  absl::Status Lock(const DiskDirectoryOptions& options);
  absl::Status ReadOrMakeSuperblock(const DiskDirectoryOptions& options, BlockIo& io);
  absl::Status MakeSuperblock(const DiskDirectoryOptions& options, BlockIo& io);
  absl::Status OpenSegments(const DiskDirectoryOptions& options, BlockIo& io);
  absl::StatusOr<DiskFile> OpenFile(const std::string& path, int flags);

  std::string path_;
  DiskFile lock_;
  DiskFile folder_;
  Superblock superblock_;
  std::vector<DiskFile> files_;
  bool direct_ = true;
  uint32_t segments_made_ = 0;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_TIER_DISK_DISK_DIRECTORY_H_
