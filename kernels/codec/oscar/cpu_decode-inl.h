// Decoding rows: unpack, and either scale in place or multiply by the inverse transform. Included
// once for each instruction set.
#if defined(OSCARKV_KERNELS_CODEC_OSCAR_CPU_DECODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OSCARKV_KERNELS_CODEC_OSCAR_CPU_DECODE_INL_H_
#undef OSCARKV_KERNELS_CODEC_OSCAR_CPU_DECODE_INL_H_
#else
#define OSCARKV_KERNELS_CODEC_OSCAR_CPU_DECODE_INL_H_
#endif

#include "kernels/codec/oscar/cpu_load-inl.h"

// Instruction sets whose integer dot products the inverse transform uses.
#undef OSCARKV_BYTE_DOT
#if HWY_TARGET == HWY_AVX3_DL || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2
#define OSCARKV_BYTE_DOT 1
#include <immintrin.h>
#else
#define OSCARKV_BYTE_DOT 0
#endif

HWY_BEFORE_NAMESPACE();
namespace oscarkv {
namespace HWY_NAMESPACE {

inline constexpr uint32_t kDecodeTile = 4;  // rows multiplied at once
inline constexpr uint32_t kGroupsMax = 16;  // 256 / 16

// What a tile of packed rows unpacks to.
struct UnpackedTile {
  HWY_ALIGN uint8_t codes[kDecodeTile][kDimMax + 64];
  bool finite[kDecodeTile];  // no scale or zero of the row is a NaN or infinite
  float scale[kDecodeTile][kGroupsMax];
  float zero[kDecodeTile][kGroupsMax];
};

// Codes of a row, one a byte, in their order. Works in whole vectors of 16 bytes: what they write
// past a part of the row is the next part's, which follows; `codes` has room behind the last.
HWY_INLINE void UnpackCodes(const std::byte* packed, uint32_t dim, uint32_t bits,
                            uint8_t* HWY_RESTRICT codes) {
  const hn::CappedTag<uint8_t, 16> d8;
  const hn::Repartition<uint16_t, decltype(d8)> d16;
  const size_t bytes = size_t{dim} * bits / 8;
  HWY_ALIGN uint8_t padded[kDimMax / 2 + 16];
  const auto* row = reinterpret_cast<const uint8_t*>(packed);
  if (bytes % hn::Lanes(d8) != 0) {  // the last vector would read past the row
    std::memcpy(padded, packed, bytes);
    row = padded;
  }
  const auto mask = hn::Set(d8, static_cast<uint8_t>(MaxCode(bits)));
  const auto unpack_part = [&](auto shift, uint8_t* out) HWY_ATTR {
    for (size_t i = 0; i < bytes; i += hn::Lanes(d8)) {
      const auto shifted = hn::ShiftRight<shift()>(hn::BitCast(d16, hn::LoadU(d8, row + i)));
      hn::StoreU(hn::And(hn::BitCast(d8, shifted), mask), d8, out + i);
    }
  };
  unpack_part(std::integral_constant<int, 0>(), codes);
  if (bits == 2) {
    unpack_part(std::integral_constant<int, 2>(), codes + bytes);
    unpack_part(std::integral_constant<int, 4>(), codes + 2 * bytes);
    unpack_part(std::integral_constant<int, 6>(), codes + 3 * bytes);
  } else {
    unpack_part(std::integral_constant<int, 4>(), codes + bytes);
  }
}

// Scales and zeros of a row; false when one of them is a NaN or infinite.
HWY_INLINE bool UnpackParams(const std::byte* params, size_t groups, ParamsDType dtype,
                             float* HWY_RESTRICT scale, float* HWY_RESTRICT zero) {
  bool finite = true;
  for (size_t group = 0; group < groups; ++group) {
    ScaleZero pair;
#if HWY_TARGET <= HWY_AVX2 && HWY_ARCH_X86
    if (dtype == ParamsDType::kFp16) {
      const hn::CappedTag<float, 4> df;
      const hn::Rebind<hwy::float16_t, decltype(df)> df16;
      HWY_ALIGN hwy::float16_t halves[4] = {};
      HWY_ALIGN float floats[4];
      std::memcpy(halves, params + group * 4, 4);
      hn::Store(hn::PromoteTo(df, hn::Load(df16, halves)), df, floats);
      pair = {floats[0], floats[1]};
    } else {
      pair = LoadParams(params, static_cast<uint32_t>(group), dtype);
    }
#else
    pair = LoadParams(params, static_cast<uint32_t>(group), dtype);
#endif
    scale[group] = pair.scale;
    zero[group] = pair.zero;
    finite = finite && std::isfinite(pair.scale) && std::isfinite(pair.zero);
  }
  return finite;
}

// (code - zero) * scale, exactly as the reference computes it.
HWY_INLINE VF Dequantize(const uint8_t* codes, float scale, float zero) {
  const F32 df;
  const VF code = hn::ConvertTo(df, hn::PromoteTo(I32(), hn::LoadU(U8(), codes)));
  return hn::Mul(hn::Sub(code, hn::Set(df, zero)), hn::Set(df, scale));
}

// A group has as many values as codes: 4 or 16. For 16-bit dtypes they are worked out once, and
// codes look them up.
HWY_INLINE void LookUpGroup(const uint8_t* codes, uint32_t count, uint32_t bits, float scale,
                            float zero, DType dtype, uint16_t* out) {
  const hn::CappedTag<uint16_t, 16> d16;
  const hn::Rebind<uint8_t, decltype(d16)> d8;
  const hn::CappedTag<uint8_t, 16> dt;
  const hn::Repartition<uint32_t, decltype(dt)> d32;
  const auto value_of = [&](uint32_t code) HWY_ATTR {
    const float value = (static_cast<float>(code) - zero) * scale;
    return dtype == DType::kBf16 ? FloatToBf16(value) : FloatToFp16(value);
  };
  auto low_table = hn::Zero(dt);
  auto high_table = hn::Zero(dt);
  if (bits == 2) {
    uint32_t low = 0;
    uint32_t high = 0;
    for (uint32_t code = 0; code < 4; ++code) {
      const uint32_t half = value_of(code);
      low |= (half & 0xff) << (8 * code);
      high |= (half >> 8) << (8 * code);
    }
    low_table = hn::BitCast(dt, hn::Set(d32, low));
    high_table = hn::BitCast(dt, hn::Set(d32, high));
  } else {
    HWY_ALIGN uint8_t low[16];
    HWY_ALIGN uint8_t high[16];
    for (uint32_t code = 0; code < 16; ++code) {
      const uint16_t half = value_of(code);
      low[code] = static_cast<uint8_t>(half);
      high[code] = static_cast<uint8_t>(half >> 8);
    }
    low_table = hn::Load(dt, low);
    high_table = hn::Load(dt, high);
  }
  for (size_t i = 0; i < count; i += hn::Lanes(d16)) {
    const auto index = hn::LoadU(d8, codes + i);
    const auto low_byte = hn::PromoteTo(d16, hn::TableLookupBytes(low_table, index));
    const auto high_byte = hn::PromoteTo(d16, hn::TableLookupBytes(high_table, index));
    hn::StoreU(hn::Or(low_byte, hn::ShiftLeft<8>(high_byte)), d16, out + i);
  }
}

HWY_INLINE void DequantizeRow(const RowFormat& format, const uint8_t* codes, const float* scale,
                              const float* zero, DType dtype, std::byte* row) {
  const size_t lanes = hn::Lanes(F32());
  for (uint32_t group = 0; group < format.dim / format.group; ++group) {
    const size_t first = size_t{group} * format.group;
    if (dtype != DType::kFp32) {
      LookUpGroup(codes + first, format.group, format.bits, scale[group], zero[group], dtype,
                  reinterpret_cast<uint16_t*>(row) + first);
      continue;
    }
    for (size_t i = first; i < first + format.group; i += lanes) {
      StoreVector(Dequantize(codes + i, scale[group], zero[group]), row, dtype, i);
    }
  }
}

#if OSCARKV_BYTE_DOT

#if HWY_TARGET == HWY_AVX2
using Int = __m256i;
HWY_INLINE Int IntZero() { return _mm256_setzero_si256(); }
HWY_INLINE Int IntLoad(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
HWY_INLINE Int FourCodes(const uint8_t* codes) {
  return _mm256_set1_epi32(LoadLe<int32_t>(reinterpret_cast<const std::byte*>(codes)));
}
HWY_INLINE Int Add32(Int a, Int b) { return _mm256_add_epi32(a, b); }
HWY_INLINE Int Times128(Int a) { return _mm256_slli_epi32(a, 7); }
HWY_INLINE Int PairSums(Int a) { return _mm256_madd_epi16(a, _mm256_set1_epi16(1)); }
HWY_INLINE VF ToFloat(Int a) { return VF{_mm256_cvtepi32_ps(a)}; }
#else
using Int = __m512i;
HWY_INLINE Int IntZero() { return _mm512_setzero_si512(); }
HWY_INLINE Int IntLoad(const void* from) { return _mm512_loadu_si512(from); }
HWY_INLINE Int FourCodes(const uint8_t* codes) {
  return _mm512_set1_epi32(LoadLe<int32_t>(reinterpret_cast<const std::byte*>(codes)));
}
HWY_INLINE Int Add32(Int a, Int b) { return _mm512_add_epi32(a, b); }
HWY_INLINE Int Times128(Int a) { return _mm512_slli_epi32(a, 7); }
HWY_INLINE Int PairSums(Int a) { return _mm512_madd_epi16(a, _mm512_set1_epi16(1)); }
HWY_INLINE VF ToFloat(Int a) { return VF{_mm512_cvtepi32_ps(a)}; }
#endif

#if HWY_TARGET == HWY_AVX3_DL

// sum + codes . m over the four bytes of each lane. By name, because Highway 1.0 does not switch
// the compiler's intrinsic on for this target, whose processors all have it.
HWY_INLINE Int AddDot(Int sum, Int codes, Int m) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(m));
  return sum;
}

// Adds codes * m over rows [first, end) to the sums: 64 products an instruction.
template <int kVectors>
HWY_INLINE void AddProducts(const UnpackedTile& tile, const int8_t* m, size_t dim, size_t column,
                            size_t first, size_t end, uint32_t,
                            Int (&sums)[kDecodeTile][kVectors]) {
  for (size_t i = first; i < end; i += 4) {
    Int columns[kVectors];
    for (int v = 0; v < kVectors; ++v)
      columns[v] = IntLoad(m + i * dim + (column + static_cast<size_t>(v) * 16) * 4);
    for (uint32_t r = 0; r < kDecodeTile; ++r) {
      const Int codes = FourCodes(tile.codes[r] + i);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = AddDot(sums[r][v], codes, columns[v]);
    }
  }
}

#else

// sum + codes * m over the pairs of bytes of each 16-bit lane. In one piece, because a compiler
// that gathers the products first runs out of AVX2's registers and keeps a sum in memory.
HWY_INLINE Int AddPairs(Int sum, Int codes, Int m) {
  Int products;
  asm("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0"
      : "+v"(sum), "=&v"(products)
      : "v"(codes), "v"(m));
  return sum;
}

// Without the dot product instruction: pairs are multiplied into 16 bits, which hold a bounded
// number of steps.
template <int kVectors>
HWY_INLINE void AddProducts(const UnpackedTile& tile, const int8_t* m, size_t dim, size_t column,
                            size_t first, size_t end, uint32_t bits,
                            Int (&sums)[kDecodeTile][kVectors]) {
  constexpr size_t kColumns = sizeof(Int) / 4;
  // 2 * 3 * 127 * 32 and 2 * 15 * 127 * 8 are below 2^15.
  const size_t rows_at_once = (bits == 2 ? 32 : 8) * 4;
  for (size_t start = first; start < end; start += rows_at_once) {
    const size_t stop = std::min(end, start + rows_at_once);
    Int narrow[kDecodeTile][kVectors];
    for (auto& row : narrow) {
      for (Int& sum : row) sum = IntZero();
    }
    for (size_t i = start; i < stop; i += 4) {
      Int columns[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        columns[v] = IntLoad(m + i * dim + (column + static_cast<size_t>(v) * kColumns) * 4);
      }
      for (uint32_t r = 0; r < kDecodeTile; ++r) {
        const Int codes = FourCodes(tile.codes[r] + i);
        for (int v = 0; v < kVectors; ++v) narrow[r][v] = AddPairs(narrow[r][v], codes, columns[v]);
      }
    }
    for (uint32_t r = 0; r < kDecodeTile; ++r) {
      for (int v = 0; v < kVectors; ++v) sums[r][v] = Add32(sums[r][v], PairSums(narrow[r][v]));
    }
  }
}

#endif

// x = offset + column_scale * sum over groups of scale (codes m - zero sum(m)), columns [column,
// column + kVectors vectors).
template <int kVectors, bool kPrecise>
HWY_INLINE void InverseColumns(const RowFormat& format, const CpuTransform& t,
                               const UnpackedTile& tile, const float* group_sums, size_t column,
                               DType dtype, std::byte* const (&rows)[kDecodeTile]) {
  const F32 df;
  const size_t lanes = hn::Lanes(df);
  const size_t dim = t.dim;
  VF result[kDecodeTile][kVectors];
  for (auto& row : result) {
    for (VF& sum : row) sum = hn::Zero(df);
  }
  for (uint32_t group = 0; group < format.dim / format.group; ++group) {
    const size_t first = size_t{group} * format.group;
    const size_t end = first + format.group;
    Int sums[kDecodeTile][kVectors];
    for (auto& row : sums) {
      for (Int& sum : row) sum = IntZero();
    }
    if constexpr (kPrecise) {
      AddProducts<kVectors>(tile, t.fixed.hi.get(), dim, column, first, end, format.bits, sums);
      for (auto& row : sums) {
        for (Int& sum : row) sum = Times128(sum);
      }
      AddProducts<kVectors>(tile, t.fixed.lo.get(), dim, column, first, end, format.bits, sums);
    } else {
      AddProducts<kVectors>(tile, t.fixed.m8.get(), dim, column, first, end, format.bits, sums);
    }
    for (int v = 0; v < kVectors; ++v) {
      const VF of_zero =
          hn::LoadU(df, group_sums + group * dim + column + static_cast<size_t>(v) * lanes);
      for (uint32_t r = 0; r < kDecodeTile; ++r) {
        const VF codes =
            hn::NegMulAdd(hn::Set(df, tile.zero[r][group]), of_zero, ToFloat(sums[r][v]));
        result[r][v] = hn::MulAdd(hn::Set(df, tile.scale[r][group]), codes, result[r][v]);
      }
    }
  }
  const float* column_scale = (kPrecise ? t.fixed.column_scale16 : t.fixed.column_scale8).data();
  for (int v = 0; v < kVectors; ++v) {
    const size_t at = column + static_cast<size_t>(v) * lanes;
    const VF scale = hn::LoadU(df, column_scale + at);
    const VF offset = hn::LoadU(df, t.offset.data() + at);
    for (uint32_t r = 0; r < kDecodeTile; ++r)
      result[r][v] = hn::MulAdd(scale, result[r][v], offset);
  }
#pragma GCC unroll 4  // so that `result` stays in registers
  for (uint32_t r = 0; r < kDecodeTile; ++r) {
    if (rows[r] != nullptr) StoreVectors(result[r], dtype, tile.finite[r], rows[r], column);
  }
}

template <bool kPrecise>
HWY_INLINE void InverseTile(const RowFormat& format, const CpuTransform& t,
                            const UnpackedTile& tile, const float* group_sums, DType dtype,
                            std::byte* const (&rows)[kDecodeTile]) {
  const size_t lanes = hn::Lanes(F32());
  constexpr int kVectors = HWY_TARGET == HWY_AVX2 ? 2 : 4;
  size_t column = 0;
  for (; column + kVectors * lanes <= t.dim; column += kVectors * lanes) {
    InverseColumns<kVectors, kPrecise>(format, t, tile, group_sums, column, dtype, rows);
  }
  for (; column < t.dim; column += lanes)
    InverseColumns<1, kPrecise>(format, t, tile, group_sums, column, dtype, rows);
}

// Sums of m over each group's rows, [groups][dim], as float.
HWY_INLINE void GroupSums(const RowFormat& format, const std::vector<int32_t>& chunk_sums,
                          float* sums) {
  const size_t chunks = format.group / 16;
  for (size_t group = 0; group < format.dim / format.group; ++group) {
    for (size_t j = 0; j < format.dim; ++j) {
      int32_t sum = 0;
      for (size_t chunk = 0; chunk < chunks; ++chunk)
        sum += chunk_sums[(group * chunks + chunk) * format.dim + j];
      sums[group * format.dim + j] = static_cast<float>(sum);
    }
  }
}

#else

// x = y T^-1 + m in float.
HWY_INLINE void InverseTileFloat(const RowFormat& format, const CpuTransform& t,
                                 const UnpackedTile& tile, DType dtype,
                                 std::byte* const (&rows)[kDecodeTile]) {
  const F32 df;
  const size_t lanes = hn::Lanes(df);
  HWY_ALIGN float y[kDecodeTile][kDimMax];
  for (uint32_t r = 0; r < kDecodeTile; ++r) {
    for (size_t i = 0; i < t.dim; i += lanes) {
      const size_t group = i / format.group;
      hn::Store(Dequantize(tile.codes[r] + i, tile.scale[r][group], tile.zero[r][group]), df,
                y[r] + i);
    }
  }
  for (size_t j = 0; j < t.dim; j += lanes) {
    VF sums[kDecodeTile];
    for (VF& sum : sums) sum = hn::LoadU(df, t.offset.data() + j);
    for (size_t i = 0; i < t.dim; ++i) {
      const VF column = hn::LoadU(df, t.inverse.data() + i * t.dim + j);
      for (uint32_t r = 0; r < kDecodeTile; ++r)
        sums[r] = hn::MulAdd(hn::Set(df, y[r][i]), column, sums[r]);
    }
    for (uint32_t r = 0; r < kDecodeTile; ++r) {
      if (rows[r] != nullptr) StoreVector(sums[r], rows[r], dtype, j);
    }
  }
}

#endif  // OSCARKV_BYTE_DOT

// Unpacks rows [first, first + count) into the tile; the last of them fills what is left of it.
HWY_INLINE void UnpackTile(const RowFormat& format, const std::byte* codes, const std::byte* params,
                           size_t first, size_t count, UnpackedTile& tile) {
  const size_t groups = format.dim / format.group;
  const size_t code_bytes = size_t{format.dim} * format.bits / 8;
  const size_t param_bytes = groups * 2 * ParamBytes(format.params);
  for (size_t r = 0; r < kDecodeTile; ++r) {
    const size_t row = first + std::min(r, count - 1);
    UnpackCodes(codes + row * code_bytes, format.dim, format.bits, tile.codes[r]);
    tile.finite[r] = UnpackParams(params + row * param_bytes, groups, format.params, tile.scale[r],
                                  tile.zero[r]);
  }
}

inline void DecodeRows(const RowFormat& format, const CpuTransform* transform,
                       const std::byte* codes, const std::byte* params, DType dtype,
                       std::span<std::byte* const> rows) {
  UnpackedTile tile;
#if OSCARKV_BYTE_DOT
  const bool precise =
      dtype != DType::kBf16 || (transform != nullptr && !transform->fixed.coarse_suffices);
  HWY_ALIGN float group_sums[kGroupsMax * kDimMax];
  if (transform != nullptr) {
    GroupSums(format, precise ? transform->fixed.chunk_sum16 : transform->fixed.chunk_sum8,
              group_sums);
  }
#endif
  for (size_t first = 0; first < rows.size(); first += kDecodeTile) {
    const size_t count = std::min<size_t>(kDecodeTile, rows.size() - first);
    UnpackTile(format, codes, params, first, count, tile);
    std::byte* tile_rows[kDecodeTile] = {};
    std::copy_n(rows.begin() + static_cast<ptrdiff_t>(first), count, tile_rows);
    if (transform == nullptr) {
      for (size_t r = 0; r < count; ++r) {
        if (tile_rows[r] == nullptr) continue;
        DequantizeRow(format, tile.codes[r], tile.scale[r], tile.zero[r], dtype, tile_rows[r]);
      }
      continue;
    }
#if OSCARKV_BYTE_DOT
    if (precise) {
      InverseTile<true>(format, *transform, tile, group_sums, dtype, tile_rows);
    } else {
      InverseTile<false>(format, *transform, tile, group_sums, dtype, tile_rows);
    }
#else
    InverseTileFloat(format, *transform, tile, dtype, tile_rows);
#endif
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace oscarkv
HWY_AFTER_NAMESPACE();

#endif
