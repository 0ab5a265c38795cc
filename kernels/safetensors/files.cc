// Files under safetensors: mapped for reading, replaced atomically when written.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"
#include "kernels/safetensors/safetensors.h"

namespace oscarkv {
namespace {

absl::Status FileError(const char* action, const std::string& path) {
  return absl::ErrnoToStatus(errno, absl::StrCat(action, " ", path));
}

}  // namespace

absl::StatusOr<std::shared_ptr<const MappedFile>> MappedFile::Open(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return FileError("opening", path);
  const absl::Cleanup close_it = [descriptor] { close(descriptor); };
  struct stat facts = {};
  if (fstat(descriptor, &facts) != 0) return FileError("reading the size of", path);
  const size_t bytes = static_cast<size_t>(facts.st_size);
  if (bytes == 0) return std::shared_ptr<const MappedFile>(new MappedFile({}));
  void* memory = mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, descriptor, 0);
  if (memory == MAP_FAILED) return FileError("mapping", path);
  return std::shared_ptr<const MappedFile>(
      new MappedFile({static_cast<const std::byte*>(memory), bytes}));
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

void MappedFile::ReleasePages(ByteView part) {
  constexpr uintptr_t kPage = 4096;
  // Whole pages that the part touches; they come back from the file when they are read again.
  const auto address = reinterpret_cast<uintptr_t>(part.data());
  std::byte* begin = const_cast<std::byte*>(part.data()) - address % kPage;
  const uintptr_t bytes = (address + part.size()) / kPage * kPage - (address - address % kPage);
  if (address / kPage != (address + part.size()) / kPage) madvise(begin, bytes, MADV_DONTNEED);
}

absl::StatusOr<SafetensorsFile> OpenSafetensors(const std::string& path) {
  SafetensorsFile result;
  OSCARKV_ASSIGN_OR_RETURN(result.file, MappedFile::Open(path));
  absl::StatusOr<Safetensors> contents = Safetensors::Parse(result.file->bytes());
  if (!contents.ok()) return Annotate(contents.status(), path);
  result.contents = *std::move(contents);
  return result;
}

absl::Status WriteFileAtomically(const std::string& path, ByteView bytes) {
  const std::string partial = absl::StrCat(path, ".partial.", getpid());
  const int descriptor = open(partial.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor < 0) return FileError("creating", partial);
  absl::Cleanup remove_it = [&partial] { unlink(partial.c_str()); };
  const absl::Cleanup close_it = [descriptor] { close(descriptor); };
  while (!bytes.empty()) {
    const ssize_t written = write(descriptor, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return FileError("writing", partial);
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
  if (fsync(descriptor) != 0) return FileError("flushing", partial);
  if (rename(partial.c_str(), path.c_str()) != 0) return FileError("renaming to", path);
  std::move(remove_it).Cancel();
  return absl::OkStatus();
}

}  // namespace oscarkv
