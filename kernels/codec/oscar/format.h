// The per-element arithmetic of PACKED rows, shared by every implementation so that all of them
// write the same bytes (FORMAT.md, "Quantising a row"). Compiled without contraction of a * b + c:
// a fused multiply-add here would change codes.
#ifndef OSCARKV_KERNELS_CODEC_OSCAR_FORMAT_H_
#define OSCARKV_KERNELS_CODEC_OSCAR_FORMAT_H_

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "kernels/base/bytes.h"
#include "kernels/base/dtype.h"
#include "kernels/codec/geometry.h"

namespace oscarkv {

// The smallest range that a scale is made of, so that constant groups divide (OSCAR's constant).
inline constexpr float kRangeMin = 1e-8f;
inline constexpr float kFp16Max = 65504.0f;

constexpr uint32_t MaxCode(uint32_t bits) { return (1u << bits) - 1u; }

// A group's scale and zero point. `code_scale` and `code_zero` are what codes are computed with, in
// fp32 whatever the params dtype is; `scale` and `zero` are what is stored (rounded to the params
// dtype when written).
struct GroupParams {
  float code_scale = 0.0f;
  float code_zero = 0.0f;
  float scale = 0.0f;
  float zero = 0.0f;
  bool flat = false;      // every code is 0
  bool overflow = false;  // beyond the params dtype: the group reads back as NaN
};

// The params of a group that reads back as NaN: a row with a NaN or an infinity in it, or values
// beyond the params dtype.
inline GroupParams NanGroup() {
  GroupParams params;
  params.scale = std::numeric_limits<float>::quiet_NaN();
  params.zero = 0.0f;
  params.flat = true;
  params.overflow = true;
  return params;
}

// From the least and greatest value of a group, both finite, after the clip.
//   scale = max(max - min, 1e-8) / (2^bits - 1),  zero = -min / scale   (-0 is written as +0)
// With fp16 params a group is written flat (code 0, zero -1 and its middle value as scale, so that
// (0 - -1) * scale is that value) when its zero point passes fp16's range, when its scale would
// vanish, and when its least value would read back off by more than half the range: a zero far from
// 0 multiplies the rounding error of scale, which is large where fp16 is subnormal.
inline GroupParams MakeGroupParams(float min, float max, uint32_t bits, ParamsDType dtype) {
  GroupParams params;
  const float range = max - min;
  params.code_scale = (range > kRangeMin ? range : kRangeMin) / static_cast<float>(MaxCode(bits));
  params.code_zero = 0.0f - min / params.code_scale;
  params.scale = params.code_scale;
  params.zero = params.code_zero;
  if (dtype == ParamsDType::kFp32) {
    return std::isfinite(params.scale) && std::isfinite(params.zero) ? params : NanGroup();
  }
  if (!(params.scale <= kFp16Max)) return NanGroup();
  const float scale = Fp16ToFloat(FloatToFp16(params.scale));
  const float zero = Fp16ToFloat(FloatToFp16(params.zero));
  if (scale == 0.0f || std::fabs(params.zero) > kFp16Max ||
      std::fabs((0.0f - zero) * scale - min) > range * 0.5f) {
    params.scale = min + range * 0.5f;
    params.zero = -1.0f;
    params.flat = true;
  }
  return std::fabs(params.scale) <= kFp16Max ? params : NanGroup();
}

// code = trunc(x / scale + zero + 0.5), held to 0..2^bits - 1.
inline uint32_t MakeCode(float value, const GroupParams& params, uint32_t bits) {
  if (params.flat) return 0;
  const float code = (value / params.code_scale + params.code_zero) + 0.5f;
  const float most = static_cast<float>(MaxCode(bits));
  return static_cast<uint32_t>(code > 0.0f ? (code < most ? code : most) : 0.0f);
}

// Packing is strided: with c codes a byte (4 of 2 bits or 2 of 4), byte i of a row holds dims i, i
// + dim / c, ... from its lowest bits up, exactly as the reference engine packs 2-bit codes.
inline uint32_t LoadCode(const std::byte* row, uint32_t dim_index, uint32_t dim, uint32_t bits) {
  const uint32_t bytes = dim * bits / 8;
  return (static_cast<uint32_t>(row[dim_index % bytes]) >> (dim_index / bytes * bits)) &
         MaxCode(bits);
}

// Adds a code to a row whose bytes were zero.
inline void StoreCode(std::byte* row, uint32_t dim_index, uint32_t dim, uint32_t bits,
                      uint32_t code) {
  const uint32_t bytes = dim * bits / 8;
  row[dim_index % bytes] |= static_cast<std::byte>(code << (dim_index / bytes * bits));
}

constexpr size_t ParamBytes(ParamsDType dtype) { return dtype == ParamsDType::kFp16 ? 2 : 4; }

// Where pair number `group` of a row's params starts: scale, then zero.
constexpr size_t PairOffset(uint32_t group, ParamsDType dtype) {
  return size_t{group} * 2 * ParamBytes(dtype);
}

inline void StoreParams(std::byte* row_params, uint32_t group, ParamsDType dtype, float scale,
                        float zero) {
  std::byte* pair = row_params + PairOffset(group, dtype);
  if (dtype == ParamsDType::kFp16) {
    StoreLe(pair, FloatToFp16(scale));
    StoreLe(pair + 2, FloatToFp16(zero));
  } else {
    StoreLe(pair, scale);
    StoreLe(pair + 4, zero);
  }
}

struct ScaleZero {
  float scale;
  float zero;
};

inline ScaleZero LoadParams(const std::byte* row_params, uint32_t group, ParamsDType dtype) {
  const std::byte* pair = row_params + PairOffset(group, dtype);
  if (dtype == ParamsDType::kFp16) {
    return {Fp16ToFloat(LoadLe<uint16_t>(pair)), Fp16ToFloat(LoadLe<uint16_t>(pair + 2))};
  }
  return {LoadLe<float>(pair), LoadLe<float>(pair + 4)};
}

// One element of `dtype` at `source`, as float, and back (round to nearest even).
inline float LoadElement(const std::byte* source, DType dtype) {
  if (dtype == DType::kFp32) return LoadLe<float>(source);
  const uint16_t bits = LoadLe<uint16_t>(source);
  return dtype == DType::kBf16 ? Bf16ToFloat(bits) : Fp16ToFloat(bits);
}

inline void StoreElement(std::byte* destination, DType dtype, float value) {
  if (dtype == DType::kFp32) {
    StoreLe(destination, value);
  } else {
    StoreLe(destination, dtype == DType::kBf16 ? FloatToBf16(value) : FloatToFp16(value));
  }
}

}  // namespace oscarkv

#endif  // OSCARKV_KERNELS_CODEC_OSCAR_FORMAT_H_
