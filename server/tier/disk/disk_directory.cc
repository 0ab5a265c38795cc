#include "server/tier/disk/disk_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>

#include "absl/random/random.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

#include "kernels/base/status_macros.h"

namespace oscarkv {
namespace {

constexpr absl::string_view kSegmentPrefix = "segment-";

std::string SegmentName(uint32_t segment) {
  return absl::StrCat(kSegmentPrefix, absl::Dec(segment, absl::kZeroPad6));
}

// The numbers of the segment files that are there.
std::vector<uint32_t> SegmentsIn(const std::string& path) {
  std::vector<uint32_t> segments;
  std::error_code ignored;  // a folder that cannot be listed shows itself at the next step
  for (const auto& entry : std::filesystem::directory_iterator(path, ignored)) {
    const std::string name = entry.path().filename().string();
    absl::string_view digits = name;
    uint32_t segment = 0;
    if (absl::ConsumePrefix(&digits, kSegmentPrefix) && absl::SimpleAtoi(digits, &segment) &&
        SegmentName(segment) == name)
      segments.push_back(segment);
  }
  return segments;
}

std::string Holder(const std::string& owner) {
  return absl::StrCat("'", owner, "' (process ", getpid(), ")");
}

absl::Status Check(const DiskDirectoryOptions& options) {
  if (options.path.empty()) return absl::InvalidArgumentError("disk: the path is empty");
  if (options.owner.size() > kOwnerBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("disk: the owner's name has ",
                                                   options.owner.size(), " bytes, at most ",
                                                   kOwnerBytesMax, " are allowed"));
  }
  const uint64_t bytes = options.segment_bytes;
  if (bytes != 0 &&
      (bytes < kSegmentBytesMin || bytes > kSegmentBytesMax || bytes % kDiskBlockBytes != 0)) {
    return absl::InvalidArgumentError(absl::StrCat("disk: segment_bytes must be a multiple of ",
                                                   kDiskBlockBytes, " in ", kSegmentBytesMin, "..",
                                                   kSegmentBytesMax, ", found ", bytes));
  }
  return absl::OkStatus();
}

}  // namespace

DiskFile::~DiskFile() {
  if (is_open()) close(descriptor_);
}

absl::StatusOr<DiskDirectory> DiskDirectory::Open(const DiskDirectoryOptions& options,
                                                  BlockIo& io) {
  OSCARKV_RETURN_IF_ERROR(Check(options));
  DiskDirectory directory;
  directory.path_ = options.path;
  const std::string context = absl::StrCat("disk directory ", options.path);
  if (mkdir(options.path.c_str(), 0750) != 0 && errno != EEXIST)
    return IoError(errno, absl::StrCat(context, ": mkdir"));
  directory.folder_ = DiskFile(open(options.path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory.folder_.is_open()) return IoError(errno, absl::StrCat(context, ": open"));
  OSCARKV_RETURN_IF_ERROR(Annotate(directory.Lock(options), context));
  OSCARKV_RETURN_IF_ERROR(Annotate(directory.ReadOrMakeSuperblock(options, io), context));
  OSCARKV_RETURN_IF_ERROR(Annotate(directory.OpenSegments(options, io), context));
  return directory;
}

absl::Status DiskDirectory::Lock(const DiskDirectoryOptions& options) {
  lock_ = DiskFile(open((path_ + "/lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, kDiskFileMode));
  if (!lock_.is_open()) return IoError(errno, "open lock");
  const std::string us = Holder(options.owner);
  if (flock(lock_.descriptor(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return IoError(errno, "flock");
    std::array<char, 256> text{};
    const ssize_t bytes = pread(lock_.descriptor(), text.data(), text.size(), 0);
    const std::string holder =
        bytes > 0 ? std::string(text.data(), static_cast<size_t>(bytes)) : "another server";
    return absl::UnavailableError(
        absl::StrCat("in use by ", holder, "; ", us, " cannot have it too"));
  }
  // For whoever comes next; nothing depends on it.
  if (ftruncate(lock_.descriptor(), 0) != 0 ||
      pwrite(lock_.descriptor(), us.data(), us.size(), 0) < 0)
    return IoError(errno, "write lock");
  return absl::OkStatus();
}

absl::StatusOr<DiskFile> DiskDirectory::OpenFile(const std::string& path, int flags) {
  const int all_flags = O_RDWR | O_CLOEXEC | flags;
  int descriptor = direct_ ? open(path.c_str(), all_flags | O_DIRECT, kDiskFileMode) : -1;
  if (descriptor < 0 && (!direct_ || errno == EINVAL)) {
    direct_ = false;  // this file system has no direct I/O
    descriptor = open(path.c_str(), all_flags, kDiskFileMode);
  }
  if (descriptor < 0) return IoError(errno, absl::StrCat("open ", path));
  return DiskFile(descriptor);
}

absl::Status DiskDirectory::ReadOrMakeSuperblock(const DiskDirectoryOptions& options, BlockIo& io) {
  const std::string path = path_ + "/superblock";
  if (access(path.c_str(), F_OK) != 0) {
    if (const size_t segments = SegmentsIn(path_).size(); segments > 0) {
      return absl::FailedPreconditionError(
          absl::StrCat(segments,
                       " segments and no superblock: it was deleted in part. Bring the superblock "
                       "back, or delete the segments too"));
    }
    return MakeSuperblock(options, io);
  }
  OSCARKV_ASSIGN_OR_RETURN(const DiskFile file, OpenFile(path, 0));
  const AlignedBuffer block(kDiskBlockBytes);
  IoRequest read{.kind = IoKind::kRead, .file = file.descriptor(), .data = block.bytes()};
  io.Run({&read, 1});
  OSCARKV_RETURN_IF_ERROR(Annotate(read.status, "superblock"));
  absl::StatusOr<Superblock> found = DecodeSuperblock(block.bytes().first<kDiskBlockBytes>());
  if (!found.ok()) return Annotate(found.status(), "superblock");
  superblock_ = *std::move(found);
  if (superblock_.owner != options.owner) {
    return absl::FailedPreconditionError(
        absl::StrCat("belongs to '", superblock_.owner, "', this is '", options.owner, "'"));
  }
  if (options.segment_bytes != 0 && superblock_.segment_bytes != options.segment_bytes) {
    return absl::FailedPreconditionError(absl::StrCat("has segments of ", superblock_.segment_bytes,
                                                      " bytes, asked for are ",
                                                      options.segment_bytes));
  }
  return absl::OkStatus();
}

absl::Status DiskDirectory::MakeSuperblock(const DiskDirectoryOptions& options, BlockIo& io) {
  absl::BitGen random;
  for (std::byte& byte : superblock_.id)
    byte = static_cast<std::byte>(absl::Uniform<uint8_t>(random));
  superblock_.segment_bytes =
      options.segment_bytes != 0 ? options.segment_bytes : kSegmentBytesDefault;
  superblock_.owner = options.owner;
  const std::string path = path_ + "/superblock";
  const std::string temporary = path + ".new";
  OSCARKV_ASSIGN_OR_RETURN(const DiskFile file, OpenFile(temporary, O_CREAT | O_TRUNC));
  const AlignedBuffer block(kDiskBlockBytes);
  EncodeSuperblock(superblock_, block.bytes().first<kDiskBlockBytes>());
  IoRequest write{.kind = IoKind::kWrite, .file = file.descriptor(), .data = block.bytes()};
  io.Run({&write, 1});
  OSCARKV_RETURN_IF_ERROR(Annotate(write.status, "superblock"));
  OSCARKV_RETURN_IF_ERROR(Annotate(io.Sync(file.descriptor()), "superblock"));
  if (std::rename(temporary.c_str(), path.c_str()) != 0) return IoError(errno, "rename superblock");
  return fsync(folder_.descriptor()) == 0 ? absl::OkStatus() : IoError(errno, "fsync");
}

absl::Status DiskDirectory::OpenSegments(const DiskDirectoryOptions& options, BlockIo& io) {
  const uint64_t bytes = superblock_.segment_bytes;
  const uint64_t other = kDiskOtherFilesBytes + options.catalog_bytes;
  const uint64_t count =
      options.capacity_bytes < other ? 0 : (options.capacity_bytes - other) / bytes;
  if (count < kSegmentsMin) {
    return absl::InvalidArgumentError(absl::StrCat("a capacity of ", options.capacity_bytes,
                                                   " bytes holds ", count, " segments of ", bytes,
                                                   ", at least ", kSegmentsMin, " are needed"));
  }
  for (const uint32_t segment : SegmentsIn(path_)) {
    const std::string path = absl::StrCat(path_, "/", SegmentName(segment));
    if (segment >= count && unlink(path.c_str()) != 0) return IoError(errno, "unlink " + path);
  }
  files_.reserve(count);
  for (uint32_t segment = 0; segment < count; ++segment) {
    const std::string name = SegmentName(segment);
    OSCARKV_ASSIGN_OR_RETURN(DiskFile file, OpenFile(absl::StrCat(path_, "/", name), O_CREAT));
    struct stat info {};
    if (fstat(file.descriptor(), &info) != 0) return IoError(errno, "fstat " + name);
    if (static_cast<uint64_t>(info.st_size) > bytes &&
        ftruncate(file.descriptor(), static_cast<off_t>(bytes)) != 0)
      return IoError(errno, "ftruncate " + name);
    // Also what a crash, or a hand, left shorter or with holes.
    const bool whole = static_cast<uint64_t>(info.st_size) == bytes &&
                       static_cast<uint64_t>(info.st_blocks) * 512 >= bytes;
    if (!whole) {
      OSCARKV_RETURN_IF_ERROR(Annotate(io.Allocate(file.descriptor(), bytes), name));
      OSCARKV_RETURN_IF_ERROR(Annotate(io.Sync(file.descriptor()), name));
      ++segments_made_;
    }
    files_.push_back(std::move(file));
  }
  return fsync(folder_.descriptor()) == 0 ? absl::OkStatus() : IoError(errno, "fsync");
}

}  // namespace oscarkv
