// The JSON header of a safetensors file, read event by event: no tree is built (a hostile header
// would blow it up to many times its size), a name that comes twice is seen, and every value is
// checked for its kind as it arrives.
#ifndef OSCARKV_KERNELS_SAFETENSORS_HEADER_H_
#define OSCARKV_KERNELS_SAFETENSORS_HEADER_H_

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace oscarkv {

struct HeaderEntry {
  std::string name;
  std::string dtype;
  std::vector<uint64_t> shape;
  uint64_t begin = 0;  // of its bytes, from the end of the header
  uint64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<HeaderEntry> entries;  // in file order
  std::map<std::string, std::string, std::less<>> metadata;
};

// kInvalidArgument naming the tensor and the field. Byte ranges are not checked: they need the
// file.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view json);

// The header's length and text, as a file begins, padded with spaces so that the data after it is
// aligned to 8 bytes. Text that is no UTF-8 is replaced.
std::string WriteSafetensorsHeader(const SafetensorsHeader& header);

// product(shape) * bytes of an element; nothing when that passes 64 bits.
std::optional<uint64_t> TensorBytes(std::string_view dtype, std::span<const uint64_t> shape);

}  // namespace oscarkv

#endif  // OSCARKV_KERNELS_SAFETENSORS_HEADER_H_
