// The safetensors format: an 8-byte little-endian header length, a JSON header that names each
// tensor's dtype, shape and place, then the tensors' bytes. https://huggingface.co/docs/safetensors
// (format section)
#ifndef OSCARKV_KERNELS_SAFETENSORS_SAFETENSORS_H_
#define OSCARKV_KERNELS_SAFETENSORS_SAFETENSORS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "kernels/base/bytes.h"
#include "kernels/base/dtype.h"

namespace oscarkv {

// A header longer than this is refused, as the format's own implementations do.
inline constexpr uint64_t kSafetensorsHeaderBytesMax = 100'000'000;

// One tensor: row-major, little-endian. `bytes` is borrowed.
struct Tensor {
  std::string name;
  std::string dtype;  // "F32", "F16", "BF16", "U8", "I64", "U32", ...
  std::vector<uint64_t> shape;
  ByteView bytes;

  uint64_t elements() const;
};

// The bytes of one element of a safetensors dtype, 0 for a name the format does not have.
uint32_t TensorDTypeBytes(std::string_view dtype);
// "F32", "F16" and "BF16" as ours, nothing for other dtypes; and the other way.
std::optional<DType> FloatTensorDType(std::string_view dtype);
std::string_view TensorDTypeOf(DType dtype);
std::string ShapeText(std::span<const uint64_t> shape);  // "[30, 3, 64]"

// A parsed file whose bytes belong to somebody else and must outlive it.
class Safetensors {
 public:
  // kInvalidArgument: truncated, a header that is too long or is not the format's JSON, an unknown
  // dtype, a tensor whose bytes are not its shape's, lie outside the file, overlap another's or
  // leave a gap. Names the tensor.
  static absl::StatusOr<Safetensors> Parse(ByteView file);

  const std::map<std::string, Tensor, std::less<>>& tensors() const { return tensors_; }
  const std::map<std::string, std::string, std::less<>>& metadata() const { return metadata_; }
  // kNotFound naming the tensor and those that are there.
  absl::StatusOr<Tensor> Get(std::string_view name) const;
  // The same, and kInvalidArgument when dtype (if not empty) or the number of dimensions differ.
  absl::StatusOr<Tensor> Get(std::string_view name, std::string_view dtype,
                             size_t dimensions) const;

 private:
  std::map<std::string, Tensor, std::less<>> tensors_;
  std::map<std::string, std::string, std::less<>> metadata_;
};

// A read-only mapping of a whole file.
class MappedFile {
 public:
  // kNotFound, kPermissionDenied or kInternal, naming the path.
  static absl::StatusOr<std::shared_ptr<const MappedFile>> Open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ByteView bytes() const { return bytes_; }
  // Lets the kernel drop the pages read so far: streaming a file of any size then takes bounded
  // memory.
  static void ReleasePages(ByteView part);

 private:
  explicit MappedFile(ByteView bytes) : bytes_(bytes) {}
  ByteView bytes_;
};

// A file and its tensors, kept together.
struct SafetensorsFile {
  std::shared_ptr<const MappedFile> file;
  Safetensors contents;
};
absl::StatusOr<SafetensorsFile> OpenSafetensors(const std::string& path);

// The file's bytes, tensors in the order given; the same input gives the same bytes.
std::string SerializeSafetensors(std::span<const Tensor> tensors,
                                 const std::map<std::string, std::string, std::less<>>& metadata);

// Writes `bytes` beside `path` and renames it into place: the file is either whole or not there.
absl::Status WriteFileAtomically(const std::string& path, ByteView bytes);

}  // namespace oscarkv

#endif  // OSCARKV_KERNELS_SAFETENSORS_SAFETENSORS_H_
