// The executable form of FORMAT.md: plain loops in its order, one row at a time.
#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/codec/oscar/format.h"
#include "kernels/codec/oscar/row_kernels.h"

namespace oscarkv {
namespace {

constexpr uint32_t kDimMax = 256;
using Row = std::array<float, kDimMax>;

class ReferenceTransform final : public PreparedTransform {
 public:
  explicit ReferenceTransform(const SideTransform& transform)
      : transform_(transform), offset_forward_(transform.dim, 0.0f) {
    const uint32_t dim = transform.dim;
    for (uint32_t i = 0; i < dim; ++i) {
      for (uint32_t j = 0; j < dim; ++j)
        offset_forward_[j] += transform.offset[i] * transform.forward[i * dim + j];
    }
  }

  // y = x T - m T, the offset inside the sum.
  void Forward(const Row& x, Row& y) const {
    const uint32_t dim = transform_.dim;
    for (uint32_t j = 0; j < dim; ++j) y[j] = -offset_forward_[j];
    for (uint32_t i = 0; i < dim; ++i) {
      for (uint32_t j = 0; j < dim; ++j) y[j] += x[i] * transform_.forward[i * dim + j];
    }
  }

  // x = y T^-1 + m.
  void Inverse(const Row& y, Row& x) const {
    const uint32_t dim = transform_.dim;
    for (uint32_t j = 0; j < dim; ++j) x[j] = transform_.offset[j];
    for (uint32_t i = 0; i < dim; ++i) {
      for (uint32_t j = 0; j < dim; ++j) x[j] += y[i] * transform_.inverse[i * dim + j];
    }
  }

 private:
  SideTransform transform_;
  std::vector<float> offset_forward_;  // m T
};

// Clamps the row to +-(its order statistic of magnitude at `clip_index`).
void Clip(Row& row, uint32_t dim, uint32_t clip_index) {
  if (clip_index + 1 >= dim) return;
  Row magnitudes;
  for (uint32_t i = 0; i < dim; ++i) magnitudes[i] = std::fabs(row[i]);
  std::sort(magnitudes.begin(), magnitudes.begin() + dim);
  const float threshold = magnitudes[clip_index];
  for (uint32_t i = 0; i < dim; ++i) row[i] = std::clamp(row[i], -threshold, threshold);
}

void WriteNanRow(const RowFormat& format, std::byte* params) {
  for (uint32_t group = 0; group < format.dim / format.group; ++group) {
    StoreParams(params, group, format.params, NanGroup().scale, NanGroup().zero);
  }
}

// Quantises a transformed row into zeroed codes.
void QuantizeRow(const RowFormat& format, Row& row, std::byte* codes, std::byte* params,
                 EncodeReport* report) {
  const auto end = row.begin() + format.dim;
  if (!std::all_of(row.begin(), end, [](float x) { return std::isfinite(x); })) {
    ++report->nonfinite_rows;
    WriteNanRow(format, params);
    return;
  }
  Clip(row, format.dim, format.clip_index);
  const auto [row_min, row_max] = std::minmax_element(row.begin(), end);
  if (*row_min == *row_max) ++report->constant_rows;
  bool overflow = false;
  for (uint32_t group = 0; group < format.dim / format.group; ++group) {
    const uint32_t first = group * format.group;
    const auto [min, max] =
        std::minmax_element(row.begin() + first, row.begin() + first + format.group);
    const GroupParams pair = MakeGroupParams(*min, *max, format.bits, format.params);
    overflow = overflow || pair.overflow;
    StoreParams(params, group, format.params, pair.scale, pair.zero);
    for (uint32_t i = first; i < first + format.group; ++i) {
      StoreCode(codes, i, format.dim, format.bits, MakeCode(row[i], pair, format.bits));
    }
  }
  if (overflow) ++report->overflow_rows;
}

class ReferenceKernels final : public RowKernels {
 public:
  std::string_view name() const override { return "reference"; }

  std::unique_ptr<const PreparedTransform> Prepare(const SideTransform& transform) const override {
    return std::make_unique<ReferenceTransform>(transform);
  }

  void Encode(const RowFormat& format, const PreparedTransform* transform, DType dtype,
              std::span<const std::byte* const> rows, std::byte* codes, std::byte* params,
              EncodeReport* report) const override {
    const size_t code_bytes = size_t{format.dim} * format.bits / 8;
    const size_t param_bytes = size_t{format.dim / format.group} * 2 * ParamBytes(format.params);
    for (const std::byte* source : rows) {
      Row x = {};
      for (size_t i = 0; i < format.dim; ++i)
        x[i] = LoadElement(source + i * DTypeBytes(dtype), dtype);
      Row y = x;
      if (transform != nullptr) static_cast<const ReferenceTransform*>(transform)->Forward(x, y);
      std::fill(codes, codes + code_bytes, std::byte{0});
      QuantizeRow(format, y, codes, params, report);
      codes += code_bytes;
      params += param_bytes;
    }
    report->rows += rows.size();
  }

  void Decode(const RowFormat& format, const PreparedTransform* transform, const std::byte* codes,
              const std::byte* params, DType dtype,
              std::span<std::byte* const> rows) const override {
    const size_t code_bytes = size_t{format.dim} * format.bits / 8;
    const size_t param_bytes = size_t{format.dim / format.group} * 2 * ParamBytes(format.params);
    for (size_t row = 0; row < rows.size(); ++row, codes += code_bytes, params += param_bytes) {
      if (rows[row] == nullptr) continue;
      Row y = {};
      for (uint32_t i = 0; i < format.dim; ++i) {
        const ScaleZero pair = LoadParams(params, i / format.group, format.params);
        y[i] = (static_cast<float>(LoadCode(codes, i, format.dim, format.bits)) - pair.zero) *
               pair.scale;
      }
      Row x = y;
      if (transform != nullptr) static_cast<const ReferenceTransform*>(transform)->Inverse(y, x);
      for (size_t i = 0; i < format.dim; ++i)
        StoreElement(rows[row] + i * DTypeBytes(dtype), dtype, x[i]);
    }
  }
};

}  // namespace

const RowKernels& ReferenceRowKernels() {
  static const ReferenceKernels kernels;
  return kernels;
}

}  // namespace oscarkv
