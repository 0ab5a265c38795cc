#include "kernels/codec/oscar/cpu_prepared.h"

#include <algorithm>
#include <cmath>

namespace oscarkv {
namespace {

constexpr float kMost8 = 127.0f;
constexpr float kMost16 = 127.0f * 128.0f;
constexpr uint32_t kChunkRows = 16;

FixedPointInverse MakeFixedPoint(const SideTransform& transform) {
  const uint32_t dim = transform.dim;
  FixedPointInverse fixed;
  fixed.m8 = hwy::AllocateAligned<int8_t>(size_t{dim} * dim);
  fixed.hi = hwy::AllocateAligned<int8_t>(size_t{dim} * dim);
  fixed.lo = hwy::AllocateAligned<int8_t>(size_t{dim} * dim);
  fixed.column_scale8.resize(dim);
  fixed.column_scale16.resize(dim);
  fixed.chunk_sum8.assign(size_t{dim / kChunkRows} * dim, 0);
  fixed.chunk_sum16.assign(size_t{dim / kChunkRows} * dim, 0);
  for (uint32_t j = 0; j < dim; ++j) {
    float most = 0.0f;
    for (uint32_t i = 0; i < dim; ++i)
      most = std::max(most, std::fabs(transform.inverse[i * dim + j]));
    if (most == 0.0f) most = 1.0f;
    fixed.column_scale8[j] = most / kMost8;
    fixed.column_scale16[j] = most / kMost16;
    for (uint32_t i = 0; i < dim; ++i) {
      const float share = transform.inverse[i * dim + j] / most;
      const auto value8 = static_cast<int32_t>(std::lround(share * kMost8));
      const auto value16 = static_cast<int32_t>(std::lround(share * kMost16));
      const auto high = static_cast<int32_t>(std::lround(static_cast<float>(value16) / 128.0f));
      const size_t at = (size_t{i / 4} * dim + j) * 4 + i % 4;
      fixed.m8[at] = static_cast<int8_t>(value8);
      fixed.hi[at] = static_cast<int8_t>(high);
      fixed.lo[at] = static_cast<int8_t>(value16 - 128 * high);
      fixed.chunk_sum8[i / kChunkRows * dim + j] += value8;
      fixed.chunk_sum16[i / kChunkRows * dim + j] += value16;
    }
  }
  return fixed;
}

}  // namespace

CpuTransform::CpuTransform(const SideTransform& transform)
    : dim(transform.dim),
      forward(hwy::AllocateAligned<float>(transform.forward.size())),
      minus_offset(transform.dim, 0.0f),
      inverse(transform.inverse),
      offset(transform.offset),
      fixed(MakeFixedPoint(transform)) {
  std::copy(transform.forward.begin(), transform.forward.end(), forward.get());
  for (uint32_t i = 0; i < dim; ++i) {
    for (uint32_t j = 0; j < dim; ++j) minus_offset[j] -= offset[i] * forward[i * dim + j];
  }
}

}  // namespace oscarkv
