// A transform as the CPU kernels want it.
#ifndef OSCARKV_KERNELS_CODEC_OSCAR_CPU_PREPARED_H_
#define OSCARKV_KERNELS_CODEC_OSCAR_CPU_PREPARED_H_

#include <cstdint>
#include <vector>

#include "hwy/aligned_allocator.h"

#include "kernels/codec/oscar/row_kernels.h"

namespace oscarkv {

// Codes are small integers, so the product with T^-1 is taken on them in integers, and scale, zero
// point and offset are applied to the sums. For that T^-1 is held in fixed point, each column j
// with a scale of its own:
//   coarse  T^-1[i][j] ~ column_scale8[j] * m8[i][j],                          |m8| <= 127
//   fine    T^-1[i][j] ~ column_scale16[j] * (128 * hi[i][j] + lo[i][j])
// stored as [dim / 4][dim][4]: the four rows that one 32-bit lane of a dot product reads stand
// together. The coarse form serves bf16 results where it is close enough (`coarse_suffices`), the
// fine one all others.
struct FixedPointInverse {
  // Aligned, because a vector load that crosses a cache line costs two.
  hwy::AlignedFreeUniquePtr<int8_t[]> m8;
  hwy::AlignedFreeUniquePtr<int8_t[]> hi;
  hwy::AlignedFreeUniquePtr<int8_t[]> lo;
  std::vector<float> column_scale8;
  std::vector<float> column_scale16;
  // Sums of m over every 16 rows, [dim / 16][dim]; what a zero point multiplies.
  std::vector<int32_t> chunk_sum8;
  std::vector<int32_t> chunk_sum16;
  // An ill-conditioned T makes long y of short x, and T^-1's rounding errors count for y.
  bool coarse_suffices = false;
};

struct CpuTransform final : public PreparedTransform {
  explicit CpuTransform(const SideTransform& transform);

  uint32_t dim;
  hwy::AlignedFreeUniquePtr<float[]> forward;  // [dim][dim]
  std::vector<float> minus_offset;             // -(m T), where every transformed row starts
  std::vector<float> inverse;                  // [dim][dim]
  std::vector<float> offset;                   // m
  FixedPointInverse fixed;
};

}  // namespace oscarkv

#endif  // OSCARKV_KERNELS_CODEC_OSCAR_CPU_PREPARED_H_
