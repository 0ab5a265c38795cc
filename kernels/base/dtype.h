// Element types of KV tensors, and their exact conversions to and from float.
#ifndef OSCARKV_KERNELS_BASE_DTYPE_H_
#define OSCARKV_KERNELS_BASE_DTYPE_H_

#include <bit>
#include <cstdint>
#include <optional>
#include <string_view>

namespace oscarkv {

// Numbers are part of the wire and of stored pages: never reused.
enum class DType : uint8_t { kBf16 = 1, kFp16 = 2, kFp32 = 3 };

constexpr uint32_t DTypeBytes(DType dtype) { return dtype == DType::kFp32 ? 4 : 2; }
constexpr std::string_view DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kBf16:
      return "bf16";
    case DType::kFp16:
      return "fp16";
    case DType::kFp32:
      return "fp32";
  }
  return "unknown";
}
// "bf16", "fp16", "fp32"; nothing for any other text.
std::optional<DType> ParseDType(std::string_view name);

inline float Bf16ToFloat(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}
// Round to nearest, ties to even; a NaN stays a (quiet) NaN.
inline uint16_t FloatToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x0040u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// IEEE 754 binary16. Rounds to nearest, ties to even; overflow gives infinity, a NaN stays a NaN.
float Fp16ToFloat(uint16_t bits);
uint16_t FloatToFp16(float value);

}  // namespace oscarkv

#endif  // OSCARKV_KERNELS_BASE_DTYPE_H_
