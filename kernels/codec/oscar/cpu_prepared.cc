#include "kernels/codec/oscar/cpu_prepared.h"

#include <algorithm>
#include <cmath>

namespace oscarkv {
namespace {

constexpr float kMost8 = 127.0f;
constexpr float kMost16 = 127.0f * 128.0f;
constexpr uint32_t kChunkRows = 16;
// The greatest error of an element that the coarse form may be expected to make, in parts of the
// length of the row divided by sqrt(dim): a quarter of what FORMAT.md allows in parts of the row's
// greatest magnitude, which is about twice that or more.
constexpr double kCoarseErrorMax = 0x1p-6;

double SquaredLength(const std::vector<float>& values) {
  double sum = 0.0;
  for (float value : values) sum += static_cast<double>(value) * static_cast<double>(value);
  return sum;
}

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
  double worst = 0.0;  // over columns, the squared length of what m8 leaves out
  for (uint32_t j = 0; j < dim; ++j) {
    double left_out = 0.0;
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
      const double error = static_cast<double>(share * kMost8 - static_cast<float>(value8)) *
                           static_cast<double>(fixed.column_scale8[j]);
      left_out += error * error;
      const size_t at = (size_t{i / 4} * dim + j) * 4 + i % 4;
      fixed.m8[at] = static_cast<int8_t>(value8);
      fixed.hi[at] = static_cast<int8_t>(high);
      fixed.lo[at] = static_cast<int8_t>(value16 - 128 * high);
      fixed.chunk_sum8[i / kChunkRows * dim + j] += value8;
      fixed.chunk_sum16[i / kChunkRows * dim + j] += value16;
    }
    worst = std::max(worst, left_out);
  }
  // x comes back as x + x T E, E being what was left out; its elements' signs are as good as
  // random.
  const double expected = std::sqrt(SquaredLength(transform.forward) / dim * worst);
  fixed.coarse_suffices = expected <= kCoarseErrorMax;
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
