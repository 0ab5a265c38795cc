// Elements of a model's dtype to and from float, a row at a time. Included once for each
// instruction set.
#if defined(OSCARKV_KERNELS_CODEC_OSCAR_CPU_LOAD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OSCARKV_KERNELS_CODEC_OSCAR_CPU_LOAD_INL_H_
#undef OSCARKV_KERNELS_CODEC_OSCAR_CPU_LOAD_INL_H_
#else
#define OSCARKV_KERNELS_CODEC_OSCAR_CPU_LOAD_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"

#include "kernels/codec/oscar/format.h"

HWY_BEFORE_NAMESPACE();
namespace oscarkv {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using F32 = hn::ScalableTag<float>;
using I32 = hn::RebindToSigned<F32>;
using U32 = hn::RebindToUnsigned<F32>;
using U16 = hn::Rebind<uint16_t, F32>;
using U8 = hn::Rebind<uint8_t, F32>;
using VF = hn::Vec<F32>;

inline constexpr uint32_t kDimMax = 256;

HWY_INLINE void LoadRow(const std::byte* source, DType dtype, uint32_t dim,
                        float* HWY_RESTRICT row) {
  const F32 df;
  const size_t lanes = hn::Lanes(df);
  if (dtype == DType::kFp32) {
    std::memcpy(row, source, size_t{dim} * sizeof(float));
    return;
  }
  const auto* halves = reinterpret_cast<const uint16_t*>(source);
  if (dtype == DType::kBf16) {
    for (size_t i = 0; i < dim; i += lanes) {
      const auto bits = hn::PromoteTo(U32(), hn::LoadU(U16(), halves + i));
      hn::Store(hn::BitCast(df, hn::ShiftLeft<16>(bits)), df, row + i);
    }
    return;
  }
#if HWY_TARGET <= HWY_AVX2 && HWY_ARCH_X86
  const hn::Rebind<hwy::float16_t, F32> df16;
  for (size_t i = 0; i < dim; i += lanes) {
    const auto half = hn::LoadU(df16, reinterpret_cast<const hwy::float16_t*>(halves + i));
    hn::Store(hn::PromoteTo(df, half), df, row + i);
  }
#else
  for (size_t i = 0; i < dim; ++i) row[i] = Fp16ToFloat(halves[i]);
#endif
}

// Round to nearest even, as FloatToBf16 does, for values of which none is a NaN: the upper half of
// each lane is the bf16.
HWY_INLINE hn::Vec<U32> RoundedToBf16(VF value) {
  const U32 du;
  const auto bits = hn::BitCast(du, value);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  return hn::Add(hn::Add(bits, hn::Set(du, 0x7fff)), odd);
}

// FloatToBf16 of any value: a NaN stays one.
HWY_INLINE hn::Vec<U16> ToBf16(VF value) {
  const U32 du;
  const auto bits = hn::BitCast(du, value);
  const auto rounded = hn::ShiftRight<16>(RoundedToBf16(value));
  const auto quiet = hn::Or(hn::ShiftRight<16>(bits), hn::Set(du, 0x40));
  const auto is_nan =
      hn::MaskFromVec(hn::BitCast(du, hn::VecFromMask(F32(), hn::Ne(value, value))));
  const auto chosen = hn::IfThenElse(is_nan, quiet, rounded);
  return hn::DemoteTo(U16(), hn::BitCast(I32(), chosen));
}

HWY_INLINE void StoreVector(VF value, std::byte* row, DType dtype, size_t index) {
  const F32 df;
  if (dtype == DType::kBf16) {
    hn::StoreU(ToBf16(value), U16(), reinterpret_cast<uint16_t*>(row) + index);
  } else if (dtype == DType::kFp32) {
    hn::StoreU(value, df, reinterpret_cast<float*>(row) + index);
  } else {
#if HWY_TARGET <= HWY_AVX2 && HWY_ARCH_X86
    const hn::Rebind<hwy::float16_t, F32> df16;
    hn::StoreU(hn::DemoteTo(df16, value), df16, reinterpret_cast<hwy::float16_t*>(row) + index);
#else
    HWY_ALIGN float lane[HWY_MAX_BYTES / sizeof(float)];
    hn::Store(value, df, lane);
    for (size_t i = 0; i < hn::Lanes(df); ++i)
      reinterpret_cast<uint16_t*>(row)[index + i] = FloatToFp16(lane[i]);
#endif
  }
}

// Stores vectors that follow each other. `finite`: none of the values is a NaN.
template <int kVectors>
HWY_INLINE void StoreVectors(const VF (&values)[kVectors], DType dtype, bool finite, std::byte* row,
                             size_t index) {
  const size_t lanes = hn::Lanes(F32());
  if constexpr (kVectors % 2 == 0) {
    if (dtype == DType::kBf16 && finite) {
      const hn::ScalableTag<uint16_t> d16;
      auto* out = reinterpret_cast<uint16_t*>(row) + index;
      for (int v = 0; v < kVectors; v += 2, out += 2 * lanes) {
        const auto low = hn::BitCast(d16, RoundedToBf16(values[v]));
        const auto high = hn::BitCast(d16, RoundedToBf16(values[v + 1]));
        hn::StoreU(hn::ConcatOdd(d16, high, low), d16, out);
      }
      return;
    }
  }
  for (int v = 0; v < kVectors; ++v)
    StoreVector(values[v], row, dtype, index + static_cast<size_t>(v) * lanes);
}

}  // namespace HWY_NAMESPACE
}  // namespace oscarkv
HWY_AFTER_NAMESPACE();

#endif
