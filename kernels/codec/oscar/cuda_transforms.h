// Transforms as the device's kernels want them.
#ifndef OSCARKV_KERNELS_CODEC_OSCAR_CUDA_TRANSFORMS_H_
#define OSCARKV_KERNELS_CODEC_OSCAR_CUDA_TRANSFORMS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/codec/oscar/cuda_crc32c.h"
#include "kernels/codec/oscar/cuda_decode.h"
#include "kernels/codec/transform_set.h"

namespace oscarkv::cuda {

// T^-1 as the right-hand operand of wgmma products, K-major, swizzled, in panels of 64 rows (128
// bytes a column); its columns in parts of 128 at most, one after the other. And what is applied to
// the sums.
//
// Column n of 32 in the operand is 8 (n % 8 / 2) + 2 (n / 8) + n % 2, so that a thread's sums are 8
// columns that follow each other. Dims 4 t + {0, 2, 1, 3} of 16 are the operand's rows 2 t, 2 t +
// 1, 2 t + 8 and 2 t + 9, because a thread finds those codes in bytes 0 and 2, and 1 and 3, of one
// word.
//
// Codes come as code * 2^(bits * field) * 2^-24; each entry is therefore divided by 2^(bits *
// field), and by a power of two for all of them, and rounded to fp16.
struct PreparedInverse {
  std::vector<std::byte> matrices;  // [heads][InverseBytes(dim)]
  // [heads][1 + groups][dim]: the offset, sums of the operand over each group's rows.
  std::vector<float> columns;
  std::vector<float> scales;  // [heads]: what sums of products are multiplied by
};

inline constexpr uint32_t kInverseColumns = 128;

PreparedInverse PrepareInverse(const std::vector<SideTransform>& heads, uint32_t bits,
                               uint32_t group);

// One head's numbers beside its matrix.
struct ForwardHead {
  float scale;     // what sums are multiplied by: 1 for bf16
  uint32_t one;    // the element by which rows are lengthened, to be multiplied by -m T
  uint32_t above;  // how many magnitudes of a row the clip cuts; 0: none
  // Were rows Gaussian: the clip's threshold, in mean magnitudes, and how many elements of a row
  // lie between two neighbouring fp16 numbers there.
  float clip_guess;
  float clip_density;
};

// T as the right-hand operand of wgmma products, K-major, swizzled: T rounded to the rows' dtype,
// in panels of 64 rows (128 bytes a column); what rounding left of it, likewise, where there is
// room for a second part; and -m T in three terms of a panel of 16 rows. -m T is that of the parts,
// so that a large offset cancels.
//
// Columns (dims of y) are in an order that makes a thread's sums codes of whole bytes.
struct PreparedForward {
  std::vector<std::byte> matrices;  // [heads][ForwardBytes(dim)]
  std::vector<ForwardHead> heads;
};

OSCARKV_HOST_DEVICE constexpr uint32_t ForwardParts(uint32_t dim) { return dim < 256 ? 2 : 1; }
OSCARKV_HOST_DEVICE constexpr uint32_t ForwardPanelBytes(uint32_t dim) { return dim * 128; }
OSCARKV_HOST_DEVICE constexpr uint32_t ForwardPartBytes(uint32_t dim) {
  return dim / 64 * ForwardPanelBytes(dim);
}
OSCARKV_HOST_DEVICE constexpr uint32_t ForwardOffsetBytes(uint32_t dim) { return dim * 32; }
OSCARKV_HOST_DEVICE constexpr uint32_t ForwardBytes(uint32_t dim) {
  return ForwardParts(dim) * ForwardPartBytes(dim) + ForwardOffsetBytes(dim);
}

PreparedForward PrepareForward(const std::vector<SideTransform>& heads, uint32_t bits, bool bf16);

}  // namespace oscarkv::cuda

#endif  // OSCARKV_KERNELS_CODEC_OSCAR_CUDA_TRANSFORMS_H_
