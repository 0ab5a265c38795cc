#include "kernels/safetensors/writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"
#include "kernels/safetensors/header.h"
#include "kernels/safetensors/safetensors.h"

namespace oscarkv {
namespace {

absl::Status FileError(const char* action, const std::string& path) {
  return absl::ErrnoToStatus(errno, absl::StrCat(action, " ", path));
}

// Places the tensors one after the other.
absl::StatusOr<SafetensorsHeader> LayOut(std::span<const TensorSpec> tensors) {
  SafetensorsHeader header;
  std::set<std::string_view> names;
  uint64_t next = 0;
  for (const TensorSpec& tensor : tensors) {
    const bool usable = !tensor.name.empty() && tensor.name != "__metadata__";
    if (!usable || !names.insert(tensor.name).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor '", tensor.name, "': the name is empty, reserved or there already"));
    }
    if (TensorDTypeBytes(tensor.dtype) == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor '", tensor.name, "': unknown dtype '", tensor.dtype, "'"));
    }
    const std::optional<uint64_t> bytes = TensorBytes(tensor.dtype, tensor.shape);
    uint64_t end = 0;
    if (!bytes || __builtin_add_overflow(next, *bytes, &end) || end > (uint64_t{1} << 62)) {
      return absl::InvalidArgumentError(absl::StrCat("tensor '", tensor.name, "': shape ",
                                                     ShapeText(tensor.shape), " is too large"));
    }
    header.entries.push_back({tensor.name, tensor.dtype, tensor.shape, next, end});
    next = end;
  }
  return header;
}

absl::Status WriteAt(int descriptor, const std::string& path, ByteView bytes, uint64_t offset) {
  while (!bytes.empty()) {
    const ssize_t count =
        pwrite(descriptor, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return FileError("writing", path);
    offset += static_cast<uint64_t>(count);
    bytes = bytes.subspan(static_cast<size_t>(count));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SafetensorsWriter> SafetensorsWriter::Create(
    const std::string& path, std::span<const TensorSpec> tensors,
    const std::map<std::string, std::string, std::less<>>& metadata) {
  OSCARKV_ASSIGN_OR_RETURN(SafetensorsHeader header, LayOut(tensors));
  header.metadata = metadata;
  const std::string text = WriteSafetensorsHeader(header);
  SafetensorsWriter writer;
  writer.path_ = path;
  writer.partial_path_ = absl::StrCat(path, ".partial.", getpid());
  writer.descriptor_ =
      open(writer.partial_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (writer.descriptor_ < 0) return FileError("creating", writer.partial_path_);
  OSCARKV_RETURN_IF_ERROR(WriteAt(writer.descriptor_, writer.partial_path_, AsBytes(text), 0));
  for (const HeaderEntry& entry : header.entries) {
    writer.extents_.push_back({entry.name, text.size() + entry.begin, text.size() + entry.end});
  }
  return writer;
}

SafetensorsWriter::SafetensorsWriter(SafetensorsWriter&& other) noexcept
    : path_(std::move(other.path_)),
      partial_path_(std::move(other.partial_path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      extents_(std::move(other.extents_)) {}

SafetensorsWriter& SafetensorsWriter::operator=(SafetensorsWriter&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(partial_path_, other.partial_path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(extents_, other.extents_);
  return *this;
}

SafetensorsWriter::~SafetensorsWriter() {
  if (descriptor_ < 0) return;
  close(descriptor_);
  unlink(partial_path_.c_str());
}

absl::Status SafetensorsWriter::Append(size_t index, ByteView bytes) {
  if (index >= extents_.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor number ", index, " of ", extents_.size()));
  }
  Extent& extent = extents_[index];
  if (bytes.size() > extent.end - extent.next) {
    return absl::InvalidArgumentError(absl::StrCat("tensor '", extent.name, "': ", bytes.size(),
                                                   " bytes more, there is room for ",
                                                   extent.end - extent.next));
  }
  OSCARKV_RETURN_IF_ERROR(WriteAt(descriptor_, partial_path_, bytes, extent.next));
  extent.next += bytes.size();
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::Finish() {
  if (descriptor_ < 0) return absl::FailedPreconditionError(absl::StrCat(path_, " is finished"));
  for (const Extent& extent : extents_) {
    if (extent.next != extent.end) {
      return absl::FailedPreconditionError(
          absl::StrCat("tensor '", extent.name, "' lacks ", extent.end - extent.next, " bytes"));
    }
  }
  if (fsync(descriptor_) != 0) return FileError("flushing", partial_path_);
  if (rename(partial_path_.c_str(), path_.c_str()) != 0) return FileError("renaming to", path_);
  close(std::exchange(descriptor_, -1));
  return absl::OkStatus();
}

}  // namespace oscarkv
