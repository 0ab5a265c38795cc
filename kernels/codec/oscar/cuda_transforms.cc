#include "kernels/codec/oscar/cuda_transforms.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/dtype.h"

namespace oscarkv::cuda {
namespace {

constexpr uint32_t kLaneDims[4] = {0, 2, 1, 3};  // of a lane's operand, in its order

constexpr int kTopExponent = 15;  // entries stay below 2^15: fp16 ends at 2^16

// The exponent of the least power of two that no magnitude passes.
int Exponent(const std::vector<float>& matrix) {
  float most = 0.0f;
  for (float value : matrix) most = std::max(most, std::fabs(value));
  int exponent = 0;
  std::frexp(most, &exponent);
  return exponent;
}

void AppendHead(const SideTransform& transform, uint32_t bits, uint32_t group,
                PreparedInverse* prepared) {
  const uint32_t dim = transform.dim;
  const uint32_t fields = 8 / bits;
  const int scale = kTopExponent - Exponent(transform.inverse);  // of entries for the first field
  std::vector<uint16_t> operand(size_t{dim} * dim);
  std::vector<float> sums(size_t{dim / group} * dim, 0.0f);
  for (uint32_t i = 0; i < dim; ++i) {
    const int shift = static_cast<int>(bits * (i / (dim / fields)));
    for (uint32_t j = 0; j < dim; ++j) {
      const uint16_t half = FloatToFp16(std::ldexp(transform.inverse[i * dim + j], scale - shift));
      operand[i * dim + j] = half;
      sums[i / group * dim + j] += std::ldexp(Fp16ToFloat(half), shift - 24);
    }
  }
  for (uint32_t warp = 0; warp < dim / 32; ++warp) {
    for (uint32_t step = 0; step < dim / 16; ++step) {
      for (uint32_t tile = 0; tile < 4; ++tile) {
        for (uint32_t lane = 0; lane < 32; ++lane) {
          const uint32_t n = lane / 4;
          const uint32_t j = warp * 32 + n / 2 * 8 + tile * 2 + n % 2;
          for (uint32_t of_lane : kLaneDims) {
            const uint32_t i = step * 16 + lane % 4 * 4 + of_lane;
            prepared->fragments.push_back(operand[i * dim + j]);
          }
        }
      }
    }
  }
  prepared->scales.push_back(std::ldexp(1.0f, 24 - scale));
  prepared->columns.insert(prepared->columns.end(), transform.offset.begin(),
                           transform.offset.end());
  prepared->columns.insert(prepared->columns.end(), sums.begin(), sums.end());
}

}  // namespace

PreparedInverse PrepareInverse(const std::vector<SideTransform>& heads, uint32_t bits,
                               uint32_t group) {
  PreparedInverse prepared;
  for (const SideTransform& head : heads) AppendHead(head, bits, group, &prepared);
  return prepared;
}

}  // namespace oscarkv::cuda
