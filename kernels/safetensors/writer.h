// Writes safetensors files whose tensors need never be in memory at once.
#ifndef OSCARKV_KERNELS_SAFETENSORS_WRITER_H_
#define OSCARKV_KERNELS_SAFETENSORS_WRITER_H_

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "kernels/base/bytes.h"

namespace oscarkv {

struct TensorSpec {
  std::string name;
  std::string dtype;  // "F32", ...
  std::vector<uint64_t> shape;
};

// Tensors lie in the order they are given to Create, the header's metadata in the order of its
// keys: the same contents give the same bytes. Written beside `path` and renamed at Finish, so the
// path never holds half a file. Move-only; not thread-safe.
class SafetensorsWriter {
 public:
  // kInvalidArgument naming the tensor: a name twice, empty or "__metadata__", an unknown dtype, a
  // shape that overflows. The code of the system's error, naming the path, when it cannot be
  // created.
  static absl::StatusOr<SafetensorsWriter> Create(
      const std::string& path, std::span<const TensorSpec> tensors,
      const std::map<std::string, std::string, std::less<>>& metadata);
  ~SafetensorsWriter();  // removes what was written unless Finish succeeded
  SafetensorsWriter(SafetensorsWriter&& other) noexcept;
  SafetensorsWriter& operator=(SafetensorsWriter&& other) noexcept;

  // The next bytes of tensor `index` (of those given to Create). Tensors may be filled in turns.
  // kInvalidArgument: more bytes than its shape has; or the system's error.
  absl::Status Append(size_t index, ByteView bytes);
  // kFailedPrecondition naming a tensor that lacks bytes; or the system's error.
  absl::Status Finish();

 private:
  struct Extent {
    std::string name;
    uint64_t next = 0;  // file offset of the next byte
    uint64_t end = 0;
  };

  SafetensorsWriter() = default;
  std::string path_;
  std::string partial_path_;
  int descriptor_ = -1;
  std::vector<Extent> extents_;
};

}  // namespace oscarkv

#endif  // OSCARKV_KERNELS_SAFETENSORS_WRITER_H_
