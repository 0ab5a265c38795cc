// CRC32C of what warps have in registers, as CrcFold says: products of bit matrices on the
// tensor cores, which no other part of the kernels uses for bits. Device code only.
#ifndef OSCARKV_KERNELS_CODEC_OSCAR_CUDA_CRC_FOLD_CUH_
#define OSCARKV_KERNELS_CODEC_OSCAR_CUDA_CRC_FOLD_CUH_

#include "kernels/codec/oscar/cuda_crc32c.h"

namespace oscarkv::cuda {

// The number of common ones of rows of a and columns of b, 16 x 8 with 256 bits in between.
__device__ __forceinline__ void CountCommonBits(int32_t (&counts)[4], const uint32_t (&a)[4],
                                                uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%10,%10,%10,%10};"
      : "=r"(counts[0]), "=r"(counts[1]), "=r"(counts[2]), "=r"(counts[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(0));
}

// The first `count` words, then zeros.
__device__ __forceinline__ uint4 KeepWords(uint4 words, uint32_t count) {
  return make_uint4(words.x, count > 1 ? words.y : 0, count > 2 ? words.z : 0,
                    count > 3 ? words.w : 0);
}

// A lane's part of a warp's sum; all lanes make one and use it together.
class FoldedCrc {
 public:
  __device__ __forceinline__ explicit FoldedCrc(const uint32_t (&columns)[8][32]) {
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) columns_[i] = columns[i][threadIdx.x % 32];
  }

  // This lane's 16 bytes of the next step.
  __device__ __forceinline__ void Add(uint4 words) {
    const uint32_t quad = threadIdx.x & 3;
    const uint32_t a[4] = {words.x ^ (quad == 0 ? remainder_[0] : 0),
                           words.z ^ (quad == 0 ? remainder_[1] : 0), words.y, words.w};
    int32_t counts[4][4];
#pragma unroll
    for (uint32_t tile = 0; tile < 4; ++tile)
      CountCommonBits(counts[tile], a, columns_[2 * tile], columns_[2 * tile + 1]);
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      uint32_t bits[4];  // two output bits a tile, then those of other lanes' columns above them
#pragma unroll
      for (uint32_t tile = 0; tile < 4; ++tile) {
        bits[tile] = (static_cast<uint32_t>(counts[tile][2 * r]) & 1) |
                     static_cast<uint32_t>(counts[tile][2 * r + 1]) << 1;
      }
      uint32_t word = __byte_perm(__byte_perm(bits[0], bits[1], 0x0040),
                                  __byte_perm(bits[2], bits[3], 0x0040), 0x5410);
      word = (word & 0x03030303u) << 2 * quad;
      word |= __shfl_xor_sync(0xffffffffu, word, 1);
      remainder_[r] = word | __shfl_xor_sync(0xffffffffu, word, 2);
    }
  }

  // Which of MakeCrcRows' numbers of its warp a lane needs.
  static __device__ __forceinline__ uint32_t Row() {
    return threadIdx.x % 32 / 4 + (threadIdx.x & 1) * 8;
  }
  // The warp's sum in every lane, before initial value and final exclusive-or.
  __device__ __forceinline__ uint32_t Sum(uint32_t row) const {
    const uint32_t quad = threadIdx.x & 3;
    const uint32_t mine = quad == 0 ? remainder_[0] : remainder_[1];
    return __reduce_xor_sync(0xffffffffu, quad < 2 ? CrcMultiply(row, mine) : 0);
  }

 private:
  uint32_t columns_[8];
  uint32_t remainder_[2] = {0, 0};
};

}  // namespace oscarkv::cuda

#endif  // OSCARKV_KERNELS_CODEC_OSCAR_CUDA_CRC_FOLD_CUH_
