// Encoding rows: transform, clip, quantise, pack. Included once for each instruction set.
#if defined(OSCARKV_KERNELS_CODEC_OSCAR_CPU_ENCODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OSCARKV_KERNELS_CODEC_OSCAR_CPU_ENCODE_INL_H_
#undef OSCARKV_KERNELS_CODEC_OSCAR_CPU_ENCODE_INL_H_
#else
#define OSCARKV_KERNELS_CODEC_OSCAR_CPU_ENCODE_INL_H_
#endif

#include "kernels/codec/oscar/cpu_load-inl.h"

HWY_BEFORE_NAMESPACE();
namespace oscarkv {
namespace HWY_NAMESPACE {

inline constexpr uint32_t kEncodeTile =
    6;  // rows transformed at once: their sums fill the registers

// y = x T - m T for kEncodeTile rows, columns [first, first + kVectors vectors).
template <int kVectors>
HWY_INLINE void TransformColumns(const CpuTransform& t, const float* HWY_RESTRICT x, size_t first,
                                 float* HWY_RESTRICT y) {
  const F32 df;
  const size_t lanes = hn::Lanes(df);
  const size_t dim = t.dim;
  VF sums[kEncodeTile][kVectors];
  HWY_UNROLL(4)
  for (int v = 0; v < kVectors; ++v) {
    const VF start = hn::LoadU(df, t.minus_offset.data() + first + static_cast<size_t>(v) * lanes);
    for (uint32_t r = 0; r < kEncodeTile; ++r) sums[r][v] = start;
  }
  for (size_t i = 0; i < dim; ++i) {
    const float* HWY_RESTRICT row = t.forward.get() + i * dim + first;
    VF columns[kVectors];
    for (int v = 0; v < kVectors; ++v)
      columns[v] = hn::LoadU(df, row + static_cast<size_t>(v) * lanes);
    for (uint32_t r = 0; r < kEncodeTile; ++r) {
      const VF element = hn::Set(df, x[r * kDimMax + i]);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = hn::MulAdd(element, columns[v], sums[r][v]);
    }
  }
  for (uint32_t r = 0; r < kEncodeTile; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      hn::Store(sums[r][v], df, y + r * kDimMax + first + static_cast<size_t>(v) * lanes);
    }
  }
}

HWY_INLINE void TransformTile(const CpuTransform& t, const float* x, float* y) {
  const size_t lanes = hn::Lanes(F32());
  size_t first = 0;
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
  for (; first + 4 * lanes <= t.dim; first += 4 * lanes) TransformColumns<4>(t, x, first, y);
#else
  for (; first + 2 * lanes <= t.dim; first += 2 * lanes) TransformColumns<2>(t, x, first, y);
#endif
  for (; first < t.dim; first += lanes) TransformColumns<1>(t, x, first, y);
}

HWY_INLINE bool AllFinite(const float* row, uint32_t dim) {
  const F32 df;
  VF zero = hn::Zero(df);  // stays 0 unless a value is NaN or infinite
  for (size_t i = 0; i < dim; i += hn::Lanes(df)) {
    const VF value = hn::Load(df, row + i);
    zero = hn::Add(zero, hn::Sub(value, value));
  }
  return hn::AllTrue(df, hn::Eq(zero, hn::Zero(df)));
}

// The exact order statistic of |row| at clip_index: bisection on values, which ends as soon as a
// value parts the row at the wanted place, and on bit patterns when ties keep it from that.
HWY_INLINE float OrderStatistic(const float* row, uint32_t dim, uint32_t clip_index) {
  const F32 df;
  const I32 di;
  const size_t lanes = hn::Lanes(df);
  const size_t above =
      dim - 1 -
      clip_index;  // magnitudes greater than or equal to the one wanted, itself not counted
  HWY_ALIGN int32_t bits[kDimMax];  // magnitudes order like their bit patterns
  auto most = hn::Zero(di);
  for (size_t i = 0; i < dim; i += lanes) {
    const auto magnitude = hn::BitCast(di, hn::Abs(hn::Load(df, row + i)));
    hn::Store(magnitude, di, bits + i);
    most = hn::Max(most, magnitude);
  }
  // Invariant: more than `above` magnitudes are >= low, at most `above` are >= high.
  int32_t low = 0;
  int32_t high = hn::GetLane(hn::MaxOfLanes(di, most)) + 1;
  for (int step = 0; high - low > 1; ++step) {
    int32_t middle = low + (high - low) / 2;
    if (step < 24) {
      const float value = 0.5f * (std::bit_cast<float>(low) + std::bit_cast<float>(high));
      middle = std::clamp(std::bit_cast<int32_t>(value), low + 1, high - 1);
    }
    const auto pivot = hn::Set(di, middle - 1);
    size_t count = 0;
    for (size_t i = 0; i < dim; i += lanes)
      count += hn::CountTrue(di, hn::Gt(hn::Load(di, bits + i), pivot));
    if (count == above + 1) {  // the wanted one is the least of those >= middle
      auto least = hn::Set(di, high);
      for (size_t i = 0; i < dim; i += lanes) {
        const auto magnitude = hn::Load(di, bits + i);
        least = hn::Min(least, hn::IfThenElse(hn::Gt(magnitude, pivot), magnitude, least));
      }
      return std::bit_cast<float>(hn::GetLane(hn::MinOfLanes(di, least)));
    }
    if (count > above) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return std::bit_cast<float>(low);
}

HWY_INLINE void ClipRow(float* row, uint32_t dim, uint32_t clip_index) {
  if (clip_index + 1 >= dim) return;
  const F32 df;
  const VF most = hn::Set(df, OrderStatistic(row, dim, clip_index));
  const VF least = hn::Neg(most);
  for (size_t i = 0; i < dim; i += hn::Lanes(df)) {
    hn::Store(hn::Max(hn::Min(hn::Load(df, row + i), most), least), df, row + i);
  }
}

// Codes of one group, one a byte.
HWY_INLINE void QuantizeGroup(const float* row, uint32_t count, const GroupParams& pair,
                              uint32_t bits, uint8_t* codes) {
  if (pair.flat) {
    std::memset(codes, 0, count);
    return;
  }
  const F32 df;
  const VF scale = hn::Set(df, pair.code_scale);
  const VF zero = hn::Set(df, pair.code_zero);
  const VF half = hn::Set(df, 0.5f);
  const VF most = hn::Set(df, static_cast<float>(MaxCode(bits)));
  for (size_t i = 0; i < count; i += hn::Lanes(df)) {
    const VF code = hn::Add(hn::Add(hn::Div(hn::Load(df, row + i), scale), zero), half);
    const VF held = hn::Min(hn::Max(code, hn::Zero(df)), most);
    hn::StoreU(hn::DemoteTo(U8(), hn::ConvertTo(I32(), held)), U8(), codes + i);
  }
}

HWY_INLINE void PackCodes(const uint8_t* HWY_RESTRICT codes, uint32_t dim, uint32_t bits,
                          uint8_t* HWY_RESTRICT packed) {
  const size_t bytes = size_t{dim} * bits / 8;
  if (bits == 2) {
    for (size_t i = 0; i < bytes; ++i) {
      packed[i] = static_cast<uint8_t>(codes[i] | codes[i + bytes] << 2 |
                                       codes[i + 2 * bytes] << 4 | codes[i + 3 * bytes] << 6);
    }
  } else {
    for (size_t i = 0; i < bytes; ++i)
      packed[i] = static_cast<uint8_t>(codes[i] | codes[i + bytes] << 4);
  }
}

// A transformed row to codes and params.
HWY_INLINE void QuantizeRow(const RowFormat& format, float* row, std::byte* codes,
                            std::byte* params, EncodeReport* report) {
  HWY_ALIGN uint8_t unpacked[kDimMax];
  if (!AllFinite(row, format.dim)) {
    ++report->nonfinite_rows;
    std::memset(codes, 0, size_t{format.dim} * format.bits / 8);
    for (uint32_t group = 0; group < format.dim / format.group; ++group) {
      StoreParams(params, group, format.params, NanGroup().scale, NanGroup().zero);
    }
    return;
  }
  ClipRow(row, format.dim, format.clip_index);
  const F32 df;
  float row_min = std::numeric_limits<float>::infinity();
  float row_max = -row_min;
  bool overflow = false;
  for (uint32_t group = 0; group < format.dim / format.group; ++group) {
    const float* values = row + size_t{group} * format.group;
    VF min = hn::Load(df, values);
    VF max = min;
    for (size_t i = hn::Lanes(df); i < format.group; i += hn::Lanes(df)) {
      min = hn::Min(min, hn::Load(df, values + i));
      max = hn::Max(max, hn::Load(df, values + i));
    }
    const float least = hn::GetLane(hn::MinOfLanes(df, min));
    const float most = hn::GetLane(hn::MaxOfLanes(df, max));
    row_min = std::min(row_min, least);
    row_max = std::max(row_max, most);
    const GroupParams pair = MakeGroupParams(least, most, format.bits, format.params);
    overflow = overflow || pair.overflow;
    StoreParams(params, group, format.params, pair.scale, pair.zero);
    QuantizeGroup(values, format.group, pair, format.bits, unpacked + size_t{group} * format.group);
  }
  PackCodes(unpacked, format.dim, format.bits, reinterpret_cast<uint8_t*>(codes));
  if (row_min == row_max) ++report->constant_rows;
  if (overflow) ++report->overflow_rows;
}

inline void EncodeRows(const RowFormat& format, const CpuTransform* transform, DType dtype,
                       std::span<const std::byte* const> rows, std::byte* codes, std::byte* params,
                       EncodeReport* report) {
  const size_t code_bytes = size_t{format.dim} * format.bits / 8;
  const size_t param_bytes = size_t{format.dim / format.group} * 2 * ParamBytes(format.params);
  HWY_ALIGN float x[kEncodeTile * kDimMax];
  HWY_ALIGN float y[kEncodeTile * kDimMax];
  for (size_t first = 0; first < rows.size(); first += kEncodeTile) {
    const size_t count = std::min<size_t>(kEncodeTile, rows.size() - first);
    // A tile that is not full repeats its last row; the copies are not written.
    for (size_t r = 0; r < kEncodeTile; ++r) {
      LoadRow(rows[first + std::min(r, count - 1)], dtype, format.dim, x + r * kDimMax);
    }
    if (transform != nullptr) TransformTile(*transform, x, y);
    for (size_t r = 0; r < count; ++r, codes += code_bytes, params += param_bytes) {
      QuantizeRow(format, (transform != nullptr ? y : x) + r * kDimMax, codes, params, report);
    }
  }
  report->rows += rows.size();
}

}  // namespace HWY_NAMESPACE
}  // namespace oscarkv
HWY_AFTER_NAMESPACE();

#endif
